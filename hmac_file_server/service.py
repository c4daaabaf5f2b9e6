"""What runs: the file site, the metrics site, the threads for the disk, and an orderly end."""

from __future__ import annotations

import os
import resource
import secrets
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.application import strports
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.web.server import Site as PlainSite

from hmac_file_server import __version__
from hmac_file_server.config import EXAMPLE_SECRET, Config, ConfigError
from hmac_file_server.listen import Listen
from hmac_file_server.metrics import Metrics, MetricsRoot, Ready
from hmac_file_server.notify import Notifier
from hmac_file_server.slots.signature import Verifier, sign
from hmac_file_server.stores.local import LocalStore, Unusable
from hmac_file_server.stores.room import Room
from hmac_file_server.uploads.retry import RetryPolicy
from hmac_file_server.uploads.upload import Uploads
from hmac_file_server.web.access import Access
from hmac_file_server.web.limits import Limits
from hmac_file_server.web.resource import Files, root
from hmac_file_server.web.site import Site

_log = Logger()

_WRITERS = 32
_READERS = 16
_LOOK_EVERY = 1.0

ENDPOINTS = "https://docs.twisted.org/en/stable/core/howto/endpoints.html"

T = TypeVar("T")


class FileService(MultiService):
    """The daemon.

    :raises ConfigError: if StoreDir can not be a store; :meth:`startService` exits likewise when an
        address is taken.
    """

    def __init__(self, config: Config, reactor: Any) -> None:
        super().__init__()
        self._config = config
        self._reactor = reactor
        self._room = Room(config.min_free_space)
        self._metrics = metrics = Metrics()
        try:
            self._store = LocalStore(config.store_dir, config.fsync)
        except Unusable as error:
            reason = f"{error}; it must be a folder that the daemon's user can write to"
            raise ConfigError(config.problem("StoreDir", config.store_dir, reason)) from None
        # Readers of their own, so that no number of uploads to a slow disk keeps a download waiting.
        self._writers = _Threads(reactor, _WRITERS, "writer")
        self._readers = _Threads(reactor, _READERS, "reader")
        policy = RetryPolicy(
            reactor, config.max_retries, config.retry_delay, lambda error: metrics.upload_retries.inc()
        )
        self._uploads = uploads = Uploads(self._store, self._room, self._writers.run, policy, config.chunk_size)
        metrics.uploads_in_progress.set_function(lambda: len(uploads.active))
        metrics.store_free.set_function(lambda: self._room.free or 0)
        files = Files(
            Verifier(config.secrets),
            self._store,
            uploads,
            config.max_upload_size,
            self._readers.run,
        )
        access = Access(metrics, reactor, config.trusted_proxies)
        self._site = Site(root(config.upload_sub_dir, files), reactor, _limits(config), access.ended)
        self._writers.setServiceParent(self)
        self._readers.setServiceParent(self)
        self._listener = _Listener(config, "ListenPort", config.listen, self._site, reactor)
        self._listener.setServiceParent(self)
        if config.metrics_enabled:
            self._serve_metrics()
        # The last to start: by then all listen.
        self._notifier = Notifier(reactor, os.environ, self._status)
        self._notifier.setServiceParent(self)

    def _serve_metrics(self) -> None:
        ready = Ready(lambda: self._site.draining, lambda: self._readers.run(self._store.check_writable))
        site = _MetricsSite(MetricsRoot(self._metrics, ready), reactor=self._reactor)
        listen = self._config.metrics_listen
        _Listener(self._config, "MetricsPort", listen, site, self._reactor).setServiceParent(self)

    def _status(self) -> str:
        free = "" if self._room.free is None else f", {self._room.free >> 20} MiB free"
        return f"{len(self._uploads.active)} uploads running{free}"

    def startService(self) -> None:
        """Listen, and say where."""
        _raise_descriptor_limit()
        super().startService()
        for line in self._banner():
            _log.info("{line}", line=line)
        for warning in self._config.warnings:
            _log.warn("{warning}", warning=warning)
        self._store_problem = ""
        self._writers.run(self._store.sweep).addCallbacks(self._swept, self._store_failed)
        self._looking = LoopingCall(self._look_at_store)
        self._looking.clock = self._reactor
        self._looking.start(_LOOK_EVERY)

    def stopService(self) -> Deferred[None]:
        """Let running requests finish within ShutdownTimeout, then cut what is left."""
        self._looking.stop()
        self._notifier.stopService()
        timeout = self._config.shutdown_timeout
        drained = self._listener.stopService().addCallback(lambda _: self._site.drain())
        late = self._reactor.callLater(timeout, self._cut)
        return drained.addCallback(self._close, late)

    def _cut(self) -> None:
        _log.warn("requests still ran at the end of ShutdownTimeout and are cut off")
        self._site.abort()

    def _close(self, _: None, late: Any) -> Deferred[None]:
        if late.active():
            late.cancel()
        closed: Deferred[None] = MultiService.stopService(self)
        return closed.addCallback(lambda _: self._store.close())

    def _look_at_store(self) -> None:
        self._readers.run(self._store.look).addCallbacks(self._looked, self._store_failed)

    def _looked(self, free: int) -> None:
        self._room.found(free, self._uploads.active)
        self._store_problem = ""

    def _swept(self, removed: int) -> None:
        if removed:
            _log.info("removed {removed} unfinished uploads of an earlier run", removed=removed)

    def _store_failed(self, failure: Failure) -> None:
        problem = str(failure.value)
        self._room.lost(problem)
        if problem != self._store_problem:
            _log.error("StoreDir can not be used: {problem}", problem=problem)
        self._store_problem = problem

    def _banner(self) -> list[str]:
        config = self._config
        where = f"http://{config.listen.authority}" if config.listen.authority else config.listen.endpoint
        lines = [
            f"hmac-file-server {__version__} listens on {where}/{_slashed(config.upload_sub_dir)}",
            f"files are stored in {config.store_dir}",
        ]
        if config.metrics_enabled:
            place = config.metrics_listen
            lines.append(
                f"metrics are at {'http://' + place.authority if place.authority else place.endpoint}/metrics"
            )
        else:
            lines.append("metrics are off")
        if EXAMPLE_SECRET in config.secrets:
            # Only with the secret that is public anyway; a usable signature never goes to a log.
            path = f"try-{secrets.token_hex(4)}/hello.txt"
            url = f"{where}/{_slashed(config.upload_sub_dir)}{path}"
            signature = sign(EXAMPLE_SECRET, f"{path} 5".encode())
            lines.append(f"try it: curl -g -X PUT --data-binary hello '{url}?v={signature}' && curl -g '{url}'")
        return lines


