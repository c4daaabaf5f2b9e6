"""The hmac-file-server command beside a real daemon."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmac_file_server.slots.issue import PROTOCOLS
from tests.support import Daemon, eventually, missing

MakeDaemon = Callable[..., Daemon]

MAIN = "from hmac_file_server.command.main import main; main()"
COMMAND = [sys.executable, "-c", MAIN]


def command(*arguments: str | Path, **named: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120, **named
    )


@pytest.mark.parametrize("how", [["--config"], ["run", "--config"], ["-c"]])
def test_it_runs_the_daemon(make_daemon: MakeDaemon, how: list[str]) -> None:
    """Without a subcommand, as hmac-file-server of the Go peers did, and with ``run``; SIGTERM ends it well."""
    daemon = make_daemon()
    with daemon.log_path.open("ab") as log:
        daemon.process = subprocess.Popen([*COMMAND, *how, str(daemon.config)], stdout=log, stderr=log)
    eventually(daemon._is_up, what="the daemon listens")
    assert daemon.put("slot/a.txt", b"hello").status == 201
    assert daemon.stop() == -signal.SIGTERM


def test_ctrl_c_ends_it(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    with daemon.log_path.open("ab") as log:
        daemon.process = subprocess.Popen([*COMMAND, "run", "-c", str(daemon.config)], stdout=log, stderr=log)
    eventually(daemon._is_up, what="the daemon listens")
    assert daemon.stop(signal.SIGINT) == -signal.SIGINT
    assert "Traceback" not in daemon.log


def test_a_config_that_is_none(tmp_path: Path) -> None:
    """One line says what is wrong, and the status that it is the configuration."""
    ended = command("run", cwd=tmp_path)
    assert ended.returncode == os.EX_CONFIG
    assert ended.stderr == "./config.toml: No such file or directory; name the file with --config\n"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("is_here", [False, True])
def test_the_line_for_curl_works(make_daemon: MakeDaemon, tmp_path: Path, protocol: str, is_here: bool) -> None:
    """As printed, in a shell: it uploads the file that is here, else zeros."""
    if shutil.which("curl") is None:
        missing("curl")
    daemon = make_daemon().start()
    name, body = "my $HOME 'photo'.jpg", os.urandom(1000) if is_here else bytes(1000)
    if is_here:
        (tmp_path / name).write_bytes(body)
    signed = command(
        "sign", f"abc/{name}", "--size", "1000", "--protocol", protocol, "-c", daemon.config, cwd=tmp_path
    )
    line = signed.stdout.splitlines()[-1]
    subprocess.run(line, shell=True, check=True, cwd=tmp_path, capture_output=True)
    answer = daemon.get(f"abc/{name}")
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["content-type"] == "image/jpeg"


def test_the_line_for_curl_on_a_socket(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        missing("curl")
    daemon = make_daemon(ListenPort=f"unix:{tmp_path}/upload.sock").start()
    signed = command("sign", "abc/x.txt", "--size", "7", "-c", daemon.config)
    subprocess.run(signed.stdout.splitlines()[-1], shell=True, check=True, capture_output=True)
    assert (daemon.store / "abc/x.txt").read_bytes() == bytes(7)
