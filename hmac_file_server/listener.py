"""Listening, as a key of the configuration says."""

from __future__ import annotations

import socket
from typing import Any

from twisted.application import strports
from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory

from hmac_file_server.config import Config, ConfigError
from hmac_file_server.listen import Listen

ENDPOINTS = "https://docs.twisted.org/en/stable/core/howto/endpoints.html"


class Listener(Service):
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
            raise cannot_listen(self._config, self._key, self._listen, error) from None

    def stopService(self) -> Deferred[None]:
        if not self.running:
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done
        super().stopService()
        stopped: Deferred[None] = self._service.stopService()
        return stopped


def cannot_listen(config: Config, key: str, listen: Listen, error: Exception) -> SystemExit:
    """The end of a daemon whose address is taken: one line that says so."""
    reason = str(getattr(error, "socketError", error))
    return SystemExit(config.problem(key, listen.given, f"{reason}; free it or choose another"))


class SharedListener(Service):
    """Accepts from a socket that another process listens on too.

    :param descriptor: the socket's.
    """

    def __init__(self, descriptor: int, factory: IProtocolFactory, reactor: Any) -> None:
        self._descriptor = descriptor
        self._factory = factory
        self._reactor = reactor
        self._port: Any = None

    def startService(self) -> None:
        super().startService()
        with socket.socket(fileno=socket.dup(self._descriptor)) as shared:
            family = shared.family
        if family == socket.AF_UNIX:
            self._port = _SharedUnixPort._fromListeningDescriptor(self._reactor, self._descriptor, self._factory)
            self._port.startListening()
        else:
            self._port = self._reactor.adoptStreamPort(self._descriptor, family, self._factory)

    def stopService(self) -> Deferred[None]:
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)


class _SharedUnixPort(unix.Port):
    """A Unix socket whose name and mode are another process's business."""

    factory: Any

    def startListening(self) -> None:
        tcp._reservedFD.reserve()
        self.factory.doStart()
        shared: Any = self._preexistingSocket
        self.socket, self._preexistingSocket = shared, None
        self.fileno = shared.fileno  # type: ignore[method-assign]
        self.connected = True
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Any) -> None:
        tcp.Port.connectionLost(self, reason)
