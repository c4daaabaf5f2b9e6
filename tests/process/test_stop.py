"""Stopping: what runs may finish, nothing new begins, and nothing half done stays."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import DEADLINE, Daemon, Wire, eventually, put_target

MakeDaemon = Callable[..., Daemon]

SIGNALS = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
LONG = {"ShutdownTimeout": DEADLINE * 10}


def begin_upload(daemon: Daemon, path: str, body: bytes) -> Wire:
    """An upload with one byte still to come."""
    running = daemon.running()
    head = f"PUT {put_target(path, len(body))} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    wire = daemon.wire().send(head.encode() + body[:-1])
    eventually(lambda: daemon.running() == running + 1)
    return wire


def begin_download(daemon: Daemon, path: str) -> socket.socket:
    """A download that has sent no more than what fits into small buffers."""
    client = socket.socket()
    client.settimeout(DEADLINE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect(("127.0.0.1", daemon.port))
    client.sendall(f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert client.recv(12) == b"HTTP/1.1 200"
    return client


def stopping(daemon: Daemon, how: int) -> None:
    """Send the signal and wait until no new connection is taken."""
    os.kill(daemon.pid, how)

    def refused() -> bool:
        try:
            daemon.wire().close()
        except ConnectionError:
            return True
        return False

    eventually(refused, what="new connections are refused")


def ended(daemon: Daemon, how: int) -> None:
    """Wait for the end, which must be an orderly one."""
    assert daemon.process is not None
    # A supervisor takes either for a clean stop.
    assert daemon.process.wait(DEADLINE) in (0, -how, 128 + how)
    assert "Traceback" not in daemon.log


@SIGNALS
def test_nothing_to_wait_for(make_daemon: MakeDaemon, how: int) -> None:
    """Without requests the daemon ends at once; idle connections, used or not, do not hold it up."""
    daemon = make_daemon(**LONG).start()
    with daemon.wire() as unused, daemon.wire() as used:
        assert used.send(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
        os.kill(daemon.pid, how)
        assert unused.rest() == b""
        assert used.rest() == b""
        ended(daemon, how)


@SIGNALS
def test_a_running_upload(make_daemon: MakeDaemon, how: int) -> None:
    """An upload that runs when the daemon is stopped is finished, stored and answered; then the daemon ends."""
    daemon = make_daemon(**LONG).start()
    body = os.urandom(3_000_000)
    with begin_upload(daemon, "slot/a.bin", body) as wire:
        stopping(daemon, how)
        answer = wire.send(body[-1:]).answer()
        assert (answer.status, answer.headers.get("connection")) == (201, "close")
        assert wire.rest() == b""
    ended(daemon, how)
    assert (daemon.store / "slot/a.bin").read_bytes() == body
    assert daemon.files() == {"slot/a.bin"}


@SIGNALS
def test_a_running_download(make_daemon: MakeDaemon, how: int) -> None:
    """A download that runs when the daemon is stopped comes whole; then the daemon ends."""
    daemon = make_daemon(**LONG).start()
    body = os.urandom(20 << 20)
    assert daemon.put("slot/a.bin", body).status == 201
    with begin_download(daemon, "slot/a.bin") as client:
        stopping(daemon, how)
        digest, size, rest = hashlib.sha256(), 0, b""
        while b"\r\n\r\n" not in rest:
            rest += client.recv(1 << 16)
        data = rest.partition(b"\r\n\r\n")[2]
        while data:
            digest.update(data)
            size += len(data)
            data = client.recv(1 << 20)
    assert (size, digest.digest()) == (len(body), hashlib.sha256(body).digest())
    ended(daemon, how)


@SIGNALS
@pytest.mark.parametrize("method", ["PUT", "GET", "OPTIONS"])
def test_new_requests(make_daemon: MakeDaemon, method: str, how: int) -> None:
    """A request whose headers are complete only after the signal is told to come again, on a new connection."""
    daemon = make_daemon(**LONG).start()
    target = put_target("slot/a.bin", 5)
    with daemon.wire() as wire:
        # An answer first, so that the daemon has surely taken the connection.
        assert wire.send(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
        with begin_upload(daemon, "slot/b.bin", b"hello") as other:
            wire.send(f"{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Le".encode())
            arrived(wire)
            stopping(daemon, how)
            wire.send(b"ngth: 5\r\n\r\nhello" if method == "PUT" else b"ngth: 0\r\n\r\n")
            answer = wire.answer()
            assert answer.status == 503
            assert answer.headers["connection"] == "close"
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["access-control-allow-origin"] == "*"
            assert wire.rest() == b""
            assert other.send(b"o").answer().status == 201
    ended(daemon, how)
    assert daemon.files() == {"slot/b.bin"}


def arrived(wire: Wire) -> None:
    """Wait until the daemon has read all that was sent to it."""
    port = wire.socket.getpeername()[1]
    mine = wire.socket.getsockname()[1]

    def read() -> bool:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            local, remote, _, queues = line.split()[1:5]
            if int(local[-4:], 16) == port and int(remote[-4:], 16) == mine:
                return int(queues.partition(":")[2], 16) == 0
        return False

    eventually(read, what="the daemon reads")


@SIGNALS
def test_a_request_behind_a_running_one(make_daemon: MakeDaemon, how: int) -> None:
    """What is pipelined behind a running upload does not begin: its slot stays free."""
    daemon = make_daemon(**LONG).start()
    with begin_upload(daemon, "slot/a.bin", b"hello") as wire:
        stopping(daemon, how)
        second = f"PUT {put_target('slot/b.bin', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        answered = wire.send(b"o" + second.encode()).rest()
    assert answered.startswith(b"HTTP/1.1 201 ")
    assert answered.count(b"HTTP/1.1 201 ") == 1
    ended(daemon, how)
    assert daemon.files() == {"slot/a.bin"}


@SIGNALS
@pytest.mark.parametrize("timeout", [0, 1])
def test_what_does_not_end(make_daemon: MakeDaemon, timeout: int, how: int) -> None:
    """At ShutdownTimeout whatever still runs is cut off, the daemon ends, and nothing half done stays."""
    daemon = make_daemon(ShutdownTimeout=timeout).start()
    assert daemon.put("slot/whole.bin", b"x" * (20 << 20)).status == 201
    large = os.urandom(5_000_000)
    uploads = [begin_upload(daemon, f"stalled{number}/a/b.bin", large) for number in range(5)]
    headers = daemon.wire().send(b"PUT /upload/slot/c.bin HTTP/1.1\r\nHost: a\r\n")
    refused = daemon.wire().send(b"PUT /upload/slot/c.bin HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
    assert refused.answer().status == 403
    download = begin_download(daemon, "slot/whole.bin")
    os.kill(daemon.pid, how)
    ended(daemon, how)
    for wire in (*uploads, headers, refused):
        assert wire.rest() == b""
        wire.close()
    download.close()
    assert daemon.files() == {"slot/whole.bin"}
    assert {place.name for place in daemon.store.iterdir()} == {"slot", ".hmac-file-server"}
    assert (daemon.store / "slot/whole.bin").read_bytes() == b"x" * (20 << 20)


def test_a_slot_that_was_cut_off(make_daemon: MakeDaemon) -> None:
    """After a restart the slot of an upload that was cut off works."""
    daemon = make_daemon(ShutdownTimeout=0).start()
    body = os.urandom(2_000_000)
    with begin_upload(daemon, "slot/a.bin", body):
        daemon.stop()
    daemon.start()
    assert daemon.get("slot/a.bin").status == 404
    assert daemon.put("slot/a.bin", body).status == 201
    assert daemon.get("slot/a.bin").body == body


@SIGNALS
def test_a_second_signal(make_daemon: MakeDaemon, how: int) -> None:
    """A second signal, from an impatient hand, changes nothing: the running upload is still finished."""
    daemon = make_daemon(**LONG).start()
    with begin_upload(daemon, "slot/a.bin", b"hello") as wire:
        stopping(daemon, how)
        os.kill(daemon.pid, how)
        assert wire.send(b"o").answer().status == 201
    ended(daemon, how)
    assert (daemon.store / "slot/a.bin").read_bytes() == b"hello"
    assert "Traceback" not in daemon.log


def test_not_ready_while_stopping(make_daemon: MakeDaemon) -> None:
    """A load balancer that asks /readyz is told that the daemon stops; figures can be read until the end."""
    daemon = make_daemon(**LONG).start()
    with begin_upload(daemon, "slot/a.bin", b"hello") as wire:
        stopping(daemon, signal.SIGTERM)
        with Wire(daemon.metrics_port) as metrics:
            answer = metrics.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").answer()
            assert (answer.status, answer.body) == (503, b"stopping\n")
        assert daemon.running() == 1
        assert wire.send(b"o").answer().status == 201
    ended(daemon, signal.SIGTERM)


@SIGNALS
def test_under_load(make_daemon: MakeDaemon, how: int) -> None:
    """Stopped under load, the daemon keeps each file that it answered with 201, whole, and no other's half."""
    daemon = make_daemon(Fsync=False).start()
    acknowledged: dict[str, bytes] = {}
    tried: dict[str, bytes] = {}

    def upload(client: int) -> None:
        for number in range(10_000):
            path, body = f"load{client}/{number}.bin", os.urandom(50_000)
            tried[path] = body
            try:
                if daemon.put(path, body).status != 201:
                    return
            except (OSError, EOFError):
                return
            acknowledged[path] = body

    threads = [threading.Thread(target=upload, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) > 20)
    os.kill(daemon.pid, how)
    ended(daemon, how)
    for thread in threads:
        thread.join(DEADLINE)
    stored = {name: (daemon.store / name).read_bytes() for name in daemon.files()}
    assert [path for path, body in acknowledged.items() if stored.get(path) != body] == []
    assert [path for path, body in stored.items() if tried[path] != body] == []
