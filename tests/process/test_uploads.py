"""Uploads of every size, many at once and broken off; memory stays flat and nothing is left open.

``BIG_GIB`` is the size of the large one (1), ``SLOW_CLIENTS`` how many stall at once (300).
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import DEADLINE, Answer, Daemon, Wire, eventually, put_head

MakeDaemon = Callable[..., Daemon]

BIG = int(os.environ.get("BIG_GIB", "1")) << 30
SLOW_CLIENTS = int(os.environ.get("SLOW_CLIENTS", "300"))
MIB = 1 << 20


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for tests that need no settings of their own."""
    daemon = Daemon(tmp_path_factory.mktemp("uploads"), ChunkSize=65536, MinFreeSpace=0).start()
    try:
        yield daemon
        assert "Traceback" not in daemon.log
    finally:
        daemon.stop()


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The shared daemon with an empty store."""
    yield shared
    for place in shared.store.iterdir():
        if place.name != ".hmac-file-server":
            shutil.rmtree(place)


def memory(daemon: Daemon, what: str) -> int:
    """Bytes: VmRSS for now, VmHWM for the most there ever was."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) << 10


def opened(daemon: Daemon) -> list[str]:
    """What the daemon has open below its store, but for the store's own folders."""
    found = []
    for descriptor in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = str(descriptor.readlink())
            if name.startswith(f"{daemon.store}/") and name != f"{daemon.store}/.hmac-file-server":
                found.append(name)
    return found


def nothing_stays(daemon: Daemon) -> None:
    """Neither files nor folders, neither open nor counted."""
    eventually(lambda: daemon.running() == 0, what="no upload runs")
    eventually(lambda: opened(daemon) == [], what="nothing is open")
    assert daemon.files() == set()
    assert [place.name for place in daemon.store.iterdir()] == [".hmac-file-server"]


# Sizes


@pytest.mark.parametrize("chunk_size", [4096, 65536, MIB])
def test_every_size(make_daemon: MakeDaemon, chunk_size: int) -> None:
    """Bodies around all sizes at which something changes inside are stored byte for byte, the empty one too."""
    daemon = make_daemon(ChunkSize=chunk_size, MinFreeSpace=0).start()
    around = {chunk_size, 2 * chunk_size, 3 * chunk_size, 65536, 262144, MIB}
    sizes = sorted({0, 1, 2} | {size + more for size in around for more in (-1, 0, 1)})
    for size in sizes:
        body = os.urandom(size)
        assert daemon.put(f"slot/{size}.bin", body).status == 201
        assert (daemon.store / f"slot/{size}.bin").read_bytes() == body
        answer = daemon.get(f"slot/{size}.bin")
        assert (answer.body, answer.headers["content-length"]) == (body, str(size))
    assert daemon.files() == {f"slot/{size}.bin" for size in sizes}
    eventually(lambda: opened(daemon) == [], what="nothing is open")


@pytest.mark.parametrize("piece", [1, 7, 1000, 4095, 4096, 4097, 100_000])
def test_every_piece(daemon: Daemon, piece: int) -> None:
    """However a body is cut on its way, and wherever the headers end in it, the file is the body."""
    body = os.urandom(min(300_000, piece * 6000))
    request = put_head("slot/a.bin", len(body)) + body
    with daemon.wire() as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(0, len(request), piece):
            wire.send(request[position : position + piece])
        assert wire.answer().status == 201
    assert (daemon.store / "slot/a.bin").read_bytes() == body


