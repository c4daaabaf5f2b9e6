from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from hmac_file_server.daemon.notify import Notifier


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []

    def take(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(take)
    yield lines
    globalLogPublisher.removeObserver(take)


def test_a_manager_that_is_gone(tmp_path: Path, said: list[str]) -> None:
    """While systemd can not be told anything, the log says so once, and once more when that happens again."""
    path, clock = tmp_path / "notify", Clock()
    notifier = Notifier(clock, {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}, lambda: "all is well")
    notifier.startService()
    for _ in range(2):
        clock.pump([1.0] * 20)
        assert said == ["systemd can not be told: No such file or directory"]
        said.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            clock.advance(1.0)
            assert manager.recv(4096) == b"STATUS=all is well\nWATCHDOG=1"
        path.unlink()
    notifier.stopService()
