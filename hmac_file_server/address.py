"""Addresses: where to listen, from short forms to Twisted endpoint strings, and where Redis is."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import socket

import attrs
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

FORMS = '":8080", "127.0.0.1:8080", "[::1]:8080", "unix:/run/hmac-file-server.sock:mode=660" or a Twisted endpoint'

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+(?:%[^\]/\s]+)?)\]|(?P<host>[^\[\]:/]*)):(?P<port>\d{1,5})\Z")
_HOST = re.compile(r"[\w.:%-]+\Z")
_WITH_BACKLOG = {"tcp", "tcp4", "tcp6", "unix", "ssl"}
_BACKLOG = 1024
_SHARED = ("tcp", "tcp4", "tcp6", "unix", "systemd")
NOT_SHARED = "several workers need a plain socket; let a proxy speak TLS, or set Workers = 1"
_PROXIED = "haproxy:"
_PARTS = re.compile(r"((?:\\.|[^:\\])*)(?::|\Z)")
_BUILT_IN = {"tcp", "tcp4", "tcp6", "unix", "ssl", "systemd"}


class NoSuchHost(ValueError):
    """A name that no address was found for."""


@attrs.frozen
class UnixAddress:
    """Where a Unix socket is.

    :param mode: of the file.
    """

    path: str
    mode: int = 0o666


@attrs.frozen
class Listen:
    """One place to listen at.

    :param endpoint: the Twisted server endpoint string.
    :param loopback: whether only this machine can reach it over TCP.
    :param authority: ``host:port`` for a URL, empty where there is none to give.
    :param bind: host and port, where it is known to be TCP.
    :param unix: the Unix socket, where it is one.
    :param given: what the configuration says.
    """

    endpoint: str
    loopback: bool = False
    authority: str = ""
    bind: tuple[str, int] | None = attrs.field(default=None, eq=False)
    unix: UnixAddress | None = attrs.field(default=None, eq=False)
    given: str = attrs.field(default="", eq=False)

    @property
    def description(self) -> str:
        """The endpoint for :func:`strports.service`, with a backlog for bursts of clients."""
        if self.kind in _WITH_BACKLOG and ":backlog=" not in self.endpoint:
            return f"{self.endpoint}:backlog={_BACKLOG}"
        return self.endpoint

    @property
    def kind(self) -> str:
        """What is listened at, behind all that is to be done with a connection before."""
        return self.endpoint.removeprefix(_PROXIED).partition(":")[0]

    @property
    def arguments(self) -> dict[str, str]:
        """Those of the endpoint, by name, or by number where they have none; the first one's is ``""``."""
        given: dict[str, str] = {}
        for number, part in enumerate(_PARTS.findall(self.endpoint.removeprefix(_PROXIED).partition(":")[2])):
            name, equals, value = part.partition("=")
            if not equals and part:
                name, value = str(number or ""), part
            if part:
                given[name] = re.sub(r"\\(.)", r"\1", value)
        return given

    @property
    def can_be_shared(self) -> bool:
        """Whether several processes can accept from one socket there."""
        return self.kind in _SHARED

    @property
    def is_proxied(self) -> bool:
        """Whether each connection begins with what a proxy says of its client (HAProxy's PROXY protocol)."""
        return self.endpoint.startswith(_PROXIED)


def listen_at(value: str | int) -> Listen:
    """Read one of :data:`FORMS`.

    :raises ValueError: with what is wrong.
    """
    return attrs.evolve(_listen_at(f":{value}" if isinstance(value, int) else value), given=str(value))


def _listen_at(value: str) -> Listen:
    found = _HOST_PORT.match(value)
    name = value.partition(":")[0]
    if found is None or (found["host"] or "").lower() in _BUILT_IN:
        if ":" not in value or name not in _known_endpoints():
            raise ValueError(f"not an address to listen at; write {FORMS}")
        return _endpoint(value, name)
    port = int(found["port"])
    if port > 65535:
        raise ValueError("a port is at most 65535")
    host = found["v6"] or found["host"] or ""
    if not host:
        return _every_address(port)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = _resolve(host)
    kind = "tcp6" if address.version == 6 else "tcp"
    text = str(address)
    authority = f"[{text}]:{port}" if address.version == 6 else f"{text}:{port}"
    endpoint = f"{kind}:{port}:interface={quoteStringArgument(text)}"
    return Listen(endpoint, address.is_loopback, authority, (text, port))


