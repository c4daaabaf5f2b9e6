"""Several workers on one address: served by all, counted together, watched, and stopped as one."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hmac_file_server.processors import processors
from tests.support import Answer, Daemon, Wire, eventually, free_port, need, put_head, put_target

MakeDaemon = Callable[..., Daemon]

UPLOADS = "hmac_file_server_uploads_total"


def workers(daemon: Daemon) -> list[int]:
    """The pids of the workers."""
    return [int(pid) for pid in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()]


def started(daemon: Daemon, count: int) -> Daemon:
    """Wait until so many workers accept clients."""
    eventually(lambda: daemon.log.count("Starting reactor") >= count + 1, what="all workers run")
    return daemon


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal."""
    found = re.search(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    return started(make_daemon(Workers=2).start(), 2)


def test_all_work_and_are_counted_together(daemon: Daemon) -> None:
    """Clients are shared out between the workers; what each counts adds up in one /metrics."""
    for number in range(40):
        assert daemon.put(f"slot{number}/a.bin", b"hello").status == 201
    for number in range(40):
        assert daemon.get(f"slot{number}/a.bin").body == b"hello"
    eventually(lambda: daemon.metric(UPLOADS) == 40)
    eventually(lambda: daemon.metric("hmac_file_server_downloads_total") == 40)
    busy = [Path(f"/proc/{pid}/io").read_text() for pid in workers(daemon)]
    assert all(int(text.partition("syscw: ")[2].split()[0]) > 20 for text in busy)
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > 0)
    eventually(lambda: daemon.metric("hmac_file_server_ready") == 1)


def test_one_slot_from_all_sides(daemon: Daemon) -> None:
    """Many clients that put the same slot at once store one file; with other bytes all but the first are refused."""
    bodies = [bytes([number % 2]) * 200_000 for number in range(24)]
    answers: list[tuple[bytes, Answer]] = []

    def put(body: bytes) -> None:
        answers.append((body, daemon.put("slot/a.bin", body)))

    threads = [threading.Thread(target=put, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = (daemon.store / "slot/a.bin").read_bytes()
    assert {answer.status for body, answer in answers if body == stored} == {201}
    assert {answer.status for body, answer in answers if body != stored} == {409}
    assert daemon.files() == {"slot/a.bin"}


def test_a_worker_that_dies(daemon: Daemon) -> None:
    """A worker that dies is started again, and what it counted is not forgotten; the others serve meanwhile."""
    for number in range(10):
        assert daemon.put(f"slot{number}/a.bin", b"hello").status == 201
    eventually(lambda: daemon.metric(UPLOADS) == 10)
    first = workers(daemon)[0]
    os.kill(first, signal.SIGKILL)
    for number in range(10):
        assert daemon.get(f"slot{number}/a.bin").body == b"hello"
    eventually(lambda: len(workers(daemon)) == 2 and first not in workers(daemon), what="another one runs")
    assert re.search(r"worker \d has ended", daemon.log)
    assert daemon.metric(UPLOADS) == 10
    assert daemon.metric("hmac_file_server_worker_restarts_total") == 1


def test_what_workers_take(daemon: Daemon) -> None:
    """Memory and processor time of each are told, as the kernel has them; none was started again."""
    for number, pid in enumerate(workers(daemon), 1):
        label = f'{{worker="{number}"}}'
        memory = daemon.metric("hmac_file_server_worker_resident_memory_bytes", label)
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert memory == pytest.approx(rss, rel=0.2)
        assert daemon.metric("hmac_file_server_worker_cpu_seconds_total", label) > 0
    assert "\nhmac_file_server_worker_restarts_total 0.0\n" in figures(daemon)


def test_a_worker_that_can_not_be_started_for_a_while(daemon: Daemon) -> None:
    """While the system refuses a new process the parent says so, and tries again until it has one."""
    no_pipe(daemon)
    for pid in workers(daemon):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: daemon.log.count("can not be started") >= 2, what="the parent complains")
    assert daemon.ready() == (503, "no worker runs\n")
    assert "\nhmac_file_server_ready 0.0\n" in figures(daemon)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    eventually(lambda: len(workers(daemon)) == 2, what="both workers run again")
    assert daemon.put("slot/a.bin", b"hello").status == 201
    eventually(lambda: daemon.ready()[0] == 200)
    assert daemon.stop() in (0, -signal.SIGTERM)


def test_stop_while_no_worker_can_be_started(daemon: Daemon) -> None:
    """SIGTERM ends a parent whose workers could not be started again."""
    no_pipe(daemon)
    for pid in workers(daemon):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: daemon.log.count("can not be started") >= 2, what="the parent complains")
    assert daemon.stop() in (0, -signal.SIGTERM)


