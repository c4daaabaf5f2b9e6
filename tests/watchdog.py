"""A watch on the daemon's reactor: however slow a disk, a log, Redis or a name server is, it waits for none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support import Daemon, Wire

LATEST = 0.05
"""Seconds that an answer may be late for another reason than that somebody waited for a processor, or used it."""


@contextlib.contextmanager
def never_late(daemon: Daemon) -> Iterator[None]:
    """See to it that the reactor of a daemon without workers answers at once all the time."""
    over, latest, failed = threading.Event(), [0.0], list[BaseException]()

    def watch() -> None:
        try:
            while not over.wait(0.01):
                latest.append(_lateness(daemon))
        except BaseException as error:
            failed.append(error)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
    assert not failed, failed
    assert max(latest) <= LATEST, f"the reactor was {max(latest):.3f} s late, in one of {len(latest)} looks"


def _lateness(daemon: Daemon) -> float:
    begun, excused = time.monotonic(), _processor_time(daemon)
    with Wire(daemon.metrics_port) as wire:
        assert wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 200
    return time.monotonic() - begun - (_processor_time(daemon) - excused)


def _processor_time(daemon: Daemon) -> float:
    """Seconds that all threads of the daemon, and ours, ran or waited to run: one may have had the interpreter."""
    used = 0
    for task in (*Path(f"/proc/{daemon.pid}/task").iterdir(), *Path("/proc/self/task").iterdir()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ran, waited, _ = (task / "schedstat").read_text().split()
            used += int(ran) + int(waited)
    return used / 1e9
