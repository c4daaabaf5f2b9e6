"""What a store knows of an upload that can be resumed: its session, and the parts that its requests bring."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

import attrs

from hmac_file_server.slots.path import BadPath, SlotPath, slot_path
from hmac_file_server.slots.slot import Attributes

TAG = 8
"""So many first letters of a token tell its slot from nearly all others."""

_TOKEN = re.compile(r"[0-9a-f]{32}\Z")


@attrs.frozen
class Session:
    """The record of one upload that can be resumed.

    :param token: names its upload resource; whoever knows it may go on with the upload.
    :param path: the slot's.
    :param length: of the whole file in bytes, as it was signed.
    :param media_type: the type that was verified, None where the signature covers none.
    :param version: of the draft that it was begun with.
    :param digest: the SHA-256 that the whole file must have, None if the client named none.
    :param client: the address that began it.
    :param begun: when, in seconds since 1970.
    :param touched: when bytes were last known to be safe.
    :param safe: bytes that are on the disk.
    :param complete: whether the file has its public name.
    :param owner: whose the file is, None if that is not known.
    :param end: when the file may be served for the last time, in seconds since 1970; None if it stays.
    :param others: what else the record says: a newer daemon, which may get the upload back, has written it.
    """

    token: str
    path: SlotPath
    length: int
    media_type: bytes | None
    version: int
    digest: bytes | None
    client: str
    begun: float
    touched: float
    safe: int = 0
    complete: bool = False
    owner: str | None = None
    end: int | None = None
    others: Mapping[str, Any] = attrs.field(factory=dict, hash=False)

    @property
    def attributes(self) -> Attributes:
        """What is kept with the file."""
        return Attributes(self.media_type, self.owner, self.end)


_FIELDS = frozenset(field.name for field in attrs.fields(Session)) - {"token", "others"}


def new_token(path: SlotPath) -> str:
    """A token that nobody can guess. Those of one slot begin alike, so that they can be found."""
    return hashlib.sha256(path.signed).hexdigest()[:TAG] + secrets.token_hex(16 - TAG // 2)


def is_token(text: str) -> bool:
    """Whether a text can be a token."""
    return _TOKEN.match(text) is not None


def same_slot(token: str, other: str) -> bool:
    """Whether two tokens can be of one slot; those of a few others begin like them too."""
    return token[:TAG] == other[:TAG]


@attrs.frozen
class Part:
    """What one request brings of a file.

    :param size: its bytes.
    :param last: whether the file is whole after it.
    :param offset: where in the file it begins.
    :param length: of the whole file as this request says, None if it says nothing.
    :param digest: the SHA-256 of the part, None if the client named none.
    :param whole_digest: the SHA-256 of the whole file, where that is the request that the client named it in.
    """

    size: int
    last: bool
    offset: int = 0
    length: int | None = None
    digest: bytes | None = None
    whole_digest: bytes | None = None


def encode(session: Session) -> bytes:
    """A record as JSON."""
    fields: dict[str, Any] = {**session.others}
    fields |= attrs.asdict(session, recurse=False, filter=lambda field, _: field.name in _FIELDS)
    fields["path"] = session.path.signed.decode("utf-8")
    fields["media_type"] = None if session.media_type is None else session.media_type.decode("latin-1")
    fields["digest"] = None if session.digest is None else session.digest.hex()
    return json.dumps(fields).encode("ascii")


def decode(token: str, data: bytes) -> Session | None:
    """A record from JSON; None if it is none. What is not known is passed over, and kept."""
    try:
        fields = json.loads(data)
        others = {name: fields.pop(name) for name in fields.keys() - _FIELDS}
        fields["path"] = slot_path(fields["path"].encode("utf-8").split(b"/"))
        for name, parse in (("media_type", lambda text: text.encode("latin-1")), ("digest", bytes.fromhex)):
            fields[name] = None if fields[name] is None else parse(fields[name])
        session = Session(token=token, others=others, **fields)
        (session.owner or "").encode("utf-8")  # It is kept so with the file; JSON has strings that can not be.
        return session if _is_sound(session) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, BadPath):
        return None


def _is_sound(session: Session) -> bool:
    whole = all(type(number) is int for number in (session.length, session.safe, session.version))
    times = all(type(when) in (int, float) and math.isfinite(when) for when in (session.begun, session.touched))
    others = type(session.complete) is bool and isinstance(session.client, str)
    others = others and isinstance(session.owner, str | None) and type(session.end) in (int, type(None))
    return whole and times and others and 0 <= session.safe <= session.length
