"""What runs: the file site, the metrics site, who watches the store, and an orderly end."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from hmac_file_server.config import Config
from hmac_file_server.daemon.banner import banner
from hmac_file_server.daemon.health import StoreWatch, open_store
from hmac_file_server.daemon.listener import Listener, SharedListener
from hmac_file_server.daemon.notify import Notifier
from hmac_file_server.daemon.share import Share
from hmac_file_server.daemon.signals import ignore_stopping
from hmac_file_server.files.access_log import AccessLog
from hmac_file_server.files.node import Node
from hmac_file_server.files.resource import Files
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.tree import Prefix, root
from hmac_file_server.files.upload import Uploads
from hmac_file_server.log import LineLog, Out
from hmac_file_server.metrics import Metrics, MetricsRoot, MetricsSite, Ready
from hmac_file_server.resumption import wiring
from hmac_file_server.slots.removal import Removal
from hmac_file_server.slots.secret import EXAMPLE_SECRET, weaknesses
from hmac_file_server.slots.verifier import Verifier
from hmac_file_server.stores.interface import IStore
from hmac_file_server.stores.room import Room
from hmac_file_server.web.client import Proxies
from hmac_file_server.web.connections import Limits
from hmac_file_server.web.hints import Hints
from hmac_file_server.web.site import Site

_log = Logger()

_LAST_SECONDS = 5.0


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
        self._out = out
        self._room = room = Room(config.min_free_space)
        metrics = self._metrics = Metrics()
        self._store = store = open_store(config, reactor)
        # Before anything listens, so that the first upload is measured too.
        room.found(store.space, ())
        policy = RetryPolicy(
            reactor, config.max_retries, config.retry_delay, lambda error: metrics.upload_retries.inc()
        )
        self._uploads = uploads = Uploads(store, room, policy, config.chunk_size)
        self._watch = StoreWatch(store, room, lambda: uploads.active, reactor)
        self._watch.setServiceParent(self)
        files = Files(
            Verifier(config.secrets),
            Serving(store, reactor),
            uploads,
            config.max_upload_size,
            Removal(config.secrets, config.delete_secret) if config.delete_secret else None,
            Verifier([EXAMPLE_SECRET]) if EXAMPLE_SECRET in config.secrets else None,
        )
        place = Prefix(files)
        # The wing: without these lines no upload can be resumed, and all else works.
        keeper = wiring.keep_sessions(config, store, uploads, metrics, reactor)
        keeper.setServiceParent(self)
        if config.resumable_uploads:
            place = wiring.make_resumable(config, store, uploads, keeper, files, reactor)
        # End of the wing.
        self._site = self._make_site(root(config.upload_sub_dir, place, files))
        metrics.uploads_in_progress.set_function(lambda: len(uploads.active))
        metrics.store_free.set_function(lambda: math.nan if room.free is None else room.free)
        metrics.ready.set_function(lambda: not (self._site.draining or room.closed))
        self._says_hello = shared is None
        self._listener: Listener | SharedListener
        if shared is not None:
            self._listener = SharedListener(shared, config.listen, self._site, reactor)
            self._listener.setServiceParent(self)
            return
        self._listener = Listener(config, "ListenPort", config.listen, self._site, reactor)
        self._listener.setServiceParent(self)
        ready = Ready(lambda: "stopping" if self._site.draining else "", self._watch.check)
        serve_metrics(self, config, MetricsRoot(metrics.registry, ready), reactor)
        # The last to start: by then all listen.
        Notifier(reactor, os.environ, self._status).setServiceParent(self)

    def _make_site(self, tree: Node) -> Site:
        config = self._config
        access_log = AccessLog(self._metrics, self._reactor, LineLog(self._out, config.log_level))
        hints = Hints(config.listen.endpoint, config.trusted_proxies)
        return Site(tree, self._reactor, _limits(config), access_log.ended, access_log.turned_away, hints)

    def report(self, others: Share) -> tuple[bytes, Share, str]:
        """For the parent of several workers: the figures, the own share of what is bounded, and why nothing gets done.

        :param others: what the other workers have.
        """
        connections = self._site.connections
        connections.elsewhere, self._room.claimed_elsewhere = others.counts, others.claimed
        return self._metrics.report(), Share(connections.counts, self._room.claimed), self._store.stuck

    def _status(self) -> str:
        free = "" if self._room.free is None else f", {self._room.free >> 20} MiB free"
        return f"{len(self._uploads.active)} uploads running{free}{log_status(self._out)}"

    def startService(self) -> None:
        """Listen, and say where."""
        _raise_descriptor_limit()
        super().startService()
        if self._says_hello:
            say_hello(self._config, self._store)

    def stopService(self) -> Deferred[None]:
        """Let running requests finish within ShutdownTimeout, then cut what is left."""
        self._watch.stopService()
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


def log_status(out: Out) -> str:
    """What a line of status says of the log, where the log itself can not say it."""
    return f"; {out.problem}" if out.problem else ""


def serve_metrics(parent: MultiService, config: Config, root: MetricsRoot, reactor: Any) -> None:
    """Add the metrics site to a service, if it is wanted."""
    if config.metrics_enabled:
        site = MetricsSite(root, reactor=reactor)
        Listener(config, "MetricsPort", config.metrics_listen, site, reactor).setServiceParent(parent)


def say_hello(config: Config, store: IStore) -> None:
    """Log where the daemon is, and what it makes of its configuration."""
    for line in banner(config):
        _log.info("{line}", line=line)
    for warning in config.warnings:
        _log.warn("{warning}", warning=warning)
    if not store.keeps_attributes:
        what = "the type that was signed, its owner and when it expires"
        _log.warn(
            "StoreDir: the file system keeps no extended attributes: {what} can not be kept with a file", what=what
        )
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
