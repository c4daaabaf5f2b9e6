"""What the tests share: signing as an XMPP server does, free ports, and the real daemon as a process."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pytest

from hmac_file_server.slots.signature import sign

SECRET = "correct7-horse23-battery91-staple17"
DEADLINE = 60.0
"""Seconds after which something that is waited for has failed to come, also on a machine that is busy."""

T = TypeVar("T")


def v(path: str | bytes, size: int, secret: str = SECRET) -> str:
    """The v signature of a slot."""
    path = path.encode() if isinstance(path, str) else path
    return sign(secret.encode(), b"%b %d" % (path, size))


def v2(path: str | bytes, size: int, media_type: str | bytes, secret: str = SECRET) -> str:
    """The v2 or token signature of a slot."""
    path = path.encode() if isinstance(path, str) else path
    media_type = media_type.encode() if isinstance(media_type, str) else media_type
    return sign(secret.encode(), b"%b\0%d\0%b" % (path, size, media_type))


def put_target(path: str, size: int, prefix: str = "/upload/", secret: str = SECRET) -> str:
    """The request target of a slot's PUT, signed with v."""
    return f"{prefix}{quote(path)}?v={v(path, size, secret)}"


def put_head(path: str, size: int, *headers: str, secret: str = SECRET) -> bytes:
    """The head of a PUT to a slot that is signed with v."""
    target = put_target(path, size, secret=secret)
    return "\r\n".join([f"PUT {target} HTTP/1.1", "Host: a", f"Content-Length: {size}", *headers, "", ""]).encode()


_given_ports: set[int] = set()
# Of several processes that test at the same time, each has ports of its own.
_TESTERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_TESTER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, outside the ephemeral range; each is given once."""
    for _ in range(1000):
        port = 10000 + secrets.randbelow(20000 // _TESTERS) * _TESTERS + _TESTER
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise AssertionError("no free port")


def eventually(check: Callable[[], T], deadline: float = DEADLINE, what: str = "") -> T:
    """Poll until check returns something true; its last value."""
    end = time.monotonic() + deadline
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what or check}; last: {value!r}")
        time.sleep(0.01)


def need(*programs: str) -> None:
    """Skip the test where a program is missing; fail where REQUIRE_SERVERS says that it must not be."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for program in programs:
        if shutil.which(program, path=path) is None:
            missing(f"{program} is not installed")


def missing(reason: str) -> None:
    """Skip, or in CI fail."""
    if os.environ.get("REQUIRE_SERVERS"):
        pytest.fail(reason)
    pytest.skip(reason)


