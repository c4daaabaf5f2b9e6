"""What is measured, and on whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from benchmarks.load import Result
from benchmarks.report import MEMORY, REQUESTS, START, THROUGHPUT, Unit

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_CONNECTIONS = 32
_FILES = 64


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    :param large: bytes of the one large file.
    :param part: bytes of each of the eight.
    :param seconds: that small requests are sent for.
    :param stalled: uploads that stall at once.
    """

    large: int = GIB
    part: int = 128 * MIB
    seconds: int = 2
    stalled: int = 500


QUICK = Scale(128 * MIB, 16 * MIB, 1, 200)


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    :param name: for the command line.
    :param title: for the tables.
    :param run: does it, with one who takes part.
    :param prepare: what that one needs first.
    :param flushed: whether files must be safe from a power loss: then the disk itself is the measure.
    :param own: whether only servers that the benchmark starts can take part.
    :param fresh: whether only servers tell that have done nothing yet: others take part in the first round.
    """

    name: str
    title: str
    unit: Unit
    run: Callable[[Any], Result]
    prepare: Callable[[Any], None] = lambda peer: None
    flushed: bool = False
    own: bool = False
    fresh: bool = False


def all_cases(scale: Scale) -> list[Case]:
    """In the order of a round. Memory comes first: what others leave behind would hide what it costs."""
    return [*_footprint(scale), *_large(scale), *_small(scale.seconds)]


def _footprint(scale: Scale) -> list[Case]:
    count = scale.stalled
    return [
        Case("start", "start to first answer", START, methodcaller("start_another"), own=True),
        Case("stalled", f"one of {count} stalled uploads", MEMORY, methodcaller("stalled", count), fresh=True),
    ]


def _large(scale: Scale) -> list[Case]:
    cases = []
    for size, count in ((scale.large, 1), (scale.part, 8)):
        what = f"{count} x {_size(size)}" if count > 1 else _size(size)
        put, get, have = (methodcaller(name, size, count) for name in ("put", "get", "have"))
        cases += [
            Case(f"put-large-{count}", f"PUT {what}", THROUGHPUT, put),
            Case(f"put-large-{count}-fsync", f"PUT {what}, Fsync", THROUGHPUT, put, flushed=True),
            Case(f"get-large-{count}", f"GET {what}", THROUGHPUT, get, have),
        ]
    return cases


def _small(seconds: int) -> list[Case]:
    cases = []
    for name, size in (("4k", 4 * KIB), ("64k", 64 * KIB)):
        put, get = (methodcaller(name, size, _CONNECTIONS, seconds) for name in ("put_many", "get_many"))
        cases += [
            Case(f"put-{name}", f"PUT {_size(size)}", REQUESTS, put),
            Case(f"get-{name}", f"GET {_size(size)}", REQUESTS, get, methodcaller("have", size, _FILES)),
        ]
    for connections in (1, 8, 32, 128):
        title = f"PUT 4 KiB, Fsync, {connections} at once"
        put = methodcaller("put_many", 4 * KIB, connections, seconds)
        cases.append(Case(f"put-4k-fsync-{connections}", title, REQUESTS, put, flushed=True))
    return cases


def _size(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"
