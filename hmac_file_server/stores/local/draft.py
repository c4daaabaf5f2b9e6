"""Drafts: files on their way into the store, without a public name until they are whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from hmac_file_server.slots.path import RESERVED, SlotPath
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import BadName, SlotRemoved, SlotTaken, TooLong, Unmet, WrongFile
from hmac_file_server.stores.faults import NotDurable, is_gone, refuses_name
from hmac_file_server.stores.interface import Chunks, Condition, Present, Source
from hmac_file_server.stores.local import attributes
from hmac_file_server.stores.local.flush import Steps, Stepwise, Unflushed, run_alone
from hmac_file_server.stores.local.folders import Folders, at, may_write
from hmac_file_server.stores.local.place import Place
from hmac_file_server.stores.local.rename import move
from hmac_file_server.stores.local.reserve import check_length, reserve
from hmac_file_server.stores.local.splice import Pipe
from hmac_file_server.stores.local.temporary import Temporary

_Asking = Generator[Unflushed, None, bool]

T = TypeVar("T")

_KEPT = 1 << 16
_RESERVE_ABOVE = 1 << 20
_BLOCK = 1 << 20
_VECTORS = 512
_WORTH_FLUSHING = 4 << 20
_TRIES = 100

_NOTHING = Attributes()


class Draft:
    """One upload on the disk. Each method blocks and belongs in a worker thread, one at a time.

    A method that raises OSError can be called again and goes on where it stopped.

    :param path: the slot's.
    :param size: bytes to come.
    :param about: what is kept with the file.
    :ivar end: where in the file the request's last byte goes.
    :ivar claimed: how long the file may become in the room that is kept for it; set between two calls.
    :raises BadName: if the file system can hold no file of that name.
    :ivar condition: the client's, if it has one.
    :ivar digests: each the SHA-256 of the file, as the client says.
    """

    condition: Condition | None = None
    digests: Sequence[bytes] = ()

    def __init__(self, place: Place, path: SlotPath, size: int, about: Attributes = _NOTHING) -> None:
        place.names.check(path.segments)
        self._place = place
        self.path = path
        self._size = size
        self._about = about
        self._file: int | None = None
        self._original: int | None = None
        self._temporary: Temporary | None = None
        self._is_moved = False
        # A small body stays at hand until it is safe, to be written again if a flush fails.
        self._kept: Chunks | None = [] if place.fsync and size <= _KEPT else None
        self._lost: Chunks = []
        self._reserved = 0
        self.claimed = 0
        self._is_large = False
        self._start, self.end = 0, size
        self._written = 0
        self._flush_begun = 0

    @property
    def owed(self) -> int:
        """Bytes that are claimed, and still to be taken from the file system's free space."""
        return max(0, self.claimed - max(self._reserved, self.position))

    @property
    def splices(self) -> bool:
        """Whether it can take bytes straight from a socket."""
        return self._place.file_system.special

    @property
    def position(self) -> int:
        """Where in the file the next byte goes."""
        return self._start + self._written

    @property
    def is_begun(self) -> bool:
        """Whether it has its file."""
        return self._file is not None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it goes on with a copy, which was made where the file belongs."""
        return self._original is not None

    def begin(self) -> None:
        """Make the file, and look whether the slot is free and can be written to.

        :raises SlotTaken: if a file of another length is there already.
        :raises Unmet: if what is there, or is not, is against the client's condition.
        :raises BadName: if the file system refuses its name.
        :raises TooLong: if the file system refuses its length.
        """
        if self._file is None:
            self._file = self._with_folders(self._look_and_make)

    def adopt(self, file: int, start: int, end: int) -> None:
        """Have a file that was made by others, of which only a part is to come.

        :param file: its descriptor, which is the draft's from now on.
        :param start: where in the file the part begins.
        :param end: and where it ends.
        """
        # What came before it is not at hand to be written again.
        self._kept = None
        self._file, self._start, self.end = file, start, end

    def prepare(self) -> None:
        """Keep the first room, and keep with the file what is known of it."""
        self._prepare(self._opened)

    def drop(self) -> None:
        """Undo :meth:`adopt`."""
        file, self._file, self._reserved = self._opened, None, 0
        os.close(file)

    def write(self, chunks: Chunks, source: Source | None = None) -> None:
        """Append the chunks; those that are on the file are removed from the list.

        :param source: has what comes after them, as far as it is there already. What was taken and could not be
            written is in the list if this fails.
        """
        if self._file is None and self.condition is None and self._new_and_whole(chunks):
            # Nothing would be saved by looking first: publishing finds a slot that is taken.
            self._file = self._with_folders(self._make_file)
        self.begin()
        self._reserve(self._opened)
        self._write_out(chunks)
        self._begin_flush()
        if source is not None and source.left:
            self._take_from(source, chunks)

    def _take_from(self, source: Source, left_over: Chunks) -> None:
        try:
            pipe = Pipe()
        except OSError:
            return  # No more descriptors: it is read as if it could not be lent.
        with contextlib.closing(pipe):
            while source.left:
                self._written += pipe.move(source, self._opened, left_over)
                self._write_out(left_over)
                self._begin_flush()

    def _begin_flush(self) -> None:
        """Let the disk work while the rest of a large body arrives, so that the flush at its end is a short one."""
        begun, position = self._flush_begun, self.position
        if self._place.flusher is not None and position - begun >= _WORTH_FLUSHING:
            self._place.flusher.begin(self._opened, begun, position - begun)
            self._flush_begun = position

    @property
    def _opened(self) -> int:
        assert self._file is not None
        return self._file

    def _write_out(self, chunks: Chunks) -> None:
        file = self._opened
        while chunks:
            try:
                written = os.writev(file, chunks[:_VECTORS])
            except OSError as error:
                self._doubt(error, chunks)
                raise self._not_written(error) from None
            self._written += written
            while chunks and written >= len(chunks[0]):
                done = chunks.pop(0)
                written -= len(done)
                if self._kept is not None:
                    self._kept.append(done)
            if written:
                if self._kept is not None:
                    self._kept.append(chunks[0][:written])
                chunks[0] = chunks[0][written:]

    def _doubt(self, error: OSError, chunks: Chunks) -> None:
        """What a network's file system says of a write may be about bytes that it had taken before: write them again.

        :raises NotDurable: if they are not at hand any more.
        """
        if not self._written or self._place.file_system.special:
            return
        chunks[:0] = self._start_over(at(error, self._place.own))

    def _start_over(self, error: OSError) -> Chunks:
        """Drop the file, whose bytes may be lost.

        :returns: the bytes.
        :raises NotDurable: if they are not at hand any more.
        """
        if self._kept is None:
            raise NotDurable(error.errno, error.strerror, error.filename) from error
        self.close()
        kept, self._kept, self._written = self._kept, [], 0
        return kept

    def _not_written(self, error: OSError) -> Exception:
        if error.errno == errno.EFBIG:
            return TooLong("the file system, or a limit of the daemon's (LimitFSIZE), takes no files of this length")
        return at(error, self._place.own)

    def _new_and_whole(self, chunks: Chunks) -> bool:
        return not self._written and sum(map(len, chunks)) == self._size

    def finisher(self, chunks: Chunks) -> Callable[[], None]:
        """What writes the last chunks, publishes and closes. Small files share their flushes with others."""
        if self._size > _RESERVE_ABOVE or not self._place.fsync:
            return lambda: run_alone(self._finish(chunks), self._place.flusher)
        return Stepwise(lambda: self._finish(chunks), self._place.flusher)

    def _finish(self, chunks: Chunks) -> Steps:
        self.write(chunks)
        yield from self._publish()
        self.close()

    def publish(self) -> None:
        """Give the whole file its public name, in one step that replaces nothing.

        When it returns, the bytes and the name survive a power loss (if ``fsync``). If the very
        bytes are already there under the name, that file is left as it is and counts as ours.

        :raises SlotTaken: if other bytes are there.
        :raises Unmet: if what is there by now is against the client's condition.
        :raises WrongFile: if it is not what the client's digests are of.
        :raises NotDurable: if a flush failed and the data can not be written again.
        """
        run_alone(self._publish(), self._place.flusher)

    def _publish(self) -> Steps:
        if self._lost or self._file is None:
            self.write(self._lost)
        self._refuse_removed()
        yield from self._make_safe(self._opened)
        for _ in range(_TRIES):
            folders = self._folders(make=True)
            try:
                if (yield from self._link(folders)):
                    self._hold_to_removal(folders)
                    break
                if (yield from self._same_is_there(folders)):
                    self._refuse_removed()
                    break
            except BaseException:
                folders.remove_made()
                raise
            finally:
                folders.close()
        else:
            raise OSError(errno.ESTALE, "the file's folder is removed again and again")
        if self._place.retired:
            raise NotDurable(errno.ESTALE, "another file system was mounted over the store")

    def _make_safe(self, file: int) -> Steps:
        """Flush the whole file, if it is the one that it should be."""
        if os.fstat(file).st_size != self._size:
            raise NotDurable(errno.EIO, "the file system lost bytes that it had taken")
        if not all(_has_digest(file, 0, self._size, digest) for digest in self.digests):
            raise WrongFile
        if self._place.fsync:
            yield from self._flush(file)
            return
        again = os.dup(file)
        try:
            os.close(again)
        except OSError as error:  # Some file systems tell only when a file is closed what they lost, and once.
            raise NotDurable(error.errno, error.strerror) from error

    def give_up(self, chunks: Chunks, reason: Exception) -> None:
        """The upload has failed: nothing of it stays.

        :param chunks: what came and was not written.
        :param reason: why.
        """
        self.close()

    def save(self) -> None:
        """Make safe what has come.

        :raises NotDurable: if the disk lost it.
        """
        if self._place.fsync:
            run_alone(self._flush(self._opened), self._place.flusher)

    def cut(self, size: int) -> None:
        """Drop what lies behind, and give back what was reserved there.

        :param size: bytes that stay.
        """
        os.ftruncate(self._opened, size)

    def has_digest(self, start: int, digest: bytes) -> bool:
        """Whether what has come, from somewhere on, has this SHA-256."""
        return _has_digest(self._opened, start, self.position, digest)

    def is_named(self, name: bytes) -> None:
        """Say that its file has a name among the drafts, which outlives the upload."""
        self._temporary = Temporary(self._place, self._place.own, name, stays=True)

    def close(self) -> None:
        """Let go of the file. If it was not published, nothing of the upload stays."""
        # In this order: whoever gets our lock sees whether the file still has a name.
        self._unlink_name()
        if self._is_large and self._place.flusher is not None:
            self._place.flusher.large(-1)
            self._is_large = False
        files, self._file, self._original = (self._file, self._original), None, None
        for file in files:
            if file is not None:
                # The number is free again even where this fails, and may be another upload's the next moment.
                with contextlib.suppress(OSError):
                    os.close(file)

    def _unlink_name(self) -> None:
        if self._temporary is not None:
            self._temporary.end(self._is_moved)
        self._temporary, self._is_moved = None, False

    def _make_file(self, folders: Folders) -> int:
        """Make the file in the deepest folder on its way that is there.

        So it has that folder's group, access list, quota and disk, as have the folders that are made below it.
        """
        file, self._temporary = _born(self._place, folders)
        try:
            if self._temporary is not None or self._place.fsync:
                # Held while the upload lives. It tells the sweep of another daemon to leave a named file alone,
                # and a second upload of the same bytes to wait until our folders are flushed.
                _lock(file, fcntl.LOCK_EX)
            if self._temporary is not None and not os.fstat(file).st_nlink:
                raise BlockingIOError(errno.EAGAIN, "a sweep took the new file for an old one")
            self._prepare(file)
        except BaseException:
            os.close(file)
            self._reserved = 0
            self._unlink_name()
            raise
        return file

    def _prepare(self, file: int) -> None:
        """Keep the first room, and keep the type with the file."""
        whole = max(self.end, self._size)
        if whole > _RESERVE_ABOVE:
            try:
                check_length(file, whole)
            except OSError as error:
                raise self._not_written(error) from None
        if self.end > _RESERVE_ABOVE:
            self._reserve(file)
            if self._place.flusher is not None and not self._is_large:
                self._place.flusher.large(1)
                self._is_large = True
        attributes.keep(file, self._about)

    def _reserve(self, file: int) -> None:
        """Take from the disk what is claimed, before somebody else does."""
        taken = max(self._reserved, self.position)
        if self.claimed > taken and self.end > _RESERVE_ABOVE and self._place.file_system.special:
            try:
                if reserve(file, taken, self.claimed - taken):
                    self._reserved = self.claimed
            except OSError as error:
                raise self._not_written(error) from None

    def _flush(self, file: int) -> Steps:
        try:
            yield [file]
        except OSError as error:
            # Linux counts the pages as clean after a failed fsync: the next one would succeed and prove
            # nothing. Only writing the data again, to a new file, does.
            self._lost = self._start_over(error)
            raise

    def _folders(self, make: bool = False) -> Folders:
        try:
            return Folders(self._place.root, self.path.segments[:-1], make, partly=not make)
        except NotADirectoryError:
            raise SlotTaken from None
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._place.mend()  # It may be StoreDir itself that was removed.
            raise self._name_or(error) from None

    def _name_or(self, error: OSError) -> Exception:
        """Of an error that may be the name's fault, whether it is: then our own are taken."""
        if refuses_name(error) and not self.path.segments[-1].startswith(RESERVED):
            with contextlib.suppress(OSError):
                try_out(self._place)
                return BadName(f"the file system refuses the name: {error.strerror}")
        return error

    def _link(self, folders: Folders) -> _Asking:
        """Publish under the slot's name; False if that is taken, or its folder was removed meanwhile."""
        name = self.path.segments[-1]
        if self._is_moved:
            return False  # It has the name, whose folders could not be flushed, and could not be taken back then.
        try:
            if self._temporary is None:
                # linkat with AT_SYMLINK_FOLLOW names a file that has none.
                nameless = f"/proc/self/fd/{self._file}"
                os.link(nameless, name, dst_dir_fd=folders.innermost, follow_symlinks=True)
            elif self._place.renames:
                move(self._temporary.name, self._temporary.folder, name, folders.innermost)
                self._is_moved = True
            else:
                temporary = self._temporary
                os.link(temporary.name, name, src_dir_fd=temporary.folder, dst_dir_fd=folders.innermost)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self._look_for_name()
            self._place.mend()
            return False
        except OSError as error:
            if error.errno == errno.EXDEV and self._is_elsewhere(folders):
                yield from self._copy(folders)
                return (yield from self._link(folders))
            if error.errno == errno.EXDEV and self._stat(folders) is not None:
                return False  # rename(2) looks at the mounts first, link(2) at the names.
            self._place.is_split |= error.errno == errno.EXDEV
            raise self._name_or(at(error, folders.innermost)) from None
        if self._place.flusher is not None:
            try:
                yield folders.inside_out
            except BaseException:
                self._take_back(folders)
                raise
        return True

    def _is_elsewhere(self, folders: Folders) -> bool:
        """Whether the file was born elsewhere on the same file system: with another quota, disk or mount."""
        return self._original is None and _on_one(folders.innermost, self._place.own)

    def _copy(self, folders: Folders) -> Steps:
        """Go on with a copy that was born in the file's own folder."""
        copy, temporary = _born(self._place, folders)
        try:
            if temporary is not None or self._place.fsync:
                _lock(copy, fcntl.LOCK_EX)
            attributes.copy(self._opened, copy)
            self._copy_to(copy)
            if self._place.fsync:
                yield [copy]
        except BaseException:
            os.close(copy)
            if temporary is not None:
                temporary.end()
            raise
        self._unlink_name()
        self._original = self._opened  # Stays open, for its lock, as long as the upload lives.
        self._file, self._temporary = copy, temporary

    def _copy_to(self, copy: int) -> None:
        copied = 0
        while copied < self._size:
            if self._place.file_system.special:  # Where it can, the file system shares the bytes.
                done = os.copy_file_range(self._opened, copy, self._size - copied, copied, copied)
            else:
                done = os.pwrite(copy, os.pread(self._opened, min(_BLOCK, self._size - copied), copied), copied)
            if not done:
                raise NotDurable(errno.EIO, "the file system lost bytes that it had taken")
            copied += done

    def _look_for_name(self) -> None:
        """:raises NotDurable: if somebody has removed the draft."""
        try:
            if self._temporary is not None:
                os.stat(self._temporary.name, dir_fd=self._temporary.folder, follow_symlinks=False)
        except FileNotFoundError:
            raise NotDurable(errno.ESTALE, "somebody has removed the unfinished file") from None

    def _take_back(self, folders: Folders) -> None:
        """Unpublish, so that the next try changes the folder again and its flush proves something.

        The file keeps a name among the drafts: one that had lost its last name could not get another.
        """
        public = self.path.segments[-1]
        if self._is_moved:
            assert self._temporary is not None
            self._place.mend()
            temporary = self._temporary
            os.rename(public, temporary.name, src_dir_fd=folders.innermost, dst_dir_fd=temporary.folder)
            self._is_moved = False
        elif self._temporary is None:
            drafted = Temporary.among_drafts(self._place)
            self._place.mend()
            try:
                os.rename(public, drafted.name, src_dir_fd=folders.innermost, dst_dir_fd=drafted.folder)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # Its quota is not that of the drafts: it is written again.
                os.unlink(public, dir_fd=folders.innermost)
                self._lost = self._start_over(error)
                raise OSError(errno.ESTALE, "the file's folder could not be flushed") from None
            self._temporary = drafted
        else:
            os.unlink(public, dir_fd=folders.innermost)

    def _hold_to_removal(self, folders: Folders) -> None:
        """Unpublish if the slot was removed while its file was stored, or nobody can tell."""
        try:
            was_removed = self._place.removed.has(self.path)
        except OSError:
            self._take_back(folders)
            raise
        if was_removed:
            self._unpublish(folders)
            raise SlotRemoved

    def _unpublish(self, folders: Folders) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path.segments[-1], dir_fd=folders.innermost)
        if self._place.fsync:
            os.fsync(folders.innermost)

    def _same_is_there(self, folders: Folders) -> _Asking:
        """Whether the public file has our bytes and is safe; False if it is gone again."""
        assert self._file is not None
        name = self.path.segments[-1]
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            there = os.open(name, flags, dir_fd=folders.innermost)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise SlotTaken from None
            raise at(error, folders.innermost, name) from None
        try:
            if os.path.sameopenfile(there, self._file):
                # Ours, whose folders could not be flushed, and which could not be taken back then.
                self._take_back(folders)
                return False
            self._check_condition(os.fstat(there))
            if not same_bytes(self._file, there, self._size):
                raise SlotTaken
            # EAGAIN, and so a later try, while the upload that made it has still to flush its folders.
            _lock(there, fcntl.LOCK_SH)
            if not os.fstat(there).st_nlink:
                return False
            if self._place.flusher is not None:
                if _on_one(there, self._file):
                    yield [there, *folders.inside_out]
                else:  # Something is mounted inside the store, which a shared flush would not reach.
                    for descriptor in (there, *folders.inside_out):
                        os.fsync(descriptor)
            return True
        finally:
            os.close(there)

    def look_ahead(self) -> None:
        """Refuse before its body what can not be published after it."""
        self._with_folders(self._look)

    def _with_folders(self, step: Callable[[Folders], T]) -> T:
        """Do something with those folders on the file's way that are there."""
        try:
            folders = self._folders()
            try:
                return step(folders)
            finally:
                folders.close()
        except OSError as error:
            if not is_gone(error):
                raise
            self._place.mend()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def _look_and_make(self, folders: Folders) -> int:
        self._look(folders)
        return self._make_file(folders)

    def _refuse_removed(self) -> None:
        if self._place.removed.has(self.path):
            raise SlotRemoved

    def _look(self, folders: Folders) -> None:
        self._refuse_removed()
        there = self._stat(folders) if folders.depth == len(self.path.segments) - 1 else None
        self._check_condition(there)
        if there is not None:
            if there.st_size != self._size or not stat.S_ISREG(there.st_mode):
                raise SlotTaken
            return
        if self._place.is_split or not _is_open(folders.innermost, self._place.own):
            try_out(self._place, self.path.segments[: folders.depth])

    def _stat(self, folders: Folders) -> os.stat_result | None:
        """What has the slot's name already."""
        try:
            return os.stat(self.path.segments[-1], dir_fd=folders.innermost, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._name_or(at(error, folders.innermost)) from None

    def _check_condition(self, there: os.stat_result | None) -> None:
        if self.condition is not None:
            present = None
            if there is not None and stat.S_ISREG(there.st_mode):
                present = Present(there.st_size, there.st_mtime_ns)
            if not self.condition(present):
                raise Unmet


def _has_digest(file: int, start: int, end: int, digest: bytes) -> bool:
    """Whether a part of a file has this SHA-256."""
    algorithm = hashlib.sha256()
    while start < end:
        block = os.pread(file, min(_BLOCK, end - start), start)
        if not block:
            break
        algorithm.update(block)
        start += len(block)
    return algorithm.digest() == digest


def try_out(place: Place, folders: Sequence[bytes] = (), size: int = 0) -> None:
    """Publish a file in a folder, and remove it again.

    :param folders: the folder's path, which is there; the store's root if it is empty.
    :param size: of the file in bytes.
    :raises OSError: as an upload would.
    """
    name = RESERVED + b"-probe-" + secrets.token_hex(8).encode("ascii")
    draft = Draft(place, SlotPath((*folders, name)), size)
    try:
        draft.write([bytes(size)])
        draft.publish()
        there = Folders(place.root, folders)
        try:
            os.unlink(name, dir_fd=there.innermost)
        finally:
            there.close()
    finally:
        draft.close()


def _is_open(folder: int, own: int) -> bool:
    """Whether a draft can be published in a folder, as far as the system tells without being asked to do it."""
    return _on_one(folder, own) and may_write(folder)


def _on_one(one: int, other: int) -> bool:
    """Whether two files, or folders, are on one file system."""
    return os.fstat(one).st_dev == os.fstat(other).st_dev


def _born(place: Place, folders: Folders) -> tuple[int, Temporary | None]:
    """A new file in the innermost of the folders; among the drafts where something else is mounted there.

    :returns: its descriptor, and its name if it has one.
    """
    is_here = not folders.depth or _on_one(folders.innermost, place.own)
    if place.anonymous:
        return _nameless(place, folders.innermost if is_here else place.own), None
    temporary = Temporary.in_folder(place, folders) if is_here else Temporary.among_drafts(place)
    try:
        return temporary.make(), temporary
    except BaseException:
        temporary.end()
        raise


def _nameless(place: Place, folder: int) -> int:
    """A new file without a name."""
    try:
        return os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o644, dir_fd=folder)
    except OSError as error:
        if not os.fstat(folder).st_nlink:  # ext4 says EPERM then.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        raise at(error, folder) from None


def _lock(file: int, how: int) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # A file system without locks: two uploads of one slot at once are then less well ordered.


def same_bytes(ours: int, theirs: int, size: int) -> bool:
    """Whether another file is a plain one with the same bytes.

    :param size: of ours, in bytes.
    """
    there = os.fstat(theirs)
    if there.st_size != size or not stat.S_ISREG(there.st_mode):
        return False
    return all(os.pread(ours, _BLOCK, offset) == os.pread(theirs, _BLOCK, offset) for offset in range(0, size, _BLOCK))
