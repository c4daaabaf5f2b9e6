"""Power loss: an ext4 that is shut down without a flush while uploads run.

``POWER_CUTS`` says how often; ``make crash`` does many.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.test_resume import begin, exchange, head, told
from tests.support import Daemon, eventually, missing, need, v2

CUTS = int(os.environ.get("POWER_CUTS", "3"))
_FS_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = (2).to_bytes(4, "little")

TYPE = "image/x-test"


class Disk:
    """An ext4 in a file."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "image"
        self.folder = folder / "mounted"
        self.folder.mkdir()
        with self.image.open("wb") as image:
            image.truncate(256 << 20)
        subprocess.check_call(["mkfs.ext4", "-q", "-F", str(self.image)])

    def mount(self) -> None:
        # Nothing but a flush that somebody asked for brings data to the disk while a test runs.
        options = "loop,commit=600"
        if subprocess.call(["mount", "-o", options, str(self.image), str(self.folder)], stderr=subprocess.DEVNULL):
            missing("a loop device can not be mounted")

    def cut_power(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        fcntl.ioctl(descriptor, _FS_IOC_SHUTDOWN, _NO_LOG_FLUSH)
        os.close(descriptor)

    def unmount(self) -> None:
        subprocess.check_call(["umount", str(self.folder)])
        # Another test's program with mounts of its own may still have it: mounted anew it would be the same one.
        eventually(lambda: not subprocess.check_output(["losetup", "-j", str(self.image)]), what="it is unmounted")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need("mkfs.ext4")
    if os.geteuid() != 0:
        missing("only root can mount")
    made = Disk(tmp_path)
    yield made
    subprocess.call(["umount", "-l", str(made.folder)], stderr=subprocess.DEVNULL)


def body_of(path: str) -> bytes:
    """The bytes that belong to a path: short and long ones, told by the name alone."""
    seed = hashlib.sha256(path.encode()).digest()
    return random.Random(seed).randbytes(random.Random(seed[1:]).choice([0, 10, 3000, 70_000, 1_500_000]))


class Uploading:
    """Clients that upload one file after the other, and what they were promised."""

    def __init__(self, daemon: Daemon, clients: int, tag: str) -> None:
        self.daemon = daemon
        self.acknowledged: set[str] = set()
        self.tried: set[str] = set()
        self._stop = False
        self._tag = tag
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        count = 0
        while not self._stop:
            count += 1
            path = f"{self._tag}-{client}-{count}/file.bin"
            body = body_of(path)
            self.tried.add(path)
            try:
                target = f"/upload/{path}?v2={v2(path, len(body), TYPE)}"
                if self.daemon.request("PUT", target, body, Content_Type=TYPE).status == 201:
                    self.acknowledged.add(path)
            except (OSError, EOFError):
                pass

    def until_acknowledged(self) -> None:
        """Wait for the first 201."""
        wait_or_stop(lambda: bool(self.acknowledged), self)

    def stop(self) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()


def wait_or_stop(check: Callable[[], bool], clients: Uploading | Resuming) -> None:
    """Wait for what the clients are to reach; if they do not, leave none of them running."""
    try:
        eventually(check)
    except AssertionError:
        clients.stop()
        raise


def lost_and_torn(store: Path, uploading: Uploading) -> tuple[set[str], set[str]]:
    """Files that were acknowledged and are not there whole; and files that are there in part."""
    lost, torn = set(), set()
    for path in uploading.tried:
        file = store / path
        whole = file.exists() and file.read_bytes() == body_of(path)
        if whole:
            whole = os.getxattr(file, "user.mime_type") == TYPE.encode()
        if path in uploading.acknowledged and not whole:
            lost.add(path)
        if file.exists() and not whole:
            torn.add(path)
    return lost, torn


def cut_while_uploading(make_daemon: Callable[..., Daemon], disk: Disk, tag: str, fsync: bool) -> Uploading:
    """One power cut at a random moment; the disk is mounted again afterwards."""
    disk.mount()
    daemon = make_daemon(StoreDir=str(disk.folder / "store"), Fsync=fsync, MaxRetries=0, MinFreeSpace=0).start()
    uploading = Uploading(daemon, 8, tag)
    uploading.until_acknowledged()
    # The moment is what is random here; nothing waits for it.
    time.sleep(random.uniform(0, 0.8))
    disk.cut_power()
    uploading.stop()
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    disk.unmount()
    disk.mount()
    return uploading


def test_no_acknowledged_upload_is_lost(make_daemon: Callable[..., Daemon], disk: Disk) -> None:
    """After a power loss each acknowledged file is there, whole, with its type; others are whole or absent."""
    acknowledged = tried = 0
    for cut in range(CUTS):
        uploading = cut_while_uploading(make_daemon, disk, f"cut{cut}", fsync=True)
        assert lost_and_torn(disk.folder / "store", uploading) == (set(), set())
        acknowledged += len(uploading.acknowledged)
        tried += len(uploading.tried)
        disk.unmount()
    print(f"{CUTS} power cuts: {tried} uploads tried, {acknowledged} acknowledged, 0 lost, 0 torn")
    assert acknowledged >= CUTS


def test_the_proof_can_fail(make_daemon: Callable[..., Daemon], disk: Disk) -> None:
    """Without Fsync the same power loss takes acknowledged files with it."""
    uploading = cut_while_uploading(make_daemon, disk, "cut", fsync=False)
    lost, _ = lost_and_torn(disk.folder / "store", uploading)
    assert lost


class Resuming:
    """Clients that upload in parts, and what they were told: by path, the upload resource and the safe offset."""

    def __init__(self, daemon: Daemon, clients: int) -> None:
        self.safe: dict[str, tuple[str, int]] = {}
        self._daemon = daemon
        self._stop = False
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        count = 0
        chance = random.Random(client)
        while not self._stop:
            count += 1
            path = f"part-{client}-{count}/file.bin"
            body = self.body_of(path)
            with contextlib.suppress(OSError, EOFError):
                answer = begin(self._daemon, path, len(body))
                while answer.status == 201 and not self._stop:
                    location = answer.headers.get("location") or self.safe[path][0]
                    offset = int(told(answer)["upload-offset"])
                    self.safe[path] = location, offset
                    if offset == len(body):
                        break
                    end = min(len(body), offset + chance.choice([1, 1000, 30_000]))
                    request = head("PATCH", location, 6, end - offset, end == len(body), offset)
                    answer = exchange(self._daemon, request, body[offset:end])

    @staticmethod
    def body_of(path: str) -> bytes:
        return random.Random(path).randbytes(100_000)

    def until_told(self) -> None:
        """Wait until some bytes are said to be safe."""
        wait_or_stop(lambda: any(offset for _, offset in list(self.safe.values())), self)

    def stop(self) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()


def cut_while_resuming(make_daemon: Callable[..., Daemon], disk: Disk, fsync: bool) -> tuple[int, set[str]]:
    """One power cut; how many offsets were told, and the paths whose bytes are not there afterwards."""
    disk.mount()
    store = disk.folder / "store"
    daemon = make_daemon(StoreDir=str(store), Fsync=fsync, MaxRetries=0, MinFreeSpace=0).start()
    resuming = Resuming(daemon, 8)
    resuming.until_told()
    # The moment is what is random here; nothing waits for it.
    time.sleep(random.uniform(0, 1.0))
    disk.cut_power()
    resuming.stop()
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    disk.unmount()
    disk.mount()
    lost = set()
    daemon.start()
    for path, (location, offset) in resuming.safe.items():
        body = resuming.body_of(path)
        if (store / path).exists():
            whole = (store / path).read_bytes() == body
        elif offset < len(body):
            answer = exchange(daemon, head("HEAD", location))
            data = store / ".hmac-file-server" / f"{location.rpartition('/')[2]}.data"
            whole = answer.status == 204 and int(told(answer)["upload-offset"]) >= offset
            whole = whole and data.read_bytes()[:offset] == body[:offset]
        else:
            whole = False
        if not whole:
            lost.add(path)
    daemon.stop()
    disk.unmount()
    return len(resuming.safe), lost


def test_no_offset_that_was_told_is_lost(make_daemon: Callable[..., Daemon], disk: Disk) -> None:
    """After a power loss each upload can be gone on with from the offset that its client was last told, or later."""
    tried = 0
    for _ in range(CUTS):
        count, lost = cut_while_resuming(make_daemon, disk, fsync=True)
        assert lost == set()
        tried += count
    print(f"{CUTS} power cuts: {tried} uploads in parts, no offset lost")
    assert tried >= CUTS


def test_the_proof_of_offsets_can_fail(make_daemon: Callable[..., Daemon], disk: Disk) -> None:
    """Without Fsync the same power loss takes bytes that were told to be there with it."""
    _, lost = cut_while_resuming(make_daemon, disk, fsync=False)
    assert lost
