"""Rare moments of the store: a call fails, or another upload or daemon comes in between."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from hmac_file_server.slots.path import SlotPath, slot_path
from hmac_file_server.stores.draft import Draft
from hmac_file_server.stores.faults import NotDurable, may_pass
from hmac_file_server.stores.folders import Folders
from hmac_file_server.stores.local import LocalStore, Unusable
from tests.support import missing

A, B = slot_path([b"u", b"a", b"file"]), slot_path([b"u", b"b", b"file"])


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def written(store: LocalStore, path: Any, body: bytes) -> Draft:
    draft = store.draft(path, len(body), None)
    draft.write([body])
    return draft


def failing_once(monkeypatch: pytest.MonkeyPatch, name: str, fails: Callable[..., bool], after: bool = False) -> None:
    """Let a call of ``os`` fail with EIO, the first time that it is made on something."""
    real, done = getattr(os, name), []

    def call(*args: Any, **named: Any) -> Any:
        if not done and fails(*args):
            done.append(True)
            if after:
                real(*args, **named)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **named)

    monkeypatch.setattr(os, name, call)


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_close_fails(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_close_tells_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Fsync an error that the file system tells at close alone fails the upload, before it is public."""
    store = LocalStore(str(tmp_path / "store"), fsync=False)
    draft = written(store, A, b"AAAAA")
    failing_once(monkeypatch, "close", lambda descriptor: stat.S_ISREG(os.fstat(descriptor).st_mode), after=True)
    with pytest.raises(OSError, match="error"):
        draft.publish()
    assert not (tmp_path / "store/u").exists()
    draft.close()


def test_parent_is_removed_by_another_upload(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("anonymous", [True, False])
def test_taking_back_fails(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anonymous: bool
) -> None:
    """When a folder can not be flushed, and the name not be taken back, the next try still succeeds."""
    store._place = attrs.evolve(store._place, anonymous=anonymous)
    draft = written(store, A, b"AAAAA")
    failing_once(monkeypatch, "fsync", is_folder)
    failing_once(monkeypatch, "rename" if anonymous else "unlink", lambda *_: True)
    with pytest.raises(OSError, match="error") as failed:
        draft.publish()
    assert may_pass(failed.value)
    draft.publish()
    draft.close()
    assert (tmp_path / "store/u/a/file").read_bytes() == b"AAAAA"
    assert (tmp_path / "store/u/a/file").stat().st_nlink == 1
    assert os.listdir(store.place.nursery) == []


def test_sweep_takes_a_new_draft(store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A named draft that a sweep removes before it is locked is made again."""
    store._place = attrs.evolve(store._place, anonymous=False)
    draft = store.draft(A, 5, None)
    real = os.open

    def opened(name: Any, flags: int, *args: Any, **named: Any) -> int:
        descriptor = real(name, flags, *args, **named)
        if flags & os.O_EXCL:
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
def test_store_is_removed(store: LocalStore, tmp_path: Path, path: SlotPath) -> None:
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
def test_empty_folders_are_removed(store: LocalStore, tmp_path: Path, what: str, anonymous: bool) -> None:
    """After empty folders were removed the next upload and the next session begin as ever."""
    store._place = attrs.evolve(store._place, anonymous=anonymous)
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
    shutil.rmtree(tmp_path / "store/.hmac-file-server")
    os.close(store.place.create(b"record", os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "store/.hmac-file-server/record").exists()


def test_an_unfinished_file_is_removed(store: LocalStore, tmp_path: Path) -> None:
    """An upload whose file somebody removed meanwhile fails, and may be tried again by its client."""
    store._place = attrs.evolve(store._place, anonymous=False)
    draft = written(store, A, b"AAAAA")
    shutil.rmtree(tmp_path / "store/.hmac-file-server")
    with pytest.raises(NotDurable):
        draft.publish()
    draft.close()
    assert not (tmp_path / "store/u").exists()


@pytest.fixture
def mounted(store: LocalStore, tmp_path: Path) -> Any:
    """Mounts a file system over the store."""
    over = tmp_path / "store"

    def mount(options: str = "size=1m") -> None:
        if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", options, "none", over]):
            missing("a file system can not be mounted")
        (over / ".hmac-file-server").mkdir()

    yield mount
    subprocess.call(["umount", "-l", over])


def test_another_store_is_mounted(store: LocalStore, mounted: Any, tmp_path: Path) -> None:
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


def test_a_store_that_can_not_be_used_is_mounted(store: LocalStore, mounted: Any, tmp_path: Path) -> None:
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
