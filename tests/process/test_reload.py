"""The configuration, read again on SIGHUP: as a whole or not at all, and without a refused upload."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.neighbours.program import certificate, run
from tests.process.test_hosts import host
from tests.process.test_signals import started
from tests.support import DEADLINE, SECRET, Daemon, eventually, free_port, need, put_head, put_target

MakeDaemon = Callable[..., Daemon]

NEW = "quite-new7-secret23-of91-ours17"
WORKERS = pytest.mark.parametrize("workers", [1, 2])


def reload(daemon: Daemon, what: str = "the configuration was read again", **settings: Any) -> None:
    """Change settings, tell the daemon, and wait until it says what came of it."""
    before = daemon.log.count(what)
    daemon.settings.update(settings)
    daemon.configure()
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: daemon.log.count(what) > before, what=what)


def put(daemon: Daemon, path: str, secret: str = SECRET, body: bytes = b"hello") -> int:
    return daemon.request("PUT", put_target(path, len(body), secret=secret), body).status


@WORKERS
def test_what_changes(make_daemon: MakeDaemon, workers: int) -> None:
    """Secrets, limits and the rest hold from the next request on, in all workers."""
    daemon = started(make_daemon(Workers=workers), workers)
    assert put(daemon, "a/1.bin") == 201
    assert put(daemon, "a/2.bin", NEW) == 403
    reload(daemon, Secret=NEW, MaxUploadSize=10, DeleteSecret="delete7-it23-all91", UploadSubDir="files/")
    for number in range(8):
        target = put_target(f"b/{number}.bin", 5, "/files/", NEW)
        assert daemon.request("PUT", target, b"hello").status == 201
        assert daemon.request("PUT", put_target(f"c/{number}.bin", 5, "/files/"), b"hello").status == 403
        assert daemon.request("PUT", put_target(f"d/{number}.bin", 11, "/files/", NEW), b"hello world").status == 413
        assert "DELETE" in daemon.request("OPTIONS", "/files/b/0.bin").headers["access-control-allow-methods"]
        assert put(daemon, f"a/{number}.bin", NEW) == 404
    assert daemon.request("GET", "/files/a/1.bin").body == b"hello"
    assert daemon.metric("hmac_file_server_config_last_reload_successful") == 1
    assert NEW not in daemon.log


@WORKERS
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MaxRetries": -1}, "MaxRetries = -1: write a whole number"),
        ({"Secret": None}, "Secret is missing"),
        ({"StoreDir": "/proc/nowhere"}, "StoreDir"),
        ({"SecretFile": "/nowhere/at-all", "Secret": None}, "No such file"),
        ({"Colour": 1}, "Colour: unknown key"),
    ],
    ids=str,
)
def test_a_bad_file(make_daemon: MakeDaemon, workers: int, changes: dict[str, Any], words: str) -> None:
    """A file that can not be is refused in one line, and all of the old configuration stays."""
    daemon = started(make_daemon(Workers=workers), workers)
    began = daemon.metric("hmac_file_server_config_last_reload_timestamp_seconds")
    reload(daemon, "the configuration stays as it was", **changes, UploadSubDir="elsewhere/", LogLevel="error")
    (line,) = [line for line in daemon.log.splitlines() if "stays as it was" in line]
    assert words in line
    for number in range(6):
        assert put(daemon, f"a/{number}.bin") == 201
    assert daemon.metric("hmac_file_server_config_last_reload_successful") == 0
    assert daemon.metric("hmac_file_server_config_last_reload_timestamp_seconds") >= began
    reload(daemon, **{name: None for name in changes if name not in ("Secret", "StoreDir")},
           Secret=SECRET, StoreDir=str(daemon.store), UploadSubDir=None, LogLevel=None)  # fmt: skip
    assert daemon.metric("hmac_file_server_config_last_reload_successful") == 1
    assert "Traceback" not in daemon.log


@WORKERS
def test_rotation(make_daemon: MakeDaemon, workers: int) -> None:
    """A secret is replaced by another one while clients upload all the time, and none is refused."""
    daemon = started(make_daemon(Workers=workers), workers)
    secret, over, said, number = [SECRET], threading.Event(), list[int](), iter(range(1 << 30))

    def upload() -> None:
        while not over.is_set():
            path, body = f"r/{next(number)}.bin", os.urandom(20_000)
            said.append(daemon.request("PUT", put_target(path, len(body), secret=secret[0]), body).status)

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for old, new in ((SECRET, NEW), (NEW, SECRET)):
            reload(daemon, Secret=[new, old])
            secret[0] = new
            before = len(said)
            eventually(lambda: len(said) > before + 40, what="uploads with the new secret")  # noqa: B023
            reload(daemon, Secret=new)
            before = len(said)
            eventually(lambda: len(said) > before + 40, what="uploads without the old secret")  # noqa: B023
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(said) == {201}
    assert put(daemon, "r/old.bin", NEW) == 403


@WORKERS
def test_what_runs_does_not_notice(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """Uploads, downloads and kept connections outlast a reload that takes their secret, folder and host."""
    hosts = [host(tmp_path, "a"), host(tmp_path, "b")]
    daemon = started(make_daemon(StoreDir=None, hosts=hosts, Workers=workers, MinFreeSpace=0), workers)
    body = os.urandom(30 << 20)
    target = put_target("slot/film.bin", len(body), "/a/")
    assert daemon.request("PUT", target, body).status == 201
    new = put_target("slot/new.bin", len(body), "/a/")
    head = f"PUT {new} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with daemon.wire() as upload, daemon.wire() as download, daemon.wire() as kept:
        upload.send(head.encode() + body[: 3 << 20])
        download.send(b"GET /a/slot/film.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.send(b"GET /a/none HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
        eventually(lambda: daemon.metric("hmac_file_server_uploads_in_progress", '{host="a"}') == 1)
        daemon.hosts[:] = [host(tmp_path, "b", Secret=NEW), host(tmp_path, "c", Secret=NEW)]
        reload(daemon)
        assert kept.send(b"GET /a/slot/film.bin HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
        assert download.answer().body == body
        assert upload.send(body[3 << 20 :]).answer().status == 201
    assert (tmp_path / "a/slot/new.bin").read_bytes() == body
    for prefix in ("b", "c"):
        assert daemon.request("PUT", put_target("slot/x.bin", 5, f"/{prefix}/", NEW), b"hello").status == 201
        assert (tmp_path / prefix / "slot/x.bin").read_bytes() == b"hello"
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in daemon.log


@WORKERS
def test_one_host_becomes_several(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """Hosts come and go; figures have the label as soon as there are several, and lose it again."""
    daemon = started(make_daemon(Workers=workers), workers)
    assert put(daemon, "a/1.bin") == 201
    daemon.hosts[:] = [host(tmp_path, "more")]
    reload(daemon)
    assert daemon.request("PUT", put_target("a/1.bin", 5, "/more/"), b"other").status == 201
    assert daemon.get("a/1.bin").body == b"hello"
    eventually(lambda: daemon.metric("hmac_file_server_uploads_total", '{host="more"}') == 1)
    daemon.hosts[:] = []
    reload(daemon)
    assert daemon.request("GET", "/more/a/1.bin").status == 404
    assert put(daemon, "a/2.bin") == 201
    eventually(lambda: daemon.metric("hmac_file_server_uploads_total") == 1)


@WORKERS
def test_sessions_go_on(make_daemon: MakeDaemon, workers: int) -> None:
    """An upload that broke off is gone on with after a reload, also one that changes how it is kept."""
    daemon = started(make_daemon(Workers=workers), workers)
    version = {"Upload_Draft_Interop_Version": "6"}
    parts = version | {"Upload_Complete": "?0", "Upload_Length": "10"}
    location = daemon.request("PUT", put_target("s/a.bin", 10), b"hello", **parts).headers["location"]
    reload(daemon, SessionTimeout=1000, Secret=NEW)
    assert daemon.request("HEAD", location, **version).headers["upload-offset"] == "5"
    more = {"Upload_Offset": "5", "Upload_Complete": "?1", "Content_Type": "application/partial-upload"}
    assert daemon.request("PATCH", location, b"world", **version, **more).status == 201
    assert daemon.get("s/a.bin").body == b"helloworld"


@WORKERS
def test_what_needs_a_start(make_daemon: MakeDaemon, workers: int) -> None:
    """ListenPort, MetricsPort and Workers are named in one warning, and stay; what stands beside them holds."""
    daemon = started(make_daemon(Workers=workers), workers)
    other = {"ListenPort": f"127.0.0.1:{free_port()}", "MetricsPort": f"127.0.0.1:{free_port()}", "Workers": 3}
    reload(daemon, "changes with the next start only", **other, Secret=NEW)
    (line,) = [line for line in daemon.log.splitlines() if "next start only" in line]
    assert "ListenPort, MetricsPort, Workers changes" in line
    assert put(daemon, "a/1.bin", NEW) == 201
    assert daemon.ready()[0] == 200
    reload(
        daemon, ListenPort=f"127.0.0.1:{daemon.port}", MetricsPort=f"127.0.0.1:{daemon.metrics_port}", Workers=workers
    )
    assert daemon.log.count("next start only") == 1


@WORKERS
def test_what_is_not_used_any_more(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """Stores that no configuration names are let go of when nothing runs in them any more, with their threads."""
    daemon = started(make_daemon(Workers=workers), workers)

    def held() -> tuple[int, set[str]]:
        """Threads, and folders that are open, of all processes."""
        pids = [daemon.pid, *map(int, Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split())]
        folders: set[str] = set()
        for pid in pids:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    folders.add(os.readlink(link))
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids), folders

    reload(daemon)
    assert put(daemon, "a/0.bin") == 201
    threads, _ = held()
    for number in range(4):
        reload(daemon, StoreDir=str(tmp_path / f"store-{number}"))
        assert put(daemon, "a/1.bin") == 201
    reload(daemon, StoreDir=str(daemon.store))
    gone = {str(tmp_path / f"store-{number}") for number in range(4)}
    eventually(lambda: not held()[1] & gone, what="the stores are closed")
    with daemon.wire() as wire:
        wire.send(put_head("a/slow.bin", 10) + b"hello")
        eventually(lambda: daemon.running() == 1)
        reload(daemon, StoreDir=str(tmp_path / "last"))
        assert put(daemon, "a/2.bin") == 201
        assert wire.send(b"world").answer().status == 201
    assert (daemon.store / "a/slow.bin").read_bytes() == b"helloworld"
    eventually(lambda: str(daemon.store) not in held()[1], what="the first one is closed, too")
    # Each process has three threads for a store that is idle, and some more for a moment.
    eventually(lambda: held()[0] <= threads + 3 * (workers + 1), what="the threads are gone")
    assert "Traceback" not in daemon.log


def test_a_worker_that_can_not(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Where one worker can not take a configuration none does, and what runs in it goes on."""
    daemon = started(make_daemon(Workers=2), 2)
    reload(daemon)  # By then both talk to their parent.
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()]
    soft, hard = resource.prlimit(pids[1], resource.RLIMIT_NOFILE)
    resource.prlimit(pids[1], resource.RLIMIT_NOFILE, (1, hard))
    reload(daemon, "the configuration stays as it was", StoreDir=str(tmp_path / "other"), Secret=NEW)
    resource.prlimit(pids[1], resource.RLIMIT_NOFILE, (soft, hard))
    for number in range(6):
        assert put(daemon, f"a/{number}.bin") == 201
        assert (daemon.store / f"a/{number}.bin").exists()
        assert put(daemon, f"b/{number}.bin", NEW) == 403
    assert [int(pid) for pid in children.read_text().split()] == pids
    reload(daemon)
    for number in range(6):
        assert put(daemon, f"c/{number}.bin", NEW) == 201
        assert (tmp_path / f"other/c/{number}.bin").exists()
    assert "Traceback" not in daemon.log


