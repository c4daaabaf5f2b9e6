"""Response headers: CORS for every answer, and what keeps an uploaded file from doing harm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

ALLOWED_METHODS = b"OPTIONS, HEAD, GET, PUT"

EVERYWHERE = {
    b"Access-Control-Allow-Origin": b"*",
    b"Access-Control-Expose-Headers": (
        b"Content-Range, ETag, Location, Upload-Complete, Upload-Incomplete, Upload-Offset, Upload-Length, "
        b"Upload-Limit, Upload-Draft-Interop-Version, Accept-Patch, Retry-After"
    ),
    b"X-Content-Type-Options": b"nosniff",
    b"Content-Security-Policy": b"default-src 'none'; frame-ancestors 'none'; sandbox",
}
"""On every answer, errors too: else a browser shows a refusal as a network failure."""

_ALLOWED_HEADERS = (
    b"Authorization, Content-Type, Range, If-Range, If-Match, If-None-Match, If-Modified-Since, "
    b"If-Unmodified-Since, Upload-Complete, Upload-Incomplete, Upload-Offset, Upload-Length, "
    b"Upload-Draft-Interop-Version, Repr-Digest, Content-Digest"
)

CACHE = b"public, max-age=31536000, immutable"
"""A file under a random path never changes (RFC 8246)."""

UNKNOWN_TYPE = b"application/octet-stream"

_TYPE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(\s*;[ -~]*)?\Z")

_INLINE = frozenset(
    b"""
    image/apng image/avif image/bmp image/gif image/heic image/heif image/jpeg image/jxl image/png image/tiff
    image/vnd.microsoft.icon image/webp image/x-icon
    audio/aac audio/amr audio/basic audio/flac audio/m4a audio/midi audio/mp4 audio/mpeg audio/ogg audio/opus
    audio/wav audio/webm audio/x-flac audio/x-m4a audio/x-wav
    video/3gpp video/3gpp2 video/mp4 video/mpeg video/ogg video/quicktime video/webm video/x-m4v video/x-matroska
    text/plain
    """.split()
)
"""Types that a browser can show without running anything; all others are saved, not shown."""

_BY_EXTENSION = {
    "3g2": b"video/3gpp2", "3gp": b"video/3gpp", "7z": b"application/x-7z-compressed", "aac": b"audio/aac",
    "amr": b"audio/amr", "apk": b"application/vnd.android.package-archive", "apng": b"image/apng",
    "avi": b"video/x-msvideo", "avif": b"image/avif", "bmp": b"image/bmp", "bz2": b"application/x-bzip2",
    "css": b"text/css", "csv": b"text/csv", "doc": b"application/msword",
    "docx": b"application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "epub": b"application/epub+zip", "flac": b"audio/flac", "gif": b"image/gif", "gpx": b"application/gpx+xml",
    "gz": b"application/gzip", "heic": b"image/heic", "heif": b"image/heif", "htm": b"text/html",
    "html": b"text/html", "ico": b"image/vnd.microsoft.icon", "ics": b"text/calendar", "jpeg": b"image/jpeg",
    "jpg": b"image/jpeg", "js": b"text/javascript", "json": b"application/json", "jxl": b"image/jxl",
    "log": b"text/plain", "m4a": b"audio/mp4", "m4v": b"video/x-m4v", "md": b"text/markdown",
    "mid": b"audio/midi", "mkv": b"video/x-matroska", "mov": b"video/quicktime", "mp3": b"audio/mpeg",
    "mp4": b"video/mp4", "mpeg": b"video/mpeg", "mpg": b"video/mpeg",
    "odp": b"application/vnd.oasis.opendocument.presentation",
    "ods": b"application/vnd.oasis.opendocument.spreadsheet", "odt": b"application/vnd.oasis.opendocument.text",
    "oga": b"audio/ogg", "ogg": b"audio/ogg", "ogv": b"video/ogg", "opus": b"audio/ogg",
    "pdf": b"application/pdf", "png": b"image/png", "ppt": b"application/vnd.ms-powerpoint",
    "pptx": b"application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "rar": b"application/vnd.rar", "rtf": b"application/rtf",
    "svg": b"image/svg+xml", "tar": b"application/x-tar", "tif": b"image/tiff",
    "tiff": b"image/tiff", "txt": b"text/plain", "vcf": b"text/vcard", "wav": b"audio/wav",
    "weba": b"audio/webm", "webm": b"video/webm", "webp": b"image/webp", "xhtml": b"application/xhtml+xml",
    "xls": b"application/vnd.ms-excel",
    "xlsx": b"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xml": b"application/xml",
    "xz": b"application/x-xz", "zip": b"application/zip",
}  # fmt: skip
"""Our own table, because the one of the ``mimetypes`` module changes with the machine."""


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


def served_type(verified: bytes | None, name: str) -> bytes:
    """The Content-Type to serve a file with.

    :param verified: the type that was signed when it was uploaded, if any is known.
    :param name: the file's name, whose extension decides otherwise.
    """
    if verified:
        return verified if _TYPE.match(verified) else UNKNOWN_TYPE
    _, dot, extension = name.rpartition(".")
    return _BY_EXTENSION.get(extension.lower(), UNKNOWN_TYPE) if dot else UNKNOWN_TYPE


def file_headers(media_type: bytes, name: str) -> dict[bytes, bytes]:
    """Headers that let a stranger's file be shown or saved, but never run.

    :param media_type: as :func:`served_type` says.
    """
    harmless = media_type.partition(b";")[0].strip().lower() in _INLINE
    return {
        b"Content-Type": media_type,
        b"Content-Disposition": disposition(b"inline" if harmless else b"attachment", name),
        b"Cache-Control": CACHE,
        b"Accept-Ranges": b"bytes",
    }


def disposition(kind: bytes, name: str) -> bytes:
    """A Content-Disposition with a ``filename`` for old clients and a ``filename*`` (RFC 6266, section 4.3)."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", name).encode("ascii")
    exact = quote(name, safe="!#$&+^`|").encode("ascii")
    return b"%b; filename=\"%b\"; filename*=UTF-8''%b" % (kind, plain, exact)
