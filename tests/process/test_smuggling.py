"""Requests that a proxy and the daemon could read differently: refused, or the same in every reading.

Behind each of them stands a PUT that is well signed. If it were taken for a request, its file would be there.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
from collections.abc import Iterator

import pytest

from tests.support import Daemon, eventually, put_target

HIDDEN = f"PUT {put_target('hidden/a.bin', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".encode()
"""What an attacker would smuggle."""

PUT = f"PUT {put_target('slot/a.bin', 5)} HTTP/1.1\r\n".encode()
GET = b"GET /upload/there/a.bin HTTP/1.1\r\n"
HOST = b"Host: a\r\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests."""
    daemon = Daemon(tmp_path_factory.mktemp("smuggling"), MinFreeSpace=0).start()
    try:
        assert daemon.put("there/a.bin", b"hello").status == 201
        yield daemon
        assert "Traceback" not in daemon.log
    finally:
        daemon.stop()


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The daemon; after each test others are served, and nothing is stored but what the test has taken away."""
    yield shared
    assert shared.get("there/a.bin").body == b"hello"
    eventually(lambda: shared.running() == 0)
    files = shared.files()
    for name in ("hidden", "slot"):
        shutil.rmtree(shared.store / name, ignore_errors=True)
    assert files == {"there/a.bin"}


def stored(daemon: Daemon, path: str) -> bytes | None:
    """What is stored at a path, which is free again then; None if nothing is."""
    file = daemon.store / path
    if not file.exists():
        return None
    content = file.read_bytes()
    file.unlink()
    file.parent.rmdir()
    return content


def statuses(answered: bytes) -> list[int]:
    """The status of each answer."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answered)]


def lengths(*values: bytes) -> bytes:
    return PUT + HOST + b"".join(b"Content-Length: %b\r\n" % value for value in values) + b"\r\nhello" + HIDDEN


