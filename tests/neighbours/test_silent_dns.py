"""A name server that does not answer: nobody waits for it but who asked, and the daemon ends all the same."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import DEADLINE, Daemon, eventually, missing, need
from tests.watchdog import never_late

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def silence() -> Iterator[socket.socket]:
    """A name server that hears and says nothing."""
    if os.geteuid() != 0:
        missing("/etc/resolv.conf can not be another one")
    need("unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((f"127.{os.getpid() >> 8 & 255}.{os.getpid() & 255}.53", 53))
        server.setblocking(False)
        yield server


def test_redis_by_a_name(make_daemon: MakeDaemon, silence: socket.socket, tmp_path: Path) -> None:
    """While Redis's name is looked up uploads go on, and SIGTERM does not wait for the answer."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {silence.getsockname()[0]}\noptions timeout:30 attempts:5\n")
    mount = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mount, str(resolv)]
    daemon = make_daemon(prefix=prefix, RedisAddr="redis.example.com:6379").start()
    eventually(lambda: asked(silence), what="the name server is asked")
    with never_late(daemon):
        for number in range(20):
            assert daemon.put(f"slot/{number}.bin", b"hello").status == 201
    assert daemon.process is not None
    daemon.process.terminate()
    assert daemon.process.wait(DEADLINE) in (0, -signal.SIGTERM)


def asked(server: socket.socket) -> bool:
    try:
        return b"redis" in server.recv(4096)
    except BlockingIOError:
        return False
