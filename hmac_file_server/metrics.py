"""Figures for Prometheus."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.internet.interfaces import IReactorTime

_PREFIX = "hmac_file_server"
_READY = (_PREFIX + "_ready", "Whether uploads are taken.")
_TOGETHER: dict[str, Callable[[float, float], float]] = {
    _PREFIX + "_uploads_in_progress": operator.add,
    _PREFIX + "_sessions_kept": max,
}
"""How the gauges of several workers become one; of all others the lowest counts."""

_UPLOAD_ERRORS = ("broken_off", "timeout", "storage", "no_room", "conflict", "bug")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What the daemon counts, in one registry.

    :param has_hosts: whether it serves several hosts, which a label tells apart.
    """

    def __init__(self, has_hosts: bool = False) -> None:
        disable_created_metrics()
        self.has_hosts = has_hosts
        self.registry = registry = CollectorRegistry()
        self._labels = ["host"] if has_hosts else []
        self.upload_duration = Histogram(
            _PREFIX + "_upload_duration_seconds",
            "Seconds from the end of an upload's headers to its 201.",
            self._labels,
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
        self.uploads_in_progress = self._gauge("uploads_in_progress", "Uploads that are running.")
        self.sessions_kept = self._gauge("sessions_kept", "Uploads that run, or wait to be resumed.")
        self.store_free = self._gauge("store_free_bytes", "Bytes that the store has free.")
        self.store_size = self._gauge("store_size_bytes", "Bytes that the store's file system has in all.")
        self.ready = Gauge(*_READY, registry=registry)
        self._hosts: dict[str, HostMetrics] = {}

    def of(self, host: str = "") -> HostMetrics:
        """The figures of one host.

        :param host: its name; empty for what is none's.
        """
        if host not in self._hosts:
            self._hosts[host] = HostMetrics(self, {"host": host} if self.has_hosts else {})
        return self._hosts[host]

    def forget(self, host: str) -> None:
        """There is no such host any more: what it has now is not told, what it has counted goes on to count."""
        if self.has_hosts and self._hosts.pop(host, None) is not None:
            for gauge in (self.uploads_in_progress, self.sessions_kept, self.store_free, self.store_size):
                gauge.remove(host)

    @functools.cached_property
    def of_redis(self) -> tuple[Callable[[bool], None], Callable[[str], None]]:
        """The figures of Redis, where it is used: whether it works, and its failures by reason."""
        up = Gauge(_PREFIX + "_redis_up", "Whether Redis works.", registry=self.registry)
        text = "Failures of Redis; no upload fails with it."
        errors = Counter(_PREFIX + "_redis_errors_total", text, ["reason"], registry=self.registry)
        return up.set, lambda reason: errors.labels(reason).inc()

    def report(self) -> bytes:
        """All figures, for :class:`Together` of another process."""
        families = [
            (family.name, family.documentation, family.type, [sample[:3] for sample in family.samples])
            for family in self.registry.collect()
        ]
        return zlib.compress(json.dumps(families).encode("ascii"))

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, self._labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"{_PREFIX}_{name}_total", text, [*self._labels, *labels], registry=self.registry)


class HostMetrics:
    """The figures of one host: each as it is counted for the first time, so that there is none of what it has not."""

    def __init__(self, metrics: Metrics, labels: dict[str, str]) -> None:
        self._metrics = metrics
        self._labels = labels
        self.of_redis = lambda: metrics.of_redis

    def __getattr__(self, name: str) -> Any:
        metric = getattr(self._metrics, name)
        found = metric.labels(**self._labels) if self._labels else metric
        setattr(self, name, found)
        return found

    def error(self, reason: str) -> Counter:
        """Uploads that failed for a reason."""
        return self._metrics.upload_errors.labels(**self._labels, reason=reason)

    def refusal(self, reason: str) -> Counter:
        """Requests that were refused for a reason."""
        return self._metrics.refusals.labels(**self._labels, reason=reason)

    def begin(self) -> None:
        """Show all errors from the start: a series that begins with its first event hides that from rate()."""
        for reason in _UPLOAD_ERRORS:
            self.error(reason)


