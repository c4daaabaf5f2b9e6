from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactor

from hmac_file_server.address import FORMS, Listen, UnixAddress, listen_at, listen_on_socket


def has_ipv6() -> bool:
    try:
        socket.create_server(("::", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("value", "endpoint", "loopback", "authority"),
    [
        ("[::1]:8080", r"tcp6:8080:interface=\:\:1", True, "[::1]:8080"),
        ("127.0.0.1:8080", "tcp:8080:interface=127.0.0.1", True, "127.0.0.1:8080"),
        ("127.8.8.8:1", "tcp:1:interface=127.8.8.8", True, "127.8.8.8:1"),
        ("0.0.0.0:65535", "tcp:65535:interface=0.0.0.0", False, "0.0.0.0:65535"),
        ("[::]:80", r"tcp6:80:interface=\:\:", False, "[::]:80"),
        ("[2001:db8::1]:80", r"tcp6:80:interface=2001\:db8\:\:1", False, "[2001:db8::1]:80"),
        ("unix:/run/x.sock:mode=660", "unix:/run/x.sock:mode=660", False, ""),
        ("systemd:domain=INET6:index=0", "systemd:domain=INET6:index=0", False, ""),
        ("ssl:8443:privateKey=key.pem", "ssl:8443:privateKey=key.pem", False, ""),
        ("tcp:8080", "tcp:8080", False, ""),
        ("tcp:8080:interface=127.0.0.1", "tcp:8080:interface=127.0.0.1", True, "127.0.0.1:8080"),
        (r"tcp6:8080:interface=\:\:1", r"tcp6:8080:interface=\:\:1", True, "[::1]:8080"),
        ("tcp:port=8080:interface=192.0.2.1", "tcp:port=8080:interface=192.0.2.1", False, "192.0.2.1:8080"),
    ],
)
def test_forms(value: str, endpoint: str, loopback: bool, authority: str) -> None:
    """Each form of ListenPort listens where it says, and only addresses of this machine count as loopback."""
    assert listen_at(value) == Listen(endpoint, loopback, authority)


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6")
@pytest.mark.parametrize("value", [8080, ":8080"])
def test_every_address(value: str | int) -> None:
    """A port alone is served on every address, IPv6 and IPv4."""
    assert listen_at(value) == Listen(r"tcp6:8080:interface=\:\:", False, "localhost:8080")


def test_every_address_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without IPv6 a port alone is served on every IPv4 address."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert listen_at(":8080") == Listen("tcp:8080", False, "localhost:8080")


def test_host_name() -> None:
    """A name is looked up, once, when the configuration is read."""
    found = listen_at("localhost:8080")
    assert found.loopback
    assert found.authority in ("127.0.0.1:8080", "[::1]:8080")


@pytest.mark.parametrize(
    "value",
    ["", "8080", ":", ":x", "-1", -1, 123456, ":123456", "::1:8080", "[::1]", "[]:80", "http://[::1]:80",
     "/run/x.sock", "nonsense:8080:x", "tcp", "[::1]:80\n", " [::1]:80"],
)  # fmt: skip
def test_refuses_with_the_forms(value: str | int) -> None:
    """What is no address is refused with the forms that are."""
    with pytest.raises(ValueError, match=r"^not an address to listen at; write ") as raised:
        listen_at(value)
    assert str(raised.value).endswith(FORMS)


@pytest.mark.parametrize("value", [65536, ":99999", "[::1]:70000", "127.0.0.1:65536"])
def test_refuses_ports_that_do_not_exist(value: str | int) -> None:
    """A port over 65535 is refused with the limit."""
    with pytest.raises(ValueError, match=r"^a port is at most 65535$"):
        listen_at(value)


@pytest.mark.parametrize("path", ["/run/prosody-filer.sock", "/run/with:colon=x.sock"])
def test_socket_of_prosody_filer(path: str) -> None:
    """A path is one whole socket path, whatever stands in it, and every local user may connect."""
    listen = listen_on_socket(path)
    reactor = MemoryReactor()
    serverFromString(reactor, listen.endpoint).listen(None)
    assert reactor.unixServers[0][0] == path
    assert reactor.unixServers[0][3] == 0o666
    assert not listen.loopback


@pytest.mark.parametrize(
    ("value", "path", "mode"),
    [
        ("unix:/run/x.sock", "/run/x.sock", 0o666),
        ("unix:/run/x.sock:mode=660", "/run/x.sock", 0o660),
        ("unix:address=/run/x.sock:lockfile=0:backlog=5:mode=600", "/run/x.sock", 0o600),
        (r"unix:/run/a\:b\\c.sock", r"/run/a:b\c.sock", 0o666),
        ("haproxy:unix:/run/x.sock:mode=660", "/run/x.sock", 0o660),
    ],
)
def test_unix_sockets(value: str, path: str, mode: int) -> None:
    """The path and mode of a Unix socket are read as Twisted reads them."""
    listen = listen_at(value)
    assert listen.unix == UnixAddress(path, mode)
    assert (listen.kind, listen.is_proxied) == ("unix", value.startswith("haproxy"))


@pytest.mark.parametrize("value", ["unix:/x:mode=9", "unix:/x:nonsense=1", "unix:mode=660", "unix:/x:660"])
def test_what_is_no_unix_socket(value: str) -> None:
    """What Twisted would not read is left for Twisted to say so."""
    assert listen_at(value).unix is None


@pytest.mark.parametrize("zone", ["eth0", "br-lan.7", "2"])
def test_link_local_addresses(zone: str) -> None:
    """An address that holds on one interface keeps its name, whatever that is."""
    assert listen_at(f"[fe80::1%{zone}]:8080").bind == (f"fe80::1%{zone}", 8080)


def resolver(address: str) -> Callable[..., list[Any]]:
    """A getaddrinfo that knows one address for all hosts; none if it is empty."""

    def getaddrinfo(host: str, port: object, **_: object) -> list[Any]:
        if not address:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", (address, 0))]

    return getaddrinfo


@given(st.text('[]:.%0123456789abcdef/=\\ \n"tcpunix', max_size=30), st.sampled_from(["", "127.0.0.1", "fe80::1%2"]))
def test_junk_is_refused_or_understood(text: str, known: str) -> None:
    """Whatever is written, it is an address or refused; nothing else comes of it."""
    with mock.patch.object(socket, "getaddrinfo", resolver(known)), contextlib.suppress(ValueError):
        assert isinstance(listen_at("[" + text), Listen)
