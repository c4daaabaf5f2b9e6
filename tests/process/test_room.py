"""Room for large bodies on a small disk: what is claimed for them, and what is taken before it has come."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.support import Daemon, eventually, missing, put_head, put_target

MakeDaemon = Callable[..., Daemon]

MIB = 1 << 20
AHEAD = 16 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=200m", "none", folder]):
        missing("a file system can not be mounted")
    yield folder
    subprocess.call(["umount", "-l", folder])


@pytest.fixture
def daemon(make_daemon: MakeDaemon, disk: Path) -> Daemon:
    made = make_daemon(StoreDir=str(disk), MinFreeSpace=0, RetryDelay=0.05, MaxRetries=3).start()
    eventually(lambda: made.metric("hmac_file_server_store_free_bytes") > 0)
    return made


def used(disk: Path) -> int:
    """Bytes that are taken of the disk."""
    figures = os.statvfs(disk)
    return (figures.f_blocks - figures.f_bfree) * figures.f_frsize


def looked_anew(daemon: Daemon, disk: Path) -> None:
    """Wait until the daemon knows what is free now."""
    mark = disk / "mark"
    mark.write_bytes(os.urandom(MIB))
    there = os.statvfs(disk)
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") <= there.f_bavail * there.f_frsize)
    mark.unlink()
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > there.f_bavail * there.f_frsize)


@pytest.mark.parametrize("looks", [False, True], ids=["at once", "later"])
def test_one_slot_claims_once(daemon: Daemon, disk: Path, looks: bool) -> None:
    """However many connections bring the body of one slot, they take others no more room than one does."""
    size = 50 * MIB
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(daemon.wire().send(put_head("slot/a.bin", size) + b"x" * 9000))
        eventually(lambda: daemon.running() == 20)
        if looks:
            looked_anew(daemon, disk)
        assert used(disk) <= AHEAD + 20 * MIB
        assert daemon.put("other/a.bin", os.urandom(120 * MIB)).status == 201


def test_one_slot_takes_little(daemon: Daemon, disk: Path) -> None:
    """Also if all of them bring nearly all of the body, others have room; and all of them are served in the end."""
    body = os.urandom(20 * MIB)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire().send(put_head("slot/a.bin", len(body)))) for _ in range(20)]
        eventually(lambda: daemon.running() == 20)
        for wire in wires:
            wire.socket.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                wire.socket.sendall(body[:-1])
        assert used(disk) <= 4 * len(body) + 30 * MIB
        assert daemon.put("other/a.bin", b"x" * (60 * MIB)).status == 201
    eventually(lambda: daemon.running() == 0)
    looked_anew(daemon, disk)  # Until then what has just been given back counts as used.
    assert daemon.put("slot/a.bin", body).status == 201


def test_those_that_wait_are_served(daemon: Daemon) -> None:
    """Uploads of one slot that wait for the others' end are stored, or refused, as if they had come after them."""
    body = os.urandom(3 * MIB)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire().send(put_head("slot/a.bin", len(body)))) for _ in range(12)]
        eventually(lambda: daemon.running() == 12)
        other = stack.enter_context(daemon.wire().send(put_head("slot/a.bin", len(body))))
        eventually(lambda: daemon.running() == 13)
        for wire in reversed(wires):
            wire.send(body[:100_000])
        other.send(b"x" * 100_000)
        for wire in wires:
            wire.send(body[100_000:])
            assert wire.answer().status == 201
        other.send(b"x" * (len(body) - 100_000))
        assert other.answer().status == 409


def test_no_more_is_taken_than_may_come_soon(daemon: Daemon, disk: Path) -> None:
    """Of a large body never more than 16 MiB are reserved ahead of what has come; when it has come, it is stored."""
    body, sent = os.urandom(90 * MIB), 0

    def is_there(size: int) -> bool:
        return daemon.unread() == 0 and used(disk) >= size - 4 * MIB

    with daemon.wire().send(put_head("slot/a.bin", len(body))) as wire:
        for upto in (9000, MIB, 30 * MIB, 60 * MIB, 90 * MIB - 1):
            wire.send(body[sent:upto])
            sent = upto
            eventually(partial(is_there, sent))
            assert used(disk) <= sent + AHEAD + MIB
        wire.send(body[sent:])
        assert wire.answer().status == 201
    assert daemon.get("slot/a.bin").body == body
    assert used(disk) <= len(body) + MIB


def test_a_body_that_can_not_fit(daemon: Daemon) -> None:
    """A body that is longer than the room beside what runs is refused before it comes, whoever it is of."""
    with daemon.wire().send(put_head("slot/a.bin", 150 * MIB) + b"x" * 9000):
        eventually(lambda: daemon.running() == 1)
        for path in ("other/a.bin", "slot/a.bin"):
            with daemon.wire().send(put_head(path, 190 * MIB, "Expect: 100-continue")) as wire:
                assert wire.answer().status == 507


def test_two_that_do_not_fit_together(make_daemon: MakeDaemon, disk: Path) -> None:
    """Of two bodies that each fit, and not both, the first is stored and the other is 507; MinFreeSpace is kept."""
    settings = {"MinFreeSpace": "40MiB", "RetryDelay": 0.5, "MaxRetries": 20}
    daemon = make_daemon(StoreDir=str(disk), **settings).start()
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > 0)
    size, block = 110 * MIB, os.urandom(MIB)
    with daemon.wire().send(put_head("slot/a.bin", size)) as one:
        eventually(lambda: daemon.running() == 1)
        with daemon.wire().send(put_head("slot/b.bin", size)) as two:
            eventually(lambda: daemon.running() == 2)
            # Both at once: one that waits for room does so until the other one needs some, too.
            with ThreadPoolExecutor(2) as pool:
                sent = [pool.submit(wire.send, block * 109) for wire in (one, two)]
                while not all(each.done() for each in sent):
                    assert used(disk) <= 162 * MIB
            assert [each.result() for each in sent] == [one, two]
            assert two.answer().status == 507
            one.send(block)
            assert one.answer().status == 201
    eventually(lambda: used(disk) <= size + MIB)


def test_hosts_share_the_room(make_daemon: MakeDaemon, disk: Path) -> None:
    """What one host's upload has been granted, another host's can not have, too."""
    hosts = [{"UploadSubDir": name, "StoreDir": str(disk / name)} for name in "ab"]
    daemon = make_daemon(StoreDir=None, hosts=hosts, MinFreeSpace="176MiB").start()
    size = AHEAD - MIB
    head = "PUT {} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n"
    with daemon.wire() as wire, daemon.wire() as other:
        wire.send(head.format(put_target("slot/x.bin", size, "/a/"), size).encode())
        eventually(lambda: daemon.metric("hmac_file_server_uploads_in_progress", '{host="a"}') == 1)
        other.send(head.format(put_target("slot/x.bin", size, "/b/"), size).encode())
        assert other.answer().status == 507
