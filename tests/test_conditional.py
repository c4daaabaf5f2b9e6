from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http import datetimeToString, stringToDatetime
from twisted.web.http_headers import Headers

from hmac_file_server.stores.interface import Present
from hmac_file_server.web.conditional import (
    Unsatisfiable,
    condition_of_put,
    etag,
    last_modified,
    precondition_status,
    requested_ranges,
)

# 2023-11-14 22:13:20 and a half.
FILE = Present(1000, 1_700_000_000_500_000_000)
TAG = '"17979cfe53f76500-3e8"'
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
BEFORE = "Tue, 14 Nov 2023 22:13:19 GMT"
AFTER = "Tue, 14 Nov 2023 22:13:21 GMT"

NUMBERS = st.integers(0, 60) | st.integers(0, 10**18 - 1)
SPECS = st.tuples(st.none() | NUMBERS, st.none() | NUMBERS).filter(lambda spec: spec != (None, None))


FUTURE = Present(1000, 4_000_000_000_500_000_000)
"""A file that was written before the clock was set back."""


def headers(**given_headers: str) -> Headers:
    return Headers({name.replace("_", "-"): [value] for name, value in given_headers.items()})


def test_validators() -> None:
    """The ETag is strong and quoted, and Last-Modified is an HTTP date in whole seconds."""
    assert etag(FILE) == TAG.encode()
    assert last_modified(FILE) == DATE.encode()


@pytest.mark.parametrize(
    ("size", "mtime_ns"), [(1001, FILE.mtime_ns), (1000, FILE.mtime_ns + 1), (999, FILE.mtime_ns - 1)]
)
def test_etag_changes_with_the_file(size: int, mtime_ns: int) -> None:
    """Another length or another time is another ETag."""
    assert etag(Present(size, mtime_ns)) != etag(FILE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-1", [(0, 2)]),
        ("bytes=0-", [(0, 1000)]),
        ("bytes=999-", [(999, 1)]),
        ("bytes=10-99999", [(10, 990)]),
        ("bytes=-1", [(999, 1)]),
        ("bytes=-1000", [(0, 1000)]),
        ("bytes=-5000", [(0, 1000)]),
        ("bytes=0-0,-1", [(0, 1), (999, 1)]),
        ("bytes= 0-0 , ,5-6,", [(0, 1), (5, 2)]),
        ("Bytes=0-1", [(0, 2)]),
        ("bytes=5000-,0-1", [(0, 2)]),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(16)), [(n, 1) for n in range(16)]),
    ],
)
def test_ranges(value: str, expected: list[tuple[int, int]]) -> None:
    """The forms that clients and players send are answered with just those bytes."""
    assert requested_ranges(headers(Range=value), FILE) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=5",
        "bytes=--5",
        "bytes=-5-",
        "bytes=2-1",
        "bytes=0-1,x",
        "bytes=+0-1",
        "bytes=0x0-1",
        "lines=0-1",
        "bytes=0-,0-",
        "bytes=0-600,300-999",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(17)),
        "bytes=" + "0" * 5000 + "-1",
    ],
)
def test_passes_over_malformed_and_greedy_ranges(value: str) -> None:
    """A Range that makes no sense, or asks for more than the file, gets the whole file."""
    assert requested_ranges(headers(Range=value), FILE) is None


def test_passes_over_repeated_and_absent_ranges() -> None:
    """Without exactly one Range header the whole file is sent."""
    assert requested_ranges(Headers({"Range": ["bytes=0-1", "bytes=5-6"]}), FILE) is None
    assert requested_ranges(headers(), FILE) is None


@pytest.mark.parametrize("value", ["bytes=1000-", "bytes=1000-2000", "bytes=-0", "bytes=5000-,6000-7000"])
def test_nothing_there_to_send(value: str) -> None:
    """A Range past the end of the file is answered with 416."""
    with pytest.raises(Unsatisfiable):
        requested_ranges(headers(Range=value), FILE)


def test_no_range_of_an_empty_file() -> None:
    """An empty file has no first byte."""
    with pytest.raises(Unsatisfiable):
        requested_ranges(headers(Range="bytes=0-"), Present(0, 0))


@given(st.integers(0, 50), st.lists(SPECS, min_size=1, max_size=16))
def test_ranges_are_slices(size: int, specs: list[tuple[int | None, int | None]]) -> None:
    """Every well-formed Range means what the same slices of the file's bytes mean."""
    value = ",".join(f"{'' if a is None else a}-{'' if b is None else b}" for a, b in specs)
    data = list(range(size))
    parts = []
    for first, last in specs:
        if first is None:
            parts.append(data[-last:] if last else [])
        else:
            parts.append(data[first:] if last is None else data[first : last + 1])
    parts = [part for part in parts if part]
    file = Present(size, 0)
    if any(a is not None and b is not None and b < a for a, b in specs):
        assert requested_ranges(headers(Range=f"bytes={value}"), file) is None
    elif not parts:
        with pytest.raises(Unsatisfiable):
            requested_ranges(headers(Range=f"bytes={value}"), file)
    elif sum(map(len, parts)) > size:
        assert requested_ranges(headers(Range=f"bytes={value}"), file) is None
    else:
        chosen = requested_ranges(headers(Range=f"bytes={value}"), file)
        assert chosen is not None
        assert [data[offset : offset + length] for offset, length in chosen] == parts


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (TAG, True),
        (f" {TAG} ", True),
        (DATE, True),
        (f"W/{TAG}", False),
        ('"other"', False),
        (BEFORE, False),
        (AFTER, False),
        ("junk", False),
        ("", False),
    ],
)
def test_if_range(value: str, holds: bool) -> None:
    """A client resumes only a file that is still the one it began with; else it gets all of it."""
    asked = headers(Range="bytes=5-", If_Range=value)
    assert requested_ranges(asked, FILE) == ([(5, 995)] if holds else None)


