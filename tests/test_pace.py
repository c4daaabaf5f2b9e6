"""How fast bytes must move, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from twisted.internet.task import Clock

from hmac_file_server.web.connections import Limits
from hmac_file_server.web.pace import Pace, Reader


@attrs.define
class Side:
    """What moves bytes, or does not."""

    clock: Clock = attrs.field(factory=Clock)
    moved: int = 0
    cut: bool = False

    def pace(self, least: float, span: float) -> Pace:
        pace = Pace(self.clock, lambda: self.moved, least, span, self._cut)
        pace.go()
        return pace

    def reader(self, **limits: float) -> Reader:
        return Reader(self.clock, Limits(**limits), lambda: self.moved, self._cut)  # type: ignore[arg-type]

    def _cut(self) -> None:
        assert not self.cut
        self.cut = True

    def run(self, seconds: float, move: Callable[[float], int], step: float = 1.0) -> float:
        """Let time pass.

        :param move: how many bytes move in a step that ends at that time.
        :returns: when it was over, or cut off.
        """
        begun = self.clock.seconds()
        while self.clock.seconds() - begun < seconds and not self.cut:
            self.moved += move(self.clock.seconds() + step - begun)
            self.clock.advance(step)
        return self.clock.seconds() - begun


@pytest.fixture
def side() -> Side:
    return Side()


def test_bursts(side: Side) -> None:
    """Whatever the pieces are: what counts is what has moved in the whole span."""
    side.pace(6000, 60)
    side.run(600, lambda now: 6000 if now % 60 == 59 else 0)
    assert not side.cut


def test_a_trickle(side: Side) -> None:
    """A little too little is cut off at the end of the span."""
    side.pace(6000, 60)
    assert side.run(600, lambda now: 99) == 60
    assert side.cut


def test_pauses_do_not_count(side: Side) -> None:
    """Time for which our own disk stops the client is not the client's."""
    pace = side.pace(6000, 60)
    for _ in range(100):
        side.run(5, lambda now: 100)
        pace.pause()
        side.run(1000, lambda now: 0)
        pace.go()
    assert not side.cut


def test_pauses_break_no_span_off(side: Side) -> None:
    """A client that is stopped again and again must keep up all the same."""
    pace = side.pace(6000, 60)
    for _ in range(12):
        assert not side.cut
        side.run(5, lambda now: 50)
        pace.pause()
        side.run(3, lambda now: 0)
        pace.go()
    side.run(1, lambda now: 0)
    assert side.cut


def test_no_rate(side: Side) -> None:
    """Where no rate is asked for, nobody looks."""
    side.pace(0, 60)
    assert side.clock.getDelayedCalls() == []


def test_end(side: Side) -> None:
    """Nobody looks at what is over, and no timer is left; ending twice is no mistake."""
    pace = side.pace(1, 60)
    reader = side.reader(min_rate=256)
    for thing in (pace, reader, pace, reader):
        thing.end()
    pace.pause()
    pace.go()
    assert side.clock.getDelayedCalls() == []


def test_a_reader_behind_a_proxy(side: Side) -> None:
    """A proxy that takes 1.5 MB every two minutes, as nginx does for a reader of 12 KB/s, is waited for."""
    side.reader(min_rate=256)
    side.run(7200, lambda now: 1_500_000 if now % 122 == 0 else 0)
    assert not side.cut


def test_a_reader_that_takes_nothing(side: Side) -> None:
    """A reader that takes nothing is cut off after five IdleTimeouts at the latest, and not after three."""
    side.reader(min_rate=256, idle_timeout=10)
    assert 30 < side.run(600, lambda now: 1_000_000 if now < 7 else 0) <= 50
    assert side.cut


def test_a_reader_that_takes_nothing_at_any_rate(side: Side) -> None:
    """That is so where no rate is asked for, too."""
    side.reader(min_rate=0, idle_timeout=10)
    side.run(600, lambda now: 0)
    assert side.cut


@pytest.mark.parametrize(("rate", "cut"), [(255, True), (256, False)])
def test_a_reader_that_trickles(side: Side, rate: int, cut: bool) -> None:
    """A reader that takes less than MinRate in ten minutes is cut off, one that takes as much is not."""
    side.reader(min_rate=256, idle_timeout=10)
    seconds = side.run(3600, lambda now: rate)
    assert (side.cut, seconds) == (cut, 600 if cut else 3600)


def test_a_reader_that_waits_for_us(side: Side) -> None:
    """While a reader waits for our disk it is not blamed."""
    reader = side.reader(min_rate=256, idle_timeout=10)
    for _ in range(100):
        reader.pause()
        side.run(100, lambda now: 0)
        reader.go()
        side.run(0.1, lambda now: 30, step=0.1)
    assert not side.cut
