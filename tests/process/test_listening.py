"""Where the daemon listens: also after it was killed, beside another one, and whatever the system's defaults are."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.process.test_bad_config import refusal
from tests.process.test_stop import begin_upload
from tests.support import DEADLINE, Daemon, Wire, eventually, free_port, missing, need, put_target

MakeDaemon = Callable[..., Daemon]

WORKERS = pytest.mark.parametrize("workers", [1, 2])
TAKEN = os.EX_TEMPFAIL
CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def ask(path: Path, target: str = "/upload/none") -> bytes:
    """The status line of an answer that comes over a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return client.recv(1000).partition(b"\r\n")[0]


def is_refused(path: Path) -> bool:
    """Whether nobody listens any more."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == errno.ECONNREFUSED


def at_sockets(folder: Path, workers: int) -> dict[str, Any]:
    """Settings of a daemon at Unix sockets."""
    return {
        "ListenPort": f"unix:{folder}/http.sock:mode=660",
        "MetricsPort": f"unix:{folder}/metrics.sock",
        "Secret": "a secret of enough bytes",
        "Workers": workers,
    }


def stale(path: Path) -> None:
    """A socket that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()


@WORKERS
def test_process_1_of_a_container(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """A daemon that was killed as process 1 starts again as process 1, at the same Unix sockets."""
    if os.geteuid() != 0 or subprocess.call([*CONTAINER, "true"]):
        missing("there are no namespaces for processes")
    daemon = make_daemon(prefix=CONTAINER, **at_sockets(tmp_path, workers))
    for _ in range(3):
        daemon.start()
        assert b" 404 " in ask(tmp_path / "http.sock")
        eventually(lambda: b" 200 " in ask(tmp_path / "metrics.sock", "/healthz"))
        assert stat.S_IMODE((tmp_path / "http.sock").stat().st_mode) == 0o660
        daemon.stop(signal.SIGKILL)
        eventually(lambda: is_refused(tmp_path / "http.sock") and is_refused(tmp_path / "metrics.sock"))


@WORKERS
def test_a_number_that_is_another_process_now(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """A lock that names a process that lives, but is no daemon, does not matter; nor does one without a socket."""
    for name in ("http.sock", "metrics.sock"):
        stale(tmp_path / name)
        (tmp_path / f"{name}.lock").symlink_to(str(os.getpid()))
    daemon = make_daemon(**at_sockets(tmp_path, workers)).start()
    assert b" 404 " in ask(tmp_path / "http.sock")
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert not list(tmp_path.glob("*.sock*"))


@WORKERS
def test_a_folder_that_can_not_be_listed(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """A folder that the daemon may make files in, and not look into, can hold its sockets."""
    need("setpriv")
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o300)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    daemon = make_daemon(prefix=drop, **at_sockets(folder, workers)).start()
    assert b" 404 " in ask(folder / "http.sock")
    assert daemon.stop() in (0, -signal.SIGTERM)


@WORKERS
def test_beside_a_daemon_that_lives(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """A second daemon at the same Unix socket is refused in one line, and the first one serves on."""
    first = make_daemon(**at_sockets(tmp_path, workers)).start()
    second = make_daemon(tmp_path / "second", **at_sockets(tmp_path, workers))
    for held in (False, True):
        if held:
            # A daemon that does not answer is no dead one.
            os.kill(first.pid, signal.SIGSTOP)
        line = refusal(second.folder, second.config, TAKEN)
        assert "ListenPort" in line
        assert "Address already in use" in line
        os.kill(first.pid, signal.SIGCONT)
    assert b" 404 " in ask(tmp_path / "http.sock")
    third = make_daemon(second.folder, MetricsPort=f"unix:{tmp_path}/metrics.sock")
    line = refusal(third.folder, third.config, TAKEN)
    assert "MetricsPort" in line
    assert b" 200 " in ask(tmp_path / "metrics.sock", "/healthz")
    first.stop()


@WORKERS
def test_beside_a_daemon_at_the_same_port(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """A second daemon at the same port is refused, also where several workers share one."""
    first = make_daemon(Workers=workers).start()
    second = make_daemon(tmp_path / "second", Workers=2, ListenPort=f"127.0.0.1:{first.port}")
    assert "Address already in use" in refusal(second.folder, second.config, TAKEN)
    assert first.get("none").status == 404


def test_several_start_at_once(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Of several daemons that find the socket of a killed one, one listens there, and the others are refused."""
    stale(tmp_path / "http.sock")
    settings = at_sockets(tmp_path, 1) | {"MetricsEnabled": False}
    daemons = [make_daemon(tmp_path / str(number), **settings).launch() for number in range(4)]
    running = [daemon.process for daemon in daemons if daemon.process is not None]
    eventually(lambda: sum(process.poll() is None for process in running) == 1, what="one is left")
    assert b" 404 " in ask(tmp_path / "http.sock")


def test_something_else(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A file that is no socket is left alone."""
    path = tmp_path / "http.sock"
    path.write_text("precious")
    daemon = make_daemon(**at_sockets(tmp_path, 1))
    assert "no socket" in refusal(daemon.folder, daemon.config, TAKEN)
    assert path.read_text() == "precious"


@WORKERS
@pytest.mark.parametrize("there", ["nothing", "another"])
def test_a_socket_that_was_removed(make_daemon: MakeDaemon, tmp_path: Path, there: str, workers: int) -> None:
    """A socket whose file was removed, or replaced by another program's, does not keep the daemon from ending."""
    daemon = make_daemon(**at_sockets(tmp_path, workers)).start()
    (tmp_path / "http.sock").unlink()
    if there == "another":
        stale(tmp_path / "http.sock")
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in daemon.log
    assert (tmp_path / "http.sock").exists() == (there == "another")


def test_clients_that_come_while_workers_finish(make_daemon: MakeDaemon) -> None:
    """Once several workers are told to stop, new clients are refused, and do not wait in vain."""
    daemon = make_daemon(Workers=2, ShutdownTimeout=DEADLINE * 10).start()
    with begin_upload(daemon, "slot/a.bin", b"hello") as wire:
        os.kill(daemon.pid, signal.SIGTERM)

        def refused() -> bool:
            try:
                daemon.wire().close()
            except ConnectionError:
                return True
            return False

        eventually(refused)
        assert wire.send(b"o").answer().status == 201
    assert daemon.stop(signal.SIGCONT) in (0, -signal.SIGTERM)


class Network:
    """A daemon in a network of its own.

    :param setup: a shell command that runs there first.
    """

    def __init__(self, make_daemon: MakeDaemon, setup: str, **settings: Any) -> None:
        need("ip", "nsenter", "curl")
        enter = ["unshare", "--net", "sh", "-c", f'ip link set lo up && {setup} && exec "$@"', "sh"]
        if os.geteuid() != 0 or subprocess.call([*enter, "true"]):
            missing("there are no namespaces for networks")
        self.daemon = make_daemon(prefix=enter, Secret="a secret of enough bytes", **settings).launch()
        self._settings = settings

    def status(self, url: str) -> str:
        """What curl is answered there; 000 if it can not connect."""
        assert self.daemon.process is not None
        assert self.daemon.process.poll() is None, self.daemon.log
        curl = ["curl", "-s", "-g", "--noproxy", "*", "-o", os.devnull, "-w", "%{http_code}", url]
        enter = ["nsenter", "--target", str(self.daemon.pid), "--net"]
        return subprocess.run([*enter, *curl], capture_output=True, text=True, check=False).stdout

    def serves(self, url: str, status: str = "404") -> None:
        eventually(lambda: self.status(url) == status, what=url)


@WORKERS
def test_every_address(make_daemon: MakeDaemon, workers: int) -> None:
    """A port alone takes IPv6 and IPv4 also where the system's default for IPv6 sockets is IPv6 only."""
    setup = "echo 1 >/proc/sys/net/ipv6/bindv6only"
    network = Network(make_daemon, setup, ListenPort=":8080", MetricsPort=":9191", Workers=workers)
    for host in ("127.0.0.1", "[::1]"):
        network.serves(f"http://{host}:8080/upload/none")
        network.serves(f"http://{host}:9191/healthz", "200")
    network.daemon.stop()


@WORKERS
@pytest.mark.parametrize("family", ["all", "default"])
def test_without_ipv6(make_daemon: MakeDaemon, workers: int, family: str) -> None:
    """Where IPv6 is off a port alone takes IPv4."""
    setup = f"echo 1 >/proc/sys/net/ipv6/conf/{family}/disable_ipv6"
    network = Network(make_daemon, setup, ListenPort=":8080", MetricsPort=":9191", Workers=workers)
    network.serves("http://127.0.0.1:8080/upload/none")
    network.serves("http://127.0.0.1:9191/healthz", "200")
    network.daemon.stop()


@WORKERS
@pytest.mark.parametrize("interface", ["lo", "br-lan.7"])
def test_a_link_local_address(make_daemon: MakeDaemon, workers: int, interface: str) -> None:
    """An address that holds on one interface only can be listened at."""
    setup = "true" if interface == "lo" else f"ip link add {interface} type bridge && ip link set {interface} up"
    setup += f" && ip address add fe80::7/64 dev {interface} nodad"
    listen = {"ListenPort": f"[fe80::7%{interface}]:8080", "MetricsPort": f"[fe80::7%{interface}]:9191"}
    network = Network(make_daemon, setup, Workers=workers, **listen)
    network.serves(f"http://[fe80::7%25{interface}]:8080/upload/none")
    network.serves(f"http://[fe80::7%25{interface}]:9191/healthz", "200")
    assert "Traceback" not in network.daemon.log
    network.daemon.stop()


V1 = b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 80\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\x00\x02\x07\x7f\0\0\x01\x9c\x40\0\x50"


@WORKERS
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_proxy_protocol(make_daemon: MakeDaemon, tmp_path: Path, kind: str, workers: int) -> None:
    """At a haproxy: endpoint clients are known by what the proxy says of them, however many workers there are."""
    port, path = free_port(), tmp_path / "http.sock"
    listen = f"haproxy:tcp:{port}:interface=127.0.0.1" if kind == "tcp" else f"haproxy:unix:{path}:mode=600"
    daemon = make_daemon(ListenPort=listen, Workers=workers, MetricsEnabled=False).launch()

    def connect() -> Wire:
        if kind == "tcp":
            return Wire(port)
        wire = Wire.__new__(Wire)
        wire.socket, wire._buffer = socket.socket(socket.AF_UNIX), bytearray()
        wire.socket.settimeout(DEADLINE)
        wire.socket.connect(str(path))
        return wire

    def listens() -> bool:
        try:
            connect().close()
        except OSError:
            return False
        return True

    eventually(listens)
    body = os.urandom(3_000_000)
    for number in range(6):
        with connect() as wire:
            target = put_target(f"slot{number}/a.bin", len(body))
            head = f"PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            wire.send((V1 if number % 2 else V2) + head.encode())
            threading.Thread(target=wire.send, args=(body,)).start()
            assert wire.answer().status == 201
            wire.send(f"GET /upload/slot{number}/a.bin HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert wire.answer().body == body
    eventually(lambda: len(re.findall("192.0.2.7 PUT /upload/slot", daemon.log)) == 6, what=daemon.log)
    daemon.stop()
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("listen", ["ssl:8443:privateKey=k.pem", "haproxy:ssl:8443:privateKey=k.pem"])
def test_what_workers_can_not_share(make_daemon: MakeDaemon, listen: str) -> None:
    """Endpoints that several workers can not accept from are refused in one line that names the remedy."""
    daemon = make_daemon(ListenPort=listen, Secret="a secret of enough bytes", Workers=2)
    assert "set Workers = 1" in refusal(daemon.folder, daemon.config)
