"""Who is told of an upload resource before the end: whoever connects directly, and proxies that pass 104."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock

from hmac_file_server.files.resource import Files
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.tree import Place, Root
from hmac_file_server.files.upload import Uploads
from hmac_file_server.resumption.keeper import FileKeeper
from hmac_file_server.resumption.upload import SAVE_SECONDS, Resumables
from hmac_file_server.resumption.wiring import place_of
from hmac_file_server.slots.path import RESERVED
from hmac_file_server.slots.verifier import Verifier
from hmac_file_server.stores.room import Room
from hmac_file_server.web.client import Proxies
from hmac_file_server.web.connections import Limits
from hmac_file_server.web.site import Site
from tests.stores import local_store
from tests.support import SECRET, put_target
from tests.test_request import Transport, status

TRUSTED = [ipaddress.ip_network(network) for network in ("127.0.0.1", "10.0.0.0/8")]
STRANGER = IPv4Address("TCP", "198.51.100.7", 4711)
PROXY = IPv4Address("TCP", "10.1.2.3", 4711)
VERSIONS = [3, 5, 6, 7, 8, 9]
OFFER = b"HTTP/1.1 104 Upload Resumption Supported\r\n"


class Server:
    """A site with upload resources, and one connection."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.folder = Clock(), folder
        self.store = local_store(folder, fsync=False)
        self.uploads = Uploads(self.store, Room(0), RetryPolicy(self.clock, 1, 1.0), 4096)
        sessions = self.store.sessions(3600.0)
        self.uploads.watcher = keeper = FileKeeper(sessions, self.clock)
        self.resumables = Resumables(sessions, self.uploads, keeper.kept, self.clock)

    def connect(self, peer: IAddress = STRANGER, **known: Any) -> None:
        """:param known: of proxies."""
        files = Files(Verifier([SECRET.encode()]), Serving(self.store, self.clock), self.uploads, 0)
        place = place_of(self.resumables, files, "upload", 0)
        limits = Limits(proxies=Proxies(TRUSTED, **known))
        site = Site(Root([Place("upload", place, files)]), self.clock, limits, lambda *of: None)
        self.transport = Transport(peerAddress=peer)
        self.channel: Any = site.buildProtocol(peer)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> bytes:
        """What comes back at once."""
        self.transport.clear()
        self.channel.dataReceived(data)
        return self.transport.value()

    @property
    def kept(self) -> int:
        return len(list((self.folder / RESERVED.decode()).glob("*.session")))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.store.close()


def upload(*headers: str, version: int = 6, complete: bool = True, target: str = "", http: str = "1.1") -> bytes:
    """The headers of a resumable PUT of ten bytes, or of its first five."""
    said = f"Upload-Incomplete: ?{int(not complete)}" if version == 3 else f"Upload-Complete: ?{int(complete)}"
    lines = [
        f"PUT {target}{put_target('slot/a.bin', 10)} HTTP/{http}",
        "Host: a",
        f"Content-Length: {10 if complete else 5}",
        f"Upload-Draft-Interop-Version: {version}",
        said,
        *headers,
    ]
    if not complete:
        lines.append("Upload-Length: 10")
    return "\r\n".join([*lines, "", ""]).encode()


PASSED_ON = [
    "Via: 1.1 proxy",
    "via: 2.0 cdn",
    "Forwarded: for=192.0.2.1",
    "X-Forwarded-For: 192.0.2.1",
    "X-Forwarded-Proto: https",
    "x-forwarded-host: upload.example",
    "X-Forwarded-Server: proxy",
    "X-Forwarded-Port: 443",
    "X-Forwarded: for=192.0.2.1",
    "Forwarded-For: 192.0.2.1",
    "X-Original-Forwarded-For: 192.0.2.1",
    "X-Real-IP: 192.0.2.1",
    "x-real-ip: 192.0.2.1",
    "X-Client-IP: 192.0.2.1",
    "X-Cluster-Client-IP: 192.0.2.1",
    "X-Azure-ClientIP: 192.0.2.1",
    "CF-Connecting-IP: 192.0.2.1",
    "CF-Ray: 230b030023ae2822-SJC",
    "True-Client-IP: 192.0.2.1",
    "Fastly-Client-IP: 192.0.2.1",
    "Fastly-FF: x",
    "CDN-Loop: cdn",
    "X-Amzn-Trace-Id: Root=1",
    "X-Amz-Cf-Id: x",
    "X-Envoy-External-Address: 192.0.2.1",
    "X-Varnish: 1",
    "Via:",
]


@pytest.mark.parametrize("version", VERSIONS)
def test_who_connects_directly_is_told(server: Server, version: int) -> None:
    """A client that connects by itself hears of its upload resource, in each version of the draft."""
    server.connect()
    answer = server.send(upload(version=version))
    assert answer.startswith(OFFER)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert server.kept == 1
    assert status(server.send(b"0123456789")) == b"201"


