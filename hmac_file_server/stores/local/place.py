"""Where drafts are made and published: the folders of the store, held open, and what can be done there."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Callable
from typing import TypeVar

import attrs

from hmac_file_server.slots.path import RESERVED
from hmac_file_server.stores.faults import is_gone
from hmac_file_server.stores.local.filesystem import FileSystem
from hmac_file_server.stores.local.flush import Flusher
from hmac_file_server.stores.local.folders import at, names_in
from hmac_file_server.stores.local.index import Index, enter
from hmac_file_server.stores.local.names import Names
from hmac_file_server.stores.local.removed import Removed

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""How a folder is opened."""

T = TypeVar("T")


@attrs.define(eq=False)
class Place:
    """The folders of a store.

    :param folder: its path.
    :param root: descriptor of the store's root.
    :param own: descriptor of the folder for files without a public name.
    :param anonymous: whether files need no name there at all (``O_TMPFILE``).
    :param flusher: makes safe what is published; None if publishing does not wait for the disk.
    :param file_system: what else can be done with the files there.
    :param names: what they can be called.
    :param index: the sessions that lie there.
    :param renames: whether a file that has a name there is moved when it is published, not linked.
    :param keeps_attributes: whether extended attributes can be kept with files there.
    :param remember: seconds for which a removal counts; 0 for ever.
    :ivar removed: the slots whose files were removed.
    :param is_split: whether files could not be published in some folder, which looked as if they could.
    :param retired: whether the store has moved on, because another file system was mounted there.
    """

    folder: str
    root: int
    own: int
    anonymous: bool
    flusher: Flusher | None
    file_system: FileSystem
    names: Names = Names()
    index: Index = attrs.field(factory=Index)
    renames: bool = False
    keeps_attributes: bool = True
    is_split: bool = False
    retired: bool = False
    remember: float = 0.0
    removed: Removed = attrs.field(init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _mended: int = attrs.field(default=0, init=False)

    @removed.default
    def _remember_removed(self) -> Removed:
        return Removed(self.own, self.file_system, self.fsync, self.remember)

    @property
    def fsync(self) -> bool:
        """Whether publishing waits for the disk."""
        return self.flusher is not None

    def create(self, name: bytes, flags: int, mode: int) -> int:
        """Make a file among the drafts.

        :returns: its descriptor.
        :raises OSError: with the folder's name.
        """
        return self._mending(lambda: os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=self.own))

    def try_out(self, look: Callable[[int], bool] = bool) -> bool:
        """Make a file among the drafts, and remove it again.

        :param look: at the file, by its descriptor; what it finds is returned.
        :raises OSError: with the folder's name.
        """
        name = b"%b.part" % secrets.token_hex(16).encode("ascii")
        file = self.create(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            return look(file)
        finally:
            os.close(file)
            os.unlink(name, dir_fd=self.own)

    def drafts(self) -> set[bytes]:
        """The names of what is among the drafts.

        :raises OSError: with the folder's name.
        """
        return self._mending(lambda: names_in(self.own))

    def _mending(self, call: Callable[[], T]) -> T:
        """Make a call that needs the folder for drafts, and once more if that had to be made again."""
        mended = self._mended
        try:
            try:
                return call()
            except OSError:
                self.mend()
                if self._mended == mended:
                    raise
                return call()
        except OSError as error:
            raise at(error, self.own) from None

    def mend(self) -> None:
        """Make again what somebody has removed: the folder for drafts, or StoreDir itself.

        A folder on another mount is left alone: where a disk is missing nothing must be written below its mount point.
        """
        with self._lock:
            self._mend_root()
            if _is_at(RESERVED, self.root, self.own):
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(RESERVED, 0o700, dir_fd=self.root)
                if self.fsync:
                    os.fsync(self.root)
            _replace(self.own, os.open(RESERVED, FOLDER | os.O_NOFOLLOW, dir_fd=self.root))
            with contextlib.suppress(OSError):
                enter(self.own)
            self._mended += 1

    def _mend_root(self) -> None:
        if _is_at(self.folder, None, self.root):
            return
        path = os.path.realpath(self.folder)
        with contextlib.suppress(OSError):
            above = os.open(os.path.dirname(path), FOLDER)
            try:
                if _same_mount(above, self.root):
                    os.mkdir(os.path.basename(path), dir_fd=above)
                    if self.fsync:
                        os.fsync(above)
            finally:
                os.close(above)
        with contextlib.suppress(OSError):
            there = os.open(path, FOLDER)
            if _same_mount(there, self.root):
                _replace(self.root, there)
            else:
                os.close(there)


def _is_at(path: str | bytes, folder: int | None, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, dir_fd=folder), os.fstat(descriptor))
    except OSError as error:
        if not is_gone(error):
            raise
        return False


def _replace(descriptor: int, new: int) -> None:
    """Let a descriptor, whoever uses it, mean another folder."""
    try:
        os.dup2(new, descriptor, inheritable=False)
    finally:
        os.close(new)


def _same_mount(one: int, other: int) -> bool:
    """Whether two folders, also if they are removed, are on the same mount; False if nobody can tell."""
    mounts = [_mount(one), _mount(other)]
    return mounts[0] == mounts[1] != ""


def _mount(descriptor: int) -> str:
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as info:
            found = re.search(r"^mnt_id:\s*(\d+)$", info.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""
