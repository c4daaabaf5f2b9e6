from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.slots.path import BadPath, SlotPath, slot_path
from hmac_file_server.stores.errors import (
    AlreadyComplete,
    Cancelled,
    Held,
    NoSession,
    SlotTaken,
    TooLong,
    WrongDigest,
    WrongFile,
    WrongLength,
    WrongOffset,
)
from hmac_file_server.stores.faults import NotDurable
from hmac_file_server.stores.interface import Chunks
from hmac_file_server.stores.local import part as kept
from hmac_file_server.stores.local import place as place_module
from hmac_file_server.stores.local import sessions as sessions_module
from hmac_file_server.stores.local.attributes import MIME_TYPE
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.filesystem import FileSystem
from hmac_file_server.stores.local.part import DiskPart
from hmac_file_server.stores.local.place import Place
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.session import Part, Session, decode, encode, is_token, new_token

PATH = slot_path([b"slot", b"photo.jpg"])
BODY = b"0123456789"
TIMEOUT = 3600.0


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(str(tmp_path / "store"))
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(store: Disk, clock: Clock) -> SessionFiles:
    return SessionFiles(store.place, TIMEOUT, clock)


def new(path: SlotPath = PATH, length: int = len(BODY), **others: Any) -> Session:
    given_: dict[str, Any] = {
        "token": new_token(path),
        "path": path,
        "length": length,
        "media_type": b"image/jpeg",
        "version": 6,
        "digest": None,
        "client": "192.0.2.7",
        "begun": Clock.now,
        "touched": Clock.now,
    }
    return Session(**(given_ | others))


def own(tmp_path: Path) -> Path:
    return tmp_path / "store/.hmac-file-server"


def left(tmp_path: Path) -> set[str]:
    """What the reserved folder holds, by the ends of the names."""
    return {path.suffix for path in own(tmp_path).iterdir()}


def public(tmp_path: Path) -> Path:
    return tmp_path / "store/slot/photo.jpg"


def part(size: int, offset: int = 0, last: bool = False, **others: Any) -> Part:
    return Part(size, last, offset, **others)


def store_part(files: SessionFiles, session: Session | str, body: bytes, offset: int = 0, last: bool = False) -> str:
    """One request that comes to its end; the session's token."""
    draft = DiskPart(files, session, part(len(body), offset, last))
    try:
        draft.write([body])
        draft.publish()
    finally:
        draft.close()
    return draft.token


def status(files: SessionFiles, token: str) -> Session:
    """What a client that asks is told."""
    session, data = files.hold(token)
    files.let_go(data)
    return session


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# Records

segments = st.lists(st.text(min_size=1, max_size=8).map(lambda text: text.encode("utf-8", "ignore")), min_size=1)


def possible(parts: list[bytes]) -> SlotPath | None:
    try:
        return slot_path(parts)
    except BadPath:
        return None


sessions = st.builds(
    Session,
    token=st.just("ab" * 16),
    path=segments.map(possible).filter(lambda path: path is not None),
    length=st.integers(100, 10**15),
    media_type=st.none() | st.binary(max_size=30),
    version=st.integers(3, 9),
    digest=st.none() | st.binary(min_size=32, max_size=32),
    client=st.text(max_size=20),
    begun=st.floats(0, 2**33),
    touched=st.floats(0, 2**33),
    safe=st.integers(0, 100),
    complete=st.booleans(),
    owner=st.none() | st.text(max_size=20),
    end=st.none() | st.integers(0, 2**40),
)


@given(sessions)
def test_records_come_back(session: Session) -> None:
    """What is written of a session is what is read of it."""
    assert decode(session.token, encode(session)) == session


@given(st.binary(max_size=200))
def test_what_is_no_record(data: bytes) -> None:
    """Any bytes that are no record are none, and no error."""
    assert decode("ab" * 16, data) is None


@given(sessions, st.data())
def test_a_damaged_record(session: Session, data: st.DataObject) -> None:
    """A record whose fields were damaged is none, or is one whose values can be worked with."""
    fields = json.loads(encode(session))
    name = data.draw(st.sampled_from(sorted(fields)))
    junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.none())
    if data.draw(st.booleans()):
        del fields[name]
    else:
        fields[name] = data.draw(junk)
    read = decode(session.token, json.dumps(fields).encode())
    if read is not None:
        assert 0 <= read.safe <= read.length
        assert read.begun + 1 < float("inf")
        assert read.path.segments
        assert (read.owner or "").encode() is not None
        assert read.end is None or type(read.end) is int


@pytest.mark.parametrize("damage", [{"owner": "\ud800"}, {"owner": 1}, {"end": "soon"}, {"end": True}, {"end": 1.5}])
def test_an_owner_or_an_end_that_is_none(damage: dict[str, object]) -> None:
    """A record whose owner or end could not be kept with the file is none."""
    fields = json.loads(encode(attrs.evolve(new(), owner="juliet@example.com", end=2_000_000_000)))
    assert decode("ab" * 16, json.dumps(fields).encode()) is not None
    assert decode("ab" * 16, json.dumps(fields | damage).encode()) is None


def test_a_record_that_is_nested_endlessly() -> None:
    """A record that no parser could follow is none."""
    assert decode("ab" * 16, b"[" * 60_000) is None


