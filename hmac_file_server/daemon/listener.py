"""Listening, as a key of the configuration says."""

from __future__ import annotations

import calendar
import errno
import os
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from twisted.application import strports
from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IOpenSSLContextFactory, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.haproxy import proxyEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from hmac_file_server.address import Listen
from hmac_file_server.config import Config
from hmac_file_server.daemon.chain import chain
from hmac_file_server.daemon.holder import holder
from hmac_file_server.daemon.sockets import UnixSocket, tcp_sockets
from hmac_file_server.settings.problems import ConfigError, NotYet, fail
from hmac_file_server.stores.faults import user

ENDPOINTS = "https://docs.twisted.org/en/stable/core/howto/endpoints.html"

_PROMETHEUS = 9090
_UNPRIVILEGED = 1024
_SCOPE = re.compile(r"(?<=%)[^\]:]+")
_ROOTS = (
    "only root may listen on a port below 1024: let a proxy listen there, or systemd (with"
    " contrib/systemd/hmac-file-server.socket), or give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE"
)


class Listener(Service):
    """Listens as one key of the configuration says, or ends the start with one line."""

    def __init__(self, config: Config, key: str, listen: Listen, factory: IProtocolFactory, reactor: Any) -> None:
        self._config, self._key, self._listen = config, key, listen
        self._factory, self._reactor = factory, reactor
        self._service: Any = None
        self._unix: UnixSocket | None = None
        self._contexts: _Contexts | None = None
        if listen.bind is None and listen.unix is None:
            self._service = self._endpoint()
            self._contexts = _Contexts.of(self._service.endpoint)

    def read_certificates(self) -> Callable[[], None]:
        """Read those of an ``ssl:`` endpoint again. May have to wait for a disk.

        :returns: puts them in place of the old ones, for the connections that come then.
        :raises ConfigError: if they can not be had.
        """
        contexts = self._contexts
        if contexts is None:
            return _nothing
        new = _Contexts.of(self._endpoint().endpoint)
        assert new is not None
        return lambda: contexts.change(new)

    @property
    def certificate_ends(self) -> float | None:
        """When the certificate of an ``ssl:`` endpoint ends, in seconds since 1970; None for any other endpoint."""
        return None if self._contexts is None else self._contexts.ends

    def _endpoint(self) -> Any:
        listen = self._listen
        try:
            with chain(listen) as more:
                return strports.service(listen.description + more, self._factory, self._reactor)
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}; it must be a file that the user {user()} can read"
            raise NotYet(self._config.problem(self._key, listen.given, reason)) from None
        except Exception as error:  # whatever the endpoint's own parser lets out
            reason = f"{type(error).__name__}: {error}; see {ENDPOINTS}"
            raise ConfigError(self._config.problem(self._key, listen.given, reason)) from None

    def startService(self) -> None:
        try:
            self.listen()
        except ConfigError as error:
            fail(error)

    def listen(self) -> None:
        """As :meth:`startService`, while the daemon runs.

        :raises ConfigError: if the address is taken.
        """
        if self.running:
            return  # It has listened before it got its parent.
        super().startService()
        try:
            if self._service is None:
                self._service = self._accept()
            self._service.startService()
        except (CannotListenError, OSError, ValueError) as error:
            self.running = False
            raise cannot_listen(self._config, self._key, self._listen, error) from None

    def _accept(self) -> SharedListener:
        listen = self._listen
        if listen.unix is not None:
            self._unix = UnixSocket(listen.unix)
            opened = self._unix.socket
        else:
            assert listen.bind is not None
            [opened] = tcp_sockets(*listen.bind, 1)
        return SharedListener(opened.detach(), listen, self._factory, self._reactor)

    def stopService(self) -> Deferred[None]:
        if not self.running:
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done
        super().stopService()
        if self._unix is not None:
            self._unix.remove()
        stopped: Deferred[None] = self._service.stopService()
        return stopped


def cannot_listen(config: Config, key: str, listen: Listen, error: Exception) -> NotYet:
    """Why an address can not be listened at, in one line that says what to do."""
    system = getattr(error, "socketError", error)
    number = system.errno if isinstance(system, OSError) else None
    reason = os.strerror(number) if number else str(system)
    scope = _SCOPE.search(listen.given)
    if isinstance(system, socket.gaierror) and scope:
        reason = f"there is no interface {scope[0]} (ip link lists them)"
        return NotYet(config.problem(key, listen.given, reason))
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


@implementer(IStreamServerEndpoint)
class _Open:
    """The endpoint that a listening socket is.

    :param descriptor: the socket's; it is closed.
    """

    def __init__(self, descriptor: int, reactor: Any) -> None:
        self._descriptor, self._reactor = descriptor, reactor

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        return maybeDeferred(self._listen, protocolFactory)

    def _listen(self, factory: Any) -> Any:
        with socket.socket(fileno=self._descriptor) as opened:
            if opened.family != socket.AF_UNIX:
                return self._reactor.adoptStreamPort(self._descriptor, opened.family, factory)
            port = _OpenUnixPort._fromListeningDescriptor(self._reactor, self._descriptor, factory)
            port.startListening()
            return port


class SharedListener(Service):
    """Accepts from a socket that listens already, and that another process may listen on too.

    :param descriptor: the socket's; it is closed.
    :param listen: what it was opened for.
    """

    def __init__(self, descriptor: int, listen: Listen, factory: IProtocolFactory, reactor: Any) -> None:
        opened = _Open(descriptor, reactor)
        self._endpoint: Any = proxyEndpoint(opened) if listen.is_proxied else opened
        self._factory = factory
        self._port: Any = None

    def startService(self) -> None:
        super().startService()
        listening: list[Any] = []
        self._endpoint.listen(self._factory).addBoth(listening.append)
        if isinstance(listening[0], Failure):
            listening[0].raiseException()
        self._port = listening[0]

    def read_certificates(self) -> Callable[[], None]:
        """As :meth:`Listener.read_certificates`: it has none."""
        return _nothing

    certificate_ends: float | None = None

    def stopService(self) -> Deferred[None]:
        super().stopService()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)


@implementer(IOpenSSLContextFactory)
class _Contexts:
    """Gives a TLS server's context, which can be changed while it listens."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    @classmethod
    def of(cls, endpoint: Any) -> _Contexts | None:
        """Take the place of what gives an endpoint's; None if it speaks no TLS."""
        while hasattr(endpoint, "_wrappedEndpoint"):  # haproxy:
            endpoint = endpoint._wrappedEndpoint
        if not isinstance(endpoint, SSL4ServerEndpoint):
            return None
        endpoint._sslContextFactory = made = cls(endpoint._sslContextFactory)
        return made

    def change(self, new: _Contexts) -> None:
        """From now on give what another one has."""
        self._factory = new._factory

    @property
    def ends(self) -> float:
        """When the certificate does, in seconds since 1970 (RFC 5280, section 4.1.2.5: GeneralizedTime)."""
        not_after = self._factory.certificate.get_notAfter().decode("ascii")
        return float(calendar.timegm(time.strptime(not_after, "%Y%m%d%H%M%SZ")))

    def getContext(self) -> Any:
        return self._factory.getContext()


def _nothing() -> None:
    pass


class _OpenUnixPort(unix.Port):
    """A Unix socket whose file is not its business."""

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
