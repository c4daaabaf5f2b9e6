"""What runs: the file site, the metrics site, who watches the store, and an orderly end."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from hmac_file_server.config import Config
from hmac_file_server.daemon.banner import banner
from hmac_file_server.daemon.health import check_all
from hmac_file_server.daemon.host import HostService
from hmac_file_server.daemon.listener import Listener, SharedListener
from hmac_file_server.daemon.notify import Notifier
from hmac_file_server.daemon.share import Share
from hmac_file_server.daemon.signals import ignore_stopping
from hmac_file_server.files.access_log import AccessLog
from hmac_file_server.files.node import Node
from hmac_file_server.files.tree import Root
from hmac_file_server.log import LineLog, Out
from hmac_file_server.metrics import Metrics, MetricsRoot, MetricsSite, Ready
from hmac_file_server.settings.hosts import shared_secrets
from hmac_file_server.slots.secret import weaknesses
from hmac_file_server.stores.interface import IStore
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
        metrics = self._metrics = Metrics(has_hosts=len(config.hosts) > 1)
        self._hosts = [HostService(config, host, metrics.of(host.name), reactor) for host in config.hosts]
        rooms = [host.room for host in self._hosts]
        for host in self._hosts:
            host.room.beside = [room for room in rooms if room is not host.room]
            host.setServiceParent(self)
        self._site = self._make_site(Root([host.place for host in self._hosts]))
        metrics.ready.set_function(lambda: not (self._site.draining or any(room.closed for room in rooms)))
        self._says_hello = shared is None
        self._listener: Listener | SharedListener
        if shared is not None:
            self._listener = SharedListener(shared, config.listen, self._site, reactor)
            self._listener.setServiceParent(self)
            return
        self._listener = Listener(config, "ListenPort", config.listen, self._site, reactor)
        self._listener.setServiceParent(self)
        ready = Ready(lambda: "stopping" if self._site.draining else "", self._check_stores)
        serve_metrics(self, config, MetricsRoot(metrics.registry, ready), reactor)
        # The last to start: by then all listen.
        Notifier(reactor, os.environ, self._status).setServiceParent(self)

    def _check_stores(self) -> Deferred[None]:
        return check_all({host.host.name: host.watch.check for host in self._hosts})

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
        connections.elsewhere = others.counts
        for host in self._hosts:
            host.room.claimed_elsewhere = others.claimed
        claimed = sum(host.room.claimed for host in self._hosts)
        problem = next(filter(None, (host.store.stuck for host in self._hosts)), "")
        return self._metrics.report(), Share(connections.counts, claimed), problem

    def _status(self) -> str:
        free = [host.room.free for host in self._hosts if host.room.free is not None]
        least = f", {min(free) >> 20} MiB free" if free else ""
        return f"{sum(len(host.uploads.active) for host in self._hosts)} uploads running{least}{log_status(self._out)}"

    def startService(self) -> None:
        """Listen, and say where."""
        _raise_descriptor_limit()
        super().startService()
        if self._says_hello:
            say_hello(self._config, [host.store for host in self._hosts])

    def stopService(self) -> Deferred[None]:
        """Let running requests finish within ShutdownTimeout, then cut what is left."""
        for host in self._hosts:
            host.watch.stopService()
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
        idle: Deferred[Any] = DeferredList([host.when_idle() for host in self._hosts])
        idle.addTimeout(_LAST_SECONDS, self._reactor, lambda *_: None)
        return idle.addCallback(lambda _: MultiService.stopService(self))


def log_status(out: Out) -> str:
    """What a line of status says of the log, where the log itself can not say it."""
    return f"; {out.problem}" if out.problem else ""


def serve_metrics(parent: MultiService, config: Config, root: MetricsRoot, reactor: Any) -> None:
    """Add the metrics site to a service, if it is wanted."""
    if config.metrics_enabled:
        site = MetricsSite(root, reactor=reactor)
        Listener(config, "MetricsPort", config.metrics_listen, site, reactor).setServiceParent(parent)


def say_hello(config: Config, stores: Iterable[IStore]) -> None:
    """Log where the daemon is, and what it makes of its configuration."""
    for line in banner(config):
        _log.info("{line}", line=line)
    for warning in config.warnings:
        _log.warn("{warning}", warning=warning)
    if not all(store.keeps_attributes for store in stores):
        what = "the type that was signed, its owner and when it expires"
        _log.warn(
            "StoreDir: the file system keeps no extended attributes: {what} can not be kept with a file", what=what
        )
    for host in config.hosts:
        whose = f" of {host.name}" if len(config.hosts) > 1 else ""
        for weakness in weaknesses(host.secrets):
            _log.warn("{file}: Secret{whose}: {weakness}", file=config.file, whose=whose, weakness=weakness)
    for first, second in shared_secrets(config.hosts):
        _log.warn(
            "{file}: the hosts {first} and {second} share a secret: a slot of one works once below the other, too",
            file=config.file,
            first=first.name,
            second=second.name,
        )


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
