"""What runs: the file site, the metrics site, who watches the store, and an orderly end."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from prometheus_client import CollectorRegistry
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from hmac_file_server.config import Config, advice_on_secrets, load
from hmac_file_server.daemon.banner import banner
from hmac_file_server.daemon.health import check_all, open_store
from hmac_file_server.daemon.host import HostService
from hmac_file_server.daemon.housekeeper import Housekeeper
from hmac_file_server.daemon.listener import Listener, SharedListener
from hmac_file_server.daemon.logfile import LogWriter, check_log
from hmac_file_server.daemon.metrics_site import MetricsService, Ready
from hmac_file_server.daemon.notify import Notifier
from hmac_file_server.daemon.reload import STOPPING, Reload, in_thread
from hmac_file_server.daemon.share import Share
from hmac_file_server.daemon.signals import ignore_stopping
from hmac_file_server.daemon.status import Overview, Status
from hmac_file_server.files.access_log import AccessLog
from hmac_file_server.files.tree import Root
from hmac_file_server.log import FORMS, LEVELS, LineLog, Out
from hmac_file_server.metrics import CertificateMetrics, Current, Metrics, ReloadMetrics
from hmac_file_server.settings.problems import ConfigError
from hmac_file_server.stores.interface import IStore
from hmac_file_server.web.client import Proxies
from hmac_file_server.web.connections import Limits
from hmac_file_server.web.hints import Hints
from hmac_file_server.web.site import Site

_log = Logger()

_LAST_SECONDS = 5.0


@attrs.frozen
class Prepared:
    """What a new configuration needs.

    :param stores: newly opened, by the names of their hosts.
    :param certificates: puts new ones in place of the old.
    :param metrics: has the metrics site do as it says; raises ConfigError if that can not be.
    """

    stores: Mapping[str, IStore]
    certificates: Callable[[], None]
    metrics: Callable[[], None]

    def give_up(self) -> None:
        """Let go of it: it is not needed."""
        for store in self.stores.values():
            store.retire()


class FileService(MultiService):
    """The daemon.

    :param path: of the configuration file, to read it again.
    :param out: where it logs.
    :param shared: descriptor of the socket to accept from, for one worker of several; what is there once for all
        of them is the business of their parent.
    :raises ConfigError: if StoreDir can not be a store; :meth:`startService` exits likewise when an
        address is taken.
    """

    def __init__(self, config: Config, path: str, reactor: Any, out: Out, shared: int | None = None) -> None:
        super().__init__()
        self._config = config
        self._path = path
        self._reactor = reactor
        self._out = out
        self._hosts: list[HostService] = []
        self._retired: list[HostService] = []
        self._offered: tuple[Config, Prepared] | None = None
        self._metrics = Metrics()
        self._lines = LineLog(out, config.log_level, config.log_format)
        stores = {host.name: open_store(config, host, reactor) for host in config.hosts}
        self._set_hosts(config, stores)
        self._site = self._make_site()
        self._says_hello = shared is None
        self._metrics_site: MetricsService | None = None
        self._listener: Listener | SharedListener
        if shared is not None:
            self._listener = SharedListener(shared, config.listen, self._site, reactor)
            self._listener.setServiceParent(self)
            return
        self._listener = Listener(config, "ListenPort", config.listen, self._site, reactor)
        self._listener.setServiceParent(self)
        ready = Ready(lambda: "stopping" if self._site.draining else "", self._check_stores)
        registry = CollectorRegistry()
        registry.register(Current(lambda: self._metrics.registry))
        Housekeeper(lambda: self._config, registry, reactor).setServiceParent(self)
        metrics_site = self._metrics_site = MetricsService(config, registry, ready, self._overview, reactor)
        metrics_site.setServiceParent(self)
        listener = self._listener
        CertificateMetrics(
            registry,
            lambda: {"ListenPort": listener.certificate_ends, "MetricsPort": metrics_site.certificate_ends},
        )
        # The last to start: by then all listen.
        notifier = Notifier(reactor, os.environ, self._status)
        notifier.setServiceParent(self)
        figures = ReloadMetrics(registry)
        self.reload = Reload(path, lambda: self._config, self._prepare, self._apply, reactor, notifier, figures)

    def _set_hosts(self, config: Config, stores: Mapping[str, IStore]) -> None:
        """Have the hosts of a configuration: those that can go on, and new ones.

        :param stores: of the new ones.
        """
        has_hosts = len(config.hosts) > 1
        if has_hosts != self._metrics.has_hosts or not self._hosts:
            # The labels change: what was counted is over, as after a start.
            self._metrics = Metrics(has_hosts)
        before = {host.host.name: host for host in self._hosts}
        self._hosts = []
        for host in config.hosts:
            if host.name in stores:
                metrics = self._metrics.of(host.name)
                service = HostService(config, host, stores[host.name], metrics, self._reactor)
                service.setServiceParent(self)
            else:
                service = before.pop(host.name)
                service.configure(config, host)
            self._hosts.append(service)
        for old in before.values():
            self._retired.append(old)
            old.retire(lambda: self._site.requests).addCallback(self._left, old)
        names = {host.name for host in config.hosts}
        for name in before.keys() - names:
            self._metrics.forget(name)
        self._set_figures()

    def _left(self, _: None, old: HostService) -> None:
        """Nothing runs any more that a host which is gone had begun."""
        self._retired.remove(old)
        self._set_figures()

    def _set_figures(self) -> None:
        everybody = [*self._hosts, *self._retired]
        rooms = [host.room for host in everybody]
        for host in everybody:
            host.room.beside = [room for room in rooms if room is not host.room]
        for host in self._hosts:
            alike = [other.uploads for other in everybody if other.host.name == host.host.name]
            running = functools.partial(lambda alike: sum(len(uploads.active) for uploads in alike), alike)
            self._metrics.of(host.host.name).uploads_in_progress.set_function(running)
        self._metrics.ready.set_function(
            lambda: not (self._site.draining or any(host.room.closed for host in self._hosts))
        )

    # The configuration, read again

    def _prepare(self, config: Config) -> Prepared:
        """Do what can fail; in a thread.

        :raises ConfigError: if the configuration can not be had.
        """
        stores: dict[str, IStore] = {}
        going_on = {host.host.name: host for host in self._hosts}
        try:
            try_log(config)
            certificates = self._listener.read_certificates()
            metrics = _nothing if self._metrics_site is None else self._metrics_site.prepare(config)
            for host in config.hosts:
                service = going_on.get(host.name)
                if service is None or not service.can_become(config, host):
                    stores[host.name] = open_store(config, host, self._reactor)
        except BaseException:
            for store in stores.values():
                store.close()
            raise

        return Prepared(stores, certificates, metrics)

    async def _apply(self, config: Config, prepared: Prepared) -> None:
        if self._site.draining:
            prepared.give_up()
            raise ConfigError(STOPPING)
        try:
            prepared.metrics()
        except ConfigError:
            prepared.give_up()
            raise
        self._config = config
        self._set_hosts(config, prepared.stores)
        prepared.certificates()
        self._site.configure(self._tree(), _limits(config), self._hints())
        set_log(config, self._out)
        self._lines.configure(config.log_level, config.log_format)
        if self._says_hello:
            warn_of(config, [host.store for host in self._hosts])

    async def prepare_for(self, settings: bytes) -> str:
        """Do what can fail of settings from the parent.

        :returns: what is wrong with them.
        """
        await self.settle(False)
        try:
            config = await in_thread(self._reactor, lambda: load(self._path, settings))
            self._offered = config, await in_thread(self._reactor, lambda: self._prepare(config))
        except Exception as error:
            return str(error) or type(error).__name__
        return ""

    async def settle(self, wanted: bool) -> None:
        """Take the settings that were prepared for, or drop them.

        :param wanted: whether all other workers can take them, too.
        """
        offered, self._offered = self._offered, None
        if offered is None:
            return
        if not wanted:
            offered[1].give_up()
            return
        with contextlib.suppress(ConfigError):  # It stops.
            await self._apply(*offered)

    def _check_stores(self) -> Deferred[None]:
        return check_all({host.host.name: host.watch.check for host in self._hosts})

    def _make_site(self) -> Site:
        access_log = AccessLog(lambda: self._metrics, self._reactor, self._lines)
        ended, turned_away = access_log.ended, access_log.turned_away
        return Site(self._tree(), self._reactor, _limits(self._config), ended, turned_away, self._hints())

    def _tree(self) -> Root:
        return Root([host.place for host in self._hosts])

    def _hints(self) -> Hints:
        return Hints(self._config.listen.endpoint, self._config.trusted_proxies)

    def report(self, others: Share) -> tuple[bytes, Share, Status, str]:
        """For the parent of several workers: figures, the own share of what is bounded, and what runs and goes wrong.

        :param others: what the other workers have.
        """
        connections = self._site.connections
        connections.elsewhere = others.counts
        for host in self._hosts:
            host.room.claimed_elsewhere = others.claimed
        claimed = sum(host.room.claimed for host in (*self._hosts, *self._retired))
        problem = next(filter(None, (host.store.stuck for host in self._hosts)), "")
        return self._metrics.report(), Share(connections.counts, claimed), self._whats_up(), problem

    def _whats_up(self) -> Status:
        everybody = [(host.host.name, host.uploads.active) for host in (*self._hosts, *self._retired)]
        return Status.of(everybody, self._out.recent)

    def _overview(self) -> Overview:
        return Overview(self._config, self._whats_up(), self._out.problem)

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
        for host in (*self._hosts, *self._retired):
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
        idle: Deferred[Any] = DeferredList([host.when_idle() for host in (*self._hosts, *self._retired)])
        idle.addTimeout(_LAST_SECONDS, self._reactor, lambda *_: None)
        return idle.addCallback(lambda _: MultiService.stopService(self))


def log_status(out: Out) -> str:
    """What a line of status says of the log, where the log itself can not say it."""
    return f"; {out.problem}" if out.problem else ""


def try_log(config: Config) -> None:
    """:raises ConfigError: if LogFile can not be written to."""
    try:
        if config.log_file:
            check_log(config.log_file)
    except OSError as error:
        reason = f"{error.strerror}; name a file that can be written, or leave it empty"
        raise ConfigError(config.problem("LogFile", config.log_file, reason)) from None


def set_log(config: Config, out: Out) -> None:
    """Log what a configuration says, and to the file that it names."""
    out.lowest, out.form = LEVELS[config.log_level], FORMS[config.log_format]
    if isinstance(out, LogWriter):
        out.move(config.log_file)


def say_hello(config: Config, stores: Iterable[IStore]) -> None:
    """Log where the daemon is, and what it makes of its configuration."""
    for line in banner(config):
        _log.info("{line}", line=line)
    for warning in config.warnings:
        _log.warn("{warning}", warning=warning)
    warn_of(config, stores)


def warn_of(config: Config, stores: Iterable[IStore]) -> None:
    """Say what could be better in a configuration."""
    if not all(store.keeps_attributes for store in stores):
        what = "the type that was signed, its owner and when it expires"
        _log.warn(
            "StoreDir: the file system keeps no extended attributes: {what} can not be kept with a file", what=what
        )
    for advice in advice_on_secrets(config):
        _log.warn("{advice}", advice=advice)


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


def _nothing() -> None:
    pass
