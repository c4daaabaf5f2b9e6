"""Resumable uploads: begun once, gone on with by as many requests as the network makes necessary."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from hmac_file_server.files.upload import Standing, State, Superseded, Upload, Uploads
from hmac_file_server.slots.slot import Slot
from hmac_file_server.stores.errors import Cancelled, Held, NoSession
from hmac_file_server.stores.interface import IPart, ISessions
from hmac_file_server.stores.session import Part, Session, new_token, same_slot

SAVE_SECONDS = 5.0
"""How long what has come waits at most to be made safe, and to be told."""

_MOST_KEPT = 4096
_TRY_EVERY = 0.1
_ASK_EVERY = 1.0
_PATIENCE = 10.0

T = TypeVar("T")

Step = Callable[[], "Deferred[T]"]
Run = Callable[[Callable[[], "Deferred[Any]"]], "Deferred[Any]"]
"""Runs a step, again if it may succeed then."""


class Busy(Exception):
    """Another process does not let go of the upload."""


class TooMany(Exception):
    """So many uploads wait to be resumed that no further one can."""


class ResumableUpload(Upload):
    """One request of a resumable upload. It begins with :meth:`Upload.begin`, once.

    :param is_new: whether it is the first request of its session.
    :ivar take: runs the step that takes the session for it.
    :ivar token: names its session.
    :ivar part: what the request brings.
    :ivar progress: told of the bytes that are safe, as they become more.
    :ivar closed: fires when it holds nothing any more.
    """

    _draft: IPart
    take: Callable[[Run], Deferred[None]]

    def __init__(self, draft: IPart, uploads: Uploads, clock: IReactorTime, is_new: bool) -> None:
        super().__init__(draft, uploads)
        self.progress: Callable[[int], None] = lambda safe: None
        self.token = draft.token
        self.is_new = is_new
        self.part = draft.part
        self._clock = clock
        self._save_call: IDelayedCall | None = None
        self._save_is_due = False
        self._told = 0
        self.closed: Deferred[None] = Deferred()

    @property
    def begins_early(self) -> bool:
        return True

    @property
    def has_right(self) -> bool:
        return self.is_new or self.session is not None

    @property
    def goes_on(self) -> bool:
        return not self.is_new

    @property
    def session(self) -> Session | None:
        """The record, as soon as it is known."""
        return self._draft.session

    @property
    def whole(self) -> bool:
        return self.part.last

    @property
    def dropped(self) -> bool:
        """Whether nobody can go on with it."""
        return self._draft.dropped

    def standing(self) -> Standing | None:
        session = self.session
        if session is None:
            return None
        name, owner = session.path.name, session.owner or ""
        return Standing(self.received, session.length, session.begun, name, owner, session.client)

    def begin(self) -> Deferred[None]:
        ready: Deferred[None] = Deferred()
        self._running = True
        self.take(self._loop.run).addCallbacks(
            self._succeeded, self._failed, callbackArgs=(lambda: ready.callback(None),)
        )
        return ready

    def write(self, data: bytes) -> None:
        super().write(data)
        self._save_later()

    def _readable(self) -> None:
        super()._readable()
        self._save_later()

    def _save_later(self) -> None:
        if self._save_call is None and self._state is not State.OVER:
            self._save_call = self._clock.callLater(SAVE_SECONDS, self._save)

    def _save(self) -> None:
        self._save_call, self._save_is_due = None, True
        self._proceed()

    def _proceed(self) -> None:
        if self._save_is_due and self._state is not State.COMPLETE and not self._must_wait:
            self._save_is_due = False
            chunks = self._take()
            self._run(lambda: self._draft.write_safely(chunks))
        else:
            super()._proceed()

    def _end(self) -> None:
        if self._save_call is not None:
            self._save_call.cancel()
            self._save_call = None
        super()._end()

    def _tell(self, outcome: Failure | None) -> None:
        super()._tell(outcome)
        self.closed.callback(None)

    def _stepped(self) -> None:
        session = self._draft.session
        if session is not None and session.safe > self._told and self._state is State.RECEIVING:
            self._told = session.safe
            self.progress(session.safe)


class Resumables:
    """All resumable uploads of the store.

    :param kept: tells how many there are, for all that share the store.
    :param clock: for waiting until another process lets go, and for what is done now and then.
    :ivar timeout: seconds after which one ends that is not complete.
    """

    def __init__(self, sessions: ISessions, uploads: Uploads, kept: Callable[[], int], clock: IReactorTime) -> None:
        self._sessions = sessions
        self._uploads = uploads
        self._kept = kept
        self._clock = clock
        self._live: dict[str, ResumableUpload] = {}
        self.timeout = sessions.timeout

    def create(self, slot: Slot, part: Part, version: int, digest: bytes | None, client: str) -> ResumableUpload:
        """Begin an upload. What was kept of an earlier one of the slot is dropped, when this one begins.

        :param part: what its first request brings.
        :param version: of the draft that the client speaks.
        :param digest: the SHA-256 that the whole file must have, if the client says.
        :raises NoRoom: if it can not fit.
        :raises Away: if the store can not be reached.
        :raises TooMany: if no further one is kept.
        """
        if self._kept() >= _MOST_KEPT:
            raise TooMany
        now = time.time()
        token = new_token(slot.path)
        session = Session(
            token,
            slot.path,
            slot.size,
            slot.media_type,
            version,
            digest,
            client,
            begun=now,
            touched=now,
            owner=slot.owner,
            end=slot.end,
        )
        alike = [upload for upload in self._live.values() if same_slot(upload.token, token)]
        older = next((upload for upload in reversed(alike) if upload.path == slot.path), None)
        return self._start(self._sessions.create(session, part), True, slot.size, older, Cancelled())

    def append(self, token: str, part: Part) -> ResumableUpload:
        """Go on with an upload; a request of it that is still running here or elsewhere is ended.

        Fails as :class:`IPart` says, with :exc:`Busy`, or as the following if the part can not fit.

        :raises NoRoom: if nothing can fit.
        :raises Away: if the store can not be reached.
        """
        return self._start(self._sessions.append(token, part), False, 0, self._live.get(token), Superseded())

    def _start(
        self, draft: IPart, is_new: bool, claim: int, older: ResumableUpload | None, reason: Exception
    ) -> ResumableUpload:
        upload = ResumableUpload(draft, self._uploads, self._clock, is_new)
        upload.take = lambda run: Deferred.fromCoroutine(self._begun(upload, draft, older, reason, run))
        self._uploads.add(upload, claim)
        self._live[draft.token] = upload
        upload.closed.addCallback(self._closed, upload)
        return upload

    async def _begun(
        self, upload: ResumableUpload, draft: IPart, older: ResumableUpload | None, reason: Exception, run: Run
    ) -> None:
        await self._taken(older, reason, lambda: run(draft.begin))
        if not upload.is_new:
            # Whoever says how long its part is need not have signed anything: until now that was not worth any room.
            self._uploads.enter(upload, upload.part.size)
            await run(draft.reserve)

    def _closed(self, _: None, upload: ResumableUpload) -> None:
        if self._live.get(upload.token) is upload:
            del self._live[upload.token]

    def status(self, token: str) -> Deferred[Session]:
        """How far an upload is; a request of it that is still running is ended.

        Fails with NoSession or :exc:`Busy`.
        """
        return Deferred.fromCoroutine(
            self._taken(self._live.get(token), Superseded(), lambda: self._sessions.settle(token))
        )

    def cancel(self, token: str) -> Deferred[None]:
        """End an upload, and drop what there is of it. Fails with NoSession or :exc:`Busy`."""
        return Deferred.fromCoroutine(self._cancelled(token))

    async def _cancelled(self, token: str) -> None:
        live = self._live.get(token)
        try:
            await self._taken(live, Cancelled(), lambda: self._sessions.drop(token))
        except NoSession:
            if live is None or not live.dropped:
                raise  # Else the request that ran has seen to it.

    async def _taken(self, older: ResumableUpload | None, reason: Exception, step: Step[T]) -> T:
        """Run a step that needs a session for itself, as soon as nobody else has it.

        :param older: a request of it that runs here, which is abandoned for the reason.
        """
        if older is not None:
            older.abandon(reason)
            await _when_closed(older)
        now = self._clock.seconds()
        end, ask = now + _PATIENCE, now
        while True:
            try:
                return await step()
            except Held as held:
                want, now = functools.partial(self._sessions.want, held.token), self._clock.seconds()
                if now >= end:
                    raise Busy from None
            if now >= ask:
                ask = now + _ASK_EVERY
                await want()
            await deferLater(self._clock, _TRY_EVERY, lambda: None)


def _when_closed(upload: ResumableUpload) -> Deferred[None]:
    closed: Deferred[None] = Deferred()
    upload.closed.addCallback(closed.callback)
    return closed
