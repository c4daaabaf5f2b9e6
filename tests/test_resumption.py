from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from hmac_file_server.resumption import wire
from hmac_file_server.resumption.wire import UploadLimits as Limits
from hmac_file_server.slots.path import slot_path
from hmac_file_server.stores.session import Session
from hmac_file_server.web.digest import asked_digest

VERSION = b"Upload-Draft-Interop-Version"
SESSION = Session(
    "0" * 32, slot_path([b"slot", b"a.bin"]), 100, None, 6, None, "192.0.2.7", begun=1000.0, touched=1010.0, safe=40
)

# What a header line can hold.
values = st.binary(max_size=60).map(lambda data: bytes(byte for byte in data if byte not in b"\r\n\0"))


def headers(**fields: bytes | str | list[bytes | str]) -> Headers:
    made = Headers()
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            made.addRawHeader(name.replace("_", "-").encode(), each.encode() if isinstance(each, str) else each)
    return made


def digest_field(data: bytes, algorithm: str = "sha-256") -> str:
    return f"{algorithm}=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


# What is asked


@pytest.mark.parametrize("value", ["3", "5", "6", "7", "8", "9", " 6 ", "6;a=b", "6 ; a"])
def test_a_version_that_is_spoken(value: str) -> None:
    """Each version that we speak is recognized, with the parameters that a structured field may have."""
    assert wire.asked_version(headers(Upload_Draft_Interop_Version=value)) == int(value.strip()[0])


@pytest.mark.parametrize(
    "value", ["1", "2", "4", "10", "60", "", "x", "-6", "6.0", "?1", '"6"', "6,6", "6 6", ["6", "6"], "1" * 16]
)
def test_a_version_that_is_not_spoken(value: str | list[bytes | str]) -> None:
    """Another version, or something that is no version, counts as none."""
    assert wire.asked_version(headers(Upload_Draft_Interop_Version=value)) is None
    assert wire.asked_version(headers()) is None


def test_completeness_that_is_asked() -> None:
    """Version 3 says Upload-Incomplete, all others Upload-Complete, and neither listens to the other's field."""
    assert wire.asked_complete(headers(Upload_Incomplete="?0"), 3) is True
    assert wire.asked_complete(headers(Upload_Incomplete="?1"), 3) is False
    assert wire.asked_complete(headers(Upload_Complete="?1"), 3) is None
    for version in (5, 6, 7, 8, 9):
        assert wire.asked_complete(headers(Upload_Complete="?1"), version) is True
        assert wire.asked_complete(headers(Upload_Complete="?0;a=1"), version) is False
        assert wire.asked_complete(headers(Upload_Incomplete="?1"), version) is None


@pytest.mark.parametrize("value", ["", "1", "?2", "?", "true", "?1?1", "?10", "?1, ?1", ["?1", "?1"]])
def test_completeness_that_is_none(value: str | list[bytes | str]) -> None:
    """Anything but one boolean makes the whole field ignored (RFC 9651, section 4.2)."""
    assert wire.asked_complete(headers(Upload_Complete=value), 6) is None


def test_silence_means_what_each_draft_says() -> None:
    """A PATCH without completeness ends a version 3 upload, is a part in 5 and 6, and an error later."""
    assert [wire.said_by_silence(version) for version in (3, 5, 6, 7, 8, 9)] == [
        True,
        False,
        False,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", 0),
        ("007", 7),
        ("999999999999999", 10**15 - 1),
        ("1000000000000000", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("0x10", None),
        ("1e3", None),
        ("1_000", None),
        (b"\xd9\xa1", None),  # a digit, but an Arabic one
        ("12;x=y", 12),
        ("12, 12", None),
        (["12", "12"], None),
    ],
)
def test_integers(value: str | bytes | list[bytes | str], number: int | None) -> None:
    """Only a plain integer of at most 15 digits counts."""
    assert wire.asked_integer(headers(Upload_Offset=value), b"Upload-Offset") == number


@given(st.lists(values, max_size=3))
def test_no_field_is_an_error(fields: list[bytes]) -> None:
    """Whatever a client sends in the fields, they parse to their types or to None."""
    asked = headers(
        Upload_Draft_Interop_Version=list(fields),
        Upload_Complete=list(fields),
        Upload_Incomplete=list(fields),
        Upload_Offset=list(fields),
    )
    assert wire.asked_version(asked) in {None, *wire.VERSIONS}
    for version in wire.VERSIONS:
        assert wire.asked_complete(asked, version) in (None, True, False)
    offset = wire.asked_integer(asked, b"Upload-Offset")
    assert offset is None or 0 <= offset < 10**15


