"""What the log and the figures say of requests whose clients leave."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from hmac_file_server.files.access_log import AccessLog
from hmac_file_server.files.resource import Files
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.tree import Place, Root
from hmac_file_server.files.upload import Uploads
from hmac_file_server.log import FORMS, LineLog, Recent
from hmac_file_server.metrics import Metrics
from hmac_file_server.resumption.keeper import FileKeeper
from hmac_file_server.resumption.upload import Resumables
from hmac_file_server.resumption.wiring import place_of
from hmac_file_server.slots.verifier import Verifier
from hmac_file_server.stores.room import Room
from hmac_file_server.web.connections import Limits
from hmac_file_server.web.site import Site
from tests.stores import local_store
from tests.support import SECRET, put_target, v2
from tests.test_request import Transport


class Out(io.StringIO):
    """A log in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.lowest = LogLevel.info
        self.form = FORMS["text"]
        self.recent = Recent()
        self.problem = ""


class Server:
    """A site with its log and figures, whose threads work when they are told to."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.store = local_store(folder, False, self._in_thread, self.clock)
        self.waiting: list[tuple[Deferred[Any], Callable[[], Any]]] = []
        policy = RetryPolicy(self.clock, 1, 1.0)
        self.uploads = uploads = Uploads(self.store, Room(0), policy, 4096)
        sessions = self.store.sessions(3600.0)
        uploads.watcher = keeper = FileKeeper(sessions, self.clock)
        files = Files(
            Verifier([SECRET.encode()]),
            Serving(self.store, self.clock),
            uploads,
            1 << 30,
        )
        place = place_of(Resumables(sessions, uploads, keeper.kept, self.clock), files, "upload", 0)
        self.metrics, self.out = Metrics(), Out()
        self.access = AccessLog(lambda: self.metrics, self.clock, LineLog(self.out, "info"))
        self.site = Site(
            Root([Place("upload", place, files)]), self.clock, Limits(), self.access.ended, self.access.turned_away
        )
        self.transport = Transport()
        self.channel: Any = None

    def _in_thread(self, call: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((done, call))
        return done

    def work(self) -> None:
        """Let the threads do what waits, and what comes of that."""
        while self.waiting:
            done, call = self.waiting.pop(0)
            maybeDeferred(call).chainDeferred(done)
            self.clock.advance(0)

    def send(self, data: bytes | str) -> None:
        """Send on a connection of its own."""
        self.transport = Transport()
        self.channel = self.site.buildProtocol(None)
        self.channel.makeConnection(self.transport)
        self.channel.dataReceived(data.encode() if isinstance(data, str) else data)

    def leave(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.clock.advance(0)

    def count(self, name: str, reason: str = "") -> float:
        labels = {"reason": reason} if reason else {}
        self.clock.advance(0)
        return self.metrics.registry.get_sample_value(f"hmac_file_server_{name}_total", labels) or 0.0

    @property
    def lines(self) -> list[str]:
        """The log's lines, without time and duration."""
        self.clock.advance(0)
        return [line.partition(" 192.168.1.1 ")[2].strip() for line in self.out.getvalue().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.store.close()


def put(path: str, size: int, *headers: str) -> str:
    lines = [f"PUT {put_target(path, size)} HTTP/1.1", "Host: a", f"Content-Length: {size}", *headers]
    return "\r\n".join([*lines, "", ""])


def get(path: str, *headers: str, method: str = "GET") -> str:
    return "\r\n".join([f"{method} /upload/{path} HTTP/1.1", "Host: a", *headers, "", ""])


def stored(server: Server, path: str, body: str) -> None:
    server.send(put(path, len(body)) + body)
    server.work()
    assert server.transport.value().startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("size", [5, 70_000], ids=["at once", "in pieces"])
def test_a_client_that_leaves_after_its_last_byte(server: Server, size: int) -> None:
    """Its file is stored, counts as an upload, and the line says so, but names no status: none was sent."""
    server.send(put("a/b", size))
    server.channel.dataReceived(b"x" * size)
    server.leave()
    assert server.lines == []
    server.work()
    assert (server.count("uploads"), server.count("upload_errors", "broken_off")) == (1, 0)
    assert server.lines == [
        f'PUT /upload/a/b - in={size} out=0 0.000s "-" - stored; the client left before it was answered'
    ]


def test_a_client_that_leaves_before_its_last_byte(server: Server) -> None:
    """It has broken off."""
    server.send(put("a/b", 5) + "hell")
    server.leave()
    server.work()
    assert (server.count("uploads"), server.count("upload_errors", "broken_off")) == (0, 1)
    assert server.lines == ['PUT /upload/a/b - in=4 out=0 0.000s "-" - broken off']


def test_a_client_that_does_not_wait_for_its_conflict(server: Server) -> None:
    """What became of the upload counts, not that its client had left by then."""
    stored(server, "a/b", "hello")
    server.send(put("a/b", 5) + "jello")
    server.leave()
    server.work()
    assert (server.count("upload_errors", "conflict"), server.count("upload_errors", "broken_off")) == (1, 0)
    assert server.lines[1] == (
        'PUT /upload/a/b - in=5 out=0 0.000s "-" - the slot has been used for another file;'
        " the client left before it was answered"
    )


def test_a_client_that_leaves_between_two_tries(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that failed is the reason, also where the client did not wait for the next try."""

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hmac_file_server.stores.local.draft.Draft._make_file", fail)
    server.send(put("a/b", 5) + "hello")
    server.work()
    server.leave()
    server.work()
    assert (server.count("upload_errors", "storage"), server.count("upload_errors", "broken_off")) == (1, 0)
    assert "store: Input/output error; the client left" in server.lines[0]


def test_a_part_whose_client_leaves_after_its_last_byte(server: Server) -> None:
    """It is kept: no upload has failed, and none is stored yet; when the last part is here, one is."""
    resumable = ("Upload-Draft-Interop-Version: 6", "Upload-Complete: ?0", "Upload-Length: 9")
    target = put_target("a/b", 9)
    server.send("\r\n".join([f"PUT {target} HTTP/1.1", "Host: a", "Content-Length: 5", *resumable, "", ""]))
    server.work()
    server.channel.dataReceived(b"hello")
    location = server.transport.value().partition(b"Location: ")[2].partition(b"\r\n")[0].decode()
    server.leave()
    server.work()
    assert "- kept; the client left" in server.lines[0]
    resumable = ("Upload-Draft-Interop-Version: 6", "Upload-Complete: ?1", "Upload-Offset: 5")
    head = [f"PATCH {location} HTTP/1.1", "Host: a", "Content-Length: 4", "Content-Type: application/partial-upload"]
    server.send("\r\n".join([*head, *resumable, "", ""]))
    server.work()
    server.channel.dataReceived(b"then")
    server.leave()
    server.work()
    assert (server.count("uploads"), server.count("uploads_resumed")) == (1, 1)
    assert server.count("upload_errors", "broken_off") == 0
    assert "- stored; the client left" in server.lines[1]


def test_a_refused_client_that_leaves(server: Server) -> None:
    """It was answered: the line names the status, and it counts as refused."""
    server.send("PUT /upload/a/b?v=00 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhell")
    server.leave()
    assert (server.count("refusals", "signature"), server.count("upload_errors", "broken_off")) == (1, 0)
    assert server.lines[0].startswith("PUT /upload/a/b 403 in=4 ")


def test_what_counts_as_a_download(server: Server) -> None:
    """Answers to GET with a file or ranges of it, one each; nothing that has no content."""
    stored(server, "a/b", "hello")
    server.clock.advance(2)
    for headers in ((), ("Range: bytes=0-1",), ("Range: bytes=0-1,3-4",), ("If-Range: x", "Range: bytes=0-1")):
        server.send(get("a/b", *headers))
        server.work()
    assert server.count("downloads") == 4
    for headers in (("If-None-Match: *",), ("If-Match: x",), ("Range: bytes=9-",)):
        server.send(get("a/b", *headers))
        server.work()
    for method, path in (
        ("HEAD", "a/b"),
        ("OPTIONS", "a/b"),
        ("GET", "a/none"),
        ("GET", f".hmac-file-server/{'0' * 32}"),
    ):
        server.send(get(path, method=method))
        server.work()
    assert (server.count("downloads"), server.count("downloads_broken")) == (4, 0)


def test_asking_for_an_upload_is_no_download(server: Server) -> None:
    """How far an upload is is told, not downloaded."""
    resumable = ("Upload-Draft-Interop-Version: 6", "Upload-Complete: ?0", "Upload-Length: 9", "Host: a")
    server.send("\r\n".join([f"PUT {put_target('a/b', 9)} HTTP/1.1", "Content-Length: 0", *resumable, "", ""]))
    server.work()
    location = server.transport.value().partition(b"Location: ")[2].partition(b"\r\n")[0].decode()
    server.send(f"GET {location} HTTP/1.1\r\nHost: a\r\n\r\n")
    server.work()
    assert server.transport.value().startswith(b"HTTP/1.1 204 ")
    assert server.count("downloads") == 0


def test_a_reader_that_leaves_before_its_answer(server: Server) -> None:
    """Nothing was begun to be sent: the line says that it broke off, and no download counts."""
    stored(server, "a/b", "hello")
    server.send(get("a/b"))
    server.leave()
    server.work()
    assert (server.count("downloads"), server.count("downloads_broken")) == (0, 0)
    assert server.lines[1] == 'GET /upload/a/b - in=0 out=0 0.000s "-" - broken off'


def test_refusals_of_one_client_are_summed_up(server: Server) -> None:
    """Of many refusals of one client some are told, the rest are summed up; then it is told of again."""
    for _ in range(150):
        server.send(get("a/none"))
        server.work()
    assert len(server.lines) == 100
    server.clock.advance(10)
    assert server.out.getvalue().endswith(
        " warn  192.168.1.1 50 more requests without a right, in 10 s, are not listed\n"
    )
    server.send(get("a/none"))
    server.work()
    assert len(server.lines) == 102
    server.clock.advance(10)
    assert len(server.lines) == 102


def test_uploads_are_never_summed_up(server: Server) -> None:
    """Each upload and download leaves its line."""
    for number in range(150):
        stored(server, f"a/{number}", "hello")
        server.leave()
        server.send(get(f"a/{number}"))
        server.work()
        server.leave()
    assert len(server.lines) == 300


@pytest.mark.parametrize("left", [False, True], ids=["answered", "gone before"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "DELETE"])
def test_made_up_upload_resources_are_summed_up(server: Server, method: str, left: bool) -> None:
    """Whoever names upload resources that there are not has no right, whatever the method."""
    resumable = ("Upload-Draft-Interop-Version: 6", "Upload-Complete: ?1", "Upload-Offset: 0")
    content = ("Content-Type: application/partial-upload", "Content-Length: 1") if method == "PATCH" else ()
    headers = (*resumable, *content) if content else ()
    for number in range(150):
        server.send(get(f".hmac-file-server/{number:032x}", *headers, method=method))
        if left:
            server.leave()
        server.work()
        if content and not left:
            server.channel.dataReceived(b"x")
    assert len(server.lines) == 100


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
def test_conditions_on_an_upload_resource(server: Server, method: str) -> None:
    """It has no ETag: a request for one that has is refused with 412, and changes nothing (RFC 9110, section 13.1)."""
    resumable = ("Upload-Draft-Interop-Version: 6", "Upload-Complete: ?0", "Upload-Length: 9", "Content-Length: 0")
    server.send("\r\n".join([f"PUT {put_target('a/b', 9)} HTTP/1.1", "Host: a", *resumable, "", ""]))
    server.work()
    location = server.transport.value().partition(b"Location: /upload/")[2].partition(b"\r\n")[0].decode()
    version = "Upload-Draft-Interop-Version: 6"
    part = ("Upload-Complete: ?0", "Upload-Offset: 0", "Content-Type: application/partial-upload", "Content-Length: 1")
    headers = (version, *part) if method == "PATCH" else (version,)
    server.send(get(location, 'If-Match: "a"', *headers, method=method) + "x" * (method == "PATCH"))
    server.work()
    assert server.transport.value().startswith(b"HTTP/1.1 412 ")
    server.send(get(location, version, method="HEAD"))
    server.work()
    assert b"\r\nUpload-Offset: 0\r\n" in server.transport.value()
    server.send(get(location, "If-Match: *", *headers, method=method) + "x" * (method == "PATCH"))
    server.work()
    assert server.transport.value().startswith(b"HTTP/1.1 20")


def test_refusals_of_many_clients(server: Server) -> None:
    """However many addresses are refused, their lines are bounded, and so is what is remembered of them."""
    told = sum(server.access._refused.is_told(f"192.0.{number // 250}.{number % 250}") for number in range(50_000))
    assert told <= 300
    assert len(server.access._refused._counts) <= 201
    assert sum(server.access._refused.is_told(f"2001:db8::{number:x}") for number in range(200)) == 0


def test_what_a_client_says_is_cut(server: Server) -> None:
    """Of a target, an agent and a method that are very long a line has the beginning; a signature is still hidden."""
    signature = "ab" * 32
    junk = "x" * 7000
    server.send(get(f"{'y' * 990}/v={signature}{junk}", f"User-Agent: {junk}"))
    server.work()
    (line,) = server.lines
    assert len(line) < 1500
    assert signature[:8] not in line
    assert "xxx..." in line


def objects(server: Server) -> list[dict[str, Any]]:
    """The log's lines as objects, in the order of their keys, without the time."""
    server.clock.advance(0)
    found = [json.loads(line) for line in server.out.getvalue().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time")) for line in found)
    return found


KEYS = ["level", "client", "method", "path", "status", "in", "out", "seconds", "host", "agent", "reason", "note"]


@pytest.fixture
def in_json(server: Server) -> Server:
    server.access._lines.configure("info", "json")
    return server


def test_json_of_what_went_well(in_json: Server) -> None:
    """Every key is there, null where there is nothing to say, and numbers are numbers."""
    stored(in_json, "a/b", "hello")
    in_json.send(get("a/b", 'User-Agent: "quoted" \\'))
    in_json.work()
    upload, download = objects(in_json)
    assert list(upload) == KEYS
    assert list(upload.values()) == [
        *("info", "192.168.1.1", "PUT", "/upload/a/b", 201, 5, 0, 0.0),
        *(None, None, None, None),
    ]
    assert list(download) == KEYS
    assert (download["status"], download["out"], download["agent"]) == (200, 5, '"quoted" \\\\')


def test_json_of_refusals(in_json: Server) -> None:
    """The reason is the figures', and what explain needs of an upload without a right has keys of its own."""
    signature = v2("a/b", 5, "image/png")
    headers = ["Host: a", "Content-Length: 5", 'Content-Type: a"b']
    in_json.send("\r\n".join([f"PUT /upload/a/b?v2={signature} HTTP/1.1", *headers, "", ""]))
    in_json.leave()
    in_json.send("\r\n".join(["PUT /upload/a/b HTTP/1.1", *headers[:2], "", ""]))
    in_json.leave()
    in_json.send("\r\n".join(["PUT /elsewhere HTTP/1.1", *headers[:2], "", ""]))
    in_json.leave()
    in_json.send(get("a/none"))
    in_json.work()
    signed, unsigned, elsewhere, missing = objects(in_json)
    clues = ["size", "type", "protocol", "signature"]
    assert list(signed) == [*KEYS, *clues]
    assert [signed[key] for key in ("level", "status", "reason")] == ["warn", 403, "signature"]
    assert signed["note"].startswith("signature does not match: ")
    assert [signed[key] for key in clues] == [5, 'a"b', "v2", signature[:8]]
    assert [unsigned[key] for key in clues] == [5, None, None, None]
    assert [elsewhere[key] for key in ("status", "reason", "size")] == [404, "not_found", 5]
    assert "(size=" not in in_json.out.getvalue()
    assert signature[:9] not in in_json.out.getvalue()
    assert list(missing) == KEYS
    assert [missing[key] for key in ("level", "status", "reason", "note")] == [
        *("info", 404, "not_found", "there is nothing here")
    ]


def test_json_of_clients_that_leave(in_json: Server) -> None:
    """There is no status where there was no answer, and why is a reason of the figures, too."""
    in_json.send(put("a/b", 5) + "hell")
    in_json.leave()
    in_json.work()
    in_json.send(put("a/c", 5) + "hello")
    in_json.leave()
    in_json.work()
    broken, gone = objects(in_json)
    assert [broken[key] for key in ("status", "in", "reason", "note")] == [None, 4, "broken_off", "broken off"]
    assert [gone[key] for key in ("status", "in", "reason", "note")] == [
        *(None, 5, None, "stored; the client left before it was answered")
    ]


def test_json_of_more_requests_than_are_listed(in_json: Server) -> None:
    """What is no request's line has a message."""
    for _ in range(150):
        in_json.send(get("a/none"))
        in_json.work()
    in_json.clock.advance(10)
    last = objects(in_json)[-1]
    assert last == {
        "level": "warn",
        "message": "192.168.1.1 50 more requests without a right, in 10 s, are not listed",
    }
