"""Where the log goes: a stream or a file, which a thread writes to, so that a log that stalls keeps nobody waiting."""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import re
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import attrs
from twisted.logger import LogLevel

from hmac_file_server.log import FORMS, Recent

_MOST_WAITING = 1 << 20
_TOGETHER = select.PIPE_BUF
"""Bytes that are written at once: up to so many, several processes do not mix their lines in one pipe."""

_PAUSE = 0.02
_PATIENCE = 2.0
STANDARD_OUTPUT = 4
"""Of a worker: the descriptor of what its parent logs to where LogFile is empty."""

_LEVEL = re.compile(rb"\S+ (debug|info|warn|error|critical) ")
_PRIORITIES = {b"debug": 7, b"info": 6, b"warn": 4, b"error": 3, b"critical": 3}
"""Of syslog, for the levels; what Twisted calls critical is a bug that one request met."""

_READ_LATER = "the log was not read, or its disk too slow"


class Stream:
    """Something open to write lines to: standard output, as a rule.

    :ivar problem: why it is not what it should be; empty if all is well.
    """

    problem = ""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._is_torn = False

    def look(self) -> str:
        """See to it that lines go where they should; the problem, if it is a new one."""
        return ""

    def write(self, lines: bytes) -> None:
        """Write whole lines; after one that could be written in part only they begin on a new line.

        :raises OSError: if not all could be written.
        """
        # Not by O_NONBLOCK: other processes share that flag, the operator's shell for one.
        whole = rest = b"\n" + lines if self._is_torn else lines
        try:
            while rest:
                try:
                    rest = rest[os.write(self.descriptor, rest) :]
                except BlockingIOError:
                    self._wait()
        finally:
            if len(rest) < len(whole):
                self._is_torn = not whole[: len(whole) - len(rest)].endswith(b"\n")

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        poll.poll()


class Journal(Stream):
    """systemd's journal, which takes each line's priority from the number before it (sd-daemon(3))."""

    def write(self, lines: bytes) -> None:
        super().write(with_priorities(lines))


def with_priorities(lines: bytes) -> bytes:
    """Lines of text with their priorities before them; the rows of a traceback have that of their bug.

    Objects of JSON say their levels themselves.
    """
    priority, marked = b"", []
    for line in lines.splitlines(keepends=True):
        if not line.startswith(b"  "):
            found = _LEVEL.match(line)
            priority = b"<%d>" % _PRIORITIES[found[1]] if found else b""
        marked.append(priority + line)
    return b"".join(marked)


def is_journal(descriptor: int) -> bool:
    """Whether it is what systemd has connected to its journal (systemd.exec(5), ``JOURNAL_STREAM``)."""
    told = os.environ.get("JOURNAL_STREAM", "")
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return told == f"{there.st_dev}:{there.st_ino}"


def standard_stream(descriptor: int) -> Stream:
    """What standard output is."""
    return (Journal if is_journal(descriptor) else Stream)(descriptor)


class LogFile(Stream):
    """A file to log to, opened anew when logrotate has moved it away.

    The old one is kept as long as the new one can not be opened.

    :param path: appended to; made if it is not there.
    :param descriptor: of the file that had this path, for a worker: what its parent could open it may not be able to
        open any more.
    :raises OSError: if it can not be opened.
    """

    def __init__(self, path: str, descriptor: int = -1) -> None:
        self.path = path
        self.is_stale = descriptor >= 0
        super().__init__(descriptor)
        if not self.is_stale:
            self.descriptor = self._open()

    def _open(self) -> int:
        opened = open_file(self.path)
        self._identity = os.fstat(opened)
        self._is_torn = stat.S_ISREG(self._identity.st_mode) and _last_byte(self.path) not in (b"\n", b"")
        return opened

    def look(self) -> str:
        if not (self.is_stale or self._is_moved()):
            self.problem = ""
            return ""
        try:
            opened = self._open()
        except OSError as error:
            problem, self.problem = self.problem, f"LogFile {self.path} can not be opened: {error.strerror}"
            return self.problem if self.problem != problem else ""
        # The number stays, for it may be on its way to a worker; nor does it matter what the old file says at its end.
        os.dup2(opened, self.descriptor, inheritable=False)
        with contextlib.suppress(OSError):
            os.close(opened)
        self.is_stale, self.problem = False, ""
        return ""

    def _is_moved(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), self._identity)
        except OSError:
            return True


