"""TLS of its own, where ListenPort is an ssl: endpoint: files go through threads instead of sendfile."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.neighbours.program import certificate
from tests.support import DEADLINE, Daemon, Wire, eventually, free_port, need, put_target

MakeDaemon = Callable[..., Daemon]

SECRET = "of-our-own"
BODY = os.urandom(5_000_000)


class TLSWire(Wire):
    """A raw connection through TLS."""

    def __init__(self, port: int, authority: Path) -> None:
        super().__init__(port)
        context = ssl.create_default_context(cafile=str(authority))
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


@pytest.fixture
def connect(make_daemon: MakeDaemon, tmp_path: Path) -> Iterator[Callable[[], TLSWire]]:
    need("openssl")
    chain, key = certificate(tmp_path, "localhost")
    port = free_port()
    endpoint = f"ssl:{port}:interface=127.0.0.1:privateKey={key}:certKey={chain}"
    daemon = make_daemon(ListenPort=endpoint, Secret=SECRET, IdleTimeout=3).launch()

    def listens() -> bool:
        assert daemon.process is not None
        assert daemon.process.poll() is None, daemon.log
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    eventually(listens)
    yield lambda: TLSWire(port, chain)
    daemon.stop()
    assert "Traceback" not in daemon.log
    assert daemon.files() == {"slot/a.bin"}


def upload(wire: TLSWire) -> None:
    head = f"PUT {put_target('slot/a.bin', len(BODY), secret=SECRET)} HTTP/1.1\r\nHost: a\r\n"
    wire.send(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    assert wire.answer().status == 201


def test_there_and_back(connect: Callable[[], TLSWire]) -> None:
    """A file, parts of it, and what was asked for behind it come back byte for byte on one connection."""
    with connect() as wire:
        upload(wire)
        get = "GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\n"
        wire.send(f"{get}\r\n{get}Range: bytes=1000000-1999999\r\n\r\n{get}Range: bytes=-5\r\n\r\n".encode())
        answers = [wire.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 206, 206]
    assert [answer.body for answer in answers] == [BODY, BODY[1_000_000:2_000_000], BODY[-5:]]


def test_a_reader_that_stops(connect: Callable[[], TLSWire]) -> None:
    """A reader that takes nothing is cut off."""
    with connect() as wire:
        upload(wire)
        for _ in range(4):
            wire.send(b"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        wire.socket.settimeout(DEADLINE)
        descriptor = wire.socket.fileno()

        def is_cut() -> bool:
            inode = str(os.fstat(descriptor).st_ino)
            table = Path("/proc/net/tcp").read_text().splitlines()
            return "01" not in [line.split()[3] for line in table if inode in line.split()]

        eventually(is_cut)


def test_a_client_that_leaves(connect: Callable[[], TLSWire]) -> None:
    """A download that is broken off leaves nothing open, and others are served."""
    with connect() as wire:
        upload(wire)
    for _ in range(5):
        with connect() as wire:
            wire.send(b"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            wire.socket.recv(1000)
    with connect() as wire:
        wire.send(b"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert wire.answer().body == BODY
