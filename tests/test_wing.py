"""Resumption is a wing: torn off, the house stands, serves, and passes its tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICE = "hmac_file_server/daemon/host.py"
STAYS = ["test_request.py", "test_upload.py", "test_store.py", "test_conditional.py", "test_smoke.py", "test_start.py"]
"""Tests of what stays; those of the wing, and all that send it something, go with it."""


def torn(tmp_path: Path) -> Path:
    """A copy of the tree without the wing and its lines in the wiring."""
    for name in ("hmac_file_server", "twisted", "tests", "etc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.rmtree(tmp_path / "hmac_file_server/resumption")
    service = tmp_path / SERVICE
    text, lines = re.subn(r" *# The wing.*?# End of the wing\.\n", "", service.read_text(), flags=re.DOTALL)
    text, imports = re.subn(r"from hmac_file_server\.resumption import wiring\n", "", text)
    assert (lines, imports) == (2, 1)
    service.write_text(text)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    for name in list(environment):
        if name.startswith("PYTEST"):
            del environment[name]
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_nobody_else_knows_the_wing() -> None:
    """Outside of it, one line of the wiring imports it."""
    files = [file for file in (ROOT / "hmac_file_server").rglob("*.py") if "resumption" not in file.parts]
    named = {str(file.relative_to(ROOT)) for file in files if "hmac_file_server.resumption" in file.read_text()}
    assert named == {SERVICE}


def test_the_rest_stands(tmp_path: Path) -> None:
    """What is left passes its tests, among them those that start the daemon, upload a file and fetch it."""
    folder = torn(tmp_path)
    paths = [str(path.relative_to(folder)) for name in STAYS for path in (folder / "tests").rglob(name)]
    assert len(paths) == len(STAYS)
    found = run(folder, "-c", "import hmac_file_server as h; print(h.__file__)")
    assert found.stdout.startswith(str(folder)), found
    tested = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", *paths)
    if tested.returncode:
        pytest.fail(tested.stdout[-4000:] + tested.stderr[-1000:])
