"""Uploads: the consumer of a request's body, which brings it to the store piece by piece."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from hmac_file_server.files.retry import RetryLoop, RetryPolicy
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.slot import Slot
from hmac_file_server.stores.errors import SlotRemoved
from hmac_file_server.stores.faults import Crowded, is_full
from hmac_file_server.stores.interface import Chunks, Condition, IDraft, IStore, Present
from hmac_file_server.stores.room import Away, NoRoom, Room
from hmac_file_server.web.body import Broken, IBodyConsumer, ILender, Loan

MEMORY = 32 << 20
"""Bytes that all uploads together gather before they write; many at once write smaller pieces."""

_AHEAD = 16 << 20
_AT_ONCE = 4
_SMALLEST_PIECE = 16 << 10
_CRUMB = 4 << 10
_WORTHWHILE = 64 << 10


class Superseded(Exception):
    """A newer request took the upload's place."""

    def __init__(self) -> None:
        super().__init__("a newer request goes on with this upload")


class IUploadWatcher(Interface):
    """Is told of uploads; what it is told never waits for anything."""

    def begun(upload: Upload) -> None:  # noqa: N805  # methods of an Interface have no self
        """An upload runs. When somebody else takes its slot it is abandoned with :exc:`Superseded`."""

    def ended(upload: Upload) -> None:  # noqa: N805
        """It does not run any more."""


class State(Enum):
    """How far an upload is."""

    RECEIVING = auto()
    """Its body arrives."""
    COMPLETE = auto()
    """All of its body has come, and is on its way to the store."""
    FAILING = auto()
    """It has failed, and the store is still busy with a step of it."""
    OVER = auto()
    """It is stored, or what the store has of it is being dropped, or kept to be resumed."""


@attrs.frozen
class Standing:
    """How far an upload is, and whose.

    :param received: bytes of the file that have come, those of earlier requests too.
    :param size: of the file in bytes.
    :param begun: when it began, in seconds since 1970.
    :param name: of the file.
    :param owner: as the XMPP server says; empty if it does not.
    :param client: the address of who sends it.
    """

    received: int
    size: int
    begun: float
    name: str
    owner: str
    client: str


