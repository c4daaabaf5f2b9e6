"""Guesses at what else an upload's signature may be of, each with what is wrong then, for a sentence about it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import unicodedata
from collections.abc import Iterator, Sequence
from urllib.parse import quote, quote_plus, unquote_to_bytes

import attrs

from hmac_file_server import media_types
from hmac_file_server.slots.secret import EXAMPLE_SECRET, PLACEHOLDER

BASE_URL = "http_upload_external_base_url (or http_file_share_base_url; in ejabberd: put_url)"

_DEEPEST_PREFIX = 8
_SHOWN = 100
_PUBLIC = (EXAMPLE_SECRET, PLACEHOLDER, b"change-me")


@attrs.frozen
class Guess:
    """What may have been signed.

    :param secrets: with any of these.
    :param path: below the prefix, decoded; None where the URL has no such path.
    :param types: any of these.
    :param form: one of "v", "v2" and "path alone".
    """

    secrets: Sequence[bytes]
    path: bytes | None
    size: int
    types: Sequence[bytes]
    form: str


def below(segments: list[bytes], prefix: str) -> bytes | None:
    """The path below the prefix, None if it is elsewhere."""
    parts = prefix.encode("utf-8").split(b"/") if prefix else []
    return b"/".join(segments[len(parts) :]) if segments[: len(parts)] == parts else None


def other_paths(raw: bytes, segments: list[bytes], prefix: str) -> Iterator[tuple[bytes, str]]:
    """Other paths."""
    parts = prefix.encode("utf-8").split(b"/") if prefix else []
    named = [segment for segment in segments if segment]
    last = len(parts) - 1
    glued = named[last] if parts and named[:last] == parts[:-1] and len(named) > last else b""
    if glued and glued.startswith(parts[-1]) and glued != parts[-1]:
        words = (
            f'holds for what follows "/{prefix}", where a slash is missing: {BASE_URL} must end in "/{prefix}/", and a'
            " proxy's path with it (nginx: proxy_pass without a path)"
        )
        yield b"/".join([glued.removeprefix(parts[-1]), *named[last + 1 :]]), words
    first = len(parts) if named[: len(parts)] == parts else 0
    for count in range(first, min(len(named), first + _DEEPEST_PREFIX)):
        yield b"/".join(named[count:]), _words(named[:count], parts, prefix, len(named) < len(segments))
    inside = below(segments, prefix)
    if inside is None:
        return
    if prefix:
        whole = b"/".join(segments)
        words = (
            f'holds for the path with "/{prefix}/", as hmac-file-server 3.x has it: only what follows must be signed'
        )
        yield from ((whole, words), (b"/" + whole, words))
    yield b"/" + inside, "holds for the path with a slash before it: it must be signed without"
    yield from _other_spellings(raw, inside, prefix)


def _other_spellings(raw: bytes, inside: bytes, prefix: str) -> Iterator[tuple[bytes, str]]:
    if b"%" in raw:
        encoded = below(raw.split(b"/")[1:], prefix)
        if encoded is not None:
            yield encoded, "holds for the percent-encoded path: it must be signed decoded"
    else:
        for encode in (quote, quote_plus):  # The client may have sent it plainly.
            encoded = encode(inside, safe="/").encode("ascii")
            if encoded != inside:
                yield encoded, "holds for the percent-encoded path: it must be signed decoded"
    if b"%" in inside:
        again = "holds for the path decoded once more: a proxy has encoded it again (nginx: proxy_pass without a path)"
        yield unquote_to_bytes(inside), again
    with contextlib.suppress(UnicodeDecodeError):
        text = inside.decode("utf-8")
        for form in ("NFC", "NFD"):
            if not unicodedata.is_normalized(form, text):  # type: ignore[arg-type]
                other = unicodedata.normalize(form, text).encode("utf-8")  # type: ignore[arg-type]
                yield other, f"holds for the path in another normal form ({form}): its letters were composed anew"
    if b"+" in inside:
        yield inside.replace(b"+", b" "), "holds for the path with spaces for its plus signs: a proxy has changed them"


def _words(before: list[bytes], parts: list[bytes], prefix: str, has_empty: bool) -> str:
    if before == parts and has_empty:
        return f"holds without a doubled slash: {BASE_URL}, or a proxy's proxy_pass, has one slash too many"
    if not before:
        return (
            f'holds for the whole path, without "/{prefix}/" before it: a proxy cuts that off (in nginx write'
            f' proxy_pass without a path), or {BASE_URL} lacks it; or set UploadSubDir = ""'
        )
    shown = b"/".join(before).decode("utf-8", "backslashreplace")[:_SHOWN]
    if parts and before == parts + parts:
        return (
            f'holds after "/{shown}/": "/{prefix}/" is there twice, by {BASE_URL} or by a path in nginx\'s proxy_pass'
        )
    host = "; in ejabberd's put_url there must be no @HOST@" if parts and before[:-1] == parts else ""
    ending = f'{BASE_URL} must end in "/{prefix}/"' if prefix else f"{BASE_URL} must end after the host"
    return f'holds after "/{shown}/": set UploadSubDir = "{shown}/", or {ending}{host}'


def other_forms(right: Guess) -> Iterator[tuple[str, int, str]]:
    """Other forms, and sizes: what is signed beside the path."""
    alone = (
        "holds for the path alone, as hmac-file-server 3.x has it: path and size must be signed, as"
        " mod_http_upload_external and ejabberd do"
    )
    yield "path alone", right.size, alone
    for size, words in (
        (-1, "holds for size -1: the client gave its XMPP server no size, and must give the file's"),
        (0, "holds for size 0: the client gave its XMPP server another size than it sends"),
    ):
        if right.size != size:
            yield right.form, size, words
    if right.form == "v":
        yield "v2", right.size, "is one of v2: the signer must name the parameter v2, and not v"
    else:
        words = 'is one of v: the signer must name the parameter v (Prosody: http_upload_external_protocol = "v2")'
        yield "v", right.size, words


def other_secrets(secrets: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    """Other secrets."""
    yield _PUBLIC, "was made with an example's secret: give the XMPP server the daemon's Secret"
    trimmed = [secret.strip() for secret in secrets]
    yield list(filter(None, trimmed)), "holds for Secret without the white space around it: cut that off"
    words = "holds for Secret with a newline after it: cut that off in the XMPP server's secret"
    yield [secret + end for secret in secrets for end in (b"\n", b"\r\n", b"\r")], words


def respelled_secrets(secrets: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    """The secrets as whoever copied them may have changed them."""
    for spell, words in (
        (base64.b64encode, "base64 encoded"),
        (_from_base64, "base64 decoded"),
        (binascii.hexlify, "as hex digits"),
        (_from_hex, "decoded from hex digits"),
        (lambda secret: b'"%b"' % secret, "with quotes around it"),
        (lambda secret: b"'%b'" % secret, "with quotes around it"),
        (lambda secret: secret.strip(b"\"'"), "without the quotes around it"),
        (bytes.lower, "in small letters"),
        (bytes.upper, "in capital letters"),
        (lambda secret: b" " + secret, "with a space before it"),
        (lambda secret: secret + b" ", "with a space after it"),
    ):
        respelled = [spell(secret) for secret in secrets]
        yield (
            [secret for secret in respelled if secret],
            f"holds for Secret {words}: both sides must have the same text",
        )


def _from_base64(secret: bytes) -> bytes:
    try:
        return base64.b64decode(secret + b"=" * (-len(secret) % 4), altchars=b"-_" if b"-" in secret else None)
    except ValueError:
        return b""


def _from_hex(secret: bytes) -> bytes:
    try:
        return binascii.unhexlify(secret)
    except ValueError:
        return b""


def other_types(right: Guess, content_type: bytes | None) -> Iterator[tuple[bytes, str]]:
    """Other types."""
    sent = (content_type or b"").decode("utf-8", "backslashreplace")[:_SHOWN]
    for kind in [media_types.UNKNOWN, b"", *_spellings(content_type or b""), *media_types.KNOWN]:
        if kind not in right.types:
            asked = kind.decode("ascii") or "no type at all"
            said = f"sends Content-Type: {sent}" if sent else "sends no Content-Type"
            yield kind, f"holds for the type {asked}: the client asked its XMPP server for that, and {said}"


def _spellings(content_type: bytes) -> Iterator[bytes]:
    """A type as others may write it."""
    essence = content_type.partition(b";")[0].strip()
    kind, _, name = essence.partition(b"/")
    yield from (essence.lower(), essence.upper(), kind.title() + b"/" + name, kind.title() + b"/" + name.upper())
    yield from (kind + b"/x-" + name, kind + b"/" + name.removeprefix(b"x-"))
    yield from (b"image/jpg", b"image/jpeg", b"image/pjpeg", b"audio/mp3", b"video/quicktime")
    for charset in (b"utf-8", b"UTF-8", b"us-ascii"):
        yield from (essence + b"; charset=" + charset, essence + b";charset=" + charset)
