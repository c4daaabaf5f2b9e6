"""The ``twist hmac-file-server`` command: its options, and the service they ask for."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import sys
from typing import Any

from twisted.application.service import IService
from twisted.logger import LogLevel
from twisted.python.usage import Options as UsageOptions

from hmac_file_server import log
from hmac_file_server.clock import Awake
from hmac_file_server.config import WORKER, Config, load
from hmac_file_server.daemon import signals
from hmac_file_server.daemon.channel import Parent, receive_settings
from hmac_file_server.daemon.logfile import LogWriter, open_log
from hmac_file_server.settings.problems import ConfigError, NotYet, fail

_M_ARENA_MAX = -8  # in malloc.h
_LARGEST_KEPT = 4 << 20


class Options(UsageOptions):
    """Command line options.

    :ivar config: the checked configuration, once the options are parsed.
    """

    optParameters = [["config", "c", "./config.toml", "Path of the configuration file."]]
    config: Config
    parent: Any = None

    def postOptions(self) -> None:
        """Load the configuration, before anything listens; on an error say it in one line and exit."""
        try:
            self.config = load(self["config"], receive_settings() if WORKER in os.environ else None)
            if self.parent is not None:
                self._direct_log(self.config)
        except ConfigError as error:
            fail(error)

    def _direct_log(self, settings: Config) -> None:
        """Tell twist where and how to log; its own ``--log-file`` holds where LogFile is empty."""
        try:
            given = self.parent.get("logFile")
            self.parent["logFile"] = open_log(settings.log_file, given, is_worker=WORKER in os.environ)
        except OSError as error:
            reason = f"{error.strerror}; name a file that can be written, or leave it empty"
            raise NotYet(settings.problem("LogFile", settings.log_file, reason)) from None
        # Ours is the level that counts, for it may change.
        self.parent["logFile"].lowest = log.LEVELS[settings.log_level]
        self.parent["logFile"].form = log.FORMS[settings.log_format]
        self.parent["logLevel"] = LogLevel.debug
        self.parent["fileLogObserverFactory"] = log.observer


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that ``twist`` runs.

    :param reactor: the global one by default.
    """
    if reactor is None:
        from twisted.internet import reactor as installed

        reactor = installed
        Awake().drive(reactor)
        # What is there when all has started stays: the collector, which looks at all of it, would stop us for long.
        reactor.callWhenRunning(gc.collect)
        reactor.callWhenRunning(gc.freeze)
        _keep_memory()
    given = {} if options.parent is None else options.parent
    out = given["logFile"] if isinstance(given.get("logFile"), LogWriter) else open_log("", sys.stdout)
    # However the process ends.
    atexit.register(out.finish)
    reactor.addSystemEventTrigger("after", "shutdown", out.finish)
    try:
        return _service(options, reactor, out)
    except ConfigError as error:
        fail(error)


def _keep_memory() -> None:
    """Have glibc keep memory that bodies were read into, for the next ones, of whatever thread.

    Else it gives it back to the kernel, and has it zeroed again, for nearly every upload. The first large block that
    is freed sets the bounds for both (mallopt(3), ``M_MMAP_THRESHOLD``). And by itself it keeps up to eight arenas for
    each processor, of which every one grows to the most that its threads ever needed at once.
    """
    bytes(_LARGEST_KEPT)
    with contextlib.suppress(AttributeError):  # Other C libraries have no arenas.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _service(options: Options, reactor: Any, out: LogWriter) -> IService:
    from hmac_file_server.daemon.service import FileService
    from hmac_file_server.daemon.workers import WorkersService

    config, path = options.config, options["config"]
    if WORKER in os.environ:
        worker = FileService(config, path, reactor, out, shared=int(os.environ[WORKER]))
        Parent.attend(reactor, worker.report, worker.prepare_for, worker.settle)
        return worker
    service: FileService | WorkersService

    def reload() -> None:
        service.reload()

    # Before anything takes its time: until then SIGHUP would end the daemon.
    signals.decide(reactor, out.reopen, reload)
    service = (FileService if config.workers == 1 else WorkersService)(config, path, reactor, out)
    return service
