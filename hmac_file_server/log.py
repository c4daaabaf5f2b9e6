"""The log: its level, and what a line of it looks like, as text or as JSON."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEvent

LEVELS = {"debug": LogLevel.debug, "info": LogLevel.info, "warn": LogLevel.warn, "error": LogLevel.error}

MOST_TROUBLES = 20
_LONGEST_RECENT = 300

_MARKS = ("Mn", "Mc")
_MOST_MARKS = 2
_FROM_THE_RIGHT = ("R", "AL", "AN")
# Letters, symbols and marks that show nothing.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

# Twisted says so at each start by another user than the one that the installation belongs to.
_CACHE = "Unable to write to plugin cache"


@attrs.frozen
class Form:
    """What a line looks like.

    :ivar line: makes one of its level, a printable text, and seconds since 1970, now by default.
    :ivar bug: makes lines of the same, and of the rows of a traceback.
    """

    line: Callable[..., str]
    bug: Callable[[str, str, float | None, Sequence[str]], str]

    def event(self, event: LogEvent) -> str | None:
        """One of Twisted's events, None if it says nothing."""
        if str(event.get("format", "")).startswith(_CACHE):
            return None
        message = formatEvent(event)
        failure = event.get("log_failure")
        if not message and failure is None:
            return None
        level = event.get("log_level", LogLevel.info).name
        message, seconds = printable(message, keep="\\"), event.get("log_time")
        if failure is None:
            return self.line(level, message, seconds)
        rows = failure.getTraceback().rstrip("\n").split("\n")
        return self.bug(level, message, seconds, [printable(row, keep="\\") for row in rows])


@attrs.frozen
class Trouble:
    """A line of level warn or error, in words that tell of no client and no file.

    :param time: of the last one, in seconds since 1970.
    :param text: printable, as is all of it.
    :param whose: what those words leave out, of the last one.
    :param count: how often it was written.
    """

    time: float
    level: str
    text: str
    whose: str = ""
    count: int = 1


