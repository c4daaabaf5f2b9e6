"""Tokens as Prosody's mod_http_file_share makes them, and as it never would."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import quote

from tests.support import SECRET

HEADER: dict[str, Any] = {"alg": "HS256", "typ": "JWT"}
_HASHES = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}


def encoded(data: bytes) -> bytes:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(header: bytes, payload: bytes, secret: str = SECRET, algorithm: str = "sha256") -> bytes:
    """A token of these very bytes."""
    message = encoded(header) + b"." + encoded(payload)
    return message + b"." + encoded(hmac.new(secret.encode(), message, getattr(hashlib, algorithm)).digest())


def claims(path: str, size: int, **others: Any) -> dict[str, Any]:
    """Those of a slot; None takes one away."""
    slot, _, name = path.partition("/")
    now = int(time.time())
    made = {"slot": slot, "filename": name, "filesize": size, "filetype": "image/png", "sub": "juliet@example.com"}
    made |= {"iat": now, "exp": now + 300, **others}
    return {name: value for name, value in made.items() if value is not None}


def token(path: str, size: int, secret: str = SECRET, header: dict[str, Any] | None = None, **others: Any) -> bytes:
    """The token of a slot."""
    head = HEADER if header is None else header
    payload = json.dumps(claims(path, size, **others)).encode()
    return signed(json.dumps(head).encode(), payload, secret, _HASHES.get(str(head.get("alg")), "sha256"))


def put_with(
    made: bytes, path: str, size: int, *headers: str, prefix: str = "/upload/", query: str = "", scheme: str = "Bearer"
) -> bytes:
    """The head of a PUT with a token."""
    lines = [f"PUT {prefix}{quote(path)}{query} HTTP/1.1", "Host: a", f"Content-Length: {size}", *headers]
    return "\r\n".join([*lines, f"Authorization: {scheme} "]).encode() + made + b"\r\n\r\n"
