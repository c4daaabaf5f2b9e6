"""Parts of files, and answers on conditions, as clients, players and caches ask for them (RFC 9110)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime

import pytest

from tests.support import Answer, Daemon, eventually

BODY = bytes(range(256)) * 4 + b"end"
SIZE = len(BODY)
LARGE = random.Random(5).randbytes((9 << 20) + 17)
"""Longer than a socket's buffers, and no multiple of anything."""

MINUTE = 60


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with three files, which no test changes."""
    made = Daemon(tmp_path_factory.mktemp("ranges")).start()
    try:
        for path, body in (("slot/a.png", BODY), ("slot/large.bin", LARGE), ("slot/empty.txt", b"")):
            assert made.put(path, body).status == 201
        yield made
        assert "Traceback" not in made.log
    finally:
        made.stop()


def part(answer: Answer, body: bytes, first: int, last: int) -> None:
    """Check that an answer is one part of a file, the last byte included."""
    assert answer.status == 206
    assert answer.body == body[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(body)}"
    assert answer.headers["content-length"] == str(last - first + 1)


def whole(answer: Answer, body: bytes = BODY) -> None:
    """Check that an answer is the whole file."""
    assert answer.status == 200
    assert answer.body == body
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=500-", 500, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        ("bytes=0-1", 0, 1),
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=10-19", 10, 19),
        (f"bytes=10-{SIZE - 1}", 10, SIZE - 1),
        (f"bytes=10-{SIZE}", 10, SIZE - 1),
        ("bytes=10-99999999999999999999", 10, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        ("bytes=-100", SIZE - 100, SIZE - 1),
        (f"bytes=-{SIZE}", 0, SIZE - 1),
        ("bytes=-99999999", 0, SIZE - 1),
        ("bytes=5-9,99999-", 5, 9),
        ("BYTES=5-9", 5, 9),
    ],
)
def test_one_range(daemon: Daemon, value: str, first: int, last: int) -> None:
    """Just the bytes that were asked for, with 206 and where they lie; also for ``0-``."""
    answer = daemon.get("slot/a.png", Range=value)
    part(answer, BODY, first, last)
    full = daemon.get("slot/a.png").headers
    changing = ("date", "content-length", "content-range")
    assert {k: v for k, v in answer.headers.items() if k not in changing} == {
        k: v for k, v in full.items() if k not in changing
    }


def parts(answer: Answer) -> list[tuple[str, str, bytes]]:
    """The parts of a multipart answer: type, Content-Range, bytes. Strict on each byte between them."""
    assert answer.status == 206
    assert "content-range" not in answer.headers
    boundary = answer.headers["content-type"].removeprefix("multipart/byteranges; boundary=").encode()
    assert re.fullmatch(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}", boundary)
    before, *found, after = answer.body.split(b"\r\n--" + boundary)
    assert (before, after) == (b"", b"--\r\n")
    result = []
    for each in found:
        head, _, content = each.partition(b"\r\n\r\n")
        start, media_type, span = head.decode().split("\r\n")
        assert start == ""
        result.append((media_type.removeprefix("Content-Type: "), span.removeprefix("Content-Range: "), content))
    return result


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        ("bytes=0-0,-1", [(0, 0), (SIZE - 1, SIZE - 1)]),
        ("bytes=0-9, 20-29 ,30-30", [(0, 9), (20, 29), (30, 30)]),
        ("bytes=500-509,0-9", [(500, 509), (0, 9)]),
        ("bytes=0-9,99999-,20-29", [(0, 9), (20, 29)]),
        ("bytes=0-1,1-2", [(0, 1), (1, 2)]),
        (",".join(["bytes=0-3"] + [f"{n}-{n + 3}" for n in range(10, 160, 10)]), None),
    ],
)
def test_several_ranges(daemon: Daemon, value: str, spans: list[tuple[int, int]] | None) -> None:
    """Several ranges come as parts, in the order asked for, each with its place and the file's type."""
    spans = spans or [(0, 3)] + [(n, n + 3) for n in range(10, 160, 10)]
    answer = daemon.get("slot/a.png", Range=value)
    assert parts(answer) == [
        ("image/png", f"bytes {first}-{last}/{SIZE}", BODY[first : last + 1]) for first, last in spans
    ]
    assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=x-y",
        "bytes=9-5",
        "bytes=5",
        "bytes=0-1;2-3",
        "bytes=-0x5",
        "lines=0-1",
        "bytes=0-,0-",
        "bytes=" + ",".join(["0-"] * 200),
        "bytes=" + ",".join(f"{n}-{n}" for n in range(1000)),
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_no_range_at_all(daemon: Daemon, value: str) -> None:
    """A Range that makes no sense, or more work than the whole file, is passed over."""
    whole(daemon.get("slot/a.png", Range=value))


