from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BOUND = re.compile(r"([a-z][a-z0-9-]+)(?:\[[a-z]+\])?(>=|==)([\w.]+)", re.IGNORECASE)


def bounds(lines: list[str], sign: str) -> dict[str, str]:
    """Versions by name."""
    found = [BOUND.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert all(match and match[2] == sign for match in found), lines
    return {match[1]: match[3] for match in found if match}


def test_each_lower_bound_is_tried() -> None:
    """What make test-oldest installs are the very versions that the package and the tests say they need at least."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = (ROOT / "tests/requirements.txt").read_text().splitlines()
    oldest = (ROOT / "tests/oldest.txt").read_text().splitlines()
    needed = bounds(project["dependencies"], ">=")
    tested = bounds(tools, ">=")
    assert {name: version for name, version in tested.items() if needed.get(name, version) != version} == {}
    assert bounds(oldest, "==") == needed | tested