class _MetricsSite(PlainSite):
    noisy = False

    def log(self, request: Any) -> None:
        """Scrapes come every few seconds and are not worth a line."""


def _raise_descriptor_limit() -> None:
    """Use as many descriptors as the system lets us; the default is made for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _limits(config: Config) -> Limits:
    return Limits(
        upload_timeout=config.upload_timeout,
        idle_timeout=config.idle_timeout,
        min_rate=config.min_rate,
        connections=config.max_connections,
        per_address=config.max_connections_per_address,
        proxies=config.trusted_proxies,
    )


def _slashed(prefix: str) -> str:
    return f"{prefix}/" if prefix else ""


class _Listener(Service):
    """Listens as one key of the configuration says, or ends the start with one line."""

    def __init__(self, config: Config, key: str, listen: Listen, factory: IProtocolFactory, reactor: Any) -> None:
        self._config, self._key, self._listen = config, key, listen
        try:
            self._service = strports.service(listen.description, factory, reactor)
        except Exception as error:  # whatever the endpoint's own parser lets out
            reason = f"{type(error).__name__}: {error}; see {ENDPOINTS}"
            raise ConfigError(config.problem(key, listen.given, reason)) from None

    def startService(self) -> None:
        super().startService()
        try:
            self._service.startService()
        except (CannotListenError, OSError, ValueError) as error:
            reason = str(getattr(error, "socketError", error))
            line = self._config.problem(self._key, self._listen.given, f"{reason}; free it or choose another")
            raise SystemExit(line) from None

    def stopService(self) -> Deferred[None]:
        if not self.running:
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done
        super().stopService()
        stopped: Deferred[None] = self._service.stopService()
        return stopped


class _Threads(Service):
    """Worker threads for calls that may wait for the disk."""

    def __init__(self, reactor: Any, most: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, most, name)
        # A thread that a dead disk never gives back must not keep the process from ending.
        self._pool.threadFactory = lambda *args, **named: threading.Thread(*args, daemon=True, **named)  # type: ignore[assignment]

    def startService(self) -> None:
        super().startService()
        self._pool.start()

    def stopService(self) -> None:
        super().stopService()
        if not self._pool.working:
            self._pool.stop()

    def run(self, function: Callable[[], T]) -> Deferred[T]:
        """Run a blocking function; the Deferred fires in the reactor's thread."""
        return deferToThreadPool(self._reactor, self._pool, function)
