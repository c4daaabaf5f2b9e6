"""Bearer tokens: how Prosody's mod_http_file_share vouches for a slot in external mode (RFC 6750, RFC 7519)."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import jwt

from hmac_file_server import media_types
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.slot import Slot

_ALGORITHM = "HS256"
_LONGEST = 8192
_LONGEST_OWNER = 2047  # bytes of a bare JID (RFC 7622, section 3)
_EARLY_SECONDS = 60.0
_LATEST = 1 << 48
_BEARER = re.compile(rb"bearer(?:[ \t]+(.*))?\Z", re.IGNORECASE | re.DOTALL)
_TOKEN = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_UNKNOWN_HEADERS = frozenset(("crit", "b64", "zip", "enc"))
"""Header parameters that change what a token means (RFC 7515, section 4.1.11; RFC 7797)."""

# It has an opinion about the length of keys; the daemon has its own, and says so at the start.
warnings.filterwarnings("ignore", "The HMAC key is")


class BadToken(ValueError):
    """A token that gives no right to this upload; the text, which is for the operator's log, names the claim.

    :ivar status: of the answer.
    :ivar error: its code (RFC 6750, section 3.1); empty where there is none.
    """

    def __init__(self, reason: str, status: int = 401, error: str = "invalid_token") -> None:
        super().__init__(reason)
        self.status = status
        self.error = error

    @property
    def challenge(self) -> bytes:
        """The answer's ``WWW-Authenticate``."""
        if not self.error:
            return b"Bearer"
        return f'Bearer error="{self.error}", error_description="{self}"'.encode("ascii")


def presented(authorization: Sequence[bytes]) -> bytes | None:
    """The bearer token of a request; None if it does not present any.

    :param authorization: its ``Authorization`` fields as sent.
    :raises BadToken: if it has one and something else, or names none.
    """
    found = [_BEARER.match(value.strip()) for value in authorization]
    if not any(found):
        return None
    if len(found) > 1:
        raise BadToken("the request has several Authorization headers", error="invalid_request")
    token = (found[0] and found[0][1]) or b""
    if not token:
        raise BadToken("the Authorization header has no token", error="")
    return token


def claimed_numbers(token: bytes) -> dict[str, int]:
    """What a token that nobody has checked says in numbers, ``filesize``, ``iat`` and ``exp`` among them."""
    try:
        claims = _object(jwt.utils.base64url_decode, token.partition(b".")[2].partition(b".")[0], "payload")
    except BadToken:
        return {}
    return {name: int(value) for name, value in claims.items() if isinstance(value, int | float)}


@attrs.frozen
class TokenVerifier:
    """Checks bearer tokens against one or more secrets; more while one replaces another.

    :param secrets: HMAC keys; any of them verifies.
    :param now: tells seconds since 1970.
    """

    secrets: Sequence[bytes] = attrs.field(repr=False)
    now: Callable[[], float] = time.time

    def verify(self, token: bytes, path: SlotPath, size: int) -> Slot:
        """The slot that a token gives a right to.

        :param path: of the request.
        :param size: of the file in bytes.
        :raises BadToken: if it gives none.
        """
        claims = self._claims(token)
        slot, name = _text(claims, "slot"), _text(claims, "filename")
        length = claims.get("filesize")
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise BadToken("the claim filesize is missing, or no number of bytes")
        media_type, owner = _text(claims, "filetype", False), _text(claims, "sub", False)
        if owner is not None and len(owner.encode("utf-8")) > _LONGEST_OWNER:
            raise BadToken("the claim sub is longer than any address")
        end = _moment(claims, "expires", False)
        self._check_time(claims)
        if "/" in slot + name or path.signed != f"{slot}/{name}".encode():
            raise BadToken("the claims slot and filename are of another path", 403, "insufficient_scope")
        if length != size:
            raise BadToken(f"the claim filesize is {length}, and the file has {size} bytes", 413, "")
        kind = media_types.parse(media_type.encode("utf-8")) if media_type else None
        return Slot(path, size, kind, owner or None, None if end is None else int(end))

    def _check_time(self, claims: dict[str, Any]) -> None:
        now = self.now()
        if now >= _moment(claims, "exp"):
            raise BadToken("the claim exp has passed: the slot has expired")
        for name in ("iat", "nbf"):
            begin = _moment(claims, name, False)
            if begin is not None and begin > now + _EARLY_SECONDS:
                raise BadToken(f"the claim {name} lies ahead: the clocks of the XMPP server and of this one differ")

    def _claims(self, token: bytes) -> dict[str, Any]:
        if len(token) > _LONGEST or not _TOKEN.fullmatch(token):
            raise BadToken("the token has not three parts, or is too long")
        header = _object(jwt.utils.base64url_decode, token.partition(b".")[0], "header")
        if header.get("alg") != _ALGORITHM or not _UNKNOWN_HEADERS.isdisjoint(header):
            raise BadToken(f"the token is not signed by {_ALGORITHM}, or has a header that changes its meaning")
        for secret in self.secrets:
            try:
                payload = _jws.decode(token, secret, algorithms=[_ALGORITHM])
            except jwt.PyJWTError:
                continue
            return _object(bytes, payload, "payload")
        raise BadToken("the token's signature does not hold: the XMPP server has another secret")


_jws = jwt.api_jws.PyJWS(algorithms=[_ALGORITHM])


def _object(decode: Callable[[bytes], bytes], data: bytes, what: str) -> dict[str, Any]:
    """An object in JSON, of which every member is there once."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError
        return members

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        found = json.loads(decode(data), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadToken(f"the token's {what} is no object in JSON, or has a member twice")
    return found


def _text(claims: dict[str, Any], name: str, required: bool = True) -> Any:
    value = claims.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or (required and not value):
        raise BadToken(f"the claim {name} is missing, or no text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadToken(f"the claim {name} is no text") from None
    return value


def _moment(claims: dict[str, Any], name: str, required: bool = True) -> Any:
    """A time in seconds since 1970."""
    value = claims.get(name)
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise BadToken(f"the claim {name} is missing, or no time")
    return value
