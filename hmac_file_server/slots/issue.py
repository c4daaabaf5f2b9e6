"""What an XMPP server gives its client: the right to upload one file, in each of the forms that the daemon takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import quote

import attrs
import jwt

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.signature import sign

PROTOCOLS = ("v", "v2", "token", "jwt")
"""``v`` and ``v2`` of mod_http_upload_external and ejabberd, Metronome's ``token``, mod_http_file_share's JWT."""

SECONDS = 3600
"""How long a JWT is good for; the others have no end."""


@attrs.frozen
class Issued:
    """A slot, as its client gets it.

    :ivar path: of both its URLs, below the upload prefix.
    :ivar query: of the URL for the PUT, with its question mark; empty where a header gives the right.
    :ivar headers: that the PUT must have.
    """

    path: SlotPath
    query: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)

    @property
    def quoted(self) -> str:
        """Its path, percent-encoded."""
        return quote(self.path.signed)


def issue(protocol: str, secret: bytes, path: SlotPath, size: int, media_type: str) -> Issued:
    """Sign a slot.

    :param protocol: one of :data:`PROTOCOLS`.
    :param size: of the file in bytes.
    :param media_type: of the file; ``v`` does not sign it.
    """
    headers = {"Content-Type": media_type}
    if protocol == "v":
        return Issued(path, f"?v={sign(secret, b'%b %d' % (path.signed, size))}", headers)
    if protocol in ("v2", "token"):
        signature = sign(secret, b"%b\0%d\0%b" % (path.signed, size, media_type.encode("utf-8")))
        return Issued(path, f"?{protocol}={signature}", headers)
    slot, _, name = path.signed.decode("utf-8").rpartition("/")
    now = int(time.time())
    claims = {
        "slot": slot,
        "filename": name,
        "filesize": size,
        "filetype": media_type,
        "iat": now,
        "exp": now + SECONDS,
    }
    return Issued(path, "", headers | {"Authorization": f"Bearer {jwt.encode(claims, secret, 'HS256')}"})