class Answer:
    """An HTTP answer as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.split(b"\r\n")
        self.line = lines[0].decode("latin-1")
        self.status = int(lines[0].split()[1])
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        self.body = body

    def __repr__(self) -> str:
        return f"<{self.line!r} {self.headers!r} {self.body[:200]!r}>"


class Wire:
    """A raw connection to the daemon."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=DEADLINE)
        self._buffer = bytearray()

    def send(self, data: bytes) -> Wire:
        self.socket.sendall(data)
        return self

    def answer(self, head: bool = False) -> Answer:
        """Read one answer; for HEAD there is no body."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        top, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        answer = Answer(bytes(top), b"")
        if head or answer.status < 200 or answer.status in (204, 304):
            return answer
        length = int(answer.headers["content-length"])
        while len(self._buffer) < length:
            self._more()
        answer.body, self._buffer = bytes(self._buffer[:length]), self._buffer[length:]
        return answer

    def interim(self) -> Answer:
        """Read one answer, which must be an interim one."""
        answer = self.answer()
        assert answer.status < 200, answer
        return answer

    def final(self, head: bool = False) -> Answer:
        """Read on to the first answer that is no interim one."""
        while (answer := self.answer(head)).status < 200:
            pass
        return answer

    def _more(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise EOFError(f"the connection ended after {bytes(self._buffer[:300])!r}")
        self._buffer += data

    def rest(self) -> bytes:
        """All that still comes until the connection ends."""
        parts = [bytes(self._buffer)]
        self._buffer.clear()
        while True:
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionError:
                break
            if not data:
                break
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Daemon:
    """The real daemon, started by twist with a configuration of its own. Its ListenPort may be a Unix socket.

    :param folder: for its configuration, store and log.
    :param settings: configuration keys.
    :param hosts: the keys of each [[Host]] table.
    :param prefix: a command line to run it under, which must exec it in its own process.
    :param environment: variables to add.
    """

    def __init__(
        self,
        folder: Path,
        prefix: list[str] | None = None,
        environment: dict[str, str] | None = None,
        hosts: Sequence[dict[str, Any]] = (),
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.store = Path(settings.setdefault("StoreDir", str(folder / "store")) or folder)
        self.port = free_port()
        self.metrics_port = free_port()
        listen = str(settings.setdefault("ListenPort", f"127.0.0.1:{self.port}"))
        self.socket = Path(listen.split(":")[1]) if listen.startswith("unix:") else None
        self.has_metrics = settings.get("MetricsEnabled", True) and "MetricsPort" not in settings
        settings.setdefault("MetricsPort", f"127.0.0.1:{self.metrics_port}")
        if "SecretFile" not in settings:
            settings.setdefault("Secret", SECRET)
        self.config = folder / "config.toml"
        self.settings, self.hosts = settings, list(hosts)
        self.configure()
        self.prefix = prefix or []
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "log"

    def configure(self) -> None:
        """Write its configuration file; settings that are None are left out."""
        tables = [self.settings, *self.hosts]
        texts = [
            "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)
            for table in tables
        ]
        new = self.config.with_name("config.new")
        new.write_text("[[Host]]\n".join(texts))
        new.replace(self.config)

    @property
    def log(self) -> str:
        """All that it has logged. A line is written a moment after what it tells of."""
        text, before = self._read_log(), ""
        for _ in range(10):
            if text == before or self.process is None:
                break
            time.sleep(0.03)
            before, text = text, self._read_log()
        return text

    def _read_log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def launch(self) -> Daemon:
        """Start without waiting for anything."""
        twist = Path(sys.executable).with_name("twist")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, str(twist), "hmac-file-server", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=os.environ | self.environment,
            )
        return self

    def start(self) -> Daemon:
        """Start and wait until it listens."""
        self.launch()
        eventually(self._is_up, what="the daemon listens")
        return self

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log}")
        try:
            if self.socket is None:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            else:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.socket))
            if self.has_metrics:  # Else it listens, and its reactor may not turn yet.
                with Wire(self.metrics_port) as wire:
                    wire.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").answer()
        except (OSError, EOFError):
            return False
        return True

    def listens(self) -> bool:
        """Whether anybody has its port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Stop it and return its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            os.kill(self.pid, how)
        try:
            status = self.process.wait(DEADLINE * 3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon does not end; its log:\n{self.log}") from None
        self.process = None
        return status

    def wire(self) -> Wire:
        return Wire(self.port)

    def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
        """One request on a connection of its own. Header names are written with underscores."""
        with self.wire() as wire:
            lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
            lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
            if (body or method == "PUT") and "Content_Length" not in headers:
                lines.append(f"Content-Length: {len(body)}")
            wire.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            return wire.answer(head=method == "HEAD")

    def put(self, path: str, body: bytes, **headers: str) -> Answer:
        """Upload with a v signature."""
        return self.request("PUT", put_target(path, len(body)), body, **headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", f"/upload/{quote(path)}", **headers)

    def metric(self, name: str, labels: str = "") -> float:
        """The value of one sample; 0 if there is none yet."""
        with Wire(self.metrics_port) as wire:
            wire.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            text = wire.answer().body.decode()
        found = re.search(rf"^{re.escape(name + labels)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def running(self) -> float:
        """How many uploads run."""
        return self.metric("hmac_file_server_uploads_in_progress")

    def ready(self) -> tuple[int, str]:
        """What /readyz answers."""
        with Wire(self.metrics_port) as wire:
            answer = wire.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").answer()
            return answer.status, answer.body.decode()

    def refused(self, path: str, size: int) -> tuple[int, str | None]:
        """The answer to a PUT whose body is never sent, and whether it asks to come again."""
        with self.wire() as wire:
            answer = wire.send(put_head(path, size)).answer()
            return answer.status, answer.headers.get("retry-after")

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident(self) -> int:
        """Bytes of memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    def unread(self) -> int:
        """Bytes that clients have sent and the daemon has not read."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(int(line[4].partition(":")[2], 16) for line in lines if int(line[1][-4:], 16) == self.port)

    def files(self) -> set[str]:
        """All files of the store, those in the reserved folder too."""
        return {str(p.relative_to(self.store)) for p in self.store.rglob("*") if not p.is_dir()}


def _lines(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
