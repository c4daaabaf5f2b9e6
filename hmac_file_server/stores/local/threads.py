"""Worker threads, for calls that may wait for the disk."""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from hmac_file_server.stores.local.flush import Flusher, Steps, Stepwise, Unflushed

T = TypeVar("T")

Run = Callable[[Callable[[], Any]], "Deferred[Any]"]
"""Runs a function in a thread; the Deferred fires in the reactor's."""

_STUCK_SECONDS = 0.005
_REFUSED_SECONDS = 0.25
_MOST_TOGETHER = 64
_MANY_RESULTS = 32


@attrs.frozen
class Bulk:
    """A call that has the kernel move much data: others need not wait for it, and have the interpreter meanwhile."""

    function: Callable[[], Any]

    def __call__(self) -> Any:
        return self.function()


@attrs.define(eq=False)
class _Job:
    function: Any
    done: Deferred[Any] = attrs.field(factory=Deferred)
    steps: Steps | None = None
    unflushed: Unflushed = ()
    error: BaseException | None = None
    outcome: Any = None


class Threads:
    """A pool of threads of the daemon's own.

    One thread takes call after call, as long as none of them keeps it waiting: two would only wait for each other
    to leave the interpreter. The next one joins in when a call takes longer than a few milliseconds or moves much
    data, or the disk is being flushed. Calls that need a flush are gathered until there is nothing else to do, and
    then share it; afterwards the thread that is at work by then goes on with them.

    :param most: so many threads at once.
    :param name: of each, for debuggers.
    """

    def __init__(self, reactor: Any, most: int, name: str) -> None:
        self._reactor = reactor
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._finished: deque[_Job] = deque()
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._threads = 0
        self._busy = 0
        self._away = 0
        self._told = False
        self._refused = False
        self._ended: Deferred[None] | None = None
        self._last: Callable[[], None] | None = None
        # One that is there always: later the system may have none to give.
        self._start_thread()
        # In the reactor's thread only:
        self._is_new = False
        self._first: _Job | None = None
        self._first_since = 0.0
        self._look: IDelayedCall | None = None

    def run(self, function: Callable[[], T]) -> Deferred[T]:
        """Run a blocking function; the Deferred fires in the reactor's thread."""
        job = _Job(function)
        if not self._is_new:
            # When the reactor has done all that is at hand: until then the two would only be in each other's way.
            self._reactor.callLater(0, self._begin)
            self._is_new = True
        self._jobs.append(job)
        return job.done

    def end(self, last: Callable[[], None]) -> Deferred[None]:
        """Let the threads go when all is done that was asked of them; fires when they have gone, maybe never.

        :param last: what the last one does.
        """
        ended = Deferred[None]()
        with self._lock:
            self._ended, self._last = ended, last
            for _ in range(self._threads - self._busy):
                self._busy += 1
                self._wakeups.put(None)
            has_threads = self._threads > 0
        if not has_threads:
            self._gone()
        return ended

    @property
    def stuck_seconds(self) -> float:
        """How long the next call has been waiting for a thread, while none gave anything back."""
        jobs = self._jobs
        waits = self._first is not None and jobs and jobs[0] is self._first
        return self._reactor.seconds() - self._first_since if waits else 0.0

    def _wake(self) -> None:
        """Let one more thread work, if there may be and can be one more. Needs the lock."""
        if self._busy >= self._most:
            return
        if self._threads == self._busy and not self._refused:
            self._start_thread()
        if self._threads > self._busy:
            self._busy += 1
            self._wakeups.put(None)

    def _start_thread(self) -> None:
        try:
            # Not by threading.Thread: its start() waits, for ever if the new thread finds no memory to begin with.
            # And one that a dead disk never gives back must not keep the process from ending.
            _thread.start_new_thread(self._work, ())
            self._threads += 1
        except (RuntimeError, MemoryError):
            # Each failure costs some memory for good (in Python 3.11), so it is tried again now and then only.
            self._refused = True

    # In the reactor's thread

    def _begin(self) -> None:
        self._is_new = False
        with self._lock:
            if self._jobs and self._busy == self._away:
                self._wake()
        self._watch()

    def _watch(self) -> None:
        if self._look is None:
            self._look_later()

    def _look_later(self) -> None:
        first = self._jobs[0] if self._jobs else None
        if first is not self._first:
            self._first, self._first_since = first, self._reactor.seconds()
        seconds = _REFUSED_SECONDS if self._refused else _STUCK_SECONDS
        self._look = self._reactor.callLater(seconds, self._look_for_stuck)

    def _look_for_stuck(self) -> None:
        """See whether the calls that wait are being taken; if not, let one more thread do it."""
        self._look = None
        with self._lock:
            self._refused = False
            if self._jobs and self._jobs[0] is self._first:
                self._wake()
        self._deliver()
        if self._jobs and self._look is None:
            self._look_later()

    def _deliver(self) -> None:
        self._told = False
        finished = self._finished
        while finished:
            job = finished.popleft()
            job.done.callback(job.outcome)

    # In a thread of the pool

    def _work(self) -> None:
        threading.current_thread().name = self._name
        while True:
            self._wakeups.get()
            if self._empty_queue():
                break
        if not self._threads:
            self._gone()

    def _gone(self) -> None:
        last, self._last = self._last, None
        # What is asked for later finds a thread of its own.
        ended = self._ended
        if last is not None and ended is not None:
            last()
            self._reactor.callFromThread(lambda: ended.callback(None))

    def _empty_queue(self) -> bool:
        """Make the calls that there are.

        :returns: whether the thread is to leave.
        """
        waiting: list[_Job] = []
        while True:
            job = self._next(waiting)
            if job is not None:
                self._advance(job, waiting)
                continue
            self._tell()
            if not waiting:
                if (leaves := self._rest()) is None:
                    continue
                return leaves
            flushed, waiting = waiting, []
            self._flush(flushed)
            with self._lock:
                # They go on before what has come meanwhile, and in the thread that is at it, if one is.
                self._jobs.extendleft(reversed(flushed))
                is_one_too_many = self._busy - self._away > 1
                leaves = is_one_too_many and self._leave_pool()
            if is_one_too_many:
                self._reactor.callFromThread(self._watch)
                return leaves

    def _next(self, waiting: list[_Job]) -> _Job | None:
        """The next call to make; None if first those that wait are to be flushed, or there is nothing to do."""
        with self._lock:
            jobs = self._jobs
            # Whoever waits for a flush does not wait for what may take long.
            if jobs and (not waiting or (len(waiting) < _MOST_TOGETHER and isinstance(jobs[0].function, Stepwise))):
                return jobs.popleft()
            return None

    def _rest(self) -> bool | None:
        """Have nothing to do any more; None if there is something by now."""
        with self._lock:
            return None if self._jobs else self._leave_pool()

    def _leave_pool(self) -> bool:
        """Be busy no more, and, if the pool ends, be no more, in one step: else one could be waked that leaves.

        Needs the lock.
        """
        self._busy -= 1
        leaves = self._ended is not None
        self._threads -= leaves
        return leaves

    def _advance(self, job: _Job, waiting: list[_Job]) -> None:
        """Make a call, up to its end or its next flush."""
        try:
            if isinstance(job.function, Stepwise):
                if self._step(job, job.function):
                    waiting.append(job)
                    return
            elif isinstance(job.function, Bulk):
                self._leave()
                try:
                    job.outcome = job.function()
                finally:
                    self._return()
            else:
                job.outcome = job.function()
        except BaseException:
            job.outcome = Failure()
        self._finished.append(job)
        if len(self._finished) >= _MANY_RESULTS:
            self._tell()

    @staticmethod
    def _step(job: _Job, function: Stepwise) -> bool:
        """Go on to the next flush; False at the end."""
        if job.steps is None:
            job.steps = function.begin()
        try:
            job.unflushed = next(job.steps) if job.error is None else job.steps.throw(job.error)
        except StopIteration:
            return False
        return True

    def _flush(self, jobs: list[_Job]) -> None:
        """Flush what the calls wait for."""
        self._leave()
        by_flusher: dict[Flusher, list[_Job]] = {}
        for job in jobs:
            by_flusher.setdefault(job.function.flusher, []).append(job)
        for flusher, alike in by_flusher.items():
            errors: Sequence[BaseException | None]
            try:
                errors = flusher.flush_all([job.unflushed for job in alike])
            except BaseException as unexpected:  # Nobody knows what is safe: the calls themselves clean up.
                errors = [unexpected] * len(alike)
            for job, error in zip(alike, errors, strict=True):
                job.error = error
        self._return()

    def _leave(self) -> None:
        """The thread is about to be in the kernel for long. What waits, or comes meanwhile, is another one's."""
        with self._lock:
            self._away += 1
            if self._jobs and self._busy == self._away:
                self._wake()

    def _return(self) -> None:
        with self._lock:
            self._away -= 1

    def _tell(self) -> None:
        """Have the reactor fetch what is finished."""
        if self._finished and not self._told:
            self._told = True
            self._reactor.callFromThread(self._deliver)
