"""A stored file, open for reading: what may wait for the disk is done in threads."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import ReaderLeft
from hmac_file_server.stores.interface import IFile
from hmac_file_server.stores.local.threads import Bulk, Run

_WINDOW, _SMALL, _TAIL = 16 << 20, 1 << 20, 64 << 10
_READ = 256 << 10
_CLOSE_SECONDS = 0.05
_SHORTER = "the file is shorter than it was"
_scratch = memoryview(bytearray(256 << 10))


@attrs.define
class StoredFile:
    """A file as it was found.

    :param descriptor: the open file. Negative where all the content is here.
    :param size: bytes.
    :param mtime_ns: when the last byte was written, in nanoseconds since 1970.
    :param about: what was kept with it.
    :param content: all its bytes where it is small and was asked for, else None.
    """

    descriptor: int
    size: int
    mtime_ns: int
    about: Attributes
    content: bytes | None = None

    def close(self) -> None:
        """Close the descriptor. It may have to wait for the disk."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Closer:
    """Closes files soon, in a thread: of another machine, or removed meanwhile, one may have to wait for the disk.

    Several together, for each turn of a thread costs.

    :param run: runs it in a thread.
    """

    def __init__(self, run: Run, clock: IReactorTime) -> None:
        self._run = run
        self._clock = clock
        self._done_with: list[StoredFile] = []
        self._timer: IDelayedCall | None = None

    def close(self, file: StoredFile) -> None:
        """Close a file soon."""
        if file.descriptor < 0:
            return
        self._done_with.append(file)
        if self._timer is None:
            self._timer = self._clock.callLater(_CLOSE_SECONDS, self._close_all)

    def _close_all(self) -> None:
        self._timer = None
        files, self._done_with = self._done_with, []

        def close() -> None:
            for file in files:
                with contextlib.suppress(OSError):
                    file.close()

        self._run(close)


@implementer(IFile)
class LocalFile:
    """An open file.

    :param run: runs reads that may have to wait for the disk.
    """

    def __init__(self, file: StoredFile, run: Run, closer: Closer) -> None:
        self._file = file
        self._run = run
        self._closer = closer
        self.size = file.size
        self.mtime_ns = file.mtime_ns
        self.about = file.about
        self.content = file.content

    def close(self) -> None:
        self._closer.close(self._file)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        descriptor = self._file.descriptor

        def read() -> bytes:
            data = os.pread(descriptor, length, offset)
            if len(data) != length:
                raise EOFError(_SHORTER)
            return data

        return self._run(read)

    def send(self, transport: Any, offset: int, length: int) -> Deferred[int | bytes]:
        # Threads do what may wait for the disk; what is small, or the end, goes at once as far as it is in memory.
        descriptor = self._file.descriptor
        if length > _SMALL:
            # From the disk a little at a time: so many threads are not to be taken up for long. And never all: who has
            # that may leave before the thread can tell.
            window = min(length - _TAIL, _WINDOW)
            hot = _is_cached(descriptor, offset, window)
            return self._send_in_thread(transport, offset, window if hot else min(window, _SMALL))
        if _is_in_memory(descriptor, offset, length):
            try:
                return succeed(_sendfile(transport.fileno(), descriptor, offset, length))
            except (OSError, EOFError, ReaderLeft):
                return fail()
        if length > _TAIL:
            return self._send_in_thread(transport, offset, length - _TAIL)
        # Not from the file: what was read may have left the memory again, or never have been kept there.
        return self.read(offset, length)  # type: ignore[return-value]  # bytes are among what it may be

    def _send_in_thread(self, transport: Any, offset: int, length: int) -> Deferred[int | bytes]:
        descriptor = self._file.descriptor
        try:
            # One of its own: the transport's number, once lost, may soon be another's.
            socket = os.dup(transport.fileno())
        except OSError:
            # There are no more descriptors: it goes on without.
            return self.read(offset, min(length, _READ))  # type: ignore[return-value]

        def send() -> int:
            try:
                return _sendfile(socket, descriptor, offset, length)
            finally:
                os.close(socket)

        return self._run(Bulk(send))


def _sendfile(socket: int, file: int, offset: int, length: int) -> int:
    """Bytes that the socket took.

    :raises EOFError: if there is nothing to send.
    :raises ReaderLeft: if there is nobody to send it to.
    """
    try:
        sent = os.sendfile(socket, file, offset, length)
    except BlockingIOError:
        return 0
    except (ConnectionError, TimeoutError):
        raise ReaderLeft from None
    if not sent:
        raise EOFError(_SHORTER)
    return sent


def _is_in_memory(file: int, offset: int, length: int) -> bool:
    """Whether all of a range is in memory now; False, too, for file systems that do not tell.

    Reading it costs little beside sending it: sendfile alone would not tell before it waits for the disk.
    """
    end = offset + length
    while offset < end:
        read = _read_at_once(file, _scratch[: end - offset], offset)
        if not read:
            return False
        offset += read
    return True


def _is_cached(descriptor: int, offset: int, length: int) -> bool:
    """Whether the ends of a range are in memory, so that sending it is not likely to wait for the disk."""
    byte = memoryview(bytearray(1))
    return all(_read_at_once(descriptor, byte, position) for position in (offset, offset + length - 1))


def _read_at_once(file: int, into: memoryview, offset: int) -> int:
    """Bytes that were in memory; 0, too, where the system or the file system does not tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return 0
    try:
        return os.preadv(file, [into], offset, os.RWF_NOWAIT)
    except OSError:
        return 0
