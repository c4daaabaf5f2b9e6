"""The retry loop: a step that the disk refused is tried again later, by the reactor's clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from hmac_file_server.stores.faults import may_pass, where

_log = Logger()

LONGEST_DELAY = 60.0
"""Seconds; the delay doubles until it gets here."""


@attrs.frozen
class RetryPolicy:
    """How often and how soon a step is tried again.

    :param clock: schedules the tries.
    :param retries: tries after the first one.
    :param delay: seconds before the first of them; then doubling, with jitter, up to :data:`LONGEST_DELAY`.
    :param retried: told of each error that leads to another try.
    """

    clock: IReactorTime
    retries: int
    delay: float
    retried: Callable[[OSError], None] = lambda error: None
    jitter: Callable[[float, float], float] = random.uniform

    def delay_before(self, attempt: int) -> float:
        """Seconds to wait before a try; attempt 1 is the first one after a failure."""
        longest = min(self.delay * 2.0 ** min(attempt - 1, 32), LONGEST_DELAY)
        return longest * self.jitter(0.75, 1.0)


class RetryLoop:
    """Runs one upload's steps, one at a time, each again and again until it succeeds or is given up.

    Nothing waits: between two tries there is only a timer.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._timer: IDelayedCall | None = None
        self._last: Failure | None = None
        self._waiting: Deferred[None] | None = None
        self._attempts = 0
        self._stopped = False

    def run(self, step: Callable[[], Deferred[Any]], before: Callable[[], None] = lambda: None) -> Deferred[Any]:
        """Run a step until it succeeds.

        :param before: called here before each try; an OSError of it counts as the step's.
        :returns: fires with its result, or fails with the error that can not pass, the last error
            when the tries are used up, or after :meth:`stop`.
        """
        self._attempts = 0
        return self._try(step, before)

    def stop(self) -> None:
        """Try no more. A step that is running is waited for; then its own outcome counts."""
        self._stopped = True
        if self._timer is not None and self._waiting is not None:
            self._timer.cancel()
            self._timer = None
            self._waiting.errback(self._last)

    def _try(self, step: Callable[[], Deferred[Any]], before: Callable[[], None]) -> Deferred[Any]:
        try:
            before()
        except OSError:
            tried: Deferred[Any] = fail()
        else:
            tried = step()
        return tried.addErrback(self._failed, step, before)

    def _failed(
        self, failure: Failure, step: Callable[[], Deferred[Any]], before: Callable[[], None]
    ) -> Failure | Deferred[Any]:
        error = failure.value
        if self._stopped or not may_pass(error) or self._attempts >= self._policy.retries:
            return failure
        assert isinstance(error, OSError)
        self._attempts += 1
        delay = self._policy.delay_before(self._attempts)
        _log.warn(
            "the store failed, trying again in {delay:.1f} s ({attempt} of {retries}): {error}",
            delay=delay,
            attempt=self._attempts,
            retries=self._policy.retries,
            error=where(error),
            path=error.filename,
        )
        self._policy.retried(error)
        self._last = failure
        self._waiting = Deferred()
        self._timer = self._policy.clock.callLater(delay, self._wait_is_over)
        return self._waiting.addCallback(lambda _: self._try(step, before))

    def _wait_is_over(self) -> None:
        waiting, self._waiting, self._timer = self._waiting, None, None
        assert waiting is not None
        waiting.callback(None)
