"""The configuration, read again while the daemon runs: as a whole, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from hmac_file_server.config import Config, load
from hmac_file_server.daemon.notify import Notifier
from hmac_file_server.metrics import ReloadMetrics
from hmac_file_server.settings.problems import ConfigError

_log = Logger()

STOPPING = "the daemon is about to stop"

T = TypeVar("T")


def in_thread(reactor: Any, call: Callable[[], T]) -> Deferred[T]:
    """Run what may wait for a disk or a name server. Not in the reactor's threads, which the end would wait for."""
    done: Deferred[T] = Deferred()

    def run() -> None:
        result: Any
        try:
            result = call()
        except BaseException:
            result = Failure()
        reactor.callFromThread(done.callback, result)

    threading.Thread(target=run, daemon=True, name="reload").start()
    return done


class Reload:
    """Reads the configuration again whenever it is called; what is asked for meanwhile is done once, afterwards.

    :param path: of the configuration file.
    :param current: gives the configuration that holds.
    :param prepare: does what can fail, in a thread, and changes nothing yet.
    :param apply: takes the configuration and what was prepared for it; raises ConfigError if it has changed nothing.
    :param notifier: is told.
    :param figures: likewise.
    """

    def __init__(
        self,
        path: str,
        current: Callable[[], Config],
        prepare: Callable[[Config], T],
        apply: Callable[[Config, T], Awaitable[None]],
        reactor: Any,
        notifier: Notifier,
        figures: ReloadMetrics,
    ) -> None:
        self._path = path
        self._current = current
        self._prepare: Callable[[Config], Any] = prepare
        self._apply: Callable[[Config, Any], Awaitable[None]] = apply
        self._reactor = reactor
        self._notifier = notifier
        self._figures = figures
        self._runs = False
        self._again = False

    def __call__(self) -> None:
        """Read it again."""
        self._again = True
        if not self._runs:
            self._runs = True
            done = Deferred.fromCoroutine(self._until_done())
            done.addErrback(lambda failure: _log.failure("a bug in reading the configuration again", failure))

    async def _until_done(self) -> None:
        try:
            while self._again:
                self._again = False
                await self._reload()
        finally:
            self._runs = False

    async def _reload(self) -> None:
        self._notifier.reloading()
        succeeded = False
        try:
            config, fixed = await in_thread(self._reactor, self._load)
            prepared = await in_thread(self._reactor, lambda: self._prepare(config))
            await self._apply(config, prepared)
            succeeded = True
            _log.info("the configuration was read again")
            if fixed:
                _log.warn("{file}: {keys} changes with the next start only", file=self._path, keys=", ".join(fixed))
            for warning in config.warnings:
                _log.warn("{warning}", warning=warning)
        except ConfigError as error:
            _log.error("the configuration stays as it was: {line}", line=str(error))
        except Exception:
            _log.failure("the configuration stays as it was: a bug in reading it again")
        finally:
            self._figures.reloaded(succeeded)
            self._notifier.reloaded()

    def _load(self) -> tuple[Config, list[str]]:
        return load(self._path).keeping(self._current())
