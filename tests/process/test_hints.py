"""What a proxy or a client speaks wrongly is answered at once, and the log tells once what to change."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.neighbours.program import certificate
from tests.support import Daemon, Wire, eventually, free_port, need, put_target

MakeDaemon = Callable[..., Daemon]

GET = b"GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n"
PROXY_2 = b"\r\n\r\n\0\r\nQUIT\n"


def proxy_1(address: str) -> bytes:
    """The PROXY protocol's header, version 1."""
    return f"PROXY TCP4 {address} 192.0.2.254 4711 443\r\n".encode()


def proxy_2(address: str) -> bytes:
    """The same, version 2."""
    places = socket.inet_aton(address) + socket.inet_aton("192.0.2.254") + struct.pack("!HH", 4711, 443)
    return PROXY_2 + b"\x21\x11" + struct.pack("!H", len(places)) + places


def told(daemon: Daemon, words: str) -> list[str]:
    """The lines with these words in the log of a daemon that ends here, so that all of it is written."""
    daemon.stop()
    return [line for line in daemon.log.splitlines() if words in line and " StoreDir " not in line]


def client_hello() -> bytes:
    """What a TLS client sends first."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="upload.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


FOREIGN = {
    "TLS": (client_hello(), "speaks TLS", 'ListenPort = "ssl:'),
    "the PROXY protocol": (proxy_1("192.0.2.7") + GET, "sends the PROXY protocol", 'ListenPort = "haproxy:tcp:'),
    "the PROXY protocol, version 2": (
        proxy_2("192.0.2.7") + GET,
        "sends the PROXY protocol",
        'ListenPort = "haproxy:',
    ),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), "speaks HTTP/2", "proto h2"),
}


@pytest.mark.parametrize(("begin", "words", "remedy"), FOREIGN.values(), ids=FOREIGN)
def test_another_protocol(make_daemon: MakeDaemon, begin: bytes, words: str, remedy: str) -> None:
    """It is answered and ended at once, and the log names the remedy, once for many connections."""
    daemon = make_daemon().start()
    for _ in range(3):
        with daemon.wire().send(begin) as wire:
            assert wire.rest().startswith(b"HTTP/1.1 400 ")
    assert daemon.get("none").status == 404
    (line,) = told(daemon, words)
    assert re.search(r"\bwarn +127\.0\.0\.1 ", line)
    assert remedy in line


@pytest.mark.parametrize("size", [1, 3])
def test_tls_in_pieces(make_daemon: MakeDaemon, size: int) -> None:
    """The first byte tells already."""
    daemon = make_daemon().start()
    with daemon.wire().send(client_hello()[:size]) as wire:
        assert wire.rest().startswith(b"HTTP/1.1 400 ")
    assert len(told(daemon, "speaks TLS")) == 1


@pytest.mark.parametrize("first", [b"\0", b"\x80", b"\xff", b" ", b"\x03", b"{", b'"'])
def test_what_is_no_request(make_daemon: MakeDaemon, first: bytes) -> None:
    """Of a byte that no request begins with nothing can come: it is answered at once, and counted."""
    daemon = make_daemon().start()
    with daemon.wire().send(first) as wire:
        assert wire.rest().startswith(b"HTTP/1.1 400 ")
    assert daemon.metric("hmac_file_server_refusals_total", '{reason="malformed"}') == 1


def test_requests_in_pieces(make_daemon: MakeDaemon) -> None:
    """A request may come byte by byte, with an empty line before it, and be followed by another."""
    daemon = make_daemon().start()
    with daemon.wire() as wire:
        for byte in b"\r\n" + GET:
            wire.send(bytes([byte]))
        assert wire.answer().status == 404
        assert wire.send(GET).answer().status == 404


def test_what_is_no_tls(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Plain HTTP and the PROXY protocol at a port for TLS are ended at once, and the log names each's remedy, once."""
    need("openssl")
    chain, key = certificate(tmp_path, "localhost")
    port = free_port()
    daemon = make_daemon(ListenPort=f"ssl:{port}:interface=127.0.0.1:privateKey={key}:certKey={chain}").launch()
    eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    for first in (GET, GET, GET.replace(b"GET", b"PATCH"), proxy_1("192.0.2.7"), proxy_2("192.0.2.7")):
        with Wire(port).send(first) as wire:
            wire.rest()
    context = ssl.create_default_context(cafile=str(chain))
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(GET)
        assert secure.recv(12) == b"HTTP/1.1 404"
    http, proxy = told(daemon, " warn ")
    assert "speaks plain HTTP" in http
    assert "https://" in http
    assert f'set ListenPort = "haproxy:ssl:{port}:' in proxy


