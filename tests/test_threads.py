from __future__ import annotations

import _thread
import contextlib
import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from hmac_file_server.stores.local import filesystem, flush
from hmac_file_server.stores.local.flush import Flusher, Steps, Stepwise
from hmac_file_server.stores.local.threads import Bulk, Threads
from tests.support import DEADLINE, eventually


class Reactor(Clock):
    """A clock that the test moves, and a queue for what threads ask for."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue()
        self.thread = threading.get_ident()

    def callFromThread(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def wait_for(self, result: Deferred[Any]) -> Any:
        """What the Deferred fires with."""
        fired: list[Any] = []
        result.addBoth(fired.append)
        self.advance(0)
        while not fired:
            self._calls.get(timeout=DEADLINE)()
        return fired[0]

    def pass_time(self) -> None:
        """Do what threads ask for, and then what is due a little later."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()
        self.advance(0.01)


class Gate:
    """A call that does not return before it may."""

    def __init__(self) -> None:
        self._entered, self._open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._entered.set()
        assert self._open.wait(DEADLINE)

    def wait_until_entered(self) -> None:
        assert self._entered.wait(DEADLINE)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def flusher_with_syncfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flusher]:
    """One that may flush its file system as a whole, whatever that is."""
    monkeypatch.setattr(filesystem, "_type", lambda descriptor: 0xEF53)
    root = os.open(tmp_path, os.O_RDONLY)
    yield Flusher(root)
    os.close(root)


@pytest.fixture
def flusher(flusher_with_syncfs: Flusher, monkeypatch: pytest.MonkeyPatch) -> Flusher:
    """One that has no syncfs."""
    monkeypatch.setattr(flusher_with_syncfs, "_sync_all", lambda: False)
    return flusher_with_syncfs


