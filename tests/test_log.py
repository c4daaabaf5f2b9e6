from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from hmac_file_server.log import LogFile, format_line, from_wire, observer, open_log, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /a b", "GET /a b"),
        ("grüße 🎉", "grüße 🎉"),
        ("a\r\nb", "a\\r\\nb"),
        ("\0\t\x1b[31m\x7f", "\\x00\\t\\x1b[31m\\x7f"),
        ("\x85\u2028\u2029", "\\x85\\u2028\\u2029"),
        ("\\n", "\\\\n"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """Control characters are escaped, and a backslash too, so that the two can be told apart."""
    assert printable(text) == shown


@given(st.text())
def test_printable_makes_one_line(text: str) -> None:
    """Whatever text is logged, it is one line without control characters, and no two look alike."""
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(character) == "Cc" for character in shown)
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
    line = format_line(event(text="a\nb {c} \\x"))
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
    line = format_line(event(text="a bug", log_failure=failure))
    assert line is not None
    assert line.splitlines()[0].endswith("warn  a bug")
    assert line.splitlines()[-1] == "builtins.ZeroDivisionError: nought"


def test_empty_event_leaves_no_line() -> None:
    """Events that say nothing leave no blank lines."""
    assert format_line({"log_time": 0.0, "log_level": LogLevel.info}) is None


def test_standard_output_by_default() -> None:
    """Without LogFile the log goes to standard output, for journald."""
    assert open_log("") is sys.stdout


def test_file_is_appended_to(tmp_path: Path) -> None:
    """A restart keeps the old lines, and each event is in the file as soon as it is logged."""
    path = tmp_path / "log"
    path.write_text("old\n")
    observer(open_log(str(path)))(event(text="grüße"))
    old, new = path.read_text("utf-8").splitlines()
    assert (old, new.partition(" ")[2]) == ("old", "warn  grüße")


def test_file_is_opened_anew_when_it_was_moved(tmp_path: Path) -> None:
    """After logrotate has renamed or removed the file, lines go to a new one under the old name."""
    path, rotated = tmp_path / "log", tmp_path / "log.1"
    log = LogFile(str(path))
    log.write("one\n")
    path.rename(rotated)
    log.write("two\n")
    assert (rotated.read_text(), path.read_text()) == ("one\n", "two\n")
    path.unlink()
    log.write("three\n")
    assert path.read_text() == "three\n"
    path.rename(tmp_path / "log.2")
    path.write_text("")
    log.write("four\n")
    assert path.read_text() == "four\n"


def test_log_goes_on_when_its_folder_is_back(tmp_path: Path) -> None:
    """While the log's folder is gone lines are lost, no error comes up, and later lines are written again."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = LogFile(str(folder / "log"))
    folder.rename(tmp_path / "away")
    assert [log.write("lost\n"), log.write("lost\n")] == [0, 0]
    folder.mkdir()
    log.write("kept\n")
    assert (folder / "log").read_text() == "kept\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk_loses_lines_only() -> None:
    """A full disk under the log stops nothing."""
    log = LogFile("/dev/full")
    assert log.write("lost\n") == 0
    assert log.write("lost\n") == 0


@pytest.mark.parametrize("name", ["absent/log", "."])
def test_file_that_can_not_be_opened(tmp_path: Path, name: str) -> None:
    """A log that can not be opened is an error at the start."""
    with pytest.raises(OSError, match=r"No such file or directory|Is a directory"):
        open_log(str(tmp_path / name))


def test_undecodable_text_is_written(tmp_path: Path) -> None:
    """Text that has no UTF-8 form is escaped rather than lost."""
    path = tmp_path / "log"
    LogFile(str(path)).write("\udcff\n")
    assert path.read_text() == "\\udcff\n"
