from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.test_stop import begin_upload
from tests.support import Daemon, eventually, free_port, need, v

UNIT = Path(__file__).parents[2] / "contrib/systemd/hmac-file-server.service"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd would listen for notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        yield listener


def test_readiness_watchdog_and_stopping(make_daemon: Callable[..., Daemon], manager: socket.socket) -> None:
    """systemd hears that the daemon is ready when it listens, that it is alive, and that it stops."""
    address = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "100000"}
    daemon = make_daemon(environment=address).launch()
    assert manager.recv(4096) == b"READY=1"
    assert daemon.put("slot/a.bin", b"hello").status == 201
    told = [manager.recv(4096) for _ in range(3)]
    assert all(re.match(rb"STATUS=\d+ uploads running.*\nWATCHDOG=1\Z", line) for line in told[1:])
    assert daemon.stop() == -signal.SIGTERM
    eventually(lambda: manager.recv(4096).startswith(b"STOPPING=1"))


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_while_uploads_finish(
    make_daemon: Callable[..., Daemon], manager: socket.socket, workers: int
) -> None:
    """systemd hears at once that the daemon stops, and not only when the last upload has finished."""
    daemon = make_daemon(environment={"NOTIFY_SOCKET": manager.getsockname()}, Workers=workers, ShutdownTimeout=600)
    with begin_upload(daemon.start(), "slot/a.bin", b"hello") as wire:
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: manager.recv(4096).startswith(b"STOPPING=1"))
        assert wire.send(b"o").answer().status == 201
    assert daemon.stop(signal.SIGCONT) == -signal.SIGTERM


def test_no_readiness_for_a_failed_start(make_daemon: Callable[..., Daemon], manager: socket.socket) -> None:
    """A daemon that can not listen never says that it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = make_daemon(environment={"NOTIFY_SOCKET": manager.getsockname()}, ListenPort=listen).launch()
        assert daemon.process is not None
        assert daemon.process.wait(20) != 0
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_socket_activation(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """With a socket that systemd passes on, an upload to it is stored."""
    need("systemd-socket-activate")
    port = free_port()
    twist = Path(sys.executable).with_name("twist")
    daemon = make_daemon(ListenPort="systemd:domain=INET:index=0", Secret="other")
    command = [
        "systemd-socket-activate",
        "--fdname=http",
        "-l",
        f"127.0.0.1:{port}",
        str(twist),
        "hmac-file-server",
        "-c",
        str(daemon.config),
    ]
    with (tmp_path / "log").open("wb") as log:
        daemon.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    daemon.port = port
    eventually(lambda: "Listening on" in daemon.log)
    assert daemon.request("PUT", f"/upload/a?v={v('a', 5, 'other')}", b"hello").status == 201
    assert daemon.get("a").body == b"hello"
    assert daemon.stop() == -signal.SIGTERM


def test_the_unit_is_valid_and_tight(tmp_path: Path) -> None:
    """The unit file that is shipped loads without a complaint and leaves the daemon little to do harm with."""
    need("systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/hmac-file-server/bin/twist", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    # Tried again for as long as it takes, but not with a configuration that is refused: see test_bad_config.
    for line in ("Restart=on-failure", "RestartPreventExitStatus=78", "StartLimitIntervalSec=0"):
        assert line in UNIT.read_text().splitlines()
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    assert subprocess.run(security, capture_output=True, check=False).returncode == 0
