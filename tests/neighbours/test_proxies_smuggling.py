"""Streams that are read differently by careless proxies and servers, through real proxies.

Each proxy refuses what lies below ``/upload/hidden/``. Behind each stream stands a PUT to there that is well signed:
if it reaches the daemon, the proxy took for a body what the daemon took for a request. ``STREAMS`` says how many of
them are sent through each proxy, beside those of ``tests/process/test_smuggling.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.neighbours.apache import Apache
from tests.neighbours.caddy import Caddy
from tests.neighbours.haproxy import HAProxy
from tests.neighbours.nginx import Nginx
from tests.neighbours.proxy import NAME, Proxy
from tests.process.test_smuggling import HIDDEN, PUT, REFUSED
from tests.support import Daemon, need

STREAMS = int(os.environ.get("STREAMS", "100"))
PATIENCE = 0.5
"""Seconds for which an answer is waited for that may never come: nothing depends on it."""

DENY = {
    "nginx": (
        Nginx,
        ("    location /upload/ {", "    location /upload/hidden/ { return 403; }\n    location /upload/ {"),
    ),
    "haproxy": (
        HAProxy,
        ("    default_backend", "    http-request deny if { path_beg /upload/hidden/ }\n    default_backend"),
    ),
    "caddy": (Caddy, ("\t# The daemon's", "\t@hidden path /upload/hidden/*\n\terror @hidden 403\n\t# The daemon's")),
    "apache2": (Apache, ("    ProxyPass /", "    ProxyPass /upload/hidden/ !\n    ProxyPass /")),
}

OWN_HOST = f"Host: {NAME}\r\n".encode()
BODY = b"Content-Length: 5\r\n\r\nhello"
LAST = b"GET /upload/there/a.bin HTTP/1.1\r\n" + OWN_HOST + b"Connection: close\r\n\r\n"

ODD = [b"\0", b"\t", b" ", b"\v", b"\f", b"\r", b"\n", b"\r\n", b"\r\n ", b"\x7f", b"\x85", b"\xa0", b",", b";", b":"]
FIELDS = [
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-encoding: chunked, chunked",
    b"Transfer-Encoding : chunked",
    b" Transfer-Encoding: chunked",
    b"Content-Length: 0",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content_Length: 0",
    b"Content-Length: %d" % (len(HIDDEN) + 5),
    b"Expect: 100-continue",
    b"Connection: close, Content-Length",
    b"Connection: keep-alive",
    b"Upgrade: h2c",
    b"TE: trailers",
    b"Trailer: Content-Length",
]
BODIES = [
    b"hello",
    b"",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=\ny\r\nhello\r\n0\r\n\r\n",
    b"05\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello0\r\n\r\n",
    b"0\r\nContent-Length: 9\r\n\r\n",
    b"-1\r\n\r\n",
    b"100000000000000000005\r\nhello\r\n0\r\n\r\n",
]


def mutated(chance: random.Random) -> bytes:
    """A PUT with fields, bytes and a body that do not belong together."""
    lines = [PUT.removesuffix(b"\r\n"), OWN_HOST.removesuffix(b"\r\n"), b"Content-Length: 5"]
    for _ in range(chance.randrange(1, 4)):
        lines.insert(chance.randrange(1, len(lines) + 1), chance.choice(FIELDS))
    if chance.random() < 0.3:
        del lines[chance.randrange(1, len(lines))]
    head = b"\r\n".join([*lines, b"", b""])
    for _ in range(chance.randrange(3)):
        place = chance.randrange(len(PUT), len(head))
        head = head[:place] + chance.choice(ODD) + head[place + chance.randrange(2) :]
    return head + chance.choice(BODIES) + HIDDEN


def streams(chance: random.Random) -> Iterator[bytes]:
    yield from REFUSED.values()
    for _ in range(STREAMS):
        yield mutated(chance)


@pytest.mark.parametrize(("kind", "deny"), DENY.values(), ids=DENY)
def test_no_request_is_smuggled(tmp_path: Path, kind: type[Proxy], deny: tuple[str, str]) -> None:
    """What the proxy refuses never reaches the daemon, and everybody else gets the answer to what they asked."""
    need(kind.command, "openssl")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    daemon = Daemon(tmp_path).start()
    try:
        proxy = kind(folder, daemon, deny)
        try:
            attack(daemon, proxy)
        finally:
            proxy.program.end()
    finally:
        daemon.stop()
        shutil.rmtree(folder)
    assert "hidden" not in daemon.log
    assert "Traceback" not in daemon.log


def attack(daemon: Daemon, proxy: Proxy) -> None:
    others = {f"there/{name}.bin": name.encode() * 1000 for name in "ab"}
    for path, content in others.items():
        assert daemon.put(path, content).status == 201
    assert answered(proxy, HIDDEN.replace(b"Host: a\r\n", OWN_HOST)) in (403, 404, 405)
    seed = random.randrange(1 << 32)
    bystander = proxy.wire()
    try:
        for number, stream in enumerate(streams(random.Random(seed))):
            answered(proxy, stream.replace(b"Host: a\r\n", OWN_HOST) + LAST)
            if number % 10 == 0:
                bystander.close()
                bystander = proxy.wire()
            for path, content in others.items():
                bystander.begin("GET", f"/upload/{path}")
                answer = bystander.final()
                assert (answer.status, answer.body) == (200, content), (seed, number, stream)
            assert not (daemon.store / "hidden").exists(), (seed, number, stream)
    finally:
        bystander.close()


def answered(proxy: Proxy, stream: bytes) -> int:
    """The status of the first answer to a stream; 0 if there is none. All answers have come when this returns."""
    with proxy.wire() as wire:
        wire.send(stream)
        wire.socket.settimeout(PATIENCE)
        data = bytearray()
        try:
            while piece := wire.socket.recv(1 << 16):
                data += piece
        except OSError:
            pass
    return int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else 0


def test_what_is_smuggled_would_be_seen(daemon: Daemon) -> None:
    """The PUT that stands behind each stream is one that the daemon takes."""
    with daemon.wire().send(PUT + b"Host: a\r\n" + BODY + HIDDEN) as wire:
        assert [wire.answer().status for _ in range(2)] == [201, 201]
    assert (daemon.store / "hidden/a.bin").exists()
