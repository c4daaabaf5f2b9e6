"""For a moment there are no descriptors, or there is no memory: afterwards everything is as it was before."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Daemon, eventually

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


def scarce(pid: int, what: str) -> None:
    if what == "descriptors":
        limit, least = resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{pid}/fd")) - 2
    else:
        limit, least = resource.RLIMIT_AS, 32 * MIB
    resource.prlimit(pid, limit, (least, resource.prlimit(pid, limit)[1]))


def plenty(pid: int, what: str) -> None:
    limit = resource.RLIMIT_NOFILE if what == "descriptors" else resource.RLIMIT_AS
    most = resource.prlimit(pid, limit)[1]
    resource.prlimit(pid, limit, (most, most))


def test_a_download_goes_on_without_descriptors(make_daemon: MakeDaemon) -> None:
    """A download that runs needs no further descriptor: where there is none left it goes on, only slower."""
    daemon = make_daemon().start()
    content = os.urandom(48 * MIB)
    daemon.store.joinpath("large").write_bytes(content)
    with daemon.wire() as wire:
        wire.send(b"GET /upload/large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = wire.socket.recv(MIB)
        most = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, most))
        received += wire.rest()
    plenty(daemon.pid, "descriptors")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.partition(b"\r\n\r\n")[2] == content
    assert "can not go on" not in daemon.log


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", ["descriptors", "memory"])
def test_a_moment(make_daemon: MakeDaemon, load_on: Callable[[Daemon], Load], what: str, workers: int) -> None:
    """What can not be served then is refused or cut off; it leaves no descriptor, claim, thread or upload behind."""
    daemon = make_daemon(Workers=workers, RetryDelay=0.1).start()
    assert daemon.put("first/a.bin", b"hello").status == 201
    eventually(lambda: daemon.log.count("Starting reactor") == (1 if workers == 1 else 1 + workers))
    before = {pid: descriptors(pid) for pid in processes(daemon)}
    if what == "memory":
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
        eventually(lambda: descriptors(pid) <= there, what="as many descriptors as before")  # noqa: B023
    eventually(lambda: daemon.metric("hmac_file_server_uploads_in_progress") == 0)
    assert daemon.put("last/a.bin", os.urandom(3 * MIB)).status == 201
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert not [name for name in daemon.files() if name.startswith(".")]
