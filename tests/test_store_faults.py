"""Rare moments of the store: a call fails, or another upload or daemon comes in between."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.logger import capturedLogs, formatEvent

from hmac_file_server.slots.path import SlotPath, slot_path
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import Unusable
from hmac_file_server.stores.faults import NotDurable, may_pass
from hmac_file_server.stores.interface import Chunks
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.draft import Draft
from hmac_file_server.stores.local.filesystem import FileSystem
from hmac_file_server.stores.local.folders import Folders
from hmac_file_server.stores.local.place import Place
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.session import Session, new_token
from tests.support import missing

A, B = slot_path([b"u", b"a", b"file"]), slot_path([b"u", b"b", b"file"])


@pytest.fixture
def store(tmp_path: Path) -> Disk:
    return Disk(str(tmp_path / "store"))


def written(store: Disk, path: Any, body: bytes) -> Draft:
    draft = store.draft(path, len(body))
    draft.write([body])
    return draft


def failing_once(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fails: Callable[..., bool],
    after: bool = False,
    number: int = errno.EIO,
) -> None:
    """Let a call of ``os`` fail, the first time that it is made on something."""
    real, done = getattr(os, name), []

    def call(*args: Any, **named: Any) -> Any:
        if not done and fails(*args):
            done.append(True)
            if after:
                real(*args, **named)
            raise OSError(number, os.strerror(number))
        return real(*args, **named)

    monkeypatch.setattr(os, name, call)


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_close_fails(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor whose close fails is never used again, for its number may be another upload's by then."""
    first = written(store, A, b"AAAAA")
    number = first._file
    failing_once(monkeypatch, "fsync", lambda descriptor: descriptor == number)
    failing_once(monkeypatch, "close", lambda descriptor: descriptor == number, after=True)
    with pytest.raises(OSError, match="error"):
        first.publish()
    second = written(store, B, b"BBBBB")
    first.publish()
    first.close()
    second.publish()
    second.close()
    assert (tmp_path / "store/u/a/file").read_bytes() == b"AAAAA"
    assert (tmp_path / "store/u/b/file").read_bytes() == b"BBBBB"