@pytest.mark.parametrize(
    "peer", [PROXY, IPv6Address("TCP", "::ffff:10.1.2.3", 1), UNIXAddress(b"/s"), UNIXAddress(None)]
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_trusted_proxy_gets_a_plain_upload(server: Server, peer: IAddress, version: int) -> None:
    """What a trusted proxy or a Unix socket brings is a plain upload: nothing is kept, and no 104 is sent."""
    server.connect(peer)
    assert server.send(upload(version=version)) == b""
    assert server.kept == 0
    answer = server.send(b"0123456789")
    assert status(answer) == b"201"
    assert b"upload-" not in answer.split(b"Expose-Headers")[1].partition(b"\r\n")[2].lower()
    assert server.kept == 0


@pytest.mark.parametrize("header", PASSED_ON)
def test_what_was_passed_on_is_a_plain_upload(server: Server, header: str) -> None:
    """What has a header that only proxies write is a plain upload, whoever sent it."""
    server.connect()
    assert server.send(upload(header)) == b""
    assert server.kept == 0
    assert status(server.send(b"0123456789")) == b"201"


@pytest.mark.parametrize(
    "header",
    [
        "User-Agent: Via/1",
        "Accept: */*",
        "Priority: u=3",
        "Origin: https://forwarded.example",
        "X-Ship: via",
        "Zip: 1",
    ],
)
def test_what_clients_write_is_not_a_proxys(server: Server, header: str) -> None:
    """Other headers do not cost a client its upload resource."""
    server.connect()
    assert server.send(upload(header)).startswith(OFFER)


def test_other_signs_of_a_proxy(server: Server) -> None:
    """A whole URL for a target, HTTP/1.0 and the PROXY protocol are signs of a proxy too."""
    server.connect()
    assert server.send(upload(target="http://upload.example")) == b""
    server.connect()
    assert server.send(upload(http="1.0")) == b""
    server.connect(proxy_protocol=True)
    assert server.send(upload()) == b""
    server.connect(pass_104=True)
    assert server.send(upload(http="1.0")) == b""
    assert server.kept == 0


@pytest.mark.parametrize("peer", [PROXY, UNIXAddress(None), STRANGER])
@pytest.mark.parametrize("header", ["X-Forwarded-For: 192.0.2.1", "Accept: */*"])
def test_proxies_that_pass_104(server: Server, peer: IAddress, header: str) -> None:
    """With ProxiesPass104 what comes through proxies is treated as what comes directly."""
    server.connect(peer, pass_104=True, proxy_protocol=True)
    assert server.send(upload(header, target="http://upload.example")).startswith(OFFER)
    assert server.kept == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_parts_go_on_through_any_proxy(server: Server, version: int) -> None:
    """An upload in parts begins a session all the same, for its final answer names it; no 104 is sent on its way."""
    server.connect(PROXY)
    assert server.send(upload(version=version, complete=False)) == b""
    answer = server.send(b"01234")
    assert (status(answer), answer.count(b"HTTP/1.1 ")) == (b"201", 1)
    location = re.search(rb"\r\nLocation: (\S+)\r\n", answer)
    assert location
    complete = b"Upload-Incomplete: ?0" if version == 3 else b"Upload-Complete: ?1"
    append = (
        b"PATCH %b HTTP/1.1\r\nHost: a\r\nUpload-Draft-Interop-Version: %d\r\nContent-Length: 5\r\n"
        b"Content-Type: application/partial-upload\r\nUpload-Offset: 5\r\n%b\r\n\r\n"
        % (location[1], version, complete)
    )
    assert server.send(append + b"567") == b""
    server.clock.advance(SAVE_SECONDS + 1)
    assert server.transport.value() == b""
    assert status(server.send(b"89")) == b"201"
    assert (server.folder / "slot/a.bin").read_bytes() == b"0123456789"


def test_progress_of_a_part(server: Server) -> None:
    """The same PATCH tells how much is safe to a client that connects by itself, and not to one behind a proxy."""
    for header, told in (("Accept: */*", True), ("Via: 1.1 x", False)):
        server.connect()
        answer = server.send(upload(header, complete=False) + b"01234")
        location = re.search(rb"\r\nLocation: (\S+)\r\n", answer)
        assert location
        server.send(
            f"PATCH {location[1].decode()} HTTP/1.1\r\nHost: a\r\nUpload-Draft-Interop-Version: 6\r\n{header}\r\n"
            "Content-Type: application/partial-upload\r\nUpload-Offset: 5\r\nUpload-Complete: ?1\r\n"
            "Content-Length: 5\r\n\r\n567".encode()
        )
        server.clock.advance(SAVE_SECONDS + 1)
        assert (b"Upload-Offset: 8" in server.transport.value()) is told
        assert b"HTTP/1.1 201 Created\r\n" in server.send(b"89")
        (server.folder / "slot/a.bin").unlink()


@pytest.mark.parametrize("peer", [PROXY, STRANGER])
def test_100_continue_is_sent_to_whoever_asks(server: Server, peer: IAddress) -> None:
    """A proxy that hands on an Expect waits for the 100, so it gets that, and only that."""
    server.connect(peer)
    answer = server.send(upload("Expect: 100-continue"))
    assert answer.endswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == (2 if peer is STRANGER else 1)
