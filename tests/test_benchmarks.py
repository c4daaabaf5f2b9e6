from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.__main__ import Bench
from benchmarks.cases import Scale, all_cases
from benchmarks.disk import Disk
from benchmarks.load import Address, Result
from benchmarks.report import REQUESTS, Sample, summary, tables
from benchmarks.servers import Server, Store
from tests.support import SECRET, Daemon, need


def sample(requests: float, others: float = 0.0, **figures: Any) -> Sample:
    return Sample(Result(requests, 1.0, **figures), others, 0.5)


def test_disturbed_runs_do_not_count() -> None:
    """A run in which others used much of the machine is left out where three are left without it, else it counts."""
    quiet = [sample(100, cpu=0.1), sample(110, cpu=0.1), sample(120, cpu=0.1)]
    figures = summary(REQUESTS, [*quiet, sample(10, others=0.2, cpu=5.0)])
    assert (figures.median, figures.lowest, figures.highest) == (110, 100, 120)
    assert (figures.kept, figures.runs, round(figures.cost or 0, 3)) == (3, 4, 0.909)
    figures = summary(REQUESTS, [*quiet[:2], sample(10, others=0.2)])
    assert (figures.median, figures.kept, figures.runs) == (100, 3, 3)


def test_table() -> None:
    """A table has a row for each server, its ratio to the first one, and no column that nobody has a figure for."""
    rows = [
        (REQUESTS, ("GET", name, summary(REQUESTS, [sample(value)]))) for name, value in (("a", 1500), ("b", 3000))
    ]
    head, *lines = (line.split("  ") for line in tables(rows).splitlines() if not line.startswith("="))
    cells = [[cell.strip() for cell in line if cell] for line in (head, *lines)]
    assert cells == [
        ["case", "server", "requests/s", "lowest to highest", "ratio", "client cores", "others %", "runs"],
        ["GET", "a", "1,500", "1,500 to 1,500", "1.00", "0.500", "0", "1 of 1"],
        ["GET", "b", "3,000", "3,000 to 3,000", "0.50", "0.500", "0", "1 of 1"],
    ]


def test_store_is_emptied_without_deleting(tmp_path: Path) -> None:
    """Between runs files are truncated and moved away, but for those that later runs download."""
    (tmp_path / "files/kept").mkdir(parents=True)
    (tmp_path / "files/new").mkdir()
    for name in ("kept/a", "new/b"):
        (tmp_path / "files" / name).write_bytes(b"x" * 100)
    store = Store(tmp_path / "files")
    store.kept.add("kept")
    assert store.empty() == 100
    (left,) = tmp_path.glob("emptied-*/new/b")
    assert left.read_bytes() == b""
    assert [path.name for path in store.path.iterdir()] == ["kept"]
    store.close()
    assert list(tmp_path.rglob("*")) == [store.path]


def test_cases_on_the_daemon(daemon: Daemon, tmp_path: Path) -> None:
    """Large and small uploads and downloads, and stalled uploads, give figures for the daemon and for the disk."""
    need("wrk")
    scale = Scale(large=3 << 20, part=1 << 20, seconds=1, stalled=10)
    wanted = {"stalled", "put-large-1-fsync", "get-large-8", "put-4k"}
    cases = [case for case in all_cases(scale) if case.name in wanted]
    bench = Bench(tmp_path, scale, SECRET, patience=0)
    address = Address(f"http://127.0.0.1:{daemon.port}/upload/", SECRET)
    bench.add(Server("daemon", address, tmp_path, Store(daemon.store)), [False, True])
    bench.add(Disk(tmp_path / "disk"), [True])
    bench.round(cases, 0)
    assert not bench.failures
    taken = {(case.name, name) for case, name in bench.samples}
    assert taken == {*((name, "daemon") for name in wanted), ("put-large-1-fsync", "disk loop")}
    for (case, name), (only,) in bench.samples.items():
        assert case.unit.value(only.result) > 0 or case.name == "stalled", (case, name)
    text = bench.tables()
    assert "GET 8 x 1 MiB" in text
    bench.close()
    assert daemon.files() == set()
