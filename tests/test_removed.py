"""What was removed does not come back: the store's memory of it, in files that all processes read."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hmac_file_server.slots.path import SlotPath, slot_path
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import NoSession, NoSuchFile, SlotRemoved, Unmet
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.part import DiskPart
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.session import Part, Session, new_token
from tests.test_store import put

PATH = slot_path([b"slot", b"photo.jpg"])
RECORD = 48


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(str(tmp_path / "store"), removes=True)
    yield made
    made.close()


def memory(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store/.hmac-file-server/removed").glob("*.removed"))


def slots(count: int) -> list[SlotPath]:
    return [slot_path([b"slot", b"%d.bin" % number]) for number in range(count)]


def is_refused(store: Disk, path: SlotPath = PATH, body: bytes = b"hello") -> bool:
    try:
        put(store, body, path)
    except SlotRemoved:
        return True
    return False


def session(path: SlotPath = PATH) -> Session:
    return Session(new_token(path), path, 10, None, 6, None, "192.0.2.7", time.time(), time.time())


def test_it_does_not_come_back(store: Disk, tmp_path: Path) -> None:
    """Neither other bytes nor the very same ones are stored again where a file was removed."""
    put(store, b"hello")
    there = store.remove(PATH)
    assert there is not None
    assert there.size == 5
    assert store.was_removed(PATH)
    for body in (b"hello", b"hellO", b""):
        assert is_refused(store, body=body)
    with pytest.raises(NoSuchFile):
        store.open(PATH)
    assert not (tmp_path / "store/slot").exists()


def test_it_is_refused_before_its_body(store: Disk) -> None:
    """A draft that begins finds out before any byte is asked for."""
    store.remove(PATH)
    with closing(store.draft(PATH, 5)) as draft, pytest.raises(SlotRemoved):
        draft.begin()


def test_what_is_not_there(store: Disk) -> None:
    """A slot can be dead before its file was ever stored."""
    assert store.remove(PATH) is None
    assert is_refused(store)
    assert not is_refused(store, slot_path([b"slot", b"other.jpg"]))


def test_what_is_no_file(store: Disk, tmp_path: Path) -> None:
    """A folder, or a link, is nobody's upload and stays."""
    (tmp_path / "store/slot/photo.jpg").mkdir(parents=True)
    (tmp_path / "store/link").symlink_to(tmp_path)
    assert store.remove(PATH) is None
    assert store.remove(slot_path([b"link"])) is None
    assert store.remove(slot_path([b"link", b"a"])) is None
    assert (tmp_path / "store/slot/photo.jpg").is_dir()
    assert (tmp_path / "store/link").is_symlink()


def test_folders_that_others_use_stay(store: Disk, tmp_path: Path) -> None:
    """Only folders that are empty go with a file."""
    put(store, b"hello")
    put(store, b"hello", slot_path([b"slot", b"other.jpg"]))
    store.remove(PATH)
    assert [path.name for path in (tmp_path / "store/slot").iterdir()] == ["other.jpg"]


def test_conditions(store: Disk) -> None:
    """Where the client's condition is not met nothing is removed, and nothing remembered."""
    put(store, b"hello")
    with pytest.raises(Unmet):
        store.remove(PATH, lambda there: there is None)
    assert not store.was_removed(PATH)
    assert not is_refused(store)
    assert store.remove(PATH, lambda there: there is not None)


