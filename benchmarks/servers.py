"""The servers that are compared: the daemon, nginx with its dav module, and whatever else runs already."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from benchmarks import load, machine
from benchmarks.load import Address, LoadError, Result

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

_STALLED_SIZE = 1 << 20
_WARM_UP = 20
_DEADLINE = 30.0
_QUIET = 0.3


class Store:
    """A server's folder of files, emptied between runs without deleting anything.

    ext4 without a journal makes files up to ten times slower for minutes after many were deleted. So files are
    truncated, which drops what would still have to be written to the disk, and moved away.

    :param path: the folder.
    :ivar kept: names in it that stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: set[str] = set()
        self._emptied: list[Path] = []

    def empty(self) -> int:
        """Bytes that were in its files."""
        away = self.path.with_name(f"emptied-{secrets.token_hex(8)}")
        away.mkdir()
        self._emptied.append(away)
        size = 0
        for entry in list(os.scandir(self.path)):
            if entry.name in self.kept or entry.name.startswith("."):
                continue
            # What the server still does for clients that have left may be undone under our eyes.
            with contextlib.suppress(FileNotFoundError):
                size += _truncate(entry)
                os.rename(entry.path, away / entry.name)
        return size

    def close(self) -> None:
        """Leave nothing behind."""
        self.kept.clear()
        self.empty()
        while self._emptied:
            shutil.rmtree(self._emptied.pop())


