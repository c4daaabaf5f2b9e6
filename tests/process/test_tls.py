"""TLS of its own, where ListenPort is an ssl: endpoint: files go through threads instead of sendfile."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.neighbours.program import certificate, run
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


def sign(folder: Path, name: str, authority: str, *extensions: str) -> None:
    """A certificate by an authority, in a file of its name, and its key."""
    (folder / f"{name}.ext").write_text("\n".join(extensions))
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"]
    run("openssl", "req", *new, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr")
    by = ["-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key", "-CAcreateserial", "-days", "2"]
    to = ["-in", folder / f"{name}.csr", "-out", folder / f"{name}.pem", "-extfile", folder / f"{name}.ext"]
    run("openssl", "x509", "-req", *by, *to)


@pytest.mark.parametrize("form", ["full", "full with CR LF", "extra", "key and full in one"])
def test_a_chain(make_daemon: MakeDaemon, tmp_path: Path, form: str) -> None:
    """A client that knows the root alone is sent the certificates between: from the file that has all (fullchain.pem),
    or from the one that extraCertChain names."""
    need("openssl")
    root, key = certificate(tmp_path, "root")
    root.rename(tmp_path / "root.pem")
    key.rename(tmp_path / "root.key")
    sign(tmp_path, "between", "root", "basicConstraints=critical,CA:TRUE")
    sign(tmp_path, "localhost", "between", "subjectAltName=DNS:localhost")
    own, between = ((tmp_path / f"{name}.pem").read_text() for name in ("localhost", "between"))
    text = own if form == "extra" else own + between
    if form.startswith("key"):
        text = (tmp_path / "localhost.key").read_text() + text
    (tmp_path / "cert.pem").write_text(text, newline="\r\n" if "CR LF" in form else None)
    port = free_port()
    endpoint = f"ssl:{port}:interface=127.0.0.1"
    if form.startswith("key"):
        endpoint += f":privateKey={tmp_path}/cert.pem"
    else:
        endpoint += f":privateKey={tmp_path}/localhost.key:certKey={tmp_path}/cert.pem"
    if form == "extra":
        endpoint += f":extraCertChain={tmp_path}/between.pem"
    make_daemon(ListenPort=endpoint, Secret=SECRET, MetricsEnabled=False).launch()

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    eventually(listens)
    with TLSWire(port, tmp_path / "root.pem") as wire:
        assert wire.send(b"GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