def _last_byte(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)
    except OSError:  # it is empty, or may not be read
        return b""


@attrs.define
class _Piece:
    """Some of the log, and how many lines are lost with it."""

    text: bytes
    lines: int


class LogWriter:
    """The file that Twisted logs to: takes text at once, and has a thread write it.

    :param standard: descriptor of what it goes on in where no file is wanted any more.
    :ivar lowest: level of what Twisted logs to it.
    :ivar form: of its lines.
    :ivar recent: what went wrong of late.

    What waits is bounded; how many lines did not fit, or could not be written, is said as soon as lines get through.
    """

    def __init__(self, stream: Stream, standard: int = 1, most_waiting: int = _MOST_WAITING) -> None:
        self.lowest = LogLevel.debug
        self.form = FORMS["text"]
        self.recent = Recent()
        self.standard = standard
        self._stream = stream
        self._moves_to: str | None = None
        self._most_waiting = most_waiting
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        # One that its own thread can take again: the reactor logs a SIGTERM right where that interrupts it.
        self._lock = threading.RLock()
        self._written = threading.Condition(self._lock)
        self._deadline: float | None = None
        self._has_thread = False
        self._busy = False
        self._waiting: deque[_Piece] = deque()
        self._size = 0
        self._lost = 0
        self._reason = ""

    @property
    def problem(self) -> str:
        """Why the log is not where it should be; empty if it is."""
        return self._stream.problem

    def fileno(self) -> int:
        """The descriptor that is written to, as of now."""
        return self._stream.descriptor

    def write(self, text: str) -> None:
        """Take some lines, from any thread, and from a signal handler too."""
        piece = _Piece(text.encode("utf-8", "backslashreplace"), text.count("\n"))
        with self._lock:
            if self._size + len(piece.text) > self._most_waiting:
                self._lost += piece.lines
                self._reason = _READ_LATER
                return
            if self._lost:
                self._say_what_is_lost()
            self._add(piece)
            if not self._busy:
                self._wake()
            if self._deadline is not None:
                self._wait()

    def flush(self) -> None:
        """The thread writes as soon as it can."""

    def isatty(self) -> bool:
        """Not for Twisted to know: it would log in another form."""
        return False

    def move(self, path: str) -> None:
        """Go on in another file, or in none if the path is empty."""
        with self._lock:
            self._moves_to = path
            if not self._busy:
                self._wake()

    def reopen(self) -> None:
        """Open the file anew."""
        if isinstance(self._stream, LogFile):
            self._stream.is_stale = True
        with self._lock:
            if not self._busy:
                self._wake()

    def finish(self, patience: float = _PATIENCE) -> None:
        """The process ends soon: wait until all is written, and from now on with each line.

        :param patience: seconds for all of that; a log that nobody reads does not keep the process from ending.
        """
        with self._lock:
            if self._deadline is None:
                self._deadline = time.monotonic() + patience
            self._wait()

    # With the lock

    def _say_what_is_lost(self) -> None:
        lines, self._lost = self._lost, 0
        plural = "line of the log is" if lines == 1 else "lines of the log are"
        said = self.form.line("error", f"{lines} {plural} lost: {self._reason}")
        self._add(_Piece(said.encode(), lines))

    def _add(self, piece: _Piece) -> None:
        self._waiting.append(piece)
        self._size += len(piece.text)

    def _wake(self) -> None:
        if not self._has_thread:
            try:
                # Not by threading.Thread: its start() waits, for ever if the new thread finds no memory to begin with.
                # And a log that nobody reads must not keep the process from ending.
                _thread.start_new_thread(self._work, ())
            except (RuntimeError, MemoryError):
                return  # The system has none to give: what waits is written with a later line.
            self._has_thread = True
        self._busy = True
        self._wakeups.put(None)

    def _wait(self) -> None:
        assert self._deadline is not None
        self._written.wait_for(lambda: not self._busy, max(0.0, self._deadline - time.monotonic()))

    # In the thread

    def _work(self) -> None:
        threading.current_thread().name = "log"
        while True:
            self._wakeups.get()
            while self._go_on():
                if self._deadline is None:
                    # Lines that come close together cost one call. A relative time: sleep() computes an absolute one.
                    select.select((), (), (), _PAUSE)

    def _go_on(self) -> bool:
        try:
            return self._write_some()
        except (MemoryError, OSError):
            return True  # It may be better after the pause.

    def _turn(self) -> None:
        """Go on where :meth:`move` says."""
        with self._lock:
            path, self._moves_to = self._moves_to, None
        here = self._stream
        if path is None or path == (here.path if isinstance(here, LogFile) else ""):
            return
        if not path:
            os.dup2(self.standard, here.descriptor, inheritable=False)
            self._stream = standard_stream(here.descriptor)
        elif isinstance(here, LogFile):
            here.path, here.is_stale = path, True
        else:
            is_ours = here.descriptor not in (1, self.standard)
            self._stream = LogFile(path, here.descriptor if is_ours else os.dup(here.descriptor))

    def _write_some(self) -> bool:
        self._turn()
        problem = self._stream.look()
        if problem:
            self._complain(f"{problem}; let the daemon's user write to it; until then the log goes on in the old file")
        with self._lock:
            if not self._waiting:
                self._busy = False
                self._written.notify_all()
                return False
            pieces, self._waiting = self._waiting, deque()
        lost, reason = 0, ""
        try:
            for together in _together(pieces):
                try:
                    self._stream.write(b"".join(piece.text for piece in together))
                except (OSError, MemoryError) as error:
                    lost += sum(piece.lines for piece in together)
                    reason = os.strerror(getattr(error, "errno", None) or errno.ENOMEM)
        finally:
            with self._lock:
                self._size -= sum(len(piece.text) for piece in pieces)
                if lost:
                    self._lost += lost
                    self._reason = reason
                elif self._lost and not self._waiting:
                    self._say_what_is_lost()
        return True

    def _complain(self, problem: str) -> None:
        """Say it where it is seen: in the old file, and on standard error."""
        text = self.form.line("error", problem).encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            self._stream.write(text)
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if poll.poll(0):
            with contextlib.suppress(OSError):
                os.write(2, (with_priorities(text) if is_journal(2) else text)[:_TOGETHER])


