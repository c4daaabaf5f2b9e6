"""Drafts that outlive their request: the partial data of an upload that can be resumed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import attrs

from hmac_file_server.stores.faults import BadName, NotDurable, TooLong, is_full
from hmac_file_server.stores.local.draft import Chunks, Draft, SlotTaken, WrongFile, has_digest
from hmac_file_server.stores.local.flush import run_alone
from hmac_file_server.stores.local.sessions import DATA, NoSession, Session, SessionFiles, name_of
from hmac_file_server.stores.local.splice import Source
from hmac_file_server.stores.local.temporary import Temporary

SAVE_BYTES = 16 << 20
"""After so many bytes what has come is made safe, and the client is told."""


class WrongOffset(Exception):
    """The part does not begin where the data ends.

    :ivar session: what there is.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(f"{session.safe} bytes are here")
        self.session = session


class WrongLength(Exception):
    """The part and the session disagree about the length of the file."""


class WrongDigest(Exception):
    """The part is not the one that the client's Content-Digest is of (RFC 9530)."""


class AlreadyComplete(Exception):
    """The file is stored already.

    :ivar session: its record.
    """

    def __init__(self, session: Session) -> None:
        super().__init__("the upload is complete")
        self.session = session


class Cancelled(Exception):
    """The client does not want the upload any more."""

    def __init__(self) -> None:
        super().__init__("the upload was dropped")


@attrs.frozen
class Part:
    """What one request brings of a file.

    :param size: its bytes.
    :param last: whether the file is whole after it.
    :param offset: where in the file it begins.
    :param length: of the whole file as this request says, None if it says nothing.
    :param digest: the SHA-256 of the part, None if the client named none.
    :param whole_digest: the SHA-256 of the whole file, where that is the request that the client named it in.
    """

    size: int
    last: bool
    offset: int = 0
    length: int | None = None
    digest: bytes | None = None
    whole_digest: bytes | None = None


class KeptDraft(Draft):
    """One request's part of a resumable upload, appended to what is there already.

    :param session: the record of a new upload, or the token of one that goes on.
    :ivar dropped: whether nothing of the upload was kept, because nobody could go on with it.
    """

    def __init__(self, files: SessionFiles, session: Session | str, part: Part) -> None:
        new = session if isinstance(session, Session) else None
        super().__init__(files.place, new.path if new else None, new.length if new else 0, None)  # type: ignore[arg-type]
        self._kept = None
        self._files = files
        self._new = new
        self.token = session.token if isinstance(session, Session) else session
        self.session: Session | None = None
        self.part = part
        self.dropped = False

    @property
    def end(self) -> int:
        return self.part.offset + self.part.size

    @property
    def position(self) -> int:
        return self.part.offset + self._written

    def begin(self) -> None:
        """Make the data file, or take the one that is there.

        :raises Held: if somebody else uses it, or for a new one if the slot's former upload is still in use.
        :raises NoSession: if there is none.
        :raises AlreadyComplete: if the file is stored already.
        :raises WrongOffset: if the part does not fit to its end.
        :raises WrongLength: if it would become longer or shorter than what was signed.
        """
        if self._file is not None:
            return
        if self._new is not None:
            self._make(self._new)
        else:
            self._take_up()

    def _make(self, session: Session) -> None:
        self._check(session)
        self._look_ahead()
        self._files.displace(session)
        self._media_type = session.media_type
        file = self._files.make(session)
        try:
            self._prepare(file)
            self._files.write(session, flush=False)
        except BaseException:
            os.close(file)
            self._reserved = 0
            self._files.remove(session.token)
            raise
        self._file, self.session = file, session

    def _take_up(self) -> None:
        session, data = self._files.hold(self.token)
        self._path, self._size, self.session = session.path, session.length, session
        if data < 0:
            if session.complete:
                raise AlreadyComplete(session)
            raise NoSession
        try:
            self._check(session)
            # What came after it was last made safe is not known to be there.
            os.ftruncate(data, session.safe)
            os.lseek(data, session.safe, os.SEEK_SET)
        except BaseException:
            os.close(data)
            raise
        self._file = data

    def reserve(self) -> None:
        """Keep room for a part that goes on."""
        assert self._file is not None
        self._prepare(self._file)

    def _check(self, session: Session) -> None:
        part = self.part
        if part.offset != session.safe:
            raise WrongOffset(session)
        if part.length not in (None, session.length):
            raise WrongLength(f"the file has {session.length} bytes")
        end = part.offset + part.size
        if end > session.length or (part.last and end != session.length):
            raise WrongLength(f"the file has {session.length} bytes, and this request ends at {end}")

    def _new_and_whole(self, chunks: Chunks) -> bool:
        return False

    def write(self, chunks: Chunks, source: Source | None = None) -> None:
        """Append the chunks and what the source has, and now and then make safe what has come."""
        self._write(chunks, SAVE_BYTES, source)

    def write_safely(self, chunks: Chunks) -> None:
        """Append the chunks, and make safe all that has come."""
        self._write(chunks, 1)

    def _write(self, chunks: Chunks, enough: int, source: Source | None = None) -> None:
        super().write(chunks, source)
        # A part with a digest counts only when it is whole.
        if self.position - self._saved >= enough and self.part.digest is None:
            self.save()

    @property
    def _saved(self) -> int:
        assert self.session is not None
        return self.session.safe

    def save(self) -> None:
        """Make safe what has come, and take note of how much that is.

        :raises NotDurable: if the disk lost it.
        """
        assert self._file is not None
        assert self.session is not None
        if self._place.fsync:
            run_alone(self._flush(self._file), self._place.flusher)
        session = attrs.evolve(self.session, safe=self.position, touched=self._files.now())
        self._files.write(session)
        self.session = session

    def finisher(self, chunks: Chunks) -> Callable[[], None]:
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
        assert self._file is not None
        assert self.session is not None
        part = self.part
        if part.digest is not None and not has_digest(self._file, part.offset, self.position, part.digest):
            os.ftruncate(self._file, part.offset)
            raise WrongDigest
        if not part.last:
            self.save()
            os.ftruncate(self._file, self.position)  # Gives back what was reserved behind it.
            return
        self.digests = [digest for digest in (self.session.digest, part.whole_digest) if digest is not None]
        if self._original is None:
            # Its name goes with the session, not with the request.
            self._temporary = Temporary(self._place, self._place.nursery, name_of(self.token, DATA), stays=True)
        super().publish()
        with contextlib.suppress(OSError):
            self._files.finish(self.session)
        self.session = attrs.evolve(self.session, complete=True, safe=self._size)

    def give_up(self, chunks: Chunks, reason: Exception) -> None:
        """The request has failed: what came is kept, unless nobody can go on with it."""
        try:
            if self._file is None:
                return
            if _is_final(reason):
                self.dropped = True
                self._files.remove(self.token)
            elif not isinstance(reason, WrongDigest | NotDurable):
                super().write(chunks)
                self.save()
                os.ftruncate(self._file, self.position)
        except OSError:
            pass  # What was safe before is safe still.
        finally:
            self.close()


def _is_final(reason: Exception) -> bool:
    """Whether nobody can go on with the upload; on a full disk it only stands in the way of others."""
    return is_full(reason) or isinstance(reason, SlotTaken | WrongFile | Cancelled | BadName | TooLong)
