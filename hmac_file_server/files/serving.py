"""GET and HEAD: what of a file is sent, with which headers."""

from __future__ import annotations

import secrets
import time
from typing import Any

from twisted.internet.interfaces import IReactorTime

from hmac_file_server.files import download
from hmac_file_server.files.cache import HOT_SECONDS, Cache, Served
from hmac_file_server.files.errors import bug, not_served, nothing_here
from hmac_file_server.files.lifetime import Lifetime
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.stores.interface import IFile, IStore
from hmac_file_server.web import conditional
from hmac_file_server.web.errors import HTTPError, precondition_failed
from hmac_file_server.web.request import Request

_SMALL = 64 << 10
_FOR_EVER = Lifetime()


class Serving:
    """Answers requests for files. Small ones are kept in memory for a moment.

    :param lifetime: how long files stay.
    """

    def __init__(self, store: IStore, clock: IReactorTime, lifetime: Lifetime = _FOR_EVER) -> None:
        self._store = store
        self._lifetime = lifetime
        self._clock = clock
        self._cache = Cache(clock)

    def serve_from_memory(self, request: Request) -> bool:
        """Answer if the same path, in the same spelling, has just been answered; else False."""
        hot = self._cache.get(request.path)
        if hot is None:
            return False
        self._answer(request, hot)
        return True

    def forget(self) -> None:
        """Look at all files anew: one was removed."""
        self._cache.clear()

    def configure(self, lifetime: Lifetime) -> None:
        """From now on files stay for so long."""
        self._lifetime = lifetime
        self.forget()

    def serve(self, request: Request, path: SlotPath) -> None:
        """Open the file, and answer as HTTP asks."""
        self._store.open(path, _SMALL).addCallbacks(
            lambda file: self._opened(request, path, file), lambda failure: request.fail(not_served(failure))
        ).addErrback(lambda failure: request.fail(bug(failure, "answering a GET")))

    def _opened(self, request: Request, path: SlotPath, file: IFile) -> None:
        end = self._lifetime.end(file.size, file.mtime_ns, file.about)
        if end is not None and end <= time.time():
            file.close()
            request.fail(nothing_here())
            return
        try:
            served = Served.of(file, path.name, self._clock.seconds() + HOT_SECONDS, end)
            pieces = self._answer(request, served)
        except BaseException:
            file.close()
            raise
        if pieces and not request.gone:
            download.send(request, file, pieces, self._store.sends)
            return
        file.close()
        # A removal may have overtaken it.
        if file.content is not None and not self._store.was_removed(path):
            self._cache.keep(request.path, served)

    def _answer(self, request: Request, served: Served) -> list[download.Piece]:
        """Answer, or write the headers and say what is to follow."""
        file = served.file
        if request.method == b"GET" and file.content is not None and not request.says_any(conditional.NAMES):
            request.answer_ready(200, served.lines, file.content)
            return []
        status = conditional.precondition_status(request.requestHeaders, file)
        if status == 304:
            request.answer(304, served.unchanged)
            return []
        if status == 412:
            request.fail(precondition_failed(served.validators))
            return []
        if request.method == b"HEAD":
            request.answer(200, served.headers)
            return []
        try:
            ranges = conditional.requested_ranges(request.requestHeaders, file)
        except conditional.Unsatisfiable:
            span = {b"Content-Range": b"bytes */%d" % file.size}
            request.fail(HTTPError(416, "range", "the file has no such range", headers=span))
            return []
        status, headers, pieces = _whole(served) if ranges is None else _parts(ranges, served)
        if file.content is not None:
            request.answer(status, headers, b"".join(_from_memory(file.content, pieces)))
            return []
        if not request.gone:
            request.start(status, headers)
        return pieces


def _from_memory(content: bytes, pieces: list[download.Piece]) -> list[bytes]:
    return [piece if isinstance(piece, bytes) else content[piece[0] : sum(piece)] for piece in pieces]


_Answer = tuple[int, dict[bytes, bytes], list[Any]]


def _whole(served: Served) -> _Answer:
    return 200, served.headers, [(0, served.file.size)]


def _parts(ranges: list[conditional.Range], served: Served) -> _Answer:
    """An answer with one range or several (RFC 9110, section 15.3.7)."""
    size, headers = served.file.size, dict(served.headers)
    if len(ranges) == 1:
        offset, length = ranges[0]
        headers[b"Content-Range"] = _content_range(offset, length, size)
        headers[b"Content-Length"] = b"%d" % length
        return 206, headers, [(offset, length)]
    boundary = secrets.token_hex(16).encode("ascii")
    pieces: list[Any] = []
    for offset, length in ranges:
        span = _content_range(offset, length, size)
        part = b"\r\n--%b\r\nContent-Type: %b\r\nContent-Range: %b\r\n\r\n" % (
            boundary,
            served.headers[b"Content-Type"],
            span,
        )
        pieces += (part, (offset, length))
    pieces.append(b"\r\n--%b--\r\n" % boundary)
    headers[b"Content-Type"] = b"multipart/byteranges; boundary=" + boundary
    headers[b"Content-Length"] = b"%d" % sum(len(p) if isinstance(p, bytes) else p[1] for p in pieces)
    return 206, headers, pieces


def _content_range(offset: int, length: int, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (offset, offset + length - 1, size)