def check_log(path: str) -> None:
    """See whether a file can be logged to; it is made if it is not there.

    :raises OSError: if not.
    """
    os.close(open_file(path))


def open_file(path: str) -> int:
    """Open a file to log to."""
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        # Not for all to read: whoever has the path of a file may have the file.
        return os.open(path, os.O_WRONLY | flags, 0o640)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        # A FIFO that nobody reads yet.
        return os.open(path, os.O_RDWR | flags & ~os.O_CREAT)


def open_log(path: str, given: Any, is_worker: bool = False) -> LogWriter:
    """Where to log.

    :param path: of the file; empty for what twist was given.
    :param given: that; None if standard output is closed.
    :param is_worker: whether standard output is what the parent logs to.
    :raises OSError: if the file can not be opened.
    """
    _fill_standard_streams()
    standard = os.open(os.devnull, os.O_WRONLY) if given is None else given.fileno()
    if is_worker:
        standard = STANDARD_OUTPUT
        return LogWriter(LogFile(path, _take_standard_output()) if path else standard_stream(1), standard)
    return LogWriter(LogFile(path) if path else standard_stream(standard), standard)


def _take_standard_output() -> int:
    taken, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    # Else it would hold the file for ever.
    os.dup2(null, 1)
    os.close(null)
    return taken


def _fill_standard_streams() -> None:
    """Open what is closed, so that nobody writes there to a file or a client that got the number instead."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _together(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """What to write at once."""
    together: list[_Piece] = []
    size = 0
    for piece in pieces:
        if together and size + len(piece.text) > _TOGETHER:
            yield together
            together, size = [], 0
        together.append(piece)
        size += len(piece.text)
    yield together
