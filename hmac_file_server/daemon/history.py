"""What was done in each minute of the last day, kept in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

_MINUTE = 60.0
_DAY = 24 * 60

Counts = tuple[float, ...]


class History(Service):
    """Looks at counters once a minute, from its start on.

    :param totals: tells what they are at.
    :ivar since: when it began, in seconds since 1970.
    """

    def __init__(self, totals: Callable[[], Counts], clock: IReactorTime) -> None:
        self._totals = totals
        self._minutes: deque[Counts] = deque(maxlen=_DAY - 1)
        self._before: Counts = ()
        self._looking = LoopingCall.withCount(self._look)
        self._looking.clock = clock
        self.since = time.time()

    def startService(self) -> None:
        super().startService()
        self.since = time.time()
        self._before = self._totals()
        self._looking.start(_MINUTE, now=False)

    def stopService(self) -> None:
        super().stopService()
        if self._looking.running:
            self._looking.stop()

    def _look(self, minutes: int) -> None:
        now = self._totals()
        nothing = (0.0,) * len(now)
        self._minutes.extend([nothing] * min(minutes - 1, _DAY))
        self._minutes.append(self._done(now))
        self._before = now

    def _done(self, now: Counts) -> Counts:
        # Counters may begin anew, when the number of hosts changes.
        return tuple(max(0.0, after - before) for after, before in zip(now, self._before, strict=True))

    def last(self, spans: int, minutes: int) -> Sequence[Counts]:
        """What was done in so many spans of so many minutes, the running one last."""
        each = [*self._minutes, self._done(self._totals())]
        nothing = (0.0,) * len(each[-1])
        each = [nothing] * (spans * minutes - len(each)) + each[-spans * minutes :]
        return [
            tuple(map(sum, zip(*each[begin : begin + minutes], strict=True)))
            for begin in range(0, spans * minutes, minutes)
        ]
