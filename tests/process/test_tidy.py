"""Files that expire, beside a real daemon, and its housekeeper."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.process.test_clock import Clock
from tests.process.test_command import COMMAND, command
from tests.process.test_hosts import get, host
from tests.process.test_hosts import put as put_at
from tests.support import Daemon, Wire, eventually, missing

MakeDaemon = Callable[..., Daemon]

WORKERS = pytest.mark.parametrize("workers", [1, 2])
DAY = 86400
MIB = 1 << 20


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def opened(daemon: Daemon) -> list[str]:
    """The files that the daemon has open."""
    found = []
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


@WORKERS
def test_an_expired_file_is_gone_at_once(make_daemon: MakeDaemon, workers: int) -> None:
    """404 before any walk, for GET and HEAD, also of what was just served; caches were not told to keep it longer."""
    daemon = make_daemon(KeepFor="2d", KeepLargeFor="1d", LargeFrom=1000, TidyEvery="1d", Workers=workers).start()
    eventually(
        lambda: daemon.metric("hmac_file_server_tidy_last_timestamp_seconds") > 0, what="the first walk is over"
    )
    for name, size in (("a", 10), ("large", 1000)):
        assert daemon.put(f"slot/{name}.txt", bytes(size)).status == 201
    headers = daemon.get("slot/a.txt").headers
    seconds = int(headers["cache-control"].split("max-age=")[1].split(",")[0])
    assert 2 * DAY - 60 < seconds < 2 * DAY
    age(daemon.store / "slot/large.txt", DAY - 100)
    assert daemon.get("slot/large.txt").status == 200
    for name, seconds in (("a", 2 * DAY), ("large", DAY)):
        age(daemon.store / f"slot/{name}.txt", seconds)
        # A worker that has just served it may do so for a second more: it has not seen the new time.
        for method in ("GET", "HEAD"):
            asked = partial(daemon.request, method, f"/upload/slot/{name}.txt")
            eventually(lambda asked=asked: [asked().status for _ in range(4)] == [404] * 4)  # type: ignore[misc]
        assert (daemon.store / f"slot/{name}.txt").exists()


@WORKERS
def test_the_housekeeper(make_daemon: MakeDaemon, workers: int) -> None:
    """It removes what has expired, keeps the rest, says so, and counts."""
    daemon = make_daemon(KeepFor="30d", TidyEvery=1, Workers=workers, LogLevel="debug").start()
    for name in ("old", "new"):
        assert daemon.put(f"{name}/a.txt", b"hello").status == 201
    age(daemon.store / "old/a.txt", 31 * DAY)
    eventually(lambda: not (daemon.store / "old").exists(), what="it is removed, and its folder")
    eventually(lambda: daemon.metric("hmac_file_server_tidy_removed_total", '{reason="expired"}') == 1)
    eventually(lambda: daemon.metric("hmac_file_server_store_files") == 1)
    assert daemon.metric("hmac_file_server_store_bytes") == 5
    with Wire(daemon.metrics_port) as wire:
        page = wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").answer().body
    assert re.search(rb"1 of 5 \w+, as of", page), page
    assert daemon.metric("hmac_file_server_tidy_last_timestamp_seconds") > time.time() - 60
    assert "removed old/a.txt of 5 bytes: KeepFor" in daemon.log
    assert "1 whose time is over removed, 5 bytes" in daemon.log
    assert daemon.get("new/a.txt").body == b"hello"
    assert daemon.put("old/a.txt", b"hullo").status == 403


def test_a_download_that_runs(make_daemon: MakeDaemon) -> None:
    """An open download ends well, although its file is removed meanwhile."""
    daemon = make_daemon(KeepFor="30d", TidyEvery=1).start()
    body = os.urandom(8 * MIB)
    assert daemon.put("slot/a.bin", body).status == 201
    with daemon.wire() as wire:
        wire.send(b"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: any(path.endswith("/a.bin") for path in opened(daemon)), what="it runs")
        age(daemon.store / "slot/a.bin", 31 * DAY)
        eventually(lambda: not (daemon.store / "slot/a.bin").exists())
        assert wire.answer().body == body


def test_the_hosts_apart(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Each host has its own rules and figures."""
    hosts = [host(tmp_path, "a", KeepFor="30d"), host(tmp_path, "b")]
    daemon = make_daemon(StoreDir=None, hosts=hosts, TidyEvery=1).start()
    for prefix in "ab":
        assert put_at(daemon, prefix, "slot/x.txt", b"hello").status == 201
        age(Path(hosts["ab".index(prefix)]["StoreDir"]) / "slot/x.txt", 31 * DAY)
    removed = "hmac_file_server_tidy_removed_total"
    eventually(lambda: daemon.metric(removed, '{host="a",reason="expired"}') == 1)
    eventually(lambda: daemon.metric("hmac_file_server_store_files", '{host="b"}') == 1)
    assert daemon.metric(removed, '{host="b",reason="expired"}') == 0
    assert get(daemon, "b", "slot/x.txt").body == b"hello"


