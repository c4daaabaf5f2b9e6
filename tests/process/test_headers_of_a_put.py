"""Request headers that change what a PUT means (RFC 9110): answered as they say, or refused; never half obeyed."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.support import Answer, Daemon, put_target

BODY = b"hello"
LONG = os.urandom(3 << 20)
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all of these tests; each uses paths of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("headers"), MinFreeSpace=0).start()
    try:
        yield daemon
        assert "Traceback" not in daemon.log
    finally:
        daemon.stop()


@pytest.fixture
def path() -> str:
    return f"{os.urandom(8).hex()}/a.bin"


def stored(daemon: Daemon, path: str) -> bytes | None:
    file = daemon.store / path
    return file.read_bytes() if file.exists() else None


def sha256(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


@pytest.mark.parametrize(
    "value", ["bytes 0-4/5", "bytes 0-4/10", "bytes 5-9/10", "bytes 0-4/*", "bytes */5", "items 0-4/5", "nonsense", ""]
)
def test_content_range(shared: Daemon, path: str, value: str) -> None:
    """A part is not stored as if it were the file (section 14.5), whatever part it is."""
    answer = shared.put(path, BODY, Content_Range=value)
    assert answer.status == 400
    assert stored(shared, path) is None
    assert shared.put(path, BODY).status == 201


def test_content_range_before_the_body(shared: Daemon, path: str) -> None:
    """The refusal does not wait for the body, which it does not call for."""
    head = f"PUT {put_target(path, len(LONG))} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(LONG)}\r\n"
    with shared.wire() as wire:
        wire.send(f"{head}Content-Range: bytes 0-9/20\r\nExpect: 100-continue\r\n\r\n".encode())
        assert wire.answer().status == 400


@pytest.mark.parametrize("value", ["gzip", "br", "zstd", "identity, gzip", "aes128gcm", "x"])
def test_content_encoding(shared: Daemon, path: str, value: str) -> None:
    """What would have to be decoded by its reader, who is not told, is refused with what is taken (15.5.16)."""
    answer = shared.put(path, BODY, Content_Encoding=value)
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")
    assert stored(shared, path) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Encoding": "identity"},
        {"Content_Encoding": ""},
        {"Range": "bytes=0-1"},
        {"Range": "bytes=9-", "If_Range": '"x"'},
        {"If_Modified_Since": DATE},
        {"If_None_Match": '"x"'},
        {"If_None_Match": "*"},
        {"If_Unmodified_Since": DATE},
        {"Accept": "text/html", "Accept_Encoding": "identity;q=0, gzip"},
        {"Prefer": "respond-async, return=representation"},
        {"TE": "trailers", "Trailer": "Digest"},
        {"Content_Language": "de", "Content_Location": "/other", "Content_Disposition": "form-data"},
        {"Expires": "Thu, 01 Jan 1970 00:00:00 GMT", "Cookie": "a=b", "Authorization": "Basic YTpi"},
        {"Content_Digest": "sha-512=:AAAA:, md5=:AAAA:"},
        {"Content_Digest": "sha-256=:AAAA:", "Repr_Digest": "sha-256=AAAA, ,"},
        {"Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAAQAAP__"},
    ],
)
def test_what_changes_nothing(shared: Daemon, path: str, headers: dict[str, str]) -> None:
    """What says nothing against a new file, or has no meaning for a PUT, is passed over."""
    assert shared.put(path, BODY, **headers).status == 201
    assert stored(shared, path) == BODY


@pytest.mark.parametrize("body", [BODY, LONG], ids=["small", "large"])
@pytest.mark.parametrize("other", [True, False], ids=["other bytes", "the same bytes"])
@pytest.mark.parametrize(
    "headers",
    [
        {"If_None_Match": "*"},
        {"If_None_Match": "$TAG"},
        {"If_Match": '"x"'},
        {"If_Match": "W/$TAG"},
        {"If_Unmodified_Since": DATE},
    ],
)
def test_a_condition_that_fails(shared: Daemon, path: str, body: bytes, other: bool, headers: dict[str, str]) -> None:
    """A condition comes first: 412, also where the very bytes are there, and the file stays as it is."""
    assert shared.put(path, body).status == 201
    tag = shared.get(path).headers["etag"]
    headers = {name: value.replace("$TAG", tag) for name, value in headers.items()}
    assert shared.put(path, body[::-1] if other else body, **headers).status == 412
    assert stored(shared, path) == body
    assert shared.get(path).headers["etag"] == tag


@pytest.mark.parametrize("headers", [{"If_Match": "*"}, {"If_Match": '"x"'}])
def test_a_file_that_must_be_there(shared: Daemon, path: str, headers: dict[str, str]) -> None:
    """If-Match never makes a new file."""
    assert shared.put(path, BODY, **headers).status == 412
    assert stored(shared, path) is None
    assert not (shared.store / path).parent.exists()


@pytest.mark.parametrize("headers", [{"If_Match": "*"}, {"If_Match": "$TAG"}, {"If_None_Match": '"x"'}])
def test_a_condition_that_holds(shared: Daemon, path: str, headers: dict[str, str]) -> None:
    """Then a PUT is as any other: 201 for the very bytes, 409 for others."""
    assert shared.put(path, BODY).status == 201
    tag = shared.get(path).headers["etag"]
    headers = {name: value.replace("$TAG", tag) for name, value in headers.items()}
    assert shared.put(path, BODY, **headers).status == 201
    assert shared.put(path, b"jello", **headers).status == 409
    assert stored(shared, path) == BODY


def test_a_condition_before_the_body(shared: Daemon, path: str) -> None:
    """A client that waits for 100 Continue is spared a body that is not to be stored."""
    assert shared.put(path, LONG).status == 201
    head = f"PUT {put_target(path, len(LONG))} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(LONG)}\r\n"
    with shared.wire() as wire:
        wire.send(f"{head}If-None-Match: *\r\nExpect: 100-continue\r\n\r\n".encode())
        assert wire.answer().status == 412


def test_one_of_many_makes_the_file(shared: Daemon, path: str) -> None:
    """Of several clients that put the same bytes under If-None-Match: * at once, one alone is told that it did."""
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(shared.put(path, LONG, If_None_Match="*"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [201, *[412] * 5]
    assert stored(shared, path) == LONG


@pytest.mark.parametrize("body", [b"", BODY, LONG], ids=["empty", "small", "large"])
@pytest.mark.parametrize("name", ["Content_Digest", "Repr_Digest"])
def test_a_digest(shared: Daemon, path: str, body: bytes, name: str) -> None:
    """A file that is not the one that the client's digest is of is not stored (RFC 9530)."""
    for wrong in (sha256(body + b"x"), f"sha-512=:AAAA:, {sha256(b'other')}"):
        assert shared.put(path, body, **{name: wrong}).status == 400
        assert stored(shared, path) is None
    assert shared.put(path, body, **{name: f"md5=:AAAA:, {sha256(body)}"}).status == 201
    assert stored(shared, path) == body


