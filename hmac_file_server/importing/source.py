"""The folder of another server. It belongs to that server's user, whom root does not have to trust."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs

from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.local.folders import Folders, names_in
from hmac_file_server.stores.local.place import FOLDER

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Names = Sequence[bytes]
"""Where something lies below the folder, from outside to inside."""


class Refused(Exception):
    """What lies there is not what it should be; the text says what it is."""


class NoStore(Exception):
    """There is no store where one should be, or none that can be read; the text says what to do."""


@attrs.frozen
class Found:
    """A file that the other server has stored.

    :param path: what stands in its URL behind the server's prefix, percent-decoded, between slashes. Not checked.
    :param file: where its bytes are.
    :param about: what is known of it.
    :param size: its length in bytes; None if the server keeps no account of that.
    :param time: when it was uploaded, in seconds since 1970; None if only its own time tells.
    """

    path: Names
    file: Names
    about: Attributes
    size: int | None = None
    time: float | None = None


@attrs.frozen
class Skipped:
    """What is not taken over.

    :param what: the file, by its place or its path.
    :param reason: why.
    :param lost: whether there are bytes that are missing from the store now.
    """

    what: bytes
    reason: str
    lost: bool = True


class Layout(Protocol):
    """How a server lays out its files."""

    def __call__(self, source: Source) -> Iterator[Found | Skipped]:
        """What there is.

        :raises NoStore: if there is nothing of that kind.
        :raises Refused: if what should be a folder is none.
        :raises OSError: if it can not be read.
        """


class Source:
    """A folder, read by descriptors so that no link leads out of it, and never changed.

    :param path: of the folder. Whoever named it is trusted.
    :raises OSError: if it can not be opened.
    """

    def __init__(self, path: str) -> None:
        self._root = os.open(path, FOLDER)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._root)

    def open(self, names: Names) -> int:
        """Open a file.

        :returns: its descriptor.
        :raises Refused: if it is no plain file, or belongs to another user than its folder: a hard link that somebody
            has made to a file that is not theirs.
        :raises FileNotFoundError: if there is none.
        :raises OSError: if it can not be read.
        """
        folders = self._folders(names[:-1])
        try:
            if stat.S_ISLNK(os.stat(names[-1], dir_fd=folders.innermost, follow_symlinks=False).st_mode):
                raise Refused("it is a symbolic link, which is not followed")
            file = os.open(names[-1], _FLAGS, dir_fd=folders.innermost)
            try:
                there = os.fstat(file)
                if not stat.S_ISREG(there.st_mode):
                    raise Refused("it is no plain file")
                owner = os.fstat(folders.innermost).st_uid
                if there.st_uid != owner:
                    raise Refused(f"it belongs to the user {there.st_uid}, and its folder to {owner}")
            except BaseException:
                os.close(file)
                raise
            return file
        finally:
            folders.close()

    def read(self, names: Names, most: int) -> bytes:
        """All of a file.

        :param most: bytes that it may have.
        :raises Refused: if it has more, and as :meth:`open`.
        """
        with open(self.open(names), "rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise Refused(f"it is longer than {most} bytes")
        return data

    def has(self, names: Names) -> bool:
        """Whether there is something, and be it a link."""
        try:
            folders = self._folders(names[:-1])
        except FileNotFoundError:
            return False
        try:
            return names[-1] in names_in(folders.innermost)
        finally:
            folders.close()

    def listed(self, names: Names) -> list[tuple[bytes, int]]:
        """What a folder has in it, with the kind of each (``S_IFMT``); a link is a link.

        :raises Refused: if it is no folder.
        :raises OSError: if it can not be read.
        """
        folders = self._folders(names)
        try:
            found = []
            for name in sorted(names_in(folders.innermost)):
                there = os.stat(name, dir_fd=folders.innermost, follow_symlinks=False)
                found.append((name, stat.S_IFMT(there.st_mode)))
            return found
        finally:
            folders.close()

    def _folders(self, names: Names) -> Folders:
        try:
            return Folders(self._root, names)
        except NotADirectoryError:
            where = os.fsdecode(b"/".join(names))
            raise Refused(f"{where} is no folder, or a symbolic link, which is not followed") from None
