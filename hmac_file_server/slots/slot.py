"""Slots: what an XMPP server has vouched for."""

from __future__ import annotations

import re

import attrs

from hmac_file_server.slots.path import SlotPath

_EJABBERD = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9A-Za-z]{40}")


@attrs.frozen
class Attributes:
    """What is known of a file beside its bytes, and is kept with it.

    :param media_type: in the form of :func:`media_types.parse`; None where the XMPP server has named none, empty where
        it has named an empty one.
    :param owner: whose it is, as the XMPP server names its users; None if it does not say.
    :param end: when it may be served for the last time, in seconds since 1970; None if it stays.
    """

    media_type: bytes | None = None
    owner: str | None = None
    end: int | None = None

    def is_over(self, now: float) -> bool:
        """Whether the file's time has come to its end.

        :param now: seconds since 1970.
        """
        return self.end is not None and self.end <= now


@attrs.frozen
class Slot:
    """What an XMPP server vouches for.

    :param size: the length of the file in bytes.
    :param media_type: as in :class:`Attributes`.
    :param owner: likewise.
    :param end: likewise.
    """

    path: SlotPath
    size: int
    media_type: bytes | None
    owner: str | None = None
    end: int | None = None

    @property
    def attributes(self) -> Attributes:
        """What is kept with the file."""
        return Attributes(self.media_type, self.owner, self.end)


def owner_by_path(path: SlotPath) -> str | None:
    """The owner that ejabberd's paths tell: the SHA-1 of ``user@host``, 40 random letters, the name."""
    if len(path.segments) != len(_EJABBERD) + 1:
        return None
    folders = [segment.decode("utf-8", "replace") for segment in path.segments[:-1]]
    return folders[0] if all(form.fullmatch(name) for form, name in zip(_EJABBERD, folders, strict=True)) else None