def coding(value: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """A chunked body that is empty in one reading and, with Content-Length, hides the rest in the other."""
    return PUT + HOST + before + b"Transfer-Encoding:" + value + b"\r\n" + after + b"\r\n0\r\n\r\n" + HIDDEN


def header(line: bytes) -> bytes:
    return PUT + HOST + line + b"\r\nContent-Length: 5\r\n\r\nhello" + HIDDEN


ALL = b"Content-Length: %d\r\n" % (len(HIDDEN) + 5)

REFUSED = {
    # Content-Length
    "two lengths": lengths(b"5", b"%d" % (5 + len(HIDDEN))),
    "two lengths the other way round": lengths(b"%d" % (5 + len(HIDDEN)), b"5"),
    "the same length twice": lengths(b"5", b"5"),
    "a list of lengths": lengths(b"5, 5"),
    "a list of different lengths": lengths(b"5,6"),
    "a positive length": lengths(b"+5"),
    "a negative length": lengths(b"-5"),
    "a negative zero": lengths(b"-0"),
    "a length in hex": lengths(b"0x5"),
    "a length with a fraction": lengths(b"5.0"),
    "a length with an exponent": lengths(b"5e0"),
    "a length with an underscore": lengths(b"0_5"),
    "a length with a space": lengths(b"0 5"),
    "a length with a vertical tab": lengths(b"\x0b5"),
    "a length with a form feed": lengths(b"5\x0c"),
    "a length with a no-break space": lengths(b"\xa05"),
    "a length in other digits": lengths("\N{ARABIC-INDIC DIGIT FIVE}".encode()),
    "a length that is a superscript": lengths("\N{SUPERSCRIPT FIVE}".encode()),
    "an empty length": lengths(b""),
    "a quoted length": lengths(b'"5"'),
    "a length of 64 bits and more": lengths(b"%d" % (2**64 + 5)),
    "a length that is too long": lengths(b"9" * 400),
    "a length that is too long for a number": lengths(b"9" * 5000),
    # Transfer-Encoding
    "chunked and a length": coding(b" chunked", after=ALL),
    "a length and chunked": coding(b" chunked", before=ALL),
    "chunked, identity": coding(b" chunked, identity", before=ALL),
    "identity, chunked": coding(b" identity, chunked", before=ALL),
    "chunked, chunked": coding(b" chunked, chunked"),
    "chunked twice": coding(b" chunked", after=b"Transfer-Encoding: chunked\r\n"),
    "chunked and identity": coding(b" chunked", after=b"Transfer-Encoding: identity\r\n"),
    "identity and a length": coding(b" identity", before=ALL),
    "gzip, chunked": coding(b" gzip, chunked"),
    "gzip": coding(b" gzip", before=ALL),
    "an unknown coding": coding(b" xchunked", before=ALL),
    "an empty coding": coding(b"", before=ALL),
    "a coding with a parameter": coding(b" chunked;q=1", before=ALL),
    "a quoted coding": coding(b' "chunked"', before=ALL),
    "a coding with a vertical tab": coding(b"\x0bchunked", before=ALL),
    "a coding with a NUL": coding(b" chunked\0", before=ALL),
    "a coding with a carriage return": coding(b" \rchunked", before=ALL),
    "a coding with a newline": coding(b"\nchunked", before=ALL),
    "a folded coding": coding(b"\r\n chunked", before=ALL),
    "a coding with a space before its colon": PUT
    + HOST
    + ALL
    + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"
    + HIDDEN,
    "a coding with a tab before its colon": PUT
    + HOST
    + ALL
    + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"
    + HIDDEN,
    # Header lines
    "a folded header": header(b"X: y\r\n z"),
    "a header folded with a tab": header(b"X: y\r\n\tz"),
    "a folded length": header(b"X: y\r\n Content-Length: 100"),
    "an empty folded line": header(b"X: y\r\n "),
    "a fold without a header": PUT + b" " + HOST + b"Content-Length: 5\r\n\r\nhello" + HIDDEN,
    "a space before a colon": PUT + HOST + b"Content-Length : 5\r\n\r\nhello" + HIDDEN,
    "a tab before a colon": PUT + HOST + b"Content-Length\t: 5\r\n\r\nhello" + HIDDEN,
    "a newline in a header": header(b"X: y\nContent-Length: 100"),
    "a carriage return in a header": header(b"X: y\rContent-Length: 100"),
    "a carriage return at the end of a header": header(b"X: y\r"),
    "a NUL in a header": header(b"X: y\0z"),
    "a NUL in a header's name": header(b"X\0: y"),
    "a NUL in the length": lengths(b"5\0"),
    "a newline in a header's name": header(b"X\nY: z"),
    "a header without a colon": header(b"X"),
    "a header without a name": header(b": x"),
    "a space in a header's name": header(b"X Y: z"),
    "a letter that is none in a header's name": header("Ü: z".encode()),
    "brackets in a header's name": header(b"(X): y"),
    "too many headers": header(b"\r\n".join(b"X-%d: y" % number for number in range(600))),
    "headers that are too long": header(b"X: " + b"y" * 20_000),
    "many headers that are too long": header(b"\r\n".join([b"X: " + b"y" * 1000] * 20)),
    # Bare newlines
    "only newlines": PUT.replace(b"\r", b"") + b"Host: a\nContent-Length: 5\n\nhello" + HIDDEN,
    "a newline after the request line": PUT.replace(b"\r", b"") + HOST + b"Content-Length: 5\r\n\r\nhello" + HIDDEN,
    "a newline after Host": PUT + b"Host: a\nContent-Length: 5\r\n\r\nhello" + HIDDEN,
    "two newlines at the end": PUT + HOST + b"Content-Length: 5\n\nhello" + HIDDEN,
    "a newline at the end": PUT + HOST + b"Content-Length: 5\r\n\nhello" + HIDDEN,
    "an extra carriage return at the end": PUT + HOST + b"Content-Length: 5\r\n\r\r\nhello" + HIDDEN,
    # The request line
    "two spaces": PUT.replace(b" ", b"  ", 1) + HOST + ALL + b"\r\nhello" + HIDDEN,
    "a tab for a space": PUT.replace(b" ", b"\t", 1) + HOST + ALL + b"\r\nhello" + HIDDEN,
    "a space at the end": PUT.replace(b"\r", b" \r") + HOST + ALL + b"\r\nhello" + HIDDEN,
    "a space at the start": b" " + PUT + HOST + ALL + b"\r\nhello" + HIDDEN,
    "a space in the target": PUT.replace(b"slot", b"sl ot") + HOST + ALL + b"\r\nhello" + HIDDEN,
    "a NUL in the target": PUT.replace(b"slot", b"sl\0ot") + HOST + ALL + b"\r\nhello" + HIDDEN,
    "a carriage return in the target": PUT.replace(b"slot", b"sl\rot") + HOST + ALL + b"\r\nhello" + HIDDEN,
    "a NUL in the method": b"P\0UT" + PUT[3:] + HOST + ALL + b"\r\nhello" + HIDDEN,
    "no target": b"PUT HTTP/1.1\r\n" + HOST + ALL + b"\r\nhello" + HIDDEN,
    "no version": b"GET /upload/there/a.bin\r\n" + HIDDEN,
    "HTTP/0.9": b"GET /upload/there/a.bin HTTP/0.9\r\n" + HOST + b"\r\n" + HIDDEN,
    "HTTP/1.2": b"GET /upload/there/a.bin HTTP/1.2\r\n" + HOST + b"\r\n" + HIDDEN,
    "HTTP/1.01": b"GET /upload/there/a.bin HTTP/1.01\r\n" + HOST + b"\r\n" + HIDDEN,
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "http/1.1": b"GET /upload/there/a.bin http/1.1\r\n" + HOST + b"\r\n" + HIDDEN,
    "two empty lines first": b"\r\n\r\n" + HIDDEN,
    "a target that is too long": b"GET /upload/" + b"x" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN,
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_refused(daemon: Daemon, request_: bytes) -> None:
    """What can be read in two ways is answered with 400, once, and the connection ends."""
    with daemon.wire().send(request_) as wire:
        answered = wire.rest()
    # The reset that ends it while the client still sends can overtake the answer, where there is much to send.
    assert statuses(answered) == [400] or (not answered and len(request_) > 5000)
    if answered:
        head = answered.lower()
        assert b"\r\nconnection: close\r\n" in head
        assert b"\r\naccess-control-allow-origin: *\r\n" in head


@pytest.mark.parametrize(
    "request_",
    [pytest.param(request, id=name) for name, request in REFUSED.items() if len(request) < 1000],
)
def test_refused_byte_by_byte(daemon: Daemon, request_: bytes) -> None:
    """However it is cut into pieces, it is refused."""
    with daemon.wire() as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for position in range(len(request_)):
                wire.send(request_[position : position + 1])
        assert statuses(wire.rest()) in ([400], [])


@pytest.mark.parametrize(
    "request_",
    [
        PUT + b"Content-Length: 5\r\n\r\nhello",
        PUT + HOST + HOST + b"Content-Length: 5\r\n\r\nhello",
        PUT + HOST + b"Content-Length: 5\r\nhost: b\r\n\r\nhello",
        PUT.replace(b"1.1", b"1.0") + HOST + HOST + b"Content-Length: 5\r\n\r\nhello",
    ],
)
def test_hosts(daemon: Daemon, request_: bytes) -> None:
    """No Host, or more than one, is answered with 400, and the body's bytes are no request."""
    with daemon.wire().send(request_ + HIDDEN) as wire:
        assert statuses(wire.rest()) == [400]


@pytest.mark.parametrize("request_", [GET, GET + HOST + HOST, GET + HOST + b"Host: b\r\n"])
def test_hosts_of_a_get(daemon: Daemon, request_: bytes) -> None:
    """Also a GET without a Host, or with more than one, is answered with 400."""
    with daemon.wire().send(request_ + b"Connection: close\r\n\r\n") as wire:
        assert statuses(wire.rest()) == [400]


def test_http_1_0_without_a_host(daemon: Daemon) -> None:
    """HTTP/1.0 needs no Host, and has one request a connection."""
    with daemon.wire().send(GET.replace(b"1.1", b"1.0") + b"\r\n" + HIDDEN) as wire:
        answered = wire.rest()
    assert statuses(answered) == [200]
    assert answered.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("value", [b"5", b"005", b"  5\t "])
def test_good_lengths(daemon: Daemon, value: bytes) -> None:
    """Zeros and spaces around a length mean nothing: the body ends where every reader ends it."""
    request = PUT + HOST + b"Content-Length:%b\r\n\r\nhello" % value
    with daemon.wire().send(request + GET + HOST + b"Connection: close\r\n\r\n") as wire:
        assert statuses(wire.rest()) == [201, 200]
    assert stored(daemon, "slot/a.bin") == b"hello"


@pytest.mark.parametrize("size", [10**12, 10**17, 10**18 - 1])
def test_a_huge_length(daemon: Daemon, size: int) -> None:
    """A body that could never fit is refused at its headers, though it is signed."""
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > 0)
    request = f"PUT {put_target('slot/a.bin', size)} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
    with daemon.wire().send(request.encode()) as wire:
        assert wire.answer().status == 507


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED \t"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_chunked_alone(daemon: Daemon, version: bytes, value: bytes) -> None:
    """A chunked body is well-formed, but not taken; what is in it or follows it is no request."""
    for request in (coding(b" " + value), PUT + HOST + b"Transfer-Encoding:%b\r\n\r\n" % value + in_chunks(HIDDEN)):
        with daemon.wire().send(request.replace(b"HTTP/1.1", b"HTTP/" + version, 1)) as wire:
            assert statuses(wire.rest()) == [411]


def in_chunks(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"POST", b"X"])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: %d\r\n\r\n" % len(HIDDEN), b"Transfer-Encoding: chunked\r\n\r\n"]
)
def test_a_body_where_none_belongs(daemon: Daemon, method: bytes, framing: bytes) -> None:
    """A request with a body that nobody wants is refused, and its body is no request."""
    body = in_chunks(HIDDEN) if b"chunked" in framing else HIDDEN
    with daemon.wire().send(GET.replace(b"GET", method) + HOST + framing + body + HIDDEN) as wire:
        (status,) = statuses(wire.rest())
    assert status in (400, 405)


