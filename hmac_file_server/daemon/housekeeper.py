"""The housekeeper's process: started every TidyEvery for each host in turn, and its figures."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from hmac_file_server.config import Config
from hmac_file_server.daemon.signals import held_back
from hmac_file_server.housekeeping.rules import COUNT, rules_of
from hmac_file_server.housekeeping.tidy import EXPIRED, STORE_LIMIT
from hmac_file_server.settings.hosts import Host

_log = Logger()

_SOON, _LATER = 1.0, 60.0
_MOST_SET = 3600.0
_LONGEST_LINE = 1 << 20
_PREFIX = "hmac_file_server_"


class Housekeeper(Service):
    """Has each host's store walked through.

    :param config: gives the settings that hold.
    :param registry: has its figures.
    """

    def __init__(self, config: Callable[[], Config], registry: CollectorRegistry, reactor: Any) -> None:
        self._config, self._reactor = config, reactor
        self._figures = _Figures(lambda: [host.name for host in config().hosts])
        registry.register(self._figures)
        self._offset = self._offset_now()
        self._timer: IDelayedCall | None = None
        self._process: _Process | None = None

    def startService(self) -> None:
        super().startService()
        # Soon where files are going to be removed: what removing needs on a full disk is taken from it before.
        removes = any(rules_of(host).removes for host in self._config().hosts)
        self._later(min(_SOON if removes else _LATER, self._config().tidy_every))

    def _later(self, seconds: float) -> None:
        self._timer = self._reactor.callLater(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        Deferred.fromCoroutine(self._walk_all()).addErrback(
            lambda failure: _log.failure("a bug in the housekeeper", failure)
        ).addCallback(lambda _: self._later(self._config().tidy_every) if self.running else None)

    async def _walk_all(self) -> None:
        config, only_counts = self._config(), self._clock_was_set()
        if only_counts:
            _log.warn("the clock was set by more than an hour: this time the housekeeper only counts")
        for host in config.hosts:
            if self.running:
                await self._walk(config, host, only_counts)

    def _clock_was_set(self) -> bool:
        """Whether the clock was, since the last walk: what a wrong one lets expire would be gone for good."""
        before, self._offset = self._offset, self._offset_now()
        return abs(self._offset - before) > _MOST_SET

    def _offset_now(self) -> float:
        return time.time() - float(self._reactor.seconds())

    async def _walk(self, config: Config, host: Host, only_counts: bool) -> None:
        process = _Process(host.name)
        command = [sys.executable, "-P", "-m", "hmac_file_server.housekeeping", config.file, host.name]
        command += [COUNT] * only_counts
        try:
            # None of the daemon's descriptors goes to it, and its errors go where the daemon's do.
            with held_back():
                self._reactor.spawnProcess(process, sys.executable, command, None, childFDs={0: "w", 1: "r", 2: 2})
        except Exception as error:  # no descriptors, processes or memory for the moment
            _log.error("the housekeeper can not be started: {error}", error=error)
            return
        self._process = process
        process.transport.write(config.handed_down)
        process.transport.closeStdin()
        outcome = await process.ended
        self._process = None
        if outcome is not None:
            if only_counts:
                outcome["removed"] = {}
            self._figures.walked(host.name, outcome, time.time())

    def stopService(self) -> None:
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is not None:
            self._process.stop()


class _Process(ProcessProtocol):
    """One walk.

    :ivar ended: fires with what it has found and done; None if it failed.
    """

    transport: Any

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._outcome: dict[str, Any] | None = None
        self._is_stopped = False
        self.ended: Deferred[dict[str, Any] | None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data)[-_LONGEST_LINE:].split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "outcome" in said:
                self._outcome = said["outcome"]
                self._say("info", said["summary"])
            else:
                self._say(said["level"], said["text"])

    def _say(self, level: str, text: str) -> None:
        _log.emit(LogLevel.levelWithName(level), "housekeeper of {host}: {text}", host=self._name, text=text)

    def stop(self) -> None:
        """The daemon ends."""
        self._is_stopped = True
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("TERM")

    def processEnded(self, reason: Failure) -> None:
        if self._outcome is None and not self._is_stopped:
            _log.error("the housekeeper of {host} failed: {reason}", host=self._name, reason=reason.getErrorMessage())
        self.ended.callback(self._outcome)


class _Figures(Collector):
    """What the newest walks have found.

    :param hosts: gives the names of those that there are.
    """

    def __init__(self, hosts: Callable[[], list[str]]) -> None:
        self._hosts = hosts
        self._newest: dict[str, dict[str, Any]] = {}
        self._removed: dict[str, Counter[str]] = {}
        self._when: dict[str, float] = {}

    def walked(self, host: str, outcome: dict[str, Any], now: float) -> None:
        """A walk has ended."""
        self._newest[host] = outcome
        self._removed.setdefault(host, Counter()).update(outcome["removed"])
        self._when[host] = now

    def collect(self) -> Iterable[Metric]:
        hosts = self._hosts()
        labels = ["host"] if len(hosts) > 1 else []
        walked = [host for host in hosts if host in self._newest]
        for name, text, value in (
            ("store_files", "Files in the store, as of the housekeeper's last walk.", lambda walk: walk["files"]),
            ("store_bytes", "Bytes of these files.", lambda walk: walk["size"]),
            ("store_oldest_timestamp_seconds", "When the oldest was uploaded.", lambda walk: walk["oldest"] or 0),
            ("tidy_duration_seconds", "How long the housekeeper's last walk took.", lambda walk: walk["seconds"]),
            ("tidy_failed", "Files that the last walk could not read or remove.", lambda walk: walk["failed"]),
        ):
            gauge = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
            for host in walked:
                gauge.add_metric([host] if labels else [], value(self._newest[host]))
            yield gauge
        ended = GaugeMetricFamily(_PREFIX + "tidy_last_timestamp_seconds", "When the last walk ended.", labels=labels)
        removed = CounterMetricFamily(_PREFIX + "tidy_removed", "Files that were removed.", labels=[*labels, "reason"])
        for host in hosts:
            named = [host] if labels else []
            if host in self._when:
                ended.add_metric(named, self._when[host])
            for reason in (EXPIRED, STORE_LIMIT):
                removed.add_metric([*named, reason], self._removed.get(host, Counter())[reason])
        yield ended
        yield removed
