"""Heads that are taken at once are read as twisted.web reads them line by line."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hmac_file_server.web.channel import _HEAD, Channel
from tests.stores import MemoryStore
from tests.support import put_target
from tests.test_request import Server

METHODS = ["GET", "HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "POST", "get", ""]
TARGETS = [
    "/upload/a/b",
    "/upload/",
    "/",
    "*",
    "http://h/upload/a/b",
    "//",
    "/upload/a/%2e",
    "/\xe4",
    put_target("a/c", 5),
]
HEADERS = [
    "Host: a",
    "host:\ta ",
    "Host: a\r\nHost: b",
    "Content-Length: 5",
    "Content-Length: 0",
    "content-length:  5\t",
    "Content-Length: 05",
    "Content-Length: 5, 5",
    "Content-Length: -5",
    "Content-Length: 9" + "9" * 20,
    "Transfer-Encoding: chunked",
    "Connection: close",
    "Connection: keep-alive",
    "Expect: 100-continue",
    "Range: bytes=0-1",
    "X-Odd: \x00",
    "X-Bytes: \xff\x80",
    "X-Empty:",
    " folded",
    "No-Colon",
    "Space : b",
    "Bare: a\nb",
]


def answers(data: bytes, cuts: list[int], at_once: bool, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a fresh server says, and what it has taken note of."""
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patched:
        if not at_once:
            patched.setattr(Channel, "_take_request", lambda self, data, end: 0)
        server = Server(Path(folder), store=MemoryStore())
        Path(folder, "a").mkdir()
        Path(folder, "a/b").write_bytes(b"hello")
        said = b""
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if not server.transport.disconnecting:
                said += server.send(data[begin:end])
        stored = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
        ended = [(request.code, request.body_received) for request, _, _ in server.ended]
        result = [
            re.sub(rb"(Date|Last-Modified|ETag): [^\r]*", b"", said),
            stored,
            ended,
            server.transport.disconnecting,
        ]
        server.hang_up()
        server.store.close()
        return result


REQUESTS = st.builds(
    lambda method, target, version, headers, body: "\r\n".join(
        [f"{method} {target} HTTP/{version}", *headers, "", body]
    ),
    st.sampled_from(METHODS),
    st.sampled_from(TARGETS),
    st.sampled_from(["1.1", "1.1", "1.1", "1.0", "2.0"]),
    st.lists(st.sampled_from(HEADERS), max_size=4).map(lambda more: ["Host: a", *more]),
    st.sampled_from(["", "hello", "5\r\nhello\r\n0\r\n\r\n"]),
)


@settings(max_examples=150, deadline=None)
@example(["GET /upload/a/b HTTP/1.1\r\nHost: a\r\n\r\n"] * 3, [])
@example([f"PUT {put_target('a/c', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"] * 2, [70])
@given(st.lists(REQUESTS, min_size=1, max_size=3), st.lists(st.integers(0, 300), max_size=2))
def test_both_ways_are_one(requests: list[str], cuts: list[int]) -> None:
    """Whatever arrives, in whatever pieces, is answered, stored and counted alike both ways."""
    data = "".join(requests).encode("latin-1")
    where = sorted(min(cut, len(data)) for cut in cuts)
    monkeypatch = pytest.MonkeyPatch()
    assert answers(data, where, True, monkeypatch) == answers(data, where, False, monkeypatch)


def test_ordinary_requests_are_taken_at_once() -> None:
    """What clients send, and what proxies make of it, is taken the quick way."""
    agents = [
        "Host: upload.example\r\nUser-Agent: Conversations/2.17.2\r\nContent-Type: image/jpeg\r\nContent-Length: 5\r\n"
        "Accept-Encoding: gzip\r\n",
        "Host: upload.example\r\nX-Forwarded-For: 192.0.2.7\r\nUser-Agent: Mozilla/5.0 (X11) \xc4\r\nAccept: */*\r\n",
    ]
    for headers in agents:
        assert _HEAD.fullmatch(f"PUT /upload/a/b?v=00 HTTP/1.1\r\n{headers}\r\n".encode("latin-1"))


PUT = put_target("a/c", 5).encode()
BARE = {
    "in the method": b"P%bUT " + PUT + b" HTTP/1.1\r\nHost: a\r\n",
    "in the target": b"PUT /%b" + PUT + b" HTTP/1.1\r\nHost: a\r\n",
    "in the version": b"PUT " + PUT + b" HTTP/1.1%b\r\nHost: a\r\n",
    "after the version": b"PUT " + PUT + b" HTTP/1.1 %b\r\nHost: a\r\n",
    "in a name": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\nX%bY: z\r\n",
    "before a name": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\n%bX: z\r\n",
    "before a colon": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\nX%b: z\r\n",
    "before a value": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\nX:%bz\r\n",
    "in a value": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\nX: y%bContent-Length: 50\r\n",
    "after a value": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\nX: y%b\r\n",
    "in a line of its own": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\n%b\r\n",
    "in a line before all": b"%b\r\nPUT " + PUT + b" HTTP/1.1\r\nHost: a\r\n",
    "in Host": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a%bb\r\n",
    "in a length": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 5%b\r\n",
    "in a coding": b"PUT " + PUT + b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked%b\r\n",
}


@pytest.mark.parametrize("bare", [b"\n", b"\r", b"\0", b"\n ", b"\r\t"])
@pytest.mark.parametrize("head", BARE.values(), ids=BARE)
def test_no_bare_ends_of_lines(tmp_path: Path, head: bytes, bare: bytes) -> None:
    """A carriage return, newline or NUL that is not the end of a line is refused, with any version of Twisted."""
    length = b"" if b"\r\nContent-Length" in head or b"Transfer" in head else b"Content-Length: 5\r\n"
    data = head.replace(b"%b", bare) + length + b"\r\nhello"
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        server = Server(tmp_path, store=MemoryStore())
        said = b"".join(server.send(piece) for piece in pieces if not server.transport.disconnecting)
        assert [line.split()[1] for line in said.splitlines() if line.startswith(b"HTTP/1.1 ")] == [b"400"]
        assert server.transport.disconnecting
        assert not (tmp_path / "a").exists()
        server.store.close()