@pytest.mark.parametrize("value", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=99999-,88888-"])
def test_not_satisfiable(daemon: Daemon, value: str) -> None:
    """Past the end there is nothing: 416, with the size."""
    answer = daemon.get("slot/a.png", Range=value)
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-1", "bytes=-1", "bytes=5-"])
def test_an_empty_file(daemon: Daemon, value: str) -> None:
    """An empty file has no first byte, but is there."""
    answer = daemon.get("slot/empty.txt", Range=value)
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")
    for headers in ({}, {"Range": "junk"}):
        full = daemon.get("slot/empty.txt", **headers)
        whole(full, b"")
        assert full.headers["content-length"] == "0"


@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=0-", "bytes=99999-", "bytes=0-0,-1", "junk"])
def test_head_knows_no_ranges(daemon: Daemon, value: str) -> None:
    """Range has a meaning for GET only: HEAD tells of the whole file (RFC 9110, section 14.2)."""
    answer = daemon.request("HEAD", "/upload/slot/a.png", Range=value)
    assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=99999-"])
def test_a_range_of_nothing(daemon: Daemon, value: str) -> None:
    """What is not there has no parts either."""
    assert daemon.get("slot/none.png", Range=value).status == 404


# Large files


def test_random_ranges_of_a_large_file(daemon: Daemon) -> None:
    """Any stretch of a large file comes byte for byte, one after the other on one connection."""
    chance = random.Random(7)
    with daemon.wire() as wire:
        for _ in range(40):
            first = chance.randrange(len(LARGE))
            last = min(len(LARGE) - 1, first + chance.choice((0, 1, 1000, 65536, 1 << 20, len(LARGE))))
            wire.send(
                f"GET /upload/slot/large.bin HTTP/1.1\r\nHost: a\r\nRange: bytes={first}-{last}\r\n\r\n".encode()
            )
            part(wire.answer(), LARGE, first, last)


def test_several_large_ranges(daemon: Daemon) -> None:
    """Large parts come byte for byte."""
    spans = [(5 << 20, (7 << 20) + 3), (1, (3 << 20) + 1), (len(LARGE) - 5, len(LARGE) - 1)]
    value = "bytes=" + ",".join(f"{first}-{last}" for first, last in spans)
    found = parts(daemon.get("slot/large.bin", Range=value))
    assert [span for _, span, _ in found] == [f"bytes {first}-{last}/{len(LARGE)}" for first, last in spans]
    assert [content for _, _, content in found] == [LARGE[first : last + 1] for first, last in spans]


def test_resuming(daemon: Daemon) -> None:
    """A download that broke off goes on where it stopped, and the two halves are the file."""
    with daemon.wire() as wire:
        wire.send(b"GET /upload/slot/large.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += wire.socket.recv(1)
        got = b""
        while len(got) < 1_000_000:
            got += wire.socket.recv(100_000)
    tag = re.search(rb"ETag: (\S+)", head, re.IGNORECASE)
    assert tag
    answer = daemon.get("slot/large.bin", Range=f"bytes={len(got)}-", If_Range=tag[1].decode())
    part(answer, LARGE, len(got), len(LARGE) - 1)
    assert got + answer.body == LARGE


def test_a_client_that_has_it_all_and_leaves(daemon: Daemon) -> None:
    """A client that closes with the last byte has not broken off."""
    broken = daemon.metric("hmac_file_server_downloads_broken_total")
    sent = daemon.metric("hmac_file_server_downloads_total")
    for number in range(100):
        part(daemon.get("slot/large.bin", Range=f"bytes={number}-{number + 9}"), LARGE, number, number + 9)
    eventually(lambda: daemon.metric("hmac_file_server_downloads_total") == sent + 100)
    assert daemon.metric("hmac_file_server_downloads_broken_total") == broken


# Conditions


def test_the_etag(daemon: Daemon) -> None:
    """The ETag is strong, quoted, the same in each answer, and another one for another file."""
    tag = daemon.get("slot/a.png").headers["etag"]
    assert re.fullmatch(r'"[!#-~]+"', tag)
    for answer in (
        daemon.get("slot/a.png"),
        daemon.get("slot/a.png", Range="bytes=0-1"),
        daemon.request("HEAD", "/upload/slot/a.png"),
        daemon.get("slot/a.png", If_None_Match=tag),
    ):
        assert answer.headers["etag"] == tag
    assert daemon.get("slot/large.bin").headers["etag"] != tag


def validators(daemon: Daemon) -> dict[str, str]:
    """What conditions can be made with."""
    headers = daemon.get("slot/a.png").headers
    modified = parsedate_to_datetime(headers["last-modified"]).timestamp()
    return {
        "tag": headers["etag"],
        "date": headers["last-modified"],
        "before": formatdate(modified - MINUTE, usegmt=True),
        "after": formatdate(modified + MINUTE, usegmt=True),
    }


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"If_None_Match": "{tag}"}, 304),
        ({"If_None_Match": "W/{tag}"}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"other", {tag}'}, 304),
        ({"If_None_Match": '"other","x,y" ,W/{tag}'}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_None_Match": "{tag}x"}, 304),
        ({"If_None_Match": ""}, 200),
        ({"If_Modified_Since": "{date}"}, 304),
        ({"If_Modified_Since": "{after}"}, 304),
        ({"If_Modified_Since": "{before}"}, 200),
        ({"If_Modified_Since": "junk"}, 200),
        ({"If_Modified_Since": "0"}, 200),
        ({"If_None_Match": '"other"', "If_Modified_Since": "{date}"}, 200),
        ({"If_None_Match": "{tag}", "If_Modified_Since": "{before}"}, 304),
        ({"If_Match": "{tag}"}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": '"other", {tag}'}, 200),
        ({"If_Match": "W/{tag}"}, 412),
        ({"If_Match": '"other"'}, 412),
        ({"If_Unmodified_Since": "{date}"}, 200),
        ({"If_Unmodified_Since": "{after}"}, 200),
        ({"If_Unmodified_Since": "{before}"}, 412),
        ({"If_Unmodified_Since": "junk"}, 200),
        ({"If_Match": "{tag}", "If_Unmodified_Since": "{before}"}, 200),
        ({"If_Match": '"other"', "If_None_Match": "{tag}"}, 412),
        ({"If_Match": "{tag}", "If_None_Match": "{tag}"}, 304),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions(daemon: Daemon, method: str, conditions: dict[str, str], status: int) -> None:
    """Each condition, and each order of precedence, is answered as RFC 9110, section 13.2.2, says."""
    known = validators(daemon)
    headers = {name: value.format(**known) for name, value in conditions.items()}
    with daemon.wire() as wire:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        request = [f"{method} /upload/slot/a.png HTTP/1.1", "Host: a", *lines, "", ""]
        answer = wire.send("\r\n".join(request).encode()).answer(head=method == "HEAD")
        assert answer.status == status
        if method == "GET" and status == 200:
            whole(answer)
        if status == 304:
            # What a cache goes by, and nothing of the file.
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["last-modified"] == known["date"]
            assert "content-type" not in answer.headers
        assert answer.headers["etag"] == known["tag"]
        # Whatever it was, the next answer is where it should be.
        whole(wire.send(b"GET /upload/slot/a.png HTTP/1.1\r\nHost: a\r\n\r\n").answer())


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ("{tag}", True),
        ("{date}", True),
        ("W/{tag}", False),
        ('"other"', False),
        ("{before}", False),
        ("{after}", False),
        ("junk", False),
        ("", False),
        ("*", False),
    ],
)
@pytest.mark.parametrize("ranges", ["bytes=5-9", "bytes=99999-"])
def test_if_range(daemon: Daemon, ranges: str, value: str, holds: bool) -> None:
    """A part of the file only if it is still the one that the client has; else all of it, also instead of 416."""
    answer = daemon.get("slot/a.png", Range=ranges, If_Range=value.format(**validators(daemon)))
    if not holds:
        whole(answer)
    elif ranges == "bytes=5-9":
        part(answer, BODY, 5, 9)
    else:
        assert answer.status == 416


def test_conditions_come_before_ranges(daemon: Daemon) -> None:
    """A condition that does not hold is answered whatever the Range; one that holds lets the Range count."""
    tag = validators(daemon)["tag"]
    assert daemon.get("slot/a.png", Range="bytes=0-1", If_None_Match=tag).status == 304
    assert daemon.get("slot/a.png", Range="bytes=99999-", If_None_Match=tag).status == 304
    assert daemon.get("slot/a.png", Range="bytes=0-1", If_Match='"other"').status == 412
    part(daemon.get("slot/a.png", Range="bytes=0-1", If_Match=tag), BODY, 0, 1)


def test_conditions_on_what_is_not_there(daemon: Daemon) -> None:
    """Without a file there is no condition either: 404."""
    assert daemon.get("slot/none.png", If_None_Match="*").status == 404
    assert daemon.get("slot/none.png", If_Match="*").status == 404
