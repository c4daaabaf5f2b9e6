"""Listening, as a key of the configuration says."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.application import strports
from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory

from hmac_file_server.config import Config, ConfigError, NotYet, fail
from hmac_file_server.holder import holder
from hmac_file_server.listen import Listen
from hmac_file_server.stores.faults import user

ENDPOINTS = "https://docs.twisted.org/en/stable/core/howto/endpoints.html"

_PROMETHEUS = 9090
_UNPRIVILEGED = 1024
_ROOTS = (
    "only root may listen on a port below 1024: let a proxy listen there, or systemd (with"
    " contrib/systemd/hmac-file-server.socket), or give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE"
)


class Listener(Service):
    """Listens as one key of the configuration says, or ends the start with one line."""

    def __init__(self, config: Config, key: str, listen: Listen, factory: IProtocolFactory, reactor: Any) -> None:
        self._config, self._key, self._listen = config, key, listen
        try:
            self._service = strports.service(listen.description, factory, reactor)
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}; it must be a file that the user {user()} can read"
            raise NotYet(config.problem(key, listen.given, reason)) from None
        except Exception as error:  # whatever the endpoint's own parser lets out
            reason = f"{type(error).__name__}: {error}; see {ENDPOINTS}"
            raise ConfigError(config.problem(key, listen.given, reason)) from None

    def startService(self) -> None:
        super().startService()
        try:
            self._service.startService()
        except (CannotListenError, OSError, ValueError) as error:
            fail(cannot_listen(self._config, self._key, self._listen, error))

    def stopService(self) -> Deferred[None]:
        if not self.running:
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done
        super().stopService()
        stopped: Deferred[None] = self._service.stopService()
        return stopped


def cannot_listen(config: Config, key: str, listen: Listen, error: Exception) -> NotYet:
    """Why an address can not be listened at, in one line that says what to do."""
    system = getattr(error, "socketError", error)
    number = system.errno if isinstance(system, OSError) else None
    reason = os.strerror(number) if number else str(system)
    port = getattr(error, "port", None) or (listen.bind[1] if listen.bind else None)
    if isinstance(port, int):
        reason = _about_port(config, key, listen, port, number, reason)
    elif number in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EROFS):
        reason += (
            f"; the socket's folder must be there (RuntimeDirectory= in the unit), and {user()} able to write to it"
        )
    else:
        reason += "; free it or choose another"
    return NotYet(config.problem(key, listen.given, reason))


def _about_port(config: Config, key: str, listen: Listen, port: int, number: int | None, reason: str) -> str:
    if number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and listen.endpoint.startswith("tcp6"):
        return f'{reason}; IPv6 is off here, or the address is not this machine\'s: "127.0.0.1:{port}" needs no IPv6'
    if number == errno.EADDRNOTAVAIL:
        return f'{reason}; this machine has no such address (ip address lists them): ":{port}" takes all that it has'
    if number == errno.EACCES and port < _UNPRIVILEGED:
        return f"{reason}; {_ROOTS}"
    taken = holder(port) if number == errno.EADDRINUSE else ""
    before = f"{taken} has it: " if taken else ""
    if port == _PROMETHEUS and key == "MetricsPort":
        before += f'9090 is Prometheus\'s own port: write {key} = "127.0.0.1:9091", and the same in prometheus.yml: '
    return f"{before}{reason}; free it or choose another"


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
