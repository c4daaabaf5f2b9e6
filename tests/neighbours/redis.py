"""A real Redis server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from tests.neighbours.program import PATH, Program, certificate
from tests.support import DEADLINE, free_port

PREFIX = "hmac-file-server:"


class Redis:
    """Redis on 127.0.0.1, and with the same data on ::1, TLS (its certificate is for localhost) and a Unix socket.

    :param folder: for its data, certificate and socket; its path must be short enough for a socket.
    :param password: that all clients need, if there is one.
    """

    def __init__(self, folder: Path, password: str = "", ipv6: bool = False, tls: bool = False) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self.path = folder / "redis.sock"
        self._folder = folder
        self._password = password
        addresses = ["127.0.0.1", *(["::1"] if ipv6 else [])]
        self._options = ["--port", self.port, "--bind", *addresses, "--unixsocket", self.path]
        self._options += ["--save", "", "--dir", folder, "--enable-debug-command", "yes"]
        if password:
            self._options += ["--requirepass", password]
        if tls:
            self.certificate, key = certificate(folder, "localhost")
            self._options += ["--tls-port", self.tls_port, "--tls-cert-file", self.certificate, "--tls-key-file", key]
            self._options += ["--tls-ca-cert-file", self.certificate, "--tls-auth-clients", "no"]
        self._program: Program | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Redis:
        """Start it, empty."""
        server = shutil.which("redis-server", path=PATH)
        assert server
        self._program = Program(self._folder, [server, *map(str, self._options)])
        self._program.listens(self.port)
        return self

    def signal(self, number: int) -> None:
        assert self._program is not None
        os.kill(self._program.process.pid, number)

    def kill(self) -> None:
        """End it as a crash would; does nothing if it does not run."""
        if self._program is not None:
            self.signal(signal.SIGKILL)
            self._program.process.wait(DEADLINE)
            self._program = None

    def connection(self, database: int = 0) -> Connection:
        return Connection(self.port, self._password, database)

    def command(self, *words: str | int, database: int = 0) -> Any:
        """Send a command on a connection of its own.

        :returns: its answer, with bulk strings as text.
        :raises ValueError: if it is an error.
        """
        with self.connection(database) as connection:
            return connection.command(*words)

    def keys(self, kind: str = "", prefix: str = PREFIX, database: int = 0) -> list[str]:
        """The names of the daemon's keys of a kind, which are ``slot``, ``session`` and ``daemon``."""
        found: list[str] = self.command("KEYS", f"{prefix}{kind}*", database=database)
        return sorted(found)

    def records(self) -> dict[str, dict[str, Any]]:
        """What runs and what waits, by the slots' paths."""
        with self.connection() as connection:
            texts = [connection.command("GET", key) for key in connection.command("KEYS", f"{PREFIX}session:*")]
        records = [json.loads(text) for text in texts if text]
        return {record["path"]: record for record in records}

    def state(self, path: str) -> tuple[str, int] | None:
        """Whether the upload of a slot runs or waits, and the process id of the daemon that says so."""
        record = self.records().get(path)
        return None if record is None else (record["state"], int(record["daemon"].rpartition(":")[2]))


class Connection:
    """A client that speaks no more of RESP than the tests need."""

    def __init__(self, port: int, password: str = "", database: int = 0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self._file = self._socket.makefile("rb")
        if password:
            self.command("AUTH", password)
        if database:
            self.command("SELECT", database)

    def send(self, *words: str | int) -> Connection:
        encoded = [str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)]
        self._socket.sendall(b"".join(parts))
        return self

    def answer(self) -> Any:
        line = self._file.readline().decode().rstrip("\r\n")
        kind, rest = line[:1], line[1:]
        if kind == "-":
            raise ValueError(rest)
        if kind == "$":
            return None if rest == "-1" else self._file.read(int(rest) + 2)[:-2].decode()
        if kind == "*":
            return [self.answer() for _ in range(int(rest))]
        if kind == ":":
            return int(rest)
        assert kind == "+", line
        return rest

    def command(self, *words: str | int) -> Any:
        return self.send(*words).answer()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()
