"""Refusals: they come before the body, they arrive, and no byte of a refused body does anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.support import Daemon, Wire, eventually, put_target, v, v2

MakeDaemon = Callable[..., Daemon]

MAX = 40 << 20
LARGE = 20 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that need no settings of their own."""
    daemon = Daemon(tmp_path_factory.mktemp("refusals"), MaxUploadSize=MAX, MinFreeSpace=0).start()
    try:
        assert daemon.put("taken/a.bin", b"hello").status == 201
        yield daemon
        assert daemon.files() <= {"taken/a.bin", "good/a.bin", "good/b.bin"}
        assert daemon.get("taken/a.bin").body == b"hello"
        assert daemon.running() == 0
        assert "Traceback" not in daemon.log
    finally:
        daemon.stop()


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


def refused(size: int, *headers: str) -> dict[str, tuple[int, bytes, str]]:
    """Requests with a body of a size that are refused for it at their headers: status, bytes, reason in the log."""
    length = (f"Content-Length: {size}", *headers)
    wrong = v("refused/other.bin", size)
    no_type = v2("refused/a.bin", size, "image/png")
    return {
        "no signature": (403, head("PUT /upload/refused/a.bin", *length), "no signature"),
        "a wrong signature": (403, head(f"PUT /upload/refused/a.bin?v={wrong}", *length), "signature does not match"),
        "another type": (403, head(f"PUT /upload/refused/a.bin?v2={no_type}", *length), "the Content-Type"),
        "no hex": (403, head("PUT /upload/refused/a.bin?v=x", *length), "64 hex digits"),
        "a bad path": (400, head(f"PUT {put_target('refused/../a.bin', size)}", *length), "a . or .. segment"),
        "a reserved name": (
            400,
            head(f"PUT {put_target('refused/.hmac-file-server', size)}", *length),
            "a name that the server keeps",
        ),
        "beside the prefix": (404, head(f"PUT {put_target('refused/a.bin', size, '/')}", *length), "nothing here"),
        "another method": (405, head("POST /upload/refused/a.bin", *length), "not served here"),
        "a GET with a body": (400, head("GET /upload/taken/a.bin", *length), "a body makes no sense"),
        "a HEAD with a body": (400, head("HEAD /upload/taken/a.bin", *length), "a body makes no sense"),
        "no host": (400, head("PUT /upload/refused/a.bin", *length).replace(b"Host: a\r\n", b""), "malformed"),
    }


CASES = list(refused(0))


def ask(daemon: Daemon, case: str, size: int, *headers: str) -> tuple[Wire, int]:
    """Send the headers of a refused request; the connection and the status to expect."""
    status, request, _ = refused(size, *headers)[case]
    return daemon.wire().send(request), status


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue", "Expect: 100-Continue"])
@pytest.mark.parametrize("case", CASES)
def test_before_the_body(shared: Daemon, case: str, expect: str) -> None:
    """A refusal comes at the end of the headers, before any byte of the body and without 100 Continue."""
    wire, status = ask(shared, case, LARGE, *[expect] * bool(expect))
    with wire:
        answer = wire.answer(head="HEAD" in case)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.headers["access-control-allow-origin"] == "*"
        # With the body given up, nothing more is said.
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""


@pytest.mark.parametrize("case", CASES)
def test_the_answer_arrives(shared: Daemon, case: str) -> None:
    """A client that sends its whole large body without looking still finds the refusal, then an orderly end."""
    wire, status = ask(shared, case, LARGE)
    with wire:
        wire.send(b"x" * LARGE)
        answer = wire.answer(head="HEAD" in case)
        assert answer.status == status
        # An end, not a reset, which could overtake the answer.
        assert wire.socket.recv(1) == b""


def test_too_large(shared: Daemon) -> None:
    """A body over MaxUploadSize is refused likewise, with and without Expect."""
    for expect in ([], ["Expect: 100-continue"]):
        target = put_target("refused/a.bin", MAX + 1)
        wire = shared.wire().send(head(f"PUT {target}", f"Content-Length: {MAX + 1}", *expect))
        with wire:
            if not expect:
                wire.send(b"x" * (MAX + 1))
            assert wire.answer().status == 413
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.rest() == b""


def smuggled() -> bytes:
    """Requests that would all succeed."""
    put = head(f"PUT {put_target('smuggled/a.bin', 5)}", "Content-Length: 5") + b"hello"
    return put + head("GET /upload/taken/a.bin") + head("OPTIONS /upload/") + put


