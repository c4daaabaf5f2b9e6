"""For a moment there are no descriptors, or there is no memory: afterwards everything is as it was before."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.neighbours.program import let_through
from tests.support import Daemon, eventually, missing, need

MakeDaemon = Callable[..., Daemon]

MIB = 1 << 20
CLIENTS = 12
ENOUGH = 40


class Load:
    """Clients that upload and download files of all sizes, again and again.

    :ivar outcomes: how often what happened.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._over = threading.Event()
        self._bodies = [os.urandom(size) for size in (5, 5000, 200_000, 3 * MIB)]
        self.outcomes: Counter[object] = Counter()
        self._threads = [threading.Thread(target=self._go_on, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _go_on(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            path, body = f"{client}-{number}/a.bin", self._bodies[number % len(self._bodies)]
            try:
                status = self._daemon.put(path, body).status
                self.outcomes[status] += 1
                if status == 201:
                    answer = self._daemon.get(path)
                    self.outcomes[answer.body == body if answer.status == 200 else answer.status] += 1
            except (OSError, EOFError) as error:
                self.outcomes[type(error)] += 1

    def passes(self) -> None:
        """Wait until many more uploads have been stored and read again."""
        before = self.outcomes[True]
        eventually(lambda: self.outcomes[True] >= before + ENOUGH, what="uploads are stored")

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def load_on() -> Iterator[Callable[[Daemon], Load]]:
    made: list[Load] = []

    def make(daemon: Daemon) -> Load:
        made.append(Load(daemon))
        return made[-1]

    yield make
    for load in made:
        load.stop()


def processes(daemon: Daemon) -> list[int]:
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return [daemon.pid, *map(int, children)]


def descriptors(pid: int) -> Counter[str]:
    """How many of which kind a process has open."""
    folder, found = f"/proc/{pid}/fd", Counter[str]()
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found[re.sub(r"\d+", "", os.readlink(f"{folder}/{name}"))] += 1
    return found


LIMITS = {"descriptors": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_AS}


def scarce(pid: int, what: str) -> None:
    if what == "threads":
        limit_threads(pid, 1)
    else:
        least = len(os.listdir(f"/proc/{pid}/fd")) - 2 if what == "descriptors" else 32 * MIB
        resource.prlimit(pid, LIMITS[what], (least, resource.prlimit(pid, LIMITS[what])[1]))


def plenty(pid: int, what: str) -> None:
    if what == "threads":
        limit_threads(pid, resource.getrlimit(resource.RLIMIT_NPROC)[1])
    else:
        most = resource.prlimit(pid, LIMITS[what])[1]
        resource.prlimit(pid, LIMITS[what], (most, most))


def limit_threads(pid: int, most: int) -> None:
    """Set the limit of a daemon that another user runs, as that user may."""
    user = os.stat(f"/proc/{pid}").st_uid
    command = [*_as_user(user), "prlimit", f"--pid={pid}", f"--nproc={'unlimited' if most < 0 else most}:"]
    subprocess.run(command, check=True)


def _as_user(user: int) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def as_another_user(folder: Path) -> list[str]:
    """What the daemon is run under so that root's exception from the limit of threads is not its own."""
    need("setpriv", "prlimit")
    if os.geteuid() != 0:
        missing("only root can be another user")
    user = 61_000 + os.getpid() % 4000
    for path in (folder, Path(sys.executable).resolve(), Path(sys.prefix)):
        let_through(path)
    os.chown(folder, user, user)
    return _as_user(user)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", ["descriptors", "memory", "threads"])
def test_a_moment(
    make_daemon: MakeDaemon, load_on: Callable[[Daemon], Load], tmp_path: Path, what: str, workers: int
) -> None:
    """What can not be served then is refused or cut off; it leaves no descriptor, claim, thread or upload behind."""
    prefix = as_another_user(tmp_path) if what == "threads" else []
    daemon = make_daemon(Workers=workers, RetryDelay=0.1, prefix=prefix).start()
    assert daemon.put("first/a.bin", b"hello").status == 201
    eventually(lambda: daemon.log.count("Starting reactor") == (1 if workers == 1 else 1 + workers))
    before = {pid: descriptors(pid) for pid in processes(daemon)}
    if what != "descriptors":
        # Before what is needed has been had once, and is kept.
        for pid in before:
            scarce(pid, what)
        load = load_on(daemon)
    else:
        load = load_on(daemon)
        load.passes()
        for pid in before:
            scarce(pid, what)
    # Of memory there may be enough for these clients: what was had once is kept.
    eventually(lambda: set(load.outcomes) - {201, True} or load.outcomes[True] > 10 * ENOUGH, what="something fails")
    for pid in before:
        plenty(pid, what)
    load.passes()
    load.stop()
    assert not load.outcomes[False]
    assert processes(daemon) == list(before)
    for pid, there in before.items():
        eventually(lambda: descriptors(pid) <= there, what=f"as many descriptors as before: {there}")  # noqa: B023
    eventually(lambda: daemon.running() == 0)
    assert daemon.put("last/a.bin", os.urandom(3 * MIB)).status == 201
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert not [name for name in daemon.files() if name.startswith(".")]
