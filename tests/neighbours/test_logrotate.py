"""The daemon's log under the real logrotate, as contrib/logrotate sets it up and as others do."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.neighbours.program import NOBODY, example, let_through, run
from tests.support import DEADLINE, Daemon, eventually, missing, need

MakeDaemon = Callable[..., Daemon]

WORKERS = pytest.mark.parametrize("workers", [1, 2])


class Rotation:
    """A log in a folder of its own, and logrotate for it.

    :param changes: to the file in contrib.
    """

    def __init__(self, folder: Path, *changes: tuple[str, str]) -> None:
        need("logrotate")
        self.folder = folder / "logs"
        self.folder.mkdir(mode=0o755)
        self.log = self.folder / "access.log"
        self._config, self._state = folder / "logrotate.conf", folder / "logrotate.state"
        self._config.write_text(
            example("logrotate/hmac-file-server", *changes).replace("/var/log/hmac-file-server", str(self.folder))
        )
        self._config.chmod(0o644)

    def rotate(self) -> None:
        run("logrotate", "--force", "--state", self._state, self._config)

    def lines(self) -> list[str]:
        """All lines that there are, in any file."""
        lines: list[str] = []
        for path in self.folder.iterdir():
            data = path.read_bytes()
            lines += (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
        return lines

    def asked(self) -> list[int]:
        """The numbers of the requests that lines tell of."""
        return sorted(int(found[1]) for line in self.lines() if (found := re.search(r' "n(\d+)"$', line)))


def ask(daemon: Daemon, numbers: range) -> None:
    for number in numbers:
        assert daemon.get("slot/a", User_Agent=f"n{number}").status == 200


@WORKERS
def test_rotated_under_load(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """Rotated again and again while requests come, compressed, the log misses no line and has each once."""
    rotation = Rotation(tmp_path, ("rotate 8", "rotate 50"))
    daemon = make_daemon(LogFile=str(rotation.log), Workers=workers).start()
    assert daemon.put("slot/a", b"hello").status == 201
    threads = [threading.Thread(target=ask, args=(daemon, range(1000 * n, 1000 * n + 300))) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        before = len(rotation.asked())
        rotation.rotate()
        eventually(lambda: len(rotation.asked()) > before or not any(t.is_alive() for t in threads))  # noqa: B023
    for thread in threads:
        thread.join()
    daemon.stop()
    assert rotation.asked() == [1000 * n + number for n in range(3) for number in range(300)]
    assert any(path.suffix == ".gz" for path in rotation.folder.iterdir())


@WORKERS
def test_copied_and_truncated(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """With copytruncate, which moves nothing, the log goes on at the beginning of its file."""
    rotation = Rotation(tmp_path, ("nocreate", "copytruncate"))
    daemon = make_daemon(LogFile=str(rotation.log), Workers=workers).start()
    assert daemon.put("slot/a", b"hello").status == 201
    ask(daemon, range(20))
    eventually(lambda: rotation.asked() == list(range(20)))
    rotation.rotate()
    ask(daemon, range(20, 40))
    eventually(lambda: rotation.asked() == list(range(40)))
    assert b"\0" not in rotation.log.read_bytes()
    assert "n39" in rotation.log.read_text()
    daemon.stop()


@WORKERS
def test_a_new_file_of_another_user(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """After "create 640 root adm" the log goes on in the old file, and that is said there, on standard error and in
    the status; when the daemon may open the new file, it is used."""
    need("setpriv")
    if os.geteuid() != 0:
        missing("only root can start it as another user")
    rotation = Rotation(tmp_path, ("nocreate", "create 640 root adm"))
    let_through(tmp_path)
    store = tmp_path / "store"
    store.mkdir()
    for folder in (store, rotation.folder):
        shutil.chown(folder, "nobody", "nogroup")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        (tmp_path / "notify").chmod(0o777)
        manager.settimeout(DEADLINE)
        daemon = make_daemon(
            prefix=NOBODY,
            environment={"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "200000"},
            LogFile=str(rotation.log),
            Workers=workers,
        ).start()
        assert daemon.put("slot/a", b"hello").status == 201
        ask(daemon, range(20))
        rotation.rotate()
        assert rotation.log.stat().st_uid == 0
        ask(daemon, range(20, 40))
        eventually(lambda: rotation.asked() == list(range(40)))
        complaint = f"LogFile {rotation.log} can not be opened: Permission denied"
        old = rotation.folder / "access.log.1"
        assert complaint in old.read_text()
        assert complaint in daemon.log
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: complaint.encode() in manager.recv(4096), what="systemd is told")
        if workers > 1:
            # A worker that begins now can not open it either.
            child = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0]
            os.kill(int(child), signal.SIGKILL)
            eventually(lambda: daemon.log.count("Starting reactor") + old.read_text().count("Starting reactor") > 2)
        shutil.chown(rotation.log, "nobody")
        ask(daemon, range(40, 60))
        eventually(lambda: rotation.asked() == list(range(60)))
        assert "n59" in rotation.log.read_text()
        daemon.stop()