class Recent:
    """The last lines of level warn and error, for whoever looks at the daemon and not at its log.

    What comes again is kept once: strangers can cause many of a kind, and must not drive out all others.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # A signal's handler logs, too.
        self._troubles: dict[tuple[str, str], Trouble] = {}

    @property
    def troubles(self) -> list[Trouble]:
        """The oldest first."""
        with self._lock:
            return list(self._troubles.values())

    def add(self, level: str, text: str, whose: str = "", seconds: float | None = None) -> None:
        """Keep a line, if it is of such a level.

        :param seconds: since 1970; now by default.
        """
        if LEVELS.get(level, LogLevel.critical) >= LogLevel.warn:
            when = time.time() if seconds is None else seconds
            text, whose = (printable(each[:_LONGEST_RECENT], keep="\\") for each in (text, whose))
            with self._lock:
                before = self._troubles.pop((level, text), None)
                count = 1 if before is None else before.count + 1
                self._troubles[level, text] = Trouble(when, level, text, whose, count)
                if len(self._troubles) > MOST_TROUBLES:
                    del self._troubles[next(iter(self._troubles))]


class Out(Protocol):
    """What a log is written to.

    :ivar lowest: level of what is written.
    :ivar form: of its lines.
    :ivar recent: is told of what goes wrong.
    """

    lowest: Any
    form: Form
    recent: Recent

    @property
    def problem(self) -> str:
        """Why it is not where it should be; empty if it is."""

    def write(self, text: str, /) -> Any:
        """Take some lines."""


def observer(out: Any) -> FileLogObserver:
    """Writes each event in the form that holds then: time, level, message, and the traceback of a bug."""

    def format_event(event: LogEvent) -> str | None:
        if event.get("log_level", LogLevel.info) < out.lowest:
            return None
        line: str | None = out.form.event(event)
        if line is not None and event.get("log_level", LogLevel.info) >= LogLevel.warn:
            _remember(event, out.recent)
        return line

    return FileLogObserver(out, format_event)


def _remember(event: LogEvent, recent: Recent) -> None:
    # Who knows where a file is may have it, so where an error names one the event has its path.
    text = formatEvent(event).partition("\n")[0]
    for name in ("address", "path"):
        if value := event.get(name):
            text = text.replace(repr(value), "...").replace(str(value), "...")
    recent.add(event["log_level"].name, text, str(event.get("address", "")), event.get("log_time"))


def text_line(level: str, text: str, seconds: float | None = None) -> str:
    """A line of text.

    :param text: printable.
    :param seconds: since 1970; now by default.
    """
    return f"{_stamp(int(time.time() if seconds is None else seconds))} {level:<5} {text}\n"


def _text_of_bug(level: str, text: str, seconds: float | None, traceback: Sequence[str]) -> str:
    # Its message may be a client's; indented, it can not be taken for a line of ours.
    return text_line(level, text, seconds) + "".join(f"  {row}\n" for row in traceback)


@functools.lru_cache(maxsize=4)
def _stamp(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(second))


def json_line(level: str, fields: Mapping[str, object], seconds: float | None = None) -> str:
    """An object of JSON on one line, which begins with the time (RFC 3339, UTC) and the level.

    :param fields: the rest; texts are printable.
    :param seconds: since 1970; now by default.
    """
    second, fraction = divmod(int((time.time() if seconds is None else seconds) * 1000), 1000)
    return _encode({"time": f"{_utc(second)}.{fraction:03d}Z", "level": level, **fields}) + "\n"


# What is printable is so in UTF-8, too.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@functools.lru_cache(maxsize=4)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _json_of_message(level: str, text: str, seconds: float | None = None) -> str:
    return json_line(level, {"message": text}, seconds)


def _json_of_bug(level: str, text: str, seconds: float | None, traceback: Sequence[str]) -> str:
    return json_line(level, {"message": text, "traceback": "\n".join(traceback)}, seconds)


FORMS = {"text": Form(text_line, _text_of_bug), "json": Form(_json_of_message, _json_of_bug)}


class LineLog:
    """The lines that requests leave, past Twisted's log: it costs more than a small request itself.

    :param out: what Twisted's log goes to as well.
    :param level: the lowest that is written.
    :param form: one of FORMS.
    :ivar is_json: whether lines are objects of JSON.
    """

    def __init__(self, out: Out, level: str, form: str = "text") -> None:
        self._out = out
        self.configure(level, form)

    def configure(self, level: str, form: str) -> None:
        """From now on this is the lowest level that is written, and the form."""
        self._written = {name for name, value in LEVELS.items() if value >= LEVELS[level]}
        self._line = FORMS[form].line
        self.is_json = form == "json"

    def wants(self, level: str) -> bool:
        """Whether a line of this level is written at all."""
        return level in self._written

    def write(self, level: str, text: str, brief: str = "", whose: str = "") -> None:
        """:param text: one line; what could forge, hide or reorder one is escaped.
        :param brief: what a :class:`Trouble` says of it, from level warn on.
        :param whose: likewise.
        """
        self._out.write(self._line(level, printable(text)))
        if brief:
            self._out.recent.add(level, brief, whose)

    def write_fields(self, level: str, fields: Mapping[str, object], brief: str = "", whose: str = "") -> None:
        """Write an object of JSON.

        :param fields: escaped likewise.
        """
        shown = {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
        self._out.write(json_line(level, shown))
        if brief:
            self._out.recent.add(level, brief, whose)


def printable(text: str, keep: str = "") -> str:
    """Text with all escaped that a client could forge, break, hide or reorder a line with.

    That is what Unicode calls not printable (control and format characters, among them those that turn the direction
    of text), letters that are written from right to left, since they turn what follows them, blank characters, and
    marks that do not stand on a letter, or pile up on it.

    :param keep: characters to leave as they are.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    shown: list[str] = []
    on_letter = 0
    for character in text:
        if character.isascii():
            plain = character.isprintable() and character != "\\"
            on_letter = _MOST_MARKS if character.isalpha() else 0
        elif unicodedata.category(character) in _MARKS:
            plain = on_letter > 0 and not _BLANK.match(character)
            on_letter -= 1
        else:
            plain = _stays(character)
            on_letter = _MOST_MARKS if plain and character.isalpha() else 0
        shown.append(character if plain or character in keep else _escape(character))
    return "".join(shown)


def _stays(character: str) -> bool:
    # An enclosing mark (Me) covers what it stands on.
    visible = character.isprintable() and not _BLANK.match(character) and unicodedata.category(character) != "Me"
    return visible and unicodedata.bidirectional(character) not in _FROM_THE_RIGHT


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def from_wire(data: bytes) -> str:
    """Bytes from a client as text, which :func:`printable` tells from text that spells them."""
    return data.decode("utf-8", "surrogateescape")
