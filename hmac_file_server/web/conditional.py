"""Conditional and range requests (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.web.http import datetimeToString, stringToDatetime
from twisted.web.http_headers import Headers


class Representation(Protocol):
    """What there is at a URL (RFC 9110, section 3.2)."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime_ns(self) -> int:
        """When the last byte was written, in nanoseconds since 1970."""


Range = tuple[int, int]
"""Offset and length in bytes."""

NAMES = frozenset((b"Range", b"If-Range", b"If-Match", b"If-None-Match", b"If-Modified-Since", b"If-Unmodified-Since"))
"""The headers that make a request conditional, or one for a part."""

NAMES_OF_PUT = frozenset((b"If-Match", b"If-None-Match", b"If-Unmodified-Since"))
"""Those that make a PUT conditional."""

_MOST_RANGES = 16
_SPEC = re.compile(rb"(\d*)\s*-\s*(\d*)\Z")
_TAG = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_LONGEST_NUMBER = 40


class Unsatisfiable(Exception):
    """No requested range lies in the file: 416."""


def etag(file: Representation) -> bytes:
    """A strong validator: it is another one if a byte is another one, for a path is never reused."""
    return b'"%x-%x"' % (file.mtime_ns, file.size)


def modified(mtime_ns: int) -> int:
    """A file's time in seconds, which is never after now (RFC 9110, section 8.8.2.1): clocks are set back."""
    return min(mtime_ns // 1_000_000_000, int(time.time()))


def last_modified(file: Representation) -> bytes:
    """The file's time as an HTTP date."""
    return bytes(datetimeToString(modified(file.mtime_ns)))


def precondition_status(headers: Headers, file: Representation) -> int:
    """200 to go on, else 304 or 412, for a GET or HEAD (RFC 9110, section 13.2.2)."""
    tag, time_ = etag(file), modified(file.mtime_ns)
    if not _is_the_one(headers, tag, time_):
        return 412
    none_match = headers.getRawHeaders(b"If-None-Match")
    if none_match is not None:
        return 304 if _matches(none_match, tag, weak=True) else 200
    modified_since = _date(headers, b"If-Modified-Since")
    if modified_since is not None and time_ <= modified_since:
        return 304
    return 200


def condition_of_put(headers: Headers) -> Callable[[Representation | None], bool]:
    """Whether a PUT may go on (RFC 9110, section 13.2.2), beside what there is at its path."""

    def holds(there: Representation | None) -> bool:
        if there is None:
            return not headers.hasHeader(b"If-Match")
        tag = etag(there)
        none_match = headers.getRawHeaders(b"If-None-Match", ())
        return _is_the_one(headers, tag, modified(there.mtime_ns)) and not _matches(none_match, tag, weak=True)

    return holds


def _is_the_one(headers: Headers, tag: bytes, time_: int) -> bool:
    match = headers.getRawHeaders(b"If-Match")
    if match is not None:
        return _matches(match, tag, weak=False)
    unmodified_since = _date(headers, b"If-Unmodified-Since")
    return unmodified_since is None or time_ <= unmodified_since


def requested_ranges(headers: Headers, file: Representation) -> list[Range] | None:
    """What of the file a GET asks for; None for all of it.

    A Range header that is malformed, of another unit, or that asks for more ranges than is sane
    is passed over, as section 14.2 allows.

    :raises Unsatisfiable: if nothing of what was asked for exists.
    """
    values = headers.getRawHeaders(b"Range")
    if values is None or len(values) != 1 or not _if_range_holds(headers, file):
        return None
    unit, _, specs = values[0].partition(b"=")
    if unit.strip().lower() != b"bytes":
        return None
    ranges: list[Range] = []
    count = 0
    for spec in map(bytes.strip, specs.split(b",")):
        if not spec:
            continue
        count += 1
        found = _SPEC.match(spec)
        if found is None or count > _MOST_RANGES or max(map(len, found.groups())) > _LONGEST_NUMBER:
            return None
        first, last = found.groups()
        if not first and not last:
            return None
        if first and last and int(last) < int(first):
            return None
        chosen = _choose(first, last, file.size)
        if chosen is not None:
            ranges.append(chosen)
    if not count:
        return None
    if not ranges:
        raise Unsatisfiable
    if sum(length for _, length in ranges) > file.size:
        return None  # overlapping: the whole file is less
    return ranges


def _choose(first: bytes, last: bytes, size: int) -> Range | None:
    if not first:
        length = min(int(last), size)
        return (size - length, length) if length else None
    offset = int(first)
    if offset >= size:
        return None
    end = min(int(last), size - 1) if last else size - 1
    return offset, end - offset + 1


def _if_range_holds(headers: Headers, file: Representation) -> bool:
    values = headers.getRawHeaders(b"If-Range")
    if values is None:
        return True
    value = values[-1].strip()
    if value.startswith((b'"', b"W/")):
        return value == etag(file)
    return value == last_modified(file)


def _matches(values: Sequence[bytes], tag: bytes, weak: bool) -> bool:
    value = b",".join(values)
    if value.strip() == b"*":
        return True
    tags = _TAG.findall(value)
    return tag in tags or (weak and b"W/" + tag in tags)


def _date(headers: Headers, name: bytes) -> int | None:
    values = headers.getRawHeaders(name)
    if values is None:
        return None
    try:
        return int(stringToDatetime(values[-1]))
    except (ValueError, IndexError, OverflowError):
        return None