class Uploads:
    """All uploads of the daemon, and what they share.

    :param store: where they go.
    :param room: keeps account of the free space.
    :param policy: when a refused step is tried again.
    :param chunk_size: bytes that an upload gathers before it writes them.
    :ivar watcher: is told of each, if there is one.
    """

    watcher: IUploadWatcher | None = None

    def __init__(
        self,
        store: IStore,
        room: Room,
        policy: RetryPolicy,
        chunk_size: int,
    ) -> None:
        self._store = store
        self._room = room
        self._policy = policy
        self._chunk_size = chunk_size
        self.active: dict[Upload, None] = {}  # in the order in which they began
        self._by_slot: dict[tuple[bytes, ...], list[Upload]] = {}
        self._idle: Deferred[None] | None = None

    def configure(self, policy: RetryPolicy, chunk_size: int) -> None:
        """Change what holds for the uploads that begin from now on."""
        self._policy, self._chunk_size = policy, chunk_size

    def start(self, slot: Slot, client: str = "") -> Upload:
        """Begin to receive the file of a slot whose signature was verified.

        :param client: its address.
        :raises NoRoom: if it can not fit.
        :raises Away: if the store can not be reached.
        """
        draft = self._store.draft(slot.path, slot.size, slot.attributes)
        upload = Upload(draft, self)
        upload.slot, upload.client, upload.begun = slot, client, time.time()
        self.add(upload, slot.size)
        return upload

    def was_removed(self, path: SlotPath) -> bool:
        """Whether a slot's file was removed, as far as that is known at once."""
        return self._store.was_removed(path)

    def remove(self, path: SlotPath, condition: Condition | None) -> Deferred[Present | None]:
        """Remove a slot's file for good. Uploads of it that run end.

        :returns: as :meth:`IStore.remove`.
        """
        return self._store.remove(path, condition).addCallback(self._end_uploads, path)

    def _end_uploads(self, there: Present | None, path: SlotPath) -> Present | None:
        for upload in self._by_slot.get(path.segments, [])[:]:
            upload.abandon(SlotRemoved())
        return there

    def enter(self, upload: Upload, size: int) -> None:
        """Let an upload have room, and its turn among those of its slot, as soon as it is known that it has a right.

        :param size: bytes that it is going to store.
        :raises NoRoom: if they can not fit.
        :raises Away: if the store can not be reached.
        """
        self._room.check(size)
        path = upload.path
        if path is not None:
            upload.alike = self._by_slot.setdefault(path.segments, [])
            upload.alike.append(upload)
            upload.keep_room()

    def claim(self, upload: Upload, size: int) -> bool:
        """Keep room for what an upload is about to store. Of several of one slot, one is stored, and so one claims.

        :param size: bytes.
        :returns: whether it is kept.
        :raises NoRoom: if they can not fit.
        """
        try:
            if upload.alike[:1] != [upload]:
                self._room.check(size)
                return False
            self._room.claim(size)
        except Away:
            return False
        return True

    def make_way(self) -> None:
        """Of several uploads that wait for room let the one that began last wait no more.

        If none did so, all would wait until they all end.
        """
        waiting = [upload for upload in self.active if upload.waits_for_room]
        if len(waiting) > 1:
            waiting[-1].wait_no_more()

    def lacks_room(self, reason: str) -> OSError:
        """What an upload fails with, if not tried again, that has met :exc:`NoRoom`."""
        return OSError(errno.ENOSPC, reason) if self._room.full else Crowded(reason)

    def is_in_turn(self, upload: Upload) -> bool:
        """Whether an upload may write. A few of one slot at once may: one of them has lost its client, say."""
        return len(upload.alike) <= _AT_ONCE or upload in upload.alike[:_AT_ONCE]

    def add(self, upload: Upload, size: int) -> None:
        """Take note of an upload that is about to begin.

        :param size: bytes that it is going to store, as far as that is certain.
        :raises NoRoom: if they can not fit.
        :raises Away: if the store can not be reached.
        """
        self.enter(upload, size)
        upload.doubtful = self._room.doubtful
        self.active[upload] = None
        if self.watcher is not None:
            self.watcher.begun(upload)

    def ran_out(self) -> None:
        """Take note that an upload found no room on the disk."""
        self._room.ran_out = True

    def closed(self, upload: Upload) -> None:
        """Take note that an upload holds nothing any more."""
        self.active.pop(upload, None)
        self._leave(upload)
        if not self.active and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.callback(None)
        if self.watcher is not None:
            self.watcher.ended(upload)

    def _leave(self, upload: Upload) -> None:
        alike, upload.alike = upload.alike, []
        if not alike:
            return
        alike.remove(upload)
        path = upload.path
        if not alike and path is not None:
            del self._by_slot[path.segments]
        for other in alike[:_AT_ONCE]:
            other.go_on()

    def when_idle(self) -> Deferred[None]:
        """Fires when no upload runs any more."""
        idle: Deferred[None] = Deferred()
        if self.active:
            self._idle = idle
        else:
            idle.callback(None)
        return idle

    def loop(self) -> RetryLoop:
        """A retry loop for one upload."""
        return RetryLoop(self._policy)

    def share(self) -> int:
        """Bytes that each upload may have in hand at the moment; it has so many twice at the most."""
        return max(_SMALLEST_PIECE, MEMORY // (2 * max(1, len(self.active))))

    def piece_size(self) -> int:
        """Bytes that one upload gathers at the moment before it writes."""
        return min(self._chunk_size, self.share())


@implementer(IBodyConsumer)
class Upload:
    """One request's body on its way to the disk.

    ``unregisterProducer`` says that the body is complete; :meth:`abandon` that it never will be.

    :ivar done: fires with None when the file is public and safe; fails with SlotTaken, OSError
        or :exc:`Broken`.
    :ivar slot: what was signed, where that is known here.
    :ivar client: the address of who sends it.
    :ivar begun: when, in seconds since 1970.
    :ivar alike: all uploads of its slot, the first one first; none while its slot is not known.
    :ivar doubtful: whether the store is likely to refuse it, and should be asked before its body is waited for.
    """

    doubtful = False
    slot: Slot | None = None
    client = ""
    begun = 0.0

    def __init__(self, draft: IDraft, uploads: Uploads) -> None:
        self._draft = draft
        self._uploads = uploads
        self._loop = uploads.loop()
        self._producer: IPushProducer | None = None
        self._lender: ILender | None = None
        self._loan: Loan | None = None
        self._is_readable = False
        self._paused = False
        self._is_short = False
        self._gathered: Chunks = []
        self._writing: Chunks = []
        self._gathered_size = 0
        self._state = State.RECEIVING
        self._running = False
        self._outcome: Failure | None = None
        self.alike: list[Upload] = []
        self.done: Deferred[None] = Deferred()

    @property
    def begins_early(self) -> bool:
        """Whether the store should be asked before the body is waited for."""
        return self.doubtful

    @property
    def has_right(self) -> bool:
        """Whether its client has shown that it may store something."""
        return True

    @property
    def goes_on(self) -> bool:
        """Whether it goes on with what an earlier request has brought."""
        return False

    @property
    def whole(self) -> bool:
        """Whether the file is whole after it."""
        return True

    @property
    def stored(self) -> bool:
        """Whether it has come to its end, and the file is public by it."""
        return self.whole and self._state is State.OVER and self._outcome is None

    @property
    def broken(self) -> bool:
        """Whether its client went away before all of it had come."""
        return self._outcome is not None and self._outcome.check(Broken) is not None

    @property
    def path(self) -> SlotPath | None:
        """The slot's; None while that is not known."""
        return self._draft.path

    @property
    def owed(self) -> int:
        """Bytes that are kept for the upload, and that it has still to take from the store's free space."""
        return self._draft.owed

    @property
    def share(self) -> int:
        """Bytes that it should be given at once, at the most, as things are."""
        return self._uploads.share()

    @property
    def received(self) -> int:
        """Bytes of the file that have come; while some are written those may count twice."""
        came = self._draft.position + sum(map(len, self._writing)) + self._gathered_size
        return min(came, self._draft.end)

    def standing(self) -> Standing | None:
        """How far it is; None while nothing is known of it."""
        slot = self.slot
        if slot is None:
            return None
        return Standing(self.received, slot.size, self.begun, slot.path.name, slot.owner or "", self.client)

    def store_only_if(self, condition: Condition) -> None:
        """Make a condition, before it begins, of what is at the slot's path."""
        self._draft.condition = condition

    def digests_are(self, digests: Sequence[bytes]) -> None:
        """Say, before it begins, which SHA-256 the file has."""
        self._draft.digests = digests

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Take the body from a push producer, which is paused while the disk is behind."""
        if not streaming:
            raise ValueError("an upload takes its bytes from a push producer")
        self._producer = IPushProducer(producer)
        self._lender = ILender(producer, None)

    def unregisterProducer(self) -> None:
        """The body is complete: publish it."""
        self._let_go()
        if self._state is State.RECEIVING:
            self._state = State.COMPLETE
        self._proceed()

    def begin(self) -> Deferred[None]:
        """Find out whether the store can take the file, before its first byte.

        :returns: fires when it can; when not, ``done`` fails instead.
        """
        ready: Deferred[None] = Deferred()
        self._run(self._draft.begin, lambda: ready.callback(None))
        return ready

    def write(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        if self._state is not State.RECEIVING:
            return
        gathered = self._gathered
        if len(data) >= _CRUMB:
            gathered.append(data)
        elif gathered and isinstance(gathered[-1], bytearray):
            gathered[-1] += data
        else:
            gathered.append(bytearray(data))
        self._gathered_size += len(data)
        if self._gathered_size < self._uploads.piece_size():
            return
        self._proceed()
        # The next piece is gathered while this one is written; the client waits when both are full.
        if self._gathered and self._must_wait:
            self._pause()

    def _pause(self) -> None:
        if self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def abandon(self, reason: Exception | None = None) -> None:
        """Stop, and leave nothing behind. Does nothing once the upload is over.

        :param reason: what ``done`` fails with; :exc:`Broken` by default.
        """
        if self._has_ended:
            return
        if reason is None and self._state is State.COMPLETE:
            # All has come: it is published, but nothing is tried again for a client that has left.
            self._loop.stop()
            return
        self._outcome = Failure(reason or Broken("the client closed the connection"))
        self._let_go()
        if self._running:
            self._state = State.FAILING
            self._loop.stop()
        else:
            self._end()

    def go_on(self) -> None:
        """It may be its turn now."""
        if self._must_wait or self._has_ended:
            return
        if self._paused and self._producer is not None:
            self._resume(self._producer, None)
        self._proceed()

    @property
    def _has_ended(self) -> bool:
        return self._state in (State.FAILING, State.OVER)

    @property
    def _must_wait(self) -> bool:
        return self._running or self._state is State.OVER or not self._uploads.is_in_turn(self)

    def _proceed(self) -> None:
        if self._must_wait:
            return
        if self._state is State.COMPLETE:
            chunks = self._take()
            self._run(lambda: self._draft.publish(chunks), self._published)
        elif self._is_readable or self._gathered_size >= self._uploads.piece_size():
            self._is_readable = False
            self._write_out(self._take())

    def _write_out(self, chunks: Chunks) -> None:
        """Write a piece, and what follows it straight from the socket, as far as it is there already."""
        lender = self._lender if self._draft.takes_from_sockets else None
        loan = self._loan = lender.lend() if lender is not None else None
        if loan is not None:
            self._pause()
        self._run(lambda: self._draft.write(chunks, loan))

    def _readable(self) -> None:
        self._pause()
        self._is_readable = True
        self._proceed()

    def _let_go(self) -> None:
        self._producer = self._lender = None

    def _take(self) -> Chunks:
        chunks = self._writing = self._gathered
        self._gathered, self._gathered_size = [], 0
        return chunks

    def keep_room(self) -> None:
        """Claim what may come next; not all of a large body, which may never come.

        :raises OSError: ENOSPC if there is no room, which may pass as on a full disk.
        """
        draft = self._draft
        claimed, end = draft.claimed, draft.end
        if claimed >= end:
            return
        position = draft.position
        arrived = position + sum(map(len, self._writing))
        if claimed - arrived >= _AHEAD // 2:
            return
        goal = min(end, arrived + _AHEAD)
        try:
            if self._uploads.claim(self, goal - max(claimed, position)):
                draft.claimed = goal
        except NoRoom as error:
            self._is_short = True
            self._uploads.make_way()
            raise self._uploads.lacks_room(str(error)) from None
        self._is_short = False

    @property
    def waits_for_room(self) -> bool:
        """Whether it goes on as soon as there is room again."""
        return self._is_short and not self._has_ended

    def wait_no_more(self) -> None:
        """Fail, if there is no room at once."""
        self._loop.stop()

    def _run(self, step: Callable[[], Deferred[None]], then: Callable[[], None] = lambda: None) -> None:
        self._running = True
        self._loop.run(step, self.keep_room).addCallbacks(self._succeeded, self._failed, callbackArgs=(then,))

    def _succeeded(self, result: None, then: Callable[[], None]) -> None:
        self._running = False
        loan = self._given_back()
        self._stepped()
        then()
        if self._state is State.FAILING:
            self._end()
        elif self._state is not State.OVER:
            if self._paused and self._producer is not None:
                self._resume(self._producer, loan)
            self._proceed()

    def _given_back(self) -> Loan | None:
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.give_back(loan)
        return loan

    def _resume(self, producer: IPushProducer, loan: Loan | None) -> None:
        if loan is None or loan.taken < _WORTHWHILE or self._lender is None:
            self._paused = False
            producer.resumeProducing()
        elif loan.dry:
            # A client as fast as we are: the store takes what comes next, too.
            self._paused = False
            self._lender.watch(self._readable)
        else:
            self._is_readable = True

    def _stepped(self) -> None:
        """A step has succeeded."""

    def _published(self) -> None:
        self._outcome = None
        self._end()

    def _failed(self, failure: Failure) -> None:
        self._running = False
        self._given_back()
        if self._outcome is None:
            self._outcome = failure
        if is_full(failure.value):
            self._uploads.ran_out()
        self._end()

    def _end(self) -> None:
        """Close the draft, then tell: an answer goes out when nothing of a failed upload is left."""
        self._state = State.OVER
        chunks = self._writing + self._take()  # What could not be written, if anything, comes first.
        self._let_go()
        outcome = self._outcome
        if outcome is None:
            self._tell(None)
        else:
            reason = outcome.value
            assert isinstance(reason, Exception)
            self._draft.give_up(chunks, reason).addBoth(lambda _: self._tell(outcome))

    def _tell(self, outcome: Failure | None) -> None:
        self.done.callback(outcome)  # type: ignore[arg-type]  # a Failure takes the errback's way
        self._uploads.closed(self)
