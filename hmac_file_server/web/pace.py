"""How fast bytes move: clients that keep up are waited for, the others are cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from hmac_file_server.web.connections import Limits

if TYPE_CHECKING:
    from hmac_file_server.web.request import Request

_LONG_SPAN = 600.0
_STILL_SPANS = 4


class Pace:
    """Looks at how much has moved in each span of time. A pause belongs to none, and breaks none off.

    :param moved: tells how many bytes have moved so far.
    :param least: how many must move in a span; for 0 nobody looks.
    :param span: seconds.
    :param too_slow: called once, when fewer did.
    :param spans: in so many spans, one after the other.
    """

    def __init__(
        self,
        clock: IReactorTime,
        moved: Callable[[], int],
        least: float,
        span: float,
        too_slow: Callable[[], None],
        spans: int = 1,
    ) -> None:
        self._clock = clock
        self._moved = moved
        self._least = least
        self._span = span
        self._too_slow = too_slow
        self._spans = spans
        self._slow = 0
        self._timer: IDelayedCall | None = None
        self._before = 0
        self._left = span
        self._since: float | None = None

    def go(self) -> None:
        """From now on time counts."""
        if self._least <= 0 or self._since is not None:
            return
        self._since = self._clock.seconds()
        if self._timer is None:
            # A first time, or a pause has outlasted the span.
            if self._left == self._span:
                self._before = self._moved()
            self._timer = self._clock.callLater(max(0.0, self._left), self._look)

    def pause(self) -> None:
        """From now on time does not count."""
        if self._since is not None:
            self._left -= self._clock.seconds() - self._since
            self._since = None

    def end(self) -> None:
        """Nobody looks any more."""
        self._least = 0
        self._since = None
        # What they belong to has this object: together they would wait for the collector.
        self._moved, self._too_slow = int, _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        self.pause()
        if self._left <= 0:
            self._slow = self._slow + 1 if self._moved() - self._before < self._least else 0
            if self._slow >= self._spans:
                too_slow = self._too_slow
                self.end()
                too_slow()
                return
            self._left = self._span
        self.go()


def of_body(request: Request, too_slow: Callable[[], None]) -> Pace:
    """The pace of a request's body, which its client must keep up over each ``UploadTimeout``."""
    limits = request.site.limits
    least = limits.min_rate * limits.upload_timeout
    return Pace(request.site.reactor, lambda: request.body_received, least, limits.upload_timeout, too_slow)


class Reader:
    """Whether a client takes what it is sent: cut off is one that takes nothing, or less than ``MinRate`` for long.

    What counts is what has left our queue, not what went into it: the kernel takes megabytes at once, and a proxy,
    which has buffers of its own, takes nothing for minutes between two helpings.

    :param taken: tells how many bytes have left so far.
    :param cut: called once, when it does not.
    """

    def __init__(self, clock: IReactorTime, limits: Limits, taken: Callable[[], int], cut: Callable[[], None]) -> None:
        def too_slow() -> None:
            self.end()
            cut()

        self._paces: tuple[Pace, ...] = (
            Pace(clock, taken, 1, limits.idle_timeout, too_slow, _STILL_SPANS),
            Pace(clock, taken, limits.min_rate * _LONG_SPAN, _LONG_SPAN, too_slow),
        )
        self.go()

    def go(self) -> None:
        """From now on it is the client who is waited for."""
        for pace in self._paces:
            pace.go()

    def pause(self) -> None:
        """From now on the client waits."""
        for pace in self._paces:
            pace.pause()

    def end(self) -> None:
        """Nobody looks any more."""
        paces, self._paces = self._paces, ()
        for pace in paces:
            pace.end()


def _nothing() -> None:
    pass
