"""Large bodies, of which the kernel moves most from the socket to the file while a thread only says so."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import DEADLINE, Daemon, Wire, eventually, need, put_head

MakeDaemon = Callable[..., Daemon]

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests that need no settings of their own. They use paths of their own."""
    shared = Daemon(tmp_path_factory.mktemp("large"), MinFreeSpace=0, ChunkSize=64 * KIB).start()
    try:
        idle = shared.descriptors()
        yield shared
        assert "Traceback" not in shared.log
        eventually(lambda: shared.descriptors() <= idle, what="nothing is left open")
    finally:
        shared.stop()


def get(path: str) -> bytes:
    return f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def begun(daemon: Daemon, wire: Wire, path: str, size: int, first: bytes) -> None:
    """Begin an upload and wait until all that has come of it is taken."""
    before = daemon.running()
    wire.send(put_head(path, size) + first)
    eventually(lambda: daemon.running() == before + 1)
    eventually(lambda: daemon.unread() == 0)


@pytest.mark.parametrize(
    "size",
    [
        MIB,
        MIB + 1,
        MIB + 64 * KIB,
        MIB + 64 * KIB + 1,
        4 * MIB,
        4 * MIB + 64 * KIB,
        4 * MIB + 128 * KIB + 1,
        9 * MIB - 1,
        20 * MIB + 7,
    ],
)
def test_byte_for_byte_and_not_one_more(daemon: Daemon, size: int) -> None:
    """The file is the body and ends where that ends, though the next request follows at once."""
    body = os.urandom(size)
    path = f"sizes/{size}.bin"
    with daemon.wire() as wire:
        sender = threading.Thread(target=wire.send, args=(put_head(path, size) + body + get(path) + get("none"),))
        sender.start()
        assert wire.answer().status == 201
        assert (daemon.store / path).read_bytes() == body
        assert wire.answer().body == body
        assert wire.answer().status == 404
        sender.join()


@pytest.mark.parametrize("seed", range(4))
def test_bodies_that_come_in_bursts(daemon: Daemon, seed: int) -> None:
    """However a body is cut, and wherever its sender pauses until all is taken, the file is the body."""
    chance = random.Random(seed)
    body = chance.randbytes(5 * MIB + chance.randrange(100))
    with daemon.wire() as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.send(put_head(f"bursts/{seed}.bin", len(body)))
        position = 0
        while position < len(body):
            size = chance.choice((1, 100, 4 * KIB, 64 * KIB, 300 * KIB, MIB))
            wire.send(body[position : position + size])
            position += size
            if chance.random() < 0.5:
                eventually(lambda: daemon.unread() == 0, what="all is taken")
        assert wire.answer().status == 201
    assert (daemon.store / f"bursts/{seed}.bin").read_bytes() == body


def test_many_at_once(daemon: Daemon) -> None:
    """Large bodies beside each other do not get mixed up."""
    bodies = [random.Random(number).randbytes(6 * MIB + number) for number in range(12)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = pool.map(lambda item: daemon.put(f"many/{item[0]}.bin", item[1]).status, enumerate(bodies))
        assert list(answers) == [201] * len(bodies)
    assert [n for n, body in enumerate(bodies) if (daemon.store / f"many/{n}.bin").read_bytes() != body] == []


def test_memory_of_many_at_once(make_daemon: MakeDaemon) -> None:
    """Eight large bodies at once leave a single process below 96 MiB."""
    daemon = make_daemon(MinFreeSpace=0, Fsync=False).start()
    body = bytes(64 * MIB)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: daemon.put(f"many/{number}.bin", body).status, range(8))
        assert list(answers) == [201] * 8
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 96 * KIB


def test_one_slot_at_once(daemon: Daemon) -> None:
    """Of large bodies for one slot one is stored and the others are told."""
    bodies = [bytes([number]) * (3 * MIB) for number in range(6)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        statuses = list(pool.map(lambda body: daemon.put("one/a.bin", body).status, bodies))
    assert sorted(statuses) == [201] + [409] * 5
    assert (daemon.store / "one/a.bin").read_bytes() == bodies[statuses.index(201)]


def test_others_are_served_meanwhile(daemon: Daemon) -> None:
    """While a large body stalls, on whichever way it is, others on other connections are answered."""
    body = os.urandom(3 * MIB)
    with daemon.wire() as wire:
        begun(daemon, wire, "meanwhile/a.bin", len(body), body[: 2 * MIB])
        assert daemon.put("meanwhile/b.bin", b"hello").status == 201
        assert daemon.get("meanwhile/b.bin").body == b"hello"
        assert wire.send(body[2 * MIB :]).answer().status == 201
    assert (daemon.store / "meanwhile/a.bin").read_bytes() == body


def test_a_client_that_waits_for_100(daemon: Daemon) -> None:
    """With Expect the body is called for first, and then stored."""
    body = os.urandom(3 * MIB)
    with daemon.wire() as wire:
        assert wire.send(put_head("expect/a.bin", len(body), "Expect: 100-continue")).answer().status == 100
        assert wire.send(body).answer().status == 201
    assert (daemon.store / "expect/a.bin").read_bytes() == body


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [64 * KIB, MIB, 4 * MIB + 100, 6 * MIB - 1])
def test_broken_off(make_daemon: MakeDaemon, sent: int, reset: bool) -> None:
    """When the client leaves, at once or after its bytes are taken, nothing stays, and the slot works again."""
    daemon = make_daemon(MinFreeSpace=0).start()
    body = os.urandom(6 * MIB)
    idle = daemon.descriptors()
    for waits in (True, False):
        with daemon.wire() as wire:
            if waits:
                begun(daemon, wire, "slot/a.bin", len(body), body[:sent])
            else:
                wire.send(put_head("slot/a.bin", len(body)) + body[:sent])
            if reset:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: daemon.running() == 0)
        assert daemon.files() == set()
        eventually(lambda: daemon.descriptors() <= idle, what="nothing is left open")
    assert daemon.put("slot/a.bin", body).status == 201
    assert (daemon.store / "slot/a.bin").read_bytes() == body


