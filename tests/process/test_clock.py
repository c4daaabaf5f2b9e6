"""The wall clock is set while the daemon runs: nothing that waits, or is measured, follows it."""

from __future__ import annotations

import glob
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import DEADLINE, Daemon, eventually, missing, put_target

MakeDaemon = Callable[..., Daemon]

STEPS = pytest.mark.parametrize("step", ["+1h", "-2h", "-3"])
WORKERS = pytest.mark.parametrize("workers", [1, 2])


class Clock:
    """A wall clock for the daemon, which tests set; the monotonic one goes on as it is."""

    def __init__(self, folder: Path) -> None:
        found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not found:
            missing("faketime is not installed")
        self._offset = folder / "offset"
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, offset: str) -> None:
        """:param offset: from the real time."""
        new = self._offset.with_suffix(".new")
        new.write_text(offset + "\n")
        new.rename(self._offset)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd would listen for notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(DEADLINE)
        yield listener


class Uploads:
    """Healthy uploads: each sends a piece now and then."""

    def __init__(self, daemon: Daemon, count: int, pieces: int) -> None:
        self._piece = os.urandom(4096)
        self._pieces = pieces
        self.body = self._piece * pieces
        self.wires = [daemon.wire() for _ in range(count)]
        for number, wire in enumerate(self.wires):
            target = put_target(f"slow{number}/a.bin", len(self.body))
            wire.send(f"PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(self.body)}\r\n\r\n".encode())
        self._sent = 0

    def go_on(self) -> None:
        """Send one more piece of each."""
        self._sent += 1
        for wire in self.wires:
            wire.send(self._piece)

    def finish(self) -> list[int]:
        """Send the rest; their statuses."""
        while self._sent < self._pieces:
            self.go_on()
        return [wire.answer().status for wire in self.wires]


@STEPS
@WORKERS
def test_healthy_uploads_go_on(make_daemon: MakeDaemon, clock: Clock, step: str, workers: int) -> None:
    """However the clock is set, uploads and connections that are healthy are not cut, and new ones are served."""
    daemon = make_daemon(environment=clock.environment, Workers=workers, UploadTimeout=30, IdleTimeout=40).start()
    uploads = Uploads(daemon, 8, pieces=8)
    uploads.go_on()
    idle = daemon.wire()
    assert idle.send(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
    for offset in (step, "+0", step):
        clock.set(offset)
        for number in range(3):
            path = f"new{offset}{number}/a.bin"
            assert daemon.put(path, b"hello").status == 201
            assert daemon.get(path).body == b"hello"
        uploads.go_on()
    assert uploads.finish() == [201] * 8
    assert idle.send(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert re.search("timed out|broken off|Traceback|do(es)? not answer", daemon.log) is None


@WORKERS
def test_the_clock_is_set_back_under_load(make_daemon: MakeDaemon, clock: Clock, workers: int) -> None:
    """While the clock is set back again and again, no request waits for it to catch up."""
    daemon = make_daemon(environment=clock.environment, Workers=workers).start()
    body = os.urandom(200_000)
    assert daemon.put("slot/a.bin", body).status == 201
    problems: list[object] = []
    over = threading.Event()

    def load(client: int) -> None:
        number = 0
        try:
            while not over.is_set():
                number += 1
                assert daemon.get("slot/a.bin").body == body
                assert daemon.put(f"load{client}/{number}", b"hello").status == 201
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=load, args=(client,)) for client in range(3)]
    for thread in threads:
        thread.start()
    try:
        # In all for longer than a client waits.
        for back in range(3, 3 * int(DEADLINE), 3):
            clock.set(f"-{back}")
            assert daemon.get("slot/a.bin").body == body
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []


def test_room_is_looked_at(make_daemon: MakeDaemon, clock: Clock, tmp_path: Path) -> None:
    """With the clock set back, free space is still looked at: what uploads had claimed, and is free again, is used."""
    store = tmp_path / "store"
    store.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(store)]):
        missing("a file system can not be mounted")
    try:
        daemon = make_daemon(environment=clock.environment, MinFreeSpace=0).start()
        assert daemon.put("slot/0.bin", b"hello").status == 201
        clock.set("-2h")
        body = os.urandom(5 << 20)
        for number in range(1, 5):
            eventually(lambda: daemon.put(f"slot/{number}.bin", body).status == 201, what="there is room")  # noqa: B023
            (store / f"slot/{number}.bin").unlink()
        daemon.stop()
    finally:
        subprocess.call(["umount", "-l", str(store)])


@WORKERS
def test_the_watchdog_is_fed(make_daemon: MakeDaemon, clock: Clock, manager: socket.socket, workers: int) -> None:
    """With the clock set back, systemd still hears that the daemon is alive."""
    told = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "200000"}
    daemon = make_daemon(environment=clock.environment | told, Workers=workers).start()
    clock.set("-2h")
    if workers == 1:  # A parent has no address of its own to ask.
        eventually(lambda: daemon.get("none").status == 404)
    for _ in range(20):
        manager.recv(4096)
    daemon.stop()
