"""The log of the real daemon: nothing that happens to it holds up a request, and nothing goes missing silently."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import SECRET, Daemon, Wire, eventually, missing, v
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


def reread(daemon: Daemon, where: Callable[[], str], **settings: object) -> None:
    """Have it take other settings, and wait until it says that it has."""
    daemon.settings.update(settings)
    daemon.configure()
    before = where().count("was read again")
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: where().count("was read again") > before, what="it was read again")


def ask_each(daemon: Daemon, name: str, where: Callable[[], str]) -> None:
    """Requests for every worker, and their lines."""
    for number in range(6):
        assert daemon.get(f"{name}/{number}").status == 404
    eventually(lambda: all(f"/{name}/{number}" in where() for number in range(6)), what=f"the lines of {name}")


@WORKERS
def test_json(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """From its first line to its last the file has one object of JSON a line, whatever clients send; no signature."""
    log = tmp_path / "access.log"
    daemon = make_daemon(Workers=workers, LogFile=str(log), LogFormat="json").start()
    signature = v("slot/b.bin", 6)
    assert daemon.put("slot/a.bin", b"hello", User_Agent="Client/1.0").status == 201
    refused = daemon.request("PUT", f"/upload/slot/b.bin?v={signature}", b"hello", Content_Type="image/png")
    assert refused.status == 403
    forged = b'"}\n{"time":"2026-01-01T00:00:00.000Z","level":"info","message":"forged"}'
    for junk in (forged, b"\xff\xe2\x80\xa8\xc2\x85\x1b[2J\x7f\x00\\", "\u202egrüße".encode()):
        agent = junk.replace(b"\n", b" ").replace(b"\0", b"")
        target = b"/upload/" + b"".join(b"%%%02x" % byte for byte in junk)
        with daemon.wire() as wire:
            wire.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nUser-Agent: " + agent + b"\r\n\r\n").answer()
        with daemon.wire() as wire:
            wire.send(b"GET /upload/" + junk + b" HTTP/1.1\r\nHost: a\r\n\r\n" + junk + b"\r\n\r\n")
            wire.socket.shutdown(socket.SHUT_WR)
            wire.rest()
    assert daemon.get("last").status == 404
    assert daemon.stop() in (0, -signal.SIGTERM)
    text = log.read_bytes().decode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    assert all(list(line)[:2] == ["time", "level"] for line in lines)
    assert all(("message" in line) != ("method" in line) for line in lines)
    assert not any(line.get("message") == "forged" for line in lines)
    [stored] = [line for line in lines if line.get("path") == "/upload/slot/a.bin"]
    assert [stored[key] for key in ("client", "method", "status", "in", "host", "agent")] == [
        *("127.0.0.1", "PUT", 201, 5, None, "Client/1.0")
    ]
    [told] = [line for line in lines if line.get("path") == "/upload/slot/b.bin"]
    assert [told[key] for key in ("level", "reason", "size", "type", "protocol", "signature")] == [
        *("warn", "signature", 5, "image/png", "v", signature[:8])
    ]
    assert signature[:9] not in text
    assert SECRET not in text


@WORKERS
def test_the_form_changes_with_a_reload(make_daemon: MakeDaemon, workers: int) -> None:
    """LogFormat holds for all processes as soon as the configuration was read again."""
    daemon = make_daemon(Workers=workers).start()

    def lines(name: str) -> list[str]:
        return [line for line in daemon.log.splitlines() if f"/{name}/" in line]

    ask_each(daemon, "text", lambda: daemon.log)
    reread(daemon, lambda: daemon.log, LogFormat="json")
    ask_each(daemon, "json", lambda: daemon.log)
    reread(daemon, lambda: daemon.log, LogFormat="text")
    ask_each(daemon, "again", lambda: daemon.log)
    assert [json.loads(line)["method"] for line in lines("json")] == ["GET"] * 6
    assert all(re.match(r"\d{4}-\S+ info  127", line) for line in (*lines("text"), *lines("again")))


class Journaled(Daemon):
    """A daemon whose standard output and error are a stream socket, as systemd's to the journal is."""

    def launch(self) -> Daemon:
        twist = Path(sys.executable).with_name("twist")
        ours, theirs = socket.socketpair()
        there = os.fstat(theirs.fileno())
        with theirs:
            self.process = subprocess.Popen(
                [str(twist), "hmac-file-server", "--config", str(self.config)],
                stdout=theirs,
                stderr=theirs,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=os.environ | {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"},
            )

        def read() -> None:
            with ours, self.log_path.open("ab", buffering=0) as log:
                while data := ours.recv(1 << 16):
                    log.write(data)

        threading.Thread(target=read, daemon=True).start()
        return self


@pytest.fixture
def journaled(tmp_path: Path) -> Iterator[Callable[..., Journaled]]:
    made: list[Journaled] = []

    def make(**settings: object) -> Journaled:
        made.append(Journaled(tmp_path, **settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.stop(signal.SIGKILL)


@WORKERS
def test_the_journal(journaled: Callable[..., Journaled], tmp_path: Path, workers: int) -> None:
    """Each line to the journal has its priority before it (sd-daemon(3)), one to a file or in JSON has none."""
    file = tmp_path / "access.log"
    daemon = journaled(Workers=workers)
    daemon.start()
    assert daemon.get("journal").status == 404
    assert daemon.request("PUT", "/upload/journal?v=0", b"x").status == 403
    eventually(lambda: daemon.log.count("/upload/journal ") == 2)
    reread(daemon, file_or_none(file), LogFile=str(file))
    ask_each(daemon, "file", file.read_text)
    reread(daemon, lambda: daemon.log, LogFile="")
    ask_each(daemon, "back", lambda: daemon.log)
    reread(daemon, lambda: daemon.log, LogFormat="json")
    ask_each(daemon, "json", lambda: daemon.log)
    lines = daemon.log.splitlines()
    text = [line for line in lines if not line.startswith("{")]
    assert all(re.match(r"(<6>\d{4}\S+ info |<4>\d{4}\S+ warn |<3>\d{4}\S+ error )", line) for line in text), text
    assert sum("/journal 404" in line for line in text if line.startswith("<6>")) == 1
    assert sum("/journal 403" in line for line in text if line.startswith("<4>")) == 1
    assert sum("/back/" in line for line in text) == 6
    assert [json.loads(line)["level"] for line in lines if "/json/" in line] == ["info"] * 6
    assert all(re.match(r"\d{4}-", line) for line in file.read_text().splitlines())


def file_or_none(path: Path) -> Callable[[], str]:
    return lambda: path.read_text() if path.exists() else ""


def test_another_stream_than_the_journal(make_daemon: MakeDaemon) -> None:
    """JOURNAL_STREAM of another stream, which whoever is started by a service may have, counts for nothing."""
    daemon = make_daemon(environment={"JOURNAL_STREAM": "8:12345"}).start()
    ask_each(daemon, "none", lambda: daemon.log)
    assert all(re.match(r"\d{4}-", line) for line in daemon.log.splitlines())


def test_json_of_hosts(make_daemon: MakeDaemon) -> None:
    """Where there are several hosts each line says to which one it was; null where it was to none."""
    hosts = [{"Name": name, "UploadSubDir": f"{name}/", "StoreDir": f"store-{name}"} for name in ("one", "two")]
    daemon = make_daemon(hosts=hosts, StoreDir=None, LogFormat="json").start()
    for path in ("/one/a", "/two/a", "/three/a"):
        assert daemon.request("GET", path).status == 404
    eventually(lambda: "/three/a" in daemon.log)
    lines = map(json.loads, daemon.log.splitlines())
    assert {line["path"]: line["host"] for line in lines if "path" in line} == {
        "/one/a": "one",
        "/two/a": "two",
        "/three/a": None,
    }
