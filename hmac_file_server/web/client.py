"""Who a request comes from, as far as that can be believed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import attrs
from twisted.internet.interfaces import IAddress
from twisted.web.http_headers import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOCAL = "unix"
"""What stands for the peer of a Unix socket; it is trusted as a proxy, for only local programs reach it."""

_PASSED_ON = re.compile(
    rb"via|cdn-loop|.*forwarded.*|.*-ip|.*client-?ip|.*remote-?addr.*|(?:cf|fastly|x-(?:amzn?|azure|envoy))-.+|x-varnish"
    rb"|proxy-.+|x-original-.+|x-scheme|x-nginx-proxy|front-end-https",
    re.IGNORECASE,
)
"""Names of headers that proxies, load balancers and CDNs write, and clients do not."""

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")

_FOR = re.compile(r'(?:^|[;,])\s*for\s*=\s*(?:"([^",;]*)"|([^;,\s]*))', re.IGNORECASE)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/@?#\s]+))(?::\d*)?")


@attrs.frozen
class Proxies:
    """What the configuration says of the proxies in front.

    :param trusted: the networks whose word on the client's address is taken.
    :param pass_104: whether all of them hand on ``104 Upload Resumption Supported``.
    :param proxy_protocol: whether all connections come through one, whose own address the PROXY protocol hides.
    """

    trusted: Sequence[Network] = ()
    pass_104: bool = False
    proxy_protocol: bool = False


@attrs.frozen
class Peer:
    """Who is at the other end of a connection.

    :param address: an IP address, or :data:`LOCAL`.
    :param trusted: whether its word on its own clients is taken.
    """

    address: str
    trusted: bool

    @classmethod
    def of(cls, peer: IAddress, trusted: Sequence[Network]) -> Peer:
        """:param trusted: as for :func:`client_address`."""
        address = client_address(peer, Headers(), ())
        return cls(address, speaks_for_others(address, trusted))


def was_passed_on(headers: Headers) -> bool:
    """Whether a request's headers say that a proxy handed it on, be that one trusted or not."""
    return any(map(_PASSED_ON.fullmatch, headers._rawHeaders))


def is_loopback(address: str) -> bool:
    """Whether an address, as :func:`client_address` gives it, is this machine's own."""
    parsed = _parse(address)
    return parsed is not None and parsed.is_loopback


def names_loopback(host: bytes) -> bool:
    """Whether a Host header's value names this machine as only its own programs do (RFC 6761, section 6.3)."""
    found = _HOST.fullmatch(host.decode("latin-1").lower())
    if found is None:
        return False
    name = found[1] or found[2]
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)


def client_address(peer: IAddress, headers: Headers, trusted: Sequence[Network]) -> str:
    """The address that a request came from.

    Only a trusted proxy's word is taken: going back from the peer, the first address that is not
    a trusted proxy is the client.

    :param trusted: the networks whose ``X-Forwarded-For``, or else ``Forwarded`` (RFC 7239), is believed.
    :returns: an IP address, or :data:`LOCAL`.
    """
    host = getattr(peer, "host", None)
    address = _parse(host) if isinstance(host, str) else None
    if address is not None and not _in(address, trusted):
        return str(address)
    believed = str(address) if address is not None else LOCAL
    for hop in reversed(_hops(headers)):
        address = _parse(hop)
        if address is None:
            break
        believed = str(address)
        if not _in(address, trusted):
            break
    return believed


def speaks_for_others(address: str, trusted: Sequence[Network]) -> bool:
    """Whether an address, as :func:`client_address` gives it, is a proxy's and so no single client's."""
    parsed = _parse(address)
    return parsed is None or _in(parsed, trusted)


def one_user(address: str) -> str:
    """What is counted as one: an IPv4 address, or the /64 that a user of IPv6 has for itself (RFC 6177).

    Of link-local addresses, which all neighbours share a /64 of, and of those that stand for IPv4 ones (RFC 6052)
    each is one.

    :param address: as :func:`client_address` gives it.
    """
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address)
    if parsed.is_link_local or parsed.is_loopback or parsed in _TRANSLATED:
        return address
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def _hops(headers: Headers) -> list[str]:
    # Most proxies write X-Forwarded-For, and pass on a Forwarded that the client made up.
    forwarded_for = headers.getRawHeaders(b"X-Forwarded-For")
    if forwarded_for:
        return [hop for hop in b",".join(forwarded_for).decode("latin-1").split(",") if hop.strip()]
    forwarded = headers.getRawHeaders(b"Forwarded") or []
    text = b",".join(forwarded).decode("latin-1")
    return [quoted or plain for quoted, plain in _FOR.findall(text)]


def _parse(hop: str) -> _Address | None:
    hop = hop.strip().strip('"')
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        address = ipaddress.ip_address(hop.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _in(address: _Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
