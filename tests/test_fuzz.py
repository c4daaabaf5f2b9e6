"""Random and mutated input: the request parser and the configuration let only documented answers and errors out.

``FUZZ_EXAMPLES`` says how many examples each test tries.
"""

from __future__ import annotations

import gc
import io
import itertools
import os
import re
import resource
import shutil
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from hmac_file_server import log
from hmac_file_server.config import Config, load
from hmac_file_server.daemon.service import FileService
from hmac_file_server.settings.problems import ConfigError
from hmac_file_server.stores.local.threads import Threads
from tests.support import SECRET, v, v2

fuzzing = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "250")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ROOT = Path(__file__).parent.parent

# Requests


class Kept(io.StringIO):
    """A log that is looked at afterwards."""

    problem = ""

    def __init__(self) -> None:
        super().__init__()
        self.recent = log.Recent()


class Transport(StringTransport):
    """As forgiving as a real transport: what comes too late does nothing."""

    def __init__(self) -> None:
        super().__init__(lenient=True)

    def unregisterProducer(self) -> None:
        self.producer = None


class Client:
    """One connection. It takes in no more than a real one would."""

    def __init__(self, factory: Any) -> None:
        self.transport = Transport()
        self.location = b""
        self.channel = factory.buildProtocol(self.transport.getPeer())
        self.channel.makeConnection(self.transport)
        self._unread = b""
        self._stalled: Any = None
        self.gone = False

    def send(self, data: bytes) -> None:
        self._unread += data
        self.proceed()

    def proceed(self) -> None:
        if self.transport.disconnecting:
            self.hang_up()
        if not self.gone and self._unread and self.transport.producerState == "producing":
            data, self._unread = self._unread, b""
            self.channel.dataReceived(data)
            self.proceed()

    def stop_reading(self) -> None:
        """Take no more of the answers: a real transport pauses its producer then."""
        if not self.gone and self._stalled is None and self.transport.producer is not None:
            self._stalled = self.transport.producer
            self._stalled.pauseProducing()

    def go_on_reading(self) -> None:
        stalled, self._stalled = self._stalled, None
        if not self.gone and stalled is not None and stalled is self.transport.producer:
            stalled.resumeProducing()

    def hang_up(self) -> None:
        if not self.gone:
            self.gone = True
            producer, self.transport.producer = self.transport.producer, None
            if producer is not None:
                producer.stopProducing()
            self.channel.connectionLost(Failure(ConnectionDone()))


