"""What is kept with a file beside its bytes: extended attributes (xattr(7)), which are published with it."""

from __future__ import annotations

import errno
import os

from twisted.logger import Logger

from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.faults import may_pass

_log = Logger()

MIME_TYPE = "user.mime_type"
"""Keeps a verified type (freedesktop.org, Shared MIME-info)."""
OWNER = "user.hmac_file_server.owner"
"""Keeps whose a file is, in UTF-8."""
END = "user.hmac_file_server.expires"
"""Keeps when a file may be served for the last time: seconds since 1970, in decimal digits."""

_ALL = (MIME_TYPE, OWNER, END)
_LONGEST_TYPE = _SURELY_FITS = 255


def keep(file: int, attributes: Attributes) -> None:
    """Keep them with a file.

    Where the file system can not, the file is stored without; of an owner or an end that are lost the log tells.

    :param file: its descriptor.
    :raises OSError: if they can be kept later.
    """
    lost = []
    # What may be too long comes last, so that it takes no other's room: some file systems have little.
    if attributes.end is not None and not _set(file, END, b"%d" % attributes.end):
        lost.append("its end, and does not expire")
    if attributes.media_type and len(attributes.media_type) <= _LONGEST_TYPE:
        _set(file, MIME_TYPE, attributes.media_type)
    if attributes.owner is not None and not _set(file, OWNER, attributes.owner.encode("utf-8")):
        lost.insert(0, "its owner")
    if lost:
        _log.warn(
            "the file system did not keep attributes: a file is stored without {lost}", lost=", without ".join(lost)
        )


def kept(file: int | bytes) -> Attributes:
    """What is kept with a file.

    :param file: its descriptor or path.
    """
    media_type = _get(file, MIME_TYPE) or None
    owner, end = _get(file, OWNER), _get(file, END)
    return Attributes(
        media_type,
        owner.decode("utf-8", "replace") if owner else None,
        int(end) if end is not None and end.isdigit() and len(end) < 20 else None,
    )


def copy(file: int, other: int) -> None:
    """Keep with another file what is kept with this one.

    :param file: its descriptor.
    :param other: the other's.
    :raises OSError: if they can be kept later.
    """
    for name in _ALL:
        value = _get(file, name)
        if value is not None:
            _set(other, name, value)


def can_be_kept(file: int) -> bool:
    """Whether the file system keeps any.

    :param file: descriptor of a new file on it.
    """
    try:
        os.setxattr(file, OWNER, b"?")
    except OSError as error:
        return may_pass(error)
    return True


def _set(file: int, name: str, value: bytes) -> bool:
    try:
        os.setxattr(file, name, value)
    except OSError as error:
        # Some file systems say so of what is too long for them, too.
        if may_pass(error) and not (error.errno == errno.ENOSPC and len(value) > _SURELY_FITS):
            raise
        return False
    return True


def _get(file: int | bytes, name: str) -> bytes | None:
    try:
        return os.getxattr(file, name)
    except OSError:
        return None