def test_results_and_failures(reactor: Reactor) -> None:
    """A call runs in another thread; what it returns or raises arrives in the reactor's."""
    threads = Threads(reactor, 2, "test")
    assert reactor.wait_for(threads.run(threading.get_ident)) != reactor.thread
    arrived = threads.run(lambda: None).addCallback(lambda _: threading.get_ident())
    assert reactor.wait_for(arrived) == reactor.thread
    assert reactor.wait_for(threads.run(lambda: 1 // 0)).check(ZeroDivisionError)


def test_a_plain_stop_iteration_is_a_failure(reactor: Reactor) -> None:
    """What a call raises is never taken for its end."""
    threads = Threads(reactor, 1, "test")
    assert reactor.wait_for(threads.run(lambda: next(iter(())))).check(StopIteration)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("from_the_start", [False, True])
def test_no_thread_can_be_started_for_a_while(
    reactor: Reactor, gate: Gate, monkeypatch: pytest.MonkeyPatch, error: Exception, from_the_start: bool
) -> None:
    """While the system has no more threads calls wait for those that there are; afterwards all is well."""
    tries: list[object] = []

    def start(function: object, arguments: object) -> None:
        tries.append(function)
        raise error

    threads = Threads(reactor, 2, "test")
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", start)
        if from_the_start:
            threads = Threads(reactor, 2, "test")
        else:
            assert reactor.wait_for(threads.run(lambda: "done")) == "done"
        stuck, behind = threads.run(gate), threads.run(lambda: "done")
        for _ in range(100):
            reactor.advance(0.01)
        assert not behind.called
        assert 2 <= len(tries) <= 6
    while not behind.called:
        reactor.advance(0.01)
    assert behind.result == "done"
    gate.open()
    assert reactor.wait_for(stuck) is None


@pytest.mark.parametrize("flushed_by", ["the pool", "the call"])
def test_a_flush_that_raises_whatever(
    reactor: Reactor, flusher: Flusher, monkeypatch: pytest.MonkeyPatch, flushed_by: str
) -> None:
    """A flush that fails in a way that nobody expects fails its calls, which can clean up, and ends no thread."""
    threads, cleaned = Threads(reactor, 1, "test"), []

    def flush_all(all_unflushed: object) -> None:
        raise MemoryError

    monkeypatch.setattr(flusher, "flush_all", flush_all)

    def steps() -> Steps:
        try:
            yield [0]
        finally:
            cleaned.append(True)

    call = Stepwise(steps, flusher)
    function = call if flushed_by == "the pool" else call.__call__
    results = [threads.run(function) for _ in range(2)]
    assert all(reactor.wait_for(result).check(MemoryError) for result in results)
    assert cleaned == [True, True]
    assert reactor.wait_for(threads.run(lambda: "done")) == "done"


def test_one_thread_is_enough_for_quick_calls(reactor: Reactor) -> None:
    """Calls that do not wait run one after the other, in their order, in one thread."""
    threads = Threads(reactor, 8, "test")
    ran: list[int] = []
    results = [threads.run(lambda number=number: (ran.append(number), threading.get_ident())) for number in range(50)]
    used = {reactor.wait_for(result)[1] for result in results}
    assert ran == list(range(50))
    assert len(used) == 1


def test_a_stuck_call_is_passed(reactor: Reactor, gate: Gate) -> None:
    """A call that waits for the disk keeps others waiting for a few milliseconds at most."""
    threads = Threads(reactor, 2, "test")
    stuck = threads.run(gate)
    reactor.advance(0)
    gate.wait_until_entered()
    behind = threads.run(lambda: "done")
    while not behind.called:
        reactor.advance(0.01)
    assert behind.result == "done"
    assert not stuck.called
    reactor.advance(0.01)
    assert not reactor.getDelayedCalls(), "nobody waits, so nothing is looked for"
    gate.open()
    assert reactor.wait_for(stuck) is None


def test_all_threads_are_stuck(reactor: Reactor) -> None:
    """While no thread gives anything back, how long the next call has waited is told, until it is taken."""
    threads = Threads(reactor, 2, "test")
    gates = [Gate() for _ in range(2)]
    results = [threads.run(gate) for gate in gates]
    for gate in gates:
        while not gate._entered.is_set():
            reactor.advance(0.01)
    assert threads.stuck_seconds == 0
    behind = threads.run(lambda: "done")
    for _ in range(20):
        reactor.advance(1)
    assert threads.stuck_seconds > 15
    for gate in gates:
        gate.open()
    assert reactor.wait_for(behind) == "done"
    assert threads.stuck_seconds == 0
    for result in results:
        assert reactor.wait_for(result) is None


def test_no_more_threads_than_allowed(reactor: Reactor) -> None:
    """However many calls are stuck, so many threads work at once and no more."""
    threads = Threads(reactor, 3, "test")
    gates = [Gate() for _ in range(5)]
    results = [threads.run(gate) for gate in gates]
    for gate in gates[:3]:
        while not gate._entered.is_set():
            reactor.advance(0.01)
    for _ in range(10):
        reactor.advance(0.01)
    assert not any(gate._entered.is_set() for gate in gates[3:])
    for gate in gates:
        gate.open()
    for result in results:
        assert reactor.wait_for(result) is None


def test_flushes_are_shared(reactor: Reactor, gate: Gate, flusher: Flusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """What many calls want to have flushed is flushed once for all of them, and each hears of its own error."""
    threads = Threads(reactor, 1, "test")
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    folder = os.open("/", os.O_RDONLY)
    flushed: list[int] = []

    def fsync(descriptor: int) -> None:
        flushed.append(descriptor)
        if descriptor == files[5]:
            raise OSError(errno.EIO, "lost")

    def steps(number: int) -> Steps:
        yield [files[number]]
        yield [folder]

    monkeypatch.setattr(os, "fsync", fsync)
    threads.run(gate)
    reactor.advance(0)
    gate.wait_until_entered()
    results = [threads.run(Stepwise(lambda number=number: steps(number), flusher)) for number in range(len(files))]
    gate.open()
    outcomes = [reactor.wait_for(result) for result in results]
    assert [number for number, outcome in enumerate(outcomes) if outcome is not None] == [5]
    assert outcomes[5].check(OSError)
    assert flushed == [*files, folder]
    for descriptor in (*files, folder):
        os.close(descriptor)


def test_what_was_lost_is_told_once(flusher_with_syncfs: Flusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the file system has told of a loss, which may be anybody's, each file is asked for by itself for ever."""
    told, flushed = iter([0, -1, 0]), []

    class Libc:
        @staticmethod
        def syncfs(descriptor: int) -> int:
            return next(told)

    monkeypatch.setattr(flush, "_libc", Libc)
    monkeypatch.setattr(os, "fsync", flushed.append)
    for expected in ([], [1, 2, 3], [1, 2, 3, 1, 2, 3]):
        assert flusher_with_syncfs.flush_all([[1], [2], [3]]) == [None] * 3
        assert flushed == expected


def test_only_known_file_systems_are_synced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody knows what syncfs does, each file is flushed by itself."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    proc = os.open("/proc", os.O_RDONLY)
    assert Flusher(proc).flush_all([[1], [2], [3]]) == [None] * 3
    os.close(proc)
    assert flushed == [1, 2, 3]


def test_a_flush_keeps_nobody_waiting(
    reactor: Reactor, gate: Gate, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread flushes, another takes what comes, at once."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: gate())
    threads = Threads(reactor, 2, "test")

    def steps() -> Steps:
        yield [0]

    flushing = threads.run(Stepwise(steps, flusher))
    reactor.advance(0)
    gate.wait_until_entered()
    assert reactor.wait_for(threads.run(lambda: "done")) == "done"
    assert not flushing.called
    gate.open()
    assert reactor.wait_for(flushing) is None


def test_moving_much_keeps_nobody_waiting(reactor: Reactor, gate: Gate) -> None:
    """While one thread has the kernel move much data, another takes what comes, at once."""
    threads = Threads(reactor, 2, "test")
    moving = threads.run(Bulk(lambda: (gate(), "moved")))
    behind = threads.run(lambda: "done")
    assert reactor.wait_for(behind) == "done"
    assert not moving.called
    gate.open()
    assert reactor.wait_for(moving) == (None, "moved")


def test_moving_that_fails(reactor: Reactor) -> None:
    """What it raises arrives, and the thread is there for the next call."""
    threads = Threads(reactor, 1, "test")
    assert reactor.wait_for(threads.run(Bulk(lambda: 1 // 0))).check(ZeroDivisionError)
    assert reactor.wait_for(threads.run(Bulk(lambda: "done"))) == "done"


def test_what_takes_long_waits_behind_the_flush(
    reactor: Reactor, gate: Gate, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that have come to their flush do not wait for a call behind them that shares none."""
    threads, before, long = Threads(reactor, 1, "test"), Gate(), Gate()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def steps() -> Steps:
        yield [0]

    threads.run(before)
    reactor.advance(0)
    before.wait_until_entered()
    shared = threads.run(Stepwise(steps, flusher))
    threads.run(long)
    before.open()
    long.wait_until_entered()
    while not shared.called:
        reactor.advance(0.01)
    long.open()


def test_after_a_flush_one_thread_goes_on_with_all(
    reactor: Reactor, gate: Gate, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been flushed goes on in the thread that is at work meanwhile: two would be in each other's way."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: gate())
    threads, other, ran_in = Threads(reactor, 2, "test"), Gate(), []

    def steps() -> Steps:
        yield [0]
        ran_in.append(threading.get_ident())

    flushed = threads.run(Stepwise(steps, flusher))
    reactor.advance(0)
    gate.wait_until_entered()
    busy = threads.run(lambda: (other(), ran_in.append(threading.get_ident())))
    reactor.advance(0)
    other.wait_until_entered()
    gate.open()
    eventually(lambda: threads._busy == 1, what="the thread that flushed has nothing to do")
    other.open()
    reactor.wait_for(busy)
    reactor.wait_for(flushed)
    assert len(ran_in) == 2
    assert len(set(ran_in)) == 1


def test_after_a_flush_nobody_waits_for_a_stuck_call(
    reactor: Reactor, gate: Gate, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been flushed does not wait for the thread at work when that comes to nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: gate())
    threads, stuck = Threads(reactor, 2, "test"), Gate()

    def steps() -> Steps:
        yield [0]

    flushed = threads.run(Stepwise(steps, flusher))
    reactor.advance(0)
    gate.wait_until_entered()
    threads.run(stuck)
    reactor.advance(0)
    stuck.wait_until_entered()
    while reactor.getDelayedCalls():
        reactor.pass_time()
    gate.open()
    eventually(lambda: [reactor.pass_time()] and flushed.called, what="what was flushed has gone on")
    stuck.open()


def test_the_end() -> None:
    """At the end all is done that was asked for, then the last thread does what is left, and none remains."""
    reactor = Reactor()
    threads = Threads(reactor, 4, "ending")
    said: list[str] = []
    gate = Gate()
    stuck = threads.run(gate)
    reactor.pass_time()
    gate.wait_until_entered()
    asked = threads.run(lambda: said.append("asked before"))
    ended = threads.end(lambda: said.append(f"last of {threading.current_thread().name}"))
    assert said == []
    gate.open()
    reactor.wait_for(stuck)
    reactor.wait_for(asked)
    reactor.wait_for(ended)
    assert said == ["asked before", "last of ending"]
    late = threads.run(lambda: said.append("late"))
    eventually(lambda: reactor.pass_time() or late.called, what="what is asked for too late is done all the same")
    assert said[-1] == "late"
