"""Connections: HTTP/1.1 as twisted.web reads it, more strictly, and faster where a request is an ordinary one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, _IdentityTransferDecoder
from twisted.web.http_headers import _nameEncoder

from hmac_file_server.web.client import Peer
from hmac_file_server.web.errors import MALFORMED, HTTPError
from hmac_file_server.web.headers import EVERYWHERE, NOTHING_RUNS
from hmac_file_server.web.pace import Reader
from hmac_file_server.web.sockets import READ, unsent

if TYPE_CHECKING:
    from hmac_file_server.web.request import Request
    from hmac_file_server.web.site import Site

_LONGEST_LENGTH = 18
_LONGEST_HEAD = 8192
_MOST_NAMES, _LONGEST_NAME = 1000, 64

_HEAD = re.compile(
    rb"(GET|HEAD|PUT|PATCH|DELETE|OPTIONS) ([!-~]+) (HTTP/1\.1)\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)++)\r\n"
)
"""Requests as nearly all are; whatever looks different goes twisted.web's way, and is answered the same there."""

_BARE = re.compile(rb"[\0\r\n]")
"""What may stand nowhere in a line: others take it for its end (RFC 9112, section 2.2), as some twisted.web does."""


class _Names(dict[bytes | str, bytes]):
    """Spellings of header names, for all of twisted.web, which by itself would keep 10,000 of any length."""

    def __setitem__(self, name: bytes | str, canonical: bytes) -> None:
        if len(self) < _MOST_NAMES and len(name) <= _LONGEST_NAME:
            super().__setitem__(name, canonical)


_known_names = _nameEncoder._canonicalHeaderCache = _Names(_nameEncoder._canonicalHeaderCache)
_SPECIAL = frozenset({b"Transfer-Encoding", b"Expect", b"Connection"})


