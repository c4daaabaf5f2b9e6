"""Downloads: producers that bring a file's bytes to the socket, by the kernel's own copy where they can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hmac_file_server.files.retry import InThread
from hmac_file_server.stores.local.store import StoredFile
from hmac_file_server.stores.local.threads import Bulk
from hmac_file_server.web.conditional import Range
from hmac_file_server.web.pace import Reader
from hmac_file_server.web.sockets import duplicate, has_plain_socket, unsent

if TYPE_CHECKING:
    from hmac_file_server.web.request import Request

_log = Logger()

Piece = bytes | Range
"""Bytes to send as they are, or a range of the file."""

T = TypeVar("T")

_WINDOW, _SMALL, _TAIL = 16 << 20, 1 << 20, 64 << 10
_READ = 256 << 10
_SHORTER = "the file is shorter than it was"
_scratch = memoryview(bytearray(256 << 10))


def send(
    request: Request,
    file: StoredFile,
    pieces: list[Piece],
    in_thread: InThread,
    close: Callable[[StoredFile], None],
) -> None:
    """Send pieces of a file as the body of an answer whose headers are written, and finish the request.

    :param in_thread: for reads that may have to wait for the disk.
    :param close: takes the file at the end, whatever happens.
    """
    kind = _KernelCopy if has_plain_socket(request.channel.transport) else _Copy
    kind(request, file, pieces, in_thread, close).start()


class _Left(OSError):
    """The client has gone."""


class _Download:
    def __init__(
        self,
        request: Request,
        file: StoredFile,
        pieces: list[Piece],
        in_thread: InThread,
        close: Callable[[StoredFile], None],
    ) -> None:
        self._request = request
        self._channel = request.channel
        self._transport: Any = request.channel.transport
        self._file = file
        self._pieces: Iterator[Piece] = iter(pieces)
        self._in_thread = in_thread
        self._close = close
        self._reader = Reader(request.site.reactor, request.site.limits, self._taken, self._channel.cut_reader)
        self._working = False
        self._stopped = False

    def _taken(self) -> int:
        return int(self._request.sentLength) - unsent(self._transport)

    def _work(self, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """Make a call in a thread, then go on with its result."""
        self._working = True
        self._reader.pause()
        self._in_thread(call).addCallback(self._worked, then).addErrback(self._failed)

    def _worked(self, result: T, then: Callable[[T], None]) -> None:
        self._working = False
        if self._stopped:
            self._close(self._file)
        else:
            self._reader.go()
            then(result)

    def _read(self, offset: int, length: int) -> None:
        file = self._file.descriptor

        def read() -> bytes:
            data = os.pread(file, length, offset)
            if len(data) != length:
                raise EOFError(_SHORTER)
            return data

        self._work(read, self._have)

    def _have(self, data: bytes) -> None:
        raise NotImplementedError

    def _failed(self, failure: Failure) -> None:
        self._working = False
        if self._stopped:
            self._close(self._file)
            return
        self._stopped = True
        if not failure.check(_Left):
            _log.error("a download can not go on: {reason}", reason=str(failure.value))
        # The headers promised a length: only cutting the connection tells the client that it got less.
        self._transport.abortConnection()

    def stopProducing(self) -> None:
        self._stopped = True
        self._reader.end()
        if not self._working:
            self._close(self._file)


@implementer(IPullProducer)
class _KernelCopy(_Download):
    """``sendfile`` straight to the socket, registered with the transport itself, behind the channel's back.

    Threads do that, which may wait for the disk; what is small, or the end, goes at once as far as it is in memory.
    """

    _begun = False
    _part: Piece | None = None

    def start(self) -> None:
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if not self._begun:
            # The call that registering makes; the next one comes when the headers are on their way.
            self._begun = True
            self._transport.startWriting()
            return
        if not (self._working or self._stopped):
            try:
                self._proceed()
            except (OSError, EOFError):
                self._failed(Failure())

    def _proceed(self) -> None:
        part = self._part = self._part or next(self._pieces)
        if isinstance(part, bytes):
            self._transport.write(part)
            self._sent(len(part))
        else:
            self._send(*part)

    def _send(self, offset: int, length: int) -> None:
        if length > _SMALL:
            # From the disk a little at a time: so many threads are not to be taken up for long. And never all: who has
            # that may leave before the thread can tell.
            window = min(length - _TAIL, _WINDOW)
            hot = _is_cached(self._file.descriptor, offset, window)
            self._send_in_thread(offset, window if hot else min(window, _SMALL))
            return
        if _is_in_memory(self._file.descriptor, offset, length):
            self._sent(_sendfile(self._transport.fileno(), self._file.descriptor, offset, length))
        elif length > _TAIL:
            self._send_in_thread(offset, length - _TAIL)
        else:
            self._read(offset, length)

    def _send_in_thread(self, offset: int, length: int) -> None:
        file = self._file.descriptor
        try:
            socket = duplicate(self._transport)
        except OSError:
            # There are no more descriptors: it goes on without.
            self._read(offset, min(length, _READ))
            return

        def send() -> int:
            try:
                return _sendfile(socket, file, offset, length)
            finally:
                os.close(socket)

        self._work(Bulk(send), self._sent)

    def _have(self, data: bytes) -> None:
        # Not from the file: what was read may have left the memory again, or never have been kept there.
        self._transport.write(data)
        self._sent(len(data))

    def _sent(self, size: int) -> None:
        """So much of the part is sent; the end at once, for a client that has all leaves without waiting for us."""
        self._request.sentLength += size
        part = self._part
        if isinstance(part, tuple) and size < part[1]:
            self._part = (part[0] + size, part[1] - size)
        else:
            self._part = next(self._pieces, None)
        if self._part is None:
            self._end()
        else:
            self._transport.startWriting()

    def _end(self) -> None:
        self._transport.unregisterProducer()
        self._transport.registerProducer(self._channel, True)
        # All is sent; the channel, if it was told to pause before the copy began, would never hear of it.
        self._channel.resumeProducing()
        self.stopProducing()
        self._request.finish()


@implementer(IPushProducer)
class _Copy(_Download):
    """Reads in a thread and writes to the transport: for TLS and whatever else has no plain socket."""

    _paused = False

    def start(self) -> None:
        self._request.registerProducer(self, True)
        self.resumeProducing()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._proceed()

    def _proceed(self) -> None:
        while not (self._paused or self._working or self._stopped):
            part = next(self._pieces, None)
            if part is None:
                self._request.unregisterProducer()
                self.stopProducing()
                self._request.finish()
            elif isinstance(part, bytes):
                self._request.write(part)
            else:
                offset, length = part
                if length > _READ:
                    self._pieces = _chain((offset + _READ, length - _READ), self._pieces)
                self._read(offset, min(length, _READ))

    def _have(self, data: bytes) -> None:
        self._request.write(data)
        self._proceed()


def _chain(first: Piece, rest: Iterator[Piece]) -> Iterator[Piece]:
    yield first
    yield from rest


def _sendfile(socket: int, file: int, offset: int, length: int) -> int:
    """Bytes that the socket took.

    :raises EOFError: if there is nothing to send.
    :raises _Left: if there is nobody to send it to.
    """
    try:
        sent = os.sendfile(socket, file, offset, length)
    except BlockingIOError:
        return 0
    except (ConnectionError, TimeoutError) as error:
        raise _Left(*error.args) from None
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
