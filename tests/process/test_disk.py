"""A disk that fails, for real: a full file system, and system calls that strace makes fail."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Daemon, eventually, missing, need, put_head, put_target

MakeDaemon = Callable[..., Daemon]

QUICK = {"RetryDelay": 0.05}
LASTING = """EACCES EPERM EROFS EXDEV ELOOP ENAMETOOLONG EINVAL EOPNOTSUPP ENOSYS EFBIG EMLINK EILSEQ EUCLEAN ENOKEY
    EBADF""".split()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB and 64 inodes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=64", "none", folder]):
        missing("a file system can not be mounted")
    yield folder
    subprocess.call(["umount", "-l", folder])


@pytest.fixture
def faulty(make_daemon: MakeDaemon) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon whose system calls fail as an expression for ``strace -e inject=`` says.

    strace counts the calls of each thread on its own, from when it was attached.
    """
    need("strace")
    tracers = []

    def make(fault: str, **settings: Any) -> Daemon:
        daemon = make_daemon(**(QUICK | settings)).start()
        tracers.append(inject(daemon, fault))
        return daemon

    yield make
    for tracer in tracers:
        tracer.terminate()
        tracer.wait()


def inject(daemon: Daemon, fault: str) -> subprocess.Popen[bytes]:
    """Attach strace to a running daemon."""
    call = fault.partition(":")[0]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={fault}"]
    tracer = subprocess.Popen([*command, "-p", str(daemon.pid)])
    threads = Path(f"/proc/{daemon.pid}/task")
    eventually(lambda: all("TracerPid:\t0" not in (task / "status").read_text() for task in threads.iterdir()))
    return tracer


def nothing_stays(daemon: Daemon) -> None:
    eventually(lambda: not daemon.files(), what="nothing stays in the store")
    assert [p.name for p in daemon.store.iterdir()] == [".hmac-file-server"]


@pytest.mark.parametrize(
    "fault",
    [
        "writev:error=EIO:when=1",
        "writev:error=ENOSPC:when=1..3",
        "fsync:error=EIO:when=1",
        "fsync:error=ENOSPC:when=2",
        "fsync:error=EIO:when=3",
        "linkat:error=EDQUOT:when=1",
        "mkdirat:error=ENOSPC:when=1",
    ],
)
def test_an_error_that_passes(faulty: Callable[..., Daemon], fault: str) -> None:
    """A step that fails and then succeeds ends in 201 with every byte on the disk."""
    # Each thread meets the fault anew.
    daemon = faulty(fault, RetryDelay=0, MaxRetries=1000)
    body = os.urandom(50_000)
    assert daemon.put("slot/a.bin", body).status == 201
    assert (daemon.store / "slot/a.bin").read_bytes() == body
    assert daemon.files() == {"slot/a.bin"}
    assert daemon.metric("hmac_file_server_upload_retries_total") >= 1


def test_only_what_is_missing_is_written_again(faulty: Callable[..., Daemon]) -> None:
    """A failed write in the middle of a large body is repeated, not the body."""
    daemon = faulty("writev:error=EIO:when=3")
    body = os.urandom(6 << 20)
    assert daemon.put("slot/a.bin", body).status == 201
    assert (daemon.store / "slot/a.bin").read_bytes() == body