@pytest.mark.parametrize("pieces", ["at once", "split", "byte by byte"])
@pytest.mark.parametrize("case", CASES)
def test_a_refused_body_is_no_request(shared: Daemon, case: str, pieces: str) -> None:
    """Neither what is in a refused body nor what follows it is taken for a request: one answer, then the end."""
    inner = smuggled()
    wire, status = ask(shared, case, len(inner))
    with wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if pieces == "at once":
            wire.send(inner)
        elif pieces == "split":
            wire.send(inner[:70]).send(inner[70:])
        else:
            for position in range(len(inner)):
                wire.send(inner[position : position + 1])
        answered = wire.rest()
    assert answered.startswith(b"HTTP/1.1 %d " % status)
    assert answered.count(b"HTTP/1.1 ") == 1
    assert not (shared.store / "smuggled").exists()


@pytest.mark.parametrize("case", CASES)
def test_what_follows_a_refused_body(shared: Daemon, case: str) -> None:
    """A request behind a refused body, sent in one go with it, is not served: the connection ends."""
    status, request, _ = refused(5)[case]
    with shared.wire().send(request + b"hello" + smuggled()) as wire:
        answered = wire.rest()
    assert answered.startswith(b"HTTP/1.1 %d " % status)
    assert answered.count(b"HTTP/1.1 ") == 1
    assert not (shared.store / "smuggled").exists()


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled()), smuggled()),
        b"%x;name=value\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(smuggled()), smuggled()),
        b"0\r\n\r\n" + smuggled(),
        b"1\r\nx\r\n0\r\n\r\n" + smuggled(),
        b"junk\r\n\r\n" + smuggled(),
        b"-1\r\n\r\n" + smuggled(),
        b"5\r\nhelloXX" + smuggled(),
    ],
)
@pytest.mark.parametrize("expect", [False, True])
def test_a_chunked_body(shared: Daemon, body: bytes, expect: bool) -> None:
    """A PUT with a chunked body is refused with 411 at its headers; nothing in or after the body is a request."""
    request = head(f"PUT {put_target('refused/a.bin', 5)}", CHUNKED, *["Expect: 100-continue"] * expect)
    with shared.wire().send(request) as wire:
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (411, "close")
        wire.send(body)
        assert wire.rest() == b""
    assert not (shared.store / "smuggled").exists()


@pytest.mark.parametrize("case", [case for case in CASES if "body" not in case])
def test_a_refusal_without_a_body(shared: Daemon, case: str) -> None:
    """Where no body follows, a refusal leaves the connection as it was: the next request is served."""
    wire, status = ask(shared, case, 0)
    with wire:
        assert wire.answer().status == status
        assert wire.send(head("GET /upload/taken/a.bin")).answer().body == b"hello"


@pytest.mark.parametrize("case", [case for case in CASES if "body" not in case])
def test_no_continue_for_an_empty_body(shared: Daemon, case: str) -> None:
    """Also a refused request that announces an empty body gets no 100 Continue."""
    wire, status = ask(shared, case, 0, "Expect: 100-continue")
    with wire:
        assert wire.answer().status == status


def test_no_continue_without_a_length(shared: Daemon) -> None:
    """A client that says no length and waits is not told to send a body, which would be taken for requests."""
    with shared.wire().send(head("PUT /upload/refused/a.bin", "Expect: 100-continue")) as wire:
        assert wire.answer().status == 411


def pour(wire: Wire) -> None:
    """Send a GiB."""
    piece = b"x" * (1 << 20)
    for _ in range(1 << 10):
        wire.send(piece)


def test_a_refused_client_that_does_not_stop(shared: Daemon) -> None:
    """Refused, a client can not make the daemon read on for ever; the answer is there for it all the same."""
    size = 1 << 40
    wire, status = ask(shared, "no signature", size)
    with wire:
        assert wire.answer().status == status
        with pytest.raises(ConnectionError):
            pour(wire)


