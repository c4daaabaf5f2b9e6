"""Requests, decided when their headers are complete; the only module that touches private names of twisted.web.

``gotLength`` runs at the end of the headers and before the automatic ``100 Continue``. A refusal is
written there at once, and what the client goes on sending is swallowed, up to a bound, so that it
can read the answer; then the connection ends, so that no byte of it is ever taken for a request.
"""

from __future__ import annotations

import select
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http import parse_qs
from zope.interface import implementer

from hmac_file_server.uploads.upload import Upload
from hmac_file_server.web.errors import HTTPError
from hmac_file_server.web.headers import EVERYWHERE

if TYPE_CHECKING:
    from hmac_file_server.web.site import Site

_log = Logger()

DRAIN_BYTES = 64 << 20
"""What is swallowed of a refused body, at most."""
DRAIN_SECONDS = 30.0
"""How long it is swallowed, at most."""
DRAIN_IDLE = 5.0
"""Seconds without a byte after which a refused client is taken to be done."""

_READ_SIZE = 256 << 10
_LARGE_BODY = 1 << 20
_HANGUP_CHECK = 1.0
_LONGEST_LENGTH = 18
_TEXT = {b"Content-Type": b"text/plain; charset=utf-8"}
_MALFORMED = HTTPError(400, "malformed", "the request is malformed")


