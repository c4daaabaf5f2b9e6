"""Slots as an XMPP server would hand them out, signed with the configuration's secret."""

from __future__ import annotations

import time
from urllib.parse import quote

import attrs
import jwt

from hmac_file_server.slots.signature import sign

PROTOCOLS = ("v", "v2", "token", "jwt")
WRONG = "v=" + "0" * 64
"""A query with a signature that holds for nothing."""

_TOKEN_SECONDS = 300


@attrs.frozen
class Slot:
    """A place for one file.

    :param path: below the prefix, as it is signed.
    :param query: of its PUT URL.
    :param headers: of its PUT.
    """

    path: str
    query: str = attrs.field(repr=False)
    headers: dict[str, str] = attrs.field(repr=False)

    @property
    def quoted(self) -> str:
        """Its path as it stands in a URL."""
        return quote(self.path)


def slot_of(protocol: str, secret: bytes, path: str, size: int, media_type: str) -> Slot:
    """A signed slot.

    :param protocol: one of :data:`PROTOCOLS`.
    :param path: a folder, a slash, and the file's name.
    :param size: of the file in bytes.
    """
    headers = {"Content-Type": media_type}
    if protocol == "v":
        return Slot(path, f"v={sign(secret, f'{path} {size}'.encode())}", headers)
    if protocol in ("v2", "token"):
        return Slot(path, f"{protocol}={sign(secret, f'{path}{chr(0)}{size}{chr(0)}{media_type}'.encode())}", headers)
    folder, _, name = path.rpartition("/")
    now = int(time.time())
    claims = {"slot": folder, "filename": name, "filesize": size, "filetype": media_type}
    token = jwt.encode({**claims, "iat": now, "exp": now + _TOKEN_SECONDS}, secret, algorithm="HS256")
    return Slot(path, "", {**headers, "Authorization": f"Bearer {token}"})
