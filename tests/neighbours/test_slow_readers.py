"""Readers that are slow behind nginx: what it has taken counts, not what the kernel holds."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.neighbours.nginx import BUFFERED, Nginx
from tests.support import Daemon, Wire, need

MakeDaemon = Callable[..., Daemon]

MIB = 1 << 20
SPEED = 250_000
GET = b"GET /upload/slot/film.mp4 HTTP/1.1\r\nHost: upload.example.com\r\n\r\n"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that nginx's workers can write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("body", "proxy"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def read_slowly(wire: Wire, size: int) -> bytes:
    """Read so many bytes at :data:`SPEED`, however fast or slow the machine is."""
    begun, got = time.monotonic(), bytearray()
    while len(got) < size:
        allowed = int((time.monotonic() - begun) * SPEED) - len(got)
        if allowed < 1000:
            time.sleep(0.005)
            continue
        data = wire.socket.recv(allowed)
        assert data, f"cut off after {len(got)} bytes"
        got += data
    return bytes(got)


@pytest.mark.parametrize("changes", [(), (BUFFERED,)], ids=["unbuffered", "buffered"])
def test_behind_nginx(make_daemon: MakeDaemon, open_folder: Path, changes: tuple[tuple[str, str], ...]) -> None:
    """A reader for whom nginx takes nothing for longer than IdleTimeout, and then much at once, is not cut off."""
    need("nginx", "openssl")
    daemon = make_daemon(IdleTimeout=4).start()
    body = os.urandom(24 * MIB)
    (daemon.store / "slot").mkdir()
    (daemon.store / "slot/film.mp4").write_bytes(body)
    proxy = Nginx(open_folder, daemon, *changes)
    try:
        with proxy.wire() as wire:
            assert read_slowly(wire.send(GET), 5 * MIB).partition(b"\r\n\r\n")[2] in body
            assert daemon.metric("hmac_file_server_downloads_broken_total") == 0
    finally:
        proxy.program.end()
