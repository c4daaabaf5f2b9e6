"""Files that other servers have stored are taken into a store, while daemons may work in it. All blocks.

Root may run this, and has to trust neither the user of the other server, whose files these are, nor the daemon's,
whose they become. So everything is reached by descriptors, no link is followed, and what is made here, and only that,
is given to the store's owner.

A file is linked where both users are one. A link shares all but its name with the file: given to another owner it
would be taken from the other server. So it is copied where the owners differ, as it is on another file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat

import attrs

from hmac_file_server.slots.path import RESERVED, SlotPath
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import SlotRemoved, SlotTaken
from hmac_file_server.stores.local import attributes
from hmac_file_server.stores.local.draft import same_bytes
from hmac_file_server.stores.local.filesystem import FileSystem
from hmac_file_server.stores.local.folders import Folders, names_in
from hmac_file_server.stores.local.place import FOLDER
from hmac_file_server.stores.local.removed import Removed
from hmac_file_server.stores.local.rename import move
from hmac_file_server.stores.local.temporary import PART

_BLOCK = 1 << 20
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_CAN_NOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_CAN_NOT_MOVE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


@attrs.frozen
class Taken:
    """How a file was stored.

    :param is_linked: whether it is a link; else it was copied.
    :param is_kept: whether its owner and its end are kept with it.
    """

    is_linked: bool
    is_kept: bool


class Intake:
    """A store that takes files.

    :param folder: its path.
    :param remember: seconds for which a removal counts; 0 for ever.
    :param writes: whether files will be taken; else they are only compared, and nothing is made.
    :raises OSError: if there is no such folder, or it can not be opened.
    """

    def __init__(self, folder: str, remember: float = 0.0, writes: bool = True) -> None:
        self._root = os.open(folder, FOLDER)
        self._own = -1
        self._removed: Removed | None = None
        try:
            self._there = os.fstat(self._root)
            self._is_special = FileSystem.of(self._root).special
            if writes:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(RESERVED, 0o700, dir_fd=self._root)
            with contextlib.suppress(FileNotFoundError):
                self._own = os.open(RESERVED, FOLDER | os.O_NOFOLLOW, dir_fd=self._root)
            if self._own >= 0:
                if writes:
                    self._give(self._own)
                self._removed = Removed(self._own, FileSystem.of(self._own), fsync=True, remember=remember)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the folder."""
        if self._removed is not None:
            self._removed.close()
        for folder in (self._own, self._root):
            if folder >= 0:
                os.close(folder)

    def has(self, path: SlotPath, file: int) -> bool:
        """Whether a file is there already, under this path. Its name is safe then.

        :param file: descriptor of the file.
        :raises SlotTaken: if another one is.
        :raises SlotRemoved: if it was there, and was removed for good.
        :raises OSError: if the disk fails.
        """
        try:
            folders = Folders(self._root, path.segments[:-1])
        except FileNotFoundError:
            found = False
        except NotADirectoryError:
            raise SlotTaken from None
        else:
            try:
                found = _is_in(folders, path.segments[-1], file)
                for folder in folders.inside_out if found else ():
                    os.fsync(folder)
            finally:
                folders.close()
        if not found and self._removed is not None and self._removed.has(path):
            raise SlotRemoved
        return found

    def take(self, path: SlotPath, file: int, about: Attributes, mtime_ns: int) -> Taken:
        """Store a file that is not there yet. When this returns, it is safe.

        :param file: descriptor of the file, which is open for reading, and does not change.
        :param about: is kept with it.
        :param mtime_ns: when it was uploaded, in nanoseconds since 1970. A file that is linked has its own time.
        :raises SlotTaken: if another one is there by now.
        :raises OSError: if the disk fails; nothing of it is there then, or all.
        """
        try:
            folders = Folders(self._root, path.segments[:-1], make=True)
        except NotADirectoryError:
            raise SlotTaken from None
        try:
            for folder in folders.inside_out[:-1]:
                self._give(folder)
            taken = self._link(folders, path.segments[-1], file, about)
            if taken is None:
                taken = self._copy(folders, path.segments[-1], file, about, mtime_ns)
            for folder in folders.inside_out:
                os.fsync(folder)
            return taken
        except BaseException as error:
            folders.remove_made()
            if isinstance(error, FileExistsError):
                raise SlotTaken from None
            raise
        finally:
            folders.close()

    def _link(self, folders: Folders, name: bytes, file: int, about: Attributes) -> Taken | None:
        there = os.fstat(file)
        if there.st_uid != self._there.st_uid or not there.st_mode & stat.S_IRUSR:
            return None
        if there.st_dev != os.fstat(folders.innermost).st_dev:
            return None
        os.fsync(file)
        is_kept = _keep(file, about)
        try:
            _publish(folders, name, file)
        except OSError as error:
            if error.errno in _CAN_NOT_LINK:
                return None
            raise
        return Taken(True, is_kept)

    def _copy(self, folders: Folders, name: bytes, file: int, about: Attributes, mtime_ns: int) -> Taken:
        temporary = b""
        if self._is_special:
            copy = os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o644, dir_fd=folders.innermost)
        else:
            # Among the drafts: a daemon removes it from there if we are killed.
            temporary = secrets.token_hex(16).encode("ascii") + PART
            copy = os.open(temporary, _NEW, 0o644, dir_fd=self._own)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _copy_bytes(file, copy)
            taken = Taken(False, _keep(copy, about))
            # No more users may read it than could before.
            os.fchmod(
                copy, stat.S_IMODE(os.fstat(copy).st_mode) & (os.fstat(file).st_mode | stat.S_IRUSR | stat.S_IWUSR)
            )
            self._give_file(copy)
            os.utime(copy, ns=(mtime_ns, mtime_ns))
            os.fsync(copy)
            if temporary:
                try:
                    move(temporary, self._own, name, folders.innermost)
                    temporary = b""
                    return taken
                except OSError as error:
                    if error.errno not in _CAN_NOT_MOVE:
                        raise
            _publish(folders, name, copy)
            return taken
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=self._own)
            os.close(copy)

    def _give(self, folder: int) -> None:
        """Give a folder that was just made here to the store's owner.

        That owner may have put another one in its place by now: one that is not ours, or not empty, stays whose it is.
        """
        there = os.fstat(folder)
        if there.st_uid == os.geteuid() != self._there.st_uid and not names_in(folder):
            self._give_file(folder)

    def _give_file(self, file: int) -> None:
        if os.geteuid() == 0:
            os.fchown(file, self._there.st_uid, self._there.st_gid)


