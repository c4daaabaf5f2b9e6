"""Uploads: the consumer of a request's body, which brings it to the store piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from hmac_file_server.slots.signature import Slot
from hmac_file_server.stores.draft import Chunks, Condition, Draft
from hmac_file_server.stores.local import LocalStore
from hmac_file_server.stores.room import Room
from hmac_file_server.stores.sessions import Session
from hmac_file_server.stores.splice import Source
from hmac_file_server.threads import Bulk
from hmac_file_server.uploads.keeper import ISessionKeeper
from hmac_file_server.uploads.retry import InThread, RetryLoop, RetryPolicy

MEMORY = 32 << 20
"""Bytes that all uploads together gather before they write; many at once write smaller pieces."""

_SMALLEST_PIECE = 16 << 10
_CRUMB = 4 << 10
_WORTHWHILE = 64 << 10


class ILender(IPushProducer):
    """A push producer whose bytes a thread can take from its socket."""

    def lend() -> Source | None:
        """Lend the socket to a thread. Nobody else reads it until it is given back.

        :returns: None where that can not be, or would not pay.
        """

    def watch(ready: Callable[[], None]) -> None:  # noqa: N805  # interfaces have no self
        """Resume, but read nothing.

        :param ready: told once, when there is something to read.
        """


class Broken(Exception):
    """The client went away before the body was complete."""


class Uploads:
    """All uploads of the daemon, and what they share.

    :param store: where they go.
    :param room: keeps account of the free space.
    :param in_thread: runs the store's blocking calls.
    :param policy: when a refused step is tried again.
    :param chunk_size: bytes that an upload gathers before it writes them.
    :param keeper: is told of each, if there is one.
    """

    def __init__(
        self,
        store: LocalStore,
        room: Room,
        in_thread: InThread,
        policy: RetryPolicy,
        chunk_size: int,
        keeper: ISessionKeeper | None = None,
    ) -> None:
        self._store = store
        self._room = room
        self._policy = policy
        self._chunk_size = chunk_size
        self._keeper = keeper
        self.in_thread = in_thread
        self.active: set[Upload] = set()
        self._idle: Deferred[None] | None = None

    def start(self, slot: Slot, client: str = "") -> Upload:
        """Begin to receive the file of a slot whose signature was verified.

        :param client: its address.
        :raises NoRoom: if it can not fit.
        :raises Away: if the store can not be reached.
        """
        draft = self._store.draft(slot.path, slot.size, slot.media_type)
        upload = Upload(draft, self)
        upload.slot, upload.client, upload.begun = slot, client, time.time()
        self.add(upload, slot.size)
        return upload

    def claim(self, size: int) -> None:
        """Keep room for what an upload is going to store.

        :param size: bytes.
        :raises NoRoom: if they can not fit.
        :raises Away: if the store can not be reached.
        """
        self._room.claim(size)

    def add(self, upload: Upload, claim: int) -> None:
        """Take note of an upload that is about to begin.

        :param claim: bytes that it is going to store, as far as that is certain.
        :raises NoRoom: if they can not fit.
        :raises Away: if the store can not be reached.
        """
        self.claim(claim)
        upload.doubtful = self._room.doubtful
        self.active.add(upload)
        if self._keeper is not None:
            self._keeper.begun(upload)

    def closed(self, upload: Upload) -> None:
        """Take note that an upload holds nothing any more."""
        self.active.discard(upload)
        if not self.active and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.callback(None)
        if self._keeper is not None:
            self._keeper.ended(upload)

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
        return RetryLoop(self._policy, self.in_thread)

    def share(self) -> int:
        """Bytes that each upload may have in hand at the moment; it has so many twice at the most."""
        return max(_SMALLEST_PIECE, MEMORY // (2 * max(1, len(self.active))))

    def piece_size(self) -> int:
        """Bytes that one upload gathers at the moment before it writes."""
        return min(self._chunk_size, self.share())


@implementer(IConsumer)
class Upload:
    """One request's body on its way to the disk.

    ``unregisterProducer`` says that the body is complete; :meth:`abandon` that it never will be.

    :ivar done: fires with None when the file is public and safe; fails with SlotTaken, OSError
        or :exc:`Broken`.
    :ivar token: names its session, empty if it can not be resumed.
    :ivar is_new: whether it is the first request of its session.
    :ivar slot: what was signed, where that is known here.
    :ivar client: the address of who sends it.
    :ivar begun: when, in seconds since 1970.
    :ivar doubtful: whether the store is likely to refuse it, and should be asked before its body is waited for.
    """

    doubtful = False
    token = ""
    is_new = True
    slot: Slot | None = None
    client = ""
    begun = 0.0

    def __init__(self, draft: Draft, uploads: Uploads) -> None:
        self._draft = draft
        self._uploads = uploads
        self._loop = uploads.loop()
        self._in_thread = uploads.in_thread
        self._producer: IPushProducer | None = None
        self._lender: ILender | None = None
        self._source: Source | None = None
        self._is_readable = False
        self._paused = False
        self._gathered: Chunks = []
        self._gathered_size = 0
        self._complete = False
        self._running = False
        self._outcome: Failure | None = None
        self._over = False
        self.done: Deferred[None] = Deferred()

    @property
    def session(self) -> Session | None:
        """The record of an upload that can be resumed."""
        return None

    @property
    def whole(self) -> bool:
        """Whether the file is whole after it."""
        return True

    @property
    def stored(self) -> bool:
        """Whether it has come to its end, and the file is public by it."""
        return self.whole and self._over and self._outcome is None

    @property
    def broken(self) -> bool:
        """Whether its client went away before all of it had come."""
        return self._outcome is not None and self._outcome.check(Broken) is not None

    @property
    def owed(self) -> int:
        """Bytes that the upload has still to take from the store's free space."""
        return self._draft.owed

    @property
    def share(self) -> int:
        """Bytes that it should be given at once, at the most, as things are."""
        return self._uploads.share()

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
        self._complete = True
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
        if self._over or self._outcome is not None:
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
        if self._gathered and self._running:
            self._pause()

    def _pause(self) -> None:
        if self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def abandon(self, reason: Exception | None = None) -> None:
        """Stop, and leave nothing behind. Does nothing once the upload is over.

        :param reason: what ``done`` fails with; :exc:`Broken` by default.
        """
        if self._over or self._outcome is not None:
            return
        if reason is None and self._complete:
            # All has come: it is published, but nothing is tried again for a client that has left.
            self._loop.stop()
            return
        self._outcome = Failure(reason or Broken("the client closed the connection"))
        self._let_go()
        if self._running:
            self._loop.stop()
        else:
            self._end()

    def _proceed(self) -> None:
        if self._running or self._over:
            return
        if self._complete:
            chunks = self._take()
            self._run(self._draft.finisher(chunks), self._published)
        elif self._is_readable or self._gathered_size >= self._uploads.piece_size():
            self._is_readable = False
            self._write_out(self._take())

    def _write_out(self, chunks: Chunks) -> None:
        """Write a piece, and what follows it straight from the socket, as far as it is there already."""
        lender = self._lender if self._draft.splices else None
        source = self._source = lender.lend() if lender is not None else None
        if source is None:
            self._run(lambda: self._draft.write(chunks))
        else:
            self._pause()
            self._run(Bulk(lambda: self._draft.write(chunks, source)))

    def _readable(self) -> None:
        self._pause()
        self._is_readable = True
        self._proceed()

    def _let_go(self) -> None:
        self._producer = self._lender = None

    def _take(self) -> Chunks:
        chunks, self._gathered, self._gathered_size = self._gathered, [], 0
        return chunks

    def _run(self, step: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
        self._running = True
        self._loop.run(step).addCallbacks(self._succeeded, self._failed, callbackArgs=(then,))

    def _succeeded(self, result: None, then: Callable[[], None]) -> None:
        self._running = False
        source = self._given_back()
        self._stepped()
        then()
        if self._over:
            return
        if self._outcome is not None:
            self._end()
            return
        if self._paused and self._producer is not None:
            self._resume(self._producer, source)
        self._proceed()

    def _given_back(self) -> Source | None:
        source, self._source = self._source, None
        if source is not None:
            source.give_back(source)
        return source

    def _resume(self, producer: IPushProducer, source: Source | None) -> None:
        if source is None or source.taken < _WORTHWHILE or self._lender is None:
            self._paused = False
            producer.resumeProducing()
        elif source.dry:
            # A client as fast as we are: a thread takes what comes next, too.
            self._paused = False
            self._lender.watch(self._readable)
        else:
            self._is_readable = True

    def _stepped(self) -> None:
        """A step on the disk has succeeded."""

    def _published(self) -> None:
        self._outcome = None
        self._end()

    def _failed(self, failure: Failure) -> None:
        self._running = False
        self._given_back()
        if self._outcome is None:
            self._outcome = failure
        self._end()

    def _end(self) -> None:
        """Close the draft, then tell: an answer goes out when nothing of a failed upload is left."""
        self._over = True
        chunks = self._take()
        self._let_go()
        outcome = self._outcome
        if outcome is None:
            self._tell(None)
        else:
            reason = outcome.value
            assert isinstance(reason, Exception)
            self._in_thread(lambda: self._draft.give_up(chunks, reason)).addBoth(lambda _: self._tell(outcome))

    def _tell(self, outcome: Failure | None) -> None:
        self.done.callback(outcome)  # type: ignore[arg-type]  # a Failure takes the errback's way
        self._uploads.closed(self)