def reused_once(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[int]:
    """Let the first close of a file fail, and its number at once be somebody else's; gets that number."""
    inode, other = path.stat().st_ino, os.open(path.parent, os.O_RDONLY)
    real, numbers = os.close, []

    def close(descriptor: int) -> None:
        fails = not numbers and os.fstat(descriptor).st_ino == inode
        real(descriptor)
        if fails:
            numbers.append(os.dup2(other, descriptor))
            real(other)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", close)
    return numbers


def test_close_fails_after_reading(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file whose close fails when it has been read is closed once."""
    draft = written(store, A, b"AAAAA")
    draft.publish()
    draft.close()
    numbers = reused_once(monkeypatch, tmp_path / "store/u/a/file")
    with pytest.raises(OSError, match="error"):
        store.open(A, preload=10)
    os.close(numbers[0])


def test_close_fails_of_a_complete_session(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data whose close fails when it turns out to be public is closed once."""
    files = SessionFiles(store.place, 3600.0)
    now = time.time()
    session = Session(new_token(A), A, 5, None, 6, None, "", begun=now, touched=now)
    data = files.make(session)
    os.write(data, b"AAAAA")
    files.write(session)
    os.close(data)
    (tmp_path / "store/u/a").mkdir(parents=True)
    os.link(tmp_path / f"store/.hmac-file-server/{session.token}.data", tmp_path / "store/u/a/file")
    numbers = reused_once(monkeypatch, tmp_path / "store/u/a/file")
    with pytest.raises(OSError, match="error"):
        files.hold(session.token)
    os.close(numbers[0])


def test_close_tells_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Fsync an error that the file system tells at close alone fails the upload, before it is public."""
    store = Disk(str(tmp_path / "store"), fsync=False)
    draft = written(store, A, b"AAAAA")
    failing_once(monkeypatch, "close", lambda descriptor: stat.S_ISREG(os.fstat(descriptor).st_mode), after=True)
    with pytest.raises(NotDurable):  # Which is told once: no later try would be told of it.
        draft.publish()
    assert not (tmp_path / "store/u").exists()
    draft.close()


def network(store: Disk) -> None:
    """Take the store's file system for one of which little is known."""
    store.place = attrs.evolve(store.place, anonymous=False, file_system=FileSystem(False, False))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_late_error_of_a_write(store: Disk, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """On a network's file system a write may tell of bytes that were taken before, and no later try would."""
    network(store)
    draft = store.draft(A, 100_000)
    draft.write([b"A" * 50_000])
    failing_once(monkeypatch, "writev", lambda *_: True, number=number)
    with pytest.raises(NotDurable) as failed:
        draft.write([b"A" * 50_000])
    assert failed.value.errno == number
    draft.close()
    assert os.listdir(store.place.own) == []


def test_a_late_error_of_a_small_file(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file of which bytes may be lost is written anew, all of it."""
    network(store)
    draft = store.draft(B, 5)
    draft.write([b"AAA"])
    os.ftruncate(draft._opened, 0)  # They are lost.
    failing_once(monkeypatch, "writev", lambda *_: True)
    chunks: Chunks = [b"BB"]
    with pytest.raises(OSError, match="error") as failed:
        draft.write(chunks)
    assert may_pass(failed.value)
    draft.write(chunks)
    draft.publish()
    draft.close()
    assert (tmp_path / "store/u/b/file").read_bytes() == b"AAABB"


def test_room_of_a_file_that_was_dropped(store: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was reserved for a file that could not be made is owed again."""
    draft = store.draft(A, 2 << 20, Attributes(b"image/jpeg"))
    draft.claimed = 2 << 20
    failing_once(monkeypatch, "setxattr", lambda *_: True)
    with pytest.raises(OSError, match="error"):
        draft.begin()
    assert draft.owed == 2 << 20
    draft.close()


@pytest.mark.parametrize(
    ("refused", "about", "words"),
    [
        ("owner", Attributes(b"image/png", None, 2_000_000_000), "without its owner"),
        ("expires", Attributes(b"image/png", "o" * 2000, None), "without its end, and does not expire"),
        ("hmac_file_server", Attributes(b"image/png"), "without its owner, without its end, and does not expire"),
        ("nothing", Attributes(b"image/png", "o" * 2000, 2_000_000_000), ""),
    ],
)
def test_an_attribute_that_does_not_fit(
    store: Disk, monkeypatch: pytest.MonkeyPatch, refused: str, about: Attributes, words: str
) -> None:
    """A file is stored without what has no room beside it (ext4: ENOSPC), and the log tells what is lost."""
    real = os.setxattr

    def call(file: int, name: str, value: bytes) -> None:
        if refused in name:
            raise OSError(errno.ENOSPC if len(value) > 255 else errno.EOPNOTSUPP, "refused")
        real(file, name, value)

    monkeypatch.setattr(os, "setxattr", call)
    with capturedLogs() as logs:
        draft = store.draft(A, 5, Attributes(b"image/png", "o" * 2000, 2_000_000_000))
        draft.write([b"AAAAA"])
        draft.publish()
        draft.close()
    with contextlib.closing(store.open(A)) as file:
        assert file.about == about
    said = [formatEvent(event) for event in logs]
    assert [line.partition("stored ")[2] for line in said] == ([words] if words else [])


@pytest.mark.parametrize(
    ("value", "about"),
    [(b"\xff", Attributes(owner="\ufffd")), (b"", Attributes())],
)
def test_an_owner_that_somebody_wrote(store: Disk, value: bytes, about: Attributes) -> None:
    """An owner that is no text harms nobody: the file is served."""
    draft = written(store, A, b"AAAAA")
    draft.publish()
    draft.close()
    os.setxattr(f"{store.place.folder}/u/a/file", "user.hmac_file_server.owner", value)
    with contextlib.closing(store.open(A)) as file:
        assert file.about == about


def test_folders_that_are_made_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that the store makes, at its start or later, survive a power loss."""
    flushed: set[int] = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.add(os.fstat(file).st_ino), real(file)))
    store = Disk(str(tmp_path / "a/b/store"))
    assert {(tmp_path / name).stat().st_ino for name in (".", "a", "a/b", "a/b/store")} <= flushed
    flushed.clear()
    shutil.rmtree(tmp_path / "a/b/store")
    store.look()
    assert {(tmp_path / name).stat().st_ino for name in ("a/b", "a/b/store")} <= flushed
    flushed.clear()
    Disk(str(tmp_path / "c/store"), fsync=False)
    assert not flushed


@pytest.mark.parametrize("way", ["nameless", "linked", "renamed"])
def test_a_mount_of_the_same_file_system(store: Disk, tmp_path: Path, way: str) -> None:
    """A file is born where it is published: a folder that is bound into the store takes it."""
    store.place = attrs.evolve(store.place, anonymous=way == "nameless", renames=way == "renamed")
    (tmp_path / "store/u").mkdir()
    (tmp_path / "elsewhere").mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "--bind", tmp_path / "elsewhere", tmp_path / "store/u"]):
        missing("a folder can not be mounted")
    try:
        draft = written(store, A, b"AAAAA")
        draft.publish()
        draft.close()
        assert os.listdir(tmp_path / "elsewhere") == ["a"]
        assert (tmp_path / "elsewhere/a/file").read_bytes() == b"AAAAA"
    finally:
        subprocess.check_call(["umount", tmp_path / "store/u"])


@pytest.mark.parametrize("way", ["nameless", "linked", "renamed"])
def test_bound_while_it_comes(store: Disk, tmp_path: Path, way: str) -> None:
    """A file that can not get its name where it was born is copied to where it can."""
    store.place = attrs.evolve(store.place, anonymous=way == "nameless", renames=way == "renamed")
    about = Attributes(b"image/png", "juliet@example.com", 2_000_000_000)
    draft = store.draft(A, 5, about)
    draft.write([b"AAAAA"])
    (tmp_path / "store/u").mkdir()
    (tmp_path / "elsewhere").mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "--bind", tmp_path / "elsewhere", tmp_path / "store/u"]):
        missing("a folder can not be mounted")
    try:
        draft.publish()
        draft.close()
        assert (tmp_path / "elsewhere/a/file").read_bytes() == b"AAAAA"
        with contextlib.closing(store.open(A)) as file:
            assert file.about == about
        assert os.listdir(tmp_path / "elsewhere/a") == ["file"]
    finally:
        subprocess.check_call(["umount", tmp_path / "store/u"])
    assert os.listdir(store.place.own) == []
    assert sorted(os.listdir(tmp_path / "store")) == [".hmac-file-server", "u"]


def test_what_a_note_tells_of(store: Disk, tmp_path: Path) -> None:
    """What a killed daemon left outside its own folder is found by its note; what runs, or is not there yet, stays."""
    store.place = attrs.evolve(store.place, anonymous=False)
    (tmp_path / "store/u").mkdir()
    living = written(store, A, b"AAAAA")
    drafts = tmp_path / "store/.hmac-file-server"
    (drafts / "0123.note").write_bytes(b"u")
    (tmp_path / "store/u/.hmac-file-server-0123.part").write_bytes(b"left")
    (drafts / "4567.note").write_bytes(b"u/soon")
    (drafts / "89ab.note").write_bytes(b"u/../../outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/.hmac-file-server-89ab.part").touch()
    (drafts / "cdef.note").write_bytes(b"u")
    os.utime(drafts / "cdef.note", (0, 0))
    assert store.sweep() == 2
    assert {path.name for path in drafts.iterdir()} >= {"4567.note", "89ab.note"}
    assert len(list(drafts.iterdir())) == 3
    assert len(list((tmp_path / "store/u").iterdir())) == 1
    assert len(list((tmp_path / "outside").iterdir())) == 1
    living.publish()
    living.close()
    assert (tmp_path / "store/u/a/file").read_bytes() == b"AAAAA"
    assert os.listdir(tmp_path / "store/u") == ["a"]


def test_a_note_that_can_not_be_made(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note that a full disk refuses fails the try, and leaves neither itself nor a descriptor."""
    store.place = attrs.evolve(store.place, anonymous=False)
    (tmp_path / "store/u").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    failing_once(monkeypatch, "write", lambda _, data: data == b"u", number=errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        written(store, A, b"AAAAA")
    assert os.listdir(store.place.own) == []
    assert os.listdir(tmp_path / "store/u") == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_parent_is_removed_by_another_upload(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload whose parent folder another one has just removed is tried again, and succeeds."""
    other = Folders(store.place.root, [b"u"], make=True)
    draft = written(store, B, b"BBBBB")
    real = os.mkdir

    def mkdir(name: Any, *args: Any, **named: Any) -> None:
        if name == b"b":
            monkeypatch.setattr(os, "mkdir", real)
            other.remove_made()
        real(name, *args, **named)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(OSError, match="tale") as failed:
        draft.publish()
    assert may_pass(failed.value)
    draft.publish()
    draft.close()
    other.close()
    assert (tmp_path / "store/u/b/file").read_bytes() == b"BBBBB"


@pytest.mark.parametrize("way", ["nameless", "linked", "renamed"])
def test_taking_back_fails(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """When a folder can not be flushed, and the name not be taken back, the next try still succeeds."""
    store.place = attrs.evolve(store.place, anonymous=way == "nameless", renames=way == "renamed")
    draft = written(store, A, b"AAAAA")
    failing_once(monkeypatch, "fsync", is_folder)
    failing_once(monkeypatch, "unlink" if way == "linked" else "rename", lambda *_: True)
    with pytest.raises(OSError, match="error") as failed:
        draft.publish()
    assert may_pass(failed.value)
    draft.publish()
    draft.close()
    assert (tmp_path / "store/u/a/file").read_bytes() == b"AAAAA"
    assert (tmp_path / "store/u/a/file").stat().st_nlink == 1
    assert os.listdir(store.place.own) == []


def test_sweep_takes_a_new_draft(store: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A named draft that a sweep removes before it is locked is made again."""
    store.place = attrs.evolve(store.place, anonymous=False)
    draft = store.draft(A, 5)
    real = os.open

    def opened(name: Any, flags: int, *args: Any, **named: Any) -> int:
        descriptor = real(name, flags, *args, **named)
        if flags & os.O_EXCL and name.endswith(b".part"):
            monkeypatch.setattr(os, "open", real)
            assert store.sweep() == 1
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(OSError, match="sweep") as failed:
        draft.begin()
    assert may_pass(failed.value)
    draft.write([b"AAAAA"])
    draft.publish()
    draft.close()
    assert (tmp_path / "store/u/a/file").read_bytes() == b"AAAAA"


@pytest.mark.parametrize("path", [slot_path([b"file"]), A])
def test_store_is_removed(store: Disk, tmp_path: Path, path: SlotPath) -> None:
    """A store whose folder somebody removes is made again, and an upload that runs ends well in it."""
    draft = written(store, path, b"AAAAA")
    shutil.rmtree(tmp_path / "store")
    if len(path.segments) > 1:
        with pytest.raises(OSError, match="tale") as failed:
            draft.publish()
        assert may_pass(failed.value)
    draft.publish()
    draft.close()
    assert (tmp_path / "store" / os.fsdecode(path.signed)).read_bytes() == b"AAAAA"
    store.look()
    assert stat.S_IMODE((tmp_path / "store/.hmac-file-server").stat().st_mode) == 0o700


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize("what", ["store", "store/.hmac-file-server"])
def test_empty_folders_are_removed(store: Disk, tmp_path: Path, what: str, anonymous: bool) -> None:
    """After empty folders were removed the next upload and the next session begin as ever."""
    store.place = attrs.evolve(store.place, anonymous=anonymous)
    shutil.rmtree(tmp_path / what)
    store.look()
    draft = written(store, A, b"AAAAA")
    draft.publish()
    draft.close()
    shutil.rmtree(tmp_path / "store/.hmac-file-server")
    draft = written(store, B, b"BBBBB")
    draft.publish()
    draft.close()
    assert (tmp_path / "store/u/b/file").read_bytes() == b"BBBBB"
    shutil.rmtree(tmp_path / "store/.hmac-file-server", ignore_errors=anonymous)
    os.close(store.place.create(b"record", os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "store/.hmac-file-server/record").exists()


def test_empty_folders_are_removed_while_it_looks(
    store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is removed in the moment of a look is made again, and no upload is refused for it."""
    real = Place.mend

    def mend(place: Place) -> None:
        real(place)
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "store")

    monkeypatch.setattr(Place, "mend", mend)
    assert store.look().free
    assert (tmp_path / "store/.hmac-file-server").is_dir()


def test_an_unfinished_file_is_removed(store: Disk, tmp_path: Path) -> None:
    """An upload whose file somebody removed meanwhile fails, and may be tried again by its client."""
    store.place = attrs.evolve(store.place, anonymous=False)
    draft = written(store, A, b"AAAAA")
    [left] = (tmp_path / "store").glob(".hmac-file-server-*.part")
    left.unlink()
    with pytest.raises(NotDurable):
        draft.publish()
    draft.close()
    assert not (tmp_path / "store/u").exists()


@pytest.fixture
def mounted(store: Disk, tmp_path: Path) -> Any:
    """Mounts a file system over the store."""
    over = tmp_path / "store"

    def mount(options: str = "size=1m") -> None:
        if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", options, "none", over]):
            missing("a file system can not be mounted")
        (over / ".hmac-file-server").mkdir()

    yield mount
    subprocess.call(["umount", "-l", over])


def test_another_store_is_mounted(store: Disk, mounted: Any, tmp_path: Path) -> None:
    """Uploads that run when the store is mounted over are not acknowledged; those after it go to the new one."""
    draft = written(store, A, b"AAAAA")
    mounted()
    store.look()
    with pytest.raises(NotDurable):
        draft.publish()
    draft.close()
    assert not (tmp_path / "store/u").exists()
    later = written(store, A, b"AAAAA")
    later.publish()
    later.close()
    assert (tmp_path / "store/u/a/file").read_bytes() == b"AAAAA"


def test_a_store_that_can_not_be_used_is_mounted(store: Disk, mounted: Any, tmp_path: Path) -> None:
    """A store that refuses files stays refused until it takes them; nothing goes to the one below it."""
    mounted()
    subprocess.check_call(["mount", "-o", "remount,ro", tmp_path / "store"])
    for _ in range(3):
        with pytest.raises(Unusable):
            store.look()
    subprocess.check_call(["mount", "-o", "remount,rw", tmp_path / "store"])
    assert store.look().free
    draft = written(store, A, b"AAAAA")
    draft.publish()
    draft.close()
    assert (tmp_path / "store/u/a/file").read_bytes() == b"AAAAA"
