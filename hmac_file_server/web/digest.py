"""Digests that a client names of what it sends (RFC 9530)."""

from __future__ import annotations

import base64
import binascii
import re

from twisted.web.http_headers import Headers

NAMES = frozenset((b"Content-Digest", b"Repr-Digest"))

_SHA256 = re.compile(rb"(?:\A|,)[ \t]*sha-256=:([A-Za-z0-9+/=]*):[ \t]*(?:;[^,]*)?(?=,|\Z)")


def asked_digest(headers: Headers, name: bytes) -> bytes | None:
    """The SHA-256 of a ``Repr-Digest`` or ``Content-Digest``; other algorithms are passed over.

    :raises ValueError: if it is no SHA-256.
    """
    found = _SHA256.findall(b",".join(headers.getRawHeaders(name, ())))
    if not found:
        return None
    try:
        digest = base64.b64decode(found[-1], validate=True)  # Of several the last one counts, RFC 9651, section 3.2.
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise ValueError(f"the sha-256 of {name.decode()} is not one")
    return digest
