"""Which files an operator means."""

from __future__ import annotations

import hashlib

import attrs

from hmac_file_server import media_types
from hmac_file_server.slots.slot import owner_by_path
from hmac_file_server.stores.local.walk import Entry


@attrs.frozen
class Selection:
    """Files that fulfil all that is asked for.

    :param owner: a bare JID, as ``alice@example.org``.
    :param before: uploaded before, in seconds since 1970.
    :param larger_than: bytes.
    :param media_type: one type, or all of a kind, as ``image/*``.
    """

    owner: str | None = None
    before: float | None = None
    larger_than: int | None = None
    media_type: str | None = None

    def takes(self, entry: Entry) -> bool:
        """Whether a file is meant."""
        return (
            (self.owner is None or belongs_to(entry, self.owner))
            and (self.before is None or entry.mtime_ns < self.before * 1e9)
            and (self.larger_than is None or entry.size > self.larger_than)
            and (self.media_type is None or _is_of(type_of(entry), self.media_type))
        )


def belongs_to(entry: Entry, owner: str) -> bool:
    """Whether a file is somebody's: by its token, or by ejabberd's path, which begins with a hash of the JID.

    :param owner: a bare JID, or the hash of one.
    """
    hashed = hashlib.sha1(owner.encode("utf-8"), usedforsecurity=False).hexdigest()
    return entry.about.owner in (owner, hashed) or owner_by_path(entry.path) in (owner, hashed)


def owner_of(entry: Entry) -> str:
    """Whose a file is: a JID, ejabberd's hash of one, or empty if nobody knows."""
    return entry.about.owner or owner_by_path(entry.path) or ""


def type_of(entry: Entry) -> str:
    """The type that a file is served with, without its parameters."""
    found = entry.about.media_type or media_types.of_name(entry.path.name)
    return media_types.parse(found).partition(b";")[0].decode("ascii", "replace")


def _is_of(kind: str, asked: str) -> bool:
    return kind == asked.lower() or (asked.endswith("/*") and kind.startswith(asked[:-1].lower()))
