"""The time that timers run by."""

from __future__ import annotations

import attrs
from twisted.internet.task import Clock

from hmac_file_server.clock import Awake


@attrs.define
class Monotonic:
    """A clock to set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_passes() -> None:
    """While the process runs its time is that of the clock."""
    clock = Monotonic()
    awake = Awake(clock)
    begun = awake()
    for _ in range(100):
        clock.now += 1.0
        awake()
    assert awake() - begun == 100.0


def test_time_stands_still() -> None:
    """Of a step that is longer than a busy machine explains only so much counts."""
    clock = Monotonic()
    awake = Awake(clock)
    begun = awake()
    for step in (3600.0, 1.0, 10.0, 0.5):
        clock.now += step
        awake()
    assert awake() - begun == 2.5 + 1.0 + 2.5 + 0.5


def test_time_passes_on_a_machine_that_is_always_slow() -> None:
    """Where every turn of the reactor is long timers run all the same."""
    clock = Monotonic()
    awake = Awake(clock)
    begun = awake()
    for _ in range(100):
        clock.now += 3.0
        awake()
    assert awake() - begun == 250.0


def test_a_reactor_looks_at_it_often() -> None:
    """However little there is to do, a reactor that it drives asks it every second or so."""
    reactor, clock = Clock(), Monotonic(0.0)
    Awake(clock).drive(reactor)
    for _ in range(5):
        (call,) = reactor.getDelayedCalls()
        assert 0 < call.getTime() - clock.now <= 1.0
        clock.now = call.getTime()
        reactor.advance(0)
