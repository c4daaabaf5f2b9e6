"""What does not fit between the daemon and what stands in front of it: the operator is told, once each."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Sequence

from twisted.logger import Logger
from twisted.python.failure import Failure

from hmac_file_server.web.client import Network, one_user

_log = Logger()

_FIRST = frozenset(b"!#$%&'*+-.^_`|~\r\n" + string.ascii_letters.encode() + string.digits.encode())
"""What a request can begin with: a letter of its method, or an empty line before it (RFC 9112, section 2.2)."""
_TLS = b"\x16"
_PROXY = b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"
_HTTP_2 = b"PRI * HTTP/2.0\r\n"
_MOST = 10


class Hints:
    """Says what is wrong, about whom, and what to write instead; of each kind ten times at most: anybody can cause it.

    :param endpoint: where ``ListenPort`` listens.
    :param trusted: ``TrustedProxies``.
    """

    def __init__(self, endpoint: str = "tcp:8080", trusted: Sequence[Network] = ()) -> None:
        self._endpoint = endpoint
        self._trusted = trusted
        self._said: defaultdict[str, set[str]] = defaultdict(set)

    def first_bytes(self, address: str, data: bytes) -> bool:
        """Look at the first bytes of a connection.

        :returns: whether no request can come of them.
        """
        if data.startswith(_TLS):
            self._say(
                "TLS",
                address,
                "speaks TLS to a port for plain HTTP: let the proxy connect with http://, or serve TLS here with"
                ' ListenPort = "ssl:8443:privateKey=key.pem:certKey=cert.pem"',
            )
        elif data.startswith(_PROXY):
            self._say(
                "PROXY",
                address,
                "sends the PROXY protocol to a port without it: take it out of the proxy's configuration (HAProxy's"
                f' send-proxy, nginx\'s proxy_protocol), or set ListenPort = "haproxy:{self._endpoint}"',
            )
        elif data.startswith(_HTTP_2):
            self._say(
                "HTTP/2",
                address,
                "speaks HTTP/2 to a port for HTTP/1.1: let the proxy connect with HTTP/1.1 (http:// instead of h2c://"
                ' in Caddy and Apache, no "proto h2" in HAProxy)',
            )
        return data[0] not in _FIRST

    def never_spoke(self, address: str, reason: Failure, turned_away: bool) -> None:
        """Look at a connection that is lost without having brought any byte of HTTP.

        :param turned_away: whether it was ended on this side.
        """
        what = str(reason.value)
        if "http request" in what:
            self._say(
                "HTTP",
                address,
                "speaks plain HTTP to a port for TLS: let the proxy connect with https://, or serve plain HTTP with"
                ' ListenPort = ":8080"',
            )
        elif "wrong version number" in what:
            self._say(
                "neither",
                address,
                "speaks neither TLS nor HTTP to a port for TLS; if it sends the PROXY protocol, set ListenPort ="
                f' "haproxy:{self._endpoint}"',
            )
        elif turned_away and self._endpoint.startswith("haproxy:"):
            endpoint = self._endpoint.partition(":")[2]
            self._say(
                "no PROXY",
                address,
                "does not send the PROXY protocol, which ListenPort asks for: add send-proxy to the server's line in"
                f' HAProxy, or set ListenPort = "{endpoint}"',
            )

    def untrusted(self, address: str) -> None:
        """Take note of a request with the headers of a proxy that is not believed."""
        self._say(
            "untrusted",
            address,
            "sends X-Forwarded-For or the like and is not in TrustedProxies: all who come through it count as one"
            " client. If it is a proxy of yours, set TrustedProxies = [{trusted}]",
        )

    def unnamed(self, address: str) -> None:
        """Take note of a request of a proxy that is believed, and that does not say whose it is where that is read."""
        self._say(
            "unnamed",
            address,
            "names its clients by X-Real-IP alone, which is not read here: they are not known and not counted. Let it"
            " send X-Forwarded-For (nginx: proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for)",
        )

    def _say(self, kind: str, address: str, what: str) -> None:
        said = self._said[kind]
        if len(said) < _MOST and (user := one_user(address)) not in said:
            said.add(user)
            trusted = ", ".join(f'"{name}"' for name in (*map(_written, self._trusted), address))
            _log.warn("{address} {what}", address=address, what=what.replace("{trusted}", trusted))


def _written(network: Network) -> str:
    return str(network.network_address if network.num_addresses == 1 else network)
