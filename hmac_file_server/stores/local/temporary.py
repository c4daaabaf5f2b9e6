"""The name that a file has until it is published, where it can not do without one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets

import attrs

from hmac_file_server.slots.path import RESERVED
from hmac_file_server.stores.local.folders import Folders, at
from hmac_file_server.stores.local.place import Place

NOTE = b".note"
"""What the names of notes end with: each says where a temporary file is, for whoever finds it when its daemon died."""

PART = b".part"
"""What the names of temporary files end with."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LONGEST_NOTE = 1 << 16


@attrs.define
class Temporary:
    """A temporary name.

    :param place: the store's.
    :param folder: descriptor of the folder that it is in.
    :param name: in that folder.
    :param note: the name of its note; empty if it is among the drafts, where it is found without one.
    :param stays: whether the name outlives the upload.
    """

    place: Place
    folder: int
    name: bytes
    note: bytes = b""
    stays: bool = False

    @classmethod
    def among_drafts(cls, place: Place) -> Temporary:
        """A new name in the store's own folder."""
        return cls(place, place.own, _stem() + PART)

    @classmethod
    def in_folder(cls, place: Place, folders: Folders) -> Temporary:
        """A new name in the innermost of the folders, with its note."""
        stem = _stem()
        made = cls(place, os.dup(folders.innermost), hidden(stem), stem + NOTE)
        try:
            note = place.create(made.note, _NEW, 0o600)
            try:
                os.write(note, b"/".join(folders.path))
            finally:
                os.close(note)
        except BaseException:
            made.end()
            raise
        return made

    def make(self) -> int:
        """Make the file.

        :returns: its descriptor.
        """
        if not self.note:
            return self.place.create(self.name, _NEW, 0o644)
        try:
            return os.open(self.name, _NEW, 0o644, dir_fd=self.folder)
        except OSError as error:
            raise at(error, self.folder) from None

    def end(self, moved: bool = False) -> None:
        """Remove the name, unless it stays or the file was moved away, and forget it."""
        if not (moved or self.stays):
            with contextlib.suppress(OSError):
                os.unlink(self.name, dir_fd=self.folder)
        if self.note:
            with contextlib.suppress(OSError):
                os.unlink(self.note, dir_fd=self.place.own)
            os.close(self.folder)


def hidden(stem: bytes) -> bytes:
    """What a temporary file is called outside the store's own folder."""
    return b"%b-%b%b" % (RESERVED, stem, PART)


def noted(place: Place, note: bytes) -> tuple[bytes, ...]:
    """The folder that a note names.

    :raises OSError: if it can not be read, or names none.
    """
    descriptor = os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.own)
    try:
        path = os.read(descriptor, _LONGEST_NOTE)
    finally:
        os.close(descriptor)
    names = tuple(path.split(b"/")) if path else ()
    if not {b"", b".", b".."}.isdisjoint(names):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return names


def _stem() -> bytes:
    return secrets.token_hex(16).encode("ascii")
