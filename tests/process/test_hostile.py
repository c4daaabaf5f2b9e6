"""Clients that mean harm: they stall, crowd, drip, and never read. Others must be served all the while."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Daemon, Wire, eventually, missing, put_head, put_target

MakeDaemon = Callable[..., Daemon]

MANY = 1000
HEAD = b"Host: a\r\n"


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def stall_in_headers(daemon: Daemon, number: int) -> bytes:
    return b"PUT /upload/a HTTP/1.1\r\nHost: a\r\nX-Stall"


def stall_in_body(daemon: Daemon, number: int) -> bytes:
    return put_head(f"stall{number}/a.bin", 1 << 20) + b"x" * 1000


def never_read(daemon: Daemon, number: int) -> bytes:
    return b"GET /upload/big/a.bin HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("attack", [stall_in_headers, stall_in_body, never_read])
def test_a_thousand_that_stall(make_daemon: MakeDaemon, attack: Callable[[Daemon, int], bytes]) -> None:
    """A thousand stalled connections cost little memory, keep nobody from being served, and go in the end."""
    daemon = make_daemon(IdleTimeout=2, UploadTimeout=3).start()
    assert daemon.put("big/a.bin", b"x" * (4 << 20)).status == 201
    with contextlib.ExitStack() as stack:
        idle = eventually(lambda: daemon.descriptors() if daemon.descriptors() < 30 else 0)
        before = daemon.resident()
        for number in range(MANY):
            client = socket.socket()
            stack.callback(client.close)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", daemon.port))
            client.sendall(attack(daemon, number))
        assert daemon.put("good/a.bin", b"hello").status == 201
        assert daemon.get("good/a.bin").body == b"hello"
        assert daemon.resident() - before < 100 << 20
        eventually(lambda: daemon.descriptors() <= idle, what="the stalled connections are closed")
    eventually(lambda: daemon.running() == 0)
    assert {name for name in daemon.files() if "stall" in name} == set()
    assert "Traceback" not in daemon.log


def drip(wire: Wire, data: bytes) -> None:
    """Send byte by byte, each well within any timeout, until the daemon has had enough."""
    wire.socket.settimeout(0.2)
    for position in range(len(data)):
        wire.socket.sendall(data[position : position + 1])
        try:
            if not wire.socket.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
        except TimeoutError:
            continue
    raise AssertionError("the daemon took it all")


def test_headers_that_drip(make_daemon: MakeDaemon) -> None:
    """Headers must be complete within IdleTimeout, however steadily they drip in."""
    daemon = make_daemon(IdleTimeout=1).start()
    with daemon.wire() as wire, pytest.raises(ConnectionError):
        drip(wire, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000)


def test_a_body_that_drips(make_daemon: MakeDaemon) -> None:
    """A body that comes more slowly than MinRate is cut off."""
    daemon = make_daemon(UploadTimeout=1, MinRate=100).start()
    with daemon.wire().send(put_head("slot/a.bin", 1000)) as wire, pytest.raises(ConnectionError):
        drip(wire, b"x" * 1000)
    eventually(lambda: daemon.metric("hmac_file_server_upload_errors_total", '{reason="timeout"}') == 1)
    assert daemon.files() == set()


def test_a_reader_that_drips(make_daemon: MakeDaemon) -> None:
    """A reader that takes less than MinRate is cut off."""
    daemon = make_daemon(IdleTimeout=1, MinRate="64MiB").start()
    assert daemon.put("slot/a.bin", b"x" * (8 << 20)).status == 201
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", daemon.port))
        client.sendall(b"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(100)
        eventually(lambda: daemon.metric("hmac_file_server_downloads_broken_total") == 1)


def test_too_many_connections(make_daemon: MakeDaemon) -> None:
    """One connection too many is told so and closed; when others go there is room again."""
    daemon = make_daemon(MaxConnections=5).start()
    eventually(lambda: daemon.get("none").status == 404)
    wires = [daemon.wire() for _ in range(5)]
    for wire in wires:
        wire.send(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.answer().status == 404
    with daemon.wire() as extra:
        answer = extra.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert extra.rest() == b""
    wires.pop().close()
    eventually(lambda: daemon.get("none").status == 404)
    for wire in wires:
        wire.close()


def test_too_many_from_one_address(make_daemon: MakeDaemon) -> None:
    """One address can not take all connections; another address is served."""
    daemon = make_daemon(MaxConnectionsPerAddress=3, TrustedProxies=[]).start()
    eventually(lambda: daemon.descriptors() and daemon.get("none").status == 404)
    wires = [daemon.wire().send(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(3)]
    assert [wire.answer().status for wire in wires] == [404] * 3
    for _ in range(10):
        with daemon.wire() as extra:
            assert extra.answer().status == 429
    eventually(lambda: daemon.metric("hmac_file_server_refusals_total", '{reason="connections"}') == 10)
    eventually(lambda: "127.0.0.1 was refused a connection: too many at once from 127.0.0.1: 3 (Max" in daemon.log)
    with socket.create_connection(("127.0.0.1", daemon.port), source_address=("127.0.0.2", 0)) as other:
        other.sendall(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 404 ")
    for wire in wires:
        wire.close()


def test_too_many_from_one_forwarded_address(make_daemon: MakeDaemon) -> None:
    """Behind a trusted proxy the limit holds for each address that the proxy names."""
    daemon = make_daemon(MaxConnectionsPerAddress=2).start()
    uploads = []
    for number in range(2):
        head = put_head(f"slot{number}/a.bin", 100).replace(HEAD, HEAD + b"X-Forwarded-For: 192.0.2.7\r\n")
        uploads.append(daemon.wire().send(head))
    eventually(lambda: daemon.running() == 2)
    assert daemon.get("none", X_Forwarded_For="192.0.2.7").status == 429
    assert daemon.get("none", X_Forwarded_For="192.0.2.8").status == 404
    assert daemon.get("none").status == 404
    for upload in uploads:
        upload.close()
    eventually(lambda: daemon.get("none", X_Forwarded_For="192.0.2.7").status == 404)


def test_endless_pipelining(daemon: Daemon) -> None:
    """Requests that are sent without reading the answers do not pile up in memory."""
    assert daemon.put("slot/a.bin", b"x" * 60_000).status == 201
    before = daemon.resident()
    with socket.create_connection(("127.0.0.1", daemon.port)) as client:
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.sendall(b"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000_000)
        assert daemon.get("slot/a.bin").status == 200
        assert daemon.resident() - before < 50 << 20


def test_half_closed(daemon: Daemon) -> None:
    """A client that closes its side in the middle of a body has broken off; nothing stays."""
    with daemon.wire() as wire:
        wire.send(put_head("slot/a.bin", 100) + b"x" * 50)
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""
    eventually(lambda: daemon.metric("hmac_file_server_upload_errors_total", '{reason="broken_off"}') == 1)
    assert daemon.files() == set()


def test_out_of_descriptors(make_daemon: MakeDaemon) -> None:
    """Without descriptors no connection is served, nothing spins, and later all is as before."""
    daemon = make_daemon(MaxConnections=100000).start()
    eventually(lambda: daemon.put("slot/a.bin", b"hello").status == 201)
    used = daemon.descriptors()
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
    wires = []
    for _ in range(60):
        with contextlib.suppress(OSError):
            wires.append(daemon.wire())
    eventually(lambda: daemon.descriptors() >= used + 15)
    cpu = sum(map(int, Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    held = daemon.log.count("\n")
    for wire in wires:
        wire.close()
    eventually(lambda: daemon.descriptors() <= used + 2)
    assert eventually(lambda: daemon.get("slot/a.bin")).body == b"hello"
    after = sum(map(int, Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    assert after - cpu < 200
    assert daemon.log.count("\n") - held < 1000


def unread(daemon: Daemon) -> socket.socket:
    """A client that reads nothing, with little room for what it is sent."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect(("127.0.0.1", daemon.port))
    client.settimeout(2)
    return client


