from __future__ import annotations

import _thread
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmac_file_server.daemon.logfile import LogFile, LogWriter, Stream, open_log, with_priorities
from tests.support import eventually


def log_to(path: Path) -> LogWriter:
    """A log in a file, in which each line is as soon as it is written."""
    log = LogWriter(LogFile(str(path)))
    log.finish(patience=20)
    return log


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds a page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    # The writing end stays open: a thread may be at it.
    os.close(reading)


def test_file_is_appended_to(tmp_path: Path) -> None:
    """A restart keeps the old lines, and text is written in UTF-8, or escaped where it has no such form."""
    path = tmp_path / "log"
    path.write_text("old\n")
    log_to(path).write("grüße\n\udcff\n")
    assert path.read_text("utf-8") == "old\ngrüße\n\\udcff\n"


def test_it_is_not_for_all_to_read(tmp_path: Path) -> None:
    """The log tells where files are, so it is made for the daemon's user and group only."""
    log_to(tmp_path / "log").write("one\n")
    assert (tmp_path / "log").stat().st_mode & 0o027 == 0


def test_file_is_opened_anew_when_it_was_moved(tmp_path: Path) -> None:
    """After logrotate has renamed or removed the file, lines go to a new one under the old name."""
    path, rotated = tmp_path / "log", tmp_path / "log.1"
    log = log_to(path)
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


