"""The clients: large bodies over raw sockets for next to no CPU, small requests with wrk, uploads that stall."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hmac_file_server.slots.signature import sign

_MIB = 1 << 20
_SOURCE = 16 * _MIB
_WINDOW = _MIB
_TIMEOUT = 120
_SCRIPT = Path(__file__).with_name("wrk.lua")
_SLOTS_PER_SECOND = 30_000


class LoadError(Exception):
    """A server did not answer as it must; its figures would be worth nothing."""


@dataclass(frozen=True)
class Result:
    """What one run gave.

    :param work: requests, or bytes of large files.
    :param seconds: that it took.
    :param stored: bytes that the server said it had stored.
    :param p50: milliseconds a request; p99 likewise.
    :param cpu: seconds that the server used.
    :param peak: bytes of memory it held at most.
    """

    work: float
    seconds: float
    stored: int = 0
    p50: float | None = None
    p99: float | None = None
    cpu: float | None = None
    peak: int | None = None


@dataclass(frozen=True)
class Address:
    """A server that speaks the protocol.

    :param url: what its files lie below.
    :param secret: that it checks signatures with.
    """

    url: str
    secret: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    def get_target(self, path: str) -> str:
        """What stands in the request line of a GET."""
        return urlsplit(self.url).path.rstrip("/") + "/" + path

    def put_target(self, path: str, size: int) -> str:
        """What stands in the request line of a PUT: the slot's signed path."""
        return f"{self.get_target(path)}?v={sign(self.secret.encode(), f'{path} {size}'.encode())}"

    def connect(self) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), _TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel's own timeouts: Python's would make every call return early.
        connection.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _TIMEOUT, 0))
        return connection

    def head(self, method: str, target: str, size: int = 0) -> bytes:
        """A request up to its body."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}", "Connection: close"]
        if method == "PUT":
            lines += ["Content-Type: image/jpeg", f"Content-Length: {size}"]
        return "\r\n".join([*lines, "", ""]).encode()


def slot(folder: str = "") -> str:
    """A new path, as XMPP servers make them."""
    return f"{folder or secrets.token_hex(16)}/photo.jpg"


# Large bodies


def put(address: Address, paths: list[str], size: int) -> Result:
    """Upload files of one size at once, each over a connection of its own."""
    source = os.memfd_create("source")
    try:
        os.write(source, os.urandom(min(size, _SOURCE)))
        seconds = _at_once([_sender(address, path, size, source) for path in paths])
    finally:
        os.close(source)
    return Result(work=size * len(paths), seconds=seconds, stored=size * len(paths))


def _sender(address: Address, path: str, size: int, source: int) -> Callable[[], None]:
    connection = address.connect()
    source_size = os.fstat(source).st_size

    def run() -> None:
        with connection:
            connection.sendall(address.head("PUT", address.put_target(path, size), size))
            sent = 0
            while sent < size:
                offset = sent % source_size
                sent += os.sendfile(connection.fileno(), source, offset, min(source_size - offset, size - sent))
            _expect(connection, 200, 201)

    return run


def get(address: Address, paths: list[str], size: int) -> Result:
    """Download files of one size at once."""
    seconds = _at_once([_taker(address, path, size) for path in paths])
    return Result(work=size * len(paths), seconds=seconds)


def _taker(address: Address, path: str, size: int) -> Callable[[], None]:
    connection = address.connect()

    def run() -> None:
        with connection:
            connection.sendall(address.head("GET", address.get_target(path)))
            left = size - _expect(connection, 200)
            window = bytearray(_WINDOW)
            while left > 0:
                # The kernel drops what it would have copied.
                taken = connection.recv_into(window, min(left, _WINDOW), socket.MSG_TRUNC | socket.MSG_WAITALL)
                if not taken:
                    raise LoadError(f"{address.url}: {left} bytes are missing")
                left -= taken

    return run


def _expect(connection: socket.socket, *wanted: int) -> int:
    """Read the headers of an answer; the bytes of its body that came with them."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(4096)
        if not data:
            raise LoadError(f"no answer: {received[:200]!r}")
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    if int(head.split()[1]) not in wanted:
        raise LoadError(f"refused: {received[:300]!r}")
    return len(body)


def _at_once(tasks: list[Callable[[], None]]) -> float:
    """Run all in threads; seconds from the first start to the last end."""
    failures: list[Exception] = []
    gate = threading.Barrier(len(tasks) + 1)

    def run(task: Callable[[], None]) -> None:
        gate.wait()
        try:
            task()
        except (OSError, LoadError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    if failures:
        raise LoadError(str(failures[0])) from failures[0]
    return seconds


# Small requests


def put_many(address: Address, size: int, connections: int, seconds: int, folder: Path) -> Result:
    """PUT small files with wrk, each to a slot of its own.

    :param folder: for the prepared requests.
    """
    targets = [address.put_target(slot(), size) for _ in range(_SLOTS_PER_SECOND * seconds)]
    return _wrk(address, "PUT", targets, size, connections, seconds, folder)


def get_many(address: Address, paths: list[str], connections: int, seconds: int, folder: Path) -> Result:
    """GET small files with wrk, one after the other, over and over."""
    return _wrk(address, "GET", list(map(address.get_target, paths)), 0, connections, seconds, folder)


def _wrk(
    address: Address, method: str, targets: list[str], size: int, connections: int, seconds: int, folder: Path
) -> Result:
    threads = min(2, connections)
    for number in range(threads):
        (folder / f"requests.{number}").write_text("\n".join(targets[number::threads]) + "\n")
    options = [f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(_SCRIPT)]
    command = ["wrk", *options, address.url, "--", method, str(folder / "requests"), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    figures = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not figures:
        raise LoadError(f"wrk failed: {(done.stderr or done.stdout).strip().partition(chr(10))[0]}")
    requests, duration, bad, broken, missing, p50, p99 = map(int, figures[0])
    if bad or broken or not requests:
        raise LoadError(f"{address.url}: of {requests} requests {bad} were refused and {broken} broke off")
    if missing:
        raise LoadError(f"{address.url}: {missing} more slots than prepared were needed")
    stored = requests * size if method == "PUT" else 0
    return Result(work=requests, seconds=duration / 1e6, stored=stored, p50=p50 / 1e3, p99=p99 / 1e3)


# Uploads that stall


@contextlib.contextmanager
def stalled(address: Address, count: int, size: int) -> Iterator[None]:
    """Uploads whose clients have sent the headers and a first thousand bytes, and then nothing."""
    with contextlib.ExitStack() as connections:
        for _ in range(count):
            connection = connections.enter_context(address.connect())
            connection.sendall(address.head("PUT", address.put_target(slot(), size), size) + b"x" * 1000)
        yield


def answers(address: Address) -> bool:
    """Whether it answers a request, whatever it says."""
    try:
        with address.connect() as connection:
            connection.sendall(address.head("GET", address.get_target(slot())))
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False
