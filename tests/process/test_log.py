"""The log of the real daemon: nothing that happens to it holds up a request, and nothing goes missing silently."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Daemon, Wire, eventually, missing
from tests.watchdog import never_late

MakeDaemon = Callable[..., Daemon]

WORKERS = pytest.mark.parametrize("workers", [1, 2])


class Piped(Daemon):
    """A daemon whose standard output, standard error or both are a pipe that nobody reads until it is told to."""

    def __init__(self, folder: Path, streams: str = "both", **settings: object) -> None:
        super().__init__(folder, **settings)
        self._streams = streams
        self.read = b""

    def launch(self) -> Daemon:
        twist = Path(sys.executable).with_name("twist")
        self._reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(twist), "hmac-file-server", "--config", str(self.config)],
                stdout=log if self._streams == "stderr" else writing,
                stderr=log if self._streams == "stdout" else writing,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
            )
        os.close(writing)
        return self

    def read_on(self) -> None:
        """Read what there is until all have closed the pipe, in a thread."""

        def read() -> None:
            while data := os.read(self._reading, 1 << 16):
                self.read += data

        threading.Thread(target=read, daemon=True).start()


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Callable[..., Piped]]:
    made: list[Piped] = []

    def make(**settings: object) -> Piped:
        made.append(Piped(tmp_path, **settings))
        return made[-1]

    yield make
    for daemon in made:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def ask_much(daemon: Daemon) -> None:
    """Requests that leave more lines than a pipe holds; each must be answered."""
    assert daemon.put("much/a.bin", b"hello").status == 201
    with daemon.wire() as wire:
        for _ in range(300):
            wire.send(b"GET /upload/much/a.bin HTTP/1.1\r\nHost: a\r\nUser-Agent: Client/1.0\r\n\r\n")
            assert wire.answer().status == 200


@WORKERS
def test_nobody_reads_standard_output(piped: Callable[..., Piped], workers: int) -> None:
    """A log that nobody reads stops no upload, no health check and no orderly end."""
    daemon = piped(Workers=workers)
    daemon.start()
    for number in range(4):
        ask_much(daemon)
        assert daemon.put(f"slot/{number}", b"hello").status == 201
        assert daemon.get(f"slot/{number}").body == b"hello"
    with Wire(daemon.metrics_port) as metrics:
        assert metrics.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 200
    assert daemon.stop() in (0, -signal.SIGTERM)


def test_reading_goes_on(piped: Callable[..., Piped]) -> None:
    """When the log is read again all lines come that were kept, then how many were not."""
    daemon = piped()
    daemon.start()
    with never_late(daemon):
        for _ in range(60):
            ask_much(daemon)
    daemon.read_on()
    eventually(lambda: re.search(rb"\d+ lines of the log are lost", daemon.read), what="lost lines are told of")
    assert daemon.put("slot/after", b"hello").status == 201
    eventually(lambda: b"PUT /upload/slot/after 201" in daemon.read)
    lines = daemon.read.decode().splitlines()
    kept = sum("/upload/much/" in line for line in lines)
    lost = sum(int(found[1]) for line in lines if (found := re.search(r"(\d+) lines of the log are lost", line)))
    assert kept + lost == 60 * 301
    assert all(re.match(r"\d{4}-\d\d-\d\dT\S+ (info|warn|error) ", line) for line in lines)


def test_nobody_reads_standard_error(piped: Callable[..., Piped]) -> None:
    """What goes to standard error does not hold up the daemon either."""
    daemon = piped(streams="stderr", LogFile="gone/log")
    (daemon.folder / "gone").mkdir()
    daemon.start()
    (daemon.folder / "gone/log").unlink()
    (daemon.folder / "gone").rmdir()
    for _ in range(80):  # Each time there is a complaint, more than the pipe holds.
        daemon.get("none")
        (daemon.folder / "gone").mkdir()
        daemon.get("none")
        eventually((daemon.folder / "gone/log").exists)
        (daemon.folder / "gone/log").unlink()
        (daemon.folder / "gone").rmdir()
    assert daemon.stop() in (0, -signal.SIGTERM)


@WORKERS
def test_a_closed_standard_output(make_daemon: MakeDaemon, workers: int) -> None:
    """Started without standard streams the daemon serves, and writes to no file or client instead."""
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    daemon = make_daemon(prefix=shell, Workers=workers).start()
    ask_much(daemon)
    assert daemon.put("slot/a", b"hello").status == 201
    assert daemon.get("slot/a").body == b"hello"
    assert daemon.files() == {"slot/a", "much/a.bin"}
    assert daemon.stop() in (0, -signal.SIGTERM)


def test_a_full_disk(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """While the log's disk is full lines are lost; then they are counted, and none is garbled."""
    folder = tmp_path / "logs"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]):
        missing("a file system can not be mounted")
    try:
        daemon = make_daemon(LogFile=str(folder / "log")).start()
        filler = folder / "filler"
        filler.write_bytes(b"x" * 40_000)
        for _ in range(3):
            ask_much(daemon)
        os.truncate(filler, 0)
        assert daemon.put("slot/after", b"hello").status == 201
        eventually(lambda: "/slot/after" in (folder / "log").read_text(), what="lines are written again")
        lines = (folder / "log").read_text().splitlines()
        torn = [line for line in lines if not re.match(r"\d{4}-\d\d-\d\dT\S+ (info|warn|error)  ?\S.*", line)]
        asked = [line for line in lines if " GET /upload/" in line]
        end = asked[0].rpartition('"')[2]
        whole = [line for line in asked if line.endswith('"' + end)]
        lost = int(re.search(r"(\d+) lines? of the log (is|are) lost: No space", (folder / "log").read_text())[1])
        assert len(whole) + lost >= 900
        assert len(torn) <= 1
        assert all("/slot/after" not in line or line.count(" info ") == 1 for line in lines)
        daemon.stop()
    finally:
        subprocess.call(["umount", "-l", str(folder)])


@pytest.mark.parametrize("locale", ["C", "POSIX", "tr_TR.ISO8859-9"])
def test_utf_8_whatever_the_locale(make_daemon: MakeDaemon, locale: str) -> None:
    """Lines are in UTF-8 also where the locale, or Python's own setting, is another."""
    plain = {"LC_ALL": locale, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    daemon = make_daemon(environment=plain).start()
    daemon.request("GET", "/upload/none", User_Agent="grüße 🎉".encode().decode("latin-1"))
    eventually(lambda: '"grüße 🎉"' in daemon.log_path.read_text("utf-8"))
