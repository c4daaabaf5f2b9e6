"""From runs to tables: medians, spreads and ratios as reStructuredText that a terminal shows well, too."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.load import Result

NOISY = 0.15
"""The share of the machine above which what others used spoils a run."""

_ENOUGH = 3


@dataclass(frozen=True)
class Unit:
    """What is counted.

    :param name: for the head of a column.
    :param value: of one run.
    :param has_client: whether a load generator's own use matters.
    :param cost: names what a server's CPU is counted in; empty where it is not.
    :param per_work: that, from seconds of CPU and the run's work.
    """

    name: str
    value: Callable[[Result], float]
    has_client: bool = False
    cost: str = ""
    per_work: Callable[[float, float], float] = lambda cpu, work: cpu


THROUGHPUT = Unit(
    "GiB/s",
    lambda result: result.work / result.seconds / (1 << 30),
    True,
    "CPU s/GiB",
    lambda cpu, work: cpu / work * (1 << 30),
)
REQUESTS = Unit(
    "requests/s",
    lambda result: result.work / result.seconds,
    True,
    "CPU ms/request",
    lambda cpu, work: cpu / work * 1e3,
)
START = Unit("s", lambda result: result.seconds, cost="CPU s")
MEMORY = Unit("KiB", lambda result: result.work / (1 << 10))
UNITS = (THROUGHPUT, REQUESTS, START, MEMORY)


@dataclass(frozen=True)
class Sample:
    """One run and what was around it.

    :param others: share of the machine that others used.
    :param client: cores that the load generator used; None where there is none.
    """

    result: Result
    others: float
    client: float | None


@dataclass(frozen=True)
class Summary:
    """All runs of one case on one server.

    :param kept: how many of them count.
    """

    median: float
    lowest: float
    highest: float
    cost: float | None
    peak: float | None
    p50: float | None
    p99: float | None
    client: float | None
    others: float
    kept: int
    runs: int


def summary(unit: Unit, samples: Sequence[Sample]) -> Summary:
    """Without the runs that others disturbed, if enough are left without them."""
    kept = [sample for sample in samples if sample.others <= NOISY]
    if len(kept) < _ENOUGH:
        kept = list(samples)
    results = [sample.result for sample in kept]
    values = [unit.value(result) for result in results]
    return Summary(
        median=statistics.median(values),
        lowest=min(values),
        highest=max(values),
        cost=_median(unit.per_work(result.cpu, result.work) for result in results if result.cpu is not None),
        peak=_median(result.peak for result in results if result.peak is not None),
        p50=_median(result.p50 for result in results if result.p50 is not None),
        p99=_median(result.p99 for result in results if result.p99 is not None),
        client=_median(sample.client for sample in kept if sample.client is not None),
        others=statistics.median(sample.others for sample in kept),
        kept=len(kept),
        runs=len(samples),
    )


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


Row = tuple[str, str, Summary]
"""A case's title, a server's name, its figures."""


def tables(rows: Sequence[tuple[Unit, Row]]) -> str:
    """One table for each unit, in the order in which they come."""
    units = list(dict.fromkeys(unit for unit, _ in rows))
    return "\n".join(_table(unit, [row for which, row in rows if which == unit]) for unit in units)


def _table(unit: Unit, rows: Sequence[Row]) -> str:
    reference = {title: figures.median for title, server, figures in rows if server == rows[0][1]}

    def ratio(row: Row) -> str:
        title, _, figures = row
        return f"{reference[title] / figures.median:.2f}" if title in reference and figures.median else "-"

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("case", lambda row: row[0]),
        ("server", lambda row: row[1]),
        (unit.name, lambda row: number(row[2].median)),
        ("lowest to highest", lambda row: f"{number(row[2].lowest)} to {number(row[2].highest)}"),
        ("ratio", ratio),
        ("p50 ms", lambda row: number(row[2].p50)),
        ("p99 ms", lambda row: number(row[2].p99)),
        (unit.cost, lambda row: number(row[2].cost)),
        ("peak MiB", lambda row: number(None if row[2].peak is None else row[2].peak / (1 << 20))),
        ("client cores", lambda row: number(row[2].client)),
        ("others %", lambda row: f"{row[2].others * 100:.0f}"),
        ("runs", lambda row: f"{row[2].kept} of {row[2].runs}"),
    ]
    cells = [[name, *map(cell, rows)] for name, cell in columns if name]
    return simple_table(zip(*(column for column in cells if set(column[1:]) != {"-"}), strict=True))


def number(value: float | None) -> str:
    """With as many digits as mean something; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def simple_table(rows: Iterable[Sequence[str]]) -> str:
    """A reStructuredText table whose first row is its head."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines]
    return "\n".join([rule, text[0], rule, *text[1:], rule, ""])
