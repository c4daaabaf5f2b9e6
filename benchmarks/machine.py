"""The machine: what processes use, what others take meanwhile, and memory that is warm."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20
_LISTENING = "0A"


# Processes


def tree(roots: Iterable[int]) -> list[int]:
    """The processes and their descendants."""
    children: dict[int, list[int]] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        fields = _stat(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.append(pid)
            waiting += children.get(pid, [])
    return found


def cpu(pids: Iterable[int]) -> float:
    """Seconds that the processes have used, with those of their children that have ended."""
    return sum(sum(map(int, fields[11:15])) for fields in map(_stat, pids) if fields) * _TICK


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def memory(pids: Iterable[int], field: str = "VmRSS") -> int:
    """Bytes of resident memory, summed: VmRSS for now, VmHWM for the most since :func:`reset_peak`."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))
    return total


def reset_peak(pids: Iterable[int]) -> None:
    """Forget the peaks so far."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def listeners(port: int) -> list[int]:
    """The processes of this machine that listen on a port; empty if there are none or they are not ours to see."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _holds(pid, sockets)]


def _holds(pid: int, sockets: set[str]) -> bool:
    try:
        folder = f"/proc/{pid}/fd"
        return any(os.readlink(f"{folder}/{descriptor}") in sockets for descriptor in os.listdir(folder))
    except OSError:
        return False


# Neighbours


class Others:
    """How much of the machine everybody else uses, from its making on.

    :param targets: processes that belong to the benchmark though it did not start them.
    """

    def __init__(self, targets: Iterable[int] = ()) -> None:
        self._targets = list(targets)
        self._began = time.monotonic()
        self._busy, self._ours = _busy(), self._own()

    def _own(self) -> float:
        return cpu(tree([os.getpid(), *self._targets]))

    def share(self) -> float:
        """The part of all cores, from 0 to 1: other programs here, and other machines on the same host."""
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        taken = (_busy() - self._busy) - (self._own() - self._ours)
        return min(1.0, max(0.0, taken / seconds))


def _busy() -> float:
    user, nice, system, _, _, _, _, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + steal) * _TICK


def wait_until_idle(targets: Iterable[int], share: float, patience: float) -> float:
    """Wait until others use less than a share of the machine, but no longer than so many seconds; how long it was."""
    began = time.monotonic()
    while time.monotonic() < began + patience:
        others = Others(targets)
        time.sleep(0.2)
        if others.share() < share:
            break
    return time.monotonic() - began


# Memory


class WarmMemory:
    """Memory that was touched already, given back piece by piece while a program that is measured takes some.

    A virtual machine's free memory may be the host's until somebody touches it, which takes ten times as long as
    writing to it. Without this the first upload would pay for that, and the next one would not.

    :param size: bytes.
    """

    _PIECE = 32 * _MIB
    _AHEAD = 128 * _MIB

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: list[mmap.mmap] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def fill(self) -> None:
        """Take what is missing, and touch it. Soon after files were emptied it is their memory, which is warm."""
        while len(self._pieces) * self._PIECE < self._size:
            piece = mmap.mmap(-1, self._PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):
                # Whole blocks: file systems take large pieces for large files, and leave small ones alone.
                piece.madvise(mmap.MADV_HUGEPAGE)
            piece[:: mmap.PAGESIZE] = b"\1" * (self._PIECE // mmap.PAGESIZE)
            self._pieces.append(piece)

    def __enter__(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._release, args=(_free_memory() + self._AHEAD,), daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def _release(self, level: int) -> None:
        """Keep some more free than at the beginning."""
        while self._pieces and not self._ended.is_set():
            if _free_memory() < level:
                self._pieces.pop().close()
            else:
                self._ended.wait(0.004)

    def close(self) -> None:
        """Let go of all."""
        while self._pieces:
            self._pieces.pop().close()


def _free_memory() -> int:
    return _meminfo("MemFree")


def available_memory() -> int:
    """Bytes that programs could take."""
    return _meminfo("MemAvailable")


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(field)


# Its shape


def shape(folder: Path) -> str:
    """One line: cores, memory, kernel, the file system of a folder."""
    cores = os.cpu_count()
    model = _first_line("/proc/cpuinfo", lambda line: line.startswith("model name")).partition(":")[2].strip()
    total = _meminfo("MemTotal") / (1 << 30)
    kernel = ".".join(platform.release().split(".")[:2])
    kind = platform.machine() + (f", {model}" if model else "")
    return f"{cores} cores ({kind}), {total:.0f} GiB of memory, Linux {kernel}, {_file_system(folder)}"


def _first_line(path: str, wanted: Callable[[str], bool]) -> str:
    return next(filter(wanted, Path(path).read_text().splitlines()), "")


def _file_system(folder: Path) -> str:
    best = ("", "?")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]
