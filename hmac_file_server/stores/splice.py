"""From a socket to a file by splice(2): the kernel's own copy, which this process never sees a byte of."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable

import attrs

_PIPE = 1 << 20


@attrs.define(eq=False)
class Source:
    """A socket that a worker thread may take from while nobody else reads it.

    :param descriptor: the socket's, which does not block.
    :param most: bytes to take at the most.
    :param give_back: ends the loan; for the thread that lent it.
    :ivar taken: bytes that were.
    :ivar dry: whether there was nothing more for the moment.
    """

    descriptor: int
    most: int
    give_back: Callable[[Source], None]
    taken: int = 0
    dry: bool = False

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return 0 if self.dry else self.most - self.taken


def splice(source: Source, file: int, left_over: list[bytes | bytearray]) -> int:
    """Append to a file what there is to take, at most what one pipe holds.

    What has left the socket is never lost: what the file does not take is left over, and writing that tells why.

    :param left_over: empty; gets what was taken and not written.
    :returns: bytes that were written.
    """
    pipe = _own_pipe()
    taken = _fill(pipe, source)
    written = 0
    with contextlib.suppress(OSError):
        while written < taken:
            written += os.splice(pipe.outlet, file, taken - written)
    behind = taken - written
    while behind:
        left_over.append(os.read(pipe.outlet, behind))
        behind -= len(left_over[-1])
    return written


def _fill(pipe: _Pipe, source: Source) -> int:
    try:
        taken = os.splice(source.descriptor, pipe.inlet, source.left, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
    except OSError:
        # It has nothing yet, or is broken, or of a kind that can not: whoever lent it will find that out.
        taken = 0
    source.taken += taken
    source.dry = not taken
    return taken


class _Pipe:
    """A pipe, which splice needs between any two descriptors."""

    def __init__(self) -> None:
        self.outlet, self.inlet = os.pipe()
        with contextlib.suppress(OSError):  # Some systems allow a user no more large ones.
            fcntl.fcntl(self.inlet, fcntl.F_SETPIPE_SZ, _PIPE)

    def __del__(self) -> None:
        os.close(self.outlet)
        os.close(self.inlet)


class _Own(threading.local):
    pipe: _Pipe | None = None


_own = _Own()


def _own_pipe() -> _Pipe:
    """The pipe of this thread; between two calls it is empty."""
    if _own.pipe is None:
        _own.pipe = _Pipe()
    return _own.pipe
