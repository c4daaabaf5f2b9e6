"""What is left of a request when it is over: one line in the log, and its place in the figures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from hmac_file_server.files.upload import Upload
from hmac_file_server.log import LineLog, from_wire
from hmac_file_server.metrics import CounterBatch, Metrics
from hmac_file_server.slots.mistakes import Clues
from hmac_file_server.slots.path import RESERVED
from hmac_file_server.web.client import one_user
from hmac_file_server.web.errors import HTTPError
from hmac_file_server.web.request import Request

_SERVER_ERROR = 500
_LONGEST_METHOD, _LONGEST_PATH, _LONGEST_AGENT, _LONGEST_REASON = 32, 1024, 256, 1024
_SPAN, _LINES_EACH, _MOST_USERS = 10.0, 100, 200
_TOKEN = re.compile(rb"(" + re.escape(RESERVED) + rb"/+[^/]{1,6})[^/]*")
_SIGNATURE = re.compile(rb"((?:v2?|token)(?:=|%3d))[0-9a-f]{64}", re.IGNORECASE)
_WITH_CONTENT = frozenset({200, 206})
_NOT_STORED = frozenset({"storage", "no_room", "bug"})
"""Why an upload whose signature holds may not even begin."""


class AccessLog:
    """Logs and counts requests.

    :param metrics: gives the figures that count, which may be replaced by others.
    """

    def __init__(self, metrics: Callable[[], Metrics], clock: IReactorTime, lines: LineLog) -> None:
        self._metrics = metrics
        self._clock = clock
        self._lines = lines
        self._batch = CounterBatch(clock)
        self._crowded_at = -math.inf
        self._refused = _Refused(clock, lines)

    def turned_away(self, address: str, error: HTTPError) -> None:
        """Take note of a connection that was refused; of those that are too many the log tells of one a second."""
        self._metrics().of().refusal(error.reason).inc()
        now = self._clock.seconds()
        if error.reason == "connections" and now >= self._crowded_at + 1.0 and self._lines.wants("warn"):
            self._crowded_at = now
            text = f"{address} was refused a connection: {error}"
            self._lines.write("warn", text, f"a connection was refused: {error.message}", address)

    def ended(self, request: Request, timed_out: bool, cut: bool) -> None:
        """Take note of one request.

        :param timed_out: whether it stalled for longer than its timeout.
        :param cut: whether it was broken off before its answer was whole.
        """
        if not request.started and request.error is None:
            return  # A connection that ended before it had asked for anything.
        seconds = self._clock.seconds() - request.started if request.started else 0.0
        self._count(request, seconds, timed_out, cut)
        self._write(request, seconds, timed_out, cut)

    def _count(self, request: Request, seconds: float, timed_out: bool, cut: bool) -> None:
        metrics, add = self._metrics().of(request.host_name), self._batch.add
        if request.body_received:
            add(metrics.bytes_in, request.body_received)
        if request.sentLength:
            add(metrics.bytes_out, request.sentLength)
        error, body = request.error, _upload(request)
        if body is not None and body.has_right:
            if body.goes_on:
                metrics.uploads_resumed.inc()
            if body.stored:
                add(metrics.uploads)
                metrics.upload_duration.observe(seconds)
            elif error is not None:
                metrics.error(error.reason).inc()
            elif body.broken:
                metrics.error("timeout" if timed_out else "broken_off").inc()
        elif error is not None:
            stopped = error.reason in _NOT_STORED and request.method == b"PUT"
            (metrics.error if stopped else metrics.refusal)(error.reason).inc()
        elif request.method == b"GET" and request.startedWriting and request.code in _WITH_CONTENT:
            add(metrics.downloads_broken if cut else metrics.downloads)

    def _write(self, request: Request, seconds: float, timed_out: bool, cut: bool) -> None:
        error, body = request.error, _upload(request)
        if error is not None and error.status >= _SERVER_ERROR:
            level = "error"
        else:
            level = "warn" if error is not None and request.method == b"PUT" else "info"
        if not self._lines.wants(level):
            return
        unanswered = cut and not request.startedWriting
        to_anybody = error is not None or unanswered or request.method == b"OPTIONS"
        without_right = to_anybody and not (body is not None and body.has_right)
        if without_right and not self._refused.is_told(request.client_address):
            return
        host = f" host={request.host_name or '-'}" if self._metrics().has_hosts else ""
        status = "-" if unanswered else request.code
        method, path = _short(request.method, _LONGEST_METHOD), _short(_without_token(request), _LONGEST_PATH)
        brief = whose = ""
        if error is not None and level != "info":
            brief = f"{method} {status}{host} {error.reason}: {error.message}"
            whose = f"{request.client_address} {path.rpartition('/')[2]}"
        if self._lines.is_json:
            host_name = (request.host_name or None) if self._metrics().has_hosts else None
            fields = _fields(request, host_name, seconds, timed_out, cut)
            self._lines.write_fields(level, fields, brief, whose)
            return
        agent = _short(request.said(b"User-Agent") or b"-", _LONGEST_AGENT).replace('"', "'")
        said = _how_it_ended(request, str(error) if error else "", timed_out, cut)
        end = f" - {said}" if said else ""
        self._lines.write(
            level,
            f"{request.client_address} {method} {path} {status}"
            f' in={request.body_received} out={request.sentLength} {seconds:.3f}s{host} "{agent}"{end}',
            brief,
            whose,
        )


class _Refused:
    """How many lines are written of what is granted to anybody, or refused: so many for each user in each span.

    The rest are counted, and leave one line for each user at the span's end.
    """

    def __init__(self, clock: IReactorTime, lines: LineLog) -> None:
        self._clock = clock
        self._lines = lines
        self._counts: Counter[str] = Counter()
        self._end = -math.inf
        self._timer: IDelayedCall | None = None

    def is_told(self, address: str) -> bool:
        """Count a request; whether it leaves a line."""
        now = self._clock.seconds()
        if now >= self._end and self._timer is None:
            self._counts, self._end = Counter(), now + _SPAN
        counts, user = self._counts, one_user(address)
        if user not in counts and len(counts) >= _MOST_USERS:
            user = "others"
        counts[user] += 1
        if counts[user] <= _LINES_EACH:
            return True
        if self._timer is None:
            self._timer = self._clock.callLater(self._end - now, self._sum_up)
        return False

    def _sum_up(self) -> None:
        self._timer = None
        counts, self._counts = self._counts, Counter()
        for user, count in counts.items():
            if count > _LINES_EACH and self._lines.wants("warn"):
                text = f"{count - _LINES_EACH} more requests without a right, in {_SPAN:g} s, are not listed"
                self._lines.write("warn", f"{user} {text}", text, user)


def _upload(request: Request) -> Upload | None:
    return request.body if isinstance(request.body, Upload) else None


def _short(data: bytes, most: int) -> str:
    """What a client sent as text, or its beginning."""
    return from_wire(data if len(data) <= most else data[:most] + b"...")


def _how_it_ended(request: Request, refusal: str, timed_out: bool, cut: bool) -> str:
    """How a request ended, where it was not answered with what it asked for; empty where it was.

    :param refusal: what its error says, if it has one.
    """
    body = _upload(request)
    if not cut:
        return refusal[:_LONGEST_REASON] or request.note
    if request.error is None and (body is None or body.broken):
        return "timed out" if timed_out else "broken off"
    what = refusal[:_LONGEST_REASON] or ("stored" if body is not None and body.stored else "kept")
    return f"{what}; the client left before it was answered"


def _fields(request: Request, host: str | None, seconds: float, timed_out: bool, cut: bool) -> dict[str, object]:
    """The line of a request as JSON has it: always the same keys, and more for an upload without a right."""
    error, body, agent = request.error, _upload(request), request.said(b"User-Agent")
    note = _how_it_ended(request, error.said if error else "", timed_out, cut)
    reason = error.reason if error else None
    if error is None and cut and (body is None or body.broken):
        reason = "timeout" if timed_out else "broken_off"
    clues = error.clues() if error and error.clues else None
    return {
        "client": request.client_address,
        "method": _short(request.method, _LONGEST_METHOD),
        "path": _short(_without_token(request), _LONGEST_PATH),
        "status": None if cut and not request.startedWriting else int(request.code),
        "in": request.body_received,
        "out": request.sentLength,
        "seconds": round(seconds, 3),
        "host": host,
        "agent": None if agent is None else _short(agent, _LONGEST_AGENT),
        "reason": reason,
        "note": note or None,
        **(attrs.asdict(clues) if isinstance(clues, Clues) else {}),
    }


def _without_token(request: Request) -> bytes:
    """The path, without what is good for an upload: the token of its resource, or a signature that strayed here."""
    path = request.path or b"-"
    plain = unquote_to_bytes(path) if b"%" in path else path
    if RESERVED in plain:
        # Whatever was asked for, and however it was spelled: not all that is refused has been looked up.
        path = _TOKEN.sub(rb"\1...", plain)
    return _SIGNATURE.sub(rb"\1...", path) if b"=" in plain else path