class Fuzzed:
    """The whole service on a reactor in memory; its threads' work is done when the test says so."""

    def __init__(self, folder: Path) -> None:
        self.store = Path(tempfile.mkdtemp(dir=folder))
        self._work: list[Callable[[], None]] = []
        config = folder / "config.toml"
        config.write_text(
            f'Secret = "{SECRET}"\nStoreDir = "{self.store}"\nListenPort = "tcp:8080"\nMetricsPort = "tcp:9090"\n'
            "MinFreeSpace = 0\nFsync = false\nMaxUploadSize = 100000\nChunkSize = 4096\n"
        )
        self.reactor = MemoryReactorClock()
        self._lines = Kept()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(Threads, "run", lambda threads, function: self._in_thread(function))
        # Nobody would ever end them, and thousands slow all that follows.
        self._patch.setattr(Threads, "_start_thread", lambda threads: None)
        self._service = FileService(load(str(config)), "", self.reactor, self._lines)
        self.problems: list[str] = []
        self.clients: list[Client] = []

    def __enter__(self) -> Fuzzed:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._service.startService()
        globalLogPublisher.addObserver(self._see)
        by_port = {port: factory for port, factory, *_ in self.reactor.tcpServers}
        self._factory, self._metrics = by_port[8080], by_port[9090]
        self.settle()
        for path, body in BEFORE.items():
            (self.store / path).parent.mkdir()
            (self.store / path).write_bytes(body)
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """Let all come to its end; then nothing may be left but what was signed for."""
        try:
            if not failed:
                self._end()
                self._look_at_store()
        finally:
            self.problems.clear()
            globalLogPublisher.removeObserver(self._see)
            self._service.stopService()
            self.reactor.advance(60)
            self.settle()
            self._patch.undo()
            resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
            shutil.rmtree(self.store)

    def connect(self) -> Client:
        client = Client(self._factory)
        self.clients.append(client)
        return client

    def _in_thread(self, function: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._work.append(lambda: maybeDeferred(function).chainDeferred(done))
        return done

    def _see(self, event: LogEvent) -> None:
        line = log.FORMS["text"].event(event)
        if "log_failure" in event:
            self.problems.append(line or "a failure")
        elif line is not None:
            self._lines.write(line)

    def work(self, which: int = 0) -> None:
        """Do one of the threads' pending jobs."""
        if self._work:
            self._work.pop(which % len(self._work))()

    def settle(self) -> None:
        """Do all that the threads have to do."""
        while self._work:
            self.work()

    def send(self, client: Client, data: bytes) -> None:
        """Send, with the name of an upload resource that the daemon gave to somebody filled in."""
        for each in self.clients:
            found = _LOCATION.findall(each.transport.value())
            each.location = found[-1] if found else each.location
        given = next((each.location for each in self.clients if each.location), NOWHERE)
        client.send(data.replace(b"$LOCATION", given))

    def run(self, history: list[Event]) -> None:
        for number, kind, value in history:
            client = self.clients[number % len(self.clients)]
            if kind == "data":
                self.send(client, value)
            elif kind == "work":
                self.work(value)
            elif kind == "time":
                self.reactor.advance(value)
            elif kind == "stall":
                client.stop_reading()
            elif kind == "read":
                client.go_on_reading()
            else:
                client.hang_up()
            for each in self.clients:
                each.proceed()

    def _end(self) -> None:
        for _ in range(20):
            self.settle()
            self.reactor.advance(0.5)
            for client in self.clients:
                client.go_on_reading()
                client.proceed()
        for client in self.clients:
            client.hang_up()
        self.settle()
        self.reactor.advance(0.1)  # Files are closed soon.
        self.settle()
        left = [
            call for call in self.reactor.getDelayedCalls() if _module(call.func).startswith("hmac_file_server.web.")
        ]
        assert not left, "a timer outlived its connection"
        for _ in range(3):
            self.reactor.advance(5)
            self.settle()
        *lines, last = self._lines.getvalue().split("\n")
        assert last == ""
        for line in lines:
            assert _LOG_LINE.match(line), line
            assert line.isprintable(), line
        gc.collect(0)  # a failure that nobody handled is told when it is collected
        assert not self.problems, "".join(self.problems)
        scrape = Client(self._metrics)
        scrape.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"\nhmac_file_server_uploads_in_progress 0.0\n" in scrape.transport.value()
        scrape.hang_up()

    def _look_at_store(self) -> None:
        """Only whole files that were signed for may be there."""
        for file in self.store.rglob("*"):
            path = str(file.relative_to(self.store))
            if path in BEFORE:
                assert file.read_bytes() == BEFORE[path]
            elif file.is_file() and not path.startswith(".hmac-file-server"):
                assert (path, file.stat().st_size) in SIGNED


NOWHERE = b"/upload/.hmac-file-server/" + b"0" * 40
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (debug|info|warn|error|critical) ")
_LOCATION = re.compile(rb"\r\nLocation: (\S+)\r\n")


def _module(function: Any) -> str:
    """Where what a timer calls is from."""
    owner = getattr(function, "__self__", None)
    return str(function.__module__ if owner is None else type(owner).__module__)


BEFORE = {"old/a.txt": b"old" * 40, "big/b.bin": b"big" * 30_000}
SIGNED = {("slot/a.txt", 5), ("slot/b.bin", 300), ("slot/c", 0), ("old/a.txt", 5), ("big", 5), ("slot/large", 90_000)}


def _put(path: str, body: bytes, *headers: str, kind: str = "", version: str = "1.1") -> bytes:
    signature = f"v2={v2(path, len(body), kind)}" if kind else f"v={v(path, len(body))}"
    lines = [f"PUT /upload/{path}?{signature} HTTP/{version}", "Host: a", f"Content-Length: {len(body)}"]
    lines += [f"Content-Type: {kind}"] if kind else []
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def _get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} /upload/{path} HTTP/{version}", "Host: a", *headers, "", ""]).encode()


