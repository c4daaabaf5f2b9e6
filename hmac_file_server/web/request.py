"""Requests, decided when their headers are complete; with ``channel`` what touches private names of twisted.web.

``gotLength`` runs at the end of the headers and before the automatic ``100 Continue``. A refusal is
written there at once, and what the client goes on sending is swallowed, up to a bound, so that it
can read the answer; then the connection ends, so that no byte of it is ever taken for a request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import NO_BODY_CODES, datetimeToString, parse_qs

from hmac_file_server.web.body import Broken, IBodyConsumer, IncomingBody
from hmac_file_server.web.client import client_address, is_loopback, names_loopback, was_passed_on
from hmac_file_server.web.errors import MALFORMED, HTTPError
from hmac_file_server.web.headers import EVERYWHERE, NOTHING_RUNS, lines
from hmac_file_server.web.pace import Pace, of_body

if TYPE_CHECKING:
    from hmac_file_server.web.channel import Channel
    from hmac_file_server.web.site import Site

_log = Logger()

DRAIN_BYTES = 64 << 20
"""What is swallowed of a body after its refusal, at most, if it does not come through a proxy."""
DRAIN_PROXIED = 32 << 30
"""The same through a proxy, which may look for no answer before it has sent all. What is longer takes too long."""
DRAIN_SECONDS = 300.0
"""How long it is swallowed, at most."""

_LARGE_BODY = 1 << 20
_FORWARDED = frozenset({b"X-Forwarded-For", b"Forwarded"})
_NAME_CLIENTS = _FORWARDED | {b"X-Real-Ip"}
_ABSOLUTE = re.compile(rb"https?://[^/?#]*(.*)", re.IGNORECASE)
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus
}
_STANDING = lines({**EVERYWHERE, b"Server": b"hmac-file-server"})


class Request(server.Request):
    """One request.

    :ivar client_address: who asks, as far as that can be believed.
    :ivar body: where its content goes; None if it has none that is wanted.
    :ivar error: what it was answered with instead of what it asked for.
    :ivar host_name: which of several hosts it is for; empty while that is not known.
    :ivar note: what the log says of it beside its answer.
    :ivar body_received: bytes of its content that came.
    :ivar is_here: whether all its content has come together with its headers.
    :ivar started: when its headers were complete, in seconds of the site's clock.
    """

    site: Site
    channel: Channel
    transport: Any
    prepath: list[bytes] | None = None
    body: IBodyConsumer | None = None
    error: HTTPError | None = None
    host_name = ""
    note = ""
    body_received = 0
    is_here = False
    started = 0.0
    _resource: Any = None  # an IDecider
    _incoming: IncomingBody | None = None
    _counted_as = ""
    _drained = False
    _drain_most = 0
    _drain_timer: IDelayedCall | None = None
    _drain_pace: Pace | None = None

    def __init__(self, channel: Channel, *args: Any, **named: Any) -> None:
        super().__init__(channel, *args, **named)
        self.client_address = channel.peer.address

    # From the headers to a decision

    def gotLength(self, length: int | None) -> None:
        channel = self.channel
        self.site = channel.site
        self.started = self.site.reactor.seconds()
        self.method, self.uri, self.clientproto = channel._command, channel._path, channel._version
        self.path, _, query = _origin_form(self.uri).partition(b"?")
        self.args = parse_qs(query, True) if query else {}
        self.prepath = []
        self.postpath = self.path[1:].split(b"/")
        if b"%" in self.path:
            self.postpath = [unquote_to_bytes(segment) for segment in self.postpath]
        try:
            self.site.check_open()
            self._check()
            if channel.peer.trusted and self.says_any(_FORWARDED):
                trusted = self.site.limits.proxies.trusted
                self.client_address = client_address(self.client, self.requestHeaders, trusted)
                self._counted_as = self.site.connections.arrived(self.client_address)
            elif self.says_any(_NAME_CLIENTS) and not self.site.limits.proxies.proxy_protocol:
                hints = self.site.hints
                (hints.unnamed if channel.peer.trusted else hints.untrusted)(self.client_address)
            self._resource = self.site.getResourceFor(self)
            self.body = self._resource.accept(self, length)
        except HTTPError as error:
            # Without the traceback, whose frames would keep the request until the collector finds it.
            self._refuse(error.with_traceback(None), length)
        except Exception:
            self._refuse(self._bug(), length)
        if self.body is not None:
            self._receive(self.body, length)

    def _check(self) -> None:
        hosts = len(self.requestHeaders._rawHeaders.get(b"Host", ()))
        bad_host = hosts > 1 or (not hosts and self.clientproto == b"HTTP/1.1")
        if bad_host or not (self.path.startswith(b"/") or self.path == b"*"):
            raise MALFORMED.having({})  # A new one: a shared one would keep every request that raised it.

    def _receive(self, body: IBodyConsumer, length: int | None) -> None:
        channel = self.channel
        expected = large = False
        if length and not self.is_here:
            large = length > _LARGE_BODY
            body.done.addErrback(self._upload_failed)
            self._incoming = IncomingBody(self, large=large)
            body.registerProducer(self._incoming, True)
            channel.setTimeout(self.site.limits.upload_timeout)
            self._incoming.size_reads(body.share)
            expected = self.requestHeaders.hasHeader(b"Expect") and channel.expects_continue(self)
            if expected:
                # Not by twisted.web, which would send it before the store has been asked.
                self.requestHeaders.removeHeader(b"Expect")
                # Meanwhile it is us who the client waits for: its timeouts do not run.
                self._incoming.pauseProducing()
        if expected or body.begins_early or large:
            body.begin().addCallback(self._begun, expected)

    def _begun(self, _: None, expected: bool) -> None:
        if self._disconnected or self.error is not None:
            return
        self._resource.begun(self)
        if expected and self._incoming is not None:
            self._incoming.resumeProducing()
            self.channel._send100Continue()

    def _refuse(self, error: HTTPError, length: int | None) -> None:
        self.error = error
        # Without the header twisted.web sends no 100 Continue, and a client that waits for it sends no body.
        self.requestHeaders.removeHeader(b"Expect")
        if length == 0:
            return  # Nothing follows: process() answers, and the connection can go on.
        self._answer_early(error)

    def _answer_early(self, error: HTTPError) -> None:
        """Answer a request whose body is still arriving, and swallow the rest of that."""
        self.error = error
        self._drained = True
        channel = self.channel
        channel.persistent = False
        self.setHeader(b"Connection", b"close")
        self._start_answer(error.status, error.all_headers(), error.body)
        # Where the length is not known it is 0 here.
        proxied = self.proxied and channel.body_left <= DRAIN_PROXIED
        self._drain_most = self.body_received + (DRAIN_PROXIED if proxied else DRAIN_BYTES)
        channel.setTimeout(self.site.limits.upload_timeout)
        self._drain_timer = self.site.reactor.callLater(DRAIN_SECONDS, channel.loseConnection)
        self._drain_pace = of_body(self, channel.loseConnection)
        self._drain_pace.go()

    # The body

    def handleContentChunk(self, data: bytes) -> None:
        self.body_received += len(data)
        if self._drained:
            if self.body_received > self._drain_most:
                self.channel.loseConnection()
        elif self.body is not None:
            self.body.write(data)
            if self._incoming is not None:
                self._incoming.size_reads(self.body.share)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._drained:
            self.finish()
            return
        self._end_flow()
        if self.body is not None:
            self.body.unregisterProducer()
        self.process()

    def _end_flow(self, lost: bool = False) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.end(lost)

    def _upload_failed(self, failure: Failure) -> Failure | None:
        """Answer at once where the body is still arriving; after it, the resource does."""
        if self._incoming is None:
            return failure
        self._end_flow()
        self._answer_early(self._resource.explain(self, failure))
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
            self.fail(error.with_traceback(None))
        except Exception:
            self.fail(self._bug())

    def answer(self, status: int, headers: Mapping[bytes, bytes], body: bytes = b"") -> None:
        """Send a whole answer. Does nothing when the client has gone."""
        if not self._disconnected:
            self._start_answer(status, headers, body)
            self.finish()

    def answer_ready(self, status: int, headers: bytes, body: bytes) -> None:
        """As :meth:`answer`, with the headers, of which none may be missing, as they are sent."""
        if not self._disconnected:
            self._write_head(status, headers, body)
            self.finish()

    def said(self, name: bytes) -> bytes | None:
        """As ``getHeader``.

        :param name: in its usual spelling.
        """
        values = self.requestHeaders._rawHeaders.get(name)
        return values[-1] if values else None

    def all_said(self, name: bytes) -> Sequence[bytes]:
        """As ``getRawHeaders``.

        :param name: in its usual spelling.
        """
        return self.requestHeaders._rawHeaders.get(name, ())

    def says_any(self, names: frozenset[bytes]) -> bool:
        """Whether it has one of these headers.

        :param names: in their usual spelling.
        """
        return not names.isdisjoint(self.requestHeaders._rawHeaders)

    @property
    def proxied(self) -> bool:
        """Whether it seems to come through a proxy, be that one trusted or not."""
        proxies, peer = self.site.limits.proxies, self.channel.peer
        by_its_form = proxies.proxy_protocol or not self.uri.startswith(b"/")
        return peer.trusted or by_its_form or was_passed_on(self.requestHeaders)

    @property
    def is_local(self) -> bool:
        """Whether a program on this machine sends it, for this machine and not for a client of its own.

        A hint, and no wall: nginx, unless it is told otherwise, sends HTTP/1.0, or by now 1.1, the Host of its
        upstream, and nothing that tells of itself. A browser says then which host its page is of.
        """
        headers = self.requestHeaders._rawHeaders
        urls = [*headers.get(b"Origin", ()), *headers.get(b"Referer", ())]
        if not self.uri.startswith(b"/"):
            urls.append(self.uri)
        hosts = [*headers.get(b"Host", ()), *(url.partition(b"//")[2].partition(b"/")[0] for url in urls)]
        local = is_loopback(self.channel.peer.address) and all(map(names_loopback, hosts))
        return local and self.clientproto == b"HTTP/1.1" and not was_passed_on(self.requestHeaders)

    @property
    def hears_104(self) -> bool:
        """Whether the client can be told that its upload can be resumed before its end.

        A proxy that does not know 104 takes it for the final answer, or for that to the next request: nginx does.
        So it is sent to whoever connects by itself, and through proxies only where all are known to pass it.
        """
        return self.clientproto == b"HTTP/1.1" and (self.site.limits.proxies.pass_104 or not self.proxied)

    def send_104(self, headers: Mapping[bytes, bytes]) -> None:
        """Send the interim answer ``104 Upload Resumption Supported``, if the client :attr:`hears_104` still."""
        if not (self._disconnected or self.startedWriting) and self.hears_104:
            self.transport.write(b"HTTP/1.1 104 Upload Resumption Supported\r\n%b\r\n" % lines(headers))

    def start(self, status: int, headers: Mapping[bytes, bytes], body: bytes = b"") -> None:
        """Write the status line and the headers, which must give the length, and the beginning of the body."""
        self._write_head(status, lines({**NOTHING_RUNS, **headers}), body)

    def _write_head(self, status: int, headers: bytes, body: bytes) -> None:
        self.code = status
        self.startedWriting = 1
        if self.site.draining:
            self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        more = b""
        if self.responseHeaders._rawHeaders:
            more = lines({name: values[0] for name, values in self.responseHeaders.getAllRawHeaders()})
        head = b"%b%bDate: %b\r\n%b%b\r\n" % (_STATUS_LINES[status], _STANDING, date(), headers, more)
        if body and self.method != b"HEAD" and status not in NO_BODY_CODES:
            self.sentLength = len(body)
            head += body
        self.channel.write(head)

    def _start_answer(self, status: int, headers: Mapping[bytes, bytes], body: bytes) -> None:
        if status not in NO_BODY_CODES and b"Content-Length" not in headers:
            headers = {**headers, b"Content-Length": b"%d" % len(body)}
        self.start(status, headers, body)

    def fail(self, error: HTTPError) -> None:
        """Answer with an error; once an answer has begun, only cutting the connection tells the client."""
        self.error = error
        if self.startedWriting:
            if not self._disconnected:
                self.transport.abortConnection()
        else:
            self.answer(error.status, error.all_headers(), error.body)

    def _bug(self) -> HTTPError:
        _log.failure("a bug in answering {method} {path}", method=self.method, path=self.path)
        return HTTPError(500, "bug", "the server failed; its log says how")

    def malformed(self) -> None:
        """Take note that the channel has answered 400 and closes."""
        if self.error is None:
            self.error = MALFORMED
            self.code = MALFORMED.status

    # The end

    def finish(self) -> None:
        self._let_go()
        server.Request.finish(self)

    def connectionLost(self, reason: Failure) -> None:
        channel = self.channel
        site = self.site = channel.site
        self._let_go()
        self._end_flow(lost=True)
        server.Request.connectionLost(self, reason)
        cut = self.error is None
        if self.body is None:
            site.ended(self, channel.timed_out, cut)
            return
        # What has come as a whole is stored, whether its client waits for that or not.
        self.body.abandon()
        self.body.done.addErrback(self._body_failed).addCallback(lambda _: site.ended(self, channel.timed_out, cut))

    def _body_failed(self, failure: Failure) -> None:
        """Take note why, for the log: there is nobody left to be told."""
        if self.error is None and not failure.check(Broken):
            self.error = self._resource.explain(self, failure)

    def _let_go(self) -> None:
        self.site.connections.left(self._counted_as)
        self._counted_as = ""
        if self._drain_timer is not None and self._drain_timer.active():
            self._drain_timer.cancel()
        self._drain_timer = None
        if self._drain_pace is not None:
            self._drain_pace.end()


def _origin_form(target: bytes) -> bytes:
    """The path and query of a request target; proxies may send it whole (RFC 9112, section 3.2.2)."""
    found = None if target.startswith(b"/") else _ABSOLUTE.match(target)
    if found is None:
        return target
    return found[1] if found[1].startswith(b"/") else b"/" + found[1]


class _Date:
    """The Date header's value, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._value = b""

    def __call__(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second, self._value = second, datetimeToString(second)
        return self._value


date = _Date()
