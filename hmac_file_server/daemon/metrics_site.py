"""The metrics site: what Prometheus and health checks ask the daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import Resource

from hmac_file_server import __version__
from hmac_file_server.config import Config
from hmac_file_server.daemon.listener import Listener
from hmac_file_server.daemon.status import Overview
from hmac_file_server.daemon.status_page import HEADERS, StatusPage

_log = Logger()

_MOST_CONNECTIONS = 64


class Ready:
    """Whether the daemon can take uploads.

    :param why_not: says why it can not whatever the store says, or nothing.
    """

    def __init__(self, why_not: Callable[[], str], check_store: Callable[[], Deferred[None]]) -> None:
        self._why_not = why_not
        self._check_store = check_store

    def problem(self) -> Deferred[str]:
        """Ask the store; fires with what is wrong, empty if nothing is."""
        if why := self._why_not():
            result: Deferred[str] = Deferred()
            result.callback(why)
            return result
        return self._check_store().addCallbacks(lambda _: "", lambda failure: f"store: {failure.value}")


class MetricsRoot(Resource):
    """``/`` (for people), ``/metrics``, ``/healthz`` (alive) and ``/readyz`` (takes uploads).

    :param registry: has the daemon's figures; those of this process are added.
    :param renew: called, and waited for, before they are shown.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        ready: Ready,
        page: StatusPage,
        renew: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        super().__init__()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("hmac_file_server_build", "Which version runs.", registry=registry).info({"version": __version__})
        self.putChild(b"", _Page(page, ready, renew))
        self.putChild(b"metrics", _Exposition(registry, renew))
        self.putChild(b"healthz", _Alive())
        self.putChild(b"readyz", _Readiness(ready))

    def getChild(self, path: bytes, request: Request) -> Resource:
        return _Nothing()


class _Scrape(server.Request):
    """A request for figures. None has a body; twisted.web would put it into a file first."""

    def handleContentChunk(self, data: bytes) -> None:
        self.channel.loseConnection()


class _ScrapeChannel(HTTPChannel):
    """A connection for one request: who sends many and reads no answer costs as much as one who sends one."""

    site: MetricsSite
    transport: Any

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.site.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.closed(self)
        HTTPChannel.connectionLost(self, reason)

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False


class MetricsSite(server.Site):
    """Serves the figures, on a bounded number of connections: the newest."""

    protocol = _ScrapeChannel  # type: ignore[assignment]  # HTTP/2 never takes the channel's place
    noisy = False
    requestFactory = _Scrape

    def __init__(self, resource: Resource, reactor: Any) -> None:
        super().__init__(resource, reactor=reactor)
        self._channels: dict[_ScrapeChannel, None] = {}

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only."""
        return [b"http/1.1"]

    def opened(self, channel: _ScrapeChannel) -> None:
        """Take note of a connection. The oldest ends if it is one too many: a scrape is short."""
        self._channels[channel] = None
        if len(self._channels) > _MOST_CONNECTIONS:
            oldest = next(iter(self._channels))
            del self._channels[oldest]
            oldest.transport.abortConnection()

    def closed(self, channel: _ScrapeChannel) -> None:
        """Take note that a connection is gone."""
        self._channels.pop(channel, None)

    def log(self, request: Any) -> None:
        """Scrapes come every few seconds and are not worth a line."""


class MetricsService(MultiService):
    """Serves the figures while a configuration wants them.

    :param config: by which it begins.
    :param overview: what the daemon knows beside the figures.
    """

    def __init__(
        self,
        config: Config,
        registry: CollectorRegistry,
        ready: Ready,
        overview: Callable[[], Overview],
        reactor: Any,
        renew: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        super().__init__()
        page = StatusPage(registry, overview, reactor)
        page.history.setServiceParent(self)
        self._root, self._reactor = MetricsRoot(registry, ready, page, renew), reactor
        self._listener: Listener | None = None
        if config.metrics_enabled:
            self._have(self._made(config))

    def _made(self, config: Config) -> Listener:
        site = MetricsSite(self._root, reactor=self._reactor)
        return Listener(config, "MetricsPort", config.metrics_listen, site, self._reactor)

    def _have(self, listener: Listener) -> None:
        self._listener = listener
        listener.setServiceParent(self)

    def prepare(self, config: Config) -> Callable[[], None]:
        """Do what can fail of another configuration, but for listening; in a thread.

        :returns: does as it says.
        :raises ConfigError: if that can not be, as what is returned does, which has changed nothing then.
        """
        if not config.metrics_enabled:
            return self._end
        if self._listener is not None:
            return self._listener.read_certificates()
        listener = self._made(config)

        def begin() -> None:
            listener.listen()
            self._have(listener)

        return begin

    @property
    def certificate_ends(self) -> float | None:
        """As :attr:`Listener.certificate_ends`."""
        return None if self._listener is None else self._listener.certificate_ends

    def _end(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.disownServiceParent()


class _Page(Resource):
    def __init__(self, page: StatusPage, ready: Ready, renew: Callable[[], Deferred[None]]) -> None:
        super().__init__()
        self._page, self._ready, self._renew = page, ready, renew

    def getChild(self, path: bytes, request: Request) -> Resource:
        return _Nothing()

    def render_GET(self, request: Request) -> int:
        host = request.getHeader(b"Host") or b""
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        asked = self._renew().addCallback(lambda _: self._ready.problem())
        return _answer_later(request, asked.addCallback(lambda problem: self._page.content(problem, host)))


class _Exposition(Resource):
    isLeaf = True

    def __init__(self, registry: CollectorRegistry, renew: Callable[[], Deferred[None]]) -> None:
        super().__init__()
        self._registry = registry
        self._renew = renew

    def render_GET(self, request: Request) -> int:
        return _answer_later(request, self._renew().addCallback(lambda _: self._show(request)))

    def _show(self, request: Request) -> bytes:
        encode, content_type = choose_encoder((request.getHeader(b"Accept") or b"").decode("latin-1"))
        request.setHeader(b"Content-Type", content_type.encode("ascii"))
        return bytes(encode(self._registry))


class _Alive(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return _plain(request, 200, "alive")


class _Readiness(Resource):
    isLeaf = True

    def __init__(self, ready: Ready) -> None:
        super().__init__()
        self._ready = ready

    def render_GET(self, request: Request) -> int:
        def answer(problem: str) -> bytes:
            return _plain(request, 503 if problem else 200, problem or "ready")

        return _answer_later(request, self._ready.problem().addCallback(answer))


class _Nothing(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return _plain(request, 404, "here are /, /metrics, /healthz and /readyz")


def _plain(request: Request, status: int, text: str) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
    body = text.encode("utf-8") + b"\n"
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body


def _answer_later(request: Request, body: Deferred[bytes]) -> int:
    """Answer when the body is there, if the client still waits for it."""
    lost: list[object] = []
    request.notifyFinish().addErrback(lost.append)

    def answer(content: bytes) -> None:
        if not lost:
            request.setHeader(b"Content-Length", b"%d" % len(content))
            request.write(content)
            request.finish()

    path = request.path
    body.addCallback(answer).addErrback(lambda failure: _log.failure("a bug in answering {path}", failure, path=path))
    return server.NOT_DONE_YET
