"""The status page: what an operator wants to see at a glance, made anew for each who asks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.python.filepath import FilePath
from twisted.web.iweb import IRequest
from twisted.web.template import Element, Tag, XMLFile, flattenString, renderer

from hmac_file_server import __version__
from hmac_file_server.daemon.figures import Figures
from hmac_file_server.daemon.history import History
from hmac_file_server.daemon.remedies import REMEDIES
from hmac_file_server.daemon.status import Overview, Running, WorkerStatus
from hmac_file_server.log import Trouble, printable
from hmac_file_server.settings.hosts import Host
from hmac_file_server.web.client import names_loopback

HEADERS = {
    b"Content-Type": b"text/html; charset=utf-8",
    b"Content-Security-Policy": (
        b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none';"
        b" frame-ancestors 'none'"
    ),
    b"Cache-Control": b"no-store",
    b"Cross-Origin-Resource-Policy": b"same-origin",
    b"Referrer-Policy": b"no-referrer",
    b"X-Content-Type-Options": b"nosniff",
}
"""Nothing runs in the page, nothing is fetched for it, and no other page may have it."""

_COUNTED = {
    "uploads_total": "uploads",
    "downloads_total": "downloads",
    "received_bytes_total": "received",
    "sent_bytes_total": "sent",
}
_HOUR, _DAY = (60, 1), (96, 15)
"""So many bars, of so many minutes each."""

_BAR_HEIGHT = 20
_TEMPLATE = XMLFile(FilePath(__file__).sibling("status_page.xml"))


class StatusPage:
    """The page, for whoever asks.

    :param registry: has the daemon's figures.
    :param overview: what the daemon knows beside them.
    :ivar history: what was done of late; a service, for the caller to start.
    """

    def __init__(self, registry: CollectorRegistry, overview: Callable[[], Overview], clock: Any) -> None:
        self._registry, self._overview, self._clock = registry, overview, clock
        self._begun = clock.seconds()
        self.history = History(self._totals, clock)

    def _totals(self) -> tuple[float, ...]:
        figures = Figures(self._registry)
        return tuple(figures.total(name) for name in _COUNTED)

    def content(self, problem: str, host: bytes) -> Deferred[bytes]:
        """The page, as of now.

        :param problem: why no uploads are taken; empty if they are.
        :param host: of the request. Details are for who asks this machine by its own name: another one may be a web
            site's, which has the browser of somebody on this machine ask for it.
        """
        overview = self._overview()
        details = overview.config.status_details and names_loopback(host)
        uptime = self._clock.seconds() - self._begun
        page = _Page(Figures(self._registry), overview, self.history, problem, uptime, details)
        return flattenString(None, page).addCallback(lambda body: b"<!DOCTYPE html>\n" + body + b"\n")


class _Page(Element):
    loader = _TEMPLATE

    def __init__(
        self, figures: Figures, overview: Overview, history: History, problem: str, uptime: float, details: bool
    ) -> None:
        super().__init__()
        self._figures, self._overview, self._history = figures, overview, history
        self._problem, self._uptime, self._details = problem, uptime, details
        self._now = time.time()

    # The head

    @renderer
    def about(self, request: IRequest | None, tag: Tag) -> Tag:
        return tag.fillSlots(version=__version__, uptime=_duration(self._uptime), now=_clock_time(self._now))

    @renderer
    def ready(self, request: IRequest | None, tag: Tag) -> Tag:
        problem = self._problem
        if not problem and not self._figures.value("ready"):
            problem = "a store has no room, or can not be written to"
        state = f"takes no uploads: {printable(problem)}" if problem else "takes uploads"
        return tag.fillSlots(state=state, kind="bad" if problem else "good")

    # The stores

    @renderer
    def stores(self, request: IRequest | None, tag: Tag) -> Iterator[Tag]:
        hosts = self._overview.config.hosts
        for host in hosts:
            yield self._store(host, tag.clone(), host.name if len(hosts) > 1 else "")

    def _store(self, host: Host, tag: Tag, name: str) -> Tag:
        free, size = (self._figures.value(f"store_{what}_bytes", name) for what in ("free", "size"))
        facts = {"free": _bytes(free), "MinFreeSpace": _bytes(self._overview.config.min_free_space)}
        bar: Tag | str = ""
        if free is not None and size is not None and size > 0 and not math.isnan(free):
            facts = {"used": f"{_bytes(size - free)} of {_bytes(size)}", **facts}
            bar = _bar(size - free, size, "used of the file system")
        files, stored = (self._figures.value(f"store_{what}", name) for what in ("files", "bytes"))
        walked = self._figures.value("tidy_last_timestamp_seconds", name)
        if files is not None and walked is not None:
            facts["files"] = f"{files:.0f} of {_bytes(stored)}, as of {_clock_time(walked)}"
        if host.store_limit:
            facts["StoreLimit"] = _bytes(host.store_limit)
        return tag.fillSlots(
            name=printable(name) or "store", path=printable(host.store_dir), bar=bar, facts=_pairs(facts)
        )

    # Uploads

    @renderer
    def uploads(self, request: IRequest | None, tag: Tag) -> Iterator[Tag]:
        for running in self._overview.status.uploads:
            yield self._upload(running, tag.clone())

    def _upload(self, running: Running, tag: Tag) -> Tag:
        standing = running.standing
        words = [f"since {_clock_time(standing.begun)} ({_duration(self._now - standing.begun)})"]
        if len(self._overview.config.hosts) > 1:
            words.insert(0, running.host)
        if self._details:
            words += filter(None, (standing.name, standing.owner, standing.client))
        return tag.fillSlots(
            progress=f"{_bytes(standing.received)} of {_bytes(standing.size)}",
            bar=_bar(standing.received, standing.size, "received"),
            about=printable(", ".join(words), keep="\\"),
        )

    @renderer
    def more_uploads(self, request: IRequest | None, tag: Tag) -> Tag | str:
        shown = len(self._overview.status.uploads)
        more = int(self._figures.total("uploads_in_progress")) - shown
        if more > 0 and shown:
            return tag(f"and {more} more")
        return "" if shown else tag("none")

    # The last hour and day

    @renderer
    def since(self, request: IRequest | None, tag: Tag) -> Tag:
        return tag.fillSlots(since=_date_time(self._history.since))

    @renderer
    def done(self, request: IRequest | None, tag: Tag) -> Iterator[Tag]:
        hour, day = self._history.last(*_HOUR), self._history.last(*_DAY)
        for number, (name, what) in enumerate(_COUNTED.items()):
            written = _bytes if "bytes" in name else _count
            of_hour, of_day = [each[number] for each in hour], [each[number] for each in day]
            yield tag.clone().fillSlots(
                what=what,
                hour=written(sum(of_hour)),
                most_of_hour=written(max(of_hour)),
                picture_of_hour=_picture(of_hour, f"{what} in each minute of the last hour"),
                day=written(sum(of_day)),
                most_of_day=written(max(of_day)),
                picture_of_day=_picture(of_day, f"{what} in each quarter of an hour of the last day"),
            )

    # What went wrong

    @renderer
    def refused(self, request: IRequest | None, tag: Tag) -> Iterator[Tag]:
        counts = self._figures.reasons("refusals_total", "upload_errors_total")
        for reason, count in counts.items():
            yield tag.clone().fillSlots(reason=reason, count=_count(count), remedy=REMEDIES.get(reason, ""))
        if not counts:
            yield tag.clone().clear()("none")

    @renderer
    def troubles(self, request: IRequest | None, tag: Tag) -> Iterator[Tag]:
        troubles = self._overview.status.troubles
        for trouble in reversed(troubles):
            yield self._trouble(trouble, tag.clone())
        if not troubles:
            yield tag.clone().clear()("none")

    def _trouble(self, trouble: Trouble, tag: Tag) -> Tag:
        more = [f"{_count(trouble.count)} times"] if trouble.count > 1 else []
        if self._details and trouble.whose:
            more.append(f"the last one: {trouble.whose}" if more else trouble.whose)
        text = f"{trouble.text} ({'; '.join(more)})" if more else trouble.text
        return tag.fillSlots(time=_date_time(trouble.time), level=trouble.level, text=text)

    # What is beside it

    @renderer
    def others(self, request: IRequest | None, tag: Tag) -> Tag:
        figures, log_problem = self._figures, self._overview.log_problem
        facts = {"resumable uploads": f"{_count(figures.total('sessions_kept'))} run or wait to be resumed"}
        redis = figures.value("redis_up")
        if self._overview.config.redis is not None:
            facts["Redis"] = "connected" if redis else "not connected; uploads go on without it"
        read = _date_time(figures.total("config_last_reload_timestamp_seconds"))
        if figures.total("config_last_reload_successful"):
            facts["configuration"] = f"read at {read}"
        else:
            facts["configuration"] = f"stayed as it was at {read}, when it was read again: the log says why"
        for worker in self._overview.workers:
            facts[f"worker {worker.number}"] = _worker(worker)
        if log_problem:
            facts["log"] = printable(log_problem)
        return tag(_pairs(facts))


def _worker(worker: WorkerStatus) -> str:
    state = "runs" if worker.runs else "does not run"
    if worker.late:
        state = "does not answer"
    elif worker.problem:
        state = printable(worker.problem)
    times = f"{worker.restarts} times" if worker.restarts > 1 else "once"
    return f"{state}, started again {times}" if worker.restarts else state


def _pairs(facts: dict[str, str]) -> list[Tag]:
    return [Tag("div")(Tag("dt")(name), Tag("dd")(text)) for name, text in facts.items()]


def _bar(part: float, whole: float, what: str) -> Tag:
    return Tag("progress")(**{"max": str(max(1, int(whole))), "value": str(int(part)), "aria-label": what})


def _picture(counts: Sequence[float], what: str) -> Tag:
    """Bars, each as high as its count beside the greatest one."""
    most = max(counts)
    bars = []
    for place, count in enumerate(counts):
        if count:
            height = max(1.0, round(count / most * _BAR_HEIGHT, 1))
            bars.append(f"M{place} {_BAR_HEIGHT}v-{height:g}h.8v{height:g}z")
    attributes: dict[Any, Any] = {
        "viewBox": f"0 0 {len(counts)} {_BAR_HEIGHT}",
        "preserveAspectRatio": "none",
        "role": "img",
    }
    return Tag("svg", attributes)(Tag("title")(what), Tag("path")(d="".join(bars)))


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _bytes(number: float | None) -> str:
    if number is None or math.isnan(number):
        return "not known"
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << shift:
            return f"{number / (1 << shift):.1f} {unit}"
    return f"{number:.0f} bytes"


def _duration(seconds: float) -> str:
    """The two units that say most."""
    left = max(0, int(seconds))
    words: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or words:
            words.append(f"{left // length} {unit}")
            left %= length
    return " ".join(words[:2]) or "0 s"


def _clock_time(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _date_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
