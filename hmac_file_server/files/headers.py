"""Headers of a file: what lets a stranger's be shown or saved, but never run."""

from __future__ import annotations

import re
from urllib.parse import quote

from hmac_file_server import media_types
from hmac_file_server.web.headers import POLICY

# A browser shows a picture or plays a film in a page of its own making, which the file's policy binds, too.
_PICTURE_POLICY = POLICY + b"; img-src 'self'; style-src 'unsafe-inline'"
_MEDIA_POLICY = POLICY + b"; media-src 'self'"

_YEAR = 31_536_000
_CACHE_UNTIL = b"public, max-age=%d, immutable"

CACHE = _CACHE_UNTIL % _YEAR
"""A file under a random path never changes (RFC 8246)."""

_CODE = re.compile(rb"(application|text)/((x-)?(java|ecma|j|live)script[\d.]*|json|css|wasm)|.*\+json")
"""What pages of the same host could use as a script, module, worker or stylesheet, though it is saved when opened."""

_PICTURES = frozenset(
    b"""
    image/apng image/avif image/bmp image/gif image/heic image/heic-sequence image/heif image/heif-sequence image/jp2
    image/jpeg image/jpg image/jxl image/pjpeg image/png image/tiff image/vnd.microsoft.icon image/webp image/x-icon
    image/x-ms-bmp
    """.split()
)
_MEDIA = frozenset(
    b"""
    application/ogg
    audio/3gpp audio/3gpp2 audio/aac audio/aiff audio/amr audio/amr-wb audio/basic audio/flac audio/m4a audio/matroska
    audio/midi audio/mp3 audio/mp4 audio/mpeg audio/ogg audio/opus audio/vnd.wave audio/wav audio/wave audio/webm
    audio/x-aac audio/x-aiff audio/x-caf audio/x-flac audio/x-m4a audio/x-matroska audio/x-mp3 audio/x-wav
    video/3gpp video/3gpp2 video/matroska video/mp2t video/mp4 video/mpeg video/ogg video/quicktime video/webm
    video/x-m4v video/x-matroska
    """.split()
)
"""Types that a browser can show without running anything, beside plain text; all others are saved, not shown."""


def file_headers(stored: bytes | None, name: str, seconds: float | None = None) -> dict[bytes, bytes]:
    """Headers that let a stranger's file be shown or saved, but never run.

    :param stored: the type that is kept with the file, if any.
    :param name: the file's name, whose extension tells the type otherwise.
    :param seconds: how long it may be kept by a cache, None if it stays.
    """
    media_type = media_types.parse(stored) if stored else media_types.of_name(name)
    essence, semicolon, _ = media_type.partition(b";")
    kind, policy = b"inline", POLICY
    if essence in _PICTURES:
        policy = _PICTURE_POLICY
    elif essence in _MEDIA:
        policy = _MEDIA_POLICY
    elif essence == b"text/plain":
        # Without it browsers take Latin-1.
        media_type = media_type if semicolon else b"text/plain; charset=utf-8"
    else:
        kind = b"attachment"
        if _CODE.fullmatch(essence):
            media_type = media_types.UNKNOWN
    return {
        b"Content-Security-Policy": policy,
        b"Content-Type": media_type,
        b"Content-Disposition": disposition(kind, name),
        b"Cache-Control": CACHE if seconds is None else _CACHE_UNTIL % min(_YEAR, max(0, int(seconds))),
        b"Accept-Ranges": b"bytes",
    }


def disposition(kind: bytes, name: str) -> bytes:
    """A Content-Disposition with a ``filename`` for old clients and a ``filename*`` (RFC 6266, section 4.3)."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", name).encode("ascii")
    exact = quote(name, safe="!#$&+^`|").encode("ascii")
    return b"%b; filename=\"%b\"; filename*=UTF-8''%b" % (kind, plain, exact)
