"""The store on file systems of many kinds, for real, and what each can not do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hmac_file_server.slots.signature import sign
from tests.neighbours.program import Program, find, run
from tests.neighbours.resumable import BODY, Resumable
from tests.support import SECRET, Daemon, Wire, eventually, missing, need

MakeDaemon = Callable[..., Daemon]

READY = "hmac_file_server_ready"
LARGE = 3 << 20
DELETE_SECRET = "delete7-secret23-of91-metronome17"


class Disk:
    """Something that is mounted.

    :param folder: for whatever it is made of.
    :ivar mount: where.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.mount = folder / "mount"
        self.mount.mkdir()
        self._program: Program | None = None
        KINDS[kind](self)

    def image(self, size: str, *mkfs: str, options: str = "loop") -> None:
        """A file system in a file."""
        image = self.folder / "image"
        run("truncate", "-s", size, image)
        run(find(mkfs[0]), *mkfs[1:], image)
        self.mounted("-o", options, image)

    def mounted(self, *arguments: str | Path) -> None:
        """Mount it by mount(8)."""
        run("mount", *arguments, self.mount)

    def served(self, *command: str | Path) -> None:
        """Mount it by a program in the foreground."""
        self._program = Program(self.folder, [find(str(command[0])), *command[1:]])
        eventually(self.mount.is_mount, what=f"{command[0]} has mounted")

    def branch(self, name: str = "below") -> Path:
        """A plain folder to build it on."""
        below = self.folder / name
        below.mkdir()
        return below

    def end(self) -> None:
        """Unmount it."""
        subprocess.call(["umount", "-l", self.mount])
        if self._program is not None:
            self._program.end()


def _mergerfs(disk: Disk, policy: str) -> None:
    branches = f"{disk.branch('first')}:{disk.branch('second')}"
    disk.served("mergerfs", "-f", "-o", f"category.create={policy}", branches, disk.mount)


def _gocryptfs(disk: Disk, *options: str) -> None:
    password = disk.folder / "password"
    password.write_text("secret\n")
    cipher = disk.branch()
    run(find("gocryptfs"), "-init", "-q", *options, "-passfile", password, cipher)
    disk.served("gocryptfs", "-fg", "-q", *options, "-passfile", password, cipher, disk.mount)


