"""Worker threads, for calls that may wait for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")


class Threads(Service):
    """A pool of threads of the daemon's own.

    :param most: so many at once.
    :param name: of each, for debuggers.
    """

    def __init__(self, reactor: Any, most: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, most, name)
        # A thread that a dead disk never gives back must not keep the process from ending.
        self._pool.threadFactory = lambda *args, **named: threading.Thread(*args, daemon=True, **named)  # type: ignore[assignment]

    def startService(self) -> None:
        super().startService()
        self._pool.start()

    def stopService(self) -> None:
        super().stopService()
        if not self._pool.working:
            self._pool.stop()

    def run(self, function: Callable[[], T]) -> Deferred[T]:
        """Run a blocking function; the Deferred fires in the reactor's thread."""
        return deferToThreadPool(self._reactor, self._pool, function)
