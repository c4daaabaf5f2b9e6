"""Raw bytes through the Site, on a clock of the test's own."""

from __future__ import annotations

import errno
import gc
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from hmac_file_server.files.resource import Files
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.tree import Place, Prefix, Root
from hmac_file_server.files.upload import MEMORY, Uploads
from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.verifier import Verifier
from hmac_file_server.stores.interface import IFile, IStore
from hmac_file_server.stores.local import file as file_module
from hmac_file_server.stores.room import Room, Space
from hmac_file_server.web.connections import Limits
from hmac_file_server.web.request import DRAIN_BYTES, DRAIN_SECONDS, Request
from hmac_file_server.web.site import Site
from tests.stores import MemoryStore, local_store
from tests.support import SECRET, put_target


class Transport(StringTransport):
    """A transport that knows whether it was cut off."""

    aborting = False

    def abortConnection(self) -> None:
        self.aborting = True
        self.loseConnection()


class Server:
    def __init__(self, folder: Path, limits: Limits | None = None, store: IStore | None = None) -> None:
        self.clock = Clock()
        self.run: Any = maybeDeferred
        self.store = store or local_store(folder, False, self.in_thread, self.clock)
        self.room = Room(0)
        self.uploads = Uploads(self.store, self.room, RetryPolicy(self.clock, 1, 1.0), 4096)
        self.serving = Serving(self.store, self.clock)
        files = Files(Verifier([SECRET.encode()]), self.serving, self.uploads, 1 << 30)
        self.ended: list[tuple[Request, bool, bool]] = []
        self.site = Site(
            Root([Place("upload", Prefix(files), files)]),
            self.clock,
            limits or Limits(),
            lambda *of: self.ended.append(of),
        )
        self.connect()

    def in_thread(self, call: Any) -> Any:
        return self.run(call)

    def connect(self) -> None:
        self.transport = Transport()
        self.channel: Any = self.site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes | str) -> bytes:
        """What comes back at once."""
        self.transport.clear()
        self.channel.dataReceived(data.encode() if isinstance(data, str) else data)
        return self.transport.value()

    def hang_up(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))