@WORKERS
def test_a_proxy_that_keeps_its_connections(make_daemon: MakeDaemon, workers: int) -> None:
    """TrustedProxies holds for the next request of a connection that a proxy has had open all the time."""
    daemon = started(make_daemon(Workers=workers, TrustedProxies=[], MaxConnectionsPerAddress=4), workers)
    get = "GET /upload/{} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.{}\r\n\r\n"
    with daemon.wire() as wire:
        for number, trusted in ((1, ["127.0.0.1"]), (2, []), (3, ["127.0.0.0/8"])):
            assert wire.send(get.format(f"none/{number}", number).encode()).answer().status == 404
            reload(daemon, TrustedProxies=trusted)
        assert wire.send(get.format("none/4", 4).encode()).answer().status == 404
    eventually(lambda: "/none/4 " in daemon.log)
    for number, address in ((1, "127.0.0.1"), (2, "203.0.113.2"), (3, "127.0.0.1"), (4, "203.0.113.4")):
        assert f"{address} GET /upload/none/{number} " in daemon.log
    if workers > 1:
        return  # What one worker knows of the others' clients is a little old.
    reload(daemon, TrustedProxies=[])
    # Whoever was counted as a proxy is not missing, nor one too many.
    with contextlib.ExitStack() as wires:
        for _ in range(3):
            assert wires.enter_context(daemon.wire()).send(get.format("x", 9).encode()).answer().status == 404