def test_an_upload_that_runs(store: Disk, tmp_path: Path) -> None:
    """A file that was complete, and not yet published, when its slot was removed is not published."""
    with closing(store.draft(PATH, 5)) as draft:
        draft.write([b"hello"])
        store.remove(PATH)
        with pytest.raises(SlotRemoved):
            draft.publish()
    assert not (tmp_path / "store/slot/photo.jpg").exists()


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_the_moment_of_publishing(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A slot that is removed while its file gets its name has no file afterwards, whichever came first."""
    real, other = getattr(os, call), Disk(str(tmp_path / "store"))

    def removed_meanwhile(*args: object, **named: object) -> None:
        monkeypatch.undo()
        other.remove(PATH)
        real(*args, **named)

    with closing(other), closing(store.draft(PATH, 5)) as draft:
        draft.write([b"hello"])
        monkeypatch.setattr(os, call, removed_meanwhile)
        with pytest.raises(SlotRemoved):
            draft.publish()
    assert not (tmp_path / "store/slot/photo.jpg").exists()


def test_the_moment_of_removing(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is stored after a removal has looked, and before it is remembered, is removed too."""
    other = Disk(str(tmp_path / "store"))
    add = store.place.removed.add

    def stored_meanwhile(path: SlotPath) -> None:
        put(other, b"hello")
        add(path)

    monkeypatch.setattr(store.place.removed, "add", stored_meanwhile)
    with closing(other):
        there = store.remove(PATH, lambda there: there is None)
    assert there is not None
    assert not (tmp_path / "store/slot").exists()
    monkeypatch.undo()
    assert is_refused(store)


def test_a_memory_that_can_not_be_read(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can tell whether a slot was removed meanwhile its file is not public, until it is known."""
    answers = iter([OSError(errno.EIO, os.strerror(errno.EIO)), False])

    def has(_: SlotPath) -> bool:
        if (tmp_path / "store/slot/photo.jpg").exists():
            answer = next(answers)
            if isinstance(answer, OSError):
                raise answer
        return False

    monkeypatch.setattr(store.place.removed, "has", has)
    with closing(store.draft(PATH, 5)) as draft:
        draft.write([b"hello"])
        with pytest.raises(OSError, match="error"):
            draft.publish()
        assert not (tmp_path / "store/slot/photo.jpg").exists()
        draft.publish()
    assert (tmp_path / "store/slot/photo.jpg").read_bytes() == b"hello"


def test_the_unlink_is_safe(store: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's folder is flushed when the file has gone, also by a second try if the first one failed in that."""
    put(store, b"hello")
    flushed: list[list[str]] = []
    real, fails = os.fsync, [True]

    def fsync(file: int) -> None:
        if os.path.basename(os.readlink(f"/proc/self/fd/{file}")) == "slot":
            flushed.append(os.listdir(file))
            if fails.pop() if fails else False:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="error"):
        store.remove(PATH)
    store.remove(PATH)
    assert flushed == [[], []]


def test_whose_it_was(store: Disk) -> None:
    """A removal tells whose file it was, if that is known."""
    with closing(store.draft(PATH, 5, Attributes(None, "romeo@example.net"))) as draft:
        draft.write([b"hello"])
        draft.publish()
    there = store.remove(PATH)
    assert there is not None
    assert there.owner == ("romeo@example.net" if store.keeps_attributes else None)


def test_its_sessions_end(store: Disk) -> None:
    """What was kept of an upload of the slot goes with it; that of another slot stays."""
    files = SessionFiles(store.place, 3600.0)
    tokens = []
    for path in (PATH, slot_path([b"slot", b"other.jpg"])):
        part = DiskPart(files, session(path), Part(10, last=True))
        part.write([b"01234"])
        part.give_up([], RuntimeError())
        tokens.append(part.token)
    store.remove(PATH)
    with pytest.raises(NoSession):
        files.read(tokens[0])
    with pytest.raises(NoSession):
        DiskPart(files, tokens[0], Part(5, last=True, offset=5)).begin()
    assert files.read(tokens[1]).safe == 5
    assert [kept.token for kept in files.sweep()] == [tokens[1]]
    assert files.count() == 1


def test_a_session_in_use(store: Disk) -> None:
    """Whoever is at an upload of the slot is told, and what it brings is not published."""
    files = SessionFiles(store.place, 3600.0)
    part = DiskPart(files, session(), Part(10, last=True))
    part.write([b"01234"])
    store.remove(PATH)
    assert files.wanted(part.token)
    with pytest.raises(SlotRemoved) as caught:
        part.finisher([b"56789"])()
    part.give_up([], caught.value)
    assert part.dropped
    assert files.sweep() == []


# The files


def test_other_processes_know(store: Disk, tmp_path: Path) -> None:
    """What one process removes all others know at once, also of files that were made meanwhile."""
    with closing(Disk(str(tmp_path / "store"), removes=True)) as other:
        for number, path in enumerate(slots(6)):
            (store, other)[number % 2].remove(path)
            assert is_refused(store, path)
            assert is_refused(other, path)
        assert len(memory(tmp_path)) == 2


def test_it_is_known_after_a_start(store: Disk, tmp_path: Path) -> None:
    """The next start knows what was removed, and goes on in the same file."""
    paths = slots(3000)
    for path in paths:
        store.place.removed.add(path)
    store.close()
    for _ in range(3):
        store.place = Disk(str(tmp_path / "store"), removes=True).place
        assert all(map(store.was_removed, paths))
        store.place.removed.add(PATH)
        assert is_refused(store)
        store.place.removed.close()
    assert len(memory(tmp_path)) == 1
    assert memory(tmp_path)[0].stat().st_size < 3100 * RECORD + (128 << 10)


def test_nothing_is_made_without_need(tmp_path: Path) -> None:
    """Where nothing can be removed there is no memory of it."""
    with closing(Disk(str(tmp_path / "store"))) as store:
        put(store, b"hello")
        assert not (tmp_path / "store/.hmac-file-server/removed").exists()


@pytest.mark.parametrize("torn", range(1, RECORD))
def test_a_torn_record(store: Disk, tmp_path: Path, torn: int) -> None:
    """A record of which a kill or a power cut left a part counts for nothing, and spoils none before or after it."""
    first, second, third = slots(3)
    store.place.removed.add(first)
    store.place.removed.add(second)
    store.close()
    (file,) = memory(tmp_path)
    content = bytearray(file.read_bytes())
    content[RECORD + torn : 2 * RECORD] = bytes(RECORD - torn)
    file.write_bytes(content)
    store.place = Disk(str(tmp_path / "store"), removes=True).place
    assert (store.was_removed(first), store.was_removed(second)) == (True, False)
    store.place.removed.add(third)
    with closing(Disk(str(tmp_path / "store"))) as other:
        assert [other.was_removed(path) for path in (first, second, third)] == [True, False, True]


def test_a_record_that_is_spoilt(store: Disk, tmp_path: Path) -> None:
    """A record in the midst that the disk has spoilt is passed over."""
    paths = slots(3)
    for path in paths:
        store.place.removed.add(path)
    (file,) = memory(tmp_path)
    with file.open("r+b") as opened:
        opened.seek(RECORD + 10)
        opened.write(b"spoilt")
    with closing(Disk(str(tmp_path / "store"))) as other:
        assert [other.was_removed(path) for path in paths] == [True, False, True]


def test_a_record_that_a_power_cut_took(store: Disk, tmp_path: Path) -> None:
    """Where a record is missing those behind it count, and are not written over."""
    paths = slots(5)
    for path in paths[:3]:
        store.place.removed.add(path)
    store.close()
    (file,) = memory(tmp_path)
    with file.open("r+b") as opened:
        opened.write(bytes(RECORD))
    store.place = Disk(str(tmp_path / "store"), removes=True).place
    for path in paths[3:]:
        store.place.removed.add(path)
    with closing(Disk(str(tmp_path / "store"))) as other:
        for known in (store, other):
            assert [known.was_removed(path) for path in paths] == [False, True, True, True, True]


def test_a_full_disk(store: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of files can be removed on a disk that takes nothing more."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    size = os.fstat(store.place.removed._own or 0).st_size
    for path in slots(1000):
        store.remove(path)
    assert os.fstat(store.place.removed._own or 0).st_size == size


def test_a_start_on_a_full_disk(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was reserved before a start is used after it, where the disk takes nothing more."""
    first, second = slots(2)
    store.remove(first)
    store.close()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    store.place = Disk(str(tmp_path / "store"), removes=True).place
    (file,) = memory(tmp_path)
    size = file.stat().st_size
    store.remove(second)
    assert memory(tmp_path) == [file]
    assert file.stat().st_size == size > 2 * RECORD
    assert is_refused(store, first)
    assert is_refused(store, second)


def test_a_failed_flush_hides_nothing(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is removed after a flush has failed is seen by those who have read what it left."""
    first, second = slots(2)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(Disk(str(tmp_path / "store"))) as other:
        with monkeypatch.context() as failing:
            failing.setattr(os, "fdatasync", fail)
            with pytest.raises(OSError, match="error"):
                store.place.removed.add(first)
        other.place.removed.read()
        store.place.removed.add(second)
        assert is_refused(other, second)


def test_looking_is_cheap(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a slot was removed is asked of each file by one read of one record, if nothing is new."""
    store.remove(PATH)
    with closing(Disk(str(tmp_path / "store"), removes=True)) as other:
        other.place.removed.read()
        read: list[int] = []
        real = os.pread

        def pread(file: int, size: int, offset: int) -> bytes:
            read.append(size)
            return real(file, size, offset)

        monkeypatch.setattr(os, "pread", pread)
        assert other.place.removed.has(PATH)
        assert read == [RECORD, RECORD]


def test_a_flush_that_fails(store: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be remembered is not removed; the next try does both."""
    put(store, b"hello")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="error"):
        store.remove(PATH)
    assert (tmp_path / "store/slot/photo.jpg").read_bytes() == b"hello"
    monkeypatch.undo()
    assert store.remove(PATH)
    with closing(Disk(str(tmp_path / "store"))) as other:
        assert other.was_removed(PATH)


def test_a_memory_that_somebody_removed(store: Disk, tmp_path: Path) -> None:
    """Where somebody has removed the files, what is known here is written down again with the next removal."""
    first, second = slots(2)
    store.remove(first)
    for file in memory(tmp_path):
        file.unlink()
    (tmp_path / "store/.hmac-file-server/removed").rmdir()
    store.remove(second)
    with closing(Disk(str(tmp_path / "store"))) as other:
        assert other.was_removed(first)
        assert other.was_removed(second)


def test_a_store_whose_own_folder_somebody_removed(store: Disk, tmp_path: Path) -> None:
    """What is known is written down again soon, and not only with the next removal."""
    store.remove(PATH)
    shutil.rmtree(tmp_path / "store/.hmac-file-server")
    store.look()
    with closing(Disk(str(tmp_path / "store"))) as other:
        assert is_refused(other)


def test_for_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RememberRemoved lets a removal be forgotten, and its room be used again."""
    old, new = slots(2)
    with closing(Disk(str(tmp_path / "store"), removes=True, remember=100.0)) as store:
        for path in [old, *slots(500)[2:]]:
            store.place.removed.add(path)
        later = time.time() + 60
        monkeypatch.setattr(time, "time", lambda: later)
        store.place.removed.add(new)
        assert store.was_removed(old)
        much_later = time.time() + 60
        monkeypatch.setattr(time, "time", lambda: much_later)
        assert not store.was_removed(old)
        assert not is_refused(store, old)
        store.place.removed._tidied -= 1000
        store.look()
        (file,) = memory(tmp_path)
        assert file.read_bytes().rstrip(b"\0").count(b"gone") == 1
        assert is_refused(store, new)
        with closing(Disk(str(tmp_path / "store"))) as other:
            assert other.was_removed(new)


def test_a_network(store: Disk, tmp_path: Path) -> None:
    """Where locks do not tell of other hosts, a file is taken over only when nobody has touched it for a day."""
    (file,) = memory(tmp_path)
    store.close()
    place = Disk(str(tmp_path / "store")).place
    object.__setattr__(place.removed._file_system, "special", False)
    try:
        place.removed.prepare()
        assert len(memory(tmp_path)) == 2
        place.removed.close()
        for each in memory(tmp_path):
            os.utime(each, (1000, 1000))
        place.removed.prepare()
        assert len(memory(tmp_path)) == 2
        place.removed.add(PATH)
        assert file in memory(tmp_path)
    finally:
        place.removed.close()
