from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.web.http_headers import Headers

from hmac_file_server.web.client import client_address, names_loopback

TRUSTED = [ipaddress.ip_network(network) for network in ("127.0.0.1", "::1", "10.0.0.0/8")]
PROXY = IPv4Address("TCP", "127.0.0.1", 4711)
STRANGER = IPv4Address("TCP", "198.51.100.7", 4711)


def client(peer: IAddress = PROXY, **given_headers: str | list[str]) -> str:
    headers = Headers()
    for name, value in given_headers.items():
        headers.setRawHeaders(name.replace("_", "-"), [value] if isinstance(value, str) else value)
    return client_address(peer, headers, TRUSTED)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (STRANGER, "198.51.100.7"),
        (PROXY, "127.0.0.1"),
        (IPv6Address("TCP", "2001:db8::1", 1), "2001:db8::1"),
        (IPv6Address("TCP", "::ffff:198.51.100.7", 1), "198.51.100.7"),
        (UNIXAddress(b"/run/x.sock"), "unix"),
        (UNIXAddress(None), "unix"),
    ],
)
def test_peer(peer: IAddress, address: str) -> None:
    """Without a proxy's word the client is who connected."""
    assert client(peer) == address


@pytest.mark.parametrize("header", ["X_Forwarded_For", "Forwarded"])
def test_strangers_are_not_believed(header: str) -> None:
    """A client that writes proxies' headers by itself does not change its address in the log."""
    assert client(STRANGER, **{header: "for=192.0.2.1"}) == "198.51.100.7"
    assert client(STRANGER, **{header: "192.0.2.1"}) == "198.51.100.7"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("203.0.113.9, 192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, 10.1.2.3", "192.0.2.1"),
        ("203.0.113.9, 192.0.2.1, 10.1.2.3, 127.0.0.1", "192.0.2.1"),
        ("10.1.2.3, 127.0.0.1", "10.1.2.3"),
        ("junk, 10.1.2.3", "10.1.2.3"),
        ("192.0.2.1, junk", "127.0.0.1"),
        ("unknown", "127.0.0.1"),
        (" , ", "127.0.0.1"),
        ("", "127.0.0.1"),
        (["203.0.113.9", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_x_forwarded_for(value: str | list[str], address: str) -> None:
    """Going back through trusted proxies, the first address that is none of them is the client."""
    assert client(X_Forwarded_For=value) == address


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("for=192.0.2.1", "192.0.2.1"),
        ("For=192.0.2.1;proto=https;by=203.0.113.9", "192.0.2.1"),
        ("proto=https; for=192.0.2.1", "192.0.2.1"),
        ('for="192.0.2.1:4711"', "192.0.2.1"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ("for=203.0.113.9, for=192.0.2.1", "192.0.2.1"),
        ("for=192.0.2.1, for=10.1.2.3;by=x", "192.0.2.1"),
        ("for=unknown", "127.0.0.1"),
        ("for=_hidden, for=10.1.2.3", "10.1.2.3"),
        ("proto=https", "127.0.0.1"),
        (["for=203.0.113.9", "for=192.0.2.1"], "192.0.2.1"),
    ],
)
def test_forwarded(value: str | list[str], address: str) -> None:
    """The standard header (RFC 7239) is read like the old one."""
    assert client(Forwarded=value) == address


def test_proxy_on_a_unix_socket_is_believed() -> None:
    """Only local programs reach a Unix socket, so the address they give is taken."""
    assert client(UNIXAddress(b"/run/x.sock"), X_Forwarded_For="192.0.2.1") == "192.0.2.1"


def test_a_header_that_the_proxy_passed_on_is_not_believed() -> None:
    """A client behind a proxy that writes X-Forwarded-For can not hide by sending Forwarded itself."""
    assert client(X_Forwarded_For="192.0.2.1", Forwarded="for=203.0.113.9") == "192.0.2.1"


def test_an_open_quote_hides_nobody() -> None:
    """A client that begins a quoted string does not swallow what the proxy adds."""
    assert client(Forwarded='for="x, for="[2001:db8::1]"') == "2001:db8::1"


@pytest.mark.parametrize("zone", ['x" 200 ', "\x1b[31m"])
def test_zones_are_not_passed_on(zone: str) -> None:
    """What follows the % of an address is the client's to choose and never reaches the log."""
    assert client(X_Forwarded_For=f"fe80::1%{zone}") in ("fe80::1", "127.0.0.1")


@given(
    st.dictionaries(
        st.sampled_from(["X-Forwarded-For", "Forwarded"]),
        st.lists(st.binary(max_size=40) | st.text('for=".,;:[]%127fe0 ', max_size=60).map(str.encode), max_size=3),
    )
)
def test_junk_is_no_address(raw: dict[str, list[bytes]]) -> None:
    """Whatever the headers hold, the log gets one plain address."""
    headers = Headers()
    for name, values in raw.items():
        headers.setRawHeaders(name, values)
    address = client_address(PROXY, headers, TRUSTED)
    assert str(ipaddress.ip_address(address.partition("%")[0])) == address


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        (b"localhost", True),
        (b"LocalHost:8080", True),
        (b"upload.localhost:8080", True),
        (b"127.0.0.1", True),
        (b"127.1.2.3:8080", True),
        (b"[::1]", True),
        (b"[::1]:8080", True),
        (b"[::ffff:127.0.0.1]:80", True),
        (b"", False),
        (b"localhost.example.com", False),
        (b"notlocalhost", False),
        (b"127.0.0.1.example.com:80", False),
        (b"[::1]example.com:80", False),
        (b"[::1", False),
        (b"::1", False),
        (b"upload.example.com", False),
        (b"192.0.2.1:8080", False),
        (b"0.0.0.0:8080", False),
        (b"example.com@localhost", False),
        (b"localhost, example.com", False),
        (b"\xff", False),
    ],
)
def test_names_loopback(host: bytes, loopback: bool) -> None:
    """Only a Host that means this machine wherever it is looked up counts as one."""
    assert names_loopback(host) is loopback