@WORKERS
def test_a_worker_that_starts_later(make_daemon: MakeDaemon, workers: int) -> None:
    """A worker that dies is replaced by one with the newest settings."""
    daemon = started(make_daemon(Workers=workers), workers)
    reload(daemon, Secret=NEW)
    if workers > 1:
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
        for pid in map(int, children.read_text().split()):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: daemon.log.count("Starting reactor") == 1 + 2 * workers, what="others run")
    for number in range(6):
        assert put(daemon, f"a/{number}.bin", NEW) == 201
        assert put(daemon, f"b/{number}.bin") == 403


@WORKERS
def test_many_at_once(make_daemon: MakeDaemon, workers: int) -> None:
    """However often it is told so, also while it stops, the last file counts and nothing breaks."""
    daemon = started(make_daemon(Workers=workers), workers)
    for number in range(20):
        daemon.settings["Secret"] = f"{NEW}-{number}"
        daemon.configure()
        os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: put(daemon, f"m/{os.urandom(4).hex()}.bin", f"{NEW}-19") == 201, what="the last one holds")
    with daemon.wire() as wire:
        wire.send(put_head("m/late.bin", 10, secret=f"{NEW}-19") + b"hello")
        eventually(lambda: daemon.running() == 1)
        os.kill(daemon.pid, signal.SIGTERM)
        for _ in range(5):
            os.kill(daemon.pid, signal.SIGHUP)
        assert wire.send(b"world").answer().status == 201
    assert daemon.process is not None
    assert daemon.process.wait(DEADLINE) in (0, -signal.SIGTERM)
    assert "Traceback" not in daemon.log