def test_a_stall_in_the_midst(make_daemon: MakeDaemon) -> None:
    """A body of which no more comes is cut off, and nothing stays."""
    daemon = make_daemon(MinFreeSpace=0, UploadTimeout=1).start()
    with daemon.wire().send(put_head("slot/a.bin", 6 * MIB) + bytes(4 * MIB + 100)) as wire:
        assert wire.rest() == b""
    eventually(lambda: daemon.running() == 0)
    assert daemon.files() == set()
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="timeout"}') == 1


def test_a_slow_body_is_not_a_stall(make_daemon: MakeDaemon) -> None:
    """A client that goes on in time, however large the body already is, is not cut off."""
    daemon = make_daemon(MinFreeSpace=0, UploadTimeout=4, MinRate=0).start()
    body = os.urandom(3 * MIB)
    with daemon.wire() as wire:
        begun(daemon, wire, "slot/a.bin", len(body), body[: 2 * MIB])
        position = 2 * MIB
        end = time.monotonic() + 8
        while time.monotonic() < end:
            wire.send(body[position : position + 10])
            position += 10
            eventually(lambda: daemon.unread() == 0)
        assert wire.send(body[position:]).answer().status == 201
    assert (daemon.store / "slot/a.bin").read_bytes() == body


def test_through_a_unix_socket(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """The kernel's way is the same from a Unix socket."""
    secret = "of-our-own"
    daemon = make_daemon(MinFreeSpace=0, ListenPort=f"unix:{tmp_path}/http", Secret=secret).start()
    body = os.urandom(6 * MIB)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(f"{tmp_path}/http")
        client.sendall(put_head("slot/a.bin", len(body), secret=secret) + body)
        assert client.recv(12) == b"HTTP/1.1 201"
    assert (daemon.store / "slot/a.bin").read_bytes() == body


@contextlib.contextmanager
def traced(daemon: Daemon, path: Path, *calls: str) -> Iterator[None]:
    """Let strace write down these system calls of a running daemon."""
    need("strace")
    options = ["-f", "-qq", "-s", "0", "-o", str(path), "-e", f"trace={','.join(calls)}"]
    tracer = subprocess.Popen(["strace", *options, "-p", str(daemon.pid)])
    try:
        threads = Path(f"/proc/{daemon.pid}/task")
        eventually(lambda: all("TracerPid:\t0" not in (task / "status").read_text() for task in threads.iterdir()))
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def test_most_of_it_goes_through_the_kernel(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Of a large body the process itself reads and writes next to nothing."""
    daemon = make_daemon(MinFreeSpace=0).start()
    with traced(daemon, tmp_path / "trace", "recvfrom", "recvmsg", "read", "write", "writev", "splice"):
        assert daemon.put("slot/a.bin", bytes(20 * MIB)).status == 201
    moved = {"splice": 0, "other": 0}
    for line in (tmp_path / "trace").read_text().splitlines():
        result = line.rpartition(" = ")[2].split()
        if result and result[0].isdecimal():
            moved["splice" if "splice" in line else "other"] += int(result[0])
    assert moved["splice"] > 2 * 15 * MIB
    assert moved["other"] < 10 * MIB


@pytest.mark.parametrize("fsync", [True, False])
def test_the_disk_begins_before_the_end(make_daemon: MakeDaemon, tmp_path: Path, fsync: bool) -> None:
    """While a large body arrives the disk is given what is there, part by part, so that little waits for its end."""
    daemon = make_daemon(MinFreeSpace=0, Fsync=fsync).start()
    size = 20 * MIB
    with traced(daemon, tmp_path / "trace", "sync_file_range", "fsync"):
        assert daemon.put("slot/a.bin", os.urandom(size)).status == 201
    lines = (tmp_path / "trace").read_text().splitlines()
    parts = [
        tuple(map(int, found.groups())) for line in lines if (found := re.search(r"range\(\d+, (\d+), (\d+)", line))
    ]
    if not fsync:
        assert lines == []
        return
    ends = [offset + length for offset, length in parts]
    assert [offset for offset, _ in parts] == [0, *ends[:-1]]
    assert size - 8 * MIB < ends[-1] <= size
    assert "sync_file_range" in lines[0]