def test_tokens() -> None:
    """Tokens of a slot begin alike and are never the same; those of others look alike too."""
    tokens = {new_token(PATH) for _ in range(100)}
    assert len(tokens) == 100
    assert len({token[:8] for token in tokens}) == 1
    assert len({token[8:] for token in tokens}) == 100
    assert all(map(is_token, tokens))
    for bad in ("", "x", "0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "../" + "0" * 29, "é" * 32):
        assert not is_token(bad)


def test_sessions_that_are_not_there(files: SessionFiles) -> None:
    """An unknown token, and a name that can not be one, have no session."""
    for token in (new_token(PATH), "", "..", "../../etc/passwd", "\0", "é" * 32):
        with pytest.raises(NoSession):
            files.read(token)
        with pytest.raises(NoSession):
            files.hold(token)


def test_a_session_ends(files: SessionFiles, clock: Clock) -> None:
    """A session lasts for its timeout from its beginning, however lately it was used."""
    session = new(touched=clock.now + TIMEOUT)
    os.close(files.make(session))
    files.write(session)
    clock.now += TIMEOUT
    assert files.read(session.token) == session
    clock.now += 1
    with pytest.raises(NoSession):
        files.read(session.token)


def test_a_record_of_a_long_path_and_type(files: SessionFiles) -> None:
    """The longest path and type that a request can carry fit a record."""
    session = new(slot_path([b"\xf0\x9f\x98\x80" * 60] * 60), media_type=b"\xff" * 16000)
    files.write(session)
    assert files.read(session.token) == session


def test_a_full_disk_keeps_the_old_record(files: SessionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that could be written in part only does not take the place of the one before."""
    session = new()
    files.write(session)
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:20]))
    with pytest.raises(OSError, match="No space"):
        files.write(attrs.evolve(session, safe=5))
    monkeypatch.undo()
    assert files.read(session.token).safe == 0


# Who has a session


def test_only_one_holds_a_session(files: SessionFiles, tmp_path: Path) -> None:
    """Whoever comes second is told, until the first one lets go."""
    token = store_part(files, new(), BODY[:4])
    with (own(tmp_path) / f"{token}.data").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Held) as held:
            files.hold(token)
        assert held.value.token == token
        with pytest.raises(Held):
            DiskPart(files, token, part(6, 4, last=True)).begin()
    session, data = files.hold(token)
    assert session.safe == 4
    with pytest.raises(Held):
        files.hold(token)
    files.let_go(data)


def test_asking_for_a_session(files: SessionFiles) -> None:
    """A wish for a session is seen by who has it, and is over when it is taken."""
    token = store_part(files, new(), BODY[:4])
    assert not files.wanted(token)
    files.want(token)
    assert files.wanted(token)
    files.let_go(files.hold(token)[1])
    assert not files.wanted(token)


def test_a_wish_goes_with_the_upload(files: SessionFiles, tmp_path: Path) -> None:
    """Of a complete upload only the record stays, even if somebody else has wanted it."""
    session = new()
    draft = DiskPart(files, session, part(10, last=True))
    draft.begin()
    files.want(session.token)
    draft.write([BODY])
    draft.publish()
    draft.close()
    assert left(tmp_path) == {".session"}


def test_what_is_told_is_safe(files: SessionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes a session flushes its record's name, which a killed daemon may not have come to."""
    token = store_part(files, new(), BODY[:4])
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    files.let_go(files.hold(token)[1])
    assert flushed == [files.place.own]


def test_completed_while_it_is_taken(files: SessionFiles) -> None:
    """An upload that another process completes while its session is being taken is complete, not unknown."""
    token = store_part(files, new(), BODY[:4])

    def now() -> float:
        nonlocal finished
        if not finished:
            finished = True
            files.finish(files.read(token))
        return files.now()

    finished = False
    session, data = attrs.evolve(files, now=now).hold(token)
    assert (session.complete, data) == (True, -1)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.EBADF])