@pytest.mark.parametrize(
    ("prefix", "status"),
    [
        ("http://a", 201),
        ("HTTP://other.example:99", 201),
        ("https://user:password@a", 201),
        ("http://[::1]:80", 201),
        ("http://", 201),
        ("ftp://a", 400),
        ("a:80", 400),
        ("a", 400),
        ("http:", 400),
        ("//a", 404),
        ("http://a/b", 404),
        ("http://a?", 404),
        ("http://a?x=", 404),
        ("http://a/upload/..", 400),
    ],
)
def test_targets(daemon: Daemon, prefix: str, status: int) -> None:
    """A target with scheme and authority means its path, as a proxy reads it; others lead nowhere."""
    target = prefix + put_target("slot/a.bin", 5)
    request = f"PUT {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
    with daemon.wire().send(request.encode()) as wire:
        assert statuses(wire.rest()) == [status]
    assert stored(daemon, "slot/a.bin") == (b"hello" if status == 201 else None)


def test_an_upgrade(daemon: Daemon) -> None:
    """Nobody is let out of HTTP/1.1: an offer to speak HTTP/2 or something else is passed over."""
    for value in (b"h2c", b"websocket", b"TLS/1.0"):
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n\r\n" % value
        with daemon.wire().send(GET + HOST + upgrade) as wire:
            assert (wire.answer().status, wire.send(GET + HOST + b"\r\n").answer().body) == (200, b"hello")


