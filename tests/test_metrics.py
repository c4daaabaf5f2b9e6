from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from hmac_file_server import __version__
from hmac_file_server.config import load
from hmac_file_server.daemon.health import StoreCheck
from hmac_file_server.daemon.metrics_site import MetricsRoot, MetricsSite, Ready
from hmac_file_server.daemon.status import IDLE, Overview
from hmac_file_server.daemon.status_page import StatusPage
from hmac_file_server.metrics import Metrics
from tests.support import Daemon, need


class Scraper:
    """Talks to the metrics site over a connection in memory."""

    def __init__(self, draining: bool = False, store: Deferred[None] | None = None) -> None:
        self.metrics = Metrics()
        registry, overview = (
            self.metrics.registry,
            Overview(load(str(Path(__file__).parent.parent / "etc/config.toml")), IDLE, ""),
        )
        ready = Ready(lambda: "stopping" if draining else "", lambda: store or succeed(None))
        root = MetricsRoot(registry, ready, StatusPage(registry, lambda: overview, Clock()))
        self._protocol = MetricsSite(root, reactor=MemoryReactorClock()).buildProtocol(None)
        self.transport = StringTransport()
        self._protocol.makeConnection(self.transport)

    def ask(self, target: str, method: str = "GET", headers: str = "") -> None:
        self._protocol.dataReceived(f"{method} {target} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n".encode())

    def leave(self) -> None:
        self._protocol.connectionLost(Failure(ConnectionDone()))

    def answer(self) -> tuple[int, str, str]:
        """Status, head and body of what came back."""
        head, _, body = self.transport.value().decode().partition("\r\n\r\n")
        return int(head.split()[1]), head, body

    def get(self, target: str, headers: str = "") -> str:
        self.ask(target, headers=headers)
        status, _, body = self.answer()
        assert status == 200
        return body


class Disk:
    """A disk that does not answer of itself."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[None]] = []
        self.check = StoreCheck(self, self.clock)  # type: ignore[arg-type]  # nothing else of them is asked for

    def check_writable(self) -> Deferred[None]:
        self.asked.append(Deferred())
        return self.asked[-1]


def test_counts_are_exposed() -> None:
    """A scrape shows what was counted, in Prometheus' text format."""
    scraper = Scraper()
    scraper.metrics.uploads.inc(3)
    scraper.metrics.upload_duration.observe(0.2)
    scraper.metrics.upload_errors.labels("timeout").inc()
    scraper.metrics.refusals.labels("signature").inc(2)
    scraper.metrics.store_free.set(4096)
    lines = scraper.get("/metrics").splitlines()
    assert "content-type: text/plain; version=0.0.4; charset=utf-8" in scraper.answer()[1].lower()
    for line in (
        "hmac_file_server_uploads_total 3.0",
        'hmac_file_server_upload_duration_seconds_bucket{le="0.1"} 0.0',
        'hmac_file_server_upload_duration_seconds_bucket{le="0.25"} 1.0',
        'hmac_file_server_upload_errors_total{reason="timeout"} 1.0',
        'hmac_file_server_refusals_total{reason="signature"} 2.0',
        "hmac_file_server_store_free_bytes 4096.0",
        f'hmac_file_server_build_info{{version="{__version__}"}} 1.0',
    ):
        assert line in lines


@pytest.mark.parametrize(
    "name",
    """
    uploads_total upload_errors_total upload_retries_total uploads_in_progress upload_duration_seconds
    downloads_total downloads_broken_total received_bytes_total sent_bytes_total refusals_total
    store_free_bytes store_size_bytes build_info
    """.split(),
)
def test_every_figure_is_explained(name: str) -> None:
    """Every figure is there from the first scrape on, with a line that says what it counts."""
    assert re.search(rf"^# HELP hmac_file_server_{name} \S.*\.$", Scraper().get("/metrics"), re.MULTILINE)


def test_process_figures() -> None:
    """Memory, processor time and open files of the process stand beside the daemon's own figures."""
    text = Scraper().get("/metrics")
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        assert float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1]) > 0


def test_buckets_fit_uploads() -> None:
    """Durations from 10 ms to 10 min fall into buckets of their own."""
    buckets = re.findall(r'duration_seconds_bucket\{le="([^"]+)"\}', Scraper().get("/metrics"))
    assert (float(buckets[0]), float(buckets[-2]), buckets[-1]) == (0.01, 600.0, "+Inf")


def test_open_metrics() -> None:
    """A Prometheus that asks for OpenMetrics gets it."""
    text = Scraper().get("/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n")
    assert text.endswith("# EOF\n")