def test_a_reload(make_daemon: MakeDaemon) -> None:
    """KeepFor holds from a reload on."""
    daemon = make_daemon(TidyEvery=1).start()
    assert daemon.put("slot/a.txt", b"hello").status == 201
    age(daemon.store / "slot/a.txt", 31 * DAY)
    eventually(lambda: daemon.metric("hmac_file_server_store_files") == 1)
    assert daemon.get("slot/a.txt").status == 200
    daemon.settings["KeepFor"] = "30d"
    daemon.configure()
    os.kill(daemon.pid, 1)
    eventually(lambda: daemon.get("slot/a.txt").status == 404)
    eventually(lambda: not (daemon.store / "slot").exists())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder]):
        missing("a file system can not be mounted")
    yield folder
    subprocess.call(["umount", "-l", folder])


def test_a_full_disk(make_daemon: MakeDaemon, small_disk: Path) -> None:
    """Removing needs no room: the oldest files above StoreLimit go although the disk is full."""
    daemon = make_daemon(StoreDir=str(small_disk), MinFreeSpace=0, StoreLimit="100MiB", TidyEvery=1).start()
    for number in range(4):
        assert daemon.put(f"{number}/a.bin", os.urandom(MIB)).status == 201
        age(small_disk / f"{number}/a.bin", 1000 - number)
    eventually(lambda: daemon.metric("hmac_file_server_store_files") == 4)
    (small_disk / ".pad").mkdir()
    filled = subprocess.run(
        ["dd", "if=/dev/zero", f"of={small_disk}/.pad/fill", "bs=4096"], capture_output=True, check=False
    )
    assert b"No space left" in filled.stderr
    daemon.settings["StoreLimit"] = "2MiB"
    daemon.configure()
    os.kill(daemon.pid, 1)
    eventually(lambda: daemon.metric("hmac_file_server_store_files") == 2)
    assert {path.name for path in small_disk.iterdir() if path.name.isdigit()} == {"2", "3"}


def test_no_inodes(make_daemon: MakeDaemon, small_disk: Path) -> None:
    """Where not even an empty file can be made the daemon starts, serves, and makes room again."""
    daemon = make_daemon(StoreDir=str(small_disk), MinFreeSpace=0, KeepFor="30d", TidyEvery="1d").start()
    for name in ("old", "new"):
        assert daemon.put(f"{name}/a.txt", b"hello").status == 201
    eventually(lambda: daemon.metric("hmac_file_server_tidy_last_timestamp_seconds") > 0)
    daemon.stop()
    age(small_disk / "old/a.txt", 31 * DAY)
    subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes(small_disk)}", small_disk], check=True)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "one-more").touch()
    daemon.start()
    eventually(lambda: not (small_disk / "old").exists(), what="there is room again")
    assert daemon.get("new/a.txt").body == b"hello"
    eventually(lambda: daemon.put("newer/a.txt", b"hello").status == 201, what="it takes uploads")


def inodes(folder: Path) -> int:
    """How many of its file system are used."""
    there = os.statvfs(folder)
    return there.f_files - there.f_ffree


