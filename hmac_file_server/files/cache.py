"""The cache: small files that were just served. A chat asks for each many times."""

from __future__ import annotations

import time

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from hmac_file_server.files.headers import file_headers
from hmac_file_server.stores.interface import IFile
from hmac_file_server.web import conditional
from hmac_file_server.web.headers import lines

HOT_SECONDS = 1.0
"""How long a file is served without being looked at anew."""

_HOT_BYTES = 16 << 20
_OVERHEAD = 3 << 10  # bytes that a file takes beside its content, its path and its headers as they are sent
_NOT_MODIFIED = (b"Cache-Control", b"Content-Security-Policy")
"""What a 304 repeats beside the validators: a cache puts its headers in place of those that it has."""


@attrs.frozen(eq=False)
class Served:
    """A file, and what its answers say of it.

    :param validators: ETag and Last-Modified.
    :param unchanged: headers of a 304.
    :param headers: those of an answer with the whole file.
    :param lines: the same as they are sent.
    :param until: when it is looked at anew, in the clock's seconds.
    :param modified: its Last-Modified, in seconds since 1970; before then it is looked at anew, too.
    :param end: when it may be served for the last time, in seconds since 1970; None if it stays.
    """

    file: IFile
    validators: dict[bytes, bytes]
    unchanged: dict[bytes, bytes]
    headers: dict[bytes, bytes]
    lines: bytes
    until: float
    modified: int
    end: float | None

    @classmethod
    def of(cls, file: IFile, name: str, until: float, end: float | None) -> Served:
        """:param name: the file's own."""
        validators = {b"ETag": conditional.etag(file), b"Last-Modified": conditional.last_modified(file)}
        # It may be served by this cache for a moment before another one gets it.
        seconds = None if end is None else end - time.time() - HOT_SECONDS
        headers = {**file_headers(file.about.media_type, name, seconds), **validators}
        headers[b"Content-Length"] = b"%d" % file.size
        unchanged = {**validators, **{said: headers[said] for said in _NOT_MODIFIED}}
        modified = conditional.modified(file.mtime_ns)
        return cls(file, validators, unchanged, headers, lines(headers), until, modified, end)


class Cache:
    """By the path in the spelling that was asked for; the oldest come first."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._served: dict[bytes, Served] = {}
        self._timer: IDelayedCall | None = None
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._served)

    def get(self, path: bytes) -> Served | None:
        """What was kept, if it may be served still."""
        served = self._served.get(path)
        if served is None or served.until <= self._clock.seconds():
            return None
        now = time.time()
        is_over = served.end is not None and served.end <= now
        return None if served.modified > now or is_over else served

    def keep(self, path: bytes, served: Served) -> None:
        """Keep a file whose content is at hand."""
        self.forget(path)
        self._served[path] = served
        self.bytes += _size(path, served)
        while self.bytes > _HOT_BYTES:
            self.forget(next(iter(self._served)))
        if self._timer is None:
            self._timer = self._clock.callLater(HOT_SECONDS, self._give_back)

    def forget(self, path: bytes) -> None:
        """Serve it no more without looking."""
        served = self._served.pop(path, None)
        if served is not None:
            self.bytes -= _size(path, served)

    def clear(self) -> None:
        """Serve nothing any more without looking."""
        self._served, self.bytes = {}, 0

    def _give_back(self) -> None:
        self._timer, now = None, self._clock.seconds()
        while self._served:
            path, served = next(iter(self._served.items()))
            if served.until > now:
                self._timer = self._clock.callLater(served.until - now, self._give_back)
                return
            self.forget(path)


def _size(path: bytes, served: Served) -> int:
    return served.file.size + len(path) + 2 * len(served.lines) + _OVERHEAD
