"""How many processors a process may use, as control groups say it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hmac_file_server.processors import processors

SEEN = 8


@pytest.fixture(autouse=True)
def _eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(SEEN)))


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # A container with its own view, as Docker's --cpus=2 makes it.
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, SEEN),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, SEEN),
        # CPUQuota= of a unit, or of a slice above it.
        ("0::/system.slice/a.service\n", {"system.slice/a.service/cpu.max": "300000 100000"}, 3),
        ("0::/a.slice/a.service\n", {"a.slice/a.service/cpu.max": "max 9", "a.slice/cpu.max": "400000 100000"}, 4),
        # The path is that of the host, the mount that of the container.
        ("0::/docker/1234\n", {"cpu.max": "200000 100000"}, 2),
        # The first version of control groups.
        ("4:memory:/x\n3:cpu,cpuacct:/docker/1234\n",
         {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2),
        ("2:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "500000", "cpu/x/cpu.cfs_period_us": "100000"}, 5),
        ("2:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, SEEN),
        # Nothing is known, or what is there makes no sense.
        ("", {}, SEEN),
        ("nonsense\n", {"cpu.max": "0 0"}, SEEN),
        ("0::/\n", {"cpu.max": "many"}, SEEN),
        ("0::/\n", {"cpu.max": "100000 0"}, SEEN),
        ("0::/../..\n", {"cpu.max": "200000 100000"}, 2),
    ],
)  # fmt: skip
def test_what_is_granted(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    """The least of what it sees and of what each of its groups grants, rounded up."""
    proc = tmp_path / "proc"
    proc.write_text(groups)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert processors(proc, tmp_path / "groups") == expected


def test_without_proc(tmp_path: Path) -> None:
    """Where nothing can be read it is what the process sees."""
    assert processors(tmp_path / "none", tmp_path / "none") == SEEN