@pytest.mark.parametrize(
    "value",
    [
        b"Connection: close\r\n",
        b"Connection: Close\r\n",
        b"Connection: keep-alive, close\r\n",
        b"Connection: close, keep-alive\r\n",
        b"Connection: close,TE\r\n",
        b"Connection:close\t,TE\r\n",
        b"Connection: keep-alive\r\nConnection: close\r\n",
    ],
)
def test_after_close_nothing_follows(daemon: Daemon, value: bytes) -> None:
    """After a request that says close, in whatever form, the connection ends; what follows is not served."""
    with daemon.wire().send(GET + HOST + value + b"\r\n" + HIDDEN) as wire:
        answered = wire.rest()
    assert statuses(answered) == [200]
    assert b"\r\nconnection: close\r\n" in answered.lower()


def test_a_body_that_is_longer(daemon: Daemon) -> None:
    """Of a body that is longer than its length just that length is stored; the rest is no good request."""
    with daemon.wire().send(PUT + HOST + b"Content-Length: 5\r\n\r\nhello, world\r\n\r\n" + HIDDEN) as wire:
        assert statuses(wire.rest()) == [201, 400]
    assert stored(daemon, "slot/a.bin") == b"hello"


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("body", [b"", b"h", b"hell"])
def test_a_body_that_is_shorter(daemon: Daemon, body: bytes, half: bool) -> None:
    """A body that ends before its length is not stored, whether the client closes or only its own side."""
    broken = daemon.metric("hmac_file_server_upload_errors_total", '{reason="broken_off"}')
    with daemon.wire().send(PUT + HOST + b"Content-Length: 5\r\n\r\n" + body) as wire:
        eventually(lambda: daemon.running() == 1)
        if half:
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.rest() == b""
    eventually(lambda: daemon.metric("hmac_file_server_upload_errors_total", '{reason="broken_off"}') == broken + 1)
    assert stored(daemon, "slot/a.bin") is None


