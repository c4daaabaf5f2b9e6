"""A copy of StoreDir that was made while the daemon ran: what docs/upgrading.rst promises of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bearer import put_with, token
from tests.process.test_delete import DELETE_SECRET, delete
from tests.support import Daemon, eventually, need, put_head


@pytest.mark.parametrize("command", [["rsync", "-aX"], ["cp", "-a"]], ids=lambda command: command[0])
def test_a_copy(make_daemon: Callable[..., Daemon], tmp_path: Path, command: list[str]) -> None:
    """It serves the same files with their types and ends, has no half ones, and removed slots stay dead."""
    need(command[0])
    daemon = make_daemon(DeleteSecret=DELETE_SECRET).start()
    end = time.time() + 3600
    for path, expires in (("kept/a.bin", end), ("ends/a.bin", end + 3600)):
        made = token(path, 5, expires=expires, filetype="audio/ogg")
        with daemon.wire() as wire:
            assert wire.send(put_with(made, path, 5) + b"hello").answer().status == 201
    assert daemon.put("dead/a.bin", b"hello").status == 201
    assert delete(daemon, "dead/a.bin").status == 204
    with daemon.wire() as half:
        half.send(put_head("half/a.bin", 2 << 20) + bytes(1 << 20))
        eventually(lambda: daemon.running() == 1)
        copy = tmp_path / "other" / "store"
        copy.mkdir(parents=True)
        subprocess.run([*command, f"{daemon.store}/.", str(copy)], check=True)
    other = make_daemon(tmp_path / "other", DeleteSecret=DELETE_SECRET).start()
    for path in ("kept/a.bin", "ends/a.bin"):
        answer = other.get(path)
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"hello", "audio/ogg")
        assert "31536000" not in answer.headers["cache-control"]
    assert other.get("half/a.bin").status == 404
    assert other.put("dead/a.bin", b"hello").status == 403