def listen_on_socket(path: object) -> Listen:
    """A Unix socket at a path, as prosody-filer's ``unixSocket`` means it.

    :raises ValueError: if it is no path.
    """
    if not isinstance(path, str) or "/" not in path:
        raise ValueError('with unixSocket, write the path of the socket, as "/run/hmac-file-server.sock"')
    return Listen(f"unix:address={quoteStringArgument(path)}:mode=666", given=path, unix=UnixAddress(path))


@attrs.frozen
class RedisServer:
    """Where Redis is.

    :param path: of its socket; else it is at a host and port.
    :param tls: whether to speak TLS.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False


def redis_at(value: str) -> RedisServer | None:
    """Read ``host:port``, ``[::1]:6379``, ``tls:host:port`` or ``unix:/path``; None if it is empty.

    :raises ValueError: with what is wrong.
    """
    if not value:
        return None
    kind, _, rest = value.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return RedisServer(path=rest)
    tls = kind == "tls"
    found = _HOST_PORT.match(rest if tls else value)
    host = found and (found["v6"] or found["host"])
    if not found or not host or not _HOST.match(host) or not 0 < int(found["port"]) < 65536:
        raise ValueError(
            'write "localhost:6379", "[::1]:6379", "tls:redis.example.com:6379" or "unix:/run/redis.sock"'
        )
    if tls and importlib.util.find_spec("OpenSSL") is None:
        raise ValueError("TLS needs pyOpenSSL: pip install 'hmac-file-server[tls]'")
    return RedisServer(host, int(found["port"]), tls=tls)


def _endpoint(value: str, name: str) -> Listen:
    if value.startswith(_PROXIED):
        inner = value.removeprefix(_PROXIED)
        return attrs.evolve(_endpoint(inner, inner.partition(":")[0]), endpoint=value)
    if name == "unix":
        return Listen(value, unix=_unix(Listen(value)))
    port = re.match(r"(?:tcp|tcp4|tcp6|ssl):(?:port=)?(\d+)", value)
    if port is not None and int(port[1]) > 65535:
        raise ValueError("a port is at most 65535")
    found = re.match(r"(?:tcp|tcp4|tcp6):(?:port=)?(\d+):interface=((?:\\:|[^:])+)\Z", value)
    if found is None:
        return Listen(value)
    host = found[2].replace("\\:", ":")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return Listen(value)
    return Listen(value, loopback, f"[{host}]:{found[1]}" if ":" in host else f"{host}:{found[1]}")


def _unix(listen: Listen) -> UnixAddress | None:
    """The address of a Unix socket; None if it is not quite one, for Twisted to say why."""
    given = listen.arguments
    address = given.get("address") or given.get("")
    try:
        if given.keys() <= {"", "address", "mode", "backlog", "lockfile"} and address:
            return UnixAddress(address, int(given.get("mode", "666"), 8))
    except ValueError:
        pass
    return None


def _every_address(port: int) -> Listen:
    """IPv6 and IPv4 by one socket; IPv4 alone on a machine without IPv6."""
    try:
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True):
            return Listen(f"tcp6:{port}:interface=\\:\\:", authority=f"localhost:{port}", bind=("::", port))
    except (OSError, ValueError):
        return Listen(f"tcp:{port}", authority=f"localhost:{port}", bind=("0.0.0.0", port))  # noqa: S104  # as asked for


def _resolve(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        raise NoSuchHost(f"there is no host {host!r}") from None


def _known_endpoints() -> set[str]:
    return _BUILT_IN | {parser.prefix for parser in getPlugins(IStreamServerEndpointStringParser)}
