"""What an operator sees when the daemon can not start, and that its log can be rotated."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from twisted.internet.error import CannotListenError

from hmac_file_server.config import load
from hmac_file_server.daemon.listener import cannot_listen
from tests.support import DEADLINE, Daemon, eventually, free_port, need

MakeDaemon = Callable[..., Daemon]

OWN = "correct-horse-battery-staple"
PASSES = os.EX_TEMPFAIL
"""What a start ends with that may succeed later."""


def refusal(folder: Path, config: Path | None, status: int = os.EX_CONFIG, prefix: Sequence[str] = ()) -> str:
    """The one line on standard error with which twist ends.

    :param status: of its end: by it systemd knows whether to try again.
    :param prefix: a command line to run it under.
    """
    twist = Path(sys.executable).with_name("twist")
    arguments = ["--config", str(config)] if config else []
    command = [*prefix, str(twist), "hmac-file-server", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ended.returncode == status, ended.stderr
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


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("key", ["ListenPort", "MetricsPort"])
def test_port_in_use(make_daemon: MakeDaemon, key: str, workers: int) -> None:
    """A port that another program has ends the start with the key, the port, who has it, and the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon = make_daemon(**{key: f"127.0.0.1:{port}"}, Workers=workers)
        line = refusal(daemon.folder, daemon.config, PASSES)
    assert line.startswith(f'{daemon.config}: {key} = "127.0.0.1:{port}": ')
    assert f"(process {os.getpid()}) has it: " in line
    assert line.endswith("Address already in use; free it or choose another")


def test_one_port_for_both(make_daemon: MakeDaemon) -> None:
    """A port that is given to the daemon's two sites is not looked for in other programs."""
    port = free_port()
    daemon = make_daemon(ListenPort=f"127.0.0.1:{port}", MetricsPort=port)
    assert "this daemon has it: " in refusal(daemon.folder, daemon.config, PASSES)


def test_prometheus_has_its_port(make_daemon: MakeDaemon) -> None:
    """The line for 9090 says that Prometheus listens there, too, and what to write."""
    config = load(str(make_daemon().config))
    taken = CannotListenError("127.0.0.1", 9090, OSError(errno.EADDRINUSE, "Address already in use"))
    line = str(cannot_listen(config, "MetricsPort", config.metrics_listen, taken))
    assert '9090 is Prometheus\'s own port: write MetricsPort = "127.0.0.1:9091"' in line


@pytest.mark.parametrize("workers", [1, 2])
def test_port_of_root(make_daemon: MakeDaemon, workers: int) -> None:
    """A port below 1024 without the right to it is told from one that is taken."""
    need("setpriv")
    daemon = make_daemon(ListenPort=":443", Secret=OWN, Workers=workers)
    drop = ["setpriv", "--bounding-set=-net_bind_service"] if os.geteuid() == 0 else []
    line = refusal(daemon.folder, daemon.config, PASSES, drop)
    assert line.startswith(f'{daemon.config}: ListenPort = ":443": Permission denied; ')
    assert "let a proxy listen there, or systemd" in line
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root")
@pytest.mark.parametrize("workers", [1, 2])
def test_no_ipv6(make_daemon: MakeDaemon, workers: int) -> None:
    """On a machine without IPv6 the default address is told from one that is taken."""
    need("unshare")
    port = free_port()
    daemon = make_daemon(ListenPort=f"[::1]:{port}", Workers=workers, MetricsEnabled=False)
    # Its loopback interface is down and has no address.
    line = refusal(daemon.folder, daemon.config, PASSES, ["unshare", "--net"])
    assert "Cannot assign requested address; IPv6 is off here" in line
    assert f'"127.0.0.1:{port}" needs no IPv6' in line


def test_no_ipv6_in_the_kernel(make_daemon: MakeDaemon) -> None:
    """Neither is a kernel without IPv6, or a unit that may not use it, sent to free an address."""
    config = load(str(make_daemon(ListenPort="[::1]:8080").config))
    missing = OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
    line = str(cannot_listen(config, "ListenPort", config.listen, missing))
    assert "IPv6 is off here" in line
    assert '"127.0.0.1:8080"' in line


def test_address_of_another_machine(make_daemon: MakeDaemon) -> None:
    """An address that no interface has, or not yet, says how to find those that are there."""
    daemon = make_daemon(ListenPort="192.0.2.1:8080", Secret=OWN)
    assert "this machine has no such address (ip address lists them)" in refusal(daemon.folder, daemon.config, PASSES)


