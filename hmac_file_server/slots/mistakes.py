"""Mistakes in setting up: what was most likely done wrong when an upload is refused, for the operator's log."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

import attrs

from hmac_file_server.slots.bearer import BadToken, presented
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.secret import EXAMPLE_SECRET, PLACEHOLDER
from hmac_file_server.slots.signature import PARAMETERS, BadSignature, strongest
from hmac_file_server.slots.verifier import Presented, Verifier

_DEEPEST_PREFIX = 8
_LONGEST_PATH = 1024
_SHOWN = 100
_EJABBERD = re.compile(rb"/[0-9a-f]{40}/[0-9A-Za-z]{40}/[^/]+\Z")

_BASE_URL = "http_upload_external_base_url (or http_file_share_base_url; in ejabberd: put_url)"
_UNSIGNED = (
    "Prosody signs with mod_http_upload_external, or with mod_http_file_share and http_file_share_secret, but not with"
    " mod_http_upload; ejabberd with external_secret in mod_http_upload"
)


@attrs.frozen
class Asked:
    """An upload that was refused.

    :param path: of its URL as it came, percent-encoded and without the query.
    :param shown: what it shows to have a right.
    :param size: of the file in bytes.
    """

    path: bytes
    shown: Presented
    size: int


def likely_mistake(asked: Asked, prefix: str, verifier: Verifier) -> str:
    """What to change so that such an upload is taken; empty if nobody can tell.

    Only a well-formed signature costs more than a look: some twenty hashes. Nobody guesses at a path that is longer
    than those of slots.

    :param prefix: ``UploadSubDir``, without slashes around it.
    """
    if len(asked.path) > _LONGEST_PATH:
        return ""
    try:
        digest = b""
        what = "token" if presented(asked.shown.authorization) is not None else "signature"
        if what == "signature":
            if not any(name in asked.shown.parameters for name in PARAMETERS):
                return _why_unsigned(asked)
            _, digest = strongest(asked.shown.parameters)
    except (BadSignature, BadToken):
        return ""
    segments = [unquote_to_bytes(segment) for segment in asked.path.split(b"/")[1:]]
    inside = _inside(segments, prefix)
    for path, words in _other_paths(asked.path, segments, prefix):
        if _holds(verifier, asked, path):
            return f"the {what} holds {words}"
    if inside is None:
        return ""
    if digest and verifier.signatures.signed(digest, inside):
        return (
            "the signature holds for the path alone, as hmac-file-server 3.x has it: path and size must be signed, as"
            " mod_http_upload_external and ejabberd do"
        )
    return _other_secret(verifier, asked, inside, what)


def where_uploads_go(prefixes: str) -> str:
    """What to tell of an upload elsewhere.

    :param prefixes: in quotes.
    """
    return (
        f"uploads go below {prefixes} (UploadSubDir): {_BASE_URL} must end so, and a proxy must pass the path on"
        " as it is (nginx: proxy_pass without a path)"
    )


def _why_unsigned(asked: Asked) -> str:
    if _EJABBERD.search(asked.path):
        return "by its path it is ejabberd's: set external_secret in mod_http_upload to the daemon's Secret"
    return f"{_UNSIGNED}; or a proxy cuts the query off, or Authorization"


def _inside(segments: list[bytes], prefix: str) -> bytes | None:
    """The path below the prefix, None if it is elsewhere."""
    parts = prefix.encode("utf-8").split(b"/") if prefix else []
    return b"/".join(segments[len(parts) :]) if segments[: len(parts)] == parts else None


def _other_paths(raw: bytes, segments: list[bytes], prefix: str) -> Iterator[tuple[bytes, str]]:
    """Paths that may have been signed, each with what is wrong then."""
    parts = prefix.encode("utf-8").split(b"/") if prefix else []
    named = [segment for segment in segments if segment]
    last = len(parts) - 1
    glued = named[last] if parts and named[:last] == parts[:-1] and len(named) > last else b""
    if glued and glued.startswith(parts[-1]) and glued != parts[-1]:
        words = f'for what follows "/{prefix}", where a slash is missing: {_BASE_URL} must end in "/{prefix}/"'
        yield b"/".join([glued.removeprefix(parts[-1]), *named[last + 1 :]]), words
    first = len(parts) if named[: len(parts)] == parts else 0
    for count in range(first, min(len(named), first + _DEEPEST_PREFIX)):
        yield b"/".join(named[count:]), _words(named[:count], parts, prefix, len(named) < len(segments))
    inside = _inside(segments, prefix)
    if inside is None:
        return
    if prefix:
        whole = b"/".join(segments)
        words = f'for the path with "/{prefix}/", as hmac-file-server 3.x has it: only what follows must be signed'
        yield from ((whole, words), (b"/" + whole, words))
    yield b"/" + inside, "for the path with a slash before it: it must be signed without"
    if b"%" in raw:
        encoded = _inside(raw.split(b"/")[1:], prefix)
        if encoded is not None:
            yield encoded, "for the percent-encoded path: it must be signed decoded"
    if b"%" in inside:
        again = "for the path decoded once more: a proxy has encoded it again (nginx: proxy_pass without a path)"
        yield unquote_to_bytes(inside), again


def _words(before: list[bytes], parts: list[bytes], prefix: str, has_empty: bool) -> str:
    if before == parts and has_empty:
        return f"without a doubled slash: {_BASE_URL}, or a proxy's proxy_pass, has one slash too many"
    if not before:
        return (
            f'for the whole path, without "/{prefix}/" before it: a proxy cuts that off (in nginx write proxy_pass'
            f' without a path), or {_BASE_URL} lacks it; or set UploadSubDir = ""'
        )
    shown = b"/".join(before).decode("utf-8", "backslashreplace")[:_SHOWN]
    if parts and before == parts + parts:
        return f'after "/{shown}/": "/{prefix}/" is there twice, by {_BASE_URL} or by a path in nginx\'s proxy_pass'
    host = "; in ejabberd's put_url there must be no @HOST@" if parts and before[:-1] == parts else ""
    ending = f'{_BASE_URL} must end in "/{prefix}/"' if prefix else f"{_BASE_URL} must end after the host"
    return f'after "/{shown}/": set UploadSubDir = "{shown}/", or {ending}{host}'


def _other_secret(verifier: Verifier, asked: Asked, path: bytes, what: str) -> str:
    if _holds(_PUBLIC, asked, path):
        return f"the {what} was made with an example's secret: give the XMPP server the daemon's Secret"
    trimmed, with_newline = _misread(tuple(verifier.signatures.secrets))
    if _holds(trimmed, asked, path):
        return f"the {what} holds for Secret without the white space around it: cut that off"
    if _holds(with_newline, asked, path):
        return f"the {what} holds for Secret with a newline after it: cut that off in the XMPP server's secret"
    return ""


@functools.lru_cache(maxsize=1)
def _misread(secrets: tuple[bytes, ...]) -> tuple[Verifier, Verifier]:
    """Who checks by the secrets as they are without the white space around them, and with a newline after them."""
    trimmed = [secret.strip() for secret in secrets]
    return Verifier(list(filter(None, trimmed))), Verifier([secret + b"\n" for secret in secrets])


_PUBLIC = Verifier([EXAMPLE_SECRET, PLACEHOLDER, b"change-me"])


def _holds(verifier: Verifier, asked: Asked, path: bytes) -> bool:
    return verifier.holds(asked.shown, SlotPath((path,)), asked.size)