class Current(Collector):
    """The figures of a registry that may be replaced by another one.

    :param registry: gives the one that counts.
    """

    def __init__(self, registry: Callable[[], CollectorRegistry]) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        return self._registry().collect()


class ReloadMetrics:
    """When the configuration was read last, and whether that went well."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = _PREFIX + "_config_last_reload"
        self._success = Gauge(
            name + "_successful", "Whether the configuration was read well the last time.", registry=registry
        )
        text = "When the configuration was read last, in seconds since 1970."
        self._time = Gauge(name + "_timestamp_seconds", text, registry=registry)
        self.reloaded(True)

    def reloaded(self, successful: bool) -> None:
        """It was read."""
        self._success.set(successful)
        self._time.set_to_current_time()


class CertificateMetrics(Collector):
    """When the certificates end that are shown to clients.

    :param ends: gives that in seconds since 1970, by the keys of the configuration that name them; None for none.
    """

    def __init__(self, registry: CollectorRegistry, ends: Callable[[], Mapping[str, float | None]]) -> None:
        self._ends = ends
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        name = _PREFIX + "_certificate_not_after_timestamp_seconds"
        family = GaugeMetricFamily(name, "When a certificate ends, in seconds since 1970.", labels=["setting"])
        for setting, end in self._ends().items():
            if end is not None:
                family.add_metric([setting], end)
        if family.samples:
            yield family


class WorkerMetrics(Collector):
    """What several workers take of the machine, and how often one was started again.

    :param processes: gives the process ids of those that run, by their numbers.
    """

    def __init__(self, registry: CollectorRegistry, processes: Callable[[], Mapping[int, int]]) -> None:
        self._processes = processes
        text = "Workers that had ended, or did not answer, and were started again."
        self.restarts = Counter(_PREFIX + "_worker_restarts_total", text, registry=registry)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        memory = GaugeMetricFamily(_PREFIX + "_worker_resident_memory_bytes", "Memory of a worker.", labels=["worker"])
        text = "Processor time of a worker, since it was started."
        seconds = CounterMetricFamily(_PREFIX + "_worker_cpu_seconds", text, labels=["worker"])
        for number, process in self._processes().items():
            with contextlib.suppress(OSError, IndexError):  # It has just ended.
                fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
                memory.add_metric([str(number)], int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
                seconds.add_metric([str(number)], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        yield memory
        yield seconds


class Together(Collector):
    """The figures of all workers, added up; what those that are gone have counted goes on to count.

    :param reports: gives the newest report of each that runs.
    """

    def __init__(self, reports: Callable[[], Iterable[bytes]]) -> None:
        self._reports = reports
        self._gone: dict[str, _Sum] = {}

    def forget(self) -> None:
        """Begin to count anew."""
        self._gone.clear()

    def gone(self, report: bytes) -> None:
        """Keep the counts of a worker that has ended."""
        _add(self._gone, report, with_gauges=False)

    def collect(self) -> Iterable[Metric]:
        sums = {name: _Sum(each.text, each.kind, dict(each.values)) for name, each in self._gone.items()}
        for report in self._reports():
            _add(sums, report)
        for name, each in sums.items():
            metric = Metric(name, each.text, each.kind)
            for (sample, labels), value in each.values.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
        if _READY[0] not in sums:
            yield GaugeMetricFamily(*_READY, value=0)  # No worker runs.


@attrs.define
class _Sum:
    text: str
    kind: str
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = attrs.field(factory=dict)


def _add(sums: dict[str, _Sum], report: bytes, with_gauges: bool = True) -> None:
    for name, text, kind, samples in json.loads(zlib.decompress(report)):
        is_gauge = kind == "gauge"
        if is_gauge and not with_gauges:
            continue
        together = _TOGETHER.get(name, min) if is_gauge else operator.add
        values = sums.setdefault(name, _Sum(text, kind)).values
        for sample, labels, value in samples:
            key = (sample, tuple(labels.items()))
            values[key] = together(values[key], value) if key in values else value


class CounterBatch:
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