def _keep(file: int, about: Attributes) -> bool:
    attributes.keep(file, about)
    kept = attributes.kept(file)
    return (kept.owner, kept.end) == (about.owner, about.end)


def _publish(folders: Folders, name: bytes, file: int) -> None:
    """Give a file a name that nobody has. What is linked is this file, whoever has its old name by now."""
    os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=folders.innermost, follow_symlinks=True)


def _copy_bytes(file: int, copy: int) -> None:
    size, copied, shares = os.fstat(file).st_size, 0, True
    while copied < size:
        try:
            if shares:  # Where it can, the file system shares the bytes.
                done = os.copy_file_range(file, copy, size - copied, copied, copied)
            else:
                done = os.pwrite(copy, os.pread(file, min(_BLOCK, size - copied), copied), copied)
        except OSError:
            if not shares:
                raise
            done = 0
        if not done and not shares:
            raise OSError(errno.EIO, "it became shorter while it was read")
        shares = shares and done > 0
        copied += done


def _is_in(folders: Folders, name: bytes, file: int) -> bool:
    """Whether a folder has this very file, or its bytes, under a name.

    :raises SlotTaken: if it has something else.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        there = os.open(name, flags, dir_fd=folders.innermost)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise SlotTaken from None
        raise
    try:
        if not os.path.sameopenfile(there, file) and not same_bytes(file, there, os.fstat(file).st_size):
            raise SlotTaken
    finally:
        os.close(there)
    return True
