"""Health: whether the store can take uploads, asked all the time, and when somebody wants to know."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from hmac_file_server.config import Config
from hmac_file_server.settings.hosts import Host
from hmac_file_server.settings.problems import NotYet
from hmac_file_server.stores.errors import Unusable
from hmac_file_server.stores.faults import explain, is_lasting
from hmac_file_server.stores.interface import IStore
from hmac_file_server.stores.local.store import LocalStore
from hmac_file_server.stores.room import Claimant, Room, Space

_log = Logger()

_LOOK_EVERY = 1.0
_LATE_SECONDS = 10.0
_READY_SECONDS = 3.0

T = TypeVar("T")


def open_store(config: Config, host: Host, reactor: Any) -> LocalStore:
    """:raises ConfigError: if StoreDir can not be a store."""
    if not os.path.lexists(host.store_dir):
        # It may be a new one, or lie on a disk that is not mounted.
        _log.warn("StoreDir {folder} is not there and is made", folder=host.store_dir)
    try:
        return LocalStore.at(host.store_dir, config.fsync, reactor, bool(host.delete_secret), config.remember_removed)
    except Unusable as error:
        reason = str(error)
        if isinstance(error.__cause__, NotADirectoryError | FileExistsError):
            reason = f"{error.__cause__.strerror}; it must be a folder that the daemon's user can write to"
        raise NotYet(config.problem("StoreDir", host.store_dir, reason)) from None


class StoreWatch(Service):
    """Looks at the store all the time, and keeps account of its room by what it sees.

    :param running: tells the uploads that run.
    """

    def __init__(
        self, store: IStore, room: Room, running: Callable[[], Iterable[Claimant]], clock: IReactorTime
    ) -> None:
        self._store = store
        self._room = room
        self._running = running
        self._clock = clock
        self._problem = ""
        self._check = StoreCheck(store, clock)
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def startService(self) -> None:
        super().startService()
        self._store.sweep().addCallbacks(self._swept, self._failed)
        self._looking.start(_LOOK_EVERY)

    def stopService(self) -> None:
        super().stopService()
        if self._looking.running:
            self._looking.stop()

    def check(self) -> Deferred[None]:
        """As :meth:`StoreCheck.ask`."""
        if problem := self._room.away or self._store.stuck:
            return fail(Unusable(problem))
        return self._check.ask()

    def _look(self) -> Deferred[None]:
        late = self._clock.callLater(_LATE_SECONDS, self._is_late)

        def answered(result: T) -> T:
            if late.active():
                late.cancel()
            return result

        looked = self._store.look(self._room.ran_out).addBoth(answered)
        return looked.addCallbacks(self._looked, self._failed)

    def _looked(self, space: Space) -> None:
        self._room.found(space, self._running())
        self._problem = ""

    def _swept(self, removed: int) -> None:
        if removed:
            _log.info("removed {removed} unfinished uploads of an earlier run", removed=removed)

    def _is_late(self) -> None:
        self._failed(Failure(Unusable("the disk does not answer")))

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        problem = explain(error)
        if is_lasting(error) and not isinstance(error, FileNotFoundError):
            self._room.refused()
        else:
            # What is not there may be mounted again.
            self._room.lost(problem, isinstance(error, Unusable) and error.lasting)
        if problem != self._problem:
            path = getattr(error, "filename", None)
            _log.error("StoreDir can not be used: {problem}", problem=problem, path=path)
        self._problem = problem


class StoreCheck:
    """Asks whether a file could be made in the store. Until the disk has answered it is asked nothing more."""

    def __init__(self, store: IStore, clock: IReactorTime) -> None:
        self._store, self._clock = store, clock
        self._is_asked = False
        self._waiting: list[Deferred[None]] = []

    def ask(self) -> Deferred[None]:
        """Fires when one could; fails when none can, or the disk takes too long to say so."""
        answer: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(answer)
        if not self._is_asked:
            self._is_asked = True
            self._store.check_writable().addBoth(self._answered)
        late = Failure(Unusable("the disk does not answer"))
        return answer.addTimeout(_READY_SECONDS, self._clock, lambda *_: late)

    def _answered(self, result: Any) -> None:
        self._is_asked = False
        for answer in self._waiting[:]:
            self._waiting.remove(answer)
            answer.callback(result)


def check_all(checks: Mapping[str, Callable[[], Deferred[None]]]) -> Deferred[None]:
    """Ask the stores of all hosts; fails as the first that fails, with the name of its host if there are several.

    :param checks: asks each, by the host's name.
    """

    def named(failure: Failure, name: str) -> Failure:
        return failure if len(checks) == 1 else Failure(Unusable(f"{name}: {failure.value}"))

    asked = [check().addErrback(named, name) for name, check in checks.items()]
    all_asked = DeferredList(asked, fireOnOneErrback=True, consumeErrors=True)
    return all_asked.addCallbacks(lambda _: None, lambda failure: failure.value.subFailure)
