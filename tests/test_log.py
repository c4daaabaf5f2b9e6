from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from hmac_file_server.log import FORMS, from_wire, json_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /a b", "GET /a b"),
        ("grüße 🎉", "grüße 🎉"),
        ("a\r\nb", "a\\r\\nb"),
        ("\0\t\x1b[31m\x7f", "\\x00\\t\\x1b[31m\\x7f"),
        ("\x85\u2028\u2029", "\\x85\\u2028\\u2029"),
        ("a\u202eb\u2066c\u200fd\u061c", "a\\u202eb\\u2066c\\u200fd\\u061c"),
        ("\u200b\u200d\u2060\ufeff\xad\xa0", "\\u200b\\u200d\\u2060\\ufeff\\xad\\xa0"),
        ("\U000e0041\U000e0001\ue000", "\\U000e0041\\U000e0001\\ue000"),
        ("\u3164\u2800\u034f\ufe0f", "\\u3164\\u2800\\u034f\\ufe0f"),
        ("\u05d0 1 \u0627 2", "\\u05d0 1 \\u0627 2"),
        ("e\u0301 \u0301 n\u0303\u0323\u0304", "e\u0301 \\u0301 n\u0303\u0323\\u0304"),
        ("\u0e01\u0e47 \u0e47\u20dd", "\u0e01\u0e47 \\u0e47\\u20dd"),
        ("\\n", "\\\\n"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """What could break, forge, hide or turn a line is escaped, and a backslash too, so that it is told apart."""
    assert printable(text) == shown


@given(st.text())
def test_printable_makes_one_line(text: str) -> None:
    """Whatever text is logged, it is one line without control characters, and no two look alike."""
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert shown.isprintable()
    assert not any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in shown)
    if text.isascii():
        assert shown.encode("ascii").decode("unicode_escape") == text


@given(st.binary())
def test_from_wire_makes_one_line(data: bytes) -> None:
    """Whatever a client sends, its log line holds no control character and can be written as UTF-8."""
    shown = printable(from_wire(data))
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(character) == "Cc" for character in shown)
    shown.encode("utf-8")


def test_from_wire_tells_bytes_from_text() -> None:
    """A byte that is not UTF-8 looks different from a client's text that spells it."""
    assert printable(from_wire(b"caf\xe9")) == "caf\\xe9"
    assert printable(from_wire(rb"caf\xe9")) == "caf\\\\xe9"


def event(**more: object) -> dict[str, object]:
    return {"log_time": 0.0, "log_level": LogLevel.warn, "log_format": "{text}", **more}


def test_line() -> None:
    """A line has its local time with the zone, its level, and the message on one line."""
    line = FORMS["text"].event(event(text="a\nb {c} \\x"))
    assert line is not None
    stamp, level, message = line.split(maxsplit=2)
    assert stamp[:4] in ("1969", "1970")
    assert (len(stamp), level, message) == (24, "warn", "a\\nb {c} \\x\n")


def test_line_of_a_bug() -> None:
    """An exception that nobody expected is logged with its traceback."""
    try:
        raise ZeroDivisionError("nought")
    except ZeroDivisionError:
        failure = Failure()
    line = FORMS["text"].event(event(text="a bug", log_failure=failure))
    assert line is not None
    assert line.splitlines()[0].endswith("warn  a bug")
    assert line.splitlines()[-1] == "  builtins.ZeroDivisionError: nought"


def test_line_of_a_forger() -> None:
    """A message of an exception, which may be a client's, can not look like a line of the log."""
    try:
        raise ValueError("a\n2026-11-26T00:00:00+0000 info  forged\r\x1b[2K\u202e")
    except ValueError:
        line = FORMS["text"].event(event(text="a bug", log_failure=Failure()))
    assert line is not None
    assert [row for row in line.split("\n") if not row.startswith("  ")] == [line.split("\n")[0], ""]
    assert all(row.isprintable() for row in line.split("\n"))


def test_a_cache_that_can_not_be_written() -> None:
    """Twisted's complaint about its cache, which an operator can do nothing about, is no line."""
    said = {"log_format": "{log_text}", "format": "Unable to write to plugin cache %(path)s: error number %(errno)d"}
    assert FORMS["text"].event({"log_time": 0.0, "log_level": LogLevel.info, **said}) is None


def test_empty_event_leaves_no_line() -> None:
    """Events that say nothing leave no blank lines."""
    assert FORMS["text"].event({"log_time": 0.0, "log_level": LogLevel.info}) is None


def test_json_of_an_event() -> None:
    """An object with time (RFC 3339, UTC), level and message, whose texts are escaped as in a line of text."""
    line = FORMS["json"].event(event(text='a\nb "c" \\x grüße \u202e', log_time=1.0625))
    assert line == (
        '{"time":"1970-01-01T00:00:01.062Z","level":"warn","message":"a\\\\nb \\"c\\" \\\\x grüße \\\\u202e"}\n'
    )


def test_json_of_a_bug() -> None:
    """The traceback has a key of its own, and what a client may have said in it makes no line of its own."""
    try:
        raise ValueError('a\n{"time":"1970-01-01T00:00:00.000Z","level":"info","message":"forged"}\r\x1b[2K')
    except ValueError:
        line = FORMS["json"].event(event(text="a bug", log_failure=Failure()))
    assert line is not None
    assert line.count("\n") == 1
    found = json.loads(line)
    assert list(found) == ["time", "level", "message", "traceback"]
    assert found["message"] == "a bug"
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert all(row.isprintable() for row in found["traceback"].split("\n"))


@given(st.binary(), st.text())
def test_json_is_one_line(data: bytes, text: str) -> None:
    """Whatever a client sends, its line is one object in UTF-8, and no value has what hides or turns text."""
    line = json_line("info", {"path": printable(from_wire(data)), "agent": printable(text)}, 0.0)
    assert len(line.splitlines()) == 1
    assert line[:-1].isprintable()
    found = json.loads(line.encode("utf-8"))
    assert list(found) == ["time", "level", "path", "agent"]
    assert (found["path"], found["agent"]) == (printable(from_wire(data)), printable(text))