@WORKERS
def test_the_level_and_the_file_of_the_log(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """LogLevel holds at once; the log goes on in another file if LogFile names one."""
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    daemon = make_daemon(Workers=workers, LogFile=str(first))
    started(daemon, workers)
    assert daemon.get("none/1").status == 404
    eventually(lambda: "GET /upload/none/1" in first.read_text())
    daemon.settings.update(LogFile=str(second))
    daemon.configure()
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: second.exists() and "was read again" in second.read_text())

    for number in range(6):
        assert daemon.get(f"second/{number}").status == 404
    eventually(
        lambda: all(f"/second/{number} " in second.read_text() for number in range(6)), what="its lines are there"
    )
    name = "hmac_file_server_config_last_reload_timestamp_seconds"
    before = daemon.metric(name)
    daemon.settings.update(LogLevel="error")
    daemon.configure()
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: daemon.metric(name) > before, what="it was read again")
    for _ in range(6):
        assert daemon.get("quiet").status == 404
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert "/quiet" not in second.read_text()


@WORKERS
def test_a_log_file_or_none(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """The log goes from standard output to a file and back, for all workers, and no line is lost on the way."""
    file = tmp_path / "access.log"
    daemon = started(make_daemon(Workers=workers), workers)

    def turn(path: Path | None, where: Callable[[], str]) -> None:
        daemon.settings["LogFile"] = str(path or "")
        daemon.configure()
        before = where().count("was read again")
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: where().count("was read again") > before, what="it was read again")

    def ask(name: str, where: Callable[[], str]) -> None:
        for number in range(6):
            assert daemon.get(f"{name}/{number}").status == 404
        eventually(lambda: all(f"/{name}/{number} " in where() for number in range(6)), what=f"the lines of {name}")

    def in_file() -> str:
        return file.read_text() if file.exists() else ""

    for round_ in range(2):
        turn(file, in_file)
        ask(f"file{round_}", in_file)
        turn(None, lambda: daemon.log)
        ask(f"out{round_}", lambda: daemon.log)
    assert "/out" not in in_file()
    assert "/file" not in daemon.log


