"""What runs: the file site, the metrics site, the threads for the disk, and an orderly end."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from hmac_file_server.config import Config, NotYet
from hmac_file_server.daemon.banner import banner
from hmac_file_server.daemon.listener import Listener, SharedListener
from hmac_file_server.daemon.notify import Notifier
from hmac_file_server.daemon.share import Share
from hmac_file_server.daemon.signals import ignore_stopping
from hmac_file_server.files.access_log import Access
from hmac_file_server.files.resource import Files, root
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.upload import Uploads
from hmac_file_server.log import Lines, Out
from hmac_file_server.metrics import Metrics, MetricsRoot, MetricsSite, Ready
from hmac_file_server.resumption.keeper import FileKeeper
from hmac_file_server.resumption.resource import Resumption
from hmac_file_server.resumption.upload import Resumables
from hmac_file_server.slots.secret import EXAMPLE_SECRET, weaknesses
from hmac_file_server.slots.signature import Verifier
from hmac_file_server.stores.faults import explain, is_lasting
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.local.store import LocalStore, Unusable
from hmac_file_server.stores.local.threads import Threads
from hmac_file_server.stores.room import Room, Space
from hmac_file_server.web.client import Proxies
from hmac_file_server.web.connections import Limits
from hmac_file_server.web.hints import Hints
from hmac_file_server.web.site import Site

if TYPE_CHECKING:
    from hmac_file_server.resumption.rediskeeper import RedisKeeper

_log = Logger()

_WRITERS = 32
_READERS = 16
_LOOK_EVERY = 1.0
_LATE_SECONDS = 10.0
_READY_SECONDS = 3.0
_LAST_SECONDS = 5.0

T = TypeVar("T")


class FileService(MultiService):
    """The daemon.

    :param out: where it logs.
    :param shared: descriptor of the socket to accept from, for one worker of several; what is there once for all
        of them is the business of their parent.
    :raises ConfigError: if StoreDir can not be a store; :meth:`startService` exits likewise when an
        address is taken.
    """

    def __init__(self, config: Config, reactor: Any, out: Out, shared: int | None = None) -> None:
        super().__init__()
        self._config = config
        self._reactor = reactor
        self._room = Room(config.min_free_space)
        self._metrics = metrics = Metrics()
        self._store = open_store(config)
        # Before anything listens, so that the first upload is measured too.
        self._room.found(self._store.look(), ())
        # Readers of their own, so that no number of uploads to a slow disk keeps a download waiting.
        self._writers = Threads(reactor, _WRITERS, "writer")
        self._readers = Threads(reactor, _READERS, "reader")
        # And one more, so that looking at a disk that does not answer keeps nobody waiting.
        self._looker = Threads(reactor, 1, "looker")
        policy = RetryPolicy(
            reactor, config.max_retries, config.retry_delay, lambda error: metrics.upload_retries.inc()
        )
        self._keeper = self._make_keeper()
        self._uploads = uploads = Uploads(
            self._store, self._room, self._writers.run, policy, config.chunk_size, self._keeper
        )
        resumption = None
        if config.resumable_uploads:
            resumables = Resumables(self._store, uploads, self._keeper, reactor, config.session_timeout)
            resumption = Resumption(resumables, config.upload_sub_dir, config.max_upload_size)
        metrics.sessions_kept.set_function(self._keeper.kept)
        metrics.uploads_in_progress.set_function(lambda: len(uploads.active))
        metrics.store_free.set_function(lambda: math.nan if self._room.free is None else self._room.free)
        metrics.ready.set_function(lambda: not (self._site.draining or self._room.closed))
        files = Files(
            Verifier(config.secrets),
            Serving(self._store, self._readers.run, reactor),
            uploads,
            config.max_upload_size,
            resumption,
            Verifier([EXAMPLE_SECRET]) if EXAMPLE_SECRET in config.secrets else None,
        )
        self._out = out
        access = Access(metrics, reactor, Lines(out, config.log_level))
        tree = root(config.upload_sub_dir, files, resumption)
        hints = Hints(config.listen.endpoint, config.trusted_proxies)
        self._site = Site(tree, reactor, _limits(config), access.ended, access.turned_away, hints)
        self._keeper.setServiceParent(self)
        self._says_hello = shared is None
        self._listener: Listener | SharedListener
        if shared is not None:
            self._listener = SharedListener(shared, config.listen, self._site, reactor)
            self._listener.setServiceParent(self)
            return
        self._listener = Listener(config, "ListenPort", config.listen, self._site, reactor)
        self._listener.setServiceParent(self)
        ready = Ready(lambda: "stopping" if self._site.draining else "", self._check_store)
        self._store_check = StoreCheck(self._store, self._looker, reactor)
        serve_metrics(self, config, MetricsRoot(metrics.registry, ready), reactor)
        # The last to start: by then all listen.
        Notifier(reactor, os.environ, self._status).setServiceParent(self)

    def _check_store(self) -> Deferred[None]:
        if self._room.away:
            return fail(Unusable(self._room.away))
        return self._store_check.ask()

    def _make_keeper(self) -> FileKeeper | RedisKeeper:
        config, timeout = self._config, self._config.session_timeout
        files = FileKeeper(lambda: SessionFiles(self._store.place, timeout), self._readers.run, self._reactor)
        if config.redis is None:
            return files
        from hmac_file_server.resumption.rediskeeper import RedisKeeper, connector

        connect = connector(config.redis, config.redis_password, config.redis_db)
        return RedisKeeper(files, connect, self._reactor, config.redis_prefix, timeout, *self._metrics.of_redis())

    def report(self, others: Share) -> tuple[bytes, Share]:
        """The figures and the own share of what is bounded, for the parent of several workers.

        :param others: what the other workers have.
        """
        crowd = self._site.crowd
        crowd.elsewhere, self._room.claimed_elsewhere = others, others.claimed
        return self._metrics.report(), crowd.share(self._room.claimed)

    def _status(self) -> str:
        free = "" if self._room.free is None else f", {self._room.free >> 20} MiB free"
        return f"{len(self._uploads.active)} uploads running{free}{log_status(self._out)}"

    def startService(self) -> None:
        """Listen, and say where."""
        _raise_descriptor_limit()
        super().startService()
        if self._says_hello:
            say_hello(self._config)
        self._store_problem = ""
        self._writers.run(self._store.sweep).addCallbacks(self._swept, self._store_failed)
        self._looking = LoopingCall(self._look_at_store)
        self._looking.clock = self._reactor
        self._looking.start(_LOOK_EVERY)

    def stopService(self) -> Deferred[None]:
        """Let running requests finish within ShutdownTimeout, then cut what is left."""
        self._looking.stop()
        for service in self:
            if isinstance(service, Notifier):
                service.stopService()
        timeout = self._config.shutdown_timeout
        drained = self._listener.stopService().addCallback(lambda _: self._site.drain())
        late = self._reactor.callLater(timeout, self._cut)
        ignore_stopping()
        return drained.addCallback(self._close, late)

    def _cut(self) -> None:
        _log.warn("requests still ran at the end of ShutdownTimeout and are cut off")
        self._site.abort()

    def _close(self, _: None, late: Any) -> Deferred[None]:
        if late.active():
            late.cancel()
        # What was cut off is still being made safe, for clients that will go on with it.
        idle = self._uploads.when_idle().addTimeout(_LAST_SECONDS, self._reactor, lambda *_: None)
        return idle.addCallback(lambda _: self._stop_rest())

    def _stop_rest(self) -> Deferred[None]:
        closed: Deferred[None] = MultiService.stopService(self)
        return closed.addCallback(lambda _: self._store.close())

    def _look_at_store(self) -> Deferred[None]:
        late = self._reactor.callLater(_LATE_SECONDS, self._store_is_late)

        def answered(result: T) -> T:
            if late.active():
                late.cancel()
            return result

        looked = self._looker.run(lambda: self._store.look(self._room.ran_out)).addBoth(answered)
        return looked.addCallbacks(self._looked, self._store_failed)

    def _looked(self, space: Space) -> None:
        self._room.found(space, self._uploads.active)
        self._store_problem = ""

    def _swept(self, removed: int) -> None:
        if removed:
            _log.info("removed {removed} unfinished uploads of an earlier run", removed=removed)

    def _store_is_late(self) -> None:
        self._store_failed(Failure(Unusable("the disk does not answer")))

    def _store_failed(self, failure: Failure) -> None:
        error = failure.value
        problem = explain(error)
        if is_lasting(error) and not isinstance(error, FileNotFoundError):
            self._room.refused()
        else:
            # What is not there may be mounted again.
            self._room.lost(problem, isinstance(error, Unusable) and error.lasting)
        if problem != self._store_problem:
            _log.error("StoreDir can not be used: {problem}", problem=problem)
        self._store_problem = problem


def log_status(out: Out) -> str:
    """What a line of status says of the log, where the log itself can not say it."""
    return f"; {out.problem}" if out.problem else ""


def open_store(config: Config) -> LocalStore:
    """:raises ConfigError: if StoreDir can not be a store."""
    if not os.path.lexists(config.store_dir):
        # It may be a new one, or lie on a disk that is not mounted.
        _log.warn("StoreDir {folder} is not there and is made", folder=config.store_dir)
    try:
        return LocalStore(config.store_dir, config.fsync)
    except Unusable as error:
        reason = str(error)
        if isinstance(error.__cause__, NotADirectoryError | FileExistsError):
            reason = f"{error.__cause__.strerror}; it must be a folder that the daemon's user can write to"
        raise NotYet(config.problem("StoreDir", config.store_dir, reason)) from None


class StoreCheck:
    """Asks whether a file could be made in the store. Until the disk has answered it is asked nothing more."""

    def __init__(self, store: LocalStore, looker: Threads, clock: IReactorTime) -> None:
        self._store, self._looker, self._clock = store, looker, clock
        self._is_asked = False
        self._waiting: list[Deferred[None]] = []

    def ask(self) -> Deferred[None]:
        """Fires when one could; fails when none can, or the disk takes too long to say so."""
        answer: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(answer)
        if not self._is_asked:
            self._is_asked = True
            self._looker.run(self._store.check_writable).addBoth(self._answered)
        late = Failure(Unusable("the disk does not answer"))
        return answer.addTimeout(_READY_SECONDS, self._clock, lambda *_: late)

    def _answered(self, result: Any) -> None:
        self._is_asked = False
        for answer in self._waiting[:]:
            self._waiting.remove(answer)
            answer.callback(result)


def serve_metrics(parent: MultiService, config: Config, root: MetricsRoot, reactor: Any) -> None:
    """Add the metrics site to a service, if it is wanted."""
    if config.metrics_enabled:
        site = MetricsSite(root, reactor=reactor)
        Listener(config, "MetricsPort", config.metrics_listen, site, reactor).setServiceParent(parent)


def say_hello(config: Config) -> None:
    """Log where the daemon is, and what it makes of its configuration."""
    for line in banner(config):
        _log.info("{line}", line=line)
    for warning in config.warnings:
        _log.warn("{warning}", warning=warning)
    for weakness in weaknesses(config.secrets):
        _log.warn("{file}: Secret: {weakness}", file=config.file, weakness=weakness)


def _raise_descriptor_limit() -> None:
    """Use as many descriptors as the system lets us; the default is made for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A sandbox may forbid it, or the system have no longer so many.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _limits(config: Config) -> Limits:
    return Limits(
        upload_timeout=config.upload_timeout,
        idle_timeout=config.idle_timeout,
        min_rate=config.min_rate,
        connections=config.max_connections,
        per_address=config.max_connections_per_address,
        proxies=Proxies(config.trusted_proxies, config.proxies_pass_104, config.listen.is_proxied),
    )
