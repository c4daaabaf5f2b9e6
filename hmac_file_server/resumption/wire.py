"""Resumable uploads on the wire: draft-ietf-httpbis-resumable-upload, in the form of each of its versions.

A draft says its interop version in ``Upload-Draft-Interop-Version``: 3 is draft 01, 5 draft 03, 6 drafts 04
and 05, 7 drafts 06 to 08, 8 and 9 the later ones.
"""

from __future__ import annotations

import json
import re

import attrs
from twisted.web.http_headers import Headers

from hmac_file_server.stores.session import Session

VERSIONS = frozenset({3, 5, 6, 7, 8, 9})
"""The interop versions that are spoken."""

NEWEST = max(VERSIONS)
"""What is assumed of a client that does not say."""

METHODS = b"OPTIONS, HEAD, GET, PATCH, DELETE"
"""What an upload resource answers to."""

PARTIAL = b"application/partial-upload"
"""The type of what a PATCH brings, from version 6 on."""

_VERSION_3, _VERSION_5, _VERSION_6, _VERSION_7 = 3, 5, 6, 7
_BOOLEAN = re.compile(rb"\?([01])[ \t]*(?:;.*)?\Z")
_INTEGER = re.compile(rb"([0-9]{1,15})[ \t]*(?:;.*)?\Z")
_PROBLEMS = "https://iana.org/assignments/http-problem-types#"


def asked_version(headers: Headers) -> int | None:
    """The interop version of a client that speaks one of :data:`VERSIONS`."""
    version = asked_integer(headers, b"Upload-Draft-Interop-Version")
    return version if version in VERSIONS else None


def asked_complete(headers: Headers, version: int) -> bool | None:
    """Whether the file is whole after a request; None if the client does not say."""
    if version == _VERSION_3:
        found = _item(headers, b"Upload-Incomplete", _BOOLEAN)
        return None if found is None else found == b"0"
    found = _item(headers, b"Upload-Complete", _BOOLEAN)
    return None if found is None else found == b"1"


def said_by_silence(version: int) -> bool | None:
    """Whether the file is whole after a PATCH that does not say so; None if it must say it."""
    return {_VERSION_3: True, _VERSION_5: False, _VERSION_6: False}.get(version)


def asked_integer(headers: Headers, name: bytes) -> int | None:
    """A structured field that is an integer (RFC 9651, section 3.3.1); None if it is absent or something else."""
    found = _item(headers, name, _INTEGER)
    return None if found is None else int(found)


def _item(headers: Headers, name: bytes, form: re.Pattern[bytes]) -> bytes | None:
    values = headers.getRawHeaders(name, ())
    found = form.match(values[0].strip()) if len(values) == 1 else None
    return None if found is None else found[1]


@attrs.frozen
class UploadLimits:
    """What an upload resource can take.

    :param max_size: bytes of a file; 0 for whatever was signed.
    :param timeout: seconds that an upload can take.
    """

    max_size: int
    timeout: float

    def header(self, version: int, age: float = 0.0) -> dict[bytes, bytes]:
        """``Upload-Limit``, which came with version 6."""
        if version < _VERSION_6:
            return {}
        name = b"expires" if version == _VERSION_6 else b"max-age"
        left = max(0, int(self.timeout - age))
        return {b"Upload-Limit": b"%b, %b=%d" % (self._size, name, left)}

    @property
    def announced(self) -> dict[bytes, bytes]:
        """The same for an answer to OPTIONS."""
        return {b"Upload-Limit": self._size}

    @property
    def _size(self) -> bytes:
        return b"max-size=%d" % self.max_size if self.max_size else b"min-size=0"


def completeness(version: int, complete: bool) -> dict[bytes, bytes]:
    """Whether an answer is the upload's last."""
    if version == _VERSION_3:
        return {b"Upload-Incomplete": b"?%d" % (not complete)}
    return {b"Upload-Complete": b"?%d" % complete}


def state(version: int, session: Session) -> dict[bytes, bytes]:
    """How far an upload is."""
    return completeness(version, session.complete) | {b"Upload-Offset": b"%d" % session.safe}


def status(version: int, session: Session, limits: UploadLimits, now: float) -> dict[bytes, bytes]:
    """The answer to a HEAD.

    :param now: seconds since 1970.
    """
    headers = state(version, session) | limits.header(version, now - session.begun)
    if version >= _VERSION_5:
        headers[b"Upload-Length"] = b"%d" % session.length
    return headers | {b"Cache-Control": b"no-store"}


def offered(version: int, location: bytes, limits: UploadLimits) -> dict[bytes, bytes]:
    """The 104 that names the upload resource."""
    headers = {b"Upload-Draft-Interop-Version": b"%d" % version, b"Location": location}
    return headers | limits.header(version)


def progress(version: int, offset: int) -> dict[bytes, bytes] | None:
    """The 104 that says how much is safe; None in version 3, which has none."""
    if version == _VERSION_3:
        return None
    return {b"Upload-Draft-Interop-Version": b"%d" % version, b"Upload-Offset": b"%d" % offset}


def part_status(version: int, creating: bool) -> int:
    """The status of an answer to a part that is not the last."""
    return 201 if creating or version <= _VERSION_6 else 204


def needs_partial_type(version: int) -> bool:
    """Whether a PATCH must be of :data:`PARTIAL`."""
    return version >= _VERSION_6


def forbidden(version: int, method: bytes) -> tuple[bytes, ...]:
    """What a request that brings no part must not say."""
    if version > _VERSION_6:
        return ()
    names = (b"Upload-Offset", b"Upload-Incomplete" if version == _VERSION_3 else b"Upload-Complete")
    return (*names, b"Upload-Length") if version == _VERSION_6 and method == b"HEAD" else names


def locates_all(version: int) -> bool:
    """Whether the answer to a request that began an upload names the upload resource even when that is complete."""
    return version <= _VERSION_6


def replays(version: int) -> bool:
    """Whether the end of an upload that is complete may be asked for again."""
    return version > _VERSION_7


def problem(name: str, title: str, **members: int) -> tuple[dict[bytes, bytes], bytes]:
    """Problem details (RFC 9457) of one of the draft's types: headers and content."""
    details = {"type": _PROBLEMS + name, "title": title}
    details |= {key.replace("_", "-"): value for key, value in members.items()}  # type: ignore[misc]
    return {b"Content-Type": b"application/problem+json"}, json.dumps(details).encode("ascii") + b"\n"