class Channel(HTTPChannel):
    """A connection: stricter than twisted.web where a lax reading helps only request smuggling (RFC 9112)."""

    site: Site
    transport: Any
    peer: Peer
    timed_out = False
    counted_as: str | None = None
    _address: IAddress
    _host: IAddress | None = None
    _deadline: float | None = None
    _timer: IDelayedCall | None = None
    _reader: Reader | None = None
    _closing = False
    _heard = False

    def connectionMade(self) -> None:
        self.transport.bufferSize = READ
        HTTPChannel.connectionMade(self)
        self.site.opened(self)
        self._address = self.transport.getPeer()
        self.peer = Peer.of(self._address, self.site.limits.proxies.trusted)
        if self.site.limits.proxies.proxy_protocol:
            # Who it is comes before the first bytes; until then it is nobody's connection.
            self.peer = attrs.evolve(self.peer, trusted=True)
        self._count()

    def _count(self) -> None:
        """Have it counted, or refuse it if it is one too many."""
        try:
            self.counted_as = self.site.connections.connected(self.peer)
        except HTTPError as error:
            self.site.turned_away(self.peer.address, error)
            self._say_and_close(error)

    def meet_again(self) -> None:
        """Find out anew whether the peer is a proxy: a proxy keeps its connections for long."""
        if self.counted_as is None or (self.site.limits.proxies.proxy_protocol and not self._heard):
            return
        self.peer = Peer.of(self._address, self.site.limits.proxies.trusted)
        self.counted_as = self.site.connections.renamed(self.counted_as, self.peer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not (self._heard or self._closing):
            self.site.hints.never_spoke(self.peer.address, reason, self.transport.disconnecting)
        try:
            HTTPChannel.connectionLost(self, reason)
        finally:
            self._closing = True
            self._end_reader()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.counted_as is not None:
                self.site.connections.gone(self.counted_as)
            self.site.closed(self)

    def getPeer(self) -> IAddress:
        return self._address

    def getHost(self) -> IAddress:
        # Asked of the system once a connection, not for every request.
        if self._host is None:
            self._host = self.transport.getHost()
        return self._host

    # Timeouts: one timer a connection, which is moved only when it fires

    def setTimeout(self, period: float | None) -> float | None:
        previous, self.timeOut = self.timeOut, period  # type: ignore[assignment]  # fractions are welcome
        self.resetTimeout()
        return previous

    def resetTimeout(self) -> None:
        if self._closing:
            return
        if self._reader is not None:
            self._end_reader()
        period = self.timeOut
        if period is None:
            self._deadline = None
        else:
            self._look_in(period)

    def _look_in(self, period: float) -> None:
        clock = self.site.reactor
        self._deadline = clock.seconds() + period
        if self._timer is None:
            self._timer = clock.callLater(period, self._look_at_deadline)
        elif self._timer.getTime() > self._deadline:
            self._timer.reset(period)

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        clock = self.site.reactor
        left = self._deadline - clock.seconds()
        if left > 0:
            self._timer = clock.callLater(left, self._look_at_deadline)
        elif (self.idle or self._closing) and unsent(self.transport):
            self._wait_for_reader()
        elif self._closing:
            self.transport.abortConnection()
        else:
            self._deadline = self.timeOut = None
            self.timeoutConnection()

    def _wait_for_reader(self) -> None:
        """All is answered, and not yet taken: time is the client's as long as it takes something."""
        if self._reader is None:
            transport = self.transport
            self._reader = Reader(self.site.reactor, self.site.limits, lambda: -unsent(transport), self.cut_reader)
        self._look_in(self.site.limits.idle_timeout)

    def _end_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.end()

    def cut_reader(self) -> None:
        """End the connection of a client that does not take what it is sent."""
        self.timed_out = True
        self.transport.abortConnection()

    # Requests

    def dataReceived(self, data: bytes) -> None:
        if data and not (self._heard or self._closing):
            self._hear(data)
        while data and not self._closing:
            end = data.find(b"\r\n\r\n", 0, _LONGEST_HEAD) if self._between_requests else -1
            taken = self._take_request(data, end + 4) if end >= 0 else 0
            if taken == len(data):
                return
            if not taken:
                # Headers must be complete within one timeout, however slowly they drip in.
                if not (self.line_mode and (self.requests or self._buffer)):
                    self.resetTimeout()
                LineReceiver.dataReceived(self, data)
                return
            data = data[taken:]

    def _hear(self, first: bytes) -> None:
        """Look at the first bytes of all."""
        self._heard = True
        if self.site.limits.proxies.proxy_protocol and self.counted_as is not None:
            self.site.connections.gone(self.counted_as)
            self.counted_as = None
            self._address = self.transport.getPeer()
            self.peer = Peer.of(self._address, self.site.limits.proxies.trusted)
            self._count()
        if self.site.hints.first_bytes(self.peer.address, first) and not self._closing:
            self.site.turned_away(self.peer.address, MALFORMED)
            self._say_and_close(MALFORMED)

    @property
    def _between_requests(self) -> bool:
        busy = self.requests or self._buffer or self._busyReceiving or self.paused
        return bool(self.line_mode and self.persistent and not busy and not self.transport.disconnecting)

    def _take_request(self, data: bytes, end: int) -> int:
        """Take a whole head at once, if it is an ordinary one, and its body if all of that is here.

        What comes of it is as if each line were received.

        :param end: of the head in the data.
        :returns: bytes that were taken; 0 if it is no ordinary head.
        """
        found = _HEAD.fullmatch(data, 0, end)
        if found is None:
            return 0
        headers: dict[bytes, list[bytes]] = {}
        lines = found[4].split(b"\r\n")[:-1]
        for line in lines:
            name, _, value = line.partition(b":")
            name = _known_names.get(name) or _nameEncoder.encode(name)
            if name in headers:
                headers[name].append(value.strip(b" \t"))
            else:
                headers[name] = [value.strip(b" \t")]
        if not _SPECIAL.isdisjoint(headers) or len(lines) > self.maxHeaders:
            return 0
        lengths = headers.get(b"Content-Length")
        if lengths is not None and not (
            len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) <= _LONGEST_LENGTH
        ):
            return 0
        request: Any = self.requestFactory(self, 0)
        request.requestHeaders._rawHeaders = headers
        self.requests.append(request)
        self._command, self._path, self._version = found.groups()[:3]
        if self.site.draining:
            self.persistent = self.checkPersistence(request, self._version)
        self.length = length = 0 if lengths is None else int(lengths[0])
        if end + length > len(data):
            self.resetTimeout()
            self._transferDecoder = _IdentityTransferDecoder(
                length, request.handleContentChunk, self._finishRequestBody
            )
            request.gotLength(length)
            self.setRawMode()
            return end
        request.is_here = True
        request.gotLength(length)
        if length:
            request.handleContentChunk(memoryview(data)[end : end + length])
        self.allContentReceived()
        return end + length

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not self.requests

    def expects_continue(self, request: Request) -> bool:
        """Whether the client waits for ``100 Continue`` (RFC 9110, section 10.1.1)."""
        values = request.requestHeaders.getRawHeaders(b"Expect", ())
        return self._version == b"HTTP/1.1" and any(value.lower() == b"100-continue" for value in values)

    def lineReceived(self, line: bytes) -> None:
        folded = line[:1] in (b" ", b"\t") and self.requests  # section 5.2
        if folded or _BARE.search(line):
            self._respondToBadRequestAndDisconnect()
            return
        HTTPChannel.lineReceived(self, line)

    def headerReceived(self, line: bytes) -> bool:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if (name == b"content-length" and len(value) > _LONGEST_LENGTH) or (
            name == b"transfer-encoding" and value.lower() != b"chunked"
        ):
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(HTTPChannel.headerReceived(self, line))

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        values = request.requestHeaders.getRawHeaders(b"Connection", ())
        tokens = {token.strip(b" \t").lower() for value in values for token in value.split(b",")}
        if version == b"HTTP/1.1" and b"close" not in tokens and not self.site.draining:
            return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def requestDone(self, request: Request) -> None:
        if self.site.draining:
            self.persistent = False
        self._savedTimeOut = self.site.limits.idle_timeout
        HTTPChannel.requestDone(self, request)

    def setLineMode(self, extra: bytes = b"") -> None:
        if self._waitingForTransport:
            # A pipelined request waits until the client has read: answers do not pile up in memory.
            self.paused = True
            self._networkProducer.pauseProducing()
        HTTPChannel.setLineMode(self, extra)

    def rawDataReceived(self, data: bytes) -> None:
        HTTPChannel.rawDataReceived(self, data)
        if not self._handlingRequest:
            return
        # In one piece: of many, each would take more memory than its bytes, and time at every other.
        waiting = b"".join(self._dataBuffer)
        self._dataBuffer = [waiting]
        # twisted.web would go on reading what follows a request while the client does not read the answer.
        if len(waiting) > self._optimisticEagerReadSize:
            self._networkProducer.pauseProducing()

    def resumeProducing(self) -> None:
        HTTPChannel.resumeProducing(self)
        if self.paused:
            self.paused = False
            LineReceiver.dataReceived(self, b"")

    @property
    def body_left(self) -> int:
        """Bytes to come of the body that is arriving; 0 where nobody knows."""
        decoder = self._transferDecoder
        return decoder.contentLength or 0 if isinstance(decoder, _IdentityTransferDecoder) else 0

    def body_taken(self, size: int) -> None:
        """Take note that bytes of the body, but not its last, were read from the socket by others."""
        decoder: Any = self._transferDecoder
        decoder.contentLength -= size

    # The end

    def timeoutConnection(self) -> None:
        if not self._closing:
            self.timed_out = True
            self.loseConnection()

    def loseConnection(self) -> None:
        HTTPChannel.loseConnection(self)
        if not self._closing:
            # The transport waits until the last answer is written, or for the other end of TLS; we do not for ever.
            self._closing = True
            self._end_reader()
            self._look_in(self.abortTimeout)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        request = self.requests[-1] if self.requests else None
        if request is None or not request.startedWriting:
            self._say_and_close(MALFORMED)
        else:
            self.loseConnection()
        if request is not None:
            request.malformed()

    def _say_and_close(self, error: HTTPError) -> None:
        """Answer without a request."""
        body = error.body
        head = [b"HTTP/1.1 %d %b" % (error.status, error.phrase)]
        headers = {b"Connection": b"close", b"Content-Length": b"%d" % len(body)}
        headers |= {**EVERYWHERE, **NOTHING_RUNS, **error.all_headers()}
        head += [b"%b: %b" % item for item in headers.items()]
        self.transport.write(b"\r\n".join([*head, b"", body]))
        self.loseConnection()