def walks(pid: int) -> list[int]:
    """The housekeepers that a daemon has started, and that run."""
    found = []
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"hmac_file_server.housekeeping" in Path(f"/proc/{number}/cmdline").read_bytes():
                found.append(int(number))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_signals_to_the_whole_group(make_daemon: MakeDaemon, number: int) -> None:
    """Ctrl-C, and what a shell sends to all, means the daemon; the walk says nothing, and ends with it at last."""
    daemon = make_daemon(KeepFor="30d", TidyEvery=1, prefix=["setsid"]).start()
    for name in range(200):
        (daemon.store / f"{name}").mkdir()
        (daemon.store / f"{name}/a.txt").write_text("hello")
    found: list[int] = []
    eventually(lambda: found.extend(walks(daemon.pid)) or found, what="it walks")
    os.killpg(os.getpgid(daemon.pid), number)
    if number == signal.SIGHUP:
        eventually(lambda: "was read again" in daemon.log)
        eventually(lambda: daemon.metric("hmac_file_server_store_files") == 200)
    else:
        assert daemon.process is not None
        daemon.process.wait(60)
        eventually(lambda: not any(Path(f"/proc/{walk}").exists() for walk in found), what="it has ended")
    assert "Traceback" not in daemon.log
    assert "housekeeper of upload failed" not in daemon.log


def test_a_clock_that_was_set(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """What a clock that was set far ahead lets expire is 404, and not removed before the next walk."""
    clock = Clock(tmp_path)
    daemon = make_daemon(KeepFor="30d", TidyEvery=2, environment=clock.environment).start()
    eventually(lambda: daemon.metric("hmac_file_server_tidy_last_timestamp_seconds") > 0)
    assert daemon.put("slot/a.txt", b"hello").status == 201
    clock.set("+3000h")
    eventually(lambda: daemon.get("slot/a.txt").status == 404)
    eventually(lambda: "this time the housekeeper only counts" in daemon.log)
    eventually(lambda: "1 whose time is over would be removed" in daemon.log)
    assert (daemon.store / "slot/a.txt").exists()
    clock.set("+0")
    eventually(lambda: daemon.get("slot/a.txt").status == 200)


def test_what_fsck_has_found(make_daemon: MakeDaemon) -> None:
    """lost+found at the top of a disk is root's, and no business of the daemon's."""
    daemon = make_daemon(KeepFor="30d", TidyEvery="1d")
    (daemon.store / "lost+found").mkdir(parents=True)
    (daemon.store / "lost+found/#1").write_text("found")
    age(daemon.store / "lost+found/#1", 31 * DAY)
    ended = command("tidy", "-c", daemon.config)
    assert (ended.returncode, ended.stdout) == (0, "0 files of 0 bytes stay; none removed, 0 bytes\n")
    assert (daemon.store / "lost+found/#1").exists()


def test_two_at_once(make_daemon: MakeDaemon) -> None:
    """Two walks at once remove no more than one."""
    daemon = make_daemon(StoreLimit=50, TidyEvery="1d").start()
    for number in range(10):
        assert daemon.put(f"{number}/a.bin", bytes(10)).status == 201
        age(daemon.store / f"{number}/a.bin", 1000 - number)
    run = [*COMMAND, "tidy", "-c", str(daemon.config)]
    walks = [subprocess.Popen(run, stdout=subprocess.PIPE) for _ in range(3)]
    for walk in walks:
        walk.communicate(timeout=120)
        assert walk.returncode == 0
    assert {path.name for path in daemon.store.iterdir() if path.name.isdigit()} == {"5", "6", "7", "8", "9"}


def test_as_root_it_becomes_the_owner(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """What it makes in the store belongs to the store's owner."""
    if os.geteuid() != 0:
        missing("root")
    # As DynamicUser= of systemd has it: a link to a folder in one that is root's alone.
    private = Path("/var/tmp") / f"tidy-{os.urandom(8).hex()}"
    private.mkdir(mode=0o700)
    link, store = tmp_path / "link", private / "store"
    link.symlink_to(store)
    store.mkdir(mode=0o755)
    (store / "old").mkdir()
    (store / "old/a.txt").write_text("hello")
    age(store / "old/a.txt", 31 * DAY)
    for path in (store, store / "old", store / "old/a.txt"):
        os.chown(path, 65534, 65534)
    daemon = make_daemon(StoreDir=str(link), KeepFor="30d")
    try:
        ended = command("tidy", "-c", daemon.config)
        assert ended.returncode == 0, ended.stderr
        assert not (store / "old").exists()
        assert all(path.lstat().st_uid == 65534 for path in store.rglob("*"))
    finally:
        subprocess.run(["rm", "-rf", str(private)], check=True)
