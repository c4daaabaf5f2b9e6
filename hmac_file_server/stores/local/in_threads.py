"""Drafts and sessions of the disk, whose blocking calls run in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.stores.interface import Chunks, Condition, IDraft, IPart, ISessions, Source
from hmac_file_server.stores.local.draft import Draft
from hmac_file_server.stores.local.part import DiskPart
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.local.threads import Bulk, Run
from hmac_file_server.stores.session import Part, Session


@implementer(IDraft)
class DraftInThreads:
    """A draft.

    :param draft: does the work.
    :param run: runs its calls.
    """

    def __init__(self, draft: Draft | DiskPart, run: Run) -> None:
        self._draft = draft
        self._run = run

    @property
    def path(self) -> SlotPath | None:
        return self._draft.path

    @property
    def end(self) -> int:
        return self._draft.end

    @property
    def position(self) -> int:
        return self._draft.position

    @property
    def owed(self) -> int:
        return self._draft.owed

    @property
    def takes_from_sockets(self) -> bool:
        return self._draft.splices

    @property
    def claimed(self) -> int:
        return self._draft.claimed

    @claimed.setter
    def claimed(self, size: int) -> None:
        self._draft.claimed = size

    @property
    def condition(self) -> Condition | None:
        return self._draft.condition

    @condition.setter
    def condition(self, condition: Condition | None) -> None:
        self._draft.condition = condition

    @property
    def digests(self) -> Sequence[bytes]:
        return self._draft.digests

    @digests.setter
    def digests(self, digests: Sequence[bytes]) -> None:
        self._draft.digests = digests

    def begin(self) -> Deferred[None]:
        return self._run(self._draft.begin)

    def write(self, chunks: Chunks, source: Source | None = None) -> Deferred[None]:
        draft = self._draft
        if source is None:
            return self._run(lambda: draft.write(chunks))
        return self._run(Bulk(lambda: draft.write(chunks, source)))

    def publish(self, chunks: Chunks) -> Deferred[None]:
        return self._run(self._draft.finisher(chunks))

    def give_up(self, chunks: Chunks, reason: Exception) -> Deferred[None]:
        return self._run(lambda: self._draft.give_up(chunks, reason))


@implementer(IPart)
class PartInThreads(DraftInThreads):
    """A part of an upload that can be resumed."""

    def __init__(self, part: DiskPart, run: Run) -> None:
        super().__init__(part, run)
        self._part = part

    @property
    def token(self) -> str:
        return self._part.token

    @property
    def part(self) -> Part:
        return self._part.part

    @property
    def session(self) -> Session | None:
        return self._part.session

    @property
    def dropped(self) -> bool:
        return self._part.dropped

    def reserve(self) -> Deferred[None]:
        return self._run(self._part.reserve)

    def write_safely(self, chunks: Chunks) -> Deferred[None]:
        return self._run(lambda: self._part.write_safely(chunks))


@implementer(ISessions)
class SessionsInThreads:
    """The sessions.

    :param files: gives their files; they change their place when the store is mounted anew.
    :param writers: run what belongs to an upload.
    :param readers: run what only looks.
    """

    def __init__(self, files: Callable[[], SessionFiles], timeout: float, writers: Run, readers: Run) -> None:
        self._files = files
        self.timeout = timeout
        self._writers = writers
        self._readers = readers

    def create(self, session: Session, part: Part) -> PartInThreads:
        return PartInThreads(DiskPart(self._files(), session, part), self._writers)

    def append(self, token: str, part: Part) -> PartInThreads:
        return PartInThreads(DiskPart(self._files(), token, part), self._writers)

    def read(self, token: str) -> Deferred[Session]:
        return self._readers(lambda: self._files().read(token))

    def settle(self, token: str) -> Deferred[Session]:
        return self._writers(lambda: self._files().settle(token))

    def drop(self, token: str) -> Deferred[None]:
        return self._writers(lambda: self._files().drop(token))

    def want(self, token: str) -> Deferred[None]:
        return self._writers(lambda: self._files().want(token))

    def wanted(self, tokens: Iterable[str]) -> Deferred[list[str]]:
        files = self._files()
        return self._readers(lambda: [token for token in tokens if files.wanted(token)])

    def sweep(self) -> Deferred[list[Session]]:
        return self._readers(lambda: self._files().sweep())

    def count(self) -> Deferred[int]:
        return self._readers(lambda: self._files().count())