def _truncate(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return sum(map(_truncate, list(os.scandir(entry.path))))
    size = entry.stat(follow_symlinks=False).st_size
    os.truncate(entry.path, 0)
    return size


class Server:
    """A running server.

    :param name: in the tables.
    :param folder: for what the clients need.
    :param store: where its files lie, if that is known.
    """

    def __init__(self, name: str, address: Address, folder: Path, store: Store | None) -> None:
        self.name = name
        self.address = address
        self.folder = folder
        self.store = store
        self._paths: dict[int, list[str]] = {}

    def roots(self) -> Collection[int]:
        """The processes that it began with; none if it runs elsewhere."""
        return machine.listeners(self.address.port)

    def fresh(self) -> Server:
        """One that has done nothing yet; where it is not ours to start, this one."""
        return self

    def stop(self) -> None:
        """Stop it, if it is ours."""

    # What is measured

    def have(self, size: int, count: int) -> None:
        """Upload what :meth:`get` and :meth:`get_many` ask for."""
        paths = self._paths.setdefault(size, [])
        while len(paths) < count:
            path = load.slot()
            load.put(self.address, [path], size)
            paths.append(path)
            if self.store is not None:
                self.store.kept.add(path.partition("/")[0])

    def put(self, size: int, streams: int) -> Result:
        """Upload files of one size at once."""
        return self._measured(lambda: load.put(self.address, [load.slot() for _ in range(streams)], size))

    def get(self, size: int, streams: int) -> Result:
        """Download files of one size at once."""
        return self._measured(lambda: load.get(self.address, self._paths[size][:streams], size))

    def put_many(self, size: int, connections: int, seconds: int) -> Result:
        """Upload small files."""
        return self._measured(lambda: load.put_many(self.address, size, connections, seconds, self.folder))

    def get_many(self, size: int, connections: int, seconds: int) -> Result:
        """Download small files."""
        paths = self._paths[size]
        return self._measured(lambda: load.get_many(self.address, paths, connections, seconds, self.folder))

    def stalled(self, count: int) -> Result:
        """Bytes of memory that an upload takes whose client has stopped sending."""
        server = self.fresh()
        try:
            for _ in range(_WARM_UP):
                load.put(server.address, [load.slot()], 4096)
            before, began = server.settled(), time.monotonic()
            with load.stalled(server.address, count, _STALLED_SIZE):
                after = server.settled()
            return Result((after - before) / count, time.monotonic() - began, peak=after)
        finally:
            if server is not self:
                server.stop()

    def settled(self) -> int:
        """Bytes of memory it holds when it has nothing more to do."""
        pids = machine.tree(self.roots())
        end = time.monotonic() + _DEADLINE
        seen = (-1, -1.0)
        while time.monotonic() < end:
            now = machine.memory(pids), machine.cpu(pids)
            if now == seen:
                return now[0]
            seen = now
            time.sleep(_QUIET)
        raise LoadError(f"{self.name} does not come to rest")

    def _measured(self, run: Callable[[], Result]) -> Result:
        pids = machine.tree(self.roots())
        if not pids:
            return run()
        machine.reset_peak(pids)
        before = machine.cpu(pids)
        result = run()
        pids = machine.tree(self.roots())
        return dataclasses.replace(result, cpu=machine.cpu(pids) - before, peak=machine.memory(pids, "VmHWM"))


class Target(Server):
    """A server that runs already.

    :param store: its folder of files, empty; without one they stay where they are.
    """

    def __init__(self, name: str, address: Address, folder: Path, store: Path | None) -> None:
        super().__init__(name, address, folder, Store(store) if store else None)
        if not load.answers(address):
            raise LoadError(f"nobody answers at {address.url}")
        if store and any(not name.startswith(".") for name in os.listdir(store)):
            raise LoadError(f"{store} has files already; what is in it would be lost")


class Started(Server):
    """A server that the benchmark starts, in a folder of its own.

    :param parent: that folder's parent.
    """

    def __init__(self, name: str, parent: Path, secret: str) -> None:
        folder = parent / f"{name.replace(' ', '-')}-{secrets.token_hex(4)}"
        store = folder / "files" / "upload"
        store.mkdir(parents=True)
        url = f"http://127.0.0.1:{_free_port()}/upload/"
        super().__init__(name, Address(url, secret), folder, Store(store))
        self.parent = parent
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Write the configuration, and say how to run it."""
        raise NotImplementedError

    def roots(self) -> Collection[int]:
        return () if self._process is None else (self._process.pid,)

    def start(self) -> Result:
        """Run it until it answers."""
        command = self.command()
        environment = os.environ | {"PATH": PATH}
        with (self.folder / "output").open("wb") as output:
            began = time.monotonic()
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        while not load.answers(self.address):
            if self._process.poll() is not None or time.monotonic() > began + _DEADLINE:
                self.stop()
                raise LoadError(f"{self.name} does not start: {(self.folder / 'output').read_text()}")
            time.sleep(0.001)
        seconds = time.monotonic() - began
        pids = machine.tree(self.roots())
        return Result(1, seconds, cpu=machine.cpu(pids), peak=machine.memory(pids))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_DEADLINE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def another(self) -> Started:
        """One like this that does not run yet."""
        raise NotImplementedError

    def fresh(self) -> Started:
        server = self.another()
        server.start()
        return server

    def start_another(self) -> Result:
        """Seconds from the command to the first answer."""
        server = self.another()
        try:
            return server.start()
        finally:
            server.stop()


class Daemon(Started):
    """The daemon with its defaults, its access log in a file.

    :param settings: configuration keys that differ.
    """

    def __init__(self, parent: Path, secret: str, settings: dict[str, Any]) -> None:
        workers = settings.get("Workers", 1)
        super().__init__("hmac-file-server" if workers == 1 else f"{workers} workers", parent, secret)
        self._settings = settings

    def another(self) -> Started:
        return Daemon(self.parent, self.address.secret, self._settings)

    def command(self) -> list[str]:
        assert self.store is not None
        settings = {
            "ListenPort": f"127.0.0.1:{self.address.port}",
            "MetricsPort": f"127.0.0.1:{_free_port()}",
            "Secret": self.address.secret,
            "StoreDir": str(self.store.path),
            **self._settings,
        }
        config = self.folder / "config.toml"
        # What JSON says of texts, numbers and truth is TOML too.
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        twist = Path(sys.executable).with_name("twist")
        return [str(twist), "hmac-file-server", "--config", str(config)]


class Nginx(Started):
    """nginx, which stores what it is sent: it checks no signature, flushes nothing, and writes no access log."""

    _CONFIG = """
daemon off;
{user}
worker_processes 2;
worker_rlimit_nofile 4096;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    types {{ image/jpeg jpg; }}
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/unused;
    fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused;
    scgi_temp_path {folder}/unused;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {folder}/files;
        location /upload/ {{
            dav_methods PUT;
            create_full_put_path on;
        }}
    }}
}}
"""

    def __init__(self, parent: Path, secret: str) -> None:
        super().__init__("nginx", parent, secret)

    @staticmethod
    def installed() -> bool:
        return shutil.which("nginx", path=PATH) is not None

    @staticmethod
    def version() -> str:
        """As it names itself."""
        done = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True, env={"PATH": PATH})
        return done.stderr.strip().rpartition("/")[2]

    def another(self) -> Started:
        return Nginx(self.parent, self.address.secret)

    def command(self) -> list[str]:
        # The workers of a root's nginx would run as somebody who may not write here.
        user = "" if os.geteuid() else "user root;"
        config = self.folder / "nginx.conf"
        config.write_text(self._CONFIG.format(folder=self.folder, port=self.address.port, user=user))
        nginx = shutil.which("nginx", path=PATH)
        assert nginx is not None
        return [nginx, "-c", str(config), "-p", str(self.folder), "-e", "stderr"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
