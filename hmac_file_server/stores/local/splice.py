"""From a socket to a file by splice(2): the kernel's own copy, which this process never sees a byte of."""

from __future__ import annotations

import contextlib
import fcntl
import os

from hmac_file_server.stores.interface import Source

_SIZE = 1 << 20


class Pipe:
    """A pipe, which splice needs between any two descriptors. Between two calls it is empty."""

    def __init__(self) -> None:
        self._outlet, self._inlet = os.pipe()
        with contextlib.suppress(OSError):  # Some systems allow a user no more large ones.
            fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, _SIZE)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._outlet)
        os.close(self._inlet)

    def move(self, source: Source, file: int, left_over: list[bytes | bytearray]) -> int:
        """Append to a file what there is to take, at most what the pipe holds.

        What has left the socket is never lost: what the file does not take is left over, and writing that tells why.

        :param left_over: empty; gets what was taken and not written.
        :returns: bytes that were written.
        """
        taken = self._fill(source)
        written = 0
        with contextlib.suppress(OSError):
            while written < taken:
                written += os.splice(self._outlet, file, taken - written)
        behind = taken - written
        while behind:
            left_over.append(os.read(self._outlet, behind))
            behind -= len(left_over[-1])
        return written

    def _fill(self, source: Source) -> int:
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        try:
            taken = os.splice(source.descriptor, self._inlet, source.left, flags=flags)
        except OSError:
            # It has nothing yet, or is broken, or of a kind that can not: whoever lent it will find that out.
            taken = 0
        source.taken += taken
        source.dry = not taken
        return taken
