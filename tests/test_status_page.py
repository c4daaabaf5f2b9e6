"""The status page: raw bytes through the metrics site."""

from __future__ import annotations

import ast
import errno
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest
from twisted.internet.defer import fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, LogLevel, LogPublisher, globalLogPublisher

import hmac_file_server
from hmac_file_server import __version__
from hmac_file_server.config import load
from hmac_file_server.daemon.history import History
from hmac_file_server.daemon.metrics_site import MetricsRoot, MetricsSite, Ready
from hmac_file_server.daemon.remedies import REMEDIES
from hmac_file_server.daemon.status import Overview, Running, Status, WorkerStatus
from hmac_file_server.daemon.status_page import StatusPage
from hmac_file_server.files.retry import RetryLoop, RetryPolicy
from hmac_file_server.files.upload import Standing
from hmac_file_server.log import Recent, Trouble, observer
from hmac_file_server.metrics import _UPLOAD_ERRORS, Metrics, ReloadMetrics
from hmac_file_server.resumption.keeper import FileKeeper
from hmac_file_server.settings.problems import ConfigError
from tests.support import SECRET
from tests.test_access import Out, Server, put, server  # noqa: F401  # a fixture

HOSTILE = "<script>alert(1)</script>&'"
UPLOAD = Standing(512, 2048, 1.0, "holiday.jpg", "juliet@example.org", "192.0.2.7")
TROUBLE = Trouble(2.0, "warn", "PUT 403 signature: the signature does not hold", "192.0.2.8 secret.jpg")
PACKAGE = Path(hmac_file_server.__file__).parent