def test_a_large_file(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A body of a GiB, or more, goes through to the disk and back without staying in memory."""
    if shutil.disk_usage(tmp_path).free < 2 * BIG + (1 << 30):
        pytest.skip("too little free space")
    daemon = make_daemon(Fsync=False, MinFreeSpace=0).start()
    # Once before, so that what is made for the first request does not count.
    assert daemon.put("slot/small.bin", os.urandom(3 * MIB)).status == 201
    assert len(daemon.get("slot/small.bin").body) == 3 * MIB
    before = memory(daemon, "VmHWM")
    chance = random.Random(3)
    source, stored = tmp_path / "source", daemon.store / "slot/a.bin"
    try:
        with source.open("wb") as file:
            file.truncate(BIG)
            for _ in range(50):
                file.seek(chance.randrange(BIG - 1000))
                file.write(chance.randbytes(1000))
        with daemon.wire() as wire, source.open("rb") as file:
            wire.socket.settimeout(DEADLINE * 10)
            wire.send(put_head("slot/a.bin", BIG))
            wire.socket.sendfile(file)
            assert wire.answer().status == 201
        assert stored.stat().st_size == BIG
        expected = checksum(iter_file(source))
        assert checksum(iter_file(stored)) == expected
        assert checksum(iter_download(daemon, "slot/a.bin")) == expected
        assert memory(daemon, "VmHWM") - before < 32 * MIB
    finally:
        source.unlink(missing_ok=True)
        stored.unlink(missing_ok=True)


def checksum(pieces: Iterator[bytes]) -> tuple[int, int]:
    """Length and checksum."""
    size = value = 0
    for piece in pieces:
        size += len(piece)
        value = zlib.crc32(piece, value)
    return size, value


def iter_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(MIB):
            yield piece


def iter_download(daemon: Daemon, path: str) -> Iterator[bytes]:
    with daemon.wire() as wire:
        wire.send(f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        top = b""
        while b"\r\n\r\n" not in top:
            top += wire.socket.recv(1)
        while piece := wire.socket.recv(MIB):
            yield piece


# Many


def test_many_slow_clients(make_daemon: MakeDaemon) -> None:
    """Hundreds that stall in the middle of their bodies share a small memory; those that go on end well."""
    daemon = make_daemon(Fsync=False, MinFreeSpace=0, UploadTimeout=600, MaxConnections=SLOW_CLIENTS + 100).start()
    body = os.urandom(MIB)
    half = MIB // 2
    assert daemon.put("slot/first.bin", body).status == 201
    before = memory(daemon, "VmHWM")
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire()) for _ in range(SLOW_CLIENTS)]
        for number, wire in enumerate(wires):
            wire.send(put_head(f"slow{number}/a.bin", MIB) + body[:half])
        eventually(lambda: daemon.running() == SLOW_CLIENTS, DEADLINE * 5)
        eventually(lambda: daemon.unread() == 0, DEADLINE * 5)
        assert daemon.put("slot/quick.bin", body).status == 201
        assert daemon.get("slot/quick.bin").body == body
        # Half of all bodies together would be half a MiB a client.
        assert memory(daemon, "VmHWM") - before < 48 * MIB + SLOW_CLIENTS * (64 << 10)
        for wire in wires[1::2]:
            wire.close()
        for wire in wires[::2]:
            wire.send(body[half:])
        for wire in wires[::2]:
            assert wire.answer().status == 201
    eventually(lambda: daemon.running() == 0)
    whole = {f"slow{number}/a.bin" for number in range(0, SLOW_CLIENTS, 2)}
    assert daemon.files() == whole | {"slot/first.bin", "slot/quick.bin"}
    assert [name for name in whole if (daemon.store / name).read_bytes() != body] == []
    assert not (daemon.store / "slow1").exists()
    eventually(lambda: opened(daemon) == [], what="nothing is open")


def at_once(count: int, act: Callable[[int], Answer]) -> list[int]:
    """Do something so many times at the same moment; the statuses."""
    gate = threading.Barrier(count)

    def run(number: int) -> int:
        gate.wait(DEADLINE)
        return act(number).status

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_a_hundred_at_once(make_daemon: MakeDaemon) -> None:
    """A hundred uploads at the same moment are all stored, each with its own bytes."""
    daemon = make_daemon(MinFreeSpace=0).start()
    chance = random.Random(11)
    bodies = [chance.randbytes(chance.choice((0, 10, 5000, 70_000, 300_000, 2_000_000))) for _ in range(100)]
    assert at_once(100, lambda number: daemon.put(f"slot{number}/a.bin", bodies[number])) == [201] * 100
    assert daemon.files() == {f"slot{number}/a.bin" for number in range(100)}
    assert [n for n, body in enumerate(bodies) if (daemon.store / f"slot{n}/a.bin").read_bytes() != body] == []
    assert daemon.metric("hmac_file_server_uploads_total") == 100
    eventually(lambda: opened(daemon) == [], what="nothing is open")


def test_a_hundred_into_one_folder(daemon: Daemon) -> None:
    """Uploads that all need the same new folders do not get into each other's way."""
    statuses = at_once(100, lambda number: daemon.put(f"a/b/c/{number}.bin", b"%d" % number))
    assert statuses == [201] * 100
    assert {name: (daemon.store / name).read_bytes() for name in daemon.files()} == {
        f"a/b/c/{number}.bin": b"%d" % number for number in range(100)
    }


@pytest.mark.parametrize("size", [10, 200_000])
def test_one_slot_at_once(make_daemon: MakeDaemon, size: int) -> None:
    """Of uploads to one slot with different bytes one is stored, and the others are told; same bytes are all 201."""
    daemon = make_daemon(MinFreeSpace=0, RetryDelay=0.05, MaxRetries=1000).start()
    bodies = [bytes([number]) * size for number in range(20)]
    statuses = at_once(20, lambda number: daemon.put("slot/a.bin", bodies[number]))
    assert sorted(statuses) == [201] + [409] * 19
    assert (daemon.store / "slot/a.bin").read_bytes() == bodies[statuses.index(201)]
    assert at_once(20, lambda number: daemon.put("slot/b.bin", bodies[0])) == [201] * 20
    assert (daemon.store / "slot/b.bin").read_bytes() == bodies[0]
    assert daemon.files() == {"slot/a.bin", "slot/b.bin"}


# Broken off


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [0, 1, 65535, 65536, 65537, 200_000, 2_999_999])
def test_broken_off(daemon: Daemon, sent: int, reset: bool) -> None:
    """Of an upload that breaks off nothing stays, neither file nor folder, and its slot works again."""
    broken = daemon.metric("hmac_file_server_upload_errors_total", '{reason="broken_off"}')
    body = os.urandom(3_000_000)
    with daemon.wire() as wire:
        wire.send(put_head("slot/sub/a.bin", len(body)) + body[:sent])
        eventually(lambda: daemon.running() == 1)
        eventually(lambda: daemon.unread() == 0)
        if reset:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: daemon.metric("hmac_file_server_upload_errors_total", '{reason="broken_off"}') == broken + 1)
    nothing_stays(daemon)
    assert daemon.get("slot/sub/a.bin").status == 404
    assert daemon.put("slot/sub/a.bin", body).status == 201
    assert daemon.get("slot/sub/a.bin").body == body