def _first(path: str, size: int, body: bytes, *headers: str) -> bytes:
    lines = [f"PUT /upload/{path}?v={v(path, size)} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    lines += ["Upload-Draft-Interop-Version: 6", "Upload-Complete: ?0", f"Upload-Length: {size}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def _part(offset: int, body: bytes, last: bool, version: int = 6) -> bytes:
    lines = ["PATCH $LOCATION HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/partial-upload", f"Upload-Draft-Interop-Version: {version}"]
    lines += [f"Upload-Offset: {offset}", f"Upload-Complete: ?{int(last)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


_DELETE = b"DELETE $LOCATION HTTP/1.1\r\nHost: a\r\nUpload-Draft-Interop-Version: 8\r\n\r\n"

SEEDS = [
    _put("slot/a.txt", b"hello"),
    _put("slot/a.txt", b"hello", kind="text/plain"),
    _put("slot/a.txt", b"hello", "Expect: 100-continue"),
    _put("slot/a.txt", b"hello", version="1.0"),
    _put("slot/b.bin", b"\0\r\n" * 100, kind="application/octet-stream"),
    _put("slot/c", b""),
    _put("old/a.txt", b"hello"),
    _put("big", b"hello"),
    _put("slot/large", b"HTTP/1.1" + b"x" * 89_992),
    _put("slot/a.txt", b"hello", "Upload-Draft-Interop-Version: 6", "Upload-Complete: ?1"),
    _put("slot/a.txt", b"hello", "Upload-Draft-Interop-Version: 3", "Upload-Incomplete: ?0"),
    _put("slot/large", b"x" * 90_000, "Upload-Draft-Interop-Version: 8", "Upload-Complete: ?1")[:-50_000],
    _first("slot/a.txt", 5, b""),
    _first("slot/large", 90_000, b"x" * 40_000),
    _first("slot/a.txt", 5, b"he", "Content-Digest: sha-256=:AAAA:", "Repr-Digest: sha-256=:" + "A" * 43 + "=:"),
    _part(0, b"x" * 40_000, False),
    _part(40_000, b"x" * 50_000, True),
    _part(0, b"hello", True),
    _part(5, b"", True, version=8),
    b"HEAD $LOCATION HTTP/1.1\r\nHost: a\r\nUpload-Draft-Interop-Version: 6\r\n\r\n",
    _DELETE,
    b"OPTIONS $LOCATION HTTP/1.1\r\nHost: a\r\n\r\n",
    _put("slot/a.txt", b"hello", "Transfer-Encoding: chunked"),
    _put("slot/a.txt", b"hello").replace(b"?v=", b"?v=0"),
    _put("slot/a.txt", b"hello").replace(b"Content-Length: 5\r\n", b""),
    b"PUT /upload/slot/a.txt?v=00 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PUT /upload/slot/a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nAuthorization: Bearer a.b.c\r\n\r\nhello",
    _get("old/a.txt"),
    _get("big/b.bin"),
    _get("big/b.bin", method="HEAD"),
    _get("big/b.bin", "Range: bytes=0-1,5-,-7"),
    _get("big/b.bin", "Range: bytes=100-"),
    _get("old/a.txt", "Range: bytes=1000-"),
    _get("old/a.txt", 'If-Range: "x"', "Range: bytes=0-1"),
    _get("old/a.txt", 'If-None-Match: "x", *', "If-Modified-Since: Sat, 01 Jan 2050 00:00:00 GMT"),
    _get("old/a.txt", 'If-Match: "x"', "If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT"),
    _get("old/a.txt", "Connection: close"),
    _get("old/a.txt", "X-Forwarded-For: 192.0.2.1, [2001:db8::1]:80", "Forwarded: for=\"[::1]\";proto=http"),
    _get("old/a.txt", version="1.0"),
    _get("../../etc/passwd"),
    _get("", method="OPTIONS"),
    _get("old/a.txt", method="DELETE"),
    _get(".hmac-file-server/a", "Upload-Offset: 0", method="PATCH"),
    b"GET http://a/upload/old/a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /upload/ HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\na=b",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /\r\n\r\n",
]  # fmt: skip
"""What is mutated."""

TOKENS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\0", b":", b"?", b"%", b"%00", b"%2f", b"%ff", b"..", b"/",
    b"//", b"#", b"&", b"=", b"+", b";", b",", b'"', b"\\", b"\xff", b"\xc3\xa9", b"-", b"-1", b"0", b"00", b"9" * 18,
    b"9" * 20, b"9" * 4301, b"1e9", b"0x5", b"+5", b"5, 5", b"\xb2", b"\xd9\xa5", b"*", b"bytes=", b"chunked",
    b"identity", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/3.0", b"http/1.1", b"GET", b"PUT", b"get", b"CONNECT",
    b"TRACE", b"Content-Length: 5\r\n", b"Content-Length: 6\r\n", b"Content-Length:\r\n", b"Content-Length : 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Expect: 100-continue\r\n", b"Expect: 200-ok\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n",
    b"Host: b\r\n", b"Host:\r\n", b" folded\r\n", b"X: y\r\n", b": y\r\n", b"X\r\n", b"X: \x80\r\n",
    b"Cookie: a=b; c\r\n", b"Cookie: \xff=;;=\r\n", b"Range: bytes=0-0,-0,0-\r\n", b"Content-Type: \xff/\0\r\n",
    b"If-Range: W/\r\n", b"If-Modified-Since: Sat, 99 Foo 99999 99:99:99 GMT\r\n", b"If-Modified-Since: \r\n",
    b"Upload-Complete: ?1\r\n", b"Upload-Offset: -1\r\n", b"Upload-Length: 5\r\n",
    b"Upload-Draft-Interop-Version: 6\r\n", b"Forwarded: for=_x\r\n", b"X-Forwarded-For: ::ffff:1.2.3.4%25a\r\n",
    b"A: b\r\n" * 501, b"5\r\nhello\r\n", b"0\r\n\r\n", b"5;ext=\xff\r\nhello\r\n", b"ffffffffffffffffff\r\n",
    b"http://", b"https://a", b"://", b"$LOCATION", b"v=", b"v2=", b"token=", b"x" * 300, b"/a" * 200,
]  # fmt: skip
"""What it is mutated with."""


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """What a client sends on one connection: some requests, mutated."""
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 6))):
        # Most mutations hit the headers: they are what is parsed.
        start = draw(st.integers(0, min(len(data), 600)) | st.integers(0, len(data)))
        length = draw(st.integers(0, 3) | st.integers(0, 80))
        kind = draw(st.sampled_from(["insert", "replace", "delete", "repeat", "flip", "cut", "swap"]))
        part, rest = data[start : start + length], data[start + length :]
        token = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
        if kind == "insert":
            data = data[:start] + token + part + rest
        elif kind == "replace":
            data = data[:start] + token + rest
        elif kind == "delete":
            data = data[:start] + rest
        elif kind == "repeat":
            data = data[:start] + part * draw(st.integers(2, 20)) + rest
        elif kind == "flip":
            data = data[:start] + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in part[:3]) + part[3:] + rest
        elif kind == "cut":
            data = data[:start]
        else:
            data = data[:start] + rest[: len(part)] + part + rest[len(part) :]
    return data