@pytest.mark.parametrize(
    "fault",
    [
        "splice:error=EINVAL",
        "splice:error=EIO:when=2+3",
        "splice:error=ENOSPC:when=4+2",
        "pipe2:error=EMFILE",
        "sync_file_range:error=EIO",
    ],
)
def test_what_the_kernel_does_not_move_is_written(faulty: Callable[..., Daemon], fault: str) -> None:
    """Where a large body can not go from the socket to the file, or not always, it is read and written."""
    daemon = faulty(fault, RetryDelay=0, MaxRetries=1000)
    body = os.urandom(12 << 20)
    assert daemon.put("slot/a.bin", body).status == 201
    assert (daemon.store / "slot/a.bin").read_bytes() == body
    assert daemon.files() == {"slot/a.bin"}


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("writev:error=EIO", 503),
        ("writev:error=ENOSPC", 507),
        ("writev:error=EDQUOT", 507),
        ("fsync:error=EIO", 503),
        ("linkat:error=EIO", 503),
        ("linkat:error=ENOSPC", 507),
        ("mkdirat:error=EDQUOT", 507),
    ],
)
def test_given_up(faulty: Callable[..., Daemon], fault: str, status: int) -> None:
    """A step that never succeeds is tried MaxRetries times; then the client is told and nothing stays."""
    daemon = faulty(fault, MaxRetries=2)
    answer = daemon.put("slot/a.bin", b"x" * 50_000)
    assert answer.status == status
    assert ("retry-after" in answer.headers) == (status == 503)
    assert daemon.metric("hmac_file_server_upload_retries_total") == 2
    nothing_stays(daemon)


@pytest.mark.parametrize(("error", "status"), [("EIO", 503), ("ENOSPC", 507)])
def test_given_up_in_the_midst_of_a_large_body(make_daemon: MakeDaemon, error: str, status: int) -> None:
    """When the disk takes no more of a body that the kernel was moving, the client is told and nothing stays."""
    need("strace")
    daemon = make_daemon(MinFreeSpace=0, MaxRetries=2, **QUICK).start()
    size = 12 << 20
    with daemon.wire() as wire:
        head = f"PUT {put_target('slot/a.bin', size)} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        wire.send(head.encode() + bytes(8 << 20))
        eventually(lambda: daemon.unread() == 0)
        # The kernel's copy and ours fail alike.
        tracer = inject(daemon, f"splice,writev:error={error}")
        try:
            wire.send(bytes(2 << 20))
            assert wire.answer().status == status
        finally:
            tracer.terminate()
            tracer.wait()
    assert daemon.metric("hmac_file_server_upload_retries_total") == 2
    nothing_stays(daemon)
    assert daemon.put("slot/a.bin", b"hello").status == 201


@pytest.mark.parametrize("error", LASTING)
def test_an_error_that_can_not_pass(faulty: Callable[..., Daemon], error: str) -> None:
    """An error that no retry can help ends the upload at once; the client is not asked to come again."""
    daemon = faulty(f"linkat:error={error}")
    answer = daemon.put("slot/a.bin", b"x" * 50_000)
    assert (answer.status, answer.headers.get("retry-after")) == (500, None)
    line = f"store: {daemon.store}/slot: {os.strerror(getattr(errno, error))}, for the user root (0); "
    eventually(lambda: line in daemon.log, what=line)
    assert daemon.metric("hmac_file_server_upload_retries_total") == 0
    nothing_stays(daemon)


def test_a_flush_that_failed_is_not_believed(daemon: Daemon) -> None:
    """When data is lost that can not be written again, the upload fails and its slot works again."""
    need("strace")
    tracer = inject(daemon, "fsync:error=EIO:when=1")
    body = os.urandom(3 << 20)
    assert daemon.put("slot/a.bin", body).status == 503
    nothing_stays(daemon)
    tracer.terminate()
    tracer.wait()
    assert daemon.put("slot/a.bin", body).status == 201
    assert daemon.get("slot/a.bin").body == body


def test_a_client_that_leaves_ends_the_retries(faulty: Callable[..., Daemon]) -> None:
    """While a step waits to be tried again, a client that leaves ends the upload, and nothing stays."""
    daemon = faulty("writev:error=EIO", RetryDelay=3600, ChunkSize=65536)
    with daemon.wire() as wire:
        wire.send(put_head("slot/a.bin", 1048576))
        wire.send(b"x" * 200_000)
        eventually(lambda: daemon.metric("hmac_file_server_upload_retries_total") == 1)
        assert daemon.running() == 1
    eventually(lambda: daemon.running() == 0)
    nothing_stays(daemon)


