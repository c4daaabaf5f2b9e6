"""A daemon that is stopped for a while, as a machine that sleeps is: its clients are not to blame."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Daemon, eventually, put_target

MakeDaemon = Callable[..., Daemon]

TIMEOUT = 6
LONGER = 1.5 * TIMEOUT


def freeze(daemon: Daemon) -> None:
    """Stop the daemon, and its workers, for longer than any of its timeouts."""
    processes = [daemon.pid, *map(int, Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split())]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    for process in processes:
        eventually(lambda process=process: ") T " in Path(f"/proc/{process}/stat").read_text())
    time.sleep(LONGER)
    for process in reversed(processes):
        os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_frozen_daemon(make_daemon: MakeDaemon, workers: int) -> None:
    """Uploads, downloads, half of a head, a wait for 100 and idle connections outlast a daemon that was stopped."""
    daemon = make_daemon(IdleTimeout=TIMEOUT, UploadTimeout=TIMEOUT, Workers=workers, TrustedProxies=[]).start()
    body = os.urandom(24 << 20)
    assert daemon.put("slot/there.bin", body).status == 201
    with daemon.wire() as upload, daemon.wire() as idle, daemon.wire() as head, daemon.wire() as reader:
        # Both ends have less room for it than it needs.
        reader.send(b"GET /upload/slot/there.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        request = f"PUT {put_target('slot/new.bin', len(body))} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        upload.send(request.encode() + b"Expect: 100-continue\r\n\r\n")
        assert upload.answer().status == 100
        upload.send(body[: 3 << 20])
        get = b"GET /upload/slot/there.bin HTTP/1.1\r\nHost: a\r\nRange: bytes=0-9\r\n\r\n"
        assert idle.send(get).answer().body == body[:10]
        head.send(get[:30])
        freeze(daemon)
        assert idle.send(get).answer().body == body[:10]
        assert head.send(get[30:]).answer().body == body[:10]
        assert upload.send(body[3 << 20 :]).answer().status == 201
        assert reader.answer().body == body
    assert daemon.get("slot/new.bin").body == body


def test_timeouts_go_on_afterwards(make_daemon: MakeDaemon) -> None:
    """Who says nothing after the daemon was stopped is cut off as ever."""
    daemon = make_daemon(IdleTimeout=TIMEOUT, UploadTimeout=TIMEOUT).start()
    with daemon.wire() as wire:
        freeze(daemon)
        assert wire.rest() == b""