Event = tuple[int, str, Any]


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces as a network would bring it."""
    cuts = draw(st.lists(st.integers(0, len(data)) | st.integers(0, min(len(data), 400)), max_size=8))
    places = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Two connections: their data in pieces, between them threads that get done, time, readers that stall or leave."""
    between = st.lists(
        st.tuples(st.just("work"), st.integers(0, 5))
        | st.tuples(st.just("work"), st.just(0))
        | st.tuples(st.just("time"), st.sampled_from([0.0, 0.3, 2.0, 5.0, 31.0, 60.0, 76.0]))
        | st.tuples(st.sampled_from(["stall", "read"]), st.just(None))
        | st.tuples(st.just("leave"), st.just(None)),
        max_size=3,
    )
    queues = [draw(streams().flatmap(pieces)) for _ in range(draw(st.integers(1, 2)))]
    events: list[Event] = []
    while any(queues):
        number = draw(st.integers(0, len(queues) - 1))
        if not queues[number]:
            number = 1 - number
        events.append((number, "data", queues[number].pop(0)))
        events += [(draw(st.integers(0, 1)), *event) for event in draw(between)]
    return events


# What an answer may be

STATUSES = {
    100,
    104,
    200,
    201,
    204,
    206,
    304,
    400,
    401,
    403,
    404,
    405,
    409,
    411,
    412,
    413,
    414,
    415,
    416,
    429,
    431,
    503,
    507,
}
HEADERS = set(
    """
    Accept-Patch Accept-Ranges Access-Control-Allow-Headers Access-Control-Allow-Methods
    Access-Control-Allow-Origin Access-Control-Expose-Headers Access-Control-Max-Age Allow Cache-Control Connection
    Content-Disposition Content-Length Content-Range Content-Security-Policy Content-Type
    Cross-Origin-Resource-Policy Date ETag Last-Modified Location Retry-After Server Upload-Complete
    Upload-Draft-Interop-Version Upload-Incomplete Upload-Length Upload-Limit Upload-Offset WWW-Authenticate
    X-Content-Type-Options
    """.lower().split()
)
_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) [ -~]+\Z")
_HEADER = re.compile(rb"([A-Za-z-]+): ?([!-~]([ -~]*[!-~])?)\Z")


