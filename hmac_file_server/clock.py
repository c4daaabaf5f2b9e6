"""The time that timers run by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_BEAT = 1.0
_LONGEST_STEP = 2.5


class Awake:
    """Seconds in which this process could run.

    By default timers follow the wall clock: set forward it would cut what runs, set back it would stop them. And while
    the process is stopped, or its machine sleeps, nobody is read from: that clients said nothing is not their fault.

    :param clock: one that is never set.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._missed = 0.0

    def __call__(self) -> float:
        """Now. Between two calls, which are frequent, no more time has passed than a busy machine explains."""
        now = self._clock()
        if now - self._last > _LONGEST_STEP:
            self._missed += now - self._last - _LONGEST_STEP
        self._last = now
        return now - self._missed

    def drive(self, reactor: Any) -> None:
        """Become a reactor's clock, before anything is scheduled on it."""
        reactor.seconds = self

        def beat() -> None:
            reactor.callLater(_BEAT, beat)

        beat()
