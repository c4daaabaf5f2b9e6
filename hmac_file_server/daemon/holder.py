"""Who has a port, for the operator who finds it taken."""

from __future__ import annotations

import contextlib
import os

_LISTENS = "0A"


def holder(port: int) -> str:
    """The program that listens on a TCP port; empty where this user may not know."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for pid in filter(str.isdigit, os.listdir("/proc") if sockets else ()):
        with contextlib.suppress(OSError):
            if any(os.readlink(entry.path) in sockets for entry in os.scandir(f"/proc/{pid}/fd")):
                return "this daemon" if int(pid) == os.getpid() else f"{_name(pid)} (process {pid})"
    return ""


def _listening(port: int) -> set[str]:
    """The inodes of the sockets that listen on a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table, encoding="ascii") as lines:
            next(lines, None)
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _name(pid: str) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
