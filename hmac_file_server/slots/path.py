"""Slot paths: which request paths can name a file in the store."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import attrs

RESERVED = b".hmac-file-server"
"""Names that begin so belong to the daemon and are never uploaded or served."""

MAX_NAME = 255
"""Bytes in one segment: what file systems take (``NAME_MAX``)."""

_PLAIN = re.compile(rb"[0-9A-Za-z_-][0-9A-Za-z._-]{0,%d}" % (MAX_NAME - 1))
"""Segments as nearly all are."""


class BadPath(ValueError):
    """A request path that can not name a file in the store."""


@attrs.frozen
class SlotPath:
    """The path of one slot below the upload prefix, percent-decoded exactly once.

    :param segments: its parts between slashes, raw UTF-8 bytes, checked by :func:`slot_path`.
    """

    segments: tuple[bytes, ...]

    @property
    def signed(self) -> bytes:
        """The path as the XMPP server signs it."""
        return b"/".join(self.segments)

    @property
    def name(self) -> str:
        """The file's own name. It is UTF-8, but for paths that were not checked, at which mistakes are looked for."""
        return self.segments[-1].decode("utf-8", "replace")


def slot_path(segments: Sequence[bytes]) -> SlotPath:
    """Check the percent-decoded segments of a request path.

    :raises BadPath: for anything that is no plain relative name of a file: an empty segment, ``.``
        or ``..``, an encoded slash, control characters, bytes that are not UTF-8, a hidden folder, the daemon's
        own names, a segment over 255 bytes.
    """
    if not segments:
        raise BadPath("the path is empty")
    last = len(segments) - 1
    for index, segment in enumerate(segments):
        if not _PLAIN.fullmatch(segment):
            _check(segment, folder=index < last)
    return SlotPath(tuple(segments))


def _check(segment: bytes, folder: bool) -> None:
    if not segment:
        raise BadPath("the path has an empty segment")
    if segment in (b".", b".."):
        raise BadPath("the path has a . or .. segment")
    if b"/" in segment:
        raise BadPath("the path has an encoded slash")
    if segment.startswith(RESERVED):
        raise BadPath("the path has a name that the server keeps for itself")
    if folder and segment.startswith(b"."):
        raise BadPath("the path has a hidden folder")
    if len(segment) > MAX_NAME:
        raise BadPath(f"the path has a segment of {len(segment)} bytes, {MAX_NAME} at most are possible")
    try:
        text = segment.decode("utf-8")
    except UnicodeDecodeError:
        raise BadPath("the path is not UTF-8") from None
    if not text.isprintable() and any(unicodedata.category(c) == "Cc" for c in text):
        raise BadPath("the path has a control character")