def test_two_digests(shared: Daemon, path: str) -> None:
    """Both are looked at."""
    assert shared.put(path, BODY, Content_Digest=sha256(BODY), Repr_Digest=sha256(b"other")).status == 400
    assert shared.put(path, BODY, Content_Digest=sha256(b"other"), Repr_Digest=sha256(BODY)).status == 400
    assert shared.put(path, BODY, Content_Digest=sha256(BODY), Repr_Digest=sha256(BODY)).status == 201


def test_a_digest_of_what_comes_slowly(shared: Daemon, path: str) -> None:
    """A large body that comes in pieces, some of them past us through the kernel, is looked at as a whole."""
    for said, status in ((LONG[:-1] + bytes([LONG[-1] ^ 1]), 400), (LONG, 201)):
        with shared.wire() as wire:
            head = f"PUT {put_target(path, len(LONG))} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(LONG)}\r\n"
            wire.send(f"{head}Content-Digest: {sha256(said)}\r\n\r\n".encode())
            for start in range(0, len(LONG), 100_000):
                wire.send(LONG[start : start + 100_000])
            assert wire.answer().status == status
    assert stored(shared, path) == LONG


def test_conditions_of_a_resumable_upload(shared: Daemon, path: str) -> None:
    """Where an upload can be resumed its first request obeys the same conditions."""
    assert shared.put(path, BODY).status == 201
    resumable = {"Upload_Draft_Interop_Version": "6", "Upload_Complete": "?1"}
    with shared.wire() as wire:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in resumable.items()]
        head = [f"PUT {put_target(path, 5)} HTTP/1.1", "Host: a", "Content-Length: 5", "If-None-Match: *", *lines]
        wire.send("\r\n".join([*head, "", ""]).encode() + BODY)
        assert wire.final().status == 412
    assert stored(shared, path) == BODY


def test_last_modified_is_never_after_date(shared: Daemon, path: str) -> None:
    """A file from before the clock was set back has the time of the answer, from the disk and from memory."""
    assert shared.put(path, BODY).status == 201
    os.utime(shared.store / path, (4_000_000_000, 4_000_000_000))
    for method in ("GET", "GET", "HEAD"):
        said = shared.request(method, f"/upload/{path}").headers
        assert parsedate_to_datetime(said["last-modified"]) <= parsedate_to_datetime(said["date"])