@pytest.mark.parametrize("cut", range(1, len(PUT + HOST) + 1, 7))
def test_headers_that_end_early(daemon: Daemon, cut: int) -> None:
    """A client that closes its side in the middle of the headers has asked for nothing."""
    with daemon.wire().send((PUT + HOST)[:cut]) as wire:
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""


@pytest.mark.parametrize("size", [5, 300_000])
def test_a_whole_request_and_half_a_close(daemon: Daemon, size: int) -> None:
    """A client that closes its side right after a whole upload has it stored whole or not at all, and can retry."""
    body = b"x" * size
    head = f"PUT {put_target('slot/a.bin', size)} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
    with daemon.wire().send(head.encode() + body) as wire:
        wire.socket.shutdown(socket.SHUT_WR)
        assert statuses(wire.rest()) in ([201], [])
    eventually(lambda: daemon.running() == 0)
    assert daemon.put("slot/a.bin", body).status == 201
    assert stored(daemon, "slot/a.bin") == body


# Pipelining


def test_answers_come_in_order(daemon: Daemon) -> None:
    """Requests that are sent at once are answered one by one, each with its own answer, in their order."""
    paths = [f"pipeline/{number}.bin" for number in range(30)]
    bodies = [bytes([number]) * (1000 * number * (70 if number % 7 == 0 else 1)) for number in range(30)]
    puts = b"".join(
        f"PUT {put_target(path, len(body))} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        for path, body in zip(paths, bodies, strict=True)
    )
    try:
        with daemon.wire().send(puts) as wire:
            assert [wire.answer().status for _ in paths] == [201] * len(paths)
            gets = b"".join(f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths)
            wire.send(gets)
            assert [wire.answer().body for _ in paths] == bodies
            mixed = b"".join(
                f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\nRange: bytes=1-2\r\n\r\n"
                f"HEAD /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n"
                f"GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n".encode()
                for path in paths[1:]
            )
            wire.send(mixed)
            for body in bodies[1:]:
                assert wire.answer().body == body[1:3]
                assert wire.answer(head=True).headers["content-length"] == str(len(body))
                assert wire.answer().status == 404
    finally:
        for path in paths:
            (daemon.store / path).unlink(missing_ok=True)
        (daemon.store / "pipeline").rmdir()


def test_a_good_request_and_a_bad_one(daemon: Daemon) -> None:
    """A request before a malformed one is answered; the malformed one ends the connection."""
    with daemon.wire().send(GET + HOST + b"\r\n" + b"GET / HTTP/1.1\r\nX Y: z\r\n\r\n" + HIDDEN) as wire:
        assert statuses(wire.rest()) == [200, 400]


def test_one_empty_line_between(daemon: Daemon) -> None:
    """One empty line before a request is passed over (RFC 9112, section 2.2), and the request is whole."""
    with daemon.wire().send(b"\r\n" + GET + HOST + b"\r\n" + b"\r\n" + GET + HOST + b"\r\n") as wire:
        assert [wire.answer().body, wire.answer().body] == [b"hello", b"hello"]
