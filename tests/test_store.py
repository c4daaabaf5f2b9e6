from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from hmac_file_server.slots.path import RESERVED, SlotPath, slot_path
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import NoSuchFile, SlotTaken, Unusable
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.folders import names_in

PATH = slot_path([b"slot", b"photo.jpg"])


@pytest.fixture(params=[(True, False), (False, False), (False, True)], ids=["nameless", "linked", "renamed"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A store on a file system with O_TMPFILE, and those that do without it."""
    made = Disk(str(tmp_path / "store"))
    anonymous, renames = request.param
    made.place = attrs.evolve(made.place, anonymous=anonymous, renames=renames)
    yield made
    made.close()


def put(store: Disk, body: bytes, path: SlotPath = PATH, media_type: bytes | None = None) -> None:
    draft = store.draft(path, len(body), Attributes(media_type))
    try:
        draft.write([body])
        draft.publish()
    finally:
        draft.close()


def files(tmp_path: Path) -> set[str]:
    return {str(p.relative_to(tmp_path / "store")) for p in (tmp_path / "store").rglob("*") if not p.is_dir()}


def test_a_file_lies_at_its_path(store: Disk, tmp_path: Path) -> None:
    """What was published lies under its own name, readable by others, and nothing else lies there."""
    put(store, b"hello")
    assert (tmp_path / "store/slot/photo.jpg").read_bytes() == b"hello"
    assert (tmp_path / "store/slot/photo.jpg").stat().st_nlink == 1
    assert files(tmp_path) == {"slot/photo.jpg"}


def test_the_type_is_kept_with_the_file(store: Disk) -> None:
    """The verified type comes back when the file is opened."""
    put(store, b"hello", media_type=b"text/x-thing; a=b")
    file = store.open(PATH)
    assert file.about.media_type == b"text/x-thing; a=b"
    file.close()


def test_an_endless_type_is_not_kept(store: Disk) -> None:
    """A type longer than a file system would take does not spoil the upload."""
    put(store, b"hello", media_type=b"a/" + b"b" * 10_000)
    file = store.open(PATH)
    assert file.about.media_type is None
    file.close()


@pytest.mark.parametrize("body", [b"hellO", b"hello!", b""])
def test_other_bytes_are_refused(store: Disk, tmp_path: Path, body: bytes) -> None:
    """A slot that has a file keeps it."""
    put(store, b"hello")
    with pytest.raises(SlotTaken):
        put(store, body)
    assert (tmp_path / "store/slot/photo.jpg").read_bytes() == b"hello"
    assert files(tmp_path) == {"slot/photo.jpg"}


def test_the_same_bytes_count_as_stored(store: Disk, tmp_path: Path) -> None:
    """A file that is there already with the very bytes is left untouched and is as good as stored."""
    put(store, b"hello")
    before = (tmp_path / "store/slot/photo.jpg").stat()
    put(store, b"hello")
    after = (tmp_path / "store/slot/photo.jpg").stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )


def test_the_same_bytes_wait_for_the_first_upload(store: Disk, tmp_path: Path) -> None:
    """While the first upload has still to flush its folder, a second one of the same bytes must come again."""
    put(store, b"hello")
    with (tmp_path / "store/slot/photo.jpg").open() as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            put(store, b"hello")
    put(store, b"hello")


def test_a_folder_that_failed_to_flush(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a folder's flush failed the name is taken back, and the next try publishes it again."""
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    draft = store.draft(PATH, 5)
    draft.write([b"hello"])
    with pytest.raises(OSError, match="Input/output"):
        draft.publish()
    assert "slot/photo.jpg" not in files(tmp_path)
    draft.publish()
    draft.close()
    assert files(tmp_path) == {"slot/photo.jpg"}


@pytest.mark.parametrize("there", ["folder", "link", "fifo"])
def test_something_else_has_the_name(store: Disk, tmp_path: Path, there: str) -> None:
    """What is no file is neither replaced, nor followed, nor served."""
    target = tmp_path / "store/slot/photo.jpg"
    target.parent.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"hello")
    if there == "folder":
        target.mkdir()
    elif there == "link":
        target.symlink_to(outside)
    else:
        os.mkfifo(target)
    with pytest.raises(SlotTaken):
        put(store, b"hello")
    with pytest.raises(NoSuchFile):
        store.open(PATH)
    assert outside.read_bytes() == b"hello"


def test_a_folder_that_is_a_link(store: Disk, tmp_path: Path) -> None:
    """A symbolic link in the place of a folder leads nowhere, for uploads and for downloads."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/photo.jpg").write_bytes(b"secret")
    (tmp_path / "store/slot").symlink_to(tmp_path / "outside")
    with pytest.raises(NoSuchFile):
        store.open(PATH)
    with pytest.raises(SlotTaken):
        put(store, b"hello", slot_path([b"slot", b"new.jpg"]))
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["photo.jpg"]


def test_a_file_where_a_folder_should_be(store: Disk) -> None:
    """A path that goes on below a file is taken."""
    put(store, b"hello", slot_path([b"slot"]))
    with pytest.raises(SlotTaken):
        put(store, b"hello")
    with pytest.raises(NoSuchFile):
        store.open(PATH)


def test_a_folder_that_goes_while_it_is_used(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another, failing upload removes the folder that both use, it is made again."""
    real = os.link
    removed = []

    def link(*args: object, **named: object) -> None:
        if not removed:
            removed.append(os.rmdir(tmp_path / "store/slot"))
        real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", link)
    put(store, b"hello")
    assert (tmp_path / "store/slot/photo.jpg").read_bytes() == b"hello"


def test_unpublished_drafts_leave_nothing(store: Disk, tmp_path: Path) -> None:
    """A draft that is closed before it was published is gone, wherever it stopped."""
    for steps in range(3):
        draft = store.draft(PATH, 5)
        if steps:
            draft.begin()
        if steps > 1:
            draft.write([b"hel"])
        draft.close()
    assert files(tmp_path) == set()


def test_a_short_body_is_never_published(store: Disk, tmp_path: Path) -> None:
    """A file that has not all its bytes does not get a public name."""
    draft = store.draft(PATH, 5)
    draft.write([b"hel"])
    with pytest.raises(OSError, match="lost bytes"):
        draft.publish()
    draft.close()
    assert files(tmp_path) == set()


def test_sweep_spares_the_living(store: Disk, tmp_path: Path) -> None:
    """Files of dead daemons go, those of a running upload stay, even of another daemon."""
    store.place = attrs.evolve(store.place, anonymous=False)
    living = store.draft(PATH, 5)
    living.write([b"hello"])
    (tmp_path / "store" / RESERVED.decode() / "0123.part").write_bytes(b"left")
    other = Disk(str(tmp_path / "store"))
    assert other.sweep() == 1
    other.close()
    living.publish()
    living.close()
    assert files(tmp_path) == {"slot/photo.jpg"}


def test_sharing_a_store(store: Disk, tmp_path: Path) -> None:
    """Two daemons on one folder see each other's files and keep each other's slots."""
    other = Disk(str(tmp_path / "store"))
    put(store, b"hello")
    with pytest.raises(SlotTaken):
        put(other, b"HELLO")
    file = other.open(PATH, preload=100)
    assert file.content == b"hello"
    file.close()
    other.close()


def test_a_store_that_can_not_be(tmp_path: Path) -> None:
    """A file in the store's place is said at the start."""
    (tmp_path / "file").touch()
    with pytest.raises(Unusable):
        Disk(str(tmp_path / "file"))


def test_descriptors_do_not_leak(store: Disk) -> None:
    """However uploads and downloads end, no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    for body in (b"hello", b"hello", b"other", b"longer"):
        with suppress(SlotTaken):
            put(store, body)
    for path in (PATH, slot_path([b"none", b"x"]), slot_path([b"slot"])):
        with suppress(NoSuchFile):
            store.open(path).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_short_writes(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that takes only part of what it is given gets the rest, in order."""
    monkeypatch.setattr(os, "writev", lambda descriptor, chunks: os.write(descriptor, bytes(chunks[0])[:7]))
    body = bytes(range(256)) * 10
    draft = store.draft(PATH, len(body))
    draft.write([body[:1000], bytearray(body[1000:1003]), body[1003:]])
    draft.publish()
    draft.close()
    assert (tmp_path / "store/slot/photo.jpg").read_bytes() == body


def test_listing_in_several_threads(tmp_path: Path) -> None:
    """Threads that list the same folder at once each see all of it."""
    for number in range(2000):
        (tmp_path / f"{number}").touch()
    folder = os.open(tmp_path, os.O_RDONLY)
    with ThreadPoolExecutor(4) as pool:
        counts = set(pool.map(lambda _: len(names_in(folder)), range(40)))
    os.close(folder)
    assert counts == {2000}
