"""A walk through all files of a store, with little memory however many there are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import attrs

from hmac_file_server.slots.path import RESERVED, SlotPath
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.faults import is_gone
from hmac_file_server.stores.local import attributes
from hmac_file_server.stores.local.place import FOLDER

_OF_FSCK = b"lost+found"
"""Stands at the top of a disk, and is root's."""

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@attrs.frozen
class Entry:
    """A file of the store.

    :param size: in bytes.
    :param mtime_ns: when it was uploaded, in nanoseconds since 1970.
    :param about: what is kept with it.
    """

    path: SlotPath
    size: int
    mtime_ns: int
    about: Attributes


def walk(root: int, unreadable: Callable[[OSError], object]) -> Iterator[Entry]:
    """All files that can be served, in no order. Files that come and go meanwhile may be among them or not.

    :param root: descriptor of the store's root.
    :param unreadable: is told of what can not be read.
    """
    yield from _walk(root, (), unreadable)


def _walk(folder: int, above: tuple[bytes, ...], unreadable: Callable[[OSError], object]) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for each in found:
            name = os.fsencode(each.name)
            try:
                if name.startswith(RESERVED) or (name == _OF_FSCK and not above):
                    continue
                if each.is_file(follow_symlinks=False):
                    yield _entry(folder, (*above, name))
                elif each.is_dir(follow_symlinks=False) and not name.startswith(b"."):
                    inner = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                    try:
                        yield from _walk(inner, (*above, name), unreadable)
                    finally:
                        os.close(inner)
            except OSError as error:
                if not is_gone(error) and not isinstance(error, FileNotFoundError):
                    unreadable(error)


def _entry(folder: int, segments: tuple[bytes, ...]) -> Entry:
    file = os.open(segments[-1], _FILE, dir_fd=folder)
    try:
        there = os.fstat(file)
        return Entry(SlotPath(segments), there.st_size, there.st_mtime_ns, attributes.kept(file))
    finally:
        with contextlib.suppress(OSError):
            os.close(file)