@WORKERS
def test_a_log_file_that_can_not_be(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """It is refused as a whole, as at a start; and files that come and go leave no descriptor open."""
    daemon = started(make_daemon(Workers=workers), workers)
    name = "hmac_file_server_config_last_reload_successful"

    def turn(path: str, well: bool) -> None:
        daemon.settings["LogFile"] = path
        daemon.configure()
        before = daemon.metric(name.replace("successful", "timestamp_seconds"))
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: daemon.metric(name.replace("successful", "timestamp_seconds")) > before)
        assert daemon.metric(name) == well

    turn("/nowhere/at/all.log", False)
    for _ in range(2):
        turn(str(tmp_path / "log"), True)
        turn("", True)
    descriptors = daemon.descriptors()
    for _ in range(3):
        turn(str(tmp_path / "log"), True)
        turn("", True)
    eventually(lambda: daemon.descriptors() <= descriptors, what="none is left open")


@WORKERS
def test_metrics_on_and_off(make_daemon: MakeDaemon, workers: int) -> None:
    """The figures are served from when they are wanted, and no longer; if their address is taken, all stays."""
    daemon = make_daemon(Workers=workers, MetricsEnabled=False)
    daemon.start()
    eventually(lambda: daemon.put("slot/a.txt", b"hello").status == 201)

    def turn(on: bool, words: str) -> None:
        daemon.settings["MetricsEnabled"] = on
        daemon.configure()
        before = daemon.log.count(words)
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: daemon.log.count(words) > before, what=words)

    with socket.create_server(("127.0.0.1", daemon.metrics_port)):
        turn(True, "the configuration stays as it was")
    assert f'MetricsPort = "127.0.0.1:{daemon.metrics_port}": ' in daemon.log
    for _ in range(2):
        turn(True, "was read again")
        eventually(lambda: daemon.metric("hmac_file_server_uploads_total") == 1)
        turn(False, "was read again")
        with pytest.raises(ConnectionRefusedError):
            daemon.metric("hmac_file_server_uploads_total")


ENDS = "hmac_file_server_certificate_not_after_timestamp_seconds"


def end_of(certificate: bytes) -> float:
    """When a certificate in DER ends, in seconds since 1970, as openssl has it."""
    said = run("openssl", "x509", "-noout", "-enddate", stdin=ssl.DER_cert_to_PEM_cert(certificate))
    return ssl.cert_time_to_seconds(said.strip().partition("=")[2])


def test_certificates(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """New certificates of an ssl: endpoint are shown to whoever connects next; bad ones are refused."""
    need("openssl")
    made = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        made.append([Path(path) for path in certificate(tmp_path / name, "localhost")])
    live = [tmp_path / "live.crt", tmp_path / "live.key"]

    def install(files: list[Path]) -> None:
        for file, place in zip(files, live, strict=True):
            place.write_bytes(file.read_bytes())

    def shown() -> bytes:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            return wrapped.getpeercert(binary_form=True) or b""

    install(made[0])
    port = free_port()
    endpoint = f"ssl:{port}:interface=127.0.0.1:privateKey={live[1]}:certKey={live[0]}"
    daemon = make_daemon(ListenPort=endpoint).launch()
    eventually(lambda: "Starting reactor" in daemon.log)
    old = shown()
    assert daemon.metric(ENDS, '{setting="ListenPort"}') == end_of(old)
    install(made[1])
    assert shown() == old
    reload(daemon)
    new = shown()
    assert new != old
    assert daemon.metric(ENDS, '{setting="ListenPort"}') == end_of(new)
    assert daemon.metric(ENDS, '{setting="MetricsPort"}') == 0
    for wrong in (b"no key", made[0][1].read_bytes()):
        live[1].write_bytes(wrong)
        reload(daemon, "the configuration stays as it was", Secret=NEW)
        assert shown() == new
    assert "Traceback" not in daemon.log


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """What systemd listens at."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(DEADLINE)
        yield listening, {"NOTIFY_SOCKET": str(path)}


@WORKERS
def test_systemd(make_daemon: MakeDaemon, manager: tuple[socket.socket, dict[str, str]], workers: int) -> None:
    """systemd is told RELOADING=1 with the time, then READY=1, also after a refusal (sd_notify(3))."""
    listening, environment = manager
    daemon = started(make_daemon(Workers=workers, environment=environment), workers)
    for what, secret in (("was read again", NEW), ("stays as it was", "")):
        listening.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while listening.recv(4096):
                pass
        listening.settimeout(DEADLINE)
        reload(daemon, what, Secret=secret)
        told = [line for line in iter(lambda: listening.recv(4096).decode(), "READY=1") if "STATUS" not in line]
        (said,) = told
        assert said.splitlines()[0] == "RELOADING=1"
        assert said.splitlines()[1].startswith("MONOTONIC_USEC=")
