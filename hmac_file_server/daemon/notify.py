"""What systemd is told: ready, stopping, alive, and a line of status (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger()

_STATUS_EVERY = 10.0


class Notifier(Service):
    """Speaks to the service manager, if there is one.

    The watchdog is fed by the reactor: a daemon whose reactor hangs is restarted.

    :param environment: has ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` from systemd.
    :param status: one line for ``systemctl status``.
    """

    def __init__(self, clock: IReactorTime, environment: Mapping[str, str], status: Callable[[], str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._status = status
        self._is_heard = True
        every = _STATUS_EVERY
        self._watchdog = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = self._watchdog and environment.get("WATCHDOG_USEC", "").isdigit()
        if self._watchdog:
            # Not half of it, as is usual: one turn of the reactor that is long is no reason to be restarted.
            every = min(every, int(environment["WATCHDOG_USEC"]) / 4_000_000)
        self._every = max(every, 0.01)
        self._calls = LoopingCall(self._tell_status)
        self._calls.clock = clock

    def startService(self) -> None:
        """Everything listens: say so, and go on saying that all is well."""
        super().startService()
        if self._address:
            self._tell("READY=1")
            self._calls.start(self._every)

    def reloading(self) -> None:
        """Say that the configuration is being read again (``RELOADING=1``)."""
        if self._address and self.running:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """Say that this is over, however it went."""
        if self._address and self.running:
            self._tell("READY=1")

    def stopService(self) -> None:
        """Say that the daemon drains."""
        super().stopService()
        if self._calls.running:
            self._calls.stop()
            self._tell("STOPPING=1", "STATUS=finishing what runs")

    def _tell_status(self) -> None:
        alive = ("WATCHDOG=1",) if self._watchdog else ()
        self._tell(f"STATUS={self._status()}", *alive)

    def _tell(self, *lines: str) -> None:
        # A leading @ stands for the NUL byte of an abstract address.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(lines).encode("utf-8"), address)
        except OSError as error:
            if self._is_heard:
                _log.warn("systemd can not be told: {error}", error=error.strerror)
            self._is_heard = False
        else:
            self._is_heard = True
