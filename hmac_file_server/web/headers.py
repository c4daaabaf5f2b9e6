"""Response headers: CORS, and what keeps an answer from doing harm."""

from __future__ import annotations

from collections.abc import Mapping

ALLOWED_METHODS = b"OPTIONS, HEAD, GET, PUT"

EVERYWHERE = {
    b"Access-Control-Allow-Origin": b"*",
    b"Access-Control-Expose-Headers": (
        b"Content-Range, ETag, Location, Upload-Complete, Upload-Incomplete, Upload-Offset, Upload-Length, "
        b"Upload-Limit, Upload-Draft-Interop-Version, Accept-Patch, Retry-After, WWW-Authenticate"
    ),
    b"Cross-Origin-Resource-Policy": b"cross-origin",
    b"X-Content-Type-Options": b"nosniff",
}
"""On every answer, errors too: else a browser shows a refusal as a network failure."""

POLICY = b"default-src 'none'; frame-ancestors 'none'; sandbox"
"""What a browser may do with an answer: nothing (Content Security Policy Level 3)."""

NOTHING_RUNS = {b"Content-Security-Policy": POLICY}
"""On every answer that has no policy of its own."""

_ALLOWED_HEADERS = (
    b"Authorization, Content-Type, Expires, Range, If-Range, If-Match, If-None-Match, If-Modified-Since, "
    b"If-Unmodified-Since, Upload-Complete, Upload-Incomplete, Upload-Offset, Upload-Length, "
    b"Upload-Draft-Interop-Version, Repr-Digest, Content-Digest"
)


def lines(headers: Mapping[bytes, bytes]) -> bytes:
    """Headers as they are sent."""
    return b"".join([b"%b: %b\r\n" % item for item in headers.items()])


def preflight(methods: bytes) -> dict[bytes, bytes]:
    """What stands on the answer to OPTIONS only (Fetch, section 3.2).

    :param methods: what the resource answers to.
    """
    return {
        b"Access-Control-Allow-Methods": methods,
        b"Access-Control-Allow-Headers": _ALLOWED_HEADERS,
        b"Access-Control-Max-Age": b"7200",
    }
