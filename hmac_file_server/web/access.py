"""What is left of a request when it is over: one line in the log, and its place in the figures."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from hmac_file_server.log import from_wire
from hmac_file_server.metrics import Metrics
from hmac_file_server.web.client import Network, client_address
from hmac_file_server.web.request import Request

_log = Logger()

_REFUSED_PUT_LEVEL = 400
_SERVER_ERROR = 500


class Access:
    """Logs and counts requests.

    :param trusted: proxies whose word on the client's address is taken.
    """

    def __init__(self, metrics: Metrics, clock: IReactorTime, trusted: Sequence[Network]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._trusted = trusted

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
        metrics = self._metrics
        metrics.bytes_in.inc(request.body_received)
        metrics.bytes_out.inc(request.sentLength)
        error = request.error
        if request.body is not None:
            if cut:
                metrics.upload_errors.labels("timeout" if timed_out else "broken_off").inc()
            elif error is not None:
                metrics.upload_errors.labels(error.reason).inc()
            else:
                metrics.uploads.inc()
                metrics.upload_duration.observe(seconds)
        elif error is not None:
            metrics.refusals.labels(error.reason).inc()
        elif request.method == b"GET":
            (metrics.downloads_broken if cut else metrics.downloads).inc()

    def _write(self, request: Request, seconds: float, timed_out: bool, cut: bool) -> None:
        error = request.error
        if cut:
            end = " - timed out" if timed_out else " - broken off"
        elif error is not None:
            end = f" - {error}"
        else:
            end = ""
        failed = error is not None and (error.status >= _SERVER_ERROR)
        write = _log.error if failed else _log.warn if error is not None and request.method == b"PUT" else _log.info
        write(
            "{client} {method} {path} {status} in={received} out={sent} {seconds:.3f}s {agent}{end}",
            client=client_address(request.client, request.requestHeaders, self._trusted),
            method=from_wire(request.method),
            path=from_wire(request.path or b"-"),
            status="-" if cut and not request.startedWriting else request.code,
            received=request.body_received,
            sent=request.sentLength,
            seconds=seconds,
            agent='"' + from_wire(request.getHeader(b"User-Agent") or b"-").replace('"', "'") + '"',
            end=end,
        )
