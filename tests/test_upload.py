from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from zope.interface import implementer

from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.upload import MEMORY, Upload, Uploads
from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.slot import Slot
from hmac_file_server.stores.errors import SlotTaken
from hmac_file_server.stores.room import NoRoom, Room, Space
from hmac_file_server.web.body import Broken
from tests.stores import local_store

CHUNK = 64 << 10
MIB = 1 << 20


class Threads:
    """Runs what it is given when the test says so, in order."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def __call__(self, function: Callable[[], Any]) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.waiting.append((function, result))
        return result

    def run(self) -> None:
        while self.waiting:
            function, result = self.waiting.pop(0)
            maybeDeferred(function).chainDeferred(result)


@implementer(IPushProducer)
class Client:
    """Takes note of whether it may send."""

    paused = False

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        raise AssertionError


class Setting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.threads = Threads()
        self.store = local_store(folder, run=self.threads)
        self.clock = Clock()
        self.room = Room(0)
        self.uploads = Uploads(self.store, self.room, RetryPolicy(self.clock, 2, 1.0), CHUNK)

    def start(self, size: int, name: bytes = b"a.bin") -> tuple[Upload, Client, list[Any]]:
        upload = self.uploads.start(Slot(slot_path([b"slot", name]), size, None))
        client, outcome = Client(), []
        upload.registerProducer(client, True)
        upload.done.addBoth(outcome.append)
        return upload, client, outcome

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    made.store.close()


def test_a_body_in_many_pieces(setting: Setting) -> None:
    """However the network cuts a body, the file has its bytes in their order."""
    sizes = [1, 2, 3, 5000, 4095, 4096, 70_000] * 10
    body = bytes(range(256)) * 4000
    body = body[: sum(sizes)]
    upload, _, outcome = setting.start(len(body))
    position = 0
    for size in sizes:
        upload.write(body[position : position + size])
        position += size
        setting.threads.run()
    upload.unregisterProducer()
    setting.threads.run()
    assert outcome == [None]
    assert setting.files() == {"slot/a.bin": body}


def test_nothing_is_public_before_the_end(setting: Setting) -> None:
    """Until the last byte is safe there is no file under the public name."""
    upload, _, _ = setting.start(3 * CHUNK)
    for _ in range(3):
        upload.write(b"x" * CHUNK)
        setting.threads.run()
    assert "slot/a.bin" not in setting.files()
    upload.unregisterProducer()
    setting.threads.run()
    assert "slot/a.bin" in setting.files()


def test_the_client_waits_for_the_disk(setting: Setting) -> None:
    """While one piece is written and the next is full, the client is paused; then it goes on."""
    upload, client, _ = setting.start(10 * CHUNK)
    upload.write(b"x" * CHUNK)
    assert not client.paused
    upload.write(b"x" * CHUNK)
    assert client.paused
    setting.threads.run()
    assert not client.paused


def test_a_small_body_is_one_job(setting: Setting) -> None:
    """A body below ChunkSize costs one trip to a thread."""
    upload, _, _ = setting.start(1000)
    upload.write(b"x" * 1000)
    assert not setting.threads.waiting
    upload.unregisterProducer()
    assert len(setting.threads.waiting) == 1


def test_many_uploads_share_the_memory(setting: Setting) -> None:
    """The more uploads run, the less each of them gathers before it writes."""
    setting.uploads = Uploads(setting.store, Room(0), RetryPolicy(Clock(), 2, 1.0), 1 << 20)
    assert setting.uploads.piece_size() == 1 << 20
    for number in range(1000):
        setting.start(1 << 20, b"%d" % number)
    assert setting.uploads.piece_size() * 1000 <= MEMORY


def test_abandoned_before_the_end(setting: Setting) -> None:
    """An upload that is broken off leaves nothing and fails with Broken."""
    upload, _, outcome = setting.start(3 * CHUNK)
    upload.write(b"x" * CHUNK)
    setting.threads.run()
    upload.abandon()
    setting.threads.run()
    assert outcome[0].check(Broken)
    assert setting.files() == {}
    assert not setting.uploads.active


def test_abandoned_while_a_thread_writes(setting: Setting) -> None:
    """The file is let go of only when the thread that writes it is done."""
    upload, _, outcome = setting.start(3 * CHUNK)
    upload.write(b"x" * CHUNK)
    upload.abandon()
    assert not outcome
    setting.threads.run()
    assert outcome[0].check(Broken)
    assert setting.files() == {}


def test_abandoned_when_all_has_come(setting: Setting) -> None:
    """A client that leaves after its last byte, while others are still being written, has its file stored."""
    upload, _, outcome = setting.start(2 * CHUNK)
    upload.write(b"x" * CHUNK)
    upload.write(b"y" * CHUNK)
    upload.unregisterProducer()
    upload.abandon()
    setting.threads.run()
    assert outcome == [None]
    assert setting.files() == {"slot/a.bin": b"x" * CHUNK + b"y" * CHUNK}


def test_late_bytes_are_dropped(setting: Setting) -> None:
    """Bytes that arrive after an upload has failed are not kept."""
    upload, _, _ = setting.start(CHUNK * 4)
    upload.abandon()
    setting.threads.run()
    upload.write(b"x" * CHUNK * 4)
    assert not setting.threads.waiting


def test_bytes_that_come_after_the_end_are_dropped(setting: Setting) -> None:
    """However much a client sends after its upload was ended, nothing of it is kept while a thread still writes."""
    upload, client, _ = setting.start(CHUNK * 1000)
    upload.write(b"x" * CHUNK)
    upload.write(b"y")
    upload.abandon()
    for _ in range(100):
        upload.write(b"z" * CHUNK)
    assert upload._gathered_size == 1
    assert not client.paused
    setting.threads.run()
    assert setting.files() == {}


def test_the_slot_is_taken(setting: Setting) -> None:
    """A second upload with other bytes fails, and the first file stays."""
    for body, expected in ((b"first", None), (b"other", SlotTaken)):
        upload, _, outcome = setting.start(5)
        upload.write(body)
        upload.unregisterProducer()
        setting.threads.run()
        assert outcome[0] is None if expected is None else outcome[0].check(expected)
    assert setting.files() == {"slot/a.bin": b"first"}


def test_begin_asks_the_store_first(setting: Setting) -> None:
    """Whether a slot is taken by a file of another length is known before the first byte."""
    upload, _, _ = setting.start(5)
    upload.write(b"first")
    upload.unregisterProducer()
    setting.threads.run()
    upload, _, outcome = setting.start(6)
    ready = upload.begin()
    setting.threads.run()
    assert outcome[0].check(SlotTaken)
    assert not ready.called


# Room


def until_it_waits(setting: Setting, upload: Upload) -> None:
    """Send so much that the upload needs more room than was kept for it at first."""
    for _ in range(9):
        upload.write(b"x" * MIB)
        setting.threads.run()


@pytest.fixture
def two(setting: Setting) -> list[tuple[Upload, Client, list[Any]]]:
    """Two uploads, and no room for either but what is kept for them already."""
    setting.room.found(Space(1 << 40), ())
    made = [setting.start(40 * MIB, name) for name in (b"a.bin", b"b.bin")]
    setting.room.found(Space(MIB), ())
    return made


def test_waiting_beside_an_older_one(setting: Setting, two: list[tuple[Upload, Client, list[Any]]]) -> None:
    """An upload that finds no room waits for some, also beside an older one that only takes its time."""
    _, (younger, _, outcome) = two
    until_it_waits(setting, younger)
    assert outcome == []
    setting.room.found(Space(1 << 40), ())
    setting.clock.advance(1)
    assert setting.threads.waiting


@pytest.mark.parametrize("gone", [False, True])
def test_giving_way(setting: Setting, two: list[tuple[Upload, Client, list[Any]]], gone: bool) -> None:
    """Of two uploads that wait for room the younger one ends, unless the older one is ending already."""
    (older, _, _), (younger, _, outcome) = two
    until_it_waits(setting, older)
    if gone:
        older.abandon()
        setting.threads.waiting.clear()  # Its end takes its time.
    until_it_waits(setting, younger)
    assert len(outcome) == (0 if gone else 1)


def test_giving_way_at_once(setting: Setting, two: list[tuple[Upload, Client, list[Any]]]) -> None:
    """An upload that waits for room ends as soon as an older one needs some, not at its next try."""
    (older, _, of_older), (younger, _, of_younger) = two
    until_it_waits(setting, younger)
    assert of_younger == []
    until_it_waits(setting, older)
    assert len(of_younger) == 1
    assert of_older == []


def test_twins_keep_what_stays_free(setting: Setting) -> None:
    """Of several uploads of one slot also those that claim nothing write only where there is room."""
    setting.room.found(Space(1 << 40), ())
    setting.start(40 * MIB)
    twin, _, outcome = setting.start(40 * MIB)
    setting.room.found(Space(MIB), ())
    twin.write(b"x" * MIB)
    assert not setting.threads.waiting
    assert outcome == []


def test_what_goes_on_is_looked_at_later() -> None:
    """Whose session is not known yet is not refused for want of room; who brings a byte is."""
    room = Room(min_free=100)
    room.found(Space(50), ())
    room.check(0)
    with pytest.raises(NoRoom):
        room.check(1)


def test_a_used_up_quota(setting: Setting) -> None:
    """While not the smallest file fits, whatever the figures say, no upload begins."""
    setting.room.found(Space(1 << 40, full=True), ())
    with pytest.raises(NoRoom):
        setting.start(10)
    setting.room.found(Space(1 << 40), ())
    setting.start(10)


def test_room_that_other_workers_have_claimed() -> None:
    """What uploads of other workers have still to take is no room for one of this worker."""
    room = Room(10)
    room.found(Space(100), [])
    room.claimed_elsewhere = 60
    with pytest.raises(NoRoom, match="60 are claimed"):
        room.check(31)
    room.check(30)