def send_until_it_blocks(client: socket.socket, data: bytes, most: int) -> int:
    sent = 0
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < most:
            sent += client.send(data)
    return sent


@pytest.mark.parametrize(
    "first", [b"", b"GET /upload/big/a.bin HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["answers", "after a download"]
)
@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2000, b"x" * 65536], ids=["requests", "junk"])
def test_a_client_that_only_sends(daemon: Daemon, first: bytes, data: bytes) -> None:
    """A client that sends without end, and never reads, is not read for ever, and takes no memory."""
    assert daemon.put("big/a.bin", b"x" * (8 << 20)).status == 201
    before = daemon.resident()
    with unread(daemon) as client:
        client.sendall(first)
        assert send_until_it_blocks(client, data, 256 << 20) < 64 << 20
        assert daemon.resident() - before < 24 << 20
        assert daemon.get("big/a.bin", Range="bytes=0-0").status == 206


def test_one_small_file_after_the_other(daemon: Daemon) -> None:
    """Answers to a client that asks on and on without reading do not pile up."""
    assert daemon.put("small/a.bin", b"x" * 65536).status == 201
    before = daemon.resident()
    request = b"GET /upload/small/a.bin HTTP/1.1\r\nHost: a\r\n\r\n"
    with unread(daemon) as client:
        for _ in range(1200):
            client.sendall(request)
            daemon.get("small/a.bin", Range="bytes=0-0")  # So that each is read on its own.
        assert daemon.resident() - before < 24 << 20


def test_pipelined_behind_a_download(daemon: Daemon) -> None:
    """However many answers wait when a download begins, what is asked for behind it is answered."""
    assert daemon.put("f/f", b"f" * 64950).status == 201
    assert daemon.put("f/big", b"b" * (1 << 20)).status == 201
    request = "GET /upload/f/%s HTTP/1.1\r\nHost: a\r\n\r\n"
    for number in range(1, 90, 4):
        with daemon.wire() as wire:
            wire.send(((request % "f") * number + request % "big" + (request % "f") * 2).encode())
            sizes = [len(wire.answer().body) for _ in range(number + 3)]
        assert sizes == [64950] * number + [1 << 20] + [64950] * 2


def test_disk_keeps_a_waiting_client_waiting(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A client that waits for 100 Continue while the disk is tried again hears how that ended."""
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=30", "none", folder]):
        missing("a file system can not be mounted")
    try:
        settings = {"StoreDir": str(folder), "UploadTimeout": 1, "RetryDelay": 1, "MaxRetries": 3, "MinFreeSpace": 0}
        daemon = make_daemon(**settings).start()
        with contextlib.suppress(OSError):
            for number in range(60):
                (folder / str(number)).touch()
        with daemon.wire() as wire:
            size = 2_000_000
            head = f"PUT {put_target('a/x', size)} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n"
            wire.send(f"{head}Expect: 100-continue\r\n\r\n".encode())
            assert wire.answer().status == 507
        daemon.stop()
    finally:
        subprocess.call(["umount", folder])