class Request(server.Request):
    """One request.

    :ivar body: where its content goes; None if it has none that is wanted.
    :ivar error: what it was answered with instead of what it asked for.
    :ivar body_received: bytes of its content that came.
    :ivar started: when its headers were complete, in seconds of the site's clock.
    """

    site: Site
    channel: Channel
    transport: Any
    body: Upload | None = None
    error: HTTPError | None = None
    body_received = 0
    started = 0.0
    _resource: Any = None
    _flow: _Flow | None = None
    _counted_as = ""
    _drained = False
    _drain_timer: IDelayedCall | None = None

    # From the headers to a decision

    def gotLength(self, length: int | None) -> None:
        channel = self.channel
        self.site = channel.site
        self.started = self.site.reactor.seconds()
        self.method, self.uri, self.clientproto = channel._command, channel._path, channel._version
        self.path, _, query = _origin_form(self.uri).partition(b"?")
        self.args = parse_qs(query, True) if query else {}
        self.prepath = []
        self.postpath = [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        try:
            self.site.check_open()
            self._check()
            if not channel.counted_as:
                self._counted_as = self.site.crowd.arrived(self.client, self.requestHeaders)
            self._resource = self.site.getResourceFor(self)
            self.body = self._resource.accept(self, length)
        except HTTPError as error:
            self._refuse(error, length)
        except Exception:
            self._refuse(self._bug(), length)
        if self.body is not None:
            self._receive(self.body, length)

    def _check(self) -> None:
        if self.clientproto == b"HTTP/1.1" and len(self.requestHeaders.getRawHeaders(b"Host", ())) != 1:
            raise _MALFORMED
        if not self.path.startswith(b"/") and self.path != b"*":
            raise _MALFORMED

    def _receive(self, body: Upload, length: int | None) -> None:
        channel = self.channel
        self._flow = _Flow(self)
        body.done.addErrback(self._upload_failed)
        body.registerProducer(self._flow, True)
        if not length:
            return
        channel.setTimeout(self.site.limits.upload_timeout)
        if length > _LARGE_BODY:
            # The size of the reads decides how much CPU a large body costs.
            self.transport.bufferSize = _READ_SIZE
        if self.requestHeaders.hasHeader(b"Expect") and channel.expects_continue(self):
            # Not by twisted.web, which would send it before the store has been asked.
            self.requestHeaders.removeHeader(b"Expect")
            body.begin().addCallback(self._send_continue)

    def _send_continue(self, _: None) -> None:
        if not self._disconnected and self.error is None and not self.body_received:
            self.channel._send100Continue()

    def _refuse(self, error: HTTPError, length: int | None) -> None:
        self.error = error
        if length == 0:
            return  # Nothing follows: process() answers, and the connection can go on.
        # Without the header twisted.web sends no 100 Continue, and a client that waits for it sends no body.
        self.requestHeaders.removeHeader(b"Expect")
        self._answer_early(error)

    def _answer_early(self, error: HTTPError) -> None:
        """Answer a request whose body is still arriving, and swallow the rest of that."""
        self.error = error
        self._drained = True
        channel = self.channel
        channel.persistent = False
        self.setHeader(b"Connection", b"close")
        self._start_answer(error.status, _TEXT | dict(error.headers), _text(error))
        channel.setTimeout(DRAIN_IDLE)
        self._drain_timer = self.site.reactor.callLater(DRAIN_SECONDS, channel.loseConnection)

    # The body

    def handleContentChunk(self, data: bytes) -> None:
        self.body_received += len(data)
        if self._drained:
            if self.body_received > DRAIN_BYTES:
                self.channel.loseConnection()
        elif self.body is not None:
            self.body.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._drained:
            self.finish()
            return
        if self._flow is not None:
            self._flow.end()
        if self.body is not None:
            self.body.unregisterProducer()
        self.process()

    def _upload_failed(self, failure: Failure) -> Failure | None:
        """Answer at once where the body is still arriving; after it, the resource does."""
        if self._disconnected:
            return None
        if self._flow is None or self._flow.ended:
            return failure
        self._flow.end()
        self._answer_early(self._resource.explain(failure))
        return None

    # The answer

    @property
    def gone(self) -> bool:
        """Whether the client's connection is lost."""
        return bool(self._disconnected)

    def process(self) -> None:
        if self.error is not None:
            self.fail(self.error)
            return
        try:
            self._resource.render(self)
        except HTTPError as error:
            self.fail(error)
        except Exception:
            self.fail(self._bug())

    def answer(self, status: int, headers: Mapping[bytes, bytes], body: bytes = b"") -> None:
        """Send a whole answer. Does nothing when the client has gone."""
        if not self._disconnected:
            self._start_answer(status, headers, body)
            self.finish()

    def start(self, status: int, headers: Mapping[bytes, bytes], body: bytes = b"") -> None:
        """Write the status line and the headers, which must give the length."""
        self.setResponseCode(status, _phrase(status))
        response = self.responseHeaders
        for table in (EVERYWHERE, headers):
            for name, value in table.items():
                response.setRawHeaders(name, [value])
        response.setRawHeaders(b"Date", [http.datetimeToString()])
        response.setRawHeaders(b"Server", [b"hmac-file-server"])
        http.Request.write(self, body)

    def _start_answer(self, status: int, headers: Mapping[bytes, bytes], body: bytes) -> None:
        described = dict(headers)
        if status not in http.NO_BODY_CODES:
            described.setdefault(b"Content-Length", b"%d" % len(body))
        self.start(status, described, body)

    def fail(self, error: HTTPError) -> None:
        """Answer with an error; once an answer has begun, only cutting the connection tells the client."""
        self.error = error
        if self.startedWriting:
            if not self._disconnected:
                self.transport.abortConnection()
        else:
            self.answer(error.status, _TEXT | dict(error.headers), _text(error))

    def _bug(self) -> HTTPError:
        _log.failure("a bug in answering {method} {path}", method=self.method, path=self.path)
        return HTTPError(500, "bug", "the server failed; its log says how")

    def malformed(self) -> None:
        """Take note that the channel has answered 400 and closes."""
        if self.error is None:
            self.error = _MALFORMED
            self.code = _MALFORMED.status

    # The end

    def finish(self) -> None:
        self._let_go()
        server.Request.finish(self)

    def connectionLost(self, reason: Failure) -> None:
        channel = self.channel
        site = self.site = channel.site
        self._let_go()
        if self._flow is not None:
            self._flow.end(lost=True)
        server.Request.connectionLost(self, reason)
        if self.body is not None:
            self.body.abandon()
        site.ended(self, channel.timed_out, cut=self.error is None)

    def _let_go(self) -> None:
        self.site.crowd.left(self._counted_as)
        self._counted_as = ""
        if self._drain_timer is not None and self._drain_timer.active():
            self._drain_timer.cancel()
        self._drain_timer = None


@implementer(IPushProducer)
class _Flow:
    """The body of a request as a push producer: pausing it stops reading from the client.

    While it is paused the reactor would not notice that the client leaves, so the socket is asked now
    and then. (What the client sent before it left must have fitted the kernel's buffer to be seen.)
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._channel = channel = request.channel
        self._transport: Any = channel.transport
        self._paused = False
        self._limits = channel.site.limits
        self._rate_check: IDelayedCall | None = None
        self._had = 0
        self._watch_rate()
        self._check: IDelayedCall | None = None
        self.ended = False

    def pauseProducing(self) -> None:
        self._paused = True
        self._stop_rate_check()
        self._transport.pauseProducing()
        self._channel.setTimeout(None)
        self._check_later()

    def resumeProducing(self) -> None:
        self._stop_check()
        self._paused = False
        if not self.ended:
            self._watch_rate()
            self._channel.setTimeout(self._limits.upload_timeout)
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        self._transport.loseConnection()

    def end(self, lost: bool = False) -> None:
        """No more of the body is wanted or to come."""
        self.ended = True
        self._stop_check()
        self._stop_rate_check()
        if not lost:
            vars(self._transport).pop("bufferSize", None)
            if self._paused:
                self.resumeProducing()

    def _watch_rate(self) -> None:
        """From now on, see whether the client keeps up the lowest rate."""
        if self._limits.min_rate:
            self._had = self._request.body_received
            clock = self._channel.site.reactor
            self._rate_check = clock.callLater(self._limits.upload_timeout, self._look_at_rate)

    def _look_at_rate(self) -> None:
        self._rate_check = None
        if self._request.body_received - self._had < self._limits.min_rate * self._limits.upload_timeout:
            self._channel.timeoutConnection()
        else:
            self._watch_rate()

    def _stop_rate_check(self) -> None:
        if self._rate_check is not None:
            self._rate_check.cancel()
            self._rate_check = None

    def _check_later(self) -> None:
        if hasattr(self._transport, "fileno"):
            self._check = self._channel.site.reactor.callLater(_HANGUP_CHECK, self._look_for_hangup)

    def _stop_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _look_for_hangup(self) -> None:
        self._check = None
        poll = select.poll()
        poll.register(self._transport.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self._transport.abortConnection()
        else:
            self._check_later()


class Channel(http.HTTPChannel):
    """A connection: stricter than twisted.web where a lax reading helps only request smuggling (RFC 9112)."""

    site: Site
    transport: Any
    timed_out = False
    counted_as: str | None = None
    _held = False

    def connectionMade(self) -> None:
        http.HTTPChannel.connectionMade(self)
        self.site.opened(self)
        try:
            self.counted_as = self.site.crowd.connected(self.transport.getPeer())
        except HTTPError as error:
            self._say_and_close(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        http.HTTPChannel.connectionLost(self, reason)
        if self.counted_as is not None:
            self.site.crowd.gone(self.counted_as)
        self.site.closed(self)

    def dataReceived(self, data: bytes) -> None:
        # Headers must be complete within one timeout, however slowly they drip in.
        if not (self.line_mode and (self.requests or self._buffer)):
            self.resetTimeout()
        LineReceiver.dataReceived(self, data)

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not self.requests

    def expects_continue(self, request: Request) -> bool:
        """Whether the client waits for ``100 Continue`` (RFC 9110, section 10.1.1)."""
        values = request.requestHeaders.getRawHeaders(b"Expect", ())
        return self._version == b"HTTP/1.1" and any(value.lower() == b"100-continue" for value in values)

    def lineReceived(self, line: bytes) -> None:
        if line[:1] in (b" ", b"\t") and self.requests:
            self._respondToBadRequestAndDisconnect()  # obs-fold, section 5.2
            return
        http.HTTPChannel.lineReceived(self, line)

    def headerReceived(self, line: bytes) -> bool:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if (name == b"content-length" and len(value) > _LONGEST_LENGTH) or (
            name == b"transfer-encoding" and value.lower() != b"chunked"
        ):
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(http.HTTPChannel.headerReceived(self, line))

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        if self.site.draining:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            return False
        return bool(http.HTTPChannel.checkPersistence(self, request, version))

    def requestDone(self, request: Request) -> None:
        if self.site.draining:
            self.persistent = False
        self._savedTimeOut = self.site.limits.idle_timeout
        http.HTTPChannel.requestDone(self, request)

    def setLineMode(self, extra: bytes = b"") -> None:
        if self._waitingForTransport and extra:
            # A pipelined request waits until the client has read: answers do not pile up in memory.
            self._held = self._handlingRequest = True
            self._dataBuffer = [extra]
        else:
            http.HTTPChannel.setLineMode(self, extra)

    def resumeProducing(self) -> None:
        http.HTTPChannel.resumeProducing(self)
        if self._held:
            self._held = self._handlingRequest = False
            extra, self._dataBuffer = b"".join(self._dataBuffer), []
            self._networkProducer.resumeProducing()
            self.setLineMode(extra)

    def timeoutConnection(self) -> None:
        self.timed_out = True
        self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def forceAbortClient(self) -> None:
        self._abortingCall = None
        self.transport.abortConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        request = self.requests[-1] if self.requests else None
        if request is None or not request.startedWriting:
            self._say_and_close(_MALFORMED)
        else:
            self.loseConnection()
        if request is not None:
            request.malformed()

    def _say_and_close(self, error: HTTPError) -> None:
        """Answer without a request."""
        body = _text(error)
        head = [b"HTTP/1.1 %d %b" % (error.status, _phrase(error.status))]
        headers = {b"Connection": b"close", b"Content-Length": b"%d" % len(body), **_TEXT, **EVERYWHERE}
        head += [b"%b: %b" % item for item in (headers | dict(error.headers)).items()]
        self.transport.write(b"\r\n".join([*head, b"", body]))
        self.loseConnection()


def _origin_form(target: bytes) -> bytes:
    """The path and query of a request target; proxies may send it whole (RFC 9112, section 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        return b"/" + rest.partition(b"/")[2]
    return target


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode("ascii")


def _text(error: HTTPError) -> bytes:
    return error.message.encode("utf-8") + b"\n"
