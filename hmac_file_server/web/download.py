"""Downloads: producers that bring a file's bytes to the socket, by the kernel's own copy where they can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, IPullProducer, IPushProducer, IReactorTime
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hmac_file_server.stores.local import StoredFile
from hmac_file_server.uploads.retry import InThread
from hmac_file_server.web.conditional import Range

if TYPE_CHECKING:
    from hmac_file_server.web.request import Request

_log = Logger()

Piece = bytes | Range
"""Bytes to send as they are, or a range of the file."""

_WINDOW = 1 << 20
_READ = 256 << 10
_NOT_WAITING = getattr(os, "RWF_NOWAIT", 0)


def send(request: Request, file: StoredFile, pieces: list[Piece], in_thread: InThread) -> None:
    """Send pieces of a file as the body of an answer whose headers are written, and finish the request.

    :param file: is closed at the end, whatever happens.
    :param in_thread: for reads that may have to wait for the disk.
    """
    transport = request.channel.transport
    kind = _KernelCopy if isinstance(transport, Connection) and not transport.TLS else _Copy
    kind(request, file, pieces, in_thread).start()


class _Download:
    def __init__(self, request: Request, file: StoredFile, pieces: list[Piece], in_thread: InThread) -> None:
        self._request = request
        self._channel = request.channel
        self._transport: Any = request.channel.transport
        self._file = file
        self._pieces = _parts(pieces)
        self._in_thread = in_thread
        self._limits = request.site.limits
        self._clock: IReactorTime = request.site.reactor
        self._timer: IDelayedCall | None = None
        self._sent_before = 0
        self._watch_rate()
        self._reading = False
        self._stopped = False

    def _watch_rate(self) -> None:
        self._sent_before = self._request.sentLength
        self._timer = self._clock.callLater(self._limits.idle_timeout, self._look_at_rate)

    def _look_at_rate(self) -> None:
        """Cut off a reader that takes nothing, or too little; one that waits for our disk is spared."""
        self._timer = None
        sent = self._request.sentLength - self._sent_before
        if not self._reading and sent < max(1, self._limits.min_rate * self._limits.idle_timeout):
            self._channel.timed_out = True
            self._transport.abortConnection()
        else:
            self._watch_rate()

    def _read(self, offset: int, length: int) -> None:
        """Read in a thread, then go on in :meth:`_have`."""
        self._reading = True
        descriptor = self._file.descriptor
        self._in_thread(lambda: os.pread(descriptor, length, offset)).addCallbacks(self._have_read, self._failed)

    def _have_read(self, data: bytes) -> None:
        self._reading = False
        if self._stopped:
            self._file.close()
        elif not data:
            self._fail("the file is shorter than it was")
        else:
            self._have(data)

    def _have(self, data: bytes) -> None:
        raise NotImplementedError

    def _failed(self, failure: Failure) -> None:
        self._reading = False
        if self._stopped:
            self._file.close()
        else:
            self._fail(str(failure.value))

    def _fail(self, reason: str) -> None:
        # The headers promised a length: only cutting the connection tells the client that it got less.
        _log.error("a download can not go on: {reason}", reason=reason)
        self._transport.abortConnection()

    def stopProducing(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._reading:
            self._file.close()


@implementer(IPullProducer)
class _KernelCopy(_Download):
    """``sendfile`` straight to the socket, registered with the transport itself, behind the channel's back."""

    _begun = False
    _part: Piece | None = None
    _cached_to = 0

    def start(self) -> None:
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if not self._begun:
            # The call that registering makes; the next one comes when the headers are on their way.
            self._begun = True
            self._transport.startWriting()
            return
        if self._reading or self._stopped:
            return
        part = self._part or next(self._pieces)
        if isinstance(part, bytes):
            self._request.sentLength += len(part)
            self._transport.write(part)
            self._go_on()
        else:
            self._part = part
            self._send(*part)

    def _go_on(self) -> None:
        """A part is sent; at once, for a client that has all leaves without waiting for us."""
        self._part = next(self._pieces, None)
        if self._part is None:
            self._end()

    def _send(self, offset: int, length: int) -> None:
        if offset + length > self._cached_to and not _is_cached(self._file.descriptor, offset, length):
            self._read(offset, length)
            return
        try:
            sent = os.sendfile(self._transport.fileno(), self._file.descriptor, offset, length)
        except BlockingIOError:
            self._transport.startWriting()
            return
        except OSError:
            self._transport.abortConnection()
            return
        if not sent:
            self._fail("the file is shorter than it was")
            return
        self._request.sentLength += sent
        if sent < length:
            self._part = (offset + sent, length - sent)
        else:
            self._go_on()
        if not self._stopped:
            self._transport.startWriting()

    def _have(self, data: bytes) -> None:
        # What was read is in the page cache now: sendfile will not wait for the disk.
        assert isinstance(self._part, tuple)
        self._cached_to = self._part[0] + self._part[1]
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
        while not (self._paused or self._reading or self._stopped):
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
                self._wanted = min(length, _READ)
                self._read(offset, self._wanted)

    def _have(self, data: bytes) -> None:
        if len(data) != self._wanted:
            self._fail("the file is shorter than it was")
            return
        self._request.write(data)
        self._proceed()


def _parts(pieces: list[Piece]) -> Iterator[Piece]:
    """The pieces, ranges cut so that none keeps the reactor or a thread for long."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        offset, length = piece
        while length > 0:
            step = min(length, _WINDOW)
            yield offset, step
            offset += step
            length -= step


def _chain(first: Piece, rest: Iterator[Piece]) -> Iterator[Piece]:
    yield first
    yield from rest


def _is_cached(descriptor: int, offset: int, length: int) -> bool:
    """Whether the ends of a range are in memory, so that sending it is not likely to wait for the disk."""
    byte = bytearray(1)
    try:
        return all(os.preadv(descriptor, [byte], position, _NOT_WAITING) for position in (offset, offset + length - 1))
    except OSError:
        return False
