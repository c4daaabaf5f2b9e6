from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.media_types import UNKNOWN, of_name, parse

PARSED = {
    b"image/png": b"image/png",
    b"IMAGE/Png": b"image/png",
    b" image/png\t": b"image/png",
    b"image/png;": b"image/png",
    b"image/png ; ; a=b": b"image/png",
    b'video/mp4; codecs="avc1.42E01E, mp4a.40.2"': b"video/mp4",
    b"image/png; charset=utf-8": b"image/png",
    b"application/vnd.a-b_c.d+e": b"application/vnd.a-b_c.d+e",
    b"text/plain; charset=utf-8": b"text/plain; charset=utf-8",
    b"text/plain;CHARSET=Windows-1251": b"text/plain; charset=windows-1251",
    b'text/plain; format=flowed; charset="ISO-8859-1"': b"text/plain; charset=iso-8859-1",
    b"text/plain; charset=utf-8; charset=utf-16": b"text/plain; charset=utf-8",
    b'text/plain; a=";charset=utf-16"': b"text/plain",
    b"text/plain; charset=utf-7": b"text/plain",
    b'text/plain; charset="utf-8,text/html"': b"text/plain",
    b"text/plain; charset='utf-8'": b"text/plain",
}
NO_TYPE = [
    b"", b" ", b"multipart/mixed; boundary=x", b"Multipart/X-Mixed-Replace", b"image", b"image/", b"/png", b"/",
    b"*/*", b"image/*", b"*/png", b"image/png/x", b"image /png", b"image/ png", b"image/p ng", b"image/png x",
    b"image/png,text/html", b"image/png;,text/html", b'image/png;x=",text/html', b'image/png;x="a" b',
    b'image/png;x="a"b', b'image/png;x="\xc3\xbc"', b"image/png;x=,text/html", b"image/png;x=y,text/html",
    b"image/png;x", b"image/png;=y", b"image/png;x =y", b"image/png;x= y", b"image/png\r\n\r\n;x=y", b"image/png\n",
    b"image/png;\r\n x=y", b"image/png\x00", b"\x00image/png", b"image/png;x=\x00", b"image/p\xc3\xb1g",
    b"\xef\xbb\xbfimage/png", b"image\\png", b'image/png;x="\\', b"<b>/png", b"text/html\r\nSet-Cookie: a=b",
    b"text/html\x0c",
    b"x" * 128 + b"/x", b"x/" + b"x" * 128, b"image/png;" + b"x" * 9000,
]  # fmt: skip


@pytest.mark.parametrize(("value", "parsed"), [*PARSED.items(), *((value, UNKNOWN) for value in NO_TYPE)])
def test_parse(value: bytes, parsed: bytes) -> None:
    """What is one type has one form, with a known charset if it is text; what is none, or several, is only bytes."""
    assert parse(value) == parsed


@given(st.one_of(st.binary(), st.text(alphabet='imagetxplnhrscu/;=,* \t\r\n"\\-').map(str.encode)))
def test_parse_takes_any_bytes(value: bytes) -> None:
    """Whatever comes, the result is a plain type that can stand in a header, and is its own parsed form."""
    parsed = parse(value)
    assert re.fullmatch(rb"[!#$%&'+.^_`|~0-9a-z-]+/[!#$%&'+.^_`|~0-9a-z-]+(; charset=[a-z0-9_-]+)?", parsed)
    assert len(parsed) <= 255  # what is kept with a file
    assert parse(parsed) == parsed


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.jpg", b"image/jpeg"),
        ("A.B.JPEG", b"image/jpeg"),
        ("IMG_0001.HEIC", b"image/heic"),
        ("download.jfif", b"image/jpeg"),
        ("voice.m4a", b"audio/mp4"),
        ("voice.opus", b"audio/ogg"),
        ("a.tar.gz", b"application/gzip"),
        (".png", b"image/png"),
        ("a.unknown", UNKNOWN),
        ("a.", UNKNOWN),
        ("README", UNKNOWN),
        ("html", UNKNOWN),
        ("a.jpg ", UNKNOWN),
    ],
)
def test_of_name(name: str, media_type: bytes) -> None:
    """A name's last extension tells the type, in either case."""
    assert of_name(name) == media_type


def test_types_of_names_are_in_their_form() -> None:
    """Each type of the table is as it would be parsed."""
    from hmac_file_server.media_types import _BY_EXTENSION

    assert {
        media_type: parse(media_type) for media_type in _BY_EXTENSION.values() if parse(media_type) != media_type
    } == {}
