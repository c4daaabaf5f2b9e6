"""The log: its level, its file, and the one line that each request leaves."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from typing import TextIO

from twisted.internet.interfaces import IReactorTime
from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEvent

LEVELS = {"debug": LogLevel.debug, "info": LogLevel.info, "warn": LogLevel.warn, "error": LogLevel.error}

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff\\]")


class LogFile:
    """A file to log to, opened anew when logrotate has moved it away.

    :param path: appended to; made if it is not there.
    :raises OSError: if it can not be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._file = open(self._path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        self._identity = self._identify(os.fstat(self._file.fileno()))

    @staticmethod
    def _identify(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def write(self, text: str) -> int:
        """Append to the file that has the path now. A full disk loses lines, never requests."""
        try:
            try:
                moved = self._identify(os.stat(self._path)) != self._identity
            except FileNotFoundError:
                moved = True
            if moved:
                self._file.close()
                self._open()
            return self._file.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        """Lines are flushed as they come."""

    def isatty(self) -> bool:
        """It is no terminal."""
        return False


def open_log(path: str) -> TextIO | LogFile:
    """Where to log: a file, or standard output for an empty path."""
    return LogFile(path) if path else sys.stdout


def observer(out: TextIO) -> FileLogObserver:
    """Writes each event as one line of text: time, level, message; a traceback follows a bug."""
    return FileLogObserver(out, format_line)


def format_line(event: LogEvent) -> str | None:
    """One event as text, None if it says nothing."""
    message = formatEvent(event)
    failure = event.get("log_failure")
    if not message and failure is None:
        return None
    level = event.get("log_level", LogLevel.info)
    line = f"{_stamp(int(event.get('log_time', time.time())))} {level.name:<5} {printable(message, keep=chr(92))}\n"
    if failure is not None:
        line += failure.getTraceback()
    return line


@functools.lru_cache(maxsize=4)
def _stamp(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(second))


class Lines:
    """The lines that requests leave, past Twisted's log: it costs more than a small request itself.

    They look the same, and go out together, once in each turn of the reactor.

    :param level: the lowest that is written.
    """

    def __init__(self, out: TextIO, level: str, clock: IReactorTime) -> None:
        self._out = out
        self._written = {name for name, value in LEVELS.items() if value >= LEVELS[level]}
        self._clock = clock
        self._gathered: list[str] = []
        self._direct = False

    def wants(self, level: str) -> bool:
        """Whether a line of this level is written at all."""
        return level in self._written

    def write(self, level: str, text: str) -> None:
        """:param text: one line; control characters are escaped."""
        if not self._gathered and not self._direct:
            self._clock.callLater(0, self._flush)
        self._gathered.append(f"{_stamp(int(time.time()))} {level:<5} {printable(text)}\n")
        if self._direct:
            self._flush()

    def stop(self) -> None:
        """The reactor ends: write what is there, and from now on at once."""
        self._direct = True
        self._flush()

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            try:
                self._out.write("".join(gathered))
                self._out.flush()
            except (OSError, ValueError):
                pass  # A full disk, or a reader that has gone, loses lines, never requests.


def printable(text: str, keep: str = "") -> str:
    """Text with its control characters escaped, so that no client can forge or break a line.

    :param keep: characters to leave as they are.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def from_wire(data: bytes) -> str:
    """Bytes from a client as text, which :func:`printable` tells from text that spells them."""
    return data.decode("utf-8", "surrogateescape")
