"""What does not fit in front of the daemon is told of, however much strangers speak wrongly."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import LogEvent, capturedLogs, formatEvent

from hmac_file_server.web.connections import Limits, Proxies
from hmac_file_server.web.hints import Hints
from tests.stores import MemoryStore
from tests.support import put_target
from tests.test_request import Server

TLS = b"\x16\x03\x01"


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    with capturedLogs() as captured:
        yield captured


def test_one_mistake_hides_no_other(events: list[LogEvent]) -> None:
    """Strangers that speak TLS from everywhere leave ten lines, and keep no proxy from being told of."""
    hints = Hints()
    for number in range(250):
        hints.first_bytes(f"192.0.2.{number}", TLS)
    assert len(events) == 10
    for _ in range(3):
        hints.untrusted("10.0.0.1")
        hints.first_bytes("10.0.0.1", b"PROXY TCP4 ")
    told = [formatEvent(event) for event in events[10:]]
    assert [line.split()[:2] for line in told] == [["10.0.0.1", "sends"]] * 2
    assert "TrustedProxies" in told[0]
    assert "haproxy:" in told[1]


def test_one_user_is_told_of_once(events: list[LogEvent]) -> None:
    """All addresses of one /64 are one user's."""
    hints = Hints()
    for number in range(100):
        hints.first_bytes(f"2001:db8::{number:x}", TLS)
    hints.first_bytes("2001:db8:0:1::1", TLS)
    assert len(events) == 2


@pytest.mark.parametrize(("headers", "told"), [(["X-Real-IP: a"], 1), (["X-Real-IP: a", "X-Forwarded-For: b"], 0)])
def test_a_trusted_proxy_that_does_not_name_its_clients(
    events: list[LogEvent], tmp_path: Path, headers: list[str], told: int
) -> None:
    """X-Real-IP alone is not read, for a proxy that does not write it passes on its clients': the log says so once."""
    trusted = Proxies(trusted=[ipaddress.ip_network("192.168.1.1")])
    server = Server(tmp_path, Limits(proxies=trusted), MemoryStore())
    for _ in range(3):
        server.send("\r\n".join(["GET /upload/none HTTP/1.1", "Host: a", *headers, "", ""]))
    lines = [formatEvent(event) for event in events]
    assert len(lines) == told
    assert all("proxy_set_header X-Forwarded-For" in line for line in lines)
    server.store.close()


@pytest.mark.parametrize(
    "header", ["Proxy-Foo: a", "X-Original-URI: /", "X-Scheme: https", "X-NginX-Proxy: true", "Front-End-Https: on"]
)
def test_what_proxies_write(tmp_path: Path, header: str) -> None:
    """A request with one of the headers that proxies are set up to write has come through one."""
    server = Server(tmp_path, store=MemoryStore())
    server.send(f"PUT {put_target('a/b', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n{header}\r\n\r\n")
    assert server.channel.requests[0].proxied
    server.hang_up()
    server.store.close()