def test_a_full_disk_is_known_before_the_body(make_daemon: MakeDaemon, small_disk: Path) -> None:
    """A body that can not fit is refused before its first byte."""
    daemon = make_daemon(MinFreeSpace=0, StoreDir=str(small_disk)).start()
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > 0)
    with daemon.wire() as wire:
        size = 9 << 20
        wire.send(put_head("slot/a.bin", size))
        assert wire.answer().status == 507
    nothing_stays(daemon)


def test_a_disk_that_gets_room_again(make_daemon: MakeDaemon, small_disk: Path) -> None:
    """An upload that finds the disk full waits, and ends well when there is room."""
    daemon = make_daemon(MinFreeSpace=0, StoreDir=str(small_disk), RetryDelay=0.2, MaxRetries=1000).start()
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > 0)
    body = os.urandom(1 << 20)
    filler = small_disk / "filler"
    with daemon.wire() as wire:
        wire.send(f"PUT {put_target('slot/a.bin', len(body))} HTTP/1.1\r\nHost: a\r\n".encode())
        wire.send(f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert wire.answer().status == 100
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"x" * (9 << 20))
        wire.send(body)
        eventually(lambda: daemon.metric("hmac_file_server_upload_retries_total") >= 2)
        assert daemon.request("GET", "/upload/none").status == 404
        filler.unlink()
        assert wire.answer().status == 201
    assert (small_disk / "slot/a.bin").read_bytes() == body


