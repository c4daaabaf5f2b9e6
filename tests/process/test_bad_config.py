"""What an operator sees when the daemon can not start, and that its log can be rotated."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Daemon, eventually

MakeDaemon = Callable[..., Daemon]


def refusal(folder: Path, config: Path | None) -> str:
    """The one line on standard error with which twist ends."""
    twist = Path(sys.executable).with_name("twist")
    arguments = ["--config", str(config)] if config else []
    ended = subprocess.run(
        [twist, "hmac-file-server", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode != 0
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stderr.endswith("\n")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr.rstrip("\n")


def test_unknown_key(make_daemon: MakeDaemon) -> None:
    """A misspelt key ends the start with the file, the key and the nearest one that is known."""
    daemon = make_daemon(MaxRetrys=5)
    assert (
        refusal(daemon.folder, daemon.config) == f"{daemon.config}: MaxRetrys: unknown key; did you mean MaxRetries?"
    )


def test_no_configuration(tmp_path: Path) -> None:
    """Started in a folder without a configuration, it says which file it looked for."""
    assert refusal(tmp_path, None) == "./config.toml: No such file or directory; name the file with --config"


@pytest.mark.parametrize("key", ["ListenPort", "MetricsPort"])
def test_port_in_use(make_daemon: MakeDaemon, key: str) -> None:
    """A port that another program has ends the start with the key, the port and the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon = make_daemon(**{key: f"127.0.0.1:{port}"})
        line = refusal(daemon.folder, daemon.config)
    assert line.startswith(f"{daemon.config}: {key} = ")
    assert str(port) in line
    assert line.endswith("Address already in use; free it or choose another")


@pytest.mark.parametrize(
    "value", ["tcp:http", "tcp:8080:nonsense=1", "unix:/nowhere/at/all.sock", "ssl:8443:privateKey=/absent.pem"]
)
def test_endpoint_that_can_not_listen(make_daemon: MakeDaemon, value: str) -> None:
    """An endpoint that Twisted does not understand, or can not open, ends the start with the key and the value."""
    daemon = make_daemon(ListenPort=value, Secret="not the example's")
    assert refusal(daemon.folder, daemon.config).startswith(f'{daemon.config}: ListenPort = "{value}": ')


def test_store_below_a_file(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A StoreDir that can not be made ends the start with the reason."""
    (tmp_path / "file").touch()
    daemon = make_daemon(StoreDir=str(tmp_path / "file" / "store"))
    assert refusal(tmp_path, daemon.config) == (
        f'{daemon.config}: StoreDir = "{daemon.store}": Not a directory;'
        " it must be a folder that the daemon's user can write to"
    )


def test_log_in_an_absent_folder(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A LogFile that can not be opened ends the start with the reason."""
    path = tmp_path / "absent" / "log"
    daemon = make_daemon(LogFile=str(path))
    assert refusal(tmp_path, daemon.config) == (
        f'{daemon.config}: LogFile = "{path}": No such file or directory;'
        " name a file that can be written, or leave it empty"
    )


def test_log_is_rotated(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """After logrotate has renamed the log, the next request's line is in a new file, and the old one is left alone."""
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    daemon = make_daemon(LogFile=str(path)).start()
    daemon.get("slot/before")
    eventually(lambda: "/upload/slot/before" in path.read_text())
    path.rename(rotated)
    daemon.get("slot/after")
    eventually(lambda: path.exists() and "/upload/slot/after" in path.read_text())
    assert "/upload/slot/before" not in path.read_text()
    assert "/upload/slot/after" not in rotated.read_text()