@pytest.fixture(params=["disk", "memory"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """On each kind of store, for all that does not speak of disks."""
    made = Server(tmp_path, store=MemoryStore() if request.param == "memory" else None)
    yield made
    made.store.close()


@pytest.fixture
def disk_server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.store.close()


def put(path: str, size: int, *headers: str, version: str = "1.1") -> str:
    lines = [f"PUT {put_target(path, size)} HTTP/{version}", "Host: a", f"Content-Length: {size}", *headers]
    return "\r\n".join([*lines, "", ""])


def open_files() -> set[int]:
    """The descriptors of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def status(answer: bytes) -> bytes:
    return answer.partition(b" ")[2][:3]


def test_decided_at_the_end_of_the_headers(server: Server) -> None:
    """A refusal is on its way before any byte of the body has come."""
    answer = server.send("PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    assert status(answer) == b"403"
    assert b"\r\nConnection: close\r\n" in answer


def test_no_continue_for_a_refusal(server: Server) -> None:
    """A client that asks first is refused without being told to go on."""
    answer = server.send(
        "PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    assert status(answer) == b"403"
    assert b"100" not in answer.partition(b"\r\n")[0]


def test_continue_when_the_store_is_ready(server: Server) -> None:
    """A client that asks first is told to go on, once."""
    assert server.send(put("a/b", 5, "Expect: 100-continue")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert status(server.send(b"hello")) == b"201"


def test_no_continue_when_the_slot_is_taken(server: Server) -> None:
    """A slot that has a file of another length is refused before the body."""
    server.send(put("a/b", 5) + "hello")
    assert status(server.send(put("a/b", 6, "Expect: 100-continue"))) == b"409"


def test_no_continue_for_http_1_0(server: Server) -> None:
    """HTTP/1.0 has no 100 Continue."""
    assert server.send(put("a/b", 5, "Expect: 100-continue", version="1.0")) == b""
    assert status(server.send(b"hello")) == b"201"


def test_a_refused_body_is_swallowed(server: Server) -> None:
    """What looks like a request inside a refused body is none, and the connection ends after the body."""
    inner = b"GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n"
    head = f"PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: {len(inner)}\r\n\r\n"
    assert server.send(head.encode() + inner + inner).count(b"HTTP/1.1 ") == 1
    assert server.transport.disconnecting


def test_swallowing_is_bounded_in_bytes(server: Server) -> None:
    """A client that does not stop sending a refused body is cut off."""
    server.send("PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n")
    for _ in range(DRAIN_BYTES >> 20):
        server.send(b"x" * (1 << 20))
    assert not server.transport.disconnecting
    server.send(b"x")
    assert server.transport.disconnecting


def test_an_upload_that_fails_late(disk_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before an upload failed is no part of what is swallowed after: its client reads the refusal."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    length = DRAIN_BYTES + (9 << 20)
    disk_server.send(put("a/b", length))
    for _ in range(0, DRAIN_BYTES + (1 << 20), 1 << 20):
        disk_server.send(bytes(1 << 20))
    monkeypatch.setattr("hmac_file_server.stores.local.draft.Draft.write", fail)
    assert disk_server.send(bytes(1 << 20)) == b""
    disk_server.clock.advance(1)
    assert status(disk_server.transport.value()) == b"507"
    for _ in range(7):
        assert not disk_server.transport.disconnecting
        disk_server.channel.dataReceived(bytes(1 << 20))
    assert disk_server.transport.disconnecting
    assert [request.body_received for request, _, _ in disk_server.ended] == [length]


def test_swallowing_is_bounded_in_time(server: Server) -> None:
    """A client that sends a refused body slowly is cut off too."""
    server.send("PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n")
    waited = 0.0
    while not server.transport.disconnecting:
        assert waited <= DRAIN_SECONDS
        server.clock.advance(59)
        waited += 59
        server.channel.dataReceived(b"x")


@pytest.mark.parametrize("header", ["Via: 1.1 a", "X-Forwarded-For: 192.0.2.1", "Forwarded: for=b", "X-Real-IP: c"])
def test_a_proxy_sends_all_before_it_reads(server: Server, header: str) -> None:
    """What a proxy sends of a refused body is swallowed to its end, however long, and however long it pauses."""
    length = 2 * DRAIN_BYTES
    server.send(f"PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\n{header}\r\nContent-Length: {length}\r\n\r\n")
    for sent in range(0, length, 1 << 20):
        assert not server.transport.disconnecting
        if sent % (32 << 20) == 0:
            server.clock.advance(59)
        server.channel.dataReceived(bytes(1 << 20))
    assert server.transport.disconnecting
    assert server.ended[0][0].code == 403


def test_a_proxy_that_sends_for_ever(server: Server) -> None:
    """A body that could not end in time is not swallowed further than any other, whoever sends it."""
    server.send(f"PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nVia: 1.1 a\r\nContent-Length: {1 << 40}\r\n\r\n")
    for _ in range(DRAIN_BYTES >> 20):
        server.send(bytes(1 << 20))
    server.send(b"x")
    assert server.transport.disconnecting


@pytest.mark.parametrize("header", ["Via: 1.1 a", "X: y"])
def test_a_refused_body_that_trickles(tmp_path: Path, header: str) -> None:
    """A refused body is swallowed only while it keeps up MinRate."""
    server = Server(tmp_path, Limits(min_rate=100))
    server.send(f"PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\n{header}\r\nContent-Length: 99999999\r\n\r\n")
    for _ in range(60):
        server.send(bytes(100))
        server.clock.advance(1)
    assert not server.transport.disconnecting
    for _ in range(60):
        assert not server.transport.disconnecting
        server.send(bytes(99))
        server.clock.advance(1)
    assert server.transport.disconnecting
    server.store.close()


def test_a_body_in_bursts(tmp_path: Path) -> None:
    """A body that comes in bursts is not cut off, one that trickles is, whatever pauses the disk makes."""
    server = Server(tmp_path, Limits(min_rate=100))
    for data, step, kept in ((bytes(6000), 59, True), (b"x", 1, False)):
        server.connect()
        server.send(put(f"a/{step}", 1 << 20))
        for _ in range(120 // step):
            server.channel.dataReceived(data)
            server.channel.requests[0]._incoming.pauseProducing()
            server.clock.advance(100)
            server.channel.requests[0]._incoming.resumeProducing()
            server.clock.advance(step)
            if server.transport.disconnecting:
                break
        assert server.transport.disconnecting != kept
        server.hang_up()
    server.store.close()


def test_a_refused_client_that_falls_silent(server: Server) -> None:
    """A refused client that sends nothing more does not keep its connection."""
    server.send("PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    server.clock.advance(59)
    assert not server.transport.disconnecting
    server.clock.advance(1)
    assert server.transport.disconnecting


def test_upload_timeout(server: Server) -> None:
    """A body that stalls ends the upload and leaves nothing; each byte gives it new time."""
    server.send(put("a/b", 5) + "he")
    server.clock.advance(59)
    server.send(b"l")
    server.clock.advance(59)
    assert not server.transport.disconnecting
    server.clock.advance(1)
    assert server.transport.disconnecting
    server.hang_up()
    (request, timed_out, cut) = server.ended[0]
    assert (request.method, timed_out, cut) == (b"PUT", True, True)
    assert not server.uploads.active


def test_the_idle_timeout_is_back_after_an_upload(server: Server) -> None:
    """After an upload the connection may be idle as long as any other."""
    server.send(put("a/b", 5) + "hello")
    server.clock.advance(74)
    assert not server.transport.disconnecting
    server.clock.advance(1)
    assert server.transport.disconnecting


def test_the_reads_are_small_again_after_a_large_body(server: Server) -> None:
    """Only while a large body arrives are the reads large."""
    before, size = server.transport.bufferSize, 2 << 20
    server.send(put("a/b", size))
    assert server.transport.bufferSize > before
    server.send(b"x" * size)
    assert server.transport.bufferSize == before


def test_a_connection_serves_one_request_after_the_other(server: Server) -> None:
    """Uploads, downloads and refusals without a body share a connection, in order, also when pipelined."""
    get = "GET /upload/a/b HTTP/1.1\r\nHost: a\r\n\r\n"
    bad = "PUT /upload/a/b HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = server.send(put("a/b", 5) + "hello" + get + bad + get)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"201", b"200", b"411", b"200"]
    assert not server.transport.disconnecting


def test_draining_refuses_new_requests(server: Server) -> None:
    """On a connection that is kept alive a new request is told to come again."""
    server.send(put("a/b", 5) + "he")
    server.site.drain()
    assert status(server.send(b"llo")) == b"201"
    assert server.transport.disconnecting


def test_draining_closes_idle_connections(server: Server) -> None:
    """Draining is over when no connection is left."""
    drained: list[object] = []
    server.site.drain().addCallback(drained.append)
    assert server.transport.disconnecting
    assert not drained
    server.hang_up()
    assert drained


def test_no_room_before_the_body(server: Server) -> None:
    """A body that is larger than the free space is refused at its headers."""
    server.room.found(Space(4), [])
    assert status(server.send(put("a/b", 5))) == b"507"
    server.connect()
    server.room.found(Space(5), [])
    assert server.send(put("a/b", 5)) == b""


def test_each_request_is_told_once(server: Server) -> None:
    """Answered, refused or cut off: each request ends in the books exactly once."""
    server.send(put("a/b", 5) + "hello")
    server.send("GET /upload/a/b HTTP/1.1\r\nHost: a\r\n\r\n")
    server.send(put("a/c", 5) + "he")
    server.hang_up()
    server.connect()
    server.send("PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    server.hang_up()
    server.connect()
    server.hang_up()
    assert [(request.code, cut) for request, _, cut in server.ended] == [
        (201, False),
        (200, False),
        (200, True),
        (403, False),
    ]


def test_a_bug_is_answered_with_500(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the tree costs the request, not the connection's order or the daemon."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server.store, "open", broken)
    assert status(server.send("GET /upload/a/b HTTP/1.1\r\nHost: a\r\n\r\n")) == b"500"
    monkeypatch.setattr(server.uploads, "start", broken)
    assert status(server.send(put("a/b", 5))) == b"500"


def test_no_continue_where_there_is_no_body(server: Server) -> None:
    """A refused client that has no body to send is not told to go on with it either."""
    for length in ("", "Content-Length: 0\r\n"):
        answer = server.send(f"PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\n{length}Expect: 100-continue\r\n\r\n")
        assert status(answer) in (b"403", b"411")
        server.connect()


@pytest.mark.parametrize("begin", ["GET /upload/none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "X\r\n\r\n"])
def test_nothing_is_served_on_a_connection_that_ends(server: Server, begin: str) -> None:
    """What comes in whatever pieces after the last answer, while the connection closes, is not looked at."""
    server.send(begin)
    assert server.transport.disconnecting
    for piece in re.split("(?<=\n)", put("a/b", 5) + "hello"):
        assert server.send(piece) == b""
    assert not server.uploads.active
    server.hang_up()
    assert len(server.ended) <= 1


def test_endless_request_line(server: Server) -> None:
    """A request line that is too long is answered, and the connection closed."""
    answer = server.send("GET /" + "a" * 20_000 + " HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status(answer) == b"400"
    assert server.transport.disconnecting


def test_a_client_that_does_not_read_is_not_read(server: Server) -> None:
    """While an answer waits for its reader, the daemon reads no further request, and goes on when it is read."""
    server.channel.pauseProducing()  # As the transport does when its buffer is full.
    answer = server.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
    assert answer.count(b"HTTP/1.1 404") == 1
    assert server.transport.producerState == "paused"
    server.channel.resumeProducing()
    assert server.transport.value().count(b"HTTP/1.1 404") == 3
    assert server.transport.producerState == "producing"


def test_reads_shrink_when_many_upload(server: Server) -> None:
    """A large body is read by large pieces, but never more at once than an upload may hold then."""
    server.send(put("a/b", 64 << 20))
    server.send(b"x" * 1000)
    assert server.transport.bufferSize == 1 << 20
    transport, channel = server.transport, server.channel
    for number in range(200):
        server.connect()
        server.send(put(f"a/{number}", 64 << 20))
    channel.dataReceived(b"x" * 1000)
    assert transport.bufferSize * 2 * 201 <= MEMORY


def test_many_small_downloads_are_forgotten(disk_server: Server, tmp_path: Path) -> None:
    """What is kept of small files for a moment is bounded, however small they are."""
    for number in range(6000):
        (tmp_path / f"{number}").touch()
        assert status(disk_server.send(f"GET /upload/{number} HTTP/1.1\r\nHost: a\r\n\r\n")) == b"200"
    assert len(disk_server.serving._cache) < 5600
    assert disk_server.serving._cache.bytes <= 16 << 20


def test_memory_of_small_downloads_is_given_back(disk_server: Server, tmp_path: Path) -> None:
    """What is kept of a file counts once, however often it is kept anew, and nothing of it when its moment is over."""
    (tmp_path / "a").write_bytes(b"x" * 60_000)
    for _ in range(600):
        assert status(disk_server.send("GET /upload/a HTTP/1.1\r\nHost: a\r\n\r\n")) == b"200"
        disk_server.clock.advance(0.6)
        (tmp_path / "b").write_bytes(b"x")
        disk_server.send("GET /upload/b HTTP/1.1\r\nHost: a\r\n\r\n")
        assert disk_server.serving._cache.bytes < 80_000
    disk_server.clock.advance(1)
    assert len(disk_server.serving._cache) == disk_server.serving._cache.bytes == 0
    disk_server.hang_up()
    assert not disk_server.clock.getDelayedCalls()


def test_a_file_that_can_not_be_closed(disk_server: Server, tmp_path: Path) -> None:
    """It keeps no other from being closed: network file systems tell of a failed write only then."""
    (tmp_path / "a").write_bytes(bytes(100_000))
    path = slot_path([b"a"])
    before = open_files()
    files: list[IFile] = []
    for _ in range(3):
        disk_server.store.open(path, 0).addCallback(files.append)
    os.close(max(open_files() - before))
    for file in files:
        file.close()
    disk_server.clock.advance(1)
    assert open_files() == before


@pytest.mark.parametrize("error", [TimeoutError(errno.ETIMEDOUT, "timed out"), ConnectionAbortedError(103, "aborted")])
def test_a_file_that_fails_as_clients_do(
    disk_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """A file of another machine that times out breaks the download off, and the log says so: no client did that."""

    read = os.pread

    def fail(file: int, length: int, offset: int) -> bytes:
        if length == 100_000:
            raise error
        return read(file, length, offset)

    (tmp_path / "a").write_bytes(bytes(100_000))
    monkeypatch.setattr("hmac_file_server.stores.local.file.os.pread", fail)
    with capturedLogs() as events:
        disk_server.send("GET /upload/a HTTP/1.1\r\nHost: a\r\n\r\n")
    assert disk_server.transport.aborting
    assert [formatEvent(event) for event in events] == [f"a download can not go on: {error}"]


def test_nobody_tells_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no RWF_NOWAIT every file is taken to be on the disk."""
    (tmp_path / "a").write_bytes(bytes(100))
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    with (tmp_path / "a").open("rb") as file:
        assert not file_module._is_in_memory(file.fileno(), 0, 100)
        assert not file_module._is_cached(file.fileno(), 0, 100)


@pytest.mark.parametrize(("sent", "kept"), [(1 << 16, True), ((1 << 16) - 1, False)])
def test_a_client_that_leaves_while_it_is_not_read(server: Server, sent: int, kept: bool) -> None:
    """At a Unix socket, too: it is waited for if it had sent all before it left, and only then."""
    server.send(put("a/b", 1 << 16))
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.sendall(bytes(sent))
    theirs.close()
    server.transport.fileno = ours.fileno  # type: ignore[attr-defined]
    incoming = server.channel.requests[0]._incoming
    incoming.pauseProducing()
    incoming.pauseProducing()
    server.clock.advance(1)
    assert server.transport.aborting != kept
    if kept:
        incoming.resumeProducing()
    server.hang_up()
    assert not server.clock.getDelayedCalls()
    ours.close()


def test_what_follows_a_request_in_crumbs(disk_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client sends before it has its answer is kept as one piece, and is bounded."""
    thread: Deferred[None] = Deferred()
    monkeypatch.setattr(disk_server, "run", lambda call: thread.addCallback(lambda _: call()))
    get = "GET /upload/none HTTP/1.1\r\nHost: a\r\n\r\n"
    disk_server.send(get)
    for byte in get * 20:
        assert disk_server.send(byte) == b""
    assert len(disk_server.channel._dataBuffer) == 1
    assert disk_server.transport.producerState == "producing"
    disk_server.send(b"x" * (64 << 10))
    assert disk_server.transport.producerState == "paused"
    monkeypatch.setattr(disk_server, "run", maybeDeferred)
    thread.callback(None)
    assert disk_server.transport.value().count(b"HTTP/1.1 404 ") == 21


@pytest.mark.parametrize("here", [10, 4], ids=["at once", "in two pieces"])
def test_nothing_is_left_to_the_garbage_collector(server: Server, here: int) -> None:
    """What a request leaves is freed when it is over: what refers to itself would wait for the collector."""
    server.site._ended = lambda *of: None

    def upload_and_download(path: str) -> None:
        head = put(path, 10)
        server.send(head + "0123456789"[:here])
        if here < 10:
            assert server.transport.value() == b""
            server.transport.clear()
            server.channel.dataReceived(b"0123456789"[here:])
        assert status(server.transport.value()) == b"201"
        assert status(server.send(f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n")) == b"200"

    upload_and_download("a/once.txt")
    gc.collect()
    gc.disable()
    try:
        upload_and_download("a/again.txt")
        assert gc.collect() == 0
    finally:
        gc.enable()