def test_socket_in_an_absent_folder(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A Unix socket without its folder says what must be there."""
    daemon = make_daemon(ListenPort=f"unix:{tmp_path}/absent/http", Secret=OWN)
    line = refusal(daemon.folder, daemon.config, PASSES)
    assert "No such file or directory; the socket's folder must be there" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_absent_certificate(make_daemon: MakeDaemon, workers: int) -> None:
    """A certificate that is not there is named, and who must be able to read it."""
    daemon = make_daemon(ListenPort="ssl:8443:privateKey=/absent.pem", Secret=OWN, Workers=workers)
    if workers == 1:
        line = refusal(daemon.folder, daemon.config, PASSES)
        assert "No such file or directory: /absent.pem; it must be a file that the user " in line
    else:
        assert "let a proxy speak TLS" in refusal(daemon.folder, daemon.config)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave its rights")
@pytest.mark.parametrize("which", ["config.toml", "secret"])
def test_unreadable_file(make_daemon: MakeDaemon, tmp_path: Path, which: str) -> None:
    """A file that the daemon's user may not read says which user that is."""
    need("setpriv")
    (tmp_path / "secret").write_text(OWN)
    daemon = make_daemon(SecretFile=str(tmp_path / "secret"))
    (tmp_path / which).chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    line = refusal(daemon.folder, daemon.config, os.EX_CONFIG if which == "config.toml" else PASSES, drop)
    assert "Permission denied; " in line
    assert line.endswith("the user root (0) must be able to read it")


def test_absent_secret(make_daemon: MakeDaemon) -> None:
    """A credential that systemd should have put there is asked for in the unit."""
    daemon = make_daemon(SecretFile="/run/credentials/hmac-file-server.service/secret")
    line = refusal(daemon.folder, daemon.config, PASSES)
    assert "No such file or directory; it must hold the secret; systemd puts it there: LoadCredential=secret:" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_store_that_comes_later(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """A StoreDir that can not be made yet ends the start so that it is tried again, and then it works."""
    (tmp_path / "mnt").touch()
    daemon = make_daemon(StoreDir=str(tmp_path / "mnt" / "store"), Workers=workers)
    refusal(tmp_path, daemon.config, PASSES)
    (tmp_path / "mnt").unlink()
    (tmp_path / "mnt").mkdir()
    assert daemon.start().put("slot/a.txt", b"hello").status == 201


def test_nothing_temporary(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Several workers need no folder for temporary files, which a housekeeper might empty under them."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with_folder = ["env", f"TMPDIR={temporary}"]
    daemon = make_daemon(Workers=2, prefix=with_folder).start()
    assert daemon.put("slot/a.txt", b"hello").status == 201
    eventually(lambda: daemon.metric("hmac_file_server_uploads_total") == 1)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("key", ["ListenPort", "MetricsPort"])
def test_an_interface_that_is_not_there(make_daemon: MakeDaemon, key: str, workers: int) -> None:
    """A mistyped interface is said not to be there."""
    for address in ("[fe80::1%eht0]:8080", "tcp6:8080:interface=fe80\\:\\:1%eht0"):
        daemon = make_daemon(**{key: address, "Secret": OWN}, Workers=workers)
        line = refusal(daemon.folder, daemon.config, PASSES)
        assert line.startswith(f"{daemon.config}: {key} = ")
        assert line.endswith(": there is no interface eht0 (ip link lists them)")


def test_store_that_is_not_there(make_daemon: MakeDaemon) -> None:
    """A StoreDir that is made is told of, once: its disk may not be mounted."""
    daemon = make_daemon().start()
    eventually(lambda: f"warn  StoreDir {daemon.store} is not there and is made" in daemon.log)
    assert daemon.stop() == -signal.SIGTERM
    daemon.log_path.unlink()
    daemon.start()
    eventually(lambda: "listens on" in daemon.log)
    assert "is made" not in daemon.log


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("lines", ["Secret = x", 'Secret = "change-me"', "MaxRetries = -1", "[nonsense]"])
def test_what_the_file_says(make_daemon: MakeDaemon, lines: str, workers: int) -> None:
    """What does not get better by itself ends the start so that it is not tried again."""
    daemon = make_daemon(Workers=workers)
    kept = [line for line in daemon.config.read_text().splitlines() if not line.startswith(lines.split(maxsplit=1)[0])]
    daemon.config.write_text("\n".join([*kept, lines, ""]))
    refusal(daemon.folder, daemon.config)


@pytest.mark.parametrize(
    "value", ["tcp:http", "tcp:8080:nonsense=1", "unix:/nowhere/at/all.sock", "ssl:8443:privateKey=/absent.pem"]
)
def test_endpoint_that_can_not_listen(make_daemon: MakeDaemon, value: str) -> None:
    """An endpoint that Twisted does not understand, or can not open, ends the start with the key and the value."""
    daemon = make_daemon(ListenPort=value, Secret=OWN)
    status = PASSES if "/" in value else os.EX_CONFIG
    assert refusal(daemon.folder, daemon.config, status).startswith(f'{daemon.config}: ListenPort = "{value}": ')


def test_store_below_a_file(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A StoreDir that can not be made ends the start with the reason."""
    (tmp_path / "file").touch()
    daemon = make_daemon(StoreDir=str(tmp_path / "file" / "store"))
    assert refusal(tmp_path, daemon.config, PASSES) == (
        f'{daemon.config}: StoreDir = "{daemon.store}": Not a directory;'
        " it must be a folder that the daemon's user can write to"
    )


def test_log_in_an_absent_folder(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A LogFile that can not be opened ends the start with the reason."""
    path = tmp_path / "absent" / "log"
    daemon = make_daemon(LogFile=str(path))
    assert refusal(tmp_path, daemon.config, PASSES) == (
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
