from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.web.headers import ALLOWED_METHODS, EVERYWHERE, disposition, file_headers, preflight, served_type

PREFLIGHT = preflight(ALLOWED_METHODS)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("verified", "name", "served"),
    [
        (b"image/png", "a.jpg", b"image/png"),
        (b"text/plain; charset=utf-8", "a", b"text/plain; charset=utf-8"),
        (b"application/octet-stream", "a.jpg", b"application/octet-stream"),
        (None, "a.jpg", b"image/jpeg"),
        (b"", "a.jpg", b"image/jpeg"),
        (None, "A.B.JPEG", b"image/jpeg"),
        (None, "voice.m4a", b"audio/mp4"),
        (None, "a.unknown", b"application/octet-stream"),
        (None, "a.", b"application/octet-stream"),
        (None, "README", b"application/octet-stream"),
        (None, "html", b"application/octet-stream"),
        (None, "jpg", b"application/octet-stream"),
        (b"junk", "a.jpg", b"application/octet-stream"),
        (b"text/html\r\nSet-Cookie: a=b", "a.jpg", b"application/octet-stream"),
        (b"text/plain;\r\n x", "a.jpg", b"application/octet-stream"),
        (b"text/plain\n", "a.jpg", b"application/octet-stream"),
        (b"te xt/plain", "a.jpg", b"application/octet-stream"),
        ("text/plain; a=ü".encode(), "a.jpg", b"application/octet-stream"),
    ],
)
def test_served_type(verified: bytes | None, name: str, served: bytes) -> None:
    """The type that was signed is served, else the one of the extension, and never one that forges a header."""
    assert served_type(verified, name) == served


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        (b"image/jpeg", b"inline"),
        (b"IMAGE/PNG", b"inline"),
        (b"video/mp4", b"inline"),
        (b"audio/ogg; codecs=opus", b"inline"),
        (b"text/plain; charset=utf-8", b"inline"),
        (b"image/svg+xml", b"attachment"),
        (b"Image/SVG+XML", b"attachment"),
        (b"text/html", b"attachment"),
        (b"text/html;image/png", b"attachment"),
        (b"text/javascript", b"attachment"),
        (b"text/xml", b"attachment"),
        (b"application/xhtml+xml", b"attachment"),
        (b"application/pdf", b"attachment"),
        (b"application/octet-stream", b"attachment"),
        (b"", b"attachment"),
    ],
)
def test_only_harmless_types_are_shown(media_type: bytes, kind: bytes) -> None:
    """A browser shows pictures, sound, films and plain text, and saves all that could run."""
    assert file_headers(media_type, "a") == {
        b"Content-Type": media_type,
        b"Content-Disposition": kind + b"; filename=\"a\"; filename*=UTF-8''a",
        b"Cache-Control": b"public, max-age=31536000, immutable",
        b"Accept-Ranges": b"bytes",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("photo.jpg", b"inline; filename=\"photo.jpg\"; filename*=UTF-8''photo.jpg"),
        ("a b.txt", b"inline; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"),
        ("grüße.txt", b"inline; filename=\"gr__e.txt\"; filename*=UTF-8''gr%C3%BC%C3%9Fe.txt"),
        ('a";b\\c%41', b"inline; filename=\"a_;b_c_41\"; filename*=UTF-8''a%22%3Bb%5Cc%2541"),
        ("it's(1)*", b"inline; filename=\"it's(1)*\"; filename*=UTF-8''it%27s%281%29%2A"),
        ("🎉", b"inline; filename=\"_\"; filename*=UTF-8''%F0%9F%8E%89"),
    ],
)
def test_disposition(name: str, value: bytes) -> None:
    """A saved file gets the name it was sent with, in a form that old clients can read too."""
    assert disposition(b"inline", name) == value


@given(NAMES)
def test_disposition_carries_every_name(name: str) -> None:
    """No name breaks out of its header, and each comes back as it was."""
    value = disposition(b"attachment", name).decode("ascii")
    start, plain, rest = value.split('"')
    assert (start, rest.partition("''")[0]) == ("attachment; filename=", "; filename*=UTF-8")
    assert plain.isprintable()
    assert "\\" not in plain
    assert unquote(rest.partition("''")[2]) == name


def test_headers_of_every_answer() -> None:
    """Scripts of any origin may read every answer, without credentials, and no answer may run anything."""
    assert EVERYWHERE[b"Access-Control-Allow-Origin"] == b"*"
    assert {b"Content-Range", b"ETag"} <= set(EVERYWHERE[b"Access-Control-Expose-Headers"].split(b", "))
    assert EVERYWHERE[b"X-Content-Type-Options"] == b"nosniff"
    assert EVERYWHERE[b"Content-Security-Policy"] == b"default-src 'none'; frame-ancestors 'none'; sandbox"
    assert b"Access-Control-Allow-Credentials" not in EVERYWHERE | PREFLIGHT


def test_headers_of_a_preflight() -> None:
    """A browser may upload with a type and an authorization, and read in ranges."""
    assert PREFLIGHT[b"Access-Control-Allow-Methods"] == b"OPTIONS, HEAD, GET, PUT"
    allowed = set(PREFLIGHT[b"Access-Control-Allow-Headers"].split(b", "))
    assert {b"Authorization", b"Content-Type", b"Range", b"If-Range"} <= allowed
    assert PREFLIGHT[b"Access-Control-Max-Age"] == b"7200"
    assert not EVERYWHERE.keys() & PREFLIGHT.keys()