def answers(data: bytes) -> list[tuple[int, dict[str, bytes]]]:
    """All answers of a connection, each well formed; only the last one may be cut off in its body."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"an answer without an end of its headers: {head[:300]!r}"
        first, *lines = head.split(b"\r\n")
        line = _LINE.match(first)
        assert line, first
        status = int(line[1])
        headers: dict[str, bytes] = {}
        for text in lines:
            header = _HEADER.match(text)
            assert header, text
            name = header[1].decode().lower()
            assert name in HEADERS, name
            assert name not in headers, name
            headers[name] = header[2]
        assert status in STATUSES, (status, data[:200])
        found.append((status, headers))
        if status >= 200:
            assert headers["access-control-allow-origin"] == b"*"
            assert headers["x-content-type-options"] == b"nosniff"
            assert b"sandbox" in headers["content-security-policy"]
        if status < 200 or status in (204, 304):
            assert "content-length" not in headers
        elif not data.startswith(b"HTTP/1."):  # else it answered a HEAD
            data = data[int(headers["content-length"]) :]
    return found


_FIRST = _first("slot/a.txt", 5, b"")
_WORK: list[Event] = [(0, "work", 0)] * 9


@fuzzing
@given(history=histories())
@example(history=[(0, "data", _put("slot/a.txt", b"hello")[:-5]), (0, "time", 60.0)])
@example(history=[(0, "data", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")])
@example(history=[(0, "data", _part(0, b"x" * 40_000, False)), (1, "data", _DELETE)])
@example(history=[(0, "data", _part(0, b"x" * 40_000, False)), (0, "work", 0), (0, "leave", None)])
@example(history=[(0, "data", _FIRST), *_WORK, (1, "data", _part(0, b"hello", True)), (0, "data", _DELETE)])
def test_only_documented_answers(tmp_path: Path, history: list[Event]) -> None:
    """Whatever comes in whatever pieces: well-formed answers, no exception, no logged bug, nothing left behind."""
    with Fuzzed(tmp_path) as fuzzed:
        clients = [fuzzed.connect(), fuzzed.connect()]
        fuzzed.run(history)
    for client in clients:
        answers(client.transport.value())


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 20_000,
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 450,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 501 + b"\r\n",
        _get("old/a.txt") + b"GET /" + b"a" * 20_000,
    ],
    ids=["no-end", "target", "no-end-header", "header", "headers", "many", "second"],
)
def test_headers_that_are_too_long(tmp_path: Path, data: bytes) -> None:
    """Headers beyond any measure are answered with 400, not just cut off."""
    for size in (len(data), 1000):
        with Fuzzed(tmp_path) as fuzzed:
            client = fuzzed.connect()
            for start in range(0, len(data), size):
                client.send(data[start : start + size])
                fuzzed.settle()
                client.proceed()
        assert [status for status, _ in answers(client.transport.value())][-1:] == [400]


@fuzzing
@given(data=st.binary(max_size=300))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    """Bytes that are no HTTP at all are answered with 400, or wait for more."""
    with Fuzzed(tmp_path) as fuzzed:
        client = fuzzed.connect()
        client.send(data)
    assert {status for status, _ in answers(client.transport.value())} <= {400, 404, 405}


@fuzzing
@given(data=st.data())
def test_the_pieces_do_not_matter(tmp_path: Path, data: st.DataObject) -> None:
    """However the network cuts what a client sends, it gets the same answers as if it came whole.

    Only, a refusal that is known while the body still arrives ends the connection.
    """
    sent = data.draw(streams()).replace(b"$LOCATION", NOWHERE)
    outcomes = []
    for parts in ([sent], data.draw(pieces(sent))):
        with Fuzzed(tmp_path) as fuzzed:
            client = fuzzed.connect()
            for part in parts:
                fuzzed.send(client, part)
                fuzzed.settle()
                client.proceed()
        outcomes.append([each for each in answers(client.transport.value()) if each[0] >= 200])
    for (status, headers), (other, others) in zip(*outcomes, strict=False):
        assert (status, headers.get("content-length")) == (other, others.get("content-length"))
    shorter, longer = sorted(outcomes, key=len)
    if len(shorter) < len(longer):
        assert shorter[-1][1]["connection"] == b"close"


# The configuration

CONFIG = (ROOT / "etc" / "config.toml").read_bytes()
CONFIG_SECRET = "orbit9-hollow23"
CONFIG_KEYS = re.findall(rb"(?m)^#? ?(\w+) = ", CONFIG)

CONFIG_TOKENS = [
    b'"', b"'", b'"""', b"'''", b"[", b"]", b"[[", b"]]", b"{", b"}", b"=", b".", b",", b"#", b"\\", b"\\u0000",
    b"\\ud800", b"\\U00110000", b"\0", b"\r", b"\n", b"\x7f", b"\xff", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8",
    b"inf", b"-nan", b"1e999", b"0x" + b"f" * 5000, b"9" * 5000, b"-1", b"0", b"0b1", b"0o7", b"1_000", b"true",
    b"1979-05-27T07:32:00Z", b"07:32:00", b"[[]]", b"{}", b"{ a = 1 }", b"[a]\n", b"[[a]]\n", b"a.b = 1\n",
    b'"" = 1\n', b"[" * 2000, b"{a=" * 500, b'":99999"', b'"[::1%\\u0000]:80"', b'"tcp:"', b'"unix:"', b'"systemd:"',
    b'"ssl:80:"', b'"1 TiB"', b'"\xc2\xb2MB"', b'"\xd9\xa1\xd9\xa2"', b'["", "::/0", "1.2.3.4/99"]',
    b"[0x" + b"f" * 5000 + b"]", b'"/dev/null"', b'"/proc/self/mem"', b'"."', b'""', b'"\\u0000"', b'"x\\ny"',
]  # fmt: skip