@pytest.mark.parametrize("size", [5, 200_000, 3_000_000])
def test_leaving_with_the_last_byte(make_daemon: MakeDaemon, size: int) -> None:
    """A client that closes with its last byte has uploaded its file: that is stored, and counts as stored."""
    daemon = make_daemon(MinFreeSpace=0).start()
    for number in range(20):
        with daemon.wire() as wire:
            wire.send(put_head(f"slot{number}/a.bin", size) + bytes([number]) * size)
    eventually(lambda: daemon.metric("hmac_file_server_uploads_total") == 20)
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="broken_off"}') == 0
    assert daemon.files() == {f"slot{number}/a.bin" for number in range(20)}
    assert "broken off" not in daemon.log


def test_broken_off_beside_others(daemon: Daemon) -> None:
    """What breaks off takes nothing away from what is in the same folder."""
    assert daemon.put("slot/a.bin", b"hello").status == 201
    with daemon.wire().send(put_head("slot/b.bin", 100) + b"x" * 50):
        eventually(lambda: daemon.running() == 1)
    eventually(lambda: daemon.running() == 0)
    assert daemon.files() == {"slot/a.bin"}
    assert daemon.get("slot/a.bin").body == b"hello"


def test_broken_off_under_another(daemon: Daemon) -> None:
    """An upload is stored though another one of the same slot breaks off beside it."""
    body = os.urandom(200_000)
    with daemon.wire() as first:
        first.send(put_head("slot/a.bin", len(body)) + body[:-1])
        eventually(lambda: daemon.running() == 1)
        assert daemon.put("slot/a.bin", body).status == 201
    eventually(lambda: daemon.running() == 0)
    assert (daemon.store / "slot/a.bin").read_bytes() == body
    assert daemon.files() == {"slot/a.bin"}


def test_an_upload_that_stalls(make_daemon: MakeDaemon) -> None:
    """A body that stalls for UploadTimeout is cut off; nothing stays, and its slot works again."""
    daemon = make_daemon(UploadTimeout=1).start()
    with daemon.wire().send(put_head("slot/a.bin", 100_000) + b"x" * 50_000) as wire:
        assert wire.rest() == b""
    nothing_stays(daemon)
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="timeout"}') == 1
    assert daemon.put("slot/a.bin", b"x" * 100_000).status == 201