@pytest.mark.parametrize(
    ("status", "conditions"),
    [
        (200, {}),
        (304, {"If_None_Match": TAG}),
        (304, {"If_None_Match": f"W/{TAG}"}),
        (304, {"If_None_Match": f'"other", {TAG}'}),
        (304, {"If_None_Match": "*"}),
        (200, {"If_None_Match": '"other"'}),
        (200, {"If_None_Match": TAG.strip('"')}),
        (200, {"If_None_Match": '"other"', "If_Modified_Since": DATE}),
        (304, {"If_Modified_Since": DATE}),
        (304, {"If_Modified_Since": AFTER}),
        (200, {"If_Modified_Since": BEFORE}),
        (200, {"If_Modified_Since": "yesterday"}),
        (200, {"If_Match": TAG}),
        (200, {"If_Match": "*"}),
        (200, {"If_Match": f'"other" , {TAG}'}),
        (412, {"If_Match": f"W/{TAG}"}),
        (412, {"If_Match": '"other"'}),
        (412, {"If_Match": ""}),
        (200, {"If_Match": TAG, "If_Unmodified_Since": BEFORE}),
        (412, {"If_Match": '"other"', "If_None_Match": TAG}),
        (304, {"If_Match": TAG, "If_None_Match": TAG}),
        (200, {"If_Unmodified_Since": DATE}),
        (412, {"If_Unmodified_Since": BEFORE}),
        (200, {"If_Unmodified_Since": "0"}),
    ],
)
def test_preconditions(status: int, conditions: dict[str, str]) -> None:
    """Conditions are answered in the order of RFC 9110, section 13.2.2."""
    assert precondition_status(headers(**conditions), FILE) == status


@pytest.mark.parametrize("date", ["Tuesday, 14-Nov-23 22:13:20 GMT", "Tue Nov 14 22:13:20 2023"])
def test_old_forms_of_dates(date: str) -> None:
    """The two old forms of an HTTP date still count (RFC 9110, section 5.6.7)."""
    assert precondition_status(headers(If_Modified_Since=date), FILE) == 304


@given(
    st.dictionaries(
        st.sampled_from(
            ["Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"]
        ),
        st.lists(st.binary(max_size=40) | st.text("bytes=0123456789-,WGMT:/* \"'", max_size=40).map(str.encode)),
    )
)
def test_junk_is_no_accident(raw: dict[str, list[bytes]]) -> None:
    """Whatever stands in these headers, the answer is 200, 206, 304, 412 or 416."""
    asked = Headers()
    for name, values in raw.items():
        asked.setRawHeaders(name, values)
    assert precondition_status(asked, FILE) in (200, 304, 412)
    try:
        ranges = requested_ranges(asked, FILE)
    except Unsatisfiable:
        return
    assert ranges is None or all(0 <= offset < offset + length <= FILE.size for offset, length in ranges)


def test_a_file_of_the_future() -> None:
    """Last-Modified is never after Date, and a client that has an older date gets the file."""
    before = int(time.time())
    assert before <= stringToDatetime(last_modified(FUTURE)) <= time.time()
    assert precondition_status(headers(If_Modified_Since=datetimeToString(before - 5).decode()), FUTURE) == 200
    assert precondition_status(headers(If_Unmodified_Since=DATE), FUTURE) == 412


@pytest.mark.parametrize(
    ("conditions", "beside_it", "beside_nothing"),
    [
        ({}, True, True),
        ({"If_Match": "*"}, True, False),
        ({"If_Match": TAG}, True, False),
        ({"If_Match": f'"x", {TAG}'}, True, False),
        ({"If_Match": '"x"'}, False, False),
        ({"If_Match": f"W/{TAG}"}, False, False),
        ({"If_None_Match": "*"}, False, True),
        ({"If_None_Match": TAG}, False, True),
        ({"If_None_Match": f"W/{TAG}"}, False, True),
        ({"If_None_Match": '"x"'}, True, True),
        ({"If_Match": TAG, "If_None_Match": TAG}, False, False),
        ({"If_Unmodified_Since": DATE}, True, True),
        ({"If_Unmodified_Since": AFTER}, True, True),
        ({"If_Unmodified_Since": BEFORE}, False, True),
        ({"If_Unmodified_Since": "nonsense"}, True, True),
        ({"If_Match": "*", "If_Unmodified_Since": BEFORE}, True, False),
        ({"If_Modified_Since": AFTER}, True, True),
        ({"If_Range": '"x"', "Range": "bytes=0-1"}, True, True),
    ],
)
def test_conditions_of_a_put(conditions: dict[str, str], beside_it: bool, beside_nothing: bool) -> None:
    """A PUT goes on only where what is at its path is what the client says (RFC 9110, section 13)."""
    holds = condition_of_put(headers(**conditions))
    assert (holds(FILE), holds(None)) == (beside_it, beside_nothing)
