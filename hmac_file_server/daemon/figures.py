"""The figures of a registry, read for people."""

from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

_PREFIX = "hmac_file_server_"


class Figures:
    """All samples of a registry, as of now."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for family in registry.collect():
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append(sample)

    def total(self, name: str) -> float:
        """The sum over all labels; 0 if there is none."""
        return sum(sample.value for sample in self._samples.get(_PREFIX + name, ()))

    def value(self, name: str, host: str = "") -> float | None:
        """What a gauge shows of a host, or of the only one; None if it is not there."""
        samples = self._samples.get(_PREFIX + name, ())
        return next((sample.value for sample in samples if sample.labels.get("host", host) == host), None)

    def reasons(self, *names: str) -> dict[str, float]:
        """What some counters say by reason, the most frequent first."""
        counts: Counter[str] = Counter()
        for name in names:
            for sample in self._samples.get(_PREFIX + name, ()):
                counts[sample.labels["reason"]] += sample.value  # type: ignore[assignment]  # whole numbers
        return {reason: count for reason, count in counts.most_common() if count}
