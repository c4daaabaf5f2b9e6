from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.files.headers import disposition, file_headers
from hmac_file_server.web.headers import ALLOWED_METHODS, EVERYWHERE, NOTHING_RUNS, preflight

PREFLIGHT = preflight(ALLOWED_METHODS)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=60)


STANDING = b"default-src 'none'; frame-ancestors 'none'; sandbox"
PICTURE = STANDING + b"; img-src 'self'; style-src 'unsafe-inline'"
MEDIA = STANDING + b"; media-src 'self'"


@pytest.mark.parametrize(
    ("stored", "name", "served", "kind", "policy"),
    [
        (b"image/png", "a.jpg", b"image/png", b"inline", PICTURE),
        (b"IMAGE/PNG; a=b", "a", b"image/png", b"inline", PICTURE),
        (None, "a.jpg", b"image/jpeg", b"inline", PICTURE),
        (b"", "A.B.JPEG", b"image/jpeg", b"inline", PICTURE),
        (None, "voice.m4a", b"audio/mp4", b"inline", MEDIA),
        (b"audio/ogg; codecs=opus", "a", b"audio/ogg", b"inline", MEDIA),
        (b"video/mp4", "a", b"video/mp4", b"inline", MEDIA),
        (None, "a.txt", b"text/plain; charset=utf-8", b"inline", STANDING),
        (b"text/plain", "a", b"text/plain; charset=utf-8", b"inline", STANDING),
        (b"text/plain; charset=utf-7", "a", b"text/plain; charset=utf-8", b"inline", STANDING),
        (b"text/plain; charset=KOI8-R", "a", b"text/plain; charset=koi8-r", b"inline", STANDING),
        (b"image/png;,text/html", "a.png", b"application/octet-stream", b"attachment", STANDING),
        (b"nonsense", "a.png", b"application/octet-stream", b"attachment", STANDING),
        (None, "a.unknown", b"application/octet-stream", b"attachment", STANDING),
        (b"Image/SVG+XML", "a", b"image/svg+xml", b"attachment", STANDING),
        (b"text/html;image=png", "a", b"text/html", b"attachment", STANDING),
        (b"text/csv; charset=utf-16le", "a", b"text/csv; charset=utf-16le", b"attachment", STANDING),
        (b"application/pdf", "a", b"application/pdf", b"attachment", STANDING),
        (b"video/x-unheard-of", "a", b"video/x-unheard-of", b"attachment", STANDING),
    ],
)
def test_headers_of_a_file(stored: bytes | None, name: str, served: bytes, kind: bytes, policy: bytes) -> None:
    """A browser shows pictures, sound, films and plain text, each with the least that it needs, and saves all else."""
    assert file_headers(stored, name) == {
        b"Content-Type": served,
        b"Content-Disposition": disposition(kind, name),
        b"Content-Security-Policy": policy,
        b"Cache-Control": b"public, max-age=31536000, immutable",
        b"Accept-Ranges": b"bytes",
    }


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(None, 31_536_000), (1e9, 31_536_000), (100.9, 100), (0.5, 0), (-0.5, 0), (-100.0, 0)],
)
def test_how_long_a_file_is_kept(seconds: float | None, age: int) -> None:
    """A cache may keep a file for a year, but no longer than the file is served, and never for less than no time."""
    assert file_headers(None, "a.png", seconds)[b"Cache-Control"] == b"public, max-age=%d, immutable" % age


@pytest.mark.parametrize(
    "stored",
    b"""
    text/javascript application/javascript application/x-javascript text/x-javascript application/ecmascript
    text/ecmascript application/x-ecmascript text/x-ecmascript text/jscript text/livescript text/javascript1.5
    text/css application/json text/json application/manifest+json image/svg+json application/wasm
    TEXT/JavaScript text/javascript;charset=utf-8
    """.split(),
)
def test_code_is_served_as_bytes(stored: bytes) -> None:
    """No page can use a file as a script, module, worker or stylesheet, for it has no type of such."""
    headers = file_headers(stored, "a.png")
    assert headers[b"Content-Type"] == b"application/octet-stream"
    assert headers[b"Content-Disposition"].startswith(b"attachment;")


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
    assert {b"Content-Range", b"ETag", b"WWW-Authenticate"} <= set(
        EVERYWHERE[b"Access-Control-Expose-Headers"].split(b", ")
    )
    assert EVERYWHERE[b"X-Content-Type-Options"] == b"nosniff"
    assert EVERYWHERE[b"Cross-Origin-Resource-Policy"] == b"cross-origin"
    assert NOTHING_RUNS == {b"Content-Security-Policy": STANDING}
    assert b"Access-Control-Allow-Credentials" not in EVERYWHERE | PREFLIGHT


def test_headers_of_a_preflight() -> None:
    """A browser may upload with a type and an authorization, and read in ranges."""
    assert PREFLIGHT[b"Access-Control-Allow-Methods"] == b"OPTIONS, HEAD, GET, PUT"
    allowed = set(PREFLIGHT[b"Access-Control-Allow-Headers"].split(b", "))
    assert {b"Authorization", b"Content-Type", b"Expires", b"Range", b"If-Range"} <= allowed
    assert PREFLIGHT[b"Access-Control-Max-Age"] == b"7200"
    assert not EVERYWHERE.keys() & PREFLIGHT.keys()
