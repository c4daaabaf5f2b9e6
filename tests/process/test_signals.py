"""What signals do to the daemon: few of them end it, and those in order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.test_stop import begin_upload
from tests.support import DEADLINE, Daemon, eventually

MakeDaemon = Callable[..., Daemon]

WORKERS = pytest.mark.parametrize("workers", [1, 2])


def children(daemon: Daemon) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()]


def started(daemon: Daemon, workers: int) -> Daemon:
    """Wait until all its processes run."""
    daemon.start()
    processes = workers + 1 if workers > 1 else 1
    eventually(lambda: starts(daemon) == processes, what="all workers run")
    return daemon


def starts(daemon: Daemon) -> int:
    """How many processes have said that they run, wherever they log."""
    logs = daemon.folder.glob("*log")
    return sum(path.read_text(errors="replace").count("Starting reactor") for path in logs)


def all_of(daemon: Daemon) -> list[int]:
    return [daemon.pid, *children(daemon)]


def blocks(pid: int, kind: str, number: int) -> bool:
    """Whether a process ignores (SigIgn), blocks (SigBlk) or catches (SigCgt) a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition(f"{kind}:\t")[2].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


@WORKERS
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=["SIGHUP", "SIGUSR1"])
def test_the_log_is_opened_anew(make_daemon: MakeDaemon, tmp_path: Path, number: int, workers: int) -> None:
    """SIGHUP and SIGUSR1 open the log anew, at once; what runs goes on."""
    log = tmp_path / "access.log"
    daemon = make_daemon(LogFile=str(log), Workers=workers).start()
    with begin_upload(daemon, "slot/a.bin", b"hello") as wire:
        log.rename(tmp_path / "access.log.1")
        os.kill(daemon.pid, number)
        eventually(log.exists, what="there is a new log")
        assert wire.send(b"o").answer().status == 201
    eventually(lambda: "PUT /upload/slot/a.bin 201" in log.read_text())
    assert daemon.stop() in (0, -signal.SIGTERM)


@WORKERS
def test_signals_to_all_processes(make_daemon: MakeDaemon, workers: int) -> None:
    """A terminal that hangs up, and other signals to the whole group, end no process."""
    daemon = started(make_daemon(Workers=workers), workers)
    with begin_upload(daemon, "slot/a.bin", b"hello") as wire:
        pids = all_of(daemon)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGHUP):
            for pid in pids:
                os.kill(pid, number)
        assert daemon.get("none").status == 404
        assert wire.send(b"o").answer().status == 201
    assert all_of(daemon) == pids
    assert daemon.stop() in (0, -signal.SIGTERM)


@WORKERS
def test_quit(make_daemon: MakeDaemon, workers: int) -> None:
    """SIGQUIT, as Ctrl-\\ sends it to all processes, ends the daemon in order and leaves no core."""
    daemon = started(make_daemon(Workers=workers, ShutdownTimeout=DEADLINE * 10), workers)
    with begin_upload(daemon, "slot/a.bin", b"hello") as wire:
        for pid in reversed(all_of(daemon)):
            os.kill(pid, signal.SIGQUIT)
        eventually(lambda: "Received SIGQUIT, shutting down" in daemon.log)
        os.kill(daemon.pid, signal.SIGQUIT)
        assert wire.send(b"o").answer().status == 201
    assert daemon.process is not None
    assert daemon.process.wait(DEADLINE) == 0
    assert "Traceback" not in daemon.log


@WORKERS
def test_what_was_ignored_stays_so(make_daemon: MakeDaemon, workers: int) -> None:
    """Under nohup, and in the background of a shell, the daemon ignores what it was started to ignore."""
    prefix = ["nohup", "env", "--ignore-signal=INT,QUIT"]
    daemon = started(make_daemon(prefix=prefix, Workers=workers), workers)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        assert blocks(daemon.pid, "SigIgn", number)
        for pid in all_of(daemon):
            os.kill(pid, number)
    assert daemon.put("slot/a", b"hello").status == 201
    assert "opened anew" not in daemon.log
    assert daemon.stop() == -signal.SIGTERM


def test_inherited_hindrances(make_daemon: MakeDaemon) -> None:
    """Started by a program that ignores SIGCHLD and blocks signals, a dead worker is missed, and SIGTERM works."""
    prefix = ["env", "--ignore-signal=CHLD", "--block-signal=TERM,HUP,CHLD"]
    daemon = started(make_daemon(prefix=prefix, Workers=2), 2)
    first = children(daemon)[0]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(children(daemon)) == 2 and first not in children(daemon), what="another one runs")
    assert daemon.stop() == -signal.SIGTERM


def test_a_worker_that_is_just_starting(make_daemon: MakeDaemon) -> None:
    """A signal to all processes does not end a worker that begins, whenever it comes."""
    daemon = make_daemon(Workers=2).launch()
    eventually(lambda: len(children(daemon)) == 2)
    pids = children(daemon)
    while daemon.log.count("Starting reactor") < 3:
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGINT)
        time.sleep(0.005)
    assert children(daemon) == pids
    assert "has ended" not in daemon.log
    daemon.stop()