@st.composite
def configurations(draw: st.DrawFn) -> bytes:
    """The example configuration with parts of it replaced, or keys with values of any kind."""
    if draw(st.booleans()):
        value = st.sampled_from(CONFIG_TOKENS) | st.text(string.printable, max_size=10).map(str.encode)
        lines = draw(
            st.lists(st.builds(lambda *of: b"%b = %b\n" % of, st.sampled_from(CONFIG_KEYS), value), max_size=4)
        )
        return b'Secret = "%b"\nStoreDir = "/srv"\n' % CONFIG_SECRET.encode() + b"".join(lines)
    data = CONFIG
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 3) | st.integers(0, 200))
        token = draw(st.sampled_from([*CONFIG_TOKENS, *CONFIG_KEYS]) | st.binary(max_size=6))
        data = data[:start] + token + data[start + length :]
    return data


@fuzzing
@given(data=configurations() | st.binary(max_size=300))
@example(data=b'Secret = "s"\nStoreDir = "/srv"\nTrustedProxies = [0x' + b"f" * 5000 + b"]\n")
def test_only_documented_errors(tmp_path: Path, data: bytes) -> None:
    """Any configuration is taken, or refused with one line that names the file and not the secret."""
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    try:
        assert isinstance(load(str(path)), Config)
    except ConfigError as error:
        line = str(error)
        assert line.startswith(f"{path}: ")
        assert line.isprintable()
        assert CONFIG_SECRET not in line