def test_room_is_kept_before_it_is_taken(make_daemon: MakeDaemon, small_disk: Path) -> None:
    """A large upload that has begun keeps its room against whatever else fills the disk."""
    daemon = make_daemon(StoreDir=str(small_disk), MinFreeSpace=0).start()
    body = os.urandom(6 << 20)
    with daemon.wire() as wire:
        wire.send(f"PUT {put_target('slot/a.bin', len(body))} HTTP/1.1\r\nHost: a\r\n".encode())
        wire.send(f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert wire.answer().status == 100
        with pytest.raises(OSError, match="No space"):
            (small_disk / "filler").write_bytes(b"x" * (5 << 20))
        assert daemon.put("slot/b.bin", b"x" * (3 << 20)).status == 507
        wire.send(body)
        assert wire.answer().status == 201
    assert (small_disk / "slot/a.bin").read_bytes() == body


def test_no_inodes(make_daemon: MakeDaemon, small_disk: Path) -> None:
    """A disk without inodes answers 507, leaves nothing, and works again when there are some."""
    daemon = make_daemon(MinFreeSpace=0, StoreDir=str(small_disk), MaxRetries=1, **QUICK).start()
    fillers = []
    for number in range(64):
        filler = small_disk / f"filler{number}"
        try:
            filler.touch()
        except OSError:
            break
        fillers.append(filler)
    assert daemon.put("slot/a.bin", b"hello").status == 507
    for filler in fillers:
        filler.unlink()
    nothing_stays(daemon)
    # It may have looked just before, and looks again a second later.
    eventually(lambda: daemon.put("slot/a.bin", b"hello").status == 201)


def test_a_slow_flush_keeps_nobody_waiting(make_daemon: MakeDaemon) -> None:
    """While the disk takes its time to flush one upload, downloads go on."""
    need("strace")
    daemon = make_daemon().start()
    assert daemon.put("slot/old.bin", b"old").status == 201
    slow = inject(daemon, "fsync:delay_enter=1000s")
    try:
        with daemon.wire() as wire:
            wire.send(
                f"PUT {put_target('slot/new.bin', 3)} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nnew".encode()
            )
            eventually(lambda: daemon.running() == 1)
            for _ in range(20):
                assert daemon.get("slot/old.bin").body == b"old"
            assert daemon.running() == 1
            # Let go by strace, the flush ends.
            slow.terminate()
            assert wire.answer().status == 201
    finally:
        slow.terminate()
        slow.wait()


def test_a_file_system_turned_read_only(make_daemon: MakeDaemon, small_disk: Path) -> None:
    """On a disk that became read-only uploads end at once, downloads go on; later uploads work again."""
    daemon = make_daemon(StoreDir=str(small_disk), MinFreeSpace=0).start()
    assert daemon.put("slot/old.bin", b"old").status == 201
    with daemon.wire() as wire:
        # Begun before and not refused in time: what fails is the publishing, or already the first write.
        wire.send(f"PUT {put_target('slot/a.bin', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe".encode())
        eventually(lambda: daemon.running() == 1)
        subprocess.check_call(["mount", "-o", "remount,ro", str(small_disk)])
        wire.send(b"llo")
        answer = wire.answer()
        assert (answer.status, answer.headers.get("retry-after")) == (500, None)
    assert daemon.get("slot/old.bin").body == b"old"
    subprocess.check_call(["mount", "-o", "remount,rw", str(small_disk)])
    assert daemon.put("slot/a.bin", b"hello").status == 201


def test_a_store_that_is_unmounted(make_daemon: MakeDaemon, small_disk: Path, tmp_path: Path) -> None:
    """Without its disk the daemon takes nothing, says so, and writes nothing below the mount point."""
    daemon = make_daemon(StoreDir=str(small_disk), MinFreeSpace=0).start()
    other = tmp_path / "other"
    other.mkdir()
    subprocess.check_call(["mount", "--bind", str(small_disk), str(other)])
    try:
        subprocess.check_call(["umount", "-l", str(small_disk)])
        eventually(lambda: daemon.put("slot/a.bin", b"hello").status == 503)
        assert daemon.ready()[0] == 503
        assert list(small_disk.iterdir()) == []
        subprocess.check_call(["mount", "--bind", str(other), str(small_disk)])
        eventually(lambda: daemon.put("slot/b.bin", b"hello").status == 201)
        assert (small_disk / "slot/b.bin").read_bytes() == b"hello"
        assert daemon.ready()[0] == 200
    finally:
        subprocess.call(["umount", "-l", str(other)])


def test_slow_writes(daemon: Daemon) -> None:
    """With 700 ms a write an upload takes its time and ends well; others are served meanwhile."""
    need("strace")
    assert daemon.put("slot/old.bin", b"old").status == 201
    tracer = inject(daemon, "writev:delay_enter=700ms")
    body = os.urandom(3 << 20)
    try:
        with daemon.wire() as wire:
            head = f"PUT {put_target('slot/a.bin', len(body))} HTTP/1.1\r\nHost: a\r\n"
            wire.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            served = 0
            while daemon.metric("hmac_file_server_uploads_total") == 1:
                assert daemon.get("slot/old.bin").body == b"old"
                served += 1
            assert wire.answer().status == 201
        assert served > 1
    finally:
        tracer.terminate()
        tracer.wait()
    assert daemon.get("slot/a.bin").body == body


def test_leaving_while_the_disk_is_slow(make_daemon: MakeDaemon) -> None:
    """A client that sends all and leaves has uploaded its file, also where the disk is not there yet."""
    need("strace")
    daemon = make_daemon(ChunkSize=65536).start()
    tracer = inject(daemon, "writev:delay_enter=4s:when=1")
    body = os.urandom(200_000)
    try:
        with daemon.wire() as wire:
            head = f"PUT {put_target('slot/a.bin', len(body))} HTTP/1.1\r\nHost: a\r\n"
            wire.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            eventually(lambda: daemon.running() == 1)
            wire.send(body)
        eventually(lambda: daemon.running() == 0)
        assert daemon.metric("hmac_file_server_uploads_total") == 1
    finally:
        tracer.terminate()
        tracer.wait()
    assert daemon.get("slot/a.bin").body == body


def test_files_that_must_not_grow(make_daemon: MakeDaemon) -> None:
    """A limit on the length of files (EFBIG) ends an upload at once and leaves nothing."""
    daemon = make_daemon(prefix=["prlimit", "--fsize=2000000", "--"]).start()
    with daemon.wire() as wire:
        wire.send(put_head("slot/a.bin", 3000000))
        assert wire.answer().status == 413  # Before the body.
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="storage"}') == 1
    nothing_stays(daemon)
    assert daemon.put("slot/a.bin", b"x" * 1_000_000).status == 201
