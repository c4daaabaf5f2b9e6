"""Files at the path of their URL, as prosody-filer lays them. All blocks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import stat
import time
from collections.abc import Callable

import attrs

from hmac_file_server.slots.path import RESERVED, SlotPath
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import NoSuchFile, Unmet, Unusable
from hmac_file_server.stores.faults import NO_ROOM, explain, is_gone, is_lasting, user
from hmac_file_server.stores.interface import Condition, Present
from hmac_file_server.stores.local import attributes
from hmac_file_server.stores.local.draft import Draft, try_out
from hmac_file_server.stores.local.file import StoredFile
from hmac_file_server.stores.local.filesystem import FileSystem
from hmac_file_server.stores.local.flush import Flusher
from hmac_file_server.stores.local.folders import Folders, at, may_write
from hmac_file_server.stores.local.index import enter
from hmac_file_server.stores.local.names import Names
from hmac_file_server.stores.local.place import FOLDER, Place
from hmac_file_server.stores.local.removed import FOLDER as FOLDER_OF_REMOVED
from hmac_file_server.stores.local.rename import replaces_nothing
from hmac_file_server.stores.local.sessions import KEPT, LEFT_SECONDS, SessionFiles
from hmac_file_server.stores.local.temporary import NOTE, hidden, noted
from hmac_file_server.stores.room import Space

_NO_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENXIO,
    # What no file can be called:
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
}
_LEAST = 4096
"""Bytes that fit where anything does."""

_NOTHING = Attributes()


class Disk:
    """A folder full of uploads. All methods but :meth:`draft` block and belong in a thread.

    :param folder: its path; made if it is not there.
    :param fsync: whether a published file has reached the disk.
    :param removes: whether files are going to be removed, for which room is taken before.
    :param remember: seconds for which a removal counts; 0 for ever.
    :ivar place: where drafts are made now.
    :raises Unusable: if files can not be made or published there.
    """

    def __init__(self, folder: str, fsync: bool = True, removes: bool = False, remember: float = 0.0) -> None:
        self._folder = folder
        self._fsync = fsync
        self._removes = removes
        self._remember = remember
        try:
            _make(folder, fsync)
            self.place = self._open(make=True)
        except OSError as error:
            raise Unusable(explain(error)) from error

    def _open(self, make: bool) -> Place:
        """The folder that is there now, tried out."""
        root, own = os.open(self._folder, FOLDER), -1
        try:
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(RESERVED, 0o700, dir_fd=root)
                own = os.open(RESERVED, FOLDER | os.O_NOFOLLOW, dir_fd=root)
                with contextlib.suppress(OSError):
                    enter(own)
            except OSError as error:
                raise at(error, root) from None
            place = self._find_how_to_publish(root, own)
            place.removed.read()
            if self._removes:
                with contextlib.suppress(OSError):  # On a full disk what was reserved before must do.
                    place.removed.prepare()
            return place
        except BaseException:
            os.close(root)
            if own >= 0:
                os.close(own)
            raise

    def _find_how_to_publish(self, root: int, own: int) -> Place:
        """Try to publish a file that had no name before, and else one that had."""
        user()
        flusher = Flusher(root) if self._fsync else None
        kind, last = FileSystem.of(own), None
        # Another mount of SeaweedFS that has seen a file's first name can not open it by a second one (link(2)), and
        # some file systems have no links. But an upload in parts that is killed in that moment tells by them that it
        # is complete: where they are known to be kept they are used.
        renames = not kind.special and replaces_nothing(own)
        for anonymous in (True, False) if kind.special else (False,):
            place = Place(self._folder, root, own, anonymous, flusher, kind, renames=renames, remember=self._remember)
            try:
                try_out(place)
                place.names = Names.of(own)
                place.keeps_attributes = place.try_out(attributes.can_be_kept)
                return place
            except OSError as error:
                if anonymous and error.errno in NO_ROOM:
                    return place  # It can be read, and files removed; what is known of such file systems will do.
                last = error
        assert last is not None
        reason = f"a file can not be made and given its name there with link(2) or renameat2(2): {explain(last)}"
        raise Unusable(reason, is_lasting(last)) from last

    def look(self, ran_out: bool = False) -> Space:
        """What is free in the folder that is there now. One thread at a time.

        When another file system has been mounted there it is used from now on, if it is a store.

        :param ran_out: whether an upload found no room, whatever the figures say.
        :raises Unusable: if what is there is no store: a mount point without its disk, say.
        :raises OSError: if the disk fails, or nothing can be written.
        """
        try:
            return self._look(ran_out)
        except OSError as error:
            if not is_gone(error):
                raise
            return self._look(ran_out)  # Empty folders are being removed just now.

    def _look(self, ran_out: bool) -> Space:
        self.place.mend()
        there, ours = os.stat(self._folder), os.fstat(self.place.root)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            try:
                place = self._open(make=False)
            except OSError:
                raise Unusable("it is not the folder that it was at the start; is its disk mounted?") from None
            # The old descriptors stay open: uploads that run still use them, but are not stored any more.
            self.place.retired = True
            self.place.removed.close()
            self.place = place
        self.place.removed.tidy()
        if not may_write(self.place.root):
            try_out(self.place)  # Which tells why, or that it can be written after all.
        if not may_write(self.place.own):
            self.place.try_out()
        space = _space(os.fstatvfs(self.place.own), self.place.file_system)
        return attrs.evolve(space, full=True) if ran_out and self._is_full() else space

    def _is_full(self) -> bool:
        try:
            try_out(self.place, size=_LEAST)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return True
        return False

    @property
    def keeps_attributes(self) -> bool:
        """Whether it keeps with a file whose it is, and until when."""
        return self.place.keeps_attributes

    def draft(self, path: SlotPath, size: int, about: Attributes = _NOTHING) -> Draft:
        """A new upload; nothing touches the disk yet.

        :param size: its length in bytes.
        :param about: what is kept with it.
        """
        return Draft(self.place, path, size, about)

    def open(self, path: SlotPath, preload: int = 0) -> StoredFile:
        """Open a file to serve it.

        :param preload: read the content at once if it is no longer than so many bytes.
        :raises NoSuchFile: if there is none: also for folders, symbolic links and devices.
        :raises OSError: if the disk fails.
        """
        try:
            folders = Folders(self.place.root, path.segments[:-1])
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(path.segments[-1], flags, dir_fd=folders.innermost)
            finally:
                folders.close()
        except OSError as error:
            if error.errno in _NO_FILE:
                raise NoSuchFile from None
            # Of a folder it is known already.
            raise error if isinstance(error.filename, str) else at(error, self.place.root, path.signed) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NoSuchFile
            file = StoredFile(descriptor, status.st_size, status.st_mtime_ns, attributes.kept(descriptor))
            if status.st_size <= preload:
                content = os.pread(descriptor, status.st_size, 0)
                if len(content) == status.st_size:
                    file.content = content
            else:
                os.pread(descriptor, 1, 0)  # The access time is written here, if it is, not where others would wait.
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError) and is_gone(error):
                raise NoSuchFile from None  # Another machine has just removed it.
            raise
        if file.content is not None:
            file.close()
        return file

    def was_removed(self, path: SlotPath) -> bool:
        """Whether a slot's file was removed, as far as that is known without asking the disk."""
        return self.place.removed.knows(path)

    def remove(self, path: SlotPath, condition: Condition | None = None) -> Present | None:
        """Remove a file, so that it does not come back: its slot takes no upload any more, and its sessions end.

        :param condition: of what is there.
        :returns: what was there; None if there was none.
        :raises Unmet: if what is there, or that nothing is, is against the condition.
        :raises OSError: if the disk fails; it can be called again.
        """
        if condition is not None and not condition(self._find(path, _present)):
            raise Unmet
        # Safe before the file goes: whoever is just storing it looks for that when it has. Who has looked before has
        # stored it by now, so what is there is found out only here.
        self.place.removed.add(path)
        SessionFiles(self.place, math.inf).end(path)
        return self._find(path, self._unlink)

    def _find(self, path: SlotPath, call: Callable[[Folders, bytes], Present | None]) -> Present | None:
        try:
            folders = Folders(self.place.root, path.segments[:-1])
            try:
                return call(folders, path.segments[-1])
            finally:
                folders.close()
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise

    def _unlink(self, folders: Folders, name: bytes) -> Present | None:
        there = _present(folders, name)
        if there is not None:
            os.unlink(name, dir_fd=folders.innermost)
        if self._fsync:
            # Also if it is gone already: an earlier try may have failed here.
            os.fsync(folders.innermost)
        if there is not None:
            folders.remove_empty()
        return there

    def check_writable(self) -> None:
        """Make and drop a file; that there is no room for it is no fault of the store's.

        :raises Unusable: if uploads would fail now.
        """
        try:
            self.look()
            with contextlib.closing(self.draft(SlotPath((RESERVED, b"probe")), 1)) as draft:
                draft.write([b"\0"])
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise Unusable(explain(error)) from error

    def sweep(self) -> int:
        """Remove what uploads of dead daemons left, but for what can be resumed; returns how many files."""
        removed = 0
        for left in self.place.drafts():
            with contextlib.suppress(OSError):
                if left.endswith(NOTE):
                    removed += self._follow(left)
                elif left != FOLDER_OF_REMOVED and not left.endswith(KEPT):
                    removed += self._remove_left(left, self.place.own)
        return removed

    def _follow(self, note: bytes) -> bool:
        """Remove what a note tells of, and it, if its daemon is dead."""
        try:
            folders = Folders(self.place.root, noted(self.place, note))
            try:
                if not self._remove_left(hidden(note.removesuffix(NOTE)), folders.innermost):
                    return False
            finally:
                folders.close()
        except (FileNotFoundError, NotADirectoryError):
            # It is published by now, or not made yet.
            there = os.stat(note, dir_fd=self.place.own, follow_symlinks=False)
            if there.st_mtime + LEFT_SECONDS > time.time():
                return False
        os.unlink(note, dir_fd=self.place.own)
        return True

    def _remove_left(self, name: bytes, folder: int) -> bool:
        """Remove a file, unless somebody works on it."""
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # On a network's file system another host's lock may not be seen here.
            locks_tell = self.place.file_system.special
            if not locks_tell and os.fstat(descriptor).st_mtime + LEFT_SECONDS > time.time():
                return False
            os.unlink(name, dir_fd=folder)
            return True
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of the folder."""
        self.place.removed.close()
        os.close(self.place.own)
        os.close(self.place.root)


def _present(folders: Folders, name: bytes) -> Present | None:
    try:
        there = os.stat(name, dir_fd=folders.innermost, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(there.st_mode):
        return None
    owner = attributes.kept(b"/proc/self/fd/%d/%b" % (folders.innermost, name)).owner
    return Present(there.st_size, there.st_mtime_ns, owner)


def _make(folder: str, fsync: bool) -> None:
    """Make a folder, and what is missing above it; with ``fsync`` they survive a power loss."""
    if os.path.isdir(folder):
        return  # What is above it may be for others to look at.
    changed = []
    above = os.path.abspath(folder)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
        changed.append(above)
    os.makedirs(folder, exist_ok=True)
    for above in changed if fsync else ():
        descriptor = os.open(above, FOLDER)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _space(figures: os.statvfs_result, kind: FileSystem) -> Space:
    """What is free. Nothing of nothing is no figure: file systems that do not count tell that."""
    unit = figures.f_frsize or figures.f_bsize
    counts = unit > 0 and 0 <= figures.f_bavail <= figures.f_blocks > 0
    # Of files many keep no account, and some say how many there are, and that none is free.
    counts_files = kind.special and figures.f_files > 0
    full = counts_files and not figures.f_favail
    return Space(figures.f_bavail * unit, full, figures.f_blocks * unit) if counts else Space(None, full)
