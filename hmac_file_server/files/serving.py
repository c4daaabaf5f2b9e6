"""GET and HEAD: what of a file is sent, with which headers."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from hmac_file_server.files import download
from hmac_file_server.files.errors import bug, not_served
from hmac_file_server.files.retry import InThread
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.stores.local.store import LocalStore, StoredFile
from hmac_file_server.web import conditional
from hmac_file_server.web.errors import HTTPError, precondition_failed
from hmac_file_server.web.headers import file_headers, lines
from hmac_file_server.web.request import Request

_SMALL = 64 << 10
_NOT_MODIFIED = (b"Cache-Control", b"Content-Security-Policy")
"""What a 304 repeats beside the validators: a cache puts its headers in place of those that it has."""

_HOT_SECONDS = 1.0
_CLOSE_SECONDS = 0.05
_HOT_BYTES = 16 << 20
_HOT_OVERHEAD = 3 << 10  # bytes that a file takes beside its content, its path and its headers as they are sent


@attrs.frozen(eq=False)
class Served:
    """A file, and what its answers say of it.

    :param validators: ETag and Last-Modified.
    :param unchanged: headers of a 304.
    :param headers: those of an answer with the whole file.
    :param lines: the same as they are sent.
    :param until: when it is looked at anew, in the clock's seconds.
    :param modified: its Last-Modified, in seconds since 1970; before then it is looked at anew, too.
    """

    file: StoredFile
    validators: dict[bytes, bytes]
    unchanged: dict[bytes, bytes]
    headers: dict[bytes, bytes]
    lines: bytes
    until: float
    modified: int

    @classmethod
    def of(cls, file: StoredFile, name: str, until: float) -> Served:
        """:param name: the file's own."""
        validators = {b"ETag": conditional.etag(file), b"Last-Modified": conditional.last_modified(file)}
        headers = {**file_headers(file.media_type, name), **validators, b"Content-Length": b"%d" % file.size}
        unchanged = {**validators, **{said: headers[said] for said in _NOT_MODIFIED}}
        return cls(file, validators, unchanged, headers, lines(headers), until, conditional.modified(file.mtime_ns))


class _Hot:
    """Small files that were just served, by the path in the spelling that was asked for; the oldest come first."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._served: dict[bytes, Served] = {}
        self._timer: IDelayedCall | None = None
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._served)

    def get(self, path: bytes) -> Served | None:
        served = self._served.get(path)
        if served is None or served.until <= self._clock.seconds() or served.modified > time.time():
            return None
        return served

    def keep(self, path: bytes, served: Served) -> None:
        self.forget(path)
        self._served[path] = served
        self.bytes += _size(path, served)
        while self.bytes > _HOT_BYTES:
            self.forget(next(iter(self._served)))
        if self._timer is None:
            self._timer = self._clock.callLater(_HOT_SECONDS, self._give_back)

    def forget(self, path: bytes) -> None:
        served = self._served.pop(path, None)
        if served is not None:
            self.bytes -= _size(path, served)

    def _give_back(self) -> None:
        self._timer, now = None, self._clock.seconds()
        while self._served:
            path, served = next(iter(self._served.items()))
            if served.until > now:
                self._timer = self._clock.callLater(served.until - now, self._give_back)
                return
            self.forget(path)


def _size(path: bytes, served: Served) -> int:
    return served.file.size + len(path) + 2 * len(served.lines) + _HOT_OVERHEAD


class Serving:
    """Answers requests for files. Small files are kept in memory for a moment: a chat asks for each many times.

    :param in_thread: runs blocking reads.
    """

    def __init__(self, store: LocalStore, in_thread: InThread, clock: IReactorTime) -> None:
        self._store = store
        self._in_thread = in_thread
        self._clock = clock
        self._hot = _Hot(clock)
        self._done_with: list[StoredFile] = []

    def serve_from_memory(self, request: Request) -> bool:
        """Answer if the same path, in the same spelling, has just been answered; else False."""
        hot = self._hot.get(request.path)
        if hot is None:
            return False
        self._answer(request, hot)
        return True

    def serve(self, request: Request, path: SlotPath) -> None:
        """Open the file in a thread, and answer as HTTP asks."""
        opened = self._in_thread(lambda: self._store.open(path, _SMALL))
        opened.addCallbacks(
            lambda file: self._opened(request, path, file), lambda failure: request.fail(not_served(failure))
        ).addErrback(lambda failure: request.fail(bug(failure, "answering a GET")))

    def _opened(self, request: Request, path: SlotPath, file: StoredFile) -> None:
        try:
            served = Served.of(file, path.name, self._clock.seconds() + _HOT_SECONDS)
            pieces = self._answer(request, served)
        except BaseException:
            self._close(file)
            raise
        if pieces and not request.gone:
            download.send(request, file, pieces, self._in_thread, self._close)
            return
        self._close(file)
        if file.content is not None:
            self._hot.keep(request.path, served)

    def _close(self, file: StoredFile) -> None:
        """Close a file soon, in a thread: of another machine, or removed meanwhile, it may have to wait for the disk.

        Several together, for each turn of a thread costs.
        """
        if file.descriptor < 0:
            return
        self._done_with.append(file)
        if len(self._done_with) == 1:
            self._clock.callLater(_CLOSE_SECONDS, self._close_all)

    def _close_all(self) -> None:
        files, self._done_with = self._done_with, []

        def close() -> None:
            for file in files:
                with contextlib.suppress(OSError):
                    file.close()

        self._in_thread(close)

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
