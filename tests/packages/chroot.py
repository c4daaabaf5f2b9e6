"""A system in a folder, and a network that nobody else is on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def network_of_its_own() -> None:
    """Bring up the loopback interface of a network that ``unshare`` has made."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def enter(root: Path, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command there; what it prints, errors too, is ``stdout``."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
    }
    return subprocess.run(
        ["chroot", root, *command],
        env=environment | options.pop("environment", {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=300,
        **options,
    )


def lies(root: Path, path: str) -> Path:
    """Where a file of the system is from outside."""
    return root / path.lstrip("/")