def test_a_link_in_its_place(tmp_path: Path) -> None:
    """When the path has become a link, lines go where it points."""
    path = tmp_path / "log"
    log = log_to(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    log.write("one\n")
    assert (tmp_path / "elsewhere").read_text() == "one\n"


@pytest.mark.parametrize("obstacle", ["folder", "no folder", "loop"])
def test_a_new_file_that_can_not_be_opened(tmp_path: Path, obstacle: str) -> None:
    """The old file is kept until the new one is open; what is wrong is said there, once, and as its problem."""
    folder, old = tmp_path / "logs", tmp_path / "old"
    folder.mkdir()
    path = folder / "log"
    log = log_to(path)
    log.write("one\n")
    path.rename(old)
    if obstacle == "folder":
        path.mkdir()
    elif obstacle == "loop":
        path.symlink_to(path)
    else:
        folder.rmdir()
    log.write("two\n")
    log.write("three\n")
    one, complaint, two, three = old.read_text().splitlines()
    assert (one, two, three) == ("one", "two", "three")
    assert f"error LogFile {path} can not be opened: " in complaint
    assert log.problem in complaint
    if obstacle == "folder":
        path.rmdir()
    elif obstacle == "loop":
        path.unlink()
    else:
        folder.mkdir()
    log.write("four\n")
    assert path.read_text() == "four\n"
    assert log.problem == ""


def test_opened_anew_when_told(tmp_path: Path) -> None:
    """Told to open the file anew it does so at once."""
    path = tmp_path / "log"
    log = log_to(path)
    log.write("one\n")
    path.unlink()
    log.reopen()
    eventually(path.exists)


def test_an_old_file_that_fails_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network disk says of the old file only when that is closed (close(2)) does not end the log."""
    path, close = tmp_path / "log", os.close
    log = log_to(path)
    log.write("one\n")
    path.rename(tmp_path / "log.1")

    def fail(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "close", fail)
    log.write("two\n")
    log.write("three\n")
    assert path.read_text() == "two\nthree\n"


def test_its_descriptor_stays(tmp_path: Path) -> None:
    """A worker that is being started gets the log's descriptor, also while that is opened anew."""
    path = tmp_path / "log"
    log = log_to(path)
    before = log.fileno()
    path.rename(tmp_path / "log.1")
    log.write("two\n")
    assert log.fileno() == before
    assert not os.get_inheritable(before)
    os.write(log.fileno(), b"three\n")
    assert path.read_text() == "two\nthree\n"


def test_a_thread_that_never_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that finds no memory to begin with keeps nobody waiting who logs."""
    for module in (_thread, threading):
        for name in ("start_new_thread", "_start_new_thread", "_start_joinable_thread"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_, **__: 1)

    def stuck(*_: object) -> None:
        raise AssertionError("it waits for the thread")

    before = signal.signal(signal.SIGALRM, stuck)
    try:
        signal.alarm(30)
        LogWriter(LogFile(str(tmp_path / "log"))).write("a line\n")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_file_that_the_parent_could_open(tmp_path: Path) -> None:
    """A worker that can not open the file goes on with what its parent has open."""
    old, path = tmp_path / "old", tmp_path / "none" / "log"
    descriptor = os.open(old, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = LogWriter(LogFile(str(path), descriptor))
    log.finish(patience=20)
    log.write("one\n")
    assert old.read_text().endswith("in the old file\none\n")
    path.parent.mkdir()
    log.write("two\n")
    assert path.read_text() == "two\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk_loses_lines_only() -> None:
    """A full disk under the log stops nothing."""
    log = LogWriter(LogFile("/dev/full"))
    log.finish(patience=20)
    log.write("lost\n")
    log.write("lost\n")


def test_lost_lines_are_counted(tmp_path: Path) -> None:
    """How many lines could not be written is said before the first one that could."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    log = log_to(path)
    log.write("lost\n")
    log.write("lost\nlost\n")
    path.unlink()
    log.write("kept\n")
    said, kept = path.read_text().splitlines()
    assert said.endswith(" error 3 lines of the log are lost: No space left on device")
    assert kept == "kept"


def test_a_line_that_was_written_in_part(tmp_path: Path) -> None:
    """What a full disk cut off, or the end of another run, does not garble the next line."""
    path = tmp_path / "log"
    path.write_text("whole\npar")
    log_to(path).write("next\n")
    assert path.read_text() == "whole\npar\nnext\n"


def test_nobody_reads(pipe: tuple[int, int]) -> None:
    """A pipe that nobody reads keeps nobody waiting; what waits is bounded, and lines that are lost are counted."""
    reading, writing = pipe
    log = LogWriter(Stream(writing), most_waiting=20_000)
    for number in range(5000):
        log.write(f"line {number}\n")
    log.finish(patience=0.0)
    read = bytearray()
    while b"lost" not in read:
        read += os.read(reading, 4096)
    *lines, said = read.decode().splitlines()
    assert lines == [f"line {number}" for number in range(len(lines))]
    assert f" {5000 - len(lines)} lines of the log are lost: " in said
    log.write("next\n")
    while not read.endswith(b"next\n"):
        read += os.read(reading, 4096)


def test_a_reader_that_has_gone(pipe: tuple[int, int]) -> None:
    """Without a reader lines are lost, and nothing else."""
    _, writing = pipe
    other_reading, other = os.pipe()
    os.close(other_reading)
    del writing
    log = LogWriter(Stream(other))
    log.finish(patience=20)
    log.write("lost\n")


def test_a_flag_that_others_share(pipe: tuple[int, int]) -> None:
    """A pipe that another process has made non-blocking loses no line."""
    reading, writing = pipe
    os.set_blocking(writing, False)
    log = LogWriter(Stream(writing))
    for number in range(2000):
        log.write(f"line {number}\n")
    read = bytearray()
    while not read.endswith(b"line 1999\n"):
        read += os.read(reading, 4096)
    assert read.decode().splitlines() == [f"line {number}" for number in range(2000)]
    assert not os.get_blocking(writing)


def test_a_fifo(tmp_path: Path) -> None:
    """A FIFO that nobody reads yet can be logged to."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    log = log_to(path)
    log.write("one\n")
    with path.open("rb") as reading:
        assert reading.readline() == b"one\n"


def test_lines_of_threads(tmp_path: Path) -> None:
    """LineLog of several threads are whole, and each thread's are in order."""
    log = LogWriter(LogFile(str(tmp_path / "log")))

    def write(name: str) -> None:
        for number in range(1000):
            log.write(f"{name} {number}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.finish(patience=20)
    lines = (tmp_path / "log").read_text().splitlines()
    for name in "abcd":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {number}" for number in range(1000)]


@pytest.mark.parametrize("name", ["absent/log", "."])
def test_file_that_can_not_be_opened(tmp_path: Path, name: str) -> None:
    """A log that can not be opened is an error at the start."""
    with pytest.raises(OSError, match=r"No such file or directory|Is a directory"):
        open_log(str(tmp_path / name), None)


def test_a_signal_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that is logged while another line is being taken does not stop the process for ever."""
    path = tmp_path / "log"
    log = LogWriter(LogFile(str(path)))
    add = log._add

    def interrupted(piece: object) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGUSR1)
        add(piece)

    def stuck(*_: object) -> None:
        raise AssertionError("it waits for itself")

    before = (
        signal.signal(signal.SIGUSR1, lambda *_: log.write("Received SIGTERM\n")),
        signal.signal(signal.SIGALRM, stuck),
    )
    try:
        monkeypatch.setattr(log, "_add", interrupted)
        signal.alarm(30)
        log.write("a line\n")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGALRM, before[1])
    log.finish()
    assert path.read_text() == "Received SIGTERM\na line\n"


def test_priorities() -> None:
    """A line has that of its level, the rows of a traceback that of their bug, and JSON none."""
    stamp = b"2026-11-23T20:58:26+0000"
    levels = {b"debug": 7, b"info ": 6, b"warn ": 4, b"error": 3, b"critical": 3}
    for level, priority in levels.items():
        line = b"%b %b <0>text info \n" % (stamp, level)
        assert with_priorities(line) == b"<%d>%b" % (priority, line)
    bug = b"%b error a bug\n  Traceback\n    a row\n%b info  x\n" % (stamp, stamp)
    assert with_priorities(bug) == b"<3>%b error a bug\n<3>  Traceback\n<3>    a row\n<6>%b info  x\n" % (stamp, stamp)
    assert with_priorities(b'{"time":"x","level":"warn"}\n') == b'{"time":"x","level":"warn"}\n'
