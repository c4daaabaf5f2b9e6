from __future__ import annotations

import posixpath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hmac_file_server.slots.path import BadPath, slot_path

AWKWARD = [
    b"",
    b".",
    b"..",
    b"/",
    b"a/b",
    b"../..",
    b"\0",
    b"a\nb",
    b".hmac-file-server",
    b".git",
    b"...",
    b"a",
    b"\xff",
]


@pytest.mark.parametrize(
    "path",
    [
        "slot/photo.jpg",
        "photo.jpg",
        "a/b/c/d/e",
        "sl ot/a b+c%20#?&=.txt",
        "slot/grüße 🎉.ogg",
        "slot/.profile",
        "slot/...",
        "slot/..hidden",
        "slot/a\\b",
        "slot/~",
        "slot/hmac-file-server",
        "slot/\u202etxt.exe",
        "s" * 255 + "/" + "ü" * 127,
    ],
)
def test_takes_awkward_names(path: str) -> None:
    """Any name that a user's file may have can be uploaded, and is signed byte for byte."""
    checked = slot_path(path.encode().split(b"/"))
    assert checked.signed == path.encode()
    assert checked.name == path.rpartition("/")[2]


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([], "the path is empty"),
        ([b""], "the path has an empty segment"),
        ([b"slot", b""], "the path has an empty segment"),
        ([b"", b"etc"], "the path has an empty segment"),
        ([b".", b"a"], "the path has a . or .. segment"),
        ([b"slot", b".."], "the path has a . or .. segment"),
        ([b"slot", b"../../etc/passwd"], "the path has an encoded slash"),
        ([b"slot", b"/"], "the path has an encoded slash"),
        ([b".hmac-file-server", b"a"], "the path has a name that the server keeps for itself"),
        ([b"slot", b".hmac-file-server-1"], "the path has a name that the server keeps for itself"),
        ([b".git", b"config"], "the path has a hidden folder"),
        ([b"slot", b"a\xff"], "the path is not UTF-8"),
        ([b"slot", b"\xc0\xae\xc0\xae"], "the path is not UTF-8"),
        ([b"slot", b"\xed\xa0\x80"], "the path is not UTF-8"),
        ([b"slot", b"a\0"], "the path has a control character"),
        ([b"slot", b"a\r\nb"], "the path has a control character"),
        ([b"slot", b"\x7f"], "the path has a control character"),
        ([b"slot", "\x85".encode()], "the path has a control character"),
        ([b"slot", b"x" * 256], "the path has a segment of 256 bytes, 255 at most are possible"),
        ([b"slot", "ü".encode() * 128], "the path has a segment of 256 bytes, 255 at most are possible"),
    ],
)
def test_refuses_what_names_no_file(segments: list[bytes], reason: str) -> None:
    """A path that can not be a file of the store is refused with the reason."""
    with pytest.raises(BadPath) as raised:
        slot_path(segments)
    assert str(raised.value) == reason


@given(st.lists(st.sampled_from(AWKWARD) | st.binary(max_size=300) | st.text(max_size=20).map(str.encode), max_size=4))
@example([b"a", b"..", b"..", b"etc"])
def test_never_leads_outside(segments: list[bytes]) -> None:
    """Whatever is asked for, what is accepted lies in the store and is neither hidden nor the daemon's own."""
    try:
        path = slot_path(segments)
    except BadPath:
        return
    assert path.segments == tuple(segments)
    assert posixpath.normpath(b"/store/" + path.signed) == b"/store/" + path.signed
    assert path.signed.count(b"/") == len(segments) - 1
    assert not any(character < " " or "\x7f" <= character < "\xa0" for character in path.signed.decode())
    for segment in segments:
        assert 0 < len(segment) <= 255
        assert segment not in (b".", b"..")
        assert not segment.startswith(b".hmac-file-server")
    assert not any(folder.startswith(b".") for folder in segments[:-1])


@given(st.text(st.characters(exclude_categories=["C"], exclude_characters="/"), min_size=1, max_size=60))
def test_takes_every_printable_name(name: str) -> None:
    """A printable name is never refused, so that no user has to rename a file."""
    if name not in (".", "..") and not name.startswith(".hmac-file-server"):
        assert slot_path([b"slot", name.encode()]).name == name
