from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from hmac_file_server.files.errors import not_stored
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.upload import Uploads
from hmac_file_server.resumption.keeper import FileKeeper
from hmac_file_server.resumption.upload import SAVE_SECONDS, Resumables, ResumableUpload
from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.slot import Slot
from hmac_file_server.stores.errors import NoSession, WrongLength
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.room import NoRoom, Room, Space
from hmac_file_server.stores.session import Part, new_token
from hmac_file_server.web.body import Broken
from tests.stores import local_store

CHUNK = 1 << 20
PATH = slot_path([b"slot", b"a.bin"])
TIMEOUT = 3600.0


class Setting:
    """Resumable uploads whose threads are as quick as can be."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.store = local_store(folder)
        self.room = Room(0)
        self.files = SessionFiles(self.store.disk.place, TIMEOUT)
        self.keeper = FileKeeper(self.store.sessions(TIMEOUT), self.clock)
        policy = RetryPolicy(self.clock, 2, 1.0)
        self.uploads = Uploads(self.store, self.room, policy, CHUNK)
        self.uploads.watcher = self.keeper
        self.resumables = Resumables(self.store.sessions(TIMEOUT), self.uploads, self.keeper.kept, self.clock)

    def create(self, length: int, part: Part, **others: Any) -> ResumableUpload:
        return begun(self.resumables.create(Slot(PATH, length, None), part, 6, None, "192.0.2.7"))

    def append(self, token: str, part: Part) -> ResumableUpload:
        return begun(self.resumables.append(token, part))

    def left(self, length: int, body: bytes) -> str:
        """Begin an upload of which only so much comes; its token."""
        upload = self.create(length, Part(length, last=True))
        upload.write(body)
        upload.abandon()
        return upload.token


def begun(upload: ResumableUpload) -> ResumableUpload:
    upload.done.addErrback(lambda failure: failure.trap(Broken, NoRoom, NoSession, WrongLength))
    upload.begin()
    return upload


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path / "store")
    yield made
    made.store.close()


# Room


def test_a_part_of_nothing_takes_no_room(setting: Setting) -> None:
    """However long a part is said to be, no room is kept for it where there is no upload that it fits."""
    setting.room.found(Space(1 << 30), ())
    token = setting.left(1000, b"x")
    for name in (new_token(PATH), token):
        for _ in range(3):
            upload = setting.resumables.append(name, Part(1 << 50, last=True, offset=1))
            assert upload.owed == 0
            begun(upload)
    setting.room.claim(1 << 29)


def test_a_part_that_goes_on_takes_room(setting: Setting) -> None:
    """Room for a part is kept as soon as its upload was found."""
    token = setting.left(1000, b"x" * 400)
    setting.room.found(Space(1000), ())
    upload = setting.append(token, Part(600, last=True, offset=400))
    with pytest.raises(NoRoom):
        setting.room.claim(401)
    setting.room.claim(400)
    upload.abandon()


def test_a_part_without_room(setting: Setting) -> None:
    """A part that can not fit fails, and its upload can be gone on with when there is room again."""
    token = setting.left(1000, b"x" * 400)
    setting.room.found(Space(599), ())
    upload = setting.resumables.append(token, Part(600, last=True, offset=400))
    failures: list[Any] = []
    upload.done.addErrback(failures.append)
    upload.begin()
    assert failures[0].check(NoRoom)
    assert not_stored(failures[0]).status == 507
    assert setting.files.read(token).safe == 400
    setting.room.found(Space(600), ())
    upload = setting.append(token, Part(600, last=True, offset=400))
    upload.write(b"x" * 600)
    upload.unregisterProducer()
    assert upload.session is not None
    assert upload.session.complete


def test_pieces_that_never_found_room(setting: Setting) -> None:
    """What came while a piece waits for room is never taken for that piece when its client goes."""
    setting.room.found(Space(1 << 30), ())
    body = os.urandom(12 * CHUNK)
    upload = setting.create(40 * CHUNK, Part(40 * CHUNK, last=True))
    setting.room.found(Space(1), ())
    for start in range(0, len(body), CHUNK):
        upload.write(body[start : start + CHUNK])
    upload.abandon()
    safe = setting.files.read(upload.token).safe
    data = Path(os.readlink(f"/proc/self/fd/{setting.files.place.own}")) / f"{upload.token}.data"
    assert data.read_bytes() == body[:safe]
    assert safe == len(body)


@pytest.mark.parametrize(("free", "safe"), [(CHUNK, 9 * CHUNK), (0, None)], ids=["crowded", "full"])
def test_room_that_others_need(setting: Setting, free: int, safe: int | None) -> None:
    """An upload that ends because others need the room can be gone on with; on a full disk nothing of it stays."""
    setting.room.found(Space(1 << 30), ())
    upload = setting.resumables.create(Slot(PATH, 40 * CHUNK, None), Part(40 * CHUNK, last=True), 6, None, "192.0.2.7")
    failures: list[Any] = []
    upload.done.addErrback(failures.append)
    upload.begin()
    setting.room.found(Space(free), ())
    for _ in range(9):
        upload.write(b"x" * CHUNK)
    setting.clock.pump([10] * 3)
    assert not_stored(failures[0]).status == 507
    assert upload.dropped == (safe is None)
    if safe is not None:
        assert setting.files.read(upload.token).safe == safe


# Progress


def test_a_slow_client_is_told(setting: Setting) -> None:
    """Few bytes that came slowly are safe, and told to be, after so many seconds; and so are those after them."""
    upload = setting.create(1000, Part(1000, last=True))
    told: list[int] = []
    upload.progress = told.append
    for count in (3, 4):
        upload.write(b"x" * count)
        setting.clock.advance(SAVE_SECONDS - 1)
        upload.write(b"y")
        setting.clock.advance(1)
    assert told == [4, 9]
    assert setting.files.read(upload.token).safe == 9
    upload.abandon()
    assert not setting.clock.getDelayedCalls()


def test_what_was_written_is_told_too(setting: Setting) -> None:
    """A piece that was written is safe after so many seconds, also if nothing comes after it."""
    upload = setting.create(2 * CHUNK, Part(2 * CHUNK, last=True))
    upload.write(b"x" * CHUNK)
    assert setting.files.read(upload.token).safe == 0
    setting.clock.advance(SAVE_SECONDS)
    assert setting.files.read(upload.token).safe == CHUNK
    upload.write(b"x" * CHUNK)
    upload.unregisterProducer()
    assert setting.files.read(upload.token).complete
    assert not setting.clock.getDelayedCalls()


# The end


def test_a_drop_that_fails(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses to remove an upload nobody holds it, and it can be dropped later."""
    token = setting.left(1000, b"x")
    before = len(os.listdir("/proc/self/fd"))

    def fail(self: SessionFiles, token: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    failures: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(SessionFiles, "remove", fail)
        setting.resumables.cancel(token).addErrback(failures.append)
    assert failures[0].check(OSError)
    assert len(os.listdir("/proc/self/fd")) == before
    setting.resumables.cancel(token)
    assert setting.files.count() == 0