@pytest.mark.parametrize("header", [proxy_1, proxy_2])
def test_the_proxy_protocol(make_daemon: MakeDaemon, header: Callable[[str], bytes]) -> None:
    """With a haproxy: endpoint each connection counts for the client that its header names, and the log names it."""
    port = free_port()
    daemon = make_daemon(ListenPort=f"haproxy:tcp:{port}:interface=127.0.0.1", MaxConnectionsPerAddress=2).launch()
    eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)

    def connect(address: str) -> Wire:
        return Wire(port).send(header(address) + GET)

    wires = [connect(address) for address in ("192.0.2.7", "192.0.2.7", "192.0.2.8", "192.0.2.9")]
    assert [wire.answer().status for wire in wires] == [404] * 4
    with connect("192.0.2.7") as extra:
        assert extra.answer().status == 429
    wires[0].close()

    def is_let_in() -> bool:
        with connect("192.0.2.7") as wire:
            return wire.answer().status == 404

    eventually(is_let_in)
    for wire in wires:
        wire.close()
    assert told(daemon, " 192.0.2.8 GET /upload/none 404 ")
    assert told(daemon, "192.0.2.7 was refused a connection")


@pytest.mark.parametrize("begin", [GET, client_hello()], ids=["HTTP", "TLS"])
def test_no_proxy_protocol(make_daemon: MakeDaemon, begin: bytes) -> None:
    """Without its header a haproxy: endpoint ends the connection at once; who only looks in is not told of."""
    port = free_port()
    daemon = make_daemon(ListenPort=f"haproxy:tcp:{port}:interface=127.0.0.1").launch()
    eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    with Wire(port).send(proxy_1("192.0.2.7") + GET) as wire:
        assert wire.answer().status == 404
    Wire(port).close()
    for _ in range(3):
        with Wire(port).send(begin) as wire:
            assert wire.rest() == b""
    (line,) = told(daemon, " warn ")
    assert "does not send the PROXY protocol" in line
    assert "send-proxy" in line
    assert f'ListenPort = "tcp:{port}:interface=127.0.0.1"' in line


@pytest.mark.parametrize("name", ["X_Forwarded_For", "Forwarded", "X_Real_IP"])
def test_a_proxy_that_is_not_trusted(make_daemon: MakeDaemon, tmp_path: Path, name: str) -> None:
    """Its headers are not believed, and the log tells once what to write; with that they are."""
    daemon = make_daemon(TrustedProxies=["::1", "10.0.0.0/8"]).start()
    headers = {name: "for=192.0.2.7" if name == "Forwarded" else "192.0.2.7"}
    for _ in range(3):
        assert daemon.put("slot/a.bin", b"hello", **headers).status == 201
        assert daemon.get("none", **headers).status == 404
    (line,) = told(daemon, "TrustedProxies")
    remedy = 'set TrustedProxies = ["::1", "10.0.0.0/8", "127.0.0.1"]'
    assert remedy in line
    daemon = make_daemon(tmp_path / "other", TrustedProxies=["::1", "10.0.0.0/8", "127.0.0.1"]).start()
    assert daemon.get("none", **headers).status == 404
    assert not told(daemon, "TrustedProxies")
    assert bool(told(daemon, " 192.0.2.7 GET ")) == (name != "X_Real_IP")


def test_a_proxy_by_its_other_name(make_daemon: MakeDaemon) -> None:
    """IPv4 in IPv6's form names the same proxy."""
    daemon = make_daemon(TrustedProxies=["::ffff:127.0.0.0/104"]).start()
    assert daemon.get("none", X_Forwarded_For="192.0.2.7").status == 404
    assert told(daemon, " 192.0.2.7 GET ")


def test_one_address_too_often(make_daemon: MakeDaemon) -> None:
    """Who is refused for its many connections may be a proxy: the line names both keys."""
    daemon = make_daemon(MaxConnectionsPerAddress=1, TrustedProxies=[]).start()
    eventually(lambda: daemon.get("none").status == 404)
    with daemon.wire().send(GET) as wire:
        assert wire.answer().status == 404
        with daemon.wire() as extra:
            assert extra.answer().status == 429
    (line,) = told(daemon, "was refused a connection")
    assert "(MaxConnectionsPerAddress)" in line
    assert "TrustedProxies" in line


def test_strangers_do_not_fill_the_log(make_daemon: MakeDaemon) -> None:
    """Whoever speaks wrongly from many addresses gets few lines."""
    daemon = make_daemon(TrustedProxies=[]).start()
    for number in range(1, 30):
        with socket.create_connection(("127.0.0.1", daemon.port), source_address=(f"127.0.1.{number}", 0)) as client:
            client.sendall(b"\x16\x03\x01")
            assert client.recv(12) == b"HTTP/1.1 400"
    assert daemon.put("slot/a.bin", b"hello").status == 201
    assert len(told(daemon, "speaks TLS")) == 10


def test_a_put_target_is_no_hint(make_daemon: MakeDaemon) -> None:
    """What clients do by themselves leaves no hint."""
    daemon = make_daemon(TrustedProxies=[]).start()
    with daemon.wire() as wire:
        head = f"PUT {put_target('slot/a.bin', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nVia: 1.1 x\r\n\r\nhello"
        assert wire.send(head.encode()).answer().status == 201
    daemon.wire().close()
    assert not told(daemon, "warn")