@given(st.integers(0, 10**15 - 1), st.sampled_from(["", " ", ";a", ';a="b"', " ;a=1"]))
def test_every_integer_is_understood(number: int, tail: str) -> None:
    """What a client of ours writes is read back."""
    assert wire.asked_integer(headers(Upload_Length=f"{number}{tail}"), b"Upload-Length") == number


# Digests


@pytest.mark.parametrize(
    "before_and_after",
    [
        ("", ""),
        ("md5=:AAAA:, ", ""),
        ("", ", sha-512=:AAAA:"),
        ("xxh64=:1234:,", ";q=1"),
        ("  ", "  "),
    ],
)
def test_a_digest_among_others(before_and_after: tuple[str, str]) -> None:
    """The SHA-256 is found beside algorithms that we do not know."""
    before, after = before_and_after
    asked = headers(Repr_Digest=before + digest_field(b"hello") + after)
    assert asked_digest(asked, b"Repr-Digest") == hashlib.sha256(b"hello").digest()


def test_a_digest_in_a_second_line() -> None:
    """Several lines are one list (RFC 9110, section 5.3), and of several values the last one counts."""
    lines: list[bytes | str] = ["xxh64=:1234:", digest_field(b"one"), digest_field(b"two")]
    assert asked_digest(headers(Content_Digest=lines), b"Content-Digest") == hashlib.sha256(b"two").digest()


@pytest.mark.parametrize(
    "value", ["", "xxh64=:1234:", "sha-512=:AAAA:", "not-sha-256=:AAAA:", "sha-256", "sha-256=AAAA", 'x="sha-256=:A:"']
)
def test_no_digest_that_we_know(value: str) -> None:
    """Other algorithms, and what is no byte sequence, are passed over."""
    assert asked_digest(headers(Repr_Digest=value), b"Repr-Digest") is None
    assert asked_digest(headers(), b"Repr-Digest") is None


@pytest.mark.parametrize("value", ["sha-256=::", "sha-256=:AAAA:", "sha-256=:A:", "sha-256=:" + "=" * 44 + ":"])
def test_a_digest_that_is_none(value: str) -> None:
    """A sha-256 that has not 32 bytes is an error, not a digest that is never checked."""
    with pytest.raises(ValueError, match="Repr-Digest"):
        asked_digest(headers(Repr_Digest=value), b"Repr-Digest")


@given(
    st.one_of(
        st.lists(values, max_size=3),
        st.lists(st.from_regex(rb"(sha-256=:[A-Za-z0-9+/=]{0,50}:;?,?){0,3}", fullmatch=True), min_size=1, max_size=2),
    )
)
def test_digests_never_fail_otherwise(fields: list[bytes]) -> None:
    """Whatever a digest field holds: 32 bytes, None, or ValueError."""
    try:
        digest = asked_digest(headers(Repr_Digest=list(fields)), b"Repr-Digest")
    except ValueError:
        return
    assert digest is None or len(digest) == 32


@given(st.binary(min_size=32, max_size=32))
def test_every_digest_is_understood(digest: bytes) -> None:
    """Any 32 bytes come through the field."""
    asked = headers(Content_Digest=f"sha-256=:{base64.b64encode(digest).decode()}:")
    assert asked_digest(asked, b"Content-Digest") == digest


# The wire forms

LIMITS = Limits(0, 3600.0)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (3, {b"Upload-Incomplete": b"?1", b"Upload-Offset": b"40"}),
        (
            5,
            {b"Upload-Complete": b"?0", b"Upload-Offset": b"40", b"Upload-Length": b"100"},
        ),
        (
            6,
            {
                b"Upload-Complete": b"?0",
                b"Upload-Offset": b"40",
                b"Upload-Length": b"100",
                b"Upload-Limit": b"min-size=0, expires=3500",
            },
        ),
        (
            7,
            {
                b"Upload-Complete": b"?0",
                b"Upload-Offset": b"40",
                b"Upload-Length": b"100",
                b"Upload-Limit": b"min-size=0, max-age=3500",
            },
        ),
    ],
)
def test_the_answer_to_a_head(version: int, expected: dict[bytes, bytes]) -> None:
    """How far an upload is, in the words of each version; never to be cached."""
    told = wire.status(version, SESSION, LIMITS, now=1100.0)
    assert told == expected | {b"Cache-Control": b"no-store"}


