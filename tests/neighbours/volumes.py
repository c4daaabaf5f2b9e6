"""Volumes that two machines mount at once: each mount stands for a machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.neighbours.program import Program, find, run
from tests.neighbours.redis import Redis
from tests.support import eventually, free_port


class Volume:
    """A volume and its two mounts.

    :param folder: for its data and the mounts.
    :ivar mounts: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounts = [folder / "one", folder / "two"]
        self._programs: list[Program] = []
        for mount in self.mounts:
            mount.mkdir()
        self.prepare()
        self.mount()

    def prepare(self) -> None:
        """Make the volume, and start what serves it."""
        raise NotImplementedError

    def command(self, mount: Path) -> list[str | Path]:
        """What mounts it, in the foreground."""
        raise NotImplementedError

    def mount(self) -> None:
        """Mount it twice."""
        for mount in self.mounts:
            log = self.folder / f"{mount.name}.log"
            log.mkdir(exist_ok=True)
            self._programs.append(Program(log, self.command(mount)))
        for mount in self.mounts:
            eventually(mount.is_mount, what=f"{mount} is mounted")

    def unmount(self) -> None:
        """Unmount it, and with the mounts all that they keep in memory is gone."""
        for mount in self.mounts:
            subprocess.call(["umount", "-l", mount])
        for program in self._programs:
            program.end()
        self._programs = []

    def end(self) -> None:
        """Unmount it and stop what serves it."""
        self.unmount()


class JuiceFS(Volume):
    """JuiceFS, with its metadata in Redis."""

    def prepare(self) -> None:
        home = self.folder / "redis"
        home.mkdir()
        self._redis = Redis(home).start()
        self._address = f"redis://{self._redis.address}/1"
        storage = ["--storage", "file", "--bucket", f"{self.folder}/objects/", "--trash-days", "0"]
        run(find("juicefs"), "--no-agent", "format", *storage, self._address, "test")

    def command(self, mount: Path) -> list[str | Path]:
        options = ["--no-usage-report", "--enable-xattr", "--metrics", f"127.0.0.1:{free_port()}"]
        options += ["--cache-dir", f"{self.folder}/cache-{mount.name}"]
        return [find("juicefs"), "--no-agent", "mount", *options, self._address, mount]

    def end(self) -> None:
        super().end()
        self._redis.kill()


class SeaweedFS(Volume):
    """SeaweedFS, with one server for all."""

    def prepare(self) -> None:
        data = self.folder / "data"
        data.mkdir()
        ports = {name: (free_port(), free_port()) for name in ("master", "volume", "filer")}
        options = [f"-{name}.port={port}" for name, (port, _) in ports.items()]
        options += [f"-{name}.port.grpc={port}" for name, (_, port) in ports.items()]
        options += ["-filer", "-volume.max=100", "-master.volumeSizeLimitMB=64"]
        self._server = Program(data, [find("weed"), "server", "-ip=127.0.0.1", f"-dir={data}", *options])
        self._filer = f"127.0.0.1:{ports['filer'][0]}.{ports['filer'][1]}"
        self._server.listens(ports["filer"][0])

    def command(self, mount: Path) -> list[str | Path]:
        return [find("weed"), "mount", f"-filer={self._filer}", f"-dir={mount}", "-filer.path=/"]

    def end(self) -> None:
        super().end()
        self._server.process.kill()
        self._server.process.wait()
