"""Memory and log are bounded in bytes, whatever clients without any right send."""

from __future__ import annotations

import contextlib
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import Daemon, Wire, eventually

MIB = 1 << 20


def rss(daemon: Daemon) -> int:
    """Bytes of memory that the daemon has."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10


def ask(daemon: Daemon, requests: list[bytes], port: int = 0) -> None:
    """Send requests, each of which is answered, on as many connections as that takes."""
    wire = Wire(port or daemon.port)
    for request in requests:
        try:
            wire.send(request).answer()
        except (EOFError, ConnectionError):
            wire.close()
            wire = Wire(port or daemon.port)
            wire.send(request).answer()
    wire.close()


@pytest.mark.parametrize("where", ["files", "metrics"])
@pytest.mark.parametrize("length", [7_000, 15_000])
def test_long_header_names(daemon: Daemon, where: str, length: int) -> None:
    """Header names of clients' own are not kept, however long and many they are."""

    def requests(count: int, kind: str) -> list[bytes]:
        names = (f"X-{kind}{number}-".ljust(length, "x") for number in range(count))
        return [f"GET /none HTTP/1.1\r\nHost: a\r\n{name}: 1\r\n\r\n".encode() for name in names]

    port = daemon.port if where == "files" else daemon.metrics_port
    ask(daemon, requests(100, "a"), port)
    before = rss(daemon)
    count = 2000 if where == "files" else 600
    ask(daemon, requests(count, "b"), port)
    assert rss(daemon) - before < count * length // 2


def test_long_lines(daemon: Daemon) -> None:
    """What a client sends is cut in the log, and of many refusals of one client only some are told."""
    junk = "x" * 7000
    request = f"GET /none/{junk} HTTP/1.1\r\nHost: a\r\nUser-Agent: {junk}\r\n\r\n".encode()
    ask(daemon, [request] * 1000)
    options = f"OPTIONS /upload/{junk} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    ask(daemon, [options] * 1000)
    assert daemon.get("slot/none.bin", User_Agent="last").status == 404
    daemon.stop()
    lines = daemon.log.splitlines()
    assert max(map(len, lines)) < 3000
    assert 100 <= sum("/none/" in line or "OPTIONS" in line for line in lines) <= 300
    assert "x" * 200 + "..." in daemon.log


def test_pipelined_scrapes(daemon: Daemon) -> None:
    """However many requests for figures come on one connection, one is answered."""
    with Wire(daemon.metrics_port) as wire:
        with contextlib.suppress(ConnectionError):
            wire.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)
        assert wire.rest().count(b"HTTP/1.1 200") == 1


def test_many_scrapers(daemon: Daemon) -> None:
    """Connections to the figures that do nothing keep nobody from them."""
    descriptors = Path(f"/proc/{daemon.pid}/fd")
    before = len(list(descriptors.iterdir()))
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(daemon.metrics_port).send(b"GET /met")) for _ in range(200)]
        assert daemon.metric("hmac_file_server_ready") == 1
        eventually(lambda: len(list(descriptors.iterdir())) < before + 100)
        assert wires[0].rest() == b""


def test_bytes_behind_an_unread_answer(daemon: Daemon) -> None:
    """Requests that are sent, and whose answers are not read, wait with the client, not in memory."""
    assert daemon.put("slot/a.bin", b"x" * 60_000).status == 201
    before = rss(daemon)
    requests = b"GET /upload/slot/a.bin HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1000 + b"\r\n\r\n"
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire()) for _ in range(50)]
        for wire in wires:
            wire.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(40):
                    wire.socket.sendall(requests * 100)
        assert daemon.get("slot/a.bin").status == 200
        assert rss(daemon) - before < 50 * MIB // 2


def arenas(daemon: Daemon) -> int:
    """How many heaps of 64 MiB, in which threads have memory of their own, glibc keeps beside the main one."""
    mappings = [line.split() for line in Path(f"/proc/{daemon.pid}/maps").read_text().splitlines()]
    found = 0
    for used, unused in itertools.pairwise(mappings):
        start, end = int(used[0].partition("-")[0], 16), int(unused[0].partition("-")[2], 16)
        found += used[1] == "rw-p" and unused[1] == "---p" and end - start == 64 * MIB and start % (64 * MIB) == 0
    return found


def test_threads_share_their_memory(daemon: Daemon) -> None:
    """However many threads work, none keeps memory of its own when it has nothing to do."""

    def upload(number: int) -> int:
        return daemon.put(f"slot{number}/a.bin", bytes(1_500_000)).status

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(upload, range(64))) == [201] * 64
    threads = Path(f"/proc/{daemon.pid}/task")
    assert len(list(threads.iterdir())) > 2
    assert arenas(daemon) == 0