def test_a_refused_client_that_leaves(shared: Daemon) -> None:
    """A refused client that closes in the middle of its body is forgotten, and its descriptor with it."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{shared.pid}/fd"))

    shared.metric("none")
    before = descriptors()
    for case in CASES:
        wire, _ = ask(shared, case, LARGE)
        with wire:
            wire.answer(head="HEAD" in case)
            wire.send(b"x" * 100_000)
    eventually(lambda: descriptors() <= before, what="the descriptors are released")


# Good requests


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "100-CONTINUE"])
def test_continue(make_daemon: MakeDaemon, expect: str) -> None:
    """A client that waits for 100 Continue gets it when its upload is good, once, and then 201."""
    daemon = make_daemon().start()
    body = os.urandom(300_000)
    with daemon.wire() as wire:
        for name in ("a.bin", "b.bin"):
            target = put_target(f"slot/{name}", len(body))
            wire.send(head(f"PUT {target}", f"Content-Length: {len(body)}", f"Expect: {expect}"))
            answer = wire.answer()
            assert (answer.status, answer.headers) == (100, {})
            wire.send(body)
            assert wire.answer().status == 201
            assert (daemon.store / "slot" / name).read_bytes() == body
        # The very bytes again, as after a lost answer: nothing says before the body that they are others.
        wire.send(head(f"PUT {target}", f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert wire.answer().status == 100
        wire.send(body)
        assert wire.answer().status == 201


def test_a_client_that_does_not_wait(shared: Daemon) -> None:
    """A body that comes without waiting for 100 Continue is stored; at most one 100 is said."""
    body = os.urandom(200_000)
    target = put_target("good/a.bin", len(body))
    wire = shared.wire().send(head(f"PUT {target}", f"Content-Length: {len(body)}", "Expect: 100-continue") + body)
    with wire:
        answer = wire.answer()
        if answer.status == 100:
            answer = wire.answer()
        assert answer.status == 201
    assert (shared.store / "good/a.bin").read_bytes() == body


def test_nobody_asked_for_continue(shared: Daemon) -> None:
    """Without Expect, or with HTTP/1.0, there is no 100 Continue."""
    target = put_target("good/b.bin", 5)
    for request in (
        head(f"PUT {target}", "Content-Length: 5"),
        head(f"PUT {target}", "Content-Length: 5", "Expect: something"),
        head(f"PUT {target}", "Content-Length: 5", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ):
        with shared.wire().send(request).send(b"hello") as wire:
            assert wire.answer().status == 201


def test_a_taken_slot(shared: Daemon) -> None:
    """A slot with a file of another length is refused before the body when the client waits; the file stays."""
    target = put_target("taken/a.bin", LARGE)
    with shared.wire().send(head(f"PUT {target}", f"Content-Length: {LARGE}", "Expect: 100-continue")) as wire:
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (409, "close")
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""
    assert (shared.store / "taken/a.bin").read_bytes() == b"hello"


def test_a_taken_slot_and_a_client_that_sends(shared: Daemon) -> None:
    """A client that sends a large body to a taken slot reads its 409 in the end; what follows is no request."""
    target = put_target("taken/a.bin", LARGE)
    with shared.wire().send(head(f"PUT {target}", f"Content-Length: {LARGE}")) as wire:
        wire.send(b"x" * (LARGE - len(smuggled())) + smuggled())
        answer = wire.answer()
        assert answer.status == 409
        assert wire.rest() == b""
    assert (shared.store / "taken/a.bin").read_bytes() == b"hello"
    assert not (shared.store / "smuggled").exists()


def test_no_room(make_daemon: MakeDaemon) -> None:
    """Where there is no room a client that waits is told 507 before its body, one that sends finds it after."""
    daemon = make_daemon(MinFreeSpace=1 << 60).start()
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > 0)
    target = put_target("slot/a.bin", LARGE)
    for expect in ([], ["Expect: 100-continue"]):
        wire = daemon.wire().send(head(f"PUT {target}", f"Content-Length: {LARGE}", *expect))
        with wire:
            if not expect:
                wire.send(b"x" * LARGE)
            answer = wire.answer()
            assert (answer.status, answer.headers["connection"]) == (507, "close")
    assert [place.name for place in daemon.store.iterdir()] == [".hmac-file-server"]
    eventually(lambda: daemon.log.count("507 in=") == 2)
    assert "bytes do not fit" in daemon.log


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for the tests that read the log: after a hundred refusals in ten seconds it sums up."""
    daemon = Daemon(tmp_path_factory.mktemp("logged"), MaxUploadSize=MAX, MinFreeSpace=0).start()
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("case", CASES)
def test_the_reason_is_logged(logged: Daemon, case: str) -> None:
    """Each refusal leaves one line whose words tell the operator what was wrong; the client is told less."""
    before = len(logged.log)
    status, request, reason = refused(7)[case]
    with logged.wire().send(request + b"goodbye") as wire:
        answer = wire.answer(head="HEAD" in case)
        wire.rest()
    # A second one, so that a second line of the first would be there too.
    logged.get("none")
    eventually(lambda: "/upload/none" in logged.log[before:])
    lines = [line for line in logged.log[before:].splitlines() if " in=7 " in line]
    assert len(lines) == 1
    assert f" {status} in=7 out={len(answer.body)} " in lines[0]
    assert reason in lines[0]
    if request.startswith(b"PUT"):
        assert " warn " in lines[0]
    if status == 403:
        assert answer.body == b"the signature does not hold\n"
