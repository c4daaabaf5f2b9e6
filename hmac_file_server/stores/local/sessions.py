"""Sessions of resumable uploads, kept as files beside their partial data in the store's reserved folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator

import attrs

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.stores.errors import Held, NoSession
from hmac_file_server.stores.faults import NO_ROOM, is_gone
from hmac_file_server.stores.local.folders import Folders, at
from hmac_file_server.stores.local.index import is_alone
from hmac_file_server.stores.local.place import Place
from hmac_file_server.stores.session import TAG, Session, decode, encode, is_token, new_token

DATA, RECORD, WANTED, _NEW = b".data", b".session", b".wanted", b".new"
KEPT = (DATA, RECORD, WANTED, _NEW)
"""What the names of these files end with."""

_LARGEST_RECORD = 256 << 10
_MOST_COMPLETE = 4096
_ORPHANED = 3600.0
LEFT_SECONDS = 86400.0
"""After so long without a byte a file is nobody's, where locks do not tell."""
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class _NoRecord(NoSession):
    """There is no record of it."""


class _Replaced(_NoRecord):
    """There was one, which another machine has removed, or put a newer one in its place, while it was read."""


@attrs.frozen
class SessionFiles:
    """The sessions of all daemons that share a store. All methods block and belong in a worker thread.

    :param place: where they lie.
    :param timeout: seconds after which a session ends.
    """

    place: Place
    timeout: float
    now: Callable[[], float] = time.time

    def write(self, session: Session, flush: bool = True) -> None:
        """Write a record in one step; with ``flush`` it, and the name of its data, survive a power loss."""
        own = self.place.own
        new, name = name_of(session.token, _NEW), name_of(session.token, RECORD)
        flush = flush and self.place.fsync
        record = self.place.create(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        try:
            content = encode(session)
            if os.write(record, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if flush:
                os.fsync(record)
        except OSError:
            self._unlink(session.token, _NEW)
            raise
        finally:
            os.close(record)
        os.rename(new, name, src_dir_fd=own, dst_dir_fd=own)
        if flush:
            os.fsync(own)

    def read(self, token: str) -> Session:
        """Read a record.

        :raises NoSession: if there is none.
        """
        session = decode(token, self._read(token)) if is_token(token) else None
        if session is None or self._has_expired(session):
            raise NoSession
        return session

    def _read(self, token: str) -> bytes:
        try:
            record = os.open(name_of(token, RECORD), os.O_RDONLY | _FLAGS, dir_fd=self.place.own)
        except FileNotFoundError:
            raise _NoRecord from None
        except OSError as error:
            if is_gone(error):
                raise _Replaced from None
            raise at(error, self.place.own) from None  # Without the name, which is good for an upload.
        try:
            return os.read(record, _LARGEST_RECORD)
        except OSError as error:
            if is_gone(error):
                raise _Replaced from None
            raise at(error, self.place.own) from None
        finally:
            os.close(record)

    def hold(self, token: str) -> tuple[Session, int]:
        """Take a session for oneself.

        :returns: it, with the descriptor of its data, whose closing lets go of it; -1 if it is complete.
            What it says is safe, also if the daemon that wrote it was killed before it knew that.
        :raises NoSession: if there is none.
        :raises Held: if somebody else has it.
        """
        session = self._read_now(token)
        if session.complete:
            return session, -1
        try:
            data = self._lock(token)
        except NoSession:
            session = self._read_now(token)  # Again: whoever had it may just have completed it.
            if session.complete:
                return session, -1
            raise
        try:
            self._unlink(token, WANTED)
            session = self._read_now(token)  # Again: whoever had the lock before may have gone on with it.
            if not session.complete:
                session = self._settle(session, data)
            if not session.complete:
                self._go_on(session, data)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.close(data)
            if isinstance(error, OSError) and is_gone(error):
                raise Held(token) from None  # Another machine has removed it, and a moment later all can be seen here.
            raise
        if session.complete:
            os.close(data)
            return session, -1
        return session, data

    def _go_on(self, session: Session, data: int) -> None:
        if not os.fstat(data).st_nlink:
            raise NoSession
        if self.place.file_system.special:
            _trim(data, session.safe)
        if self.place.fsync:
            os.fsync(self.place.own)

    def _read_now(self, token: str) -> Session:
        """As :meth:`read`, also where another machine has just replaced the record, and the old one is still named."""
        try:
            return self.read(token)
        except _Replaced:
            raise Held(token) from None
        except _NoRecord:
            if not self.place.file_system.special and (self._exists(token, RECORD) or self._exists(token, DATA)):
                raise Held(token) from None
            raise

    def _settle(self, session: Session, data: int) -> Session:
        """Find out whether it has its public name already, and its record could not follow; or its bytes are lost."""
        was_public = _was_public(session, data)
        # What another machine has just done to a file, its attributes may not tell here yet.
        attributes_tell = self.place.file_system.special
        if (was_public or not attributes_tell) and self._is_published(session, data):
            return self.finish(session)
        if was_public or (session.safe and not os.pread(data, 1, session.safe - 1)):
            if not attributes_tell:
                raise Held(session.token)
            self.remove(session.token)
            raise NoSession
        return session

    def _is_published(self, session: Session, data: int) -> bool:
        """Whether the data has the slot's name; then both are safe, which whoever named it may not have seen to."""
        try:
            folders = Folders(self.place.root, session.path.segments[:-1])
            try:
                public = os.stat(session.path.segments[-1], dir_fd=folders.innermost, follow_symlinks=False)
                there = os.fstat(data)
                if not os.path.samestat(public, there) or there.st_size != session.length:
                    return False
                if self.place.flusher is not None:
                    self.place.flusher.flush([data, *folders.inside_out])
                return True
            finally:
                folders.close()
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _lock(self, token: str) -> int:
        try:
            data = os.open(name_of(token, DATA), os.O_RDWR | _FLAGS, dir_fd=self.place.own)
        except FileNotFoundError:
            raise NoSession from None
        except OSError as error:
            if is_gone(error):
                raise Held(token) from None
            raise at(error, self.place.own) from None
        try:
            fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(data)
            raise Held(token) from None
        except OSError:
            pass  # A file system without locks has one daemon only, which knows what it is doing.
        return data

    def settle(self, token: str) -> Session:
        """How far an upload really is.

        :raises NoSession: if there is none.
        :raises Held: if somebody else has it.
        """
        session, data = self.hold(token)
        self.let_go(data)
        return session

    def drop(self, token: str) -> None:
        """Forget an upload and its data.

        :raises NoSession: if there is none.
        :raises Held: if somebody else has it.
        """
        _, data = self.hold(token)
        try:
            self.remove(token)
        finally:
            self.let_go(data)

    def let_go(self, data: int) -> None:
        """Undo :meth:`hold`."""
        if data >= 0:
            os.close(data)

    def make(self, session: Session) -> int:
        """Make an empty data file.

        :returns: its descriptor, held as by :meth:`hold`.
        """
        os.close(self.place.create(name_of(session.token, DATA), os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o644))
        self.place.index.add(session.token)
        try:
            return self._lock(session.token)
        except BaseException:
            self.remove(session.token)
            raise

    def finish(self, session: Session) -> Session:
        """The file has its public name: only the record stays, for a client that missed the answer."""
        session = attrs.evolve(session, complete=True, safe=session.length, touched=self.now())
        try:
            # No flush: without the record the data's second name tells the same.
            self.write(session, flush=False)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # But on a full disk that would keep the file's room when the file is removed to make some.
            self.remove(session.token)
        for suffix in (DATA, WANTED):
            self._unlink(session.token, suffix)
        self.place.index.drop(session.token)
        return session

    def displace(self, session: Session) -> None:
        """A slot's upload begins anew: end the slot's other sessions, so that never more is kept than was signed.

        :raises Held: if one of them is in use.
        """
        for token in self._earlier(session.token[:TAG]):
            if token != session.token:
                with contextlib.suppress(NoSession):
                    self._displace(token, session.path)

    def _earlier(self, tag: str) -> list[str]:
        """The tokens that begin so, of uploads that are not complete."""
        place = self.place
        # On a network's file system another host's lock may not be seen here.
        if not (place.file_system.special and is_alone(place.own)):
            return list(self._tokens(tag))
        if not place.index.is_known:
            self.count()
        return place.index.find(tag)

    def _displace(self, token: str, path: SlotPath) -> None:
        session = self.read(token)
        if session.path == path and not session.complete:
            data = self._lock(token)
            try:
                if not _was_public(session, data):
                    self.remove(token)
            finally:
                os.close(data)

    def end(self, path: SlotPath) -> None:
        """The slot's file is removed, and nobody may go on with an upload of it. Whoever is at it is told to stop."""
        for token in self._tokens(new_token(path)[:TAG]):
            with contextlib.suppress(NoSession):
                session = decode(token, self._read(token))
                if session is not None and session.path == path:
                    self._end(token)

    def _end(self, token: str) -> None:
        data = -1
        try:
            with contextlib.suppress(NoSession):
                data = self._lock(token)
            self.remove(token)
        except Held:
            self.want(token)
        finally:
            self.let_go(data)

    def remove(self, token: str) -> None:
        """Forget a session and its data."""
        for suffix in (DATA, RECORD, WANTED, _NEW):
            self._unlink(token, suffix)
        self.place.index.drop(token)

    def want(self, token: str) -> None:
        """Ask whoever holds a session to let go of it."""
        try:
            os.close(self.place.create(name_of(token, WANTED), os.O_WRONLY | os.O_CREAT | _FLAGS, 0o600))
        except OSError as error:
            # JuiceFS makes nothing while another machine's removal of the name is not seen here; it is asked again.
            if not is_gone(error):
                raise

    def wanted(self, token: str) -> bool:
        """Whether somebody else waits for a session that is held here."""
        return os.access(name_of(token, WANTED), os.F_OK, dir_fd=self.place.own)

    def sweep(self) -> list[Session]:
        """Remove what has ended, and of what is complete all but the newest.

        :returns: the sessions that go on, or are complete.
        """
        kept = []
        for token in self._tokens():
            with contextlib.suppress(OSError, NoSession, Held):
                session = self._still(token)
                if session is not None:
                    kept.append(session)
        done = sorted((session for session in kept if session.complete), key=lambda session: session.touched)
        ended = {session.token for session in done[: max(0, len(done) - _MOST_COMPLETE)]}
        for token in ended:
            with contextlib.suppress(OSError):
                self.remove(token)
        return [session for session in kept if session.token not in ended]

    def count(self) -> int:
        """How many sessions run, or wait to be resumed; from then on those of others are known, too."""
        tokens: list[str] = []

        def look() -> list[str]:
            names = self.place.drafts()
            tokens.extend(name[: -len(DATA)].decode("latin-1") for name in names if name.endswith(DATA))
            return tokens

        # What another process begins after this look is not known here, unless it still runs when it is asked for.
        self.place.index.renew(look, is_alone(self.place.own))
        return len(tokens)

    def _still(self, token: str) -> Session | None:
        try:
            session = self.read(token)
        except NoSession:
            # The record is written just after the data file is made: give it the time.
            if not self._ended(token):
                return None
            session = None
        if session is not None and session.complete:
            return session
        if session is not None and self._exists(token, DATA):
            if not self.place.file_system.special and self._is_recent(token):
                return session  # Another host may be at it, whose lock is not seen here.
            with contextlib.suppress(Held):
                # It may be complete, with a record that could not follow: the disk was full.
                session, data = self.hold(token)
                self.let_go(data)
            return session
        try:
            data = self._lock(token)
        except NoSession:
            data = -1
        try:
            self.remove(token)
        finally:
            self.let_go(data)
        return None

    def _ended(self, token: str) -> bool:
        """Whether a session is over by its record, or has been without one that can be read for long enough."""
        patience = min(_ORPHANED, self.timeout)
        with contextlib.suppress(_NoRecord):
            session = decode(token, self._read(token))
            if session is not None:
                return self._has_expired(session)
            patience = self.timeout
        return self._last_change(token, *KEPT) + patience < self.now()

    def _has_expired(self, session: Session) -> bool:
        return session.begun + self.timeout < self.now() or self.place.removed.has(session.path)

    def _is_recent(self, token: str) -> bool:
        return self._last_change(token, DATA) + LEFT_SECONDS > self.now()

    def _last_change(self, token: str, *suffixes: bytes) -> float:
        times = [0.0]
        for suffix in suffixes:
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(name_of(token, suffix), dir_fd=self.place.own, follow_symlinks=False)
                times.append(there.st_mtime)
        return max(times)

    def _exists(self, token: str, suffix: bytes) -> bool:
        try:
            there = os.stat(name_of(token, suffix), dir_fd=self.place.own, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(there.st_mode)

    def _tokens(self, beginning: str = "") -> Iterator[str]:
        tag = beginning.encode("ascii")
        names = {name.rpartition(b".") for name in self.place.drafts() if name.startswith(tag)}
        stems = {stem.decode("latin-1") for stem, dot, suffix in names if dot + suffix in KEPT}
        return (stem for stem in sorted(stems) if is_token(stem))

    def _unlink(self, token: str, suffix: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name_of(token, suffix), dir_fd=self.place.own)


def _was_public(session: Session, data: int) -> bool:
    """Whether the data may have, or have had, the slot's name; a part has a second one from a backup only."""
    there = os.fstat(data)
    return there.st_nlink > 1 and there.st_size >= session.length


def _trim(data: int, size: int) -> None:
    """Give back what a killed daemon had reserved, and what had come and is not known to be safe."""
    try:
        fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # Where there are no locks a request may still be writing to it.
    os.ftruncate(data, size)


def name_of(token: str, suffix: bytes) -> bytes:
    """What a session's file is called."""
    return token.encode("ascii") + suffix
