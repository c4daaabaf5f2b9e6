#!/usr/bin/python3
"""A stand-in for systemctl in a chroot, for the package's unit alone: starts and stops what its ExecStart says, as its
User, and writes down what it was asked for.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

NAME = "hmac-file-server.service"
UNIT = Path("/usr/lib/systemd/system", NAME)
WANTED = Path("/etc/systemd/system/multi-user.target.wants", NAME)
PID = Path("/run/main.pid")
ASKED = Path("/run/systemctl.log")
LOG = Path("/run/daemon.log")
NOTIFY = Path("/run/notify")


def settings() -> dict[str, str]:
    """The last value of each key of the unit."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if not line.startswith("#")]
    return {key: value for key, _, value in lines}


def is_active() -> bool:
    """Whether the main process runs. One that nobody has waited for has ended, too."""
    try:
        return Path(f"/proc/{PID.read_text()}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def start() -> int:
    if is_active():
        return 0
    unit = settings()
    folder = Path("/var/log", unit["LogsDirectory"])
    folder.mkdir(exist_ok=True)
    folder.chmod(int(unit["LogsDirectoryMode"], 8))
    os.system(f"chown {unit['User']}: {folder}")
    NOTIFY.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, LOG.open("ab") as log:
        manager.bind(str(NOTIFY))
        NOTIFY.chmod(0o666)
        manager.settimeout(0.1)
        process = subprocess.Popen(
            shlex.split(unit["ExecStart"]),
            user=unit["User"],
            group=unit["Group"],
            extra_groups=[],
            umask=int(unit["UMask"], 8),
            env={"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": str(NOTIFY)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        PID.write_text(str(process.pid))
        end = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < end:
            try:
                if b"READY=1" in manager.recv(4096):
                    return 0
            except TimeoutError:
                pass
    return 1


def stop() -> int:
    end = time.monotonic() + int(settings()["TimeoutStopSec"])
    if is_active():
        os.kill(int(PID.read_text()), signal.SIGTERM)
    while is_active():
        if time.monotonic() > end:
            os.kill(int(PID.read_text()), signal.SIGKILL)
            return 1
        time.sleep(0.05)
    return 0


def main() -> int:
    """Do as the first word says that is no option. What is unknown is done at once."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    with ASKED.open("a") as asked:
        print(*words, file=asked)
    match words[0]:
        case "start":
            return start()
        case "stop":
            return stop()
        case "restart":
            return stop() or start()
        case "is-active":
            return 0 if is_active() else 3
        case "enable" | "preset":
            WANTED.parent.mkdir(parents=True, exist_ok=True)
            WANTED.unlink(missing_ok=True)
            WANTED.symlink_to(UNIT)
        case "disable":
            WANTED.unlink(missing_ok=True)
        case "is-enabled":
            print("enabled" if WANTED.is_symlink() else "disabled")
            return 0 if WANTED.is_symlink() else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