def _overlay(disk: Disk) -> None:
    # Itself on a tmpfs, for what the tests lie on may be an overlay already.
    base = disk.branch()
    run("mount", "-t", "tmpfs", "none", base)
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    disk.mounted("-t", "overlay", "-o", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work", "none")
    subprocess.call(["umount", "-l", base])


def _ntfs(disk: Disk) -> None:
    image = disk.folder / "image"
    run("truncate", "-s", "64M", image)
    run(find("mkntfs"), "-q", "-F", image)
    disk.served("ntfs-3g", "-o", "no_detach,windows_names", image, disk.mount)


KINDS: dict[str, Callable[[Disk], None]] = {
    "ext4": lambda disk: disk.image("64M", "mkfs.ext4", "-q"),
    "ext4 without attributes": lambda disk: disk.image("64M", "mkfs.ext4", "-q", "-O", "^ext_attr"),
    "xfs": lambda disk: disk.image("320M", "mkfs.xfs", "-q"),
    "btrfs": lambda disk: disk.image("160M", "mkfs.btrfs", "-q"),
    "overlayfs": _overlay,
    "tmpfs without a size": lambda disk: disk.mounted("-t", "tmpfs", "-o", "size=0", "none"),
    "ramfs": lambda disk: disk.mounted("-t", "ramfs", "none"),
    "mergerfs": lambda disk: _mergerfs(disk, "rand"),
    "mergerfs with existing paths": lambda disk: _mergerfs(disk, "epmfs"),
    "bindfs": lambda disk: disk.served("bindfs", "-f", disk.branch(), disk.mount),
    "gocryptfs": _gocryptfs,
    "gocryptfs with short names": lambda disk: _gocryptfs(disk, "-longnames=false"),
    "ntfs-3g": _ntfs,
}
PROGRAMS = {
    "ext4": ["mkfs.ext4"],
    "ext4 without attributes": ["mkfs.ext4"],
    "xfs": ["mkfs.xfs", "chattr"],
    "btrfs": ["mkfs.btrfs"],
    "mergerfs": ["mergerfs"],
    "mergerfs with existing paths": ["mergerfs"],
    "bindfs": ["bindfs"],
    "gocryptfs": ["gocryptfs"],
    "gocryptfs with short names": ["gocryptfs"],
    "ntfs-3g": ["ntfs-3g", "mkntfs"],
}


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of each kind, mounted."""
    need(*PROGRAMS.get(request.param, []))
    if os.geteuid() != 0:
        missing("a file system can not be mounted")
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        made = Disk(folder, request.param)
    except AssertionError as error:
        if "unknown filesystem type" in str(error) or "loop device" in str(error):
            pytest.skip(f"this kernel can not: {error}")
        raise
    yield made.mount
    made.end()


def on(*kinds: str) -> pytest.MarkDecorator:
    """On these file systems only."""
    return pytest.mark.parametrize("disk", kinds, indirect=True)


@pytest.fixture
def daemon(make_daemon: MakeDaemon, disk: Path) -> Daemon:
    """A daemon with its store there."""
    return make_daemon(StoreDir=str(disk / "store"), MinFreeSpace=0).start()


def test_uploads_and_downloads(daemon: Daemon) -> None:
    """Small and large files come and go, also again and in parts, and nothing is left over."""
    files = {f"slot{size}/f\N{LATIN SMALL LETTER U WITH DIAERESIS}r \N{PARTY POPPER}.bin": os.urandom(size)
             for size in (0, 5, 100_000, LARGE)}  # fmt: skip
    for path, body in files.items():
        assert [daemon.put(path, body).status for _ in range(2)] == [201, 201]
        assert daemon.put(path, body + b"x").status == 409
    resumed = Resumable.create(daemon.port, "resumed/a.bin")
    resumed.append(0, 40_000).close()
    with resumed.append(resumed.offset()) as wire:
        assert wire.final().status == 201
    for path, body in (files | {resumed.path: BODY}).items():
        assert (daemon.store / path).read_bytes() == body
        assert daemon.get(path).body == body
        if body:
            assert daemon.get(path, Range="bytes=1-3").body == body[1:4]
    assert daemon.metric(READY) == 1
    assert {name for name in os.listdir(daemon.store / ".hmac-file-server") if not name.endswith(".session")} == set()


def test_removal(make_daemon: MakeDaemon, disk: Path) -> None:
    """What is removed does not come back on any of them, also after a kill, for two workers, and on a full disk."""
    settings = {"StoreDir": str(disk / "store"), "MinFreeSpace": 0, "RetryDelay": 0.1}
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, Workers=2, **settings).start()
    paths = [f"gone{number}/a.bin" for number in range(4)]

    def delete(path: str) -> int:
        signature = sign(SECRET.encode(), f"{path}\0{DELETE_SECRET}".encode())
        return daemon.request("DELETE", f"/upload/{path}?token={signature}").status

    for path in paths:
        assert daemon.put(path, b"hello").status == 201
    for path in paths[:2]:
        assert delete(path) == 204
        assert [daemon.put(path, b"hello").status for _ in range(4)] == [403] * 4
    daemon.stop(signal.SIGKILL)
    eventually(lambda: not daemon.listens(), what="its workers have gone")
    daemon.start()
    assert [daemon.put(path, b"hello").status for path in paths] == [403, 403, 201, 201]
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.tell() < 400 << 20:
            filler.write(bytes(1 << 16))
    for path in paths[2:]:
        assert delete(path) == 204
        assert daemon.get(path).status == 404
    (disk / "filler").unlink()
    assert [daemon.put(path, b"hello").status for path in paths] == [403] * 4


def removed(store: Path) -> bool:
    """Remove empty folders; whether the store was one of them."""
    run("find", store, "-type", "d", "-empty", "-delete")
    return not store.exists()


def test_empty_folders_may_be_removed(daemon: Daemon) -> None:
    """What our README allows, while the daemon runs, takes its own folder too, and the next upload does not notice."""
    for number in range(3):
        run("find", daemon.store, "-type", "d", "-empty", "-delete")
        assert daemon.put(f"slot{number}/a.bin", b"hello").status == 201
        assert daemon.put(f"slot{number}/b.bin", bytes(LARGE)).status == 201
        run("find", daemon.store, "-type", "d", "-empty", "-delete")
        upload = Resumable.create(daemon.port, f"resumed{number}/a.bin")
        with upload.append(upload.offset()) as wire:
            assert wire.final().status == 201
        run("find", daemon.store, "-type", "f", "-delete")
        eventually(lambda: removed(daemon.store), what="StoreDir is removed, which the daemon makes again each second")
        with Wire(daemon.metrics_port) as wire:
            assert wire.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 200


def test_a_folder_on_another_file_system(daemon: Daemon) -> None:
    """Into a folder where another file system is mounted nothing can be uploaded; what is there is served."""
    inside = daemon.store / "inside"
    inside.mkdir()
    run("mount", "-t", "tmpfs", "none", inside)
    try:
        (inside / "slot").mkdir()
        (inside / "slot/old.bin").write_bytes(b"hello")
        assert daemon.refused("inside/slot/new.bin", LARGE) == (500, None)
        assert daemon.put("inside/slot/new.bin", b"hello").status == 500
        line = f"store: {inside}/slot: Invalid cross-device link, for the user root (0); StoreDir must be one"
        eventually(lambda: line in daemon.log, what=line)
        assert daemon.get("inside/slot/old.bin").body == b"hello"
        assert daemon.put("inside/slot/old.bin", b"hello").status == 201
        assert daemon.put("beside/a.bin", b"hello").status == 201
        assert os.listdir(inside / "slot") == ["old.bin"]
    finally:
        subprocess.call(["umount", "-l", inside])


@on("ext4")
def test_a_folder_that_is_bound(daemon: Daemon, tmp_path: Path) -> None:
    """Into a folder of the same file system that is bound into the store whole files can be uploaded, and in parts."""
    inside, there = daemon.store / "inside", daemon.store.parent / "there"
    inside.mkdir()
    there.mkdir()
    run("mount", "--bind", there, inside)
    try:
        for size in (5, LARGE):
            assert daemon.put(f"inside/{size}.bin", bytes(size)).status == 201
            assert (there / f"{size}.bin").stat().st_size == size
        upload = Resumable.create(daemon.port, "inside/parts.bin")
        with upload.append(upload.offset()) as wire:
            assert wire.final().status == 201
        assert (there / "parts.bin").read_bytes() == BODY
    finally:
        subprocess.call(["umount", "-l", inside])


@on("xfs")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_quota_on_a_folder(daemon: Daemon, depth: int) -> None:
    """Into a folder of another quota project files are uploaded whole and in parts, and count for that project."""
    inside = daemon.store / "alice"
    inside.mkdir()
    run("chattr", "-p", "1001", "+P", inside)
    prefix = "/".join(["alice", "slot", "deeper"][:depth])
    for size in (5, LARGE):
        assert [daemon.put(f"{prefix}/{size}.bin", bytes(size)).status for _ in range(2)] == [201, 201]
        assert daemon.put(f"{prefix}/{size}.bin", bytes(size + 1)).status == 409
    upload = Resumable.create(daemon.port, f"{prefix}/parts.bin")
    upload.append(0, 40_000).close()
    with upload.append(upload.offset()) as wire:
        assert wire.final().status == 201
    assert (daemon.store / upload.path).read_bytes() == BODY
    for path in (daemon.store / prefix).iterdir():
        assert run("lsattr", "-p", path).split()[0] == "1001"
    assert {name for name in os.listdir(daemon.store / ".hmac-file-server") if not name.endswith(".session")} == set()


@on("ext4", "xfs", "btrfs")
def test_what_a_folder_hands_down(daemon: Daemon) -> None:
    """Files have the group and the access list that their folder hands down, as the folders made on the way have."""
    need("setfacl", "getfacl")
    inside = daemon.store / "alice"
    inside.mkdir()
    os.chown(inside, 0, 4242)
    inside.chmod(0o2755)
    run("setfacl", "-d", "-m", "u:4343:rx", inside)
    for size in (5, LARGE):
        assert daemon.put(f"alice/slot/{size}.bin", bytes(size)).status == 201
        path = inside / f"slot/{size}.bin"
        assert path.stat().st_gid == 4242
        assert "user:4343:r" in run("getfacl", "-n", path)


@on("btrfs")
def test_a_subvolume_in_the_store(daemon: Daemon) -> None:
    """A subvolume of the same Btrfs is refused like another file system."""
    run("btrfs", "subvolume", "create", daemon.store / "inside")
    assert daemon.refused("inside/new.bin", LARGE) == (500, None)
    assert daemon.put("inside/new.bin", b"hello").status == 500


@on("mergerfs with existing paths")
def test_a_folder_on_another_disk(daemon: Daemon) -> None:
    """Where the disks of a pool have folders of their own, uploads go to the one that has theirs, also in parts."""
    drafts = daemon.store / ".hmac-file-server"
    pool = daemon.store.parent.parent
    [without] = [each for each in (pool / "first", pool / "second") if not (each / "store/.hmac-file-server").exists()]
    (without / "store/alice").mkdir(parents=True)
    for size in (0, 5, LARGE):
        path = f"alice/slot/{size}.bin"
        assert [daemon.put(path, bytes(size)).status for _ in range(2)] == [201, 201]
        assert daemon.put(path, bytes(size + 1)).status == 409
        assert (without / "store" / path).stat().st_size == size
    upload = Resumable.create(daemon.port, "alice/slot/parts.bin")
    with upload.append(upload.offset()) as wire:
        assert wire.final().status == 201
    assert (without / "store" / upload.path).read_bytes() == BODY
    assert sorted(os.listdir(daemon.store / "alice/slot")) == ["0.bin", f"{LARGE}.bin", "5.bin", "parts.bin"]
    assert {name for name in os.listdir(drafts) if not name.endswith(".session")} == set()


@on("gocryptfs with short names")
@pytest.mark.parametrize("path", ["slot/{}", "{}/a.bin"])
def test_names_that_are_too_long(daemon: Daemon, path: str) -> None:
    """Names that the file system can not hold are refused before the body, whatever it says of itself."""
    assert os.statvfs(daemon.store).f_namemax == 255
    for size in (5, LARGE):
        assert daemon.refused(path.format("x" * 200), size) == (400, None)
    assert daemon.put(path.format("x" * 170), b"hello").status == 201
    assert daemon.get(path.format("x" * 170)).body == b"hello"
    assert daemon.get(path.format("x" * 200)).status == 404


@on("ntfs-3g")
def test_characters_that_can_not_be(daemon: Daemon) -> None:
    """Characters that the file system refuses in names are refused before the body."""
    for name in ("a:b.bin", "what?.bin", 'say "a".bin', "a|b", "a*b", "<a>"):
        assert daemon.refused(f"slot/{name}", 5) == (400, None)
        assert daemon.get(f"slot/{name}").status == 404
    assert daemon.put("slot/a;b.bin", b"hello").status == 201


def test_a_store_that_is_full(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """When every upload gets 507 the daemon is not ready for them, while /readyz knows that downloads go on."""
    folder = tmp_path / "full"
    folder.mkdir()
    if os.geteuid() != 0:
        missing("a file system can not be mounted")
    run("mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=64", "none", folder)
    try:
        daemon = make_daemon(StoreDir=str(folder), MinFreeSpace="1MiB", MaxRetries=0).start()
        assert daemon.put("slot/a.bin", b"hello").status == 201
        assert daemon.metric(READY) == 1
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
        eventually(lambda: daemon.metric(READY) == 0)
        assert daemon.refused("slot/b.bin", 5) == (507, None)
        with Wire(daemon.metrics_port) as wire:
            assert wire.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 200
        assert daemon.get("slot/a.bin").body == b"hello"
        filler.unlink()
        eventually(lambda: daemon.metric(READY) == 1)
        # Without inodes it is no better.
        with contextlib.suppress(OSError):
            for number in range(64):
                (folder / f"filler{number}").touch()
        eventually(lambda: daemon.metric(READY) == 0)
        assert daemon.put("slot/b.bin", b"hello").status == 507
    finally:
        subprocess.call(["umount", "-l", folder])


def test_a_store_that_is_read_only(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """On a store that has become read-only uploads are refused before their body, and downloads go on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        missing("a file system can not be mounted")
    run("mount", "-t", "tmpfs", "none", folder)
    try:
        daemon = make_daemon(StoreDir=str(folder), MinFreeSpace=0).start()
        assert daemon.put("slot/a.bin", b"hello").status == 201
        run("mount", "-o", "remount,ro", folder)
        eventually(lambda: daemon.metric(READY) == 0)
        for size in (5, LARGE):
            assert daemon.refused("slot/b.bin", size) == (500, None)
        eventually(lambda: "Read-only file system, for the user root (0); mount it for writing" in daemon.log)
        assert daemon.get("slot/a.bin").body == b"hello"
        run("mount", "-o", "remount,rw", folder)
        assert daemon.put("slot/b.bin", b"hello").status == 201
        eventually(lambda: daemon.metric(READY) == 1)
    finally:
        subprocess.call(["umount", "-l", folder])


@on("btrfs")
def test_a_quota(make_daemon: MakeDaemon, disk: Path) -> None:
    """A quota, which the free space does not show, is 507, too, and while it is used up the daemon is not ready."""
    store = disk / "store"
    run("btrfs", "subvolume", "create", store)
    run("btrfs", "quota", "enable", disk)
    run("btrfs", "qgroup", "limit", "6M", store)
    daemon = make_daemon(StoreDir=str(store), MinFreeSpace=0, MaxRetries=0).start()
    assert daemon.put("slot/a.bin", os.urandom(LARGE)).status == 201
    assert daemon.put("slot/b.bin", os.urandom(LARGE)).status == 507
    # Only large ones do not fit.
    assert daemon.put("slot/c.bin", b"hello").status == 201
    for number, size in enumerate([60_000] * 200 + [4096] * 100):
        daemon.put(f"filler/{number}", os.urandom(size))
    assert daemon.put("slot/d.bin", os.urandom(4096)).status == 507
    eventually(lambda: daemon.metric(READY) == 0)
    with Wire(daemon.metrics_port) as wire:
        assert wire.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 200
    assert daemon.get("slot/c.bin").body == b"hello"
    run("btrfs", "qgroup", "limit", "none", store)
    eventually(lambda: daemon.metric(READY) == 1)
    assert daemon.put("slot/b.bin", bytes(LARGE)).status == 201
