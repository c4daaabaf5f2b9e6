"""Folders of the store, reached by descriptors so that no symbolic link can lead elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folders:
    """The open folders from the store's root down to the one that holds a file.

    :param root: a descriptor of the root, which stays the caller's.
    :param names: the folders below it, outermost first.
    :param make: make what is missing.
    :param partly: open those that are there, if others are missing.
    :raises OSError: ENOENT, ENOTDIR (also for a symbolic link), and with the folder's name EACCES and whatever else
        the disk says.
    """

    def __init__(self, root: int, names: Sequence[bytes], make: bool = False, partly: bool = False) -> None:
        self._names = names
        self._chain = [root]
        self._made: list[int] = []
        try:
            for level, name in enumerate(names):
                self._chain.append(self._enter(level, name, make))
        except BaseException as error:
            if partly and isinstance(error, FileNotFoundError):
                return
            self.remove_made()
            self.close()
            raise

    @property
    def path(self) -> Sequence[bytes]:
        """The names of those that there are."""
        return self._names[: self.depth]

    @property
    def depth(self) -> int:
        """How many of the folders there are."""
        return len(self._chain) - 1

    def _enter(self, level: int, name: bytes, make: bool) -> int:
        parent = self._chain[level]
        if make and level == len(self._names) - 1:
            self._make(level, name)  # A slot has a folder of its own, which is seldom there already.
        while True:
            try:
                return os.open(name, _FOLDER, dir_fd=parent)
            except FileNotFoundError:
                if not make:
                    raise
            except NotADirectoryError:
                raise
            except OSError as error:
                raise at(error, parent, name) from None
            self._make(level, name)

    def _make(self, level: int, name: bytes) -> None:
        try:
            os.mkdir(name, 0o755, dir_fd=self._chain[level])
            self._made.append(level)
        except FileExistsError:
            pass
        except FileNotFoundError:
            # Whoever made the parent has removed it again: from the root it can be made anew.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        except OSError as error:
            raise at(error, self._chain[level]) from None

    @property
    def innermost(self) -> int:
        """A descriptor of the folder that holds the file, good until :meth:`close`."""
        return self._chain[-1]

    @property
    def inside_out(self) -> list[int]:
        """Descriptors of all folders on the way, innermost first.

        When these are flushed the file is found after a power loss. All of them, not only those made here:
        one that another upload has just made may not be on the disk yet.
        """
        return self._chain[::-1]

    def remove_made(self) -> None:
        """Remove the folders that were made here and are still empty."""
        for level in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(self._names[level], dir_fd=self._chain[level])
        self._made = []

    def remove_empty(self) -> None:
        """Remove those that are empty, from the innermost on."""
        with contextlib.suppress(OSError):
            for level in reversed(range(len(self._names))):
                os.rmdir(self._names[level], dir_fd=self._chain[level])

    def close(self) -> None:
        """Close all descriptors but the root's."""
        for folder in self._chain[1:]:
            os.close(folder)
        del self._chain[1:]


def may_write(folder: int) -> bool:
    """Whether files can be made in a folder, as far as the system tells without being asked to do it.

    :param folder: a descriptor.
    """
    return os.access(b".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True)


def names_in(folder: int) -> set[bytes]:
    """What a folder has in it.

    Read through a descriptor of its own: what several threads read through one they would take from each other.

    :param folder: a descriptor.
    """
    own = os.open(b".", _FOLDER, dir_fd=folder)
    try:
        # A set: of a folder that changes meanwhile a name can be listed twice.
        return {os.fsencode(name) for name in os.listdir(own)}
    finally:
        os.close(own)


def at(error: OSError, folder: int, name: bytes = b"") -> OSError:
    """The same error, which names where it happened.

    :param folder: descriptor of the folder.
    :param name: of what is in it.
    """
    try:
        where = os.readlink(f"/proc/self/fd/{folder}")
    except OSError:  # Without /proc; then the line is less clear.
        return error
    return OSError(error.errno, error.strerror, os.path.join(where, os.fsdecode(name)) if name else where)
