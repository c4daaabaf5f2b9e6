"""Figures for Prometheus, and the site that they are read from."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import Resource

from hmac_file_server import __version__

_log = Logger()

_MOST_CONNECTIONS = 64
_PREFIX = "hmac_file_server"
_SEVERAL = "PROMETHEUS_MULTIPROC_DIR"
_READY = (_PREFIX + "_ready", "Whether uploads are taken.")
_UPLOAD_ERRORS = ("broken_off", "timeout", "storage", "no_room", "conflict", "bug")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What the daemon counts, in one registry."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = registry = CollectorRegistry()
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        describe_process(registry)
        self.upload_duration = Histogram(
            _PREFIX + "_upload_duration_seconds",
            "Seconds from the end of an upload's headers to its 201.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.uploads = self._counter("uploads", "Uploads that were stored.")
        self.upload_errors = self._counter(
            "upload_errors", "Uploads with a valid signature that were not stored.", ["reason"]
        )
        self.uploads_resumed = self._counter("uploads_resumed", "Requests that went on with an upload.")
        self.upload_retries = self._counter("upload_retries", "Steps of uploads that were tried again.")
        self.refusals = self._counter("refusals", "Requests that were refused.", ["reason"])
        self.downloads = self._counter("downloads", "Files, or parts of files, that were sent whole.")
        self.downloads_broken = self._counter(
            "downloads_broken", "Files, or parts of files, that broke off while they were sent."
        )
        self.bytes_in = self._counter("received_bytes", "Bytes of request bodies.")
        self.bytes_out = self._counter("sent_bytes", "Bytes of response bodies.")
        self.uploads_in_progress = self._gauge("uploads_in_progress", "Uploads that are running.", "livesum")
        self.sessions_kept = self._gauge("sessions_kept", "Uploads that run, or wait to be resumed.", "livemax")
        self.store_free = self._gauge("store_free_bytes", "Bytes that the store has free.", "livemostrecent")
        self.ready = Gauge(*_READY, registry=registry, multiprocess_mode="livemin")
        for reason in _UPLOAD_ERRORS:  # A series that begins with its first event hides that from rate().
            self.upload_errors.labels(reason)

    def of_redis(self) -> tuple[Callable[[bool], None], Callable[[str], None]]:
        """The figures of Redis, where it is used: whether it works, and its failures by reason."""
        up = self._gauge("redis_up", "Whether Redis works.", "livemin")
        errors = self._counter("redis_errors", "Failures of Redis; no upload fails with it.", ["reason"])
        return up.set, lambda reason: errors.labels(reason).inc()

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let a gauge always show a value."""
        if _SEVERAL in os.environ:
            self._watched.append((gauge, value))
        else:
            gauge.set_function(value)

    def update(self) -> None:
        """Write down what the gauges show, for the process that adds up the figures of several workers."""
        for gauge, value in self._watched:
            gauge.set(value())

    def _gauge(self, name: str, text: str, together: Any) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, registry=self.registry, multiprocess_mode=together)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"{_PREFIX}_{name}_total", text, labels or [], registry=self.registry)


class Together(Collector):
    """The figures of all workers, added up.

    :param folder: where each worker writes its own down.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # A worker's file is empty for a moment when it is new.
        files = [file for file in glob.glob(os.path.join(self._folder, "*.db")) if os.path.getsize(file)]
        together = list(MultiProcessCollector.merge(files))
        if not any(metric.name == _READY[0] for metric in together):
            together.append(GaugeMetricFamily(*_READY, value=0))  # No worker runs.
        return together


class Tally:
    """Adds up what counters are to be told, once in each turn of the reactor: they cost much for a small request."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts: dict[Counter, int] = {}

    def add(self, counter: Counter, count: int = 1) -> None:
        """Count something."""
        counts = self._counts
        if not counts:
            self._clock.callLater(0, self._pass_on)
        counts[counter] = counts.get(counter, 0) + count

    def _pass_on(self) -> None:
        counts, self._counts = self._counts, {}
        for counter, count in counts.items():
            counter.inc(count)


def describe_process(registry: CollectorRegistry) -> None:
    """Add the figures of this process, and which version it runs."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    if _SEVERAL not in os.environ:
        Info(_PREFIX + "_build", "Which version runs.", registry=registry).info({"version": __version__})


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
    """``/metrics``, ``/healthz`` (alive) and ``/readyz`` (takes uploads)."""

    def __init__(self, registry: CollectorRegistry, ready: Ready) -> None:
        super().__init__()
        self.putChild(b"metrics", _Exposition(registry))
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


class _Exposition(Resource):
    isLeaf = True

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render_GET(self, request: Request) -> bytes:
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

    def render_GET(self, request: Request) -> Any:
        lost: list[object] = []
        request.notifyFinish().addErrback(lost.append)

        def answer(problem: str) -> None:
            if not lost:
                request.write(_plain(request, 503 if problem else 200, problem or "ready"))
                request.finish()

        self._ready.problem().addCallback(answer).addErrback(
            lambda failure: _log.failure("a bug in answering /readyz", failure)
        )
        return server.NOT_DONE_YET


class _Nothing(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return _plain(request, 404, "here are /metrics, /healthz and /readyz")


def _plain(request: Request, status: int, text: str) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
    body = text.encode("utf-8") + b"\n"
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body