class Site:
    """The metrics site of a daemon that there is nothing of but what it tells."""

    def __init__(self, folder: Path, text: str = "", names: Sequence[str] = ("",)) -> None:
        config = folder / "config.toml"
        one = f'StoreDir = "{folder}/store"\nSecret = "{SECRET}"\n'
        tables = [f'[[Host]]\nName = "{name}"\nUploadSubDir = "{n}"\n{one}' for n, name in enumerate(names) if name]
        # Each with a folder of its own.
        tables = [table.replace("/store", f"/store{n}") for n, table in enumerate(tables)]
        config.write_text(text + "\n" + ("".join(tables) or one))
        self.metrics = Metrics(has_hosts=len(names) > 1)
        self.metrics.ready.set(1)
        self.reload = ReloadMetrics(self.metrics.registry)
        self.overview = Overview(load(str(config)), Status(), "")
        self.clock = Clock()
        self.problem = ""
        registry = self.metrics.registry
        page = StatusPage(registry, lambda: self.overview, self.clock)
        page.history.startService()
        self._root = MetricsRoot(registry, Ready(lambda: self.problem, lambda: succeed(None)), page)

    def shows(self, **changes: Any) -> None:
        self.overview = attrs.evolve(self.overview, **changes)

    def answer(self, host: str = "localhost:9090", method: str = "GET") -> tuple[str, str]:
        """Head and body of what / is answered with."""
        transport = StringTransport()
        protocol = MetricsSite(self._root, reactor=self.clock).buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(f"{method} / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head, _, body = transport.value().decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 "), head
        return head, body

    def text(self, host: str = "localhost:9090") -> str:
        """What a reader sees, with single spaces."""
        body = re.sub(r"<(style|title)>.*?</\1>", " ", self.answer(host)[1], flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_headers(site: Site) -> None:
    """Nothing runs in the page, nothing is fetched for it, and nobody keeps it or puts it into a page of his own."""
    head = site.answer()[0]
    policy = re.search(r"^Content-Security-Policy: (.*)\r$", head, re.MULTILINE | re.IGNORECASE)
    assert policy
    assert policy[1].split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    for line in ("Content-Type: text/html; charset=utf-8", "Cache-Control: no-store"):
        assert line.lower() in head.lower()


def test_head_request(site: Site) -> None:
    """HEAD is answered like GET, without a body."""
    assert site.answer(method="HEAD")[1] == ""


def test_nothing_is_fetched(site: Site) -> None:
    """The page names no address but the empty picture, has no script, and renews itself."""
    body = site.answer()[1]
    assert re.findall(r'(?:href|src|action)="([^"]*)"', body) == ["data:,"]
    assert "<script" not in body
    assert "url(" not in body
    assert 'http-equiv="refresh" content="10"' in body
    assert "width=device-width" in body
    assert "prefers-color-scheme: dark" in body
    # It is well-formed, too.
    ElementTree.fromstring(body.partition("\n")[2])


def test_what_it_tells(site: Site) -> None:
    """Version, uptime, store, Redis, workers and configuration are on one page."""
    site.clock.advance(3 * 3600 + 62)
    site.metrics.store_free.set(3 << 30)
    site.metrics.store_size.set(10 << 30)
    site.metrics.sessions_kept.set(7)
    site.shows(workers=[WorkerStatus(1, True, False, 0, ""), WorkerStatus(2, True, True, 3, "")])
    text = site.text()
    for words in (
        f"version {__version__}, up for 3 h 1 min",
        "takes uploads",
        f"{site.overview.config.hosts[0].store_dir} used 7.0 GiB of 10.0 GiB free 3.0 GiB MinFreeSpace 256.0 MiB",
        "resumable uploads 7 run or wait to be resumed",
        "configuration read at ",
        "worker 1 runs",
        "worker 2 does not answer, started again 3 times",
        "Uploads that run none",
    ):
        assert words in text
    assert "Redis" not in text
    assert "nan" not in text


def test_what_is_not_known(site: Site) -> None:
    """A store that is away, and a reload that failed, are told as that."""
    site.metrics.store_free.set(float("nan"))
    site.metrics.store_size.set(float("nan"))
    site.reload.reloaded(False)
    site.problem = "store: it is away"
    site.shows(log_problem="LogFile can not be opened")
    text = site.text()
    for words in (
        "takes no uploads: store: it is away",
        "free not known",
        "configuration stayed as it was at ",
        "log LogFile can not be opened",
    ):
        assert words in text


def test_no_room(site: Site) -> None:
    """A full store, in which a file can be made all the same, is no good news."""
    site.metrics.ready.set(0)
    assert "takes no uploads: a store has no room" in site.text()


@pytest.mark.parametrize(("up", "words"), [(1, "Redis connected"), (0, "Redis not connected")])
def test_redis(tmp_path: Path, up: int, words: str) -> None:
    """Where Redis is used, the page says whether it is there."""
    site = Site(tmp_path, 'RedisAddr = "localhost:1"\nRedisPassword = "hush"')
    site.metrics.of_redis[0](bool(up))
    assert words in site.text()
    assert "hush" not in site.answer()[1]


def test_details_are_off(site: Site) -> None:
    """By default a running upload has no file name, owner or address, and neither has an error."""
    site.shows(status=Status([Running("", UPLOAD)], [TROUBLE]))
    text = site.text()
    assert "512 bytes of 2.0 KiB" in text
    assert "warn PUT 403 signature: the signature does not hold" in text
    for hidden in ("holiday", "juliet", "192.0.2.7", "192.0.2.8", "secret.jpg"):
        assert hidden not in text


def test_details(tmp_path: Path) -> None:
    """With StatusDetails they are there, for who asks this machine by its own name, and no web site."""
    site = Site(tmp_path, "StatusDetails = true")
    site.shows(status=Status([Running("", UPLOAD)], [TROUBLE]))
    for host in ("localhost:9090", "127.0.0.1:9090", "[::1]:9090"):
        for shown in ("holiday.jpg, juliet@example.org, 192.0.2.7", "(192.0.2.8 secret.jpg)"):
            assert shown in site.text(host)
    for host in ("rebound.example", "status.example.org:9090", "192.0.2.1", ""):
        assert "holiday" not in site.text(host)
        assert "secret.jpg" not in site.text(host)


@pytest.mark.parametrize("port", [":9090", "0.0.0.0:9090", "192.0.2.1:9090", "unix:/run/metrics.sock"])
def test_details_off_loopback(tmp_path: Path, port: str) -> None:
    """A configuration that would show them to other machines is refused."""
    with pytest.raises(ConfigError, match=r"StatusDetails = true: .*give MetricsPort a loopback address"):
        Site(tmp_path, f'StatusDetails = true\nMetricsPort = "{port}"')


def test_hostile_names(tmp_path: Path) -> None:
    """What others have named is text, and nothing else, and can not turn what stands beside it."""
    site = Site(tmp_path, "StatusDetails = true", names=(HOSTILE, "b.example"))
    turned = attrs.evolve(UPLOAD, name=f"{HOSTILE}\u202egpj.exe", owner=HOSTILE)
    trouble = attrs.evolve(TROUBLE, text=HOSTILE, whose=HOSTILE)
    site.shows(status=Status([Running(HOSTILE, turned)], [trouble]), log_problem=HOSTILE)
    site.problem = HOSTILE
    for host in (HOSTILE, "b.example"):
        site.metrics.of(host).store_free.set(1024)
        site.metrics.of(host).store_size.set(2048)
    body = site.answer()[1]
    assert "<script" not in body
    assert "\u202e" not in body
    assert site.text().count(HOSTILE) >= 7
    assert "\\u202egpj.exe" in body
    ElementTree.fromstring(body.partition("\n")[2])


def test_several_hosts(tmp_path: Path) -> None:
    """Each host has its own store, and its name with what runs."""
    site = Site(tmp_path, names=("a.example", "b.example"))
    site.metrics.of("a.example").store_free.set(1024)
    site.metrics.of("a.example").store_size.set(4096)
    site.metrics.of("b.example").refusal("signature").inc(2)
    site.metrics.of("a.example").refusal("signature").inc(3)
    site.shows(status=Status([Running("b.example", UPLOAD)]))
    text = site.text()
    assert re.search(r"a\.example \S+store0 used 3\.0 KiB of 4\.0 KiB", text)
    assert re.search(r"b\.example \S+store1 free not known", text)
    assert "b.example, since " in text
    assert "signature 5 Ask" in text


def test_more_uploads_than_are_shown(site: Site) -> None:
    """Of many uploads the page shows some, and says how many others there are."""
    site.metrics.uploads_in_progress.set(31)
    site.shows(status=Status([Running("", UPLOAD)] * 20))
    assert "and 11 more" in site.text()


def test_refusals_say_what_to_do(site: Site) -> None:
    """Each reason that was counted has its sentence, the most frequent first; what was not counted is left out."""
    site.metrics.of().refusal("too_large").inc(3)
    site.metrics.of().error("no_room").inc(12)
    site.metrics.of().begin()
    text = site.text()
    first, second = (f"{reason} {count} {REMEDIES[reason]}" for reason, count in (("no_room", 12), ("too_large", 3)))
    assert f"{first} {second}" in text
    assert "broken_off" not in text


def reasons() -> Iterator[str]:
    """All that the daemon gives."""
    yield from _UPLOAD_ERRORS
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                at = {"HTTPError": 1, "unavailable": 0}.get(node.func.id)
                if at is not None and isinstance(node.args[at], ast.Constant):
                    yield str(node.args[at].value)  # type: ignore[attr-defined]


def test_every_reason_has_a_remedy() -> None:
    """There is a sentence for each reason, and for no other."""
    assert set(reasons()) == REMEDIES.keys()


# The last hour and day


def test_history() -> None:
    """Each minute has what was counted in it, the running one too; what is older than a day is gone."""
    clock, counts = Clock(), [0.0]
    history = History(lambda: (counts[0],), clock)
    history.startService()
    counts[0] = 5
    assert history.last(3, 1) == [(0,), (0,), (5,)]
    clock.advance(60)
    counts[0] = 7
    assert history.last(3, 1) == [(0,), (5,), (2,)]
    clock.advance(180)  # Stopped, or too busy to look.
    assert history.last(5, 1) == [(5,), (0,), (0,), (2,), (0,)]
    assert history.last(2, 15) == [(0,), (7,)]
    for _ in range(3000):
        clock.advance(60)
    assert len(history._minutes) < 24 * 60
    assert sum(each for (each,) in history.last(96, 15)) == 0
    history.stopService()
    assert clock.getDelayedCalls() == []


def test_counters_that_begin_anew() -> None:
    """Counters that go back, as with another number of hosts, have counted nothing meanwhile."""
    clock, counts = Clock(), [100.0]
    history = History(lambda: (counts[0],), clock)
    history.startService()
    counts[0] = 3
    clock.advance(60)
    counts[0] = 4
    assert history.last(2, 1) == [(0,), (1,)]


def test_pictures(site: Site) -> None:
    """The last hour and day are small pictures, with their sums beside them."""
    site.metrics.uploads.inc(3)
    site.metrics.bytes_in.inc(5 << 20)
    site.clock.advance(60)
    site.metrics.uploads.inc(6)
    text, body = site.text(), site.answer()[1]
    for words in (
        "uploads 9 in the last hour, at most 6 in a minute 9 in the last day, at most 9 in 15 min",
        "received 5.0 MiB in the last hour, at most 5.0 MiB in a minute 5.0 MiB in the last day",
    ):
        assert words in text
    assert "Counted since 20" in text
    assert "<title>uploads in each minute of the last hour</title>" in body
    paths = re.findall(r'<path d="([^"]*)">', body)
    assert len(paths) == 8
    assert paths[0] == "M58 20v-10h.8v10zM59 20v-20h.8v20z"
    assert paths[1] == "M95 20v-20h.8v20z"


# Where it comes from


def test_status_goes_from_process_to_process() -> None:
    """What a worker tells arrives as it was, and is bounded, however long names and lines are."""
    long = Standing(1, 2, 3.0, "\U0001f600" * 63, "\U0001f600" * 200, "192.0.2.7")
    status = Status([Running("\U0001f600" * 64, long)] * 20, [attrs.evolve(TROUBLE, text="x" * 300)] * 20)
    assert Status.decode(status.encode()) == status
    assert len(status.encode()) < 1 << 16


def test_the_oldest_uploads_and_the_newest_errors() -> None:
    """Of what several workers tell, that is what is kept."""
    each = [
        Status(
            [Running("", attrs.evolve(UPLOAD, begun=float(number)))],
            [attrs.evolve(TROUBLE, time=float(number), text=f"{number}")],
        )
        for number in range(30)
    ]
    status = Status.together(reversed(each))
    assert [running.standing.begun for running in status.uploads] == list(range(20))
    assert [trouble.time for trouble in status.troubles] == list(range(10, 30))


def test_errors_are_bounded_and_plain() -> None:
    """Of many errors the last ones are kept, each cut, and escaped."""
    recent = Recent()
    for number in range(50):
        recent.add("error", f"{number} \n\u202e" + "x" * 1000)
    recent.add("info", "all is well")
    assert len(recent.troubles) == 20
    assert recent.troubles[-1].text.startswith("49 \\n\\u202exx")
    assert len(recent.troubles[-1].text) < 400


def test_errors_that_come_again(site: Site) -> None:
    """Many of one kind are one, with how many they were, and drive out no others; so of all workers together."""
    recent = Recent()
    recent.add("error", "StoreDir can not be used", seconds=1)
    for number in range(1000):
        recent.add("warn", "PUT 403", f"192.0.2.{number}", seconds=2 + number)
    assert [(each.text, each.count, each.whose) for each in recent.troubles] == [
        ("StoreDir can not be used", 1, ""),
        ("PUT 403", 1000, "192.0.2.999"),
    ]
    status = Status((), recent.troubles)
    site.shows(status=Status.together([status, Status((), [Trouble(500, "warn", "PUT 403", "192.0.2.1", 3)])]))
    assert re.search(r"warn PUT 403 \(1,003 times\) .*error StoreDir can not be used$", site.text())


def test_errors_of_the_log(tmp_path: Path) -> None:
    """Warnings and errors are kept, without addresses, paths and tracebacks; what is not logged is not kept."""
    out = Out()
    log = Logger(observer=LogPublisher(observer(out)), namespace="test")
    log.info("nothing to worry about")
    log.warn("{address} does not send the PROXY protocol", address="192.0.2.9")
    try:
        raise OSError(5, "Input/output error", "/srv/store/slot/a.jpg")
    except OSError:
        log.failure("a bug in answering {path}", path=b"/upload/slot/a.jpg")
    out.lowest = LogLevel.error
    log.warn("not written")
    first, second = out.recent.troubles
    assert (first.level, first.text, first.whose) == ("warn", "... does not send the PROXY protocol", "192.0.2.9")
    assert (second.level, second.text) == ("critical", "a bug in answering ...")


def test_errors_do_not_tell_where_files_are() -> None:
    """The place of a file, which opens it to whoever knows it, is left out of an error of the store's."""
    out, clock = Out(), Clock()
    publisher = globalLogPublisher
    watching = observer(out)
    publisher.addObserver(watching)
    try:
        for name in ("/srv/store/4f2a/a: b.jpg", "/srv/store/4f2a/\u202e'.jpg"):
            loop = RetryLoop(RetryPolicy(clock, 3, 1.0, jitter=max))
            error = OSError(errno.EIO, "Input/output error", name)
            loop.run(lambda error=error: fail(error)).addErrback(lambda failure: None)
            keeper = FileKeeper(SimpleNamespace(timeout=1.0, sweep=lambda error=error: fail(error)), clock)
            keeper.sweep()
    finally:
        publisher.removeObserver(watching)
    assert "4f2a" in out.getvalue()
    assert [(trouble.text, trouble.count) for trouble in out.recent.troubles] == [
        ("the store failed, trying again in 1.0 s (1 of 3): ...: Input/output error", 2),
        ("the sessions can not be looked through: [Errno 5] Input/output error: ...", 2),
    ]


def test_refused_uploads_are_errors(server: Server) -> None:  # noqa: F811
    """A refused PUT is told by its reason; its line in the log has more."""
    request = put("slot/a.jpg", 5).replace("slot/a.jpg", "slot/b.jpg")
    signature = re.search(r"v=(\w+)", request)
    server.send(request + "hello")
    server.send("GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
    server.clock.advance(0)
    [trouble] = server.out.recent.troubles
    assert (trouble.level, trouble.text) == ("warn", "PUT 403 signature: the signature does not hold")
    assert trouble.whose == "192.168.1.1 b.jpg"
    assert signature
    assert signature[1][:8] in server.out.getvalue()
    assert signature[1][:8] not in str(trouble)


def test_how_far_an_upload_is(server: Server) -> None:  # noqa: F811
    """A running upload tells how much of it has come, and whose it is."""
    server.send(put("4f2a/a.jpg", 10_000) + "x" * 3000)
    [upload] = server.uploads.active
    standing = upload.standing()
    assert standing
    assert (standing.received, standing.size, standing.name, standing.client) == (3000, 10_000, "a.jpg", "192.168.1.1")
    server.channel.dataReceived(b"x" * 3000)
    standing = upload.standing()
    assert standing
    assert standing.received == 6000
    assert "4f2a" not in str(Status.of([("", server.uploads.active)], Recent()))


def test_how_far_a_resumable_upload_is(server: Server) -> None:  # noqa: F811
    """So does one that can be resumed, as soon as it has begun."""
    headers = ("Upload-Draft-Interop-Version: 6", "Upload-Complete: ?1")
    server.send(put("4f2a/a.jpg", 10_000, *headers))
    [upload] = server.uploads.active
    assert upload.standing() is None
    server.work()
    server.channel.dataReceived(b"x" * 3000)
    standing = upload.standing()
    assert standing
    assert (standing.received, standing.size, standing.name) == (3000, 10_000, "a.jpg")