@pytest.mark.parametrize("call", ["read", "fstat", "pread"])
def test_replaced_while_it_is_taken(
    files: SessionFiles, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Where another machine replaces or removes what is open here, the session is asked for again, and is found."""
    files = attrs.evolve(files, place=attrs.evolve(files.place, file_system=FileSystem(False, False)))
    token = store_part(files, new(), BODY[:4])

    def fail(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(Held) as held:
            files.hold(token)
    assert held.value.token == token
    assert status(files, token).safe == 4


def test_a_wish_whose_removal_is_not_seen_yet(files: SessionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that still has the name of an earlier wish, and no file behind it, is asked again later."""
    token = store_part(files, new(), BODY[:4])
    real = os.open

    def fail(name: bytes | str, flags: int, *others: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(name, flags, *others, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        files.want(token)
    files.want(token)
    assert files.wanted(token)


def test_a_session_that_was_removed_meanwhile(
    files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose data goes while it is being taken is none."""
    token = store_part(files, new(), BODY[:4])
    real = files._lock

    def lock(self: SessionFiles, which: str) -> int:
        (own(tmp_path) / f"{which}.data").unlink()
        return data

    data = real(token)
    monkeypatch.setattr(SessionFiles, "_lock", lock)
    with pytest.raises(NoSession):
        files.hold(token)


# From the first byte to the public name


def test_an_upload_in_three_requests(files: SessionFiles, tmp_path: Path) -> None:
    """Parts become one file under its own name, with its type, and a small record stays."""
    session = new()
    token = store_part(files, session, BODY[:3])
    assert files.read(token) == attrs.evolve(session, safe=3)
    assert not public(tmp_path).exists()
    store_part(files, token, BODY[3:7], 3)
    store_part(files, token, BODY[7:], 7, last=True)
    assert public(tmp_path).read_bytes() == BODY
    assert public(tmp_path).stat().st_nlink == 1
    assert os.getxattr(public(tmp_path), MIME_TYPE) == b"image/jpeg"
    assert left(tmp_path) == {".session"}
    assert files.hold(token) == (attrs.evolve(session, safe=10, complete=True), -1)
    with pytest.raises(AlreadyComplete):
        DiskPart(files, token, part(0, 10, last=True)).begin()


def test_published_by_renaming(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files are moved to their public name, one whose folder can not be flushed at first is published later."""
    files = attrs.evolve(files, place=attrs.evolve(files.place, anonymous=False, renames=True))
    token = store_part(files, new(), BODY[:4])
    draft = DiskPart(files, token, part(6, 4, last=True))
    draft.write([BODY[4:]])
    real = os.fsync

    def fsync(file: int) -> None:
        if public(tmp_path).exists():
            monkeypatch.setattr(os, "fsync", real)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="error"):
        draft.publish()
    assert not public(tmp_path).exists()
    draft.publish()
    draft.close()
    assert public(tmp_path).read_bytes() == BODY
    assert status(files, token).complete
    assert left(tmp_path) == {".session"}


def test_an_empty_file(files: SessionFiles, tmp_path: Path) -> None:
    """A file without bytes can be uploaded in an empty part and an empty end."""
    token = store_part(files, new(length=0), b"")
    store_part(files, token, b"", last=True)
    assert public(tmp_path).read_bytes() == b""


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (part(6, 3), WrongOffset),
        (part(6, 5), WrongOffset),
        (part(0, 0, last=True), WrongOffset),
        (part(7, 4), WrongLength),
        (part(5, 4, last=True), WrongLength),
        (part(0, 4, last=True), WrongLength),
        (part(6, 4, last=True, length=11), WrongLength),
        (part(1, 4, length=9), WrongLength),
    ],
)
def test_parts_that_do_not_fit(files: SessionFiles, tmp_path: Path, wrong: Part, error: type[Exception]) -> None:
    """A part at another place, or one that would make the file another length, changes nothing."""
    token = store_part(files, new(), BODY[:4])
    draft = DiskPart(files, token, wrong)
    with pytest.raises(error) as raised:
        draft.begin()
    draft.give_up([b"evil"], raised.value)
    assert files.read(token).safe == 4
    assert (own(tmp_path) / f"{token}.data").read_bytes() == BODY[:4]
    store_part(files, token, BODY[4:], 4, last=True)
    assert public(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("wrong", [part(11), part(9, last=True), part(10, last=True, length=9), part(0, 1)])
def test_a_beginning_that_does_not_fit(files: SessionFiles, tmp_path: Path, wrong: Part) -> None:
    """A first part that contradicts what was signed leaves nothing."""
    draft = DiskPart(files, new(), wrong)
    with pytest.raises((WrongLength, WrongOffset)):
        draft.begin()
    draft.close()
    assert left(tmp_path) == set()


def test_a_file_that_becomes_too_long(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload of which a small part comes first is refused before that, if the file system takes none so long."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 21, resource.RLIM_INFINITY))
    with pytest.raises(TooLong):
        DiskPart(files, new(length=(1 << 21) + 1), part(10)).begin()
    assert left(tmp_path) == set()


def test_what_was_not_safe_is_forgotten(files: SessionFiles, tmp_path: Path) -> None:
    """After a crash the file goes on where it was last known to be safe, whatever else had been written."""
    token = store_part(files, new(), BODY[:4])
    data = own(tmp_path) / f"{token}.data"
    data.write_bytes(BODY[:4] + b"??")
    assert status(files, token).safe == 4
    draft = DiskPart(files, token, part(6, 4, last=True))
    draft.begin()
    assert data.read_bytes() == BODY[:4]
    draft.close()
    store_part(files, token, BODY[4:], 4, last=True)
    assert public(tmp_path).read_bytes() == BODY


def test_lost_bytes(files: SessionFiles, tmp_path: Path) -> None:
    """A session whose file is shorter than what was told to be safe is over."""
    token = store_part(files, new(), BODY[:4])
    os.truncate(own(tmp_path) / f"{token}.data", 3)
    with pytest.raises(NoSession):
        DiskPart(files, token, part(6, 4, last=True)).begin()
    assert left(tmp_path) == set()
    assert not public(tmp_path).exists()


def test_bytes_that_are_not_seen_yet(files: SessionFiles, tmp_path: Path) -> None:
    """Where another machine may have written what is missing here, a session is not given up, but asked for later."""
    files = attrs.evolve(files, place=attrs.evolve(files.place, file_system=FileSystem(False, False)))
    token = store_part(files, new(), BODY[:4])
    data = own(tmp_path) / f"{token}.data"
    os.truncate(data, 3)
    with pytest.raises(Held):
        DiskPart(files, token, part(6, 4, last=True)).begin()
    data.write_bytes(BODY[:4])
    store_part(files, token, BODY[4:], 4, last=True)
    assert public(tmp_path).read_bytes() == BODY


def test_lost_data(files: SessionFiles, tmp_path: Path) -> None:
    """A record without its data is no session, and is swept away."""
    token = store_part(files, new(), BODY[:4])
    (own(tmp_path) / f"{token}.data").unlink()
    with pytest.raises(NoSession):
        files.hold(token)
    assert files.sweep() == []
    assert left(tmp_path) == set()


@pytest.mark.parametrize("safe", [4, 10])
def test_killed_between_the_name_and_the_record(
    files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: int
) -> None:
    """An upload that has its public name already is complete, is made safe, and is never touched again."""
    token = store_part(files, new(), BODY[:safe])
    data = own(tmp_path) / f"{token}.data"
    data.write_bytes(BODY)
    public(tmp_path).parent.mkdir()
    os.link(data, public(tmp_path))
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.append(os.fstat(file).st_ino), real(file)))
    with pytest.raises(AlreadyComplete) as raised:
        DiskPart(files, token, part(10 - safe, safe, last=True)).begin()
    assert (raised.value.session.complete, raised.value.session.safe) == (True, 10)
    for name in (public(tmp_path), public(tmp_path).parent, tmp_path / "store"):
        assert name.stat().st_ino in flushed
    assert public(tmp_path).read_bytes() == BODY
    assert public(tmp_path).stat().st_nlink == 1
    assert left(tmp_path) == {".session"}
    assert files.hold(token)[0].complete


def test_a_second_name_elsewhere(files: SessionFiles, tmp_path: Path) -> None:
    """Whole data that somebody has another name for, as who moves a public file, is not gone on with: it is theirs."""
    token = store_part(files, new(), BODY)
    copy = tmp_path / "store/backup"
    os.link(own(tmp_path) / f"{token}.data", copy)
    public(tmp_path).parent.mkdir()
    public(tmp_path).write_bytes(BODY)
    with pytest.raises(NoSession):
        DiskPart(files, token, part(0, 10, last=True)).begin()
    assert copy.read_bytes() == BODY
    assert public(tmp_path).read_bytes() == BODY
    assert left(tmp_path) == set()


def test_a_backup_by_hard_links(files: SessionFiles, tmp_path: Path) -> None:
    """A backup that links each file of the store takes no upload from anybody."""
    tokens = [store_part(files, new(slot_path([name, b"a"])), BODY[:4]) for name in (b"one", b"two")]
    for token in tokens:
        os.link(own(tmp_path) / f"{token}.data", tmp_path / token)
    assert {session.token for session in files.sweep()} == set(tokens)
    store_part(files, tokens[0], BODY[4:], 4, last=True)
    assert (tmp_path / "store/one/a").read_bytes() == BODY
    store_part(files, new(slot_path([b"two", b"a"])), BODY[:2])
    with pytest.raises(NoSession):
        files.read(tokens[1])


def test_the_record_could_not_follow(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload whose last record fails is complete all the same, now and for whoever asks later."""
    token = store_part(files, new(), BODY[:4])
    draft = DiskPart(files, token, part(6, 4, last=True))
    draft.write([BODY[4:]])

    def fail(self: SessionFiles, session: Session, flush: bool = True) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SessionFiles, "write", fail)
    draft.publish()
    draft.close()
    monkeypatch.undo()
    assert draft.session is not None
    assert (draft.session.complete, draft.session.safe) == (True, 10)
    assert not files.read(token).complete
    assert [session.complete for session in files.sweep()] == [True]
    assert files.read(token).complete
    session, data = files.hold(token)
    assert (session.complete, data) == (True, -1)
    assert public(tmp_path).read_bytes() == BODY


def test_no_room_for_the_last_record(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk nothing but its public name holds a complete file, so that removing it makes room."""
    draft = DiskPart(files, store_part(files, new(), BODY[:4]), part(6, 4, last=True))
    draft.write([BODY[4:]])

    def fail(self: SessionFiles, session: Session, flush: bool = True) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(SessionFiles, "write", fail)
        draft.publish()
    draft.close()
    assert draft.session is not None
    assert draft.session.complete
    assert left(tmp_path) == set()
    assert public(tmp_path).read_bytes() == BODY
    assert public(tmp_path).stat().st_nlink == 1


def file_identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced or written, and not when it is read."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_the_same_bytes_are_there_already(files: SessionFiles, tmp_path: Path) -> None:
    """An upload of the very file that has the slot is complete, and that file is left as it is."""
    public(tmp_path).parent.mkdir()
    public(tmp_path).write_bytes(BODY)
    before = file_identity(public(tmp_path))
    token = store_part(files, new(), BODY, last=True)
    assert file_identity(public(tmp_path)) == before
    assert files.read(token).complete
    assert left(tmp_path) == {".session"}


# Failures


def failing(draft: DiskPart, error: type[Exception]) -> Exception:
    """Publish, which fails, and give up."""
    with pytest.raises(error) as raised:
        draft.publish()
    draft.give_up([], raised.value)
    return raised.value


@pytest.mark.parametrize("body", [BODY[::-1], b"longer than that"], ids=["same length", "longer"])
def test_another_file_has_the_slot(files: SessionFiles, tmp_path: Path, body: bytes) -> None:
    """A slot that has other bytes keeps them, and nothing of the upload stays."""
    draft = DiskPart(files, new(), part(10, last=True))
    draft.write([BODY])
    public(tmp_path).parent.mkdir()
    public(tmp_path).write_bytes(body)
    failing(draft, SlotTaken)
    assert draft.dropped
    assert public(tmp_path).read_bytes() == body
    assert left(tmp_path) == set()


def test_another_length_has_the_slot(files: SessionFiles, tmp_path: Path) -> None:
    """An upload to a slot that has a file of another length does not begin."""
    public(tmp_path).parent.mkdir()
    public(tmp_path).write_bytes(b"other")
    with pytest.raises(SlotTaken):
        DiskPart(files, new(), part(10, last=True)).begin()
    assert left(tmp_path) == set()


def test_a_file_that_was_not_meant(files: SessionFiles, tmp_path: Path) -> None:
    """A whole file with another digest than the client named is not published, and not kept."""
    token = store_part(files, new(digest=sha256(BODY)), BODY[:4])
    draft = DiskPart(files, token, part(6, 4, last=True))
    draft.write([b"456?89"])
    failing(draft, WrongFile)
    assert left(tmp_path) == set()
    assert not public(tmp_path).exists()


def test_a_file_that_was_meant(files: SessionFiles, tmp_path: Path) -> None:
    """The digest of the whole file is checked over all parts."""
    token = store_part(files, new(digest=sha256(BODY)), BODY[:4])
    store_part(files, token, BODY[4:], 4, last=True)
    assert public(tmp_path).read_bytes() == BODY


def test_a_part_that_was_not_meant(files: SessionFiles, tmp_path: Path) -> None:
    """A part with another digest is taken back; the upload goes on before it."""
    token = store_part(files, new(), BODY[:4])
    draft = DiskPart(files, token, part(3, 4, digest=sha256(b"456")))
    draft.write([b"4?6"])
    failing(draft, WrongDigest)
    assert files.read(token).safe == 4
    assert (own(tmp_path) / f"{token}.data").read_bytes() == BODY[:4]
    for begin, end in ((4, 7), (7, 10)):
        digest = sha256(BODY[begin:end])
        draft = DiskPart(files, token, part(3, begin, last=end == 10, digest=digest))
        draft.write([BODY[begin:end]])
        draft.publish()
        draft.close()
    assert public(tmp_path).read_bytes() == BODY


def test_a_part_with_a_digest_is_safe_only_as_a_whole(files: SessionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part that may still be taken back nothing is told to be safe while it arrives."""
    monkeypatch.setattr(kept, "SAVE_BYTES", 1)
    draft = DiskPart(files, new(), part(8, digest=sha256(BODY[:8])))
    draft.write([BODY[:4]])
    assert draft.session is not None
    assert draft.session.safe == 0
    draft.write([BODY[4:8]])
    draft.publish()
    draft.close()
    assert draft.session.safe == 8


@pytest.mark.parametrize("digest", [None, sha256(BODY)], ids=["without", "with digest"])
def test_a_broken_off_part_is_kept(files: SessionFiles, tmp_path: Path, digest: bytes | None) -> None:
    """What came of a request that broke off, written or not, is safe and can be gone on with."""
    draft = DiskPart(files, new(), part(10, last=True, digest=digest))
    draft.write([BODY[:4]])
    draft.give_up([BODY[4:5], BODY[5:7]], Exception("broken off"))
    assert files.read(draft.token).safe == 7
    assert not draft.dropped
    store_part(files, draft.token, BODY[7:], 7, last=True)
    assert public(tmp_path).read_bytes() == BODY


def test_a_cancelled_upload(files: SessionFiles, tmp_path: Path) -> None:
    """Of an upload that the client does not want nothing stays."""
    draft = DiskPart(files, new(), part(10, last=True))
    draft.write([BODY[:4]])
    draft.give_up([BODY[4:]], Cancelled())
    assert draft.dropped
    assert left(tmp_path) == set()


def test_no_room(files: SessionFiles, tmp_path: Path) -> None:
    """An upload that ended because the disk is full is not kept: it would only stand in others' way."""
    draft = DiskPart(files, new(), part(10, last=True))
    draft.write([BODY[:4]])
    draft.give_up([], OSError(errno.ENOSPC, "No space left on device"))
    assert draft.dropped
    assert left(tmp_path) == set()


def test_bytes_that_could_not_be_written(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a write fails and the client goes, what came after it is never put in its place."""
    draft = DiskPart(files, new(), part(10, last=True))
    draft.begin()
    real, calls = os.writev, iter([1])

    def once(file: int, chunks: list[bytes]) -> int:
        if next(calls, None) is None:
            raise OSError(errno.EIO, "Input/output error")
        return real(file, [chunks[0][:1]])

    monkeypatch.setattr(os, "writev", once)
    chunks: Chunks = [BODY[:4]]
    with pytest.raises(OSError, match="Input/output"):
        draft.write(chunks)
    monkeypatch.undo()
    draft.give_up([*chunks, BODY[4:7]], Exception("broken off"))
    assert files.read(draft.token).safe == 7
    assert (own(tmp_path) / f"{draft.token}.data").read_bytes() == BODY[:7]


def test_bytes_that_can_never_be_written(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails for good, what was safe before stays, and no gap is told to be data."""
    token = store_part(files, new(), BODY[:3])
    draft = DiskPart(files, token, part(7, 3, last=True))
    draft.begin()

    def fail(file: int, chunks: list[bytes]) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "writev", fail)
    chunks: Chunks = [BODY[3:6]]
    with pytest.raises(OSError, match="Input/output") as raised:
        draft.write(chunks)
    draft.give_up([*chunks, BODY[6:]], raised.value)
    monkeypatch.undo()
    assert files.read(token).safe == 3
    store_part(files, token, BODY[3:], 3, last=True)
    assert public(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("how", ["save", "publish", "give up"])
def test_a_flush_that_fails(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Bytes whose flush failed are never told to be safe, then or later: they have to be sent again."""
    token = store_part(files, new(), BODY[:4])
    draft = DiskPart(files, token, part(6, 4, last=True))
    draft.write([BODY[4:]])
    data, real = own(tmp_path) / f"{token}.data", os.fsync

    def fsync(file: int) -> None:
        if os.fstat(file).st_ino == data.stat().st_ino:
            raise OSError(errno.EIO, "Input/output error")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    reason: Exception = Exception("broken off")
    if how != "give up":
        with pytest.raises(NotDurable) as raised:
            draft.save() if how == "save" else draft.publish()
        reason = raised.value
    draft.give_up([], reason)
    assert draft.session is not None
    assert draft.session.safe == 4
    monkeypatch.undo()
    assert status(files, token).safe == 4
    assert not public(tmp_path).exists()
    store_part(files, token, BODY[4:], 4, last=True)
    assert public(tmp_path).read_bytes() == BODY


def test_a_beginning_that_fails_once(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginning that failed leaves nothing, and can be tried again."""
    draft = DiskPart(files, new(), part(10, last=True))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "setxattr", fail)
    with pytest.raises(OSError, match="No space"):
        draft.begin()
    assert left(tmp_path) == set()
    monkeypatch.undo()
    draft.begin()
    assert files.read(draft.token).safe == 0
    draft.write([BODY])
    draft.publish()
    draft.close()
    assert public(tmp_path).read_bytes() == BODY
    assert os.getxattr(public(tmp_path), MIME_TYPE) == b"image/jpeg"


def test_a_name_that_could_not_be_flushed(
    files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the flush of a folder failed the next try publishes the same upload."""
    token = store_part(files, new(), BODY[:4])
    draft = DiskPart(files, token, part(6, 4, last=True))
    draft.write([BODY[4:]])
    real, failures = os.fsync, iter([1])

    def fsync(file: int) -> None:
        if os.fstat(file).st_ino == (tmp_path / "store").stat().st_ino and next(failures, None):
            raise OSError(errno.EIO, "Input/output error")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        draft.publish()
    assert not public(tmp_path).exists()
    draft.publish()
    draft.close()
    assert public(tmp_path).read_bytes() == BODY
    assert files.read(token).complete


# Progress and room


def test_saved_now_and_then(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many bytes what has come is flushed and taken note of, while the request still runs."""
    monkeypatch.setattr(kept, "SAVE_BYTES", 4)
    draft = DiskPart(files, new(), part(10, last=True))
    noted = []
    for begin, end in ((0, 3), (3, 5), (5, 8), (8, 10)):
        draft.write([BODY[begin:end]])
        noted.append(files.read(draft.token).safe)
    draft.close()
    assert noted == [0, 5, 5, 10]


def test_saved_on_demand(files: SessionFiles) -> None:
    """Few bytes can be made safe too; of a part that may still be taken back none are."""
    for digest, safe in ((None, 1), (sha256(BODY), 0)):
        draft = DiskPart(files, new(), part(10, last=True, digest=digest))
        draft.write_safely([BODY[:1]])
        draft.close()
        assert files.read(draft.token).safe == safe


def test_room_that_is_not_used_comes_back(files: SessionFiles, tmp_path: Path) -> None:
    """A broken-off upload keeps the space of what came, not the space that was reserved for the rest."""
    size = 16 << 20
    draft = DiskPart(files, new(length=size), part(size, last=True))
    draft.claimed = size
    draft.begin()
    assert draft.owed in (0, size)
    draft.give_up([b"x" * 5000], Exception("broken off"))
    assert (own(tmp_path) / f"{draft.token}.data").stat().st_blocks * 512 < 1 << 20
    again = DiskPart(files, draft.token, part(size - 5000, 5000, last=True))
    again.begin()
    again.claimed = size
    again.reserve()
    assert again.owed in (0, size - 5000)
    again.give_up([], Exception("broken off"))
    assert (own(tmp_path) / f"{draft.token}.data").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("how", ["asked", "swept"])
def test_room_that_a_killed_daemon_had_reserved(files: SessionFiles, tmp_path: Path, how: str) -> None:
    """Of an upload whose daemon was killed only what is safe takes room, as soon as somebody looks at it."""
    size = 16 << 20
    token = store_part(files, new(length=size), BODY)
    draft = DiskPart(files, token, part(size - 10, 10, last=True))
    draft.begin()
    draft.claimed = size
    draft.reserve()
    reserved = draft.owed == 0
    draft.write([b"x" * (2 << 20)])
    draft.close()  # As the kernel does it for whoever is killed.
    data = own(tmp_path) / f"{token}.data"
    assert data.stat().st_blocks * 512 >= (size if reserved else 2 << 20)
    if how == "asked":
        assert status(files, token).safe == 10
    else:
        assert [session.safe for session in files.sweep()] == [10]
    assert data.read_bytes() == BODY
    assert data.stat().st_blocks * 512 < 1 << 20


def test_nothing_is_given_back_without_locks(
    files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without locks a sweep leaves alone what may still be written to."""

    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    draft = DiskPart(files, new(), part(10, last=True))
    draft.write([BODY[:4]])
    files.sweep()
    draft.write([BODY[4:]])
    draft.publish()
    draft.close()
    assert public(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("how", ["asked", "swept"])
def test_nothing_is_given_back_where_locks_do_not_tell(
    files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Where another machine's lock is not seen, neither a sweep nor a question changes what it may be writing to."""
    files = attrs.evolve(files, place=attrs.evolve(files.place, file_system=FileSystem(False, False)))
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    draft = DiskPart(files, new(), part(10, last=True))
    draft.write([BODY[:4]])
    if how == "asked":
        assert status(files, draft.token).safe == 0
    else:
        assert [session.token for session in files.sweep()] == [draft.token]
    draft.write([BODY[4:]])
    draft.publish()
    draft.close()
    assert public(tmp_path).read_bytes() == BODY


# One slot, one session


def test_a_slot_keeps_one_upload(files: SessionFiles, tmp_path: Path) -> None:
    """When a slot's upload begins anew the earlier one is dropped: no more is kept than was signed."""
    first = store_part(files, new(), BODY[:9])
    other = store_part(files, new(slot_path([b"other", b"a"])), BODY[:9])
    second = store_part(files, new(), BODY[:2])
    with pytest.raises(NoSession):
        files.read(first)
    assert files.read(second).safe == 2
    assert files.read(other).safe == 9
    assert files.count() == 2
    assert len(list(own(tmp_path).iterdir())) == 4


def test_a_token_that_only_looks_alike(files: SessionFiles) -> None:
    """A session of another slot is left alone, even if its token begins like this one's."""
    token = new_token(PATH)
    store_part(files, new(slot_path([b"other", b"a"]), token=token), BODY[:9])
    store_part(files, new(), BODY[:2])
    assert files.read(token).safe == 9


def test_a_complete_upload_is_remembered(files: SessionFiles) -> None:
    """The record of a complete upload outlives a second upload of its slot, for a client that missed the answer."""
    first = store_part(files, new(), BODY, last=True)
    second = store_part(files, new(), BODY[:2])
    assert files.read(first).complete
    assert files.read(second).safe == 2


def test_a_beginning_looks_at_its_slot_only(files: SessionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions there are, an upload that begins does not care for those of other slots."""
    for number in range(20):
        store_part(files, new(slot_path([b"%d" % number, b"a"])), BODY, last=True)
    mine = store_part(files, new(), BODY[:2])
    looked_at = set()
    monkeypatch.setattr(sessions_module, "is_token", lambda token: looked_at.add(token) or is_token(token))
    files.displace(new())
    assert looked_at == {mine}


def test_a_beginning_does_not_list_the_folder(
    store: Disk, files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone in its store a daemon knows the sessions of each slot; with another one beside it, it looks for theirs."""
    mine = store_part(files, new(), BODY[:2])
    with monkeypatch.context() as patched:
        patched.setattr(place_module, "names_in", None)
        mine, before = store_part(files, new(), BODY[:3]), mine
    with pytest.raises(NoSession):
        files.read(before)
    other = Disk(str(tmp_path / "store"))
    try:
        theirs = store_part(SessionFiles(other.place, TIMEOUT, files.now), new(), BODY[:4])
        with pytest.raises(NoSession):
            files.read(mine)
        ours = store_part(files, new(), BODY[:5])
    finally:
        other.close()
    with pytest.raises(NoSession):
        files.read(theirs)
    # What the other one has left is known as soon as it is counted.
    with contextlib.closing(Disk(str(tmp_path / "store"))) as other:
        theirs = store_part(SessionFiles(other.place, TIMEOUT, files.now), new(), BODY[:4])
    assert files.count() == 1
    assert store.place.index.find(theirs[:8]) == [theirs]
    store_part(files, new(), BODY[:6])
    for token in (ours, theirs):
        with pytest.raises(NoSession):
            files.read(token)


def test_a_beginning_while_all_are_counted(files: SessionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose file is made just after the folder was listed is known."""
    real, session = Place.create, new()

    def create(self: Place, name: bytes, flags: int, mode: int) -> int:
        files.count()
        return real(self, name, flags, mode)

    monkeypatch.setattr(Place, "create", create)
    os.close(files.make(session))
    assert files.place.index.find(session.token[:8]) == [session.token]


def test_what_another_daemon_began_after_the_count(store: Disk, files: SessionFiles, tmp_path: Path) -> None:
    """What another process leaves that was there at the last count, and has gone since, is known."""
    with contextlib.closing(Disk(str(tmp_path / "store"))) as other:
        files.count()
        theirs = store_part(SessionFiles(other.place, TIMEOUT, files.now), new(), BODY[:4])
    store_part(files, new(), BODY[:6])
    with pytest.raises(NoSession):
        files.read(theirs)


def test_a_slot_that_is_in_use(files: SessionFiles) -> None:
    """An upload does not begin while another one of its slot has not let go."""
    session = new()
    first = DiskPart(files, session, part(10, last=True))
    first.write([BODY[:4]])
    second = DiskPart(files, new(), part(10, last=True))
    with pytest.raises(Held) as held:
        second.begin()
    assert held.value.token == session.token
    first.give_up([], Exception("broken off"))
    second.begin()
    second.close()
    with pytest.raises(NoSession):
        files.read(session.token)


# Sweeping


def test_sweep_knows_what_goes_on(files: SessionFiles, clock: Clock, tmp_path: Path) -> None:
    """What goes on, runs or is complete stays; what has ended goes, with its data."""
    old = store_part(files, new(slot_path([b"old", b"a"])), BODY[:4])
    done = store_part(files, new(slot_path([b"done", b"a"])), BODY, last=True)
    clock.now += TIMEOUT / 2
    waits = store_part(files, new(slot_path([b"waits", b"a"]), begun=clock.now), BODY[:4])
    assert {session.token for session in files.sweep()} == {old, done, waits}
    assert files.count() == 2
    clock.now += TIMEOUT / 2 + 1
    assert {session.token for session in files.sweep()} == {waits}
    assert {path.stem for path in own(tmp_path).iterdir()} == {waits}
    assert (tmp_path / "store/done/a").read_bytes() == BODY


def test_sweep_keeps_the_newest_of_what_is_complete(
    files: SessionFiles, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many uploads are completed, the records of a bounded number stay: the newest."""
    monkeypatch.setattr(sessions_module, "_MOST_COMPLETE", 2)
    waits = store_part(files, new(), BODY[:4])
    done = []
    for number in range(5):
        clock.now += 1
        done.append(store_part(files, new(slot_path([b"%d" % number, b"a"])), BODY, last=True))
    assert {session.token for session in files.sweep()} == {waits, *done[3:]}
    for token in done[:3]:
        with pytest.raises(NoSession):
            files.read(token)
    assert {session.token for session in files.sweep()} == {waits, *done[3:]}


def test_sweep_spares_what_runs(files: SessionFiles, clock: Clock, tmp_path: Path) -> None:
    """A session that has ended by its time is not taken from under a request that still runs."""
    draft = DiskPart(files, new(), part(10, last=True))
    draft.write([BODY[:4]])
    clock.now += TIMEOUT + 1
    files.sweep()
    draft.write([BODY[4:]])
    draft.publish()
    draft.close()
    assert public(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"junk", b'{"path": 1}', b"[" * 50_000], ids=["empty", "bare", "junk", "typed", "nested"]
)
def test_sweep_drops_a_corrupt_record(files: SessionFiles, clock: Clock, tmp_path: Path, content: bytes) -> None:
    """A record that can not be read is no session; it goes with its data when it would have ended, and others stay."""
    bad = store_part(files, new(), BODY[:4])
    (own(tmp_path) / f"{bad}.session").write_bytes(content)
    clock.now = (own(tmp_path) / f"{bad}.session").stat().st_mtime + TIMEOUT - 1
    good = store_part(files, new(slot_path([b"good", b"a"]), begun=clock.now), BODY[:4])
    with pytest.raises(NoSession):
        files.hold(bad)
    assert [session.token for session in files.sweep()] == [good]
    assert {path.stem for path in own(tmp_path).iterdir()} == {good, bad}
    clock.now += 2
    assert [session.token for session in files.sweep()] == [good]
    assert {path.stem for path in own(tmp_path).iterdir()} == {good}


def change(tmp_path: Path, token: str, /, **fields: Any) -> None:
    """Change what the record of a session says."""
    record = own(tmp_path) / f"{token}.session"
    record.write_text(json.dumps(json.loads(record.read_text()) | fields))


def test_a_record_of_a_newer_daemon(files: SessionFiles, tmp_path: Path) -> None:
    """What a record says beside what is known here is passed over, and is still there when the upload has gone on."""
    token = store_part(files, new(), BODY[:4])
    change(tmp_path, token, quota={"user": "a"}, token="x", form=2)
    assert [session.token for session in files.sweep()] == [token]
    store_part(files, token, BODY[4:6], 4)
    fields = json.loads((own(tmp_path) / f"{token}.session").read_text())
    assert (fields["quota"], fields["form"], fields["safe"]) == ({"user": "a"}, 2, 6)
    store_part(files, token, BODY[6:], 6, last=True)
    assert public(tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("fields", [{"form": 2, "safe": None}, {"digest": {"sha-512": "x"}}], ids=["more", "other"])
def test_a_record_that_only_a_newer_daemon_can_read(
    files: SessionFiles, clock: Clock, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """It is no session here, and is left to whoever wrote it until it would have ended."""
    token = store_part(files, new(), BODY[:4])
    change(tmp_path, token, **fields)
    clock.now = (own(tmp_path) / f"{token}.session").stat().st_mtime
    with pytest.raises(NoSession):
        files.hold(token)
    assert files.sweep() == []
    clock.now += TIMEOUT - 1
    assert files.sweep() == []
    assert left(tmp_path) == {".data", ".session"}
    clock.now += 2
    assert files.sweep() == []
    assert left(tmp_path) == set()


@pytest.mark.parametrize("suffix", ["data", "new", "wanted"])
def test_sweep_drops_orphans(files: SessionFiles, clock: Clock, tmp_path: Path, suffix: str) -> None:
    """A file without a record is given the time to get one, and then goes."""
    orphan = own(tmp_path) / f"{new_token(PATH)}.{suffix}"
    orphan.write_bytes(b"x")
    clock.now = orphan.stat().st_mtime + 5
    assert files.sweep() == []
    assert orphan.exists()
    clock.now += 3700
    assert files.sweep() == []
    assert not orphan.exists()


def test_sweeps_leave_other_files_alone(store: Disk, files: SessionFiles, tmp_path: Path) -> None:
    """Neither sweep touches what is the other's, or nobody's."""
    token = store_part(files, new(), BODY[:4])
    for name in ("x.session", "x.data", "README", "0123.part"):
        (own(tmp_path) / name).write_bytes(b"x")
    assert [session.token for session in files.sweep()] == [token]
    assert (own(tmp_path) / "0123.part").exists()
    assert (own(tmp_path) / "x.session").exists()
    assert store.sweep() == 2
    assert files.read(token).safe == 4
    assert (own(tmp_path) / f"{token}.data").exists()


def failing_unlink(monkeypatch: pytest.MonkeyPatch) -> None:
    def unlink(name: bytes, dir_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "unlink", unlink)


def test_a_sweep_that_can_not_remove(files: SessionFiles, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that the disk refuses to remove something lets go of it all the same."""
    store_part(files, new(), BODY[:4])
    clock.now += TIMEOUT + 1
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        failing_unlink(patched)
        assert files.sweep() == []
    assert len(os.listdir("/proc/self/fd")) == before
    files.sweep()
    assert files.count() == 0


def test_a_lock_that_fails_once(files: SessionFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginning that could not take its own new file leaves nothing, and can be tried again."""
    draft = DiskPart(files, new(), part(10, last=True))

    def fail(self: SessionFiles, token: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(SessionFiles, "_lock", fail)
        with pytest.raises(OSError, match="Too many"):
            draft.begin()
    assert left(tmp_path) == set()
    assert files.place.index.find(draft.token[:8]) == []
    draft.write([BODY])
    draft.publish()
    draft.close()
    assert public(tmp_path).read_bytes() == BODY


def test_descriptors_do_not_leak(files: SessionFiles, tmp_path: Path) -> None:
    """However requests of an upload end, no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    token = store_part(files, new(), BODY[:4])
    for wrong in (part(1, 5), part(7, 4), part(5, 4, last=True)):
        draft = DiskPart(files, token, wrong)
        with pytest.raises((WrongOffset, WrongLength)) as raised:
            draft.begin()
        draft.give_up([], raised.value)
    files.let_go(files.hold(token)[1])
    draft = DiskPart(files, token, part(1, 4))
    draft.begin()
    with pytest.raises(Held):
        files.hold(token)
    with pytest.raises(Held):
        DiskPart(files, new(), part(10, last=True)).begin()
    draft.give_up([], Exception("broken off"))
    os.truncate(own(tmp_path) / f"{token}.data", 1)
    with pytest.raises(NoSession):
        files.hold(token)
    files.sweep()
    assert len(os.listdir("/proc/self/fd")) == before
