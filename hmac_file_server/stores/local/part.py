"""Parts of an upload that can be resumed: each has a draft that takes up, and leaves, the session's data."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

import attrs

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.stores.errors import (
    AlreadyComplete,
    BadName,
    Cancelled,
    NoSession,
    SlotRemoved,
    SlotTaken,
    TooLong,
    WrongDigest,
    WrongFile,
    WrongLength,
    WrongOffset,
)
from hmac_file_server.stores.faults import NotDurable, is_full
from hmac_file_server.stores.interface import Chunks, Condition, Source
from hmac_file_server.stores.local.draft import Draft
from hmac_file_server.stores.local.sessions import DATA, SessionFiles, name_of
from hmac_file_server.stores.session import Part, Session

SAVE_BYTES = 16 << 20
"""After so many bytes what has come is made safe, and the client is told."""


class DiskPart:
    """One request's part, appended to what is there already.

    Each method blocks and belongs in a thread, one at a time.

    :param session: the record of a new upload, or the token of one that goes on.
    :raises BadName: if the file system can hold no file of that name.
    :ivar session: the record, as soon as it is taken.
    :ivar condition: the client's, if it has one.
    :ivar digests: each the SHA-256 of the file, as the client says.
    :ivar dropped: whether nothing of the upload was kept, because nobody could go on with it.
    """

    condition: Condition | None = None
    digests: Sequence[bytes] = ()

    def __init__(self, files: SessionFiles, session: Session | str, part: Part) -> None:
        self._files = files
        self._draft: Draft | None = None
        self._new: Session | None = None
        if isinstance(session, Session):
            self._new = session
            self._draft = self._draft_of(session)
        self.token = session.token if isinstance(session, Session) else session
        self.session: Session | None = None
        self.part = part
        self.dropped = False

    def _draft_of(self, session: Session) -> Draft:
        return Draft(self._files.place, session.path, session.length, session.attributes)

    @property
    def path(self) -> SlotPath | None:
        """The slot's; None while that is not known."""
        return None if self._draft is None else self._draft.path

    @property
    def end(self) -> int:
        """Where in the file the request's last byte goes."""
        return self.part.offset + self.part.size

    @property
    def position(self) -> int:
        """Where in the file the next byte goes."""
        return self.part.offset if self._draft is None else self._draft.position

    @property
    def claimed(self) -> int:
        """How long the file may become in the room that is kept for it."""
        return 0 if self._draft is None else self._draft.claimed

    @claimed.setter
    def claimed(self, size: int) -> None:
        self._begun.claimed = size

    @property
    def owed(self) -> int:
        """Bytes that are claimed, and still to be taken from the file system's free space."""
        return 0 if self._draft is None else self._draft.owed

    @property
    def splices(self) -> bool:
        """Whether it can take bytes straight from a socket."""
        return self._files.place.file_system.special

    @property
    def _begun(self) -> Draft:
        assert self._draft is not None
        return self._draft

    @property
    def _is_begun(self) -> bool:
        return self._draft is not None and self._draft.is_begun

    def begin(self) -> None:
        """Make the data file, or take the one that is there.

        :raises Held: if somebody else uses it, or for a new one if the slot's former upload is still in use.
        :raises NoSession: if there is none.
        :raises AlreadyComplete: if the file is stored already.
        :raises WrongOffset: if the part does not fit to its end.
        :raises WrongLength: if it would become longer or shorter than what was signed.
        """
        if self._is_begun:
            return
        if self._new is not None:
            self._make(self._new)
        else:
            self._take_up()

    def _make(self, session: Session) -> None:
        self._check(session)
        draft = self._begun
        draft.condition = self.condition
        draft.look_ahead()
        self._files.displace(session)
        draft.adopt(self._files.make(session), self.part.offset, self.end)
        try:
            draft.prepare()
            self._files.write(session, flush=False)
        except BaseException:
            draft.drop()
            self._files.remove(session.token)
            raise
        self.session = session

    def _take_up(self) -> None:
        session, data = self._files.hold(self.token)
        self.session = session
        if data < 0:
            if session.complete:
                raise AlreadyComplete(session)
            raise NoSession
        try:
            self._check(session)
            # What came after it was last made safe is not known to be there.
            os.ftruncate(data, session.safe)
            os.lseek(data, session.safe, os.SEEK_SET)
            draft = self._draft_of(session)
        except BaseException:
            os.close(data)
            raise
        draft.condition = self.condition
        draft.adopt(data, self.part.offset, self.end)
        self._draft = draft

    def reserve(self) -> None:
        """Keep room for a part that goes on."""
        self._begun.prepare()

    def _check(self, session: Session) -> None:
        part = self.part
        if part.offset != session.safe:
            raise WrongOffset(session)
        if part.length not in (None, session.length):
            raise WrongLength(f"the file has {session.length} bytes")
        end = part.offset + part.size
        if end > session.length or (part.last and end != session.length):
            raise WrongLength(f"the file has {session.length} bytes, and this request ends at {end}")

    def write(self, chunks: Chunks, source: Source | None = None) -> None:
        """Append the chunks and what the source has, and now and then make safe what has come."""
        self._write(chunks, SAVE_BYTES, source)

    def write_safely(self, chunks: Chunks) -> None:
        """Append the chunks, and make safe all that has come."""
        self._write(chunks, 1)

    def _write(self, chunks: Chunks, enough: int, source: Source | None = None) -> None:
        self.begin()
        self._begun.write(chunks, source)
        # A part with a digest counts only when it is whole.
        if self.position - self._record.safe >= enough and self.part.digest is None:
            self.save()

    @property
    def _record(self) -> Session:
        assert self.session is not None
        return self.session

    def save(self) -> None:
        """Make safe what has come, and take note of how much that is.

        :raises NotDurable: if the disk lost it.
        """
        self._begun.save()
        session = attrs.evolve(self._record, safe=self.position, touched=self._files.now())
        self._files.write(session)
        self.session = session

    def finisher(self, chunks: Chunks) -> Callable[[], None]:
        """What writes the last chunks, publishes and closes."""

        def finish() -> None:
            self.write(chunks)
            self.publish()
            self.close()

        return finish

    def publish(self) -> None:
        """The part is whole: publish the file if it was the last one, else keep it.

        :raises WrongDigest: if the part's bytes are not those that the client meant.
        :raises WrongFile: if the file's are not.
        """
        self.begin()
        draft, part = self._begun, self.part
        if part.digest is not None and not draft.has_digest(part.offset, part.digest):
            draft.cut(part.offset)
            raise WrongDigest
        if not part.last:
            self.save()
            draft.cut(self.position)  # Gives back what was reserved behind it.
            return
        draft.digests = [digest for digest in (self._record.digest, part.whole_digest) if digest is not None]
        if not draft.is_elsewhere:
            # Its name goes with the session, not with the request.
            draft.is_named(name_of(self.token, DATA))
        draft.publish()
        with contextlib.suppress(OSError):
            self._files.finish(self._record)
        self.session = attrs.evolve(self._record, complete=True, safe=self._record.length)

    def give_up(self, chunks: Chunks, reason: Exception) -> None:
        """The request has failed: what came is kept, unless nobody can go on with it.

        :param chunks: what came and was not written.
        :param reason: why.
        """
        try:
            if not self._is_begun:
                return
            if _is_final(reason):
                self.dropped = True
                self._files.remove(self.token)
            elif not isinstance(reason, WrongDigest | NotDurable):
                self._begun.write(chunks)
                self.save()
                self._begun.cut(self.position)
        except OSError:
            pass  # What was safe before is safe still.
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the data."""
        if self._draft is not None:
            self._draft.close()


def _is_final(reason: Exception) -> bool:
    """Whether nobody can go on with the upload; on a full disk it only stands in the way of others."""
    return is_full(reason) or isinstance(reason, SlotTaken | SlotRemoved | WrongFile | Cancelled | BadName | TooLong)