# One connection


def test_put_then_get_pipelined(daemon: Daemon) -> None:
    """A GET that is sent right behind the body of its PUT is answered with the file."""
    for size in (0, 5, 70_000, 2_000_000):
        body = os.urandom(size)
        get = f"GET /upload/slot/{size}.bin HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        with daemon.wire() as wire:
            # In a thread: the answers may have to be read before all is sent.
            sender = threading.Thread(target=wire.send, args=(get + put_head(f"slot/{size}.bin", size) + body + get,))
            sender.start()
            assert wire.answer().status == 404
            assert wire.answer().status == 201
            assert wire.answer().body == body
            sender.join()


def test_many_puts_on_one_connection(make_daemon: MakeDaemon) -> None:
    """A client that keeps its connection uploads one file after the other over it, and nothing stays open."""
    daemon = make_daemon(Fsync=False, MinFreeSpace=0).start()
    chance = random.Random(13)
    bodies = [chance.randbytes(chance.choice((0, 100, 20_000, 100_000))) for _ in range(300)]
    with daemon.wire() as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, body in enumerate(bodies):
            expect = ["Expect: 100-continue"] if body and number % 3 == 0 else []
            wire.send(put_head(f"slot/{number}.bin", len(body), *expect))
            if expect:
                assert wire.answer().status == 100
            assert wire.send(body).answer().status == 201
        eventually(lambda: opened(daemon) == [], what="nothing is open")
    assert {n: (daemon.store / f"slot/{n}.bin").read_bytes() for n in range(300)} == dict(enumerate(bodies))


# Readers


def begin_download(daemon: Daemon, path: str) -> Wire:
    """A download that stays far from its end: little fits into the client's buffer."""
    wire = daemon.wire()
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    wire.send(f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert wire.socket.recv(12) == b"HTTP/1.1 200"
    return wire


def broken(daemon: Daemon) -> float:
    return daemon.metric("hmac_file_server_downloads_broken_total")


@pytest.mark.parametrize("leaves", [False, True])
def test_a_reader_that_stops(make_daemon: MakeDaemon, leaves: bool) -> None:
    """A reader that takes nothing for IdleTimeout is cut off, and its file closed; one that leaves, at once."""
    daemon = make_daemon(IdleTimeout=600 if leaves else 1).start()
    size = 30 * MIB
    assert daemon.put("slot/a.bin", bytes(size)).status == 201
    with begin_download(daemon, "slot/a.bin") as wire:
        eventually(lambda: opened(daemon) or broken(daemon), what="the file is open")
        if leaves:
            wire.close()
        eventually(lambda: opened(daemon) == [], what="the file is closed")
        if not leaves:
            assert len(wire.rest()) < size
    eventually(lambda: broken(daemon) == 1)
    assert len(daemon.get("slot/a.bin").body) == size
    assert ("timed out" in daemon.log) == (not leaves)


def test_many_readers_that_stop(make_daemon: MakeDaemon) -> None:
    """A hundred readers that stop cost neither memory nor, after IdleTimeout, descriptors."""
    daemon = make_daemon(IdleTimeout=1).start()
    assert daemon.put("slot/a.bin", bytes(30 * MIB)).status == 201
    assert len(daemon.get("slot/a.bin").body) == 30 * MIB
    descriptors = Path(f"/proc/{daemon.pid}/fd")
    before, idle = memory(daemon, "VmHWM"), len(list(descriptors.iterdir()))
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(begin_download(daemon, "slot/a.bin"))
        assert memory(daemon, "VmHWM") - before < 32 * MIB
        eventually(lambda: len(list(descriptors.iterdir())) <= idle, what="the descriptors are released")
    assert broken(daemon) == 100


def test_an_idle_connection(make_daemon: MakeDaemon) -> None:
    """A connection on which nothing is asked for IdleTimeout is closed, before its first request and after."""
    daemon = make_daemon(IdleTimeout=1).start()
    with daemon.wire() as unused, daemon.wire() as used:
        assert used.send(put_head("slot/a.bin", 5) + b"hello").answer().status == 201
        assert unused.rest() == b""
        assert used.rest() == b""
    assert daemon.files() == {"slot/a.bin"}
