"""The process: reads the settings from standard input, and tells in lines of JSON what it does.

It has the lowest priorities of processor and disk, so that uploads and downloads do not notice it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import sys

import attrs

from hmac_file_server.config import load
from hmac_file_server.housekeeping.rules import COUNT, rules_of
from hmac_file_server.housekeeping.tidy import tidy
from hmac_file_server.stores.errors import Unusable
from hmac_file_server.stores.local.disk import Disk

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv7l": 314, "ppc64le": 273, "s390x": 282}
_WHO_PROCESS, _CLASS_IDLE = 1, 3 << 13


def take_low_priority() -> None:
    """Of processor and disk (nice(2), ioprio_set(2))."""
    with contextlib.suppress(OSError):
        os.nice(19)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)


def _tell(**said: object) -> None:
    print(json.dumps(said), flush=True)


def main(path: str, name: str, only_counts: bool) -> None:
    """Walk once through the store of a host.

    :param path: of the configuration file, for its lines.
    :param only_counts: whether nothing is removed.
    """
    # These go to the whole process group of a shell, and mean the daemon, which ends this in its own way.
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # The daemon has held them back until now.
    take_low_priority()
    config = load(path, sys.stdin.buffer.readline())
    host = next(host for host in config.hosts if host.name == name)
    rules = rules_of(host)
    removes = rules.removes and not only_counts
    try:
        with contextlib.closing(Disk(host.store_dir, config.fsync, removes, config.remember_removed)) as disk:
            outcome = tidy(disk, rules, lambda level, text: _tell(level=level, text=text), only_counts)
    except BrokenPipeError:
        os._exit(1)  # The daemon is gone: nobody waits for an outcome.
    except (Unusable, OSError) as error:
        _tell(level="error", text=str(error))
        raise SystemExit(1) from None
    _tell(outcome=attrs.asdict(outcome), summary=outcome.summary(only_counts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], COUNT in sys.argv[3:])
