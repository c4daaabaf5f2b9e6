"""Workers: several processes that share one address, started, watched and stopped by one parent."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from hmac_file_server.address import NOT_SHARED
from hmac_file_server.config import WORKER, Config
from hmac_file_server.daemon.channel import Child, Report, Settle, Stop, adopt, send_settings
from hmac_file_server.daemon.health import StoreCheck, check_all, open_store
from hmac_file_server.daemon.host import basis_of
from hmac_file_server.daemon.housekeeper import Housekeeper
from hmac_file_server.daemon.listener import cannot_listen
from hmac_file_server.daemon.logfile import STANDARD_OUTPUT, LogWriter
from hmac_file_server.daemon.metrics_site import MetricsService, Ready
from hmac_file_server.daemon.notify import Notifier
from hmac_file_server.daemon.reload import STOPPING, Reload
from hmac_file_server.daemon.service import Prepared, log_status, say_hello, set_log, try_log, warn_of
from hmac_file_server.daemon.share import NOTHING, Share
from hmac_file_server.daemon.signals import held_back, ignore_stopping
from hmac_file_server.daemon.sockets import UnixSocket, tcp_sockets
from hmac_file_server.daemon.status import IDLE, Overview, Status, WorkerStatus
from hmac_file_server.metrics import CertificateMetrics, ReloadMetrics, Together, WorkerMetrics
from hmac_file_server.settings.problems import ConfigError, fail
from hmac_file_server.stores.interface import IStore

_log = Logger()

_DESCRIPTOR = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
_LIVED_LONG = 60.0
_PATIENCE = 10.0
_ASK_EVERY = 1.0
_LATE, _HUNG = 3.0, 15.0


class WorkersService(MultiService):
    """Starts the workers, and serves the figures of all of them.

    :param path: of the configuration file, which a worker names where it complains of it.
    :param out: where all log.
    :raises ConfigError: if StoreDir can not be a store, or the address not be shared.
    """

    def __init__(self, config: Config, path: str, reactor: Any, out: LogWriter) -> None:
        super().__init__()
        if not config.listen.can_be_shared:
            raise ConfigError(config.problem("ListenPort", config.listen.given, NOT_SHARED))
        self._config, self._path, self._reactor, self._out = config, path, reactor, out
        self._stores: dict[str, IStore] = {host.name: open_store(config, host, reactor) for host in config.hosts}
        self._workers: list[Worker] = []
        self._sockets: list[socket.socket] = []
        self._unix: UnixSocket | None = None
        self._shared: Any = None
        self._draining = False
        self._notifier = Notifier(reactor, os.environ, self._status)
        self._figures = Together(lambda: [worker.report for worker in self._workers if worker.report])
        registry = CollectorRegistry()
        registry.register(self._figures)
        self._make_checks()
        ready = Ready(self._why_not_ready, lambda: check_all(self._checks))
        Housekeeper(lambda: self._config, registry, reactor).setServiceParent(self)
        self._metrics_site = MetricsService(config, registry, ready, self._overview, reactor, self._renew)
        self._metrics_site.setServiceParent(self)
        CertificateMetrics(registry, lambda: {"MetricsPort": self._metrics_site.certificate_ends})
        self._worker_metrics = WorkerMetrics(registry, self._processes)
        figures = ReloadMetrics(registry)
        self.reload = Reload(path, lambda: self._config, self._prepare, self._apply, reactor, self._notifier, figures)

    def _make_checks(self) -> None:
        self._bases = {host.name: basis_of(self._config, host) for host in self._config.hosts}
        self._checks = {name: StoreCheck(store, self._reactor).ask for name, store in self._stores.items()}

    def _prepare(self, config: Config) -> Prepared:
        """Do what can fail, for the workers, too; in a thread.

        :raises ConfigError: if the configuration can not be had.
        """
        try_log(config)
        metrics = self._metrics_site.prepare(config)
        stores: dict[str, IStore] = {}
        try:
            for host in config.hosts:
                if self._bases.get(host.name) != basis_of(config, host):
                    stores[host.name] = open_store(config, host, self._reactor)
        except BaseException:
            for store in stores.values():
                store.close()
            raise
        return Prepared(stores, _nothing, metrics)

    async def _apply(self, config: Config, prepared: Prepared) -> None:
        asked = [Deferred.fromCoroutine(worker.prepare(config.handed_down)) for worker in self._workers]
        problems = [await each for each in asked]
        problem = STOPPING if self._draining else next(filter(None, problems), "")
        if not problem:
            try:
                prepared.metrics()
            except ConfigError as error:
                problem = str(error)
        if problem:
            prepared.give_up()
            for worker in self._workers:
                worker.settle(False)
            raise ConfigError(problem)
        if (len(config.hosts) > 1) != (len(self._config.hosts) > 1):
            self._figures.forget()  # The labels change.
        before = self._stores
        self._stores = {host.name: prepared.stores.get(host.name) or before[host.name] for host in config.hosts}
        for name, store in before.items():
            if self._stores.get(name) is not store:
                store.retire()
        self._config = config
        self._make_checks()
        set_log(config, self._out)
        warn_of(config, self._stores.values())
        await DeferredList([worker.settle(True) for worker in self._workers])

    @property
    def handed_down(self) -> bytes:
        """The settings that workers should have."""
        return self._config.handed_down

    def startService(self) -> None:
        """Listen, and start the workers."""
        for descriptor in self._listen():
            worker = Worker(self, len(self._workers) + 1, descriptor)
            self._workers.append(worker)
            worker.setServiceParent(self)
        # The last to start: by then all listen.
        self._notifier.setServiceParent(self)
        super().startService()
        say_hello(self._config, self._stores.values())

    def _listen(self) -> list[int]:
        """A listening socket for each worker, between which the kernel shares out the clients.

        The parent keeps them, so that clients of a worker that died wait for the next one.
        """
        config = self._config
        listen = config.listen
        try:
            if listen.bind is not None:
                self._sockets = tcp_sockets(*listen.bind, config.workers)
                return [opened.fileno() for opened in self._sockets]
            if listen.unix is not None:
                self._unix = UnixSocket(listen.unix)
                return [self._unix.socket.fileno()] * config.workers
            opened: list[Any] = []
            serverFromString(self._reactor, listen.description).listen(_Nothing()).addBoth(opened.append)
            if isinstance(opened[0], Failure):
                opened[0].raiseException()
        except (CannotListenError, OSError, ValueError) as error:
            fail(cannot_listen(config, "ListenPort", listen, error))
        self._shared = opened[0]
        self._shared.stopReading()
        return [self._shared.fileno()] * config.workers

    def _stop_listening(self) -> Deferred[None]:
        """Now, so that clients that come while workers finish are refused, and do not wait in vain."""
        for opened in self._sockets:
            opened.close()
        if self._unix is not None:
            self._unix.remove()
            self._unix.socket.close()
        return maybeDeferred(self._shared.stopListening) if self._shared is not None else succeed(None)

    def _why_not_ready(self) -> str:
        if self._draining:
            return "stopping"
        if not any(worker.runs for worker in self._workers):
            return "no worker runs"
        for worker in self._workers:
            if worker.is_late:
                return f"worker {worker.number} does not answer"
            if worker.problem:
                return f"worker {worker.number}: {worker.problem}"
        return ""

    def _renew(self) -> Deferred[None]:
        """Have the newest figures of all workers that answer soon."""
        asked = DeferredList([worker.ask() for worker in self._workers])
        return asked.addTimeout(_ASK_EVERY, self._reactor).addBoth(lambda _: None)

    def _processes(self) -> dict[int, int]:
        return {worker.number: worker.transport.pid for worker in self._workers if worker.runs}

    def _overview(self) -> Overview:
        own = Status.of((), self._out.recent)
        status = Status.together([own, *(worker.status for worker in self._workers)])
        workers = [
            WorkerStatus(each.number, each.runs, each.is_late, each.restarts, each.problem) for each in self._workers
        ]
        return Overview(self._config, status, self._out.problem, workers)

    def _status(self) -> str:
        running = sum(worker.runs for worker in self._workers)
        return f"{running} of {len(self._workers)} workers run{log_status(self._out)}"

    def stopService(self) -> Deferred[None]:
        """Let all workers finish what runs within ShutdownTimeout."""
        self._draining = True
        self._notifier.stopService()
        ignore_stopping()
        ended = DeferredList([self._stop_listening(), *(worker.stopService() for worker in self._workers)])
        return ended.addCallback(lambda _: self._close())

    def _close(self) -> Deferred[None]:
        for worker in self._workers:
            worker.disownServiceParent()
        for store in self._stores.values():
            store.close()
        closed: Deferred[None] = MultiService.stopService(self)
        return closed

    # For the workers

    def spawn(self, worker: Worker, listening: int) -> Child:
        """Start a worker's process.

        :param listening: descriptor of the socket that it accepts from.
        """
        # Only what the parent would import: not what lies in the folder in which it was started.
        command = [sys.executable, "-P", "-m", "twisted", "hmac-file-server", "--config", self._path]
        unset = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment[WORKER] = str(_DESCRIPTOR)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = Child(worker.answers)
            adopt(self._reactor, ours.fileno(), child)
            descriptors = {0: theirs.fileno(), 1: self._out.fileno(), 2: 2, _DESCRIPTOR: listening}
            descriptors[STANDARD_OUTPUT] = self._out.standard
            try:
                with held_back():
                    self._reactor.spawnProcess(worker, sys.executable, command, environment, childFDs=descriptors)
            except BaseException:
                child.transport.abortConnection()
                raise
        # What it has instead of reading the configuration file, which somebody may have changed.
        child.transport.write(self._config.handed_down)
        return child

    def shares_beside(self, worker: Worker) -> Share:
        """What all other workers have."""
        return Share.together(each.share for each in self._workers if each is not worker)

    def later(self, seconds: float, call: Any) -> IDelayedCall:
        """Call something later."""
        later: IDelayedCall = self._reactor.callLater(seconds, call)
        return later

    def now(self) -> float:
        """Seconds."""
        return float(self._reactor.seconds())

    @property
    def patience(self) -> float:
        """Seconds that a worker has for stopping."""
        return self._config.shutdown_timeout + _PATIENCE

    def starts_again(self) -> None:
        """A worker has ended that should not have."""
        self._worker_metrics.restarts.inc()

    def ended(self, report: bytes) -> None:
        """A worker is gone; what it counted goes on to count."""
        if report:
            self._figures.gone(report)


class Worker(Service, ProcessProtocol):
    """One worker: started again when it ends, after a pause that grows while it ends soon. One that hangs is ended.

    :param number: to tell it from the others.
    :param descriptor: of the socket that it accepts from.
    :ivar report: its newest figures; empty while it has told none.
    :ivar share: what it has of what is bounded for all workers together.
    :ivar status: what runs and goes wrong in it; of one that is gone, what went wrong.
    :ivar restarts: how often it had to be started again.
    :ivar problem: why nothing gets done in it; empty if it does.
    """

    transport: Any

    def __init__(self, service: WorkersService, number: int, descriptor: int) -> None:
        self._service = service
        self.number = number
        self._descriptor = descriptor
        self._pause = _FIRST_PAUSE
        self._begun = 0.0
        self._timer: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self._child: Child | None = None
        self._look: IDelayedCall | None = None
        self._heard = 0.0
        self._settings = b""
        self._offered: bytes | None = None
        self._awaited: list[Deferred[None]] = []
        self._before = IDLE
        self.report = b""
        self.share = NOTHING
        self.status = IDLE
        self.restarts = 0
        self.problem = ""
        self.runs = False

    def startService(self) -> None:
        super().startService()
        self._start()

    async def prepare(self, settings: bytes) -> str:
        """Have it do what can fail of new settings.

        :returns: what is wrong with them.
        """
        if self._child is not None and self._look is None:
            begun: Deferred[None] = Deferred()
            self._awaited.append(begun)
            self._service.later(_HUNG, self._has_begun)  # Rather it is told when it runs.
            await begun
        if self._child is None or self._look is None:
            return ""  # It has them when it starts, or is told when it runs.
        self._offered = settings
        try:
            return await send_settings(self._child, settings)
        except Exception:  # It has ended.
            return ""

    def _has_begun(self) -> None:
        awaited, self._awaited = self._awaited, []
        for begun in awaited:
            begun.callback(None)

    def settle(self, wanted: bool) -> Deferred[None]:
        """Have it take these, or drop them; fires when that is done, or it is gone."""
        settings, self._offered = self._offered, None
        if self._child is None or settings is None:
            return succeed(None)
        if wanted:
            self._settings = settings
        told: Deferred[object] = self._child.callRemote(Settle, wanted=wanted)
        return told.addCallbacks(lambda _: None, lambda failure: None)

    async def _catch_up(self) -> None:
        """It has begun with settings that do not hold any more."""
        problem = await self.prepare(self._service.handed_down)
        if problem:
            _log.error("worker {number} can not be configured: {problem}", number=self.number, problem=problem)
            self.kill()
        else:
            await self.settle(True)

    def _start(self) -> None:
        self._timer = None
        self._begun = self._service.now()
        self._settings = self._service.handed_down
        try:
            self._child = self._service.spawn(self, self._descriptor)
        except Exception as error:  # no descriptors, processes or memory for the moment
            self._start_again(f"can not be started ({error})")
        else:
            self.runs = True

    def _start_again(self, why: str) -> None:
        self._service.starts_again()
        self.restarts += 1
        _log.error(
            "worker {number} {why} and is started again in {pause:g} s",
            number=self.number,
            why=why,
            pause=self._pause,
        )
        self._timer = self._service.later(self._pause, self._start)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def answers(self) -> None:
        """It runs: from now on it is asked now and then whether it still does."""
        self._heard = self._service.now()
        self._look_after()
        self._has_begun()
        if self._settings != self._service.handed_down:
            Deferred.fromCoroutine(self._catch_up())

    def _look_after(self) -> None:
        self._look = self._service.later(_ASK_EVERY, self._look_after)
        if self._service.now() - self._heard > _HUNG:
            _log.error("worker {number} has not answered for {seconds:g} s", number=self.number, seconds=_HUNG)
            self.kill()
            self._heard = self._service.now()
        else:
            self.ask()

    @property
    def is_late(self) -> bool:
        """Whether it runs and does not answer."""
        return self._look is not None and self._service.now() - self._heard > _LATE

    def ask(self) -> Deferred[None]:
        """Have its figures; fires when they are there, or will not come."""
        if self._child is None or self._look is None:
            return succeed(None)
        others = self._service.shares_beside(self).encode()
        asked: Deferred[dict[str, Any]] = self._child.callRemote(Report, others=others)
        return asked.addCallbacks(self._told, lambda failure: None)

    def _told(self, answer: dict[str, Any]) -> None:
        self._heard = self._service.now()
        self.problem = answer["problem"]
        if answer["figures"]:
            self.report, self.share = answer["figures"], Share.decode(answer["share"])
            self.status = Status.together([self._before, Status.decode(answer["status"])])

    def processEnded(self, reason: Failure) -> None:
        self.runs = False
        self._child = self._offered = None
        self._has_begun()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._service.ended(self.report)
        self.report, self.share, self.problem = b"", NOTHING, ""
        self.status = self._before = self.status.at_rest()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._stopped is not None:
            self._stopped.callback(None)
            return
        if self._service.now() - self._begun > _LIVED_LONG:
            self._pause = _FIRST_PAUSE
        self._start_again(f"has ended ({reason.getErrorMessage()})")

    def stopService(self) -> Deferred[None]:
        """Fires when the process is gone."""
        super().stopService()
        stopped: Deferred[None] = Deferred()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.runs:
            stopped.callback(None)
            return stopped
        self._stopped = stopped
        if self._child is not None:
            self._child.callRemote(Stop)
        self._timer = self._service.later(self._service.patience, self.kill)
        return stopped

    def kill(self) -> None:
        """End the process now."""
        if self.runs:
            self.transport.signalProcess("KILL")


class _Nothing(Factory):
    noisy = False


def _nothing() -> None:
    pass
