"""Files on a slow disk that are not in memory, or not all of them: nobody else waits while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.slow_disk import SlowDisk, slow_disk
from tests.support import Daemon, eventually, missing

MakeDaemon = Callable[..., Daemon]

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    with slow_disk(tmp_path) as mounted:
        yield mounted


def chill(path: Path) -> None:
    """Have the kernel forget what is in a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(descriptor, [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT)
            missing("this file system keeps files in memory")
        except BlockingIOError:
            pass
    finally:
        os.close(descriptor)


def links(daemon: Daemon) -> list[str]:
    """What the daemon has open."""
    found = []
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("warmed", [[], ["bytes=0-0", "bytes=-1"], ["bytes=500000-500000"]], ids=str)
@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=100000-", "bytes=0-9,200000-799999,-70000"])
@pytest.mark.parametrize("size", [MIB, 3 * MIB])
def test_a_cold_file(make_daemon: MakeDaemon, disk: SlowDisk, size: int, asked: str, warmed: list[str]) -> None:
    """Whatever of a file is in memory, while the rest comes from the disk others are answered."""
    daemon = make_daemon(StoreDir=str(disk.folder), MinFreeSpace=0).start()
    body = os.urandom(size)
    assert daemon.put("slot/a.bin", body).status == 201
    eventually(lambda: not any("a.bin" in link for link in links(daemon)))
    chill(disk.folder / "slot/a.bin")
    for part in warmed:
        assert daemon.get("slot/a.bin", Range=part).status == 206
    disk.slow_down(daemon, size // 2)
    with daemon.wire() as wire, daemon.wire() as other:
        wire.send(f"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\nRange: {asked}\r\n\r\n".encode())
        wire.socket.settimeout(0)
        answered = 0
        got = bytearray()
        while b"\r\n\r\n" not in got or len(got) < whole(bytes(got)):
            other.send(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
            assert other.answer().status == 404
            answered += 1
            try:
                while data := wire.socket.recv(1 << 20):
                    got += data
            except BlockingIOError:
                continue
    assert answered > 20
    content = got.partition(b"\r\n\r\n")[2]
    assert body[200_000:800_000] in content
    assert "," in asked or body.endswith(content)


def whole(answer: bytes) -> int:
    """How long an answer is, by its headers."""
    head, end, _ = answer.partition(b"\r\n\r\n")
    return len(head + end) + int(head.lower().partition(b"content-length: ")[2].split()[0])
