"""A disk that does not answer at all: bindfs under the store, stopped. The reactor waits for nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.neighbours.program import Program, find
from tests.support import Daemon, eventually, missing, need, put_target
from tests.watchdog import never_late

MakeDaemon = Callable[..., Daemon]

MIB = 1 << 20


@attrs.frozen
class Disk:
    """A folder that bindfs mounts."""

    folder: Path
    program: Program

    def hang(self) -> None:
        self.program.process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self.program.process.pid}/stat")
        eventually(lambda: ") T " in status.read_text())

    def go_on(self) -> None:
        self.program.process.send_signal(signal.SIGCONT)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need("bindfs")
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        missing("a file system can not be mounted")
    below, folder = tmp_path / "below", tmp_path / "disk"
    below.mkdir()
    folder.mkdir()
    # What is asked for twice is asked for twice: nothing is kept in memory.
    options = "attr_timeout=0,entry_timeout=0,direct_io"
    made = Disk(folder, Program(tmp_path, [find("bindfs"), "-f", "-o", options, below, folder]))
    try:
        eventually(folder.is_mount)
        yield made
    finally:
        made.go_on()
        subprocess.call(["umount", "-l", str(folder)])
        made.program.end()


def test_a_disk_that_hangs(make_daemon: MakeDaemon, disk: Disk) -> None:
    """While uploads, downloads and looks wait for the disk, what needs none is answered; then all end well."""
    daemon = make_daemon(StoreDir=str(disk.folder), MinFreeSpace=0, RetryDelay=0.1).start()
    body = os.urandom(24 * MIB)
    for size in (1000, 100_000, MIB, 24 * MIB):
        assert daemon.put(f"there/{size}.bin", body[:size]).status == 201
    get = "GET /upload/there/%d.bin HTTP/1.1\r\nHost: a\r\n\r\n"
    with daemon.wire() as begun, daemon.wire() as upload, daemon.wire() as leaves:
        # One download and one upload are in the middle, one client will leave.
        begun.send((get % (24 * MIB)).encode())
        leaves.send((get % (24 * MIB)).encode())
        upload.send(f"PUT {put_target('new/a.bin', len(body))} HTTP/1.1\r\nHost: a\r\n".encode())
        upload.send(f"Content-Length: {len(body)}\r\n\r\n".encode() + body[: 6 * MIB])
        eventually(lambda: daemon.unread() == 0)
        disk.hang()
        waiting = [daemon.wire().send((get % size).encode()) for size in (1000, 100_000, MIB)]
        upload.send(body[6 * MIB : 8 * MIB])
        leaves.close()
        small = daemon.wire()
        small.send(f"PUT {put_target('new/b.bin', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".encode())
        with never_late(daemon):
            for _ in range(20):
                assert daemon.request("PUT", "/upload/none/a.bin?v=00", b"x").status == 403
                assert daemon.request("OPTIONS", "/upload/none/a.bin").status == 204
        disk.go_on()
        for wire, size in zip(waiting, (1000, 100_000, MIB), strict=True):
            assert wire.answer().body == body[:size]
            wire.close()
        assert small.answer().status == 201
        small.close()
        assert begun.answer().body == body
        assert upload.send(body[8 * MIB :]).answer().status == 201
    assert (disk.folder / "new/a.bin").read_bytes() == body


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_that_hang(make_daemon: MakeDaemon, disk: Disk, tmp_path: Path, workers: int) -> None:
    """Where one folder's disk takes all threads, and StoreDir still answers, /readyz says so, until it is over."""
    daemon = make_daemon(StoreDir=str(tmp_path / "store"), Workers=workers, MetricsEnabled=True).start()
    (daemon.store / "mounted").mkdir()
    subprocess.run(["mount", "--bind", disk.folder, daemon.store / "mounted"], check=True)
    try:
        (disk.folder / "a.bin").write_bytes(b"hello")
        assert daemon.get("mounted/a.bin").body == b"hello"
        disk.hang()
        wires = [daemon.wire() for _ in range(100)]
        for wire in wires:
            wire.send(b"GET /upload/mounted/b.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: "all threads that read wait for the disk" in daemon.ready()[1], what="/readyz tells")
        assert daemon.ready()[0] == 503
        disk.go_on()
        eventually(lambda: daemon.ready()[0] == 200, what="/readyz is content again")
        for wire in wires:
            assert wire.answer().status == 404
            wire.close()
    finally:
        disk.go_on()
        subprocess.call(["umount", "-l", str(daemon.store / "mounted")])
