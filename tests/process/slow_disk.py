"""A disk as slow as a test wants it: an ext4 image on a loop device, and the kernel's own throttling."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import Daemon, missing, need

_V1 = Path("/sys/fs/cgroup/blkio")
_V2 = Path("/sys/fs/cgroup")


class SlowDisk:
    """:ivar folder: where it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._group: Path | None = None

    def slow_down(self, daemon: Daemon, speed: int) -> None:
        """From now on the daemon reads no faster.

        :param speed: bytes a second.
        """
        device = self.folder.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        base, limit, rule = _V2, "io.max", f"{number} rbps={speed}"
        if (_V1 / "blkio.throttle.read_bps_device").exists():
            base, limit, rule = _V1, "blkio.throttle.read_bps_device", f"{number} {speed}"
        try:
            self._group = base / f"hmac-file-server-test-{daemon.pid}"
            self._group.mkdir()
            (self._group / limit).write_text(rule)
            (self._group / "cgroup.procs").write_text(str(daemon.pid))
        except OSError as error:
            missing(f"the kernel can not slow a disk down here: {error}")

    def end(self) -> None:
        """As fast as ever."""
        if self._group is not None and self._group.exists():
            for process in (self._group / "cgroup.procs").read_text().split():
                (self._group.parent / "cgroup.procs").write_text(process)
            self._group.rmdir()


@contextmanager
def slow_disk(folder: Path) -> Iterator[SlowDisk]:
    """Mount one.

    :param folder: of the test's own.
    """
    need("mkfs.ext4")
    image, mounted = folder / "image", folder / "disk"
    mounted.mkdir()
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.check_call(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(image)])
    if os.geteuid() != 0 or subprocess.call(["mount", "-o", "loop", str(image), str(mounted)]):
        missing("a file system can not be mounted")
    disk = SlowDisk(mounted)
    try:
        yield disk
    finally:
        disk.end()
        subprocess.call(["umount", "-l", str(mounted)])
