"""Downloads: producers that bring a file's bytes to the socket, by the kernel's own copy where they can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hmac_file_server.stores.errors import ReaderLeft
from hmac_file_server.stores.interface import IFile
from hmac_file_server.web.conditional import Range
from hmac_file_server.web.pace import Reader
from hmac_file_server.web.sockets import has_plain_socket, unsent

if TYPE_CHECKING:
    from hmac_file_server.web.request import Request

_log = Logger()

Piece = bytes | Range
"""Bytes to send as they are, or a range of the file."""

T = TypeVar("T")

_READ = 256 << 10


def send(request: Request, file: IFile, pieces: list[Piece], sends: bool) -> None:
    """Send pieces of a file as the body of an answer whose headers are written; then finish the request.

    :param file: is closed at the end, whatever happens.
    :param sends: whether it can send itself to a plain socket.
    """
    kind = _DirectCopy if sends and has_plain_socket(request.channel.transport) else _Copy
    kind(request, file, pieces).start()


class _Download:
    def __init__(self, request: Request, file: IFile, pieces: list[Piece]) -> None:
        self._request = request
        self._channel = request.channel
        self._transport: Any = request.channel.transport
        self._file = file
        self._pieces: Iterator[Piece] = iter(pieces)
        self._reader = Reader(request.site.reactor, request.site.limits, self._taken, self._channel.cut_reader)
        self._working = False
        self._stopped = False

    def _taken(self) -> int:
        return int(self._request.sentLength) - unsent(self._transport)

    def _work(self, work: Deferred[T], then: Callable[[T], None]) -> None:
        """Wait for what the file does, then go on with its result."""
        self._working = True
        self._reader.pause()
        work.addCallback(self._worked, then).addErrback(self._failed)

    def _worked(self, result: T, then: Callable[[T], None]) -> None:
        self._working = False
        if self._stopped:
            self._file.close()
        else:
            self._reader.go()
            then(result)

    def _failed(self, failure: Failure) -> None:
        self._working = False
        if self._stopped:
            self._file.close()
            return
        self._stopped = True
        if not failure.check(ReaderLeft):
            path = getattr(failure.value, "filename", None)
            _log.error("a download can not go on: {reason}", reason=str(failure.value), path=path)
        # The headers promised a length: only cutting the connection tells the client that it got less.
        self._transport.abortConnection()

    def stopProducing(self) -> None:
        self._stopped = True
        self._reader.end()
        if not self._working:
            self._file.close()


@implementer(IPullProducer)
class _DirectCopy(_Download):
    """Straight from the file to the socket, registered with the transport itself, behind the channel's back."""

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
            self._proceed()

    def _proceed(self) -> None:
        part = self._part = self._part or next(self._pieces)
        if isinstance(part, bytes):
            self._have(part)
        else:
            self._work(self._file.send(self._transport, *part), self._have)

    def _have(self, sent: int | bytes) -> None:
        if isinstance(sent, bytes):
            self._transport.write(sent)
            sent = len(sent)
        self._sent(sent)

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
                self._work(self._file.read(offset, min(length, _READ)), self._have)

    def _have(self, data: bytes) -> None:
        self._request.write(data)
        self._proceed()


def _chain(first: Piece, rest: Iterator[Piece]) -> Iterator[Piece]:
    yield first
    yield from rest