def test_a_new_worker_has_its_parents_settings(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Whatever has become of the configuration's files meanwhile, a worker that is started again is as the others."""
    secret = tmp_path / "secret"
    secret.write_text("a secret \u00fc\n")
    daemon = started(make_daemon(Workers=2, SecretFile=str(secret)).start(), 2)
    daemon.config.write_text("this is no configuration")
    secret.write_text("another")
    for pid in workers(daemon):
        os.kill(pid, signal.SIGKILL)
    target = put_target("slot/a.bin", 5, secret="a secret \u00fc")
    assert daemon.request("PUT", target, b"hello").status == 201
    eventually(lambda: len(workers(daemon)) == 2)


def no_pipe(daemon: Daemon) -> None:
    """Leave the parent, once its workers are gone, one free descriptor: enough to be asked, but not for a process."""
    folder = f"/proc/{daemon.pid}/fd"
    files = {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    # One end of the socket pair of each worker; it has no other Unix sockets.
    unix = {f"socket:[{line.split()[6]}]" for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    taken = {number for number, file in files.items() if file not in unix}
    assert len(files) == len(taken) + 2
    _, second = [number for number in range(len(files)) if number not in taken][:2]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (second, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def figures(daemon: Daemon) -> str:
    """What /metrics answers."""
    with Wire(daemon.metrics_port) as wire:
        answer = wire.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").answer()
        assert answer.status == 200
        return answer.body.decode()


def test_figures_while_uploads_finish(daemon: Daemon) -> None:
    """Until the last upload has finished, the figures say what is still going on."""
    with daemon.wire() as wire:
        wire.send(put_head("slot/a.bin", 10))
        eventually(lambda: daemon.running() == 1)
        eventually(lambda: daemon.metric("hmac_file_server_ready") == 1)
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: len(workers(daemon)) == 1, what="the other worker ends")
        eventually(lambda: "\nhmac_file_server_ready 0.0\n" in figures(daemon))
        assert daemon.running() == 1
        assert wire.send(b"0123456789").answer().status == 201
    assert daemon.stop(signal.SIGCONT) in (0, -signal.SIGTERM)


def test_a_worker_that_hangs(daemon: Daemon) -> None:
    """A worker that does not answer is told of at once, and another takes its place."""
    for number in range(10):
        assert daemon.put(f"slot{number}/a.bin", b"hello").status == 201
    eventually(lambda: daemon.metric(UPLOADS) == 10)
    first = workers(daemon)[0]
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: re.fullmatch(r"worker \d does not answer\n", daemon.ready()[1]), what="/readyz tells")
    eventually(lambda: len(workers(daemon)) == 2 and first not in workers(daemon), what="another one runs")
    assert re.search(r"worker \d has not answered for 15 s", daemon.log)
    eventually(lambda: daemon.ready() == (200, "ready\n"))
    assert daemon.metric(UPLOADS) == 10
    for number in range(10):
        assert daemon.get(f"slot{number}/a.bin").body == b"hello"


def test_a_worker_that_hangs_at_the_end(make_daemon: MakeDaemon) -> None:
    """SIGTERM ends a daemon with a worker that does not answer."""
    daemon = started(make_daemon(Workers=2, ShutdownTimeout=1).start(), 2)
    os.kill(workers(daemon)[0], signal.SIGSTOP)
    assert daemon.stop() in (0, -signal.SIGTERM)


@pytest.mark.parametrize(("key", "status"), [("MaxConnections", 503), ("MaxConnectionsPerAddress", 429)])
def test_a_limit_for_all_together(make_daemon: MakeDaemon, key: str, status: int) -> None:
    """However the clients are shared out, all workers together serve no more than the configuration says."""
    daemon = started(make_daemon(Workers=2, TrustedProxies=[], **{key: 10}).start(), 2)

    def asked() -> set[int]:
        """What each worker, most probably, answers to one more."""
        return {daemon.request("GET", "/upload/none").status for _ in range(8)}

    eventually(lambda: asked() == {404})
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(daemon.wire().send(b"GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n")).answer()
        eventually(lambda: asked() == {status}, what="both refuse")
    eventually(lambda: asked() == {404}, what="both serve again")


def test_stop_lets_uploads_finish(daemon: Daemon) -> None:
    """On SIGTERM uploads that run on any worker finish, and then nothing is left of the daemon."""
    pids = workers(daemon)
    wires = [daemon.wire() for _ in range(8)]
    for number, wire in enumerate(wires):
        head = f"PUT {put_target(f'slot{number}/a.bin', 10)} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
        wire.send(head.encode() + b"hello")
    eventually(lambda: daemon.running() == 8)
    os.kill(daemon.pid, signal.SIGTERM)
    eventually(lambda: "shutting down" in daemon.log)
    for wire in wires:
        wire.send(b"world")
    assert [wire.answer().status for wire in wires] == [201] * 8
    assert daemon.stop(signal.SIGCONT) in (0, -signal.SIGTERM)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert len(daemon.files()) == 8
    assert "Traceback" not in daemon.log


def test_parent_is_killed(daemon: Daemon) -> None:
    """Workers without a parent end."""
    pids = workers(daemon)
    daemon.stop(signal.SIGKILL)
    eventually(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


def test_terminal_interrupt(daemon: Daemon) -> None:
    """Ctrl-C, which reaches all processes, ends the daemon in order and without a traceback."""
    daemon.metric(UPLOADS)  # The parent's reactor turns.
    eventually(lambda: all(ignores(pid, signal.SIGINT) for pid in workers(daemon)))
    for pid in [*workers(daemon), daemon.pid]:
        os.kill(pid, signal.SIGINT)
    assert daemon.stop(signal.SIGCONT) in (0, -signal.SIGINT)
    assert "Traceback" not in daemon.log


def test_unix_socket(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Workers share a Unix socket, which keeps its mode while they come and go, and goes with the daemon."""
    path = tmp_path / "http.sock"
    settings = {"ListenPort": f"unix:{path}:mode=640", "Secret": "other", "Workers": 2}
    daemon = started(make_daemon(**settings).start(), 2)
    for _ in range(8):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 404 " in client.recv(1000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    daemon.stop()
    assert not path.exists()


def test_socket_activation(make_daemon: MakeDaemon) -> None:
    """Workers share a socket that systemd listens on."""
    need("systemd-socket-activate")
    port = free_port()
    daemon = make_daemon(
        prefix=["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=http"],
        ListenPort="systemd:domain=INET:name=http",
        Secret="other",
        Workers=2,
        MetricsEnabled=False,
    ).launch()
    eventually(lambda: "Listening on" in daemon.log)
    for _ in range(8):
        with Wire(port) as wire:
            assert wire.send(b"GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
    assert len(workers(daemon)) == 2
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_one_for_each_processor(make_daemon: MakeDaemon) -> None:
    """Workers = 0 starts as many as there are processors for them."""
    daemon = make_daemon(Workers=0).start()
    count = processors()
    eventually(lambda: len(workers(daemon)) == (count if count > 1 else 0))


def test_a_share_of_one_processor(make_daemon: MakeDaemon) -> None:
    """In a control group that grants the time of one processor Workers = 0 starts no more than one."""
    group = Path("/sys/fs/cgroup/cpu") / f"hmac-file-server-{os.getpid()}"
    quota = group / "cpu.cfs_quota_us"
    if not quota.parent.parent.joinpath(quota.name).exists():
        group = Path("/sys/fs/cgroup") / group.name
        quota = group / "cpu.max"
    try:
        group.mkdir()
        quota.write_text("100000")
    except OSError as error:
        pytest.skip(f"there are no control groups here: {error}")
    try:
        enter = ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"]
        daemon = make_daemon(Workers=0, prefix=enter).start()
        assert "workers" not in daemon.log
        assert not workers(daemon)
        daemon.stop()
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_tls_is_a_proxys_business(tmp_path: Path) -> None:
    """Several workers on a TLS endpoint are refused in one line."""
    config = tmp_path / "config.toml"
    config.write_text('Secret = "other"\nStoreDir = "store"\nListenPort = "ssl:8443:privateKey=k.pem"\nWorkers = 2\n')
    twist = Path(sys.executable).with_name("twist")
    command = [str(twist), "hmac-file-server", "--config", str(config)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert ended.stderr.count("\n") == 1
    assert "Workers = 1" in ended.stderr


def test_resumed_on_another_worker(daemon: Daemon) -> None:
    """An upload goes on wherever its next request arrives."""
    body = os.urandom(40_000)
    options = {"Upload_Draft_Interop_Version": "8", "Content_Length": "0", "Upload_Length": str(len(body))}
    created = daemon.request("PUT", put_target("slot/a.bin", len(body)), Upload_Complete="?0", **options)
    where, step = created.headers["location"], 2000
    for offset in range(0, len(body), step):
        assert daemon.request("HEAD", where).headers["upload-offset"] == str(offset)
        answer = daemon.request(
            "PATCH",
            where,
            body[offset : offset + step],
            Content_Type="application/partial-upload",
            Upload_Offset=str(offset),
            Upload_Complete="?1" if offset + step == len(body) else "?0",
        )
        assert answer.status in (201, 204)
    assert daemon.get("slot/a.bin").body == body