@pytest.mark.parametrize("version", [8, 9])
def test_later_versions_are_alike(version: int) -> None:
    """Versions 8 and 9 have the wire form of 7."""
    forms: list[Callable[[int], object]] = [
        lambda v: wire.status(v, SESSION, LIMITS, now=1100.0),
        lambda v: wire.completeness(v, True),
        lambda v: wire.part_status(v, False),
        lambda v: wire.part_status(v, True),
        wire.needs_partial_type,
        wire.locates_all,
        wire.said_by_silence,
        lambda v: wire.forbidden(v, b"HEAD"),
    ]
    for form in forms:
        assert form(version) == form(7)


def test_a_complete_upload() -> None:
    """Complete is the opposite of incomplete."""
    done = attrs.evolve(SESSION, safe=100, complete=True)
    assert wire.state(3, done) == {b"Upload-Incomplete": b"?0", b"Upload-Offset": b"100"}
    assert wire.state(6, done) == {b"Upload-Complete": b"?1", b"Upload-Offset": b"100"}


@pytest.mark.parametrize("version", sorted(wire.VERSIONS))
def test_the_first_interim_answer(version: int) -> None:
    """The first 104 names the version and the upload resource, and its limits as soon as the draft has them."""
    told = wire.offered(version, b"/upload/x", Limits(1000, 60.0))
    assert told.pop(VERSION) == b"%d" % version
    assert told.pop(b"Location") == b"/upload/x"
    name = {6: b"expires"}.get(version, b"max-age")
    assert told == ({} if version < 6 else {b"Upload-Limit": b"max-size=1000, " + name + b"=60"})


@pytest.mark.parametrize("version", sorted(wire.VERSIONS))
def test_progress(version: int) -> None:
    """A later 104 has the offset and never a Location; version 3 has no such thing."""
    told = wire.progress(version, 50)
    assert told == (None if version == 3 else {VERSION: b"%d" % version, b"Upload-Offset": b"50"})


def test_limits() -> None:
    """Without a limit on the size there is still something to announce, and an age never turns negative."""
    assert Limits(0, 60.0).announced == {b"Upload-Limit": b"min-size=0"}
    assert Limits(7, 60.0).announced == {b"Upload-Limit": b"max-size=7"}
    assert Limits(7, 60.0).header(9, 100.0) == {b"Upload-Limit": b"max-size=7, max-age=0"}


def test_part_statuses() -> None:
    """A part that is not the last is answered with 201, from version 7 on with 204 unless it began the upload."""
    for version in (3, 5, 6):
        assert (wire.part_status(version, True), wire.part_status(version, False)) == (201, 201)
    for version in (7, 8, 9):
        assert (wire.part_status(version, True), wire.part_status(version, False)) == (201, 204)


def test_what_each_version_demands() -> None:
    """The type of a PATCH is asked for from version 6 on; up to it HEAD and DELETE must say nothing of state."""
    assert [v for v in sorted(wire.VERSIONS) if wire.needs_partial_type(v)] == [6, 7, 8, 9]
    assert wire.forbidden(3, b"HEAD") == (b"Upload-Offset", b"Upload-Incomplete")
    assert wire.forbidden(5, b"HEAD") == (b"Upload-Offset", b"Upload-Complete")
    assert wire.forbidden(6, b"HEAD") == (b"Upload-Offset", b"Upload-Complete", b"Upload-Length")
    assert wire.forbidden(6, b"DELETE") == (b"Upload-Offset", b"Upload-Complete")
    assert wire.forbidden(7, b"HEAD") == ()
    assert [v for v in sorted(wire.VERSIONS) if wire.replays(v)] == [8, 9]


def test_problem_details() -> None:
    """Problem details have their type's URI and their members in the draft's spelling (RFC 9457)."""
    told, content = wire.problem("mismatching-upload-offset", "text", expected_offset=1, provided_offset=2)
    assert told == {b"Content-Type": b"application/problem+json"}
    assert json.loads(content) == {
        "type": "https://iana.org/assignments/http-problem-types#mismatching-upload-offset",
        "title": "text",
        "expected-offset": 1,
        "provided-offset": 2,
    }
