"""What the disk itself takes: a loop of open, write, fsync, link and fsync, in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from benchmarks.load import Result
from benchmarks.servers import Store

_PIECE = 1 << 20


class Disk:
    """Takes part as servers do, but nobody speaks to it: the least that safe storing costs.

    :param folder: where its files lie.
    """

    name = "disk loop"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.store = Store(folder)

    def roots(self) -> Collection[int]:
        """Nothing of it runs between two runs."""
        return ()

    def stop(self) -> None:
        """There is nothing to stop."""

    def put(self, size: int, streams: int) -> Result:
        """Store files of one size at once."""
        return self._run(size, streams, 0)

    def put_many(self, size: int, connections: int, seconds: int) -> Result:
        """Store small files in as many threads as servers have connections."""
        return self._run(size, connections, seconds)

    def _run(self, size: int, threads: int, seconds: int) -> Result:
        arguments = map(str, (self.store.path, size, threads, seconds))
        done = subprocess.run([sys.executable, "-m", __name__, *arguments], stdout=subprocess.PIPE, check=True)
        return Result(**json.loads(done.stdout))


def _loop(folder: str, size: int, count: int, seconds: float) -> Result:
    """Store in threads until the time is over, and at least once each."""
    data = os.urandom(min(size, _PIECE))
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    taken: list[float] = []

    def run(number: int) -> None:
        end = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            _store(place, f"{number}-{began}", data, size)
            now = time.monotonic()
            taken.append(now - began)
            if now >= end:
                return

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    cpu, began = time.process_time(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.monotonic() - began
    stored = len(taken) * size
    result = Result(len(taken) if seconds else stored, passed, stored, cpu=time.process_time() - cpu)
    if not seconds:
        return result
    cuts = statistics.quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else taken * 100
    return Result(**asdict(result) | {"p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3})


def _store(place: int, name: str, data: bytes, size: int) -> None:
    file = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o644, dir_fd=place)
    try:
        for _ in range(size // len(data)):
            os.write(file, data)
        os.fsync(file)
        os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=place, follow_symlinks=True)
    finally:
        os.close(file)
    os.fsync(place)


if __name__ == "__main__":
    print(json.dumps(asdict(_loop(sys.argv[1], *map(int, sys.argv[2:])))))
