"""How many processors this process may really use, which in a container are fewer than it sees."""

from __future__ import annotations

import math
import os
from pathlib import Path

_V2, _V1 = "cpu.max", ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def processors(proc: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The processors that it may run on, but no more than the time is worth that its control groups grant.

    :param proc: tells its groups (cgroups(7)).
    :param groups: where those are mounted.
    """
    seen = len(os.sched_getaffinity(0))
    return max(1, min(seen, math.ceil(min(_grants(proc, groups), default=seen))))


def _grants(proc: Path, groups: Path) -> list[float]:
    """What the groups and all above them grant, in processors, as far as that can be read."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        lines = []
    found: list[float] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            roots = [groups, groups / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [groups / controllers, groups / "cpu"]
        else:
            continue
        # In a container the path may be that outside of it: then what is mounted is its own group.
        for root in roots:
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    found += _grant(folder)
    return found


def _grant(folder: Path) -> list[float]:
    try:
        if (folder / _V2).exists():
            quota, period = (folder / _V2).read_text().split()
        else:
            quota, period = ((folder / name).read_text() for name in _V1)
        grant = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return []  # "max", and -1 below, mean that nothing is bounded.
    return [grant] if grant > 0 else []