def test_two_daemons_in_one_process() -> None:
    """Each has figures of its own."""
    one, two = Scraper(), Scraper()
    one.metrics.uploads.inc()
    assert "\nhmac_file_server_uploads_total 0.0\n" in two.get("/metrics")


def test_alive() -> None:
    """/healthz answers while the process runs, even when the store is broken or the daemon stops."""
    assert Scraper(draining=True, store=fail(OSError("gone"))).get("/healthz") == "alive\n"


def test_ready() -> None:
    """/readyz answers 200 when uploads can be taken."""
    assert Scraper().get("/readyz") == "ready\n"


def test_not_ready_while_it_stops() -> None:
    """A daemon that drains asks its load balancer to look elsewhere."""
    scraper = Scraper(draining=True)
    scraper.ask("/readyz")
    assert scraper.answer()[::2] == (503, "stopping\n")


def test_not_ready_without_a_store() -> None:
    """A store that can not be written to is named as the reason."""
    scraper = Scraper(store=fail(OSError(30, "Read-only file system")))
    scraper.ask("/readyz")
    assert scraper.answer()[::2] == (503, "store: [Errno 30] Read-only file system\n")


def test_prober_that_does_not_wait() -> None:
    """A prober that leaves while the disk hangs leaves no error behind."""
    store: Deferred[None] = Deferred()
    scraper = Scraper(store=store)
    scraper.ask("/readyz")
    assert scraper.transport.value() == b""
    scraper.leave()
    store.callback(None)
    assert scraper.transport.value() == b""


@pytest.mark.parametrize("target", ["/metrics", "/healthz", "/readyz"])
def test_head(target: str) -> None:
    """HEAD is answered like GET, without a body."""
    scraper = Scraper()
    scraper.ask(target, "HEAD")
    assert scraper.answer()[::2] == (200, "")


@pytest.mark.parametrize("target", ["//", "/metric", "/readyz2", "/upload/x", "//metrics"])
def test_nothing_else_is_served(target: str) -> None:
    """Any other path is a 404 that says where to look."""
    scraper = Scraper()
    scraper.ask(target)
    assert scraper.answer()[::2] == (404, "here are /, /metrics, /healthz and /readyz\n")


@pytest.mark.parametrize("target", ["/metrics", "/healthz", "/readyz", "/"])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_figures_are_read_only(target: str, method: str) -> None:
    """Methods that change something are refused everywhere."""
    scraper = Scraper()
    scraper.ask(target, method, "Content-Length: 0\r\n")
    assert scraper.answer()[0] in (405, 501)


def test_bodies_are_not_taken() -> None:
    """A body, which nobody reads here, is not stored anywhere: the connection ends."""
    scraper = Scraper()
    scraper.ask("/metrics", "POST", "Content-Length: 1000000000000\r\n")
    assert not scraper.transport.disconnecting
    scraper._protocol.dataReceived(b"x" * 1000)
    assert scraper.transport.disconnecting


def test_not_ready_while_the_disk_hangs() -> None:
    """A disk that does not answer is no reason not to."""

    disk = Disk()
    scraper = Scraper(store=disk.check.ask())
    scraper.ask("/readyz")
    disk.clock.advance(60)
    assert scraper.answer()[::2] == (503, "store: the disk does not answer\n")


def test_a_disk_that_hangs_is_asked_once() -> None:
    """However often /readyz is asked for meanwhile, a disk that does not answer is asked once, and then anew."""
    disk = Disk()
    for _ in range(50):
        scraper = Scraper(store=disk.check.ask())
        scraper.ask("/readyz")
        disk.clock.advance(60)
        assert scraper.answer()[::2] == (503, "store: the disk does not answer\n")
    last = Scraper(store=disk.check.ask())
    last.ask("/readyz")
    [asked] = disk.asked
    asked.callback(None)
    assert last.answer()[::2] == (200, "ready\n")
    again = Scraper(store=disk.check.ask())
    again.ask("/readyz")
    [_, asked] = disk.asked
    asked.errback(OSError("gone"))
    assert again.answer()[::2] == (503, "store: gone\n")


def test_exposition_is_flawless(daemon: Daemon) -> None:
    """promtool finds nothing to complain about after uploads, downloads and refusals."""
    need("promtool")
    assert daemon.put("slot/a.txt", b"x").status == 201
    assert daemon.put("slot/a.txt", b"y").status == 409
    assert daemon.get("slot/a.txt").status == 200
    assert daemon.request("PUT", "/upload/slot/b.txt", b"x").status == 403
    assert daemon.metric("hmac_file_server_uploads_total") == 1
    port, daemon.port = daemon.port, daemon.metrics_port
    text = daemon.request("GET", "/metrics").body
    daemon.port = port
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
