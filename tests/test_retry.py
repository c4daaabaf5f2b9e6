from __future__ import annotations

import errno
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from hmac_file_server.files.retry import LONGEST_DELAY, RetryLoop, RetryPolicy
from hmac_file_server.stores.faults import NotDurable, may_pass


def policy(clock: Clock, retries: int = 5, **more: Any) -> RetryPolicy:
    return RetryPolicy(clock, retries, 2.0, jitter=lambda low, high: high, **more)


class Step:
    """Fails so often, then succeeds."""

    def __init__(self, failures: int, error: OSError) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> Deferred[str]:
        self.calls += 1
        return fail(self.error) if self.calls <= self.failures else succeed("done")


def failure_of(deferred: Deferred[Any]) -> BaseException:
    caught: list[BaseException] = []
    deferred.addErrback(lambda failure: caught.append(failure.value))
    assert caught
    return caught[0]


def test_tries_again_after_doubling_delays() -> None:
    """A step that fails is scheduled again after 2, 4, 8... seconds until it succeeds."""
    clock, step = Clock(), Step(3, OSError(errno.EIO, "x"))
    results: list[str] = []
    RetryLoop(policy(clock)).run(step).addCallback(results.append)
    for seconds, calls in ((1.9, 1), (0.1, 2), (3.9, 2), (0.1, 3), (8.0, 4)):
        clock.advance(seconds)
        assert step.calls == calls
    assert results == ["done"]
    assert not clock.getDelayedCalls()


def test_gives_up_after_the_last_try() -> None:
    """After MaxRetries further tries the error itself comes out."""
    clock, step = Clock(), Step(99, OSError(errno.ENOSPC, "full"))
    result = RetryLoop(policy(clock, retries=3)).run(step)
    clock.pump([60] * 10)
    error = failure_of(result)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    assert step.calls == 4


def test_tells_of_each_retry() -> None:
    """Each error that leads to another try is told, for the figures."""
    clock, told = Clock(), []
    RetryLoop(policy(clock, retried=told.append)).run(Step(2, OSError(errno.EIO, "x")))
    clock.pump([60] * 3)
    assert len(told) == 2


def test_counts_each_step_anew() -> None:
    """What one step used up of the tries does not count against the next one."""
    clock = Clock()
    loop = RetryLoop(policy(clock, retries=2))
    for _ in range(3):
        results: list[str] = []
        loop.run(Step(2, OSError(errno.EIO, "x"))).addCallback(results.append)
        clock.pump([60] * 3)
        assert results == ["done"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG, errno.EPERM])
def test_an_error_that_can_not_pass_ends_at_once(number: int) -> None:
    """No retry is wasted on an error that it can not help."""
    clock, step = Clock(), Step(99, OSError(number, "x"))
    failure_of(RetryLoop(policy(clock)).run(step))
    assert step.calls == 1
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    "name",
    "EIO EAGAIN EINTR ENOSPC EDQUOT ESTALE ETIMEDOUT EMFILE ENFILE ENOMEM EBUSY ENOTCONN EHOSTDOWN ESHUTDOWN"
    " EKEYEXPIRED".split(),
)
def test_errors_that_may_pass(name: str) -> None:
    """A full disk, a missing descriptor or a network file system that is gone may come right."""
    assert may_pass(OSError(getattr(errno, name), "x"))


def test_a_lost_flush_does_not_pass() -> None:
    """Repeating a flush that lost its data would prove nothing."""
    assert not may_pass(NotDurable(errno.EIO, "x"))


def test_no_delay() -> None:
    """With a delay of 0 each try follows at once."""
    immediate = RetryPolicy(Clock(), 5, 0.0)
    assert [immediate.delay_before(attempt) for attempt in (1, 2, 1000)] == [0.0, 0.0, 0.0]


def test_the_delay_is_bounded() -> None:
    """However often it fails, the next try is at most a minute away."""
    assert policy(Clock()).delay_before(1000) == LONGEST_DELAY


def test_jitter_spreads_the_tries() -> None:
    """Delays differ, so that all uploads that one fault stopped do not come back at once."""
    delays = {RetryPolicy(Clock(), 5, 2.0).delay_before(3) for _ in range(20)}
    assert len(delays) > 1
    assert all(6.0 <= delay <= 8.0 for delay in delays)


def test_stop_cancels_the_timer() -> None:
    """Stopping between two tries leaves no timer, and the step is not run again."""
    clock, step = Clock(), Step(99, OSError(errno.EIO, "x"))
    loop = RetryLoop(policy(clock))
    result = loop.run(step)
    loop.stop()
    assert isinstance(failure_of(result), OSError)
    assert not clock.getDelayedCalls()
    assert step.calls == 1


def test_stop_waits_for_the_step() -> None:
    """Stopping while the step runs ends only when it has let go of the file."""
    running: Deferred[Any] = Deferred()
    loop = RetryLoop(policy(Clock()))
    result = loop.run(lambda: running)
    loop.stop()
    assert not result.called
    running.errback(OSError(errno.EIO, "x"))
    assert isinstance(failure_of(result), OSError)
