"""Resumable uploads, as clients of each version of the IETF's draft send them, and as hostile ones do.

``CUTS`` says how often uploads are cut, ``BEGUN`` how many are begun and left; ``make resume`` does it many times.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hmac_file_server.slots.secret import EXAMPLE_SECRET
from tests.support import DEADLINE, Answer, Daemon, Wire, eventually, need, put_target, v2

MakeDaemon = Callable[..., Daemon]

CUTS = int(os.environ.get("CUTS", "30"))
BEGUN = int(os.environ.get("BEGUN", "200"))
MOST_KEPT = 4096

VERSIONS = [3, 5, 6, 7, 8, 9]
RESERVED = ".hmac-file-server"
PARTIAL = "application/partial-upload"
PROBLEMS = "https://iana.org/assignments/http-problem-types#"
BODY = random.Random(7).randbytes(100_000)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon that the tests of this file share, each with slots of its own."""
    made = Daemon(tmp_path_factory.mktemp("shared"), TrustedProxies=[])
    yield made.start()
    made.stop()
    assert "Traceback" not in made.log


@pytest.fixture
def make_daemon(make_daemon: MakeDaemon) -> MakeDaemon:
    """Makes daemons that take the tests, on their own machine, for clients and not for a proxy."""
    return functools.partial(make_daemon, TrustedProxies=[])


@pytest.fixture
def slot() -> str:
    """A path that no other test uses."""
    return f"slot{next(_numbers)}/a.bin"


_numbers = itertools.count(100)


def head(
    method: str,
    target: str,
    version: int | None = 6,
    size: int | None = None,
    complete: bool | None = None,
    offset: int | None = None,
    length: int | None = None,
    **fields: str,
) -> bytes:
    """The headers of one request, in the words of a version."""
    lines = [f"{method} {target} HTTP/1.1", "Host: a"]
    if version is not None:
        lines.append(f"Upload-Draft-Interop-Version: {version}")
    if complete is not None:
        lines.append(
            f"Upload-Incomplete: ?{int(not complete)}" if version == 3 else f"Upload-Complete: ?{int(complete)}"
        )
    if offset is not None:
        lines.append(f"Upload-Offset: {offset}")
    if length is not None:
        lines.append(f"Upload-Length: {length}")
    if size is not None:
        lines.append(f"Content-Length: {size}")
    if method == "PATCH" and version not in (3, 5):
        fields.setdefault("Content_Type", PARTIAL)
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def exchange(daemon: Daemon, request: bytes, body: bytes = b"") -> Answer:
    """The final answer to one request on a connection of its own."""
    with daemon.wire() as wire:
        wire.send(request + body)
        return wire.final(head=request.startswith(b"HEAD "))


def put(daemon: Daemon, path: str, body: bytes, version: int | None = 6, complete: bool = True, **fields: str) -> Wire:
    """A connection on which a PUT of a slot has begun; nothing of its body is sent yet."""
    target = put_target(path, len(body))
    return daemon.wire().send(head("PUT", target, version, len(body), complete, **fields))


def ask(daemon: Daemon, location: str, version: int | None = 6) -> Answer:
    return exchange(daemon, head("HEAD", location, version))


def patch(
    daemon: Daemon,
    location: str,
    body: bytes,
    offset: int,
    complete: bool | None = True,
    version: int = 6,
    **fields: str,
) -> Answer:
    return exchange(daemon, head("PATCH", location, version, len(body), complete, offset, **fields), body)


def begin(
    daemon: Daemon, path: str, length: int, first: bytes = b"", version: int = 6, target: str = "", **fields: str
) -> Answer:
    """Create an upload in parts; its answer."""
    request = head("PUT", target or put_target(path, length), version, len(first), False, length=length, **fields)
    return exchange(daemon, request, first)


def begun(daemon: Daemon, path: str, length: int, first: bytes = b"", version: int = 6, **fields: str) -> str:
    """Create an upload in parts; where it can be gone on with."""
    answer = begin(daemon, path, length, first, version, **fields)
    assert answer.status == 201, answer
    return answer.headers["location"]


def break_off(wire: Wire) -> None:
    """End a request in its middle; all that was sent has been received when this returns."""
    wire.socket.shutdown(socket.SHUT_WR)
    wire.rest()
    wire.close()


def told(answer: Answer) -> dict[str, str]:
    """What an answer says of the upload."""
    names = ("location", "cache-control", "content-type", "retry-after")
    return {name: value for name, value in answer.headers.items() if name in names or name.startswith("upload-")}


def state(version: int, complete: bool, offset: int) -> dict[str, str]:
    name, value = ("upload-incomplete", not complete) if version == 3 else ("upload-complete", complete)
    return {name: f"?{int(value)}", "upload-offset": str(offset)}


def limit(version: int) -> dict[str, str]:
    """The limits that a fresh upload has, up to the seconds that have passed."""
    if version < 6:
        return {}
    return {"upload-limit": f"min-size=0, {'expires' if version == 6 else 'max-age'}=86400"}


def rounded(headers: dict[str, str]) -> dict[str, str]:
    """The same with the time that an upload has left rounded up to the hour."""
    return {name: re.sub(r"=863\d\d$", "=86400", value) for name, value in headers.items()}


def kept(daemon: Daemon, location: str = "") -> list[Path]:
    """What lies in the reserved folder, of one upload or of all."""
    return sorted((daemon.store / RESERVED).glob(f"{location.rpartition('/')[2]}*"))


def record_only(daemon: Daemon, location: str) -> bool:
    """Whether nothing is left of an upload but its small record."""
    return [(path.suffix, path.stat().st_size < 1000) for path in kept(daemon, location)] == [(".session", True)]


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def type_of_problem(answer: Answer) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer
    kind = json.loads(answer.body)["type"]
    assert kind.startswith(PROBLEMS)
    return str(kind.removeprefix(PROBLEMS))


# The whole life


@pytest.mark.parametrize("version", VERSIONS)
def test_a_broken_upload_goes_on(daemon: Daemon, version: int, slot: str) -> None:
    """An upload that broke off goes on where it was, in the wire form of each version, and is a file in the end."""
    offered = {"upload-draft-interop-version": str(version)}
    with put(daemon, slot, BODY, version) as wire:
        interim = wire.interim()
        assert interim.line == "HTTP/1.1 104 Upload Resumption Supported"
        location = interim.headers["location"]
        assert rounded(interim.headers) == offered | {"location": location} | limit(version)
        wire.send(BODY[:60_000])
        break_off(wire)
    assert re.fullmatch(rf"/upload/{re.escape(RESERVED)}/[0-9a-f]{{32}}", location)
    assert daemon.get(slot).status == 404

    answer = ask(daemon, location, version)
    length = {} if version == 3 else {"upload-length": str(len(BODY))}
    assert answer.status == 204
    assert rounded(told(answer)) == state(version, False, 60_000) | limit(version) | length | {
        "cache-control": "no-store"
    }

    answer = patch(daemon, location, BODY[60_000:], 60_000, version=version)
    assert answer.status == 201
    assert told(answer) == state(version, True, len(BODY))
    assert daemon.get(slot).body == BODY
    assert record_only(daemon, location)

    answer = ask(daemon, location, version)
    assert answer.status == 204
    assert state(version, True, len(BODY)).items() <= told(answer).items()

    # The client did not get the answer to its last part.
    answer = patch(daemon, location, b"", len(BODY), version=version)
    if version <= 7:
        assert answer.status == 400
        assert type_of_problem(answer) == "completed-upload"
    else:
        assert answer.status == 201
        assert told(answer) == state(version, True, len(BODY))

    assert exchange(daemon, head("DELETE", location, version)).status == 204
    assert ask(daemon, location, version).status == 404
    assert exchange(daemon, head("DELETE", location, version)).status == 404
    assert daemon.get(slot).body == BODY
    assert kept(daemon, location) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("first", [0, 1000])
def test_creation_in_parts(daemon: Daemon, version: int, first: int, slot: str) -> None:
    """An upload that is begun with a part, or with nothing, goes on part by part."""
    answer = begin(daemon, slot, len(BODY), BODY[:first], version)
    location = answer.headers["location"]
    assert answer.status == 201
    assert rounded(told(answer)) == state(version, False, first) | limit(version) | {"location": location}
    answer = patch(daemon, location, BODY[first:50_000], first, False, version)
    assert answer.status == (201 if version <= 6 else 204)
    assert rounded(told(answer)) == state(version, False, 50_000) | limit(version)
    answer = patch(daemon, location, b"", 50_000, False, version)
    assert state(version, False, 50_000).items() <= told(answer).items()
    # All bytes are here, but only the client says when the file is whole.
    answer = patch(daemon, location, BODY[50_000:], 50_000, False, version)
    assert state(version, False, len(BODY)).items() <= told(answer).items()
    assert daemon.get(slot).status == 404
    answer = patch(daemon, location, b"", len(BODY), True, version)
    assert (answer.status, told(answer)) == (201, state(version, True, len(BODY)))
    assert daemon.get(slot).body == BODY
    assert record_only(daemon, location)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("body", [b"", BODY])
def test_an_upload_that_does_not_break(daemon: Daemon, version: int, body: bytes, slot: str) -> None:
    """The whole file in one request is answered as a plain PUT is, and the upload is complete."""
    with put(daemon, slot, body, version) as wire:
        location = wire.interim().headers["location"]
        wire.send(body)
        answer = wire.final()
        assert answer.status == 201
        # Up to version 6 a creation's answer names the upload resource in any case.
        named = {"location": location} if version <= 6 else {}
        assert told(answer) == state(version, True, len(body)) | named
        # The connection serves the next request.
        wire.send(f"GET /upload/{slot} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert wire.answer().body == body
    assert state(version, True, len(body)).items() <= told(ask(daemon, location, version)).items()
    assert record_only(daemon, location)


def test_silence_of_older_versions(daemon: Daemon, slot: str) -> None:
    """A PATCH that does not say whether it is the last one is, in version 3, and is not, in 5 and 6."""
    location = begun(daemon, f"three-{slot}", 10, b"01234", 3)
    assert patch(daemon, location, b"56789", 5, None, 3).status == 201
    assert daemon.get(f"three-{slot}").body == b"0123456789"
    for version in (5, 6):
        location = begun(daemon, f"v{version}-{slot}", 10, b"01234", version)
        answer = patch(daemon, location, b"56789", 5, None, version)
        assert (answer.status, told(answer)["upload-complete"]) == (201, "?0")
        assert daemon.get(f"v{version}-{slot}").status == 404
    for version in (7, 8, 9):
        location = begun(daemon, f"v{version}-{slot}", 10, b"01234", version)
        assert patch(daemon, location, b"56789", 5, None, version).status == 400


def test_a_client_that_does_not_say_its_version(daemon: Daemon, slot: str) -> None:
    """On an upload resource the newest form is spoken with whoever names no version, without interim answers."""
    location = begun(daemon, slot, len(BODY), BODY[:10], 9)
    assert told(ask(daemon, location, None))["upload-limit"].startswith("min-size=0, max-age=")
    with daemon.wire() as wire:
        request = head("PATCH", location, None, len(BODY) - 10, True, 10)
        wire.send(request + BODY[10:])
        assert wire.answer().status == 201
    assert daemon.get(slot).body == BODY


def test_a_cancelled_upload(make_daemon: MakeDaemon) -> None:
    """DELETE ends an upload, also one whose request still runs, and nothing of it stays."""
    daemon = make_daemon().start()
    location = begun(daemon, "one/a.bin", len(BODY), BODY[:1000])
    assert exchange(daemon, head("DELETE", location)).status == 204
    assert daemon.files() == set()
    with put(daemon, "two/a.bin", BODY) as wire:
        location = wire.interim().headers["location"]
        wire.send(BODY[:1000])
        assert exchange(daemon, head("DELETE", location)).status == 204
        answer = wire.final()
        assert (answer.status, answer.headers["connection"]) == (409, "close")
        assert told(answer)["upload-complete"] == "?1"
    assert ask(daemon, location).status == 404
    assert patch(daemon, location, BODY, 0).status == 404
    assert daemon.files() == set()
    assert "Traceback" not in daemon.log


def test_options(make_daemon: MakeDaemon) -> None:
    """OPTIONS announces the limits, and lets browsers send and read all that resuming needs."""
    daemon = make_daemon(MaxUploadSize="1MiB").start()
    location = begun(daemon, "slot/a.bin", 10)
    answers = {
        "PUT": exchange(daemon, b"OPTIONS /upload/other/a.bin HTTP/1.1\r\nHost: a\r\n\r\n"),
        "PATCH": exchange(daemon, f"OPTIONS {location} HTTP/1.1\r\nHost: a\r\n\r\n".encode()),
    }
    for method, answer in answers.items():
        assert (answer.status, answer.headers["upload-limit"]) == (204, "max-size=1048576")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert method in answer.headers["access-control-allow-methods"].split(", ")
        assert "HEAD" in answer.headers["access-control-allow-methods"].split(", ")
        sent = answer.headers["access-control-allow-headers"].lower().split(", ")
        read = answer.headers["access-control-expose-headers"].lower().split(", ")
        for name in ("upload-complete", "upload-incomplete", "upload-offset", "upload-length"):
            assert name in sent
            assert name in read
        assert {"upload-draft-interop-version", "repr-digest", "content-digest", "content-type"} <= set(sent)
        assert {"location", "upload-limit", "accept-patch", "retry-after"} <= set(read)
    assert "DELETE" in answers["PATCH"].headers["access-control-allow-methods"]
    for answer in (ask(daemon, location), ask(daemon, location[:-1]), patch(daemon, location, b"", 5)):
        assert answer.headers["access-control-allow-origin"] == "*"
    answer = exchange(daemon, head("PUT", put_target("big/a.bin", 1 << 21), 6, 1 << 21, True))
    assert (answer.status, answer.headers["upload-limit"]) == (413, "max-size=1048576")
    answer = exchange(daemon, head("PUT", put_target("big/a.bin", 1 << 21), 6, 0, False, length=1 << 21))
    assert answer.status == 413


def test_a_prefix_of_odd_characters(make_daemon: MakeDaemon) -> None:
    """The upload resource's URL can be used as it stands, whatever UploadSubDir is."""
    daemon = make_daemon(UploadSubDir="my files/für/").start()
    target = put_target("slot/a.bin", 5, "/my%20files/f%C3%BCr/")
    answer = begin(daemon, "", 5, b"hel", target=target)
    location = answer.headers["location"]
    assert location.startswith(f"/my%20files/f%C3%BCr/{RESERVED}/")
    assert patch(daemon, location, b"lo", 3).status == 201
    assert (daemon.store / "slot/a.bin").read_bytes() == b"hello"


# What does not fit


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_offset(daemon: Daemon, version: int, slot: str) -> None:
    """A part at a wrong place is refused before its body, with the right offset, and changes nothing."""
    location = begun(daemon, slot, len(BODY), BODY[:1000], version)
    for wrong in (0, 999, 1001, len(BODY), 10**14):
        answer = exchange(daemon, head("PATCH", location, version, 5000, False, wrong))
        assert answer.status == 409
        assert type_of_problem(answer) == "mismatching-upload-offset"
        assert state(version, False, 1000).items() <= told(answer).items()
        problem = json.loads(answer.body)
        assert (problem["expected-offset"], problem["provided-offset"]) == (1000, wrong)
    assert patch(daemon, location, BODY[1000:], 1000, version=version).status == 201
    assert daemon.get(slot).body == BODY
    answer = exchange(daemon, head("PATCH", location, version, 5, True, 1000), b"evil!")
    if version <= 7:
        assert (answer.status, type_of_problem(answer)) == (400, "completed-upload")
    else:
        assert (answer.status, type_of_problem(answer)) == (409, "mismatching-upload-offset")
        assert state(version, False, len(BODY)).items() <= told(answer).items()
    assert daemon.get(slot).body == BODY


def test_lengths_that_contradict(daemon: Daemon, slot: str) -> None:
    """Lengths that do not agree with each other, or with what was signed, are refused, and nothing changes."""
    size = len(BODY)
    target = put_target(slot, size)
    answer = exchange(daemon, head("PUT", target, 6, size, True, length=size + 1))
    assert (answer.status, type_of_problem(answer)) == (400, "inconsistent-upload-length")
    answer = exchange(daemon, head("PUT", target, 6, size, False, length=size - 1))
    assert (answer.status, type_of_problem(answer)) == (400, "inconsistent-upload-length")
    assert exchange(daemon, head("PUT", target, 6, 10, False, length=size + 1)).status == 403
    assert exchange(daemon, head("PUT", target, 6, 10, False)).status == 411
    assert exchange(daemon, head("PUT", target, 6, 10, True)).status == 403
    assert daemon.get(slot).status == 404
    location = begun(daemon, slot, size, BODY[:1000])
    rest = size - 1000
    for request in (
        head("PATCH", location, 6, rest + 1, True, 1000),
        head("PATCH", location, 6, rest + 1, False, 1000),
        head("PATCH", location, 6, rest - 1, True, 1000),
        head("PATCH", location, 6, 0, True, 1000),
        head("PATCH", location, 6, 10, False, 1000, length=size + 1),
        head("PATCH", location, 6, rest, True, 1000, length=size - 1),
    ):
        answer = exchange(daemon, request)
        assert (answer.status, type_of_problem(answer)) == (400, "inconsistent-upload-length")
        assert told(answer)["upload-complete"] == "?0"
    assert told(ask(daemon, location))["upload-offset"] == "1000"
    assert patch(daemon, location, BODY[1000:], 1000, Upload_Length=str(size)).status == 201
    assert daemon.get(slot).body == BODY


def test_requests_that_say_too_little(daemon: Daemon, slot: str) -> None:
    """A PATCH needs its type, length, offset and completeness; without them it is refused, and nothing changes."""
    location = begun(daemon, slot, 10, b"01234")
    answer = patch(daemon, location, b"56789", 5, Content_Type="image/jpeg")
    assert (answer.status, answer.headers["accept-patch"]) == (415, PARTIAL)
    assert patch(daemon, location, b"56789", 5, Content_Type="").status == 415
    assert exchange(daemon, head("PATCH", location, 6, 5, True), b"56789").status == 400
    assert exchange(daemon, head("PATCH", location, 9, 5, None, 5), b"56789").status == 400
    for offset in ("five", "-5", "5.0", '"5"', "5, 5", ""):
        request = head("PATCH", location, 6, 5, True, Upload_Offset=offset)
        assert exchange(daemon, request, b"56789").status == 400
    request = head("PATCH", location, 6, None, True, 5, Transfer_Encoding="chunked")
    assert exchange(daemon, request, b"5\r\n56789\r\n0\r\n\r\n").status == 411
    assert patch(daemon, location, b"56789", 5, Content_Type="Application/Partial-Upload; a=b").status == 201
    assert daemon.get(slot).body == b"0123456789"


@pytest.mark.parametrize("version", VERSIONS)
def test_questions_that_say_too_much(daemon: Daemon, version: int, slot: str) -> None:
    """Up to version 6 a HEAD or DELETE that carries state is refused; later it does not matter."""
    location = begun(daemon, slot, 10, b"01234", version)
    expected = 400 if version <= 6 else 204
    for method in ("HEAD", "DELETE"):
        for said in ({"offset": 5}, {"complete": True}):
            answer = exchange(daemon, head(method, location, version, **said))  # type: ignore[arg-type]
            assert answer.status == (404 if method == "DELETE" and version > 6 and "complete" in said else expected)
    answer = exchange(daemon, head("HEAD", location, version, length=10))
    assert answer.status == {6: 400, 7: 404, 8: 404, 9: 404}.get(version, 204)


def test_other_methods(daemon: Daemon, slot: str) -> None:
    """An upload resource knows HEAD, GET, PATCH, DELETE and OPTIONS; it never gives out what was uploaded."""
    location = begun(daemon, slot, 10, b"01234")
    answer = exchange(daemon, head("GET", location))
    assert (answer.status, answer.body, told(answer)["upload-offset"]) == (204, b"", "5")
    answer = exchange(daemon, head("POST", location, 6, 5))
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, HEAD, GET, PATCH, DELETE")
    assert exchange(daemon, head("PUT", location, 6, 5)).status == 400  # No slot is signed for a path like that.
    assert exchange(daemon, head("DELETE", location, 6, 5), b"hello").status == 400
    target = put_target(slot, 10)
    assert exchange(daemon, head("PATCH", target, 6, 5, True, 5), b"56789").status == 405
    for suffix in (".data", ".session", "/", "/x", "%00", "/../x"):
        assert daemon.request("GET", location + suffix).status in (400, 404)
        assert exchange(daemon, head("PATCH", location + suffix, 6, 5, True, 5), b"evil!").status in (400, 404)
    assert daemon.request("GET", f"/upload/{RESERVED}/").status == 404
    assert told(ask(daemon, location))["upload-offset"] == "5"


# Digests


def test_content_digests(daemon: Daemon, slot: str) -> None:
    """A part with another digest is refused and taken back; one with the right digest is kept."""
    location = begun(daemon, slot, 10, b"01234", Content_Digest=digest(b"01234"))
    answer = patch(daemon, location, b"567", 5, False, Content_Digest=digest(b"5?7"))
    assert (answer.status, told(answer)["upload-offset"], told(answer)["upload-complete"]) == (400, "5", "?0")
    assert patch(daemon, location, b"56789", 5, True, Content_Digest=digest(b"56?89")).status == 400
    assert told(ask(daemon, location))["upload-offset"] == "5"
    assert patch(daemon, location, b"567", 5, False, Content_Digest=f"xxh64=:1234:, {digest(b'567')}").status == 201
    assert patch(daemon, location, b"89", 8, True, Content_Digest="sha-512=:AAAA:").status == 201
    assert daemon.get(slot).body == b"0123456789"
    request = head("PUT", put_target(f"other-{slot}", 10), 6, 10, True, Content_Digest=digest(b"x"))
    answer = exchange(daemon, request, b"0123456789")
    assert (answer.status, told(answer)["upload-offset"]) == (400, "0")
    assert daemon.get(f"other-{slot}").status == 404


def test_representation_digests(daemon: Daemon, slot: str) -> None:
    """A whole file with another digest than was named at its beginning is neither published nor kept."""
    for path, meant, status in ((f"good-{slot}", b"0123456789", 201), (f"bad-{slot}", b"012345678?", 400)):
        location = begun(daemon, path, 10, b"01234", Repr_Digest=digest(meant))
        answer = patch(daemon, location, b"56789", 5)
        assert (answer.status, told(answer)["upload-complete"]) == (status, "?1")
        request = head("PUT", put_target(f"whole-{path}", 10), 6, 10, True, Repr_Digest=digest(meant))
        assert exchange(daemon, request, b"0123456789").status == status
        found = 200 if status == 201 else 404
        assert [daemon.get(name).status for name in (path, f"whole-{path}")] == [found, found]
    assert ask(daemon, location).status == 404
    assert kept(daemon, location) == []


@pytest.mark.parametrize("first", [b"0123456789", None])
def test_a_representation_digest_at_the_end(daemon: Daemon, slot: str, first: bytes | None) -> None:
    """The digest of the whole file may come with its last part, and does not replace one that came before."""
    named = {} if first is None else {"Repr_Digest": digest(first)}
    for path, meant, status in ((f"good-{slot}", b"0123456789", 201), (f"bad-{slot}", b"012345678?", 400)):
        location = begun(daemon, path, 10, b"01234", **named)
        assert patch(daemon, location, b"567", 5, False, Repr_Digest=digest(b"another")).status == 201
        answer = patch(daemon, location, b"89", 8, Repr_Digest=digest(meant))
        assert (answer.status, told(answer)["upload-complete"]) == (status, "?1")
        assert daemon.get(path).status == (200 if status == 201 else 404)
    assert kept(daemon, location) == []


@pytest.mark.parametrize("name", ["Repr_Digest", "Content_Digest"])
def test_a_digest_that_is_none(daemon: Daemon, name: str, slot: str) -> None:
    """What calls itself a sha-256 and is not one is refused before the body."""
    answer = exchange(daemon, head("PUT", put_target(slot, 10), 6, 10, True, **{name: "sha-256=:AAAA:"}))
    assert answer.status == 400
    location = begun(daemon, slot, 10)
    answer = exchange(daemon, head("PATCH", location, 6, 10, True, 0, **{name: "sha-256=:AAAA:"}))
    assert answer.status == 400
    assert told(ask(daemon, location))["upload-offset"] == "0"


# Clients that know nothing of it


def raw(daemon: Daemon, request: bytes, body: bytes) -> bytes:
    """An answer as it came, but for the time."""
    with daemon.wire() as wire:
        wire.send(request.replace(b"Host: a", b"Host: a\r\nConnection: close", 1) + body)
        return re.sub(rb"Date: [^\r]*", b"Date:", wire.rest())


@pytest.mark.parametrize(
    "lines",
    [
        "Upload-Draft-Interop-Version: 4\r\nUpload-Complete: ?1\r\n",
        "Upload-Draft-Interop-Version: 99\r\nUpload-Complete: ?1\r\nUpload-Length: 5\r\n",
        "Upload-Draft-Interop-Version: 99\r\nUpload-Complete: ?0\r\nUpload-Length: 10\r\n",
        "Upload-Draft-Interop-Version: six\r\nUpload-Complete: ?1\r\n",
        "Upload-Draft-Interop-Version: 6\r\n",
        "Upload-Draft-Interop-Version: 6\r\nUpload-Complete: yes\r\n",
        "Upload-Draft-Interop-Version: 6\r\nUpload-Incomplete: ?0\r\n",
        "Upload-Draft-Interop-Version: 3\r\nUpload-Complete: ?1\r\n",
        "Upload-Complete: ?1\r\nUpload-Length: 5\r\n",
        "Upload-Complete: ?1\r\nContent-Digest: sha-256=:AAAA:\r\n",
    ],
)
def test_a_plain_put_is_as_before(daemon: Daemon, lines: str, slot: str) -> None:
    """Who names no version that is known, or does not ask, gets the answer to a plain PUT, byte for byte."""
    plain, other = (
        f"PUT {put_target(path, 5)} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: 5\r\n\r\n".encode()
        for path, more in ((f"one-{slot}", ""), (f"two-{slot}", lines))
    )
    answer = raw(daemon, plain, b"hello")
    assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
    assert raw(daemon, other, b"hello") == answer
    assert [daemon.get(f"{name}-{slot}").body for name in ("one", "two")] == [b"hello", b"hello"]


def test_a_plain_upload_that_breaks(make_daemon: MakeDaemon) -> None:
    """Of a plain upload that breaks off nothing stays."""
    daemon = make_daemon().start()
    with put(daemon, "slot/a.bin", BODY, version=None) as wire:
        wire.send(BODY[:50_000])
        break_off(wire)
    eventually(lambda: daemon.running() == 0)
    assert daemon.files() == set()


def test_expect_continue(daemon: Daemon, slot: str) -> None:
    """A client that waits for 100 is told of its upload resource first, and then to go on."""
    with put(daemon, slot, b"hello", Expect="100-continue") as wire:
        assert "location" in wire.interim().headers
        assert wire.interim().status == 100
        wire.send(b"hello")
        assert wire.answer().status == 201
    location = begun(daemon, f"other-{slot}", 5)
    with daemon.wire() as wire:
        wire.send(head("PATCH", location, 6, 5, True, 0, Expect="100-continue"))
        assert wire.interim().status == 100
        wire.send(b"hello")
        assert wire.answer().status == 201
        wire.send(head("PATCH", location, 6, 5, True, 3, Expect="100-continue"))
        assert wire.answer().status == 400
    with daemon.wire() as wire:
        wire.send(head("PUT", put_target(f"third-{slot}", 5) + "0", 6, 5, True, Expect="100-continue"))
        assert wire.answer().status == 403


def test_http_1_0(daemon: Daemon, slot: str) -> None:
    """HTTP/1.0 has no interim answers; the upload is stored all the same."""
    request = head("PUT", put_target(slot, 5), 6, 5, True).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    with daemon.wire() as wire:
        wire.send(request + b"hello")
        assert wire.answer().status == 201
    assert daemon.get(slot).body == b"hello"


def test_turned_off(make_daemon: MakeDaemon) -> None:
    """With ResumableUploads = false all is as if nobody had heard of it, also for uploads that were begun before."""
    daemon = make_daemon(ResumableUploads=False).start()
    for version in VERSIONS:
        request = head("PUT", put_target(f"v{version}/a.bin", 5), version, 5, True)
        answer = raw(daemon, request, b"hello")
        assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
        assert b"Upload-Complete:" not in answer
    assert begin(daemon, "slot/a.bin", 10, b"01234").status == 403
    assert "upload-limit" not in exchange(daemon, b"OPTIONS /upload/a HTTP/1.1\r\nHost: a\r\n\r\n").headers
    location = f"/upload/{RESERVED}/{'0' * 32}"
    assert ask(daemon, location).status == 404
    assert patch(daemon, location, b"x", 0).status in (404, 405)
    assert not any(name.startswith(RESERVED) for name in daemon.files())


# What was signed


def test_the_signed_type_is_kept(daemon: Daemon, slot: str) -> None:
    """The type that was signed is the one that the file is served with, whatever the parts were sent with."""
    for version, sent in ((3, "image/jpeg"), (6, PARTIAL), (9, PARTIAL)):
        path = f"v{version}-{slot}"
        target = f"/upload/{path}?v2={v2(path, 10, 'image/x-test')}"
        answer = begin(daemon, path, 10, b"01234", version, target, Content_Type="image/x-test")
        assert answer.status == 201
        location = answer.headers["location"]
        assert patch(daemon, location, b"56789", 5, version=version, Content_Type=sent).status == 201
        assert daemon.get(path).headers["content-type"] == "image/x-test"
        assert begin(daemon, path, 10, b"", version, target, Content_Type="image/other").status == 403


def test_a_slot_that_is_taken(daemon: Daemon, slot: str) -> None:
    """A slot that has another file keeps it: 409, and the upload is over; the same file again is 201."""
    assert daemon.put(slot, BODY).status == 201
    other = BODY[:-1] + b"?"
    location = begun(daemon, slot, len(other), other[:1000])
    answer = patch(daemon, location, other[1000:], 1000)
    assert (answer.status, told(answer)["upload-complete"]) == (409, "?1")
    assert ask(daemon, location).status == 404
    location = begun(daemon, slot, len(BODY), BODY[:1000])
    assert patch(daemon, location, BODY[1000:], 1000).status == 201
    with put(daemon, slot, BODY) as wire:
        wire.send(BODY)
        assert wire.final().status == 201
    # Of another length: before the body.
    answer = begin(daemon, slot, 10)
    assert (answer.status, told(answer)["upload-complete"]) == (409, "?1")
    answer = exchange(daemon, head("PUT", put_target(slot, 10), 6, 10, True))
    assert answer.status == 409
    assert daemon.get(slot).body == BODY
    assert record_only(daemon, location)


def test_a_slot_that_begins_anew(daemon: Daemon, slot: str) -> None:
    """A slot's upload that begins anew ends what was begun before: no more is ever kept than was signed."""
    first = begun(daemon, slot, len(BODY), BODY[:90_000])
    with put(daemon, slot, BODY) as wire:
        second = wire.interim().headers["location"]
        wire.send(BODY[:90_000])
        assert ask(daemon, first).status == 404
        third = begun(daemon, slot, len(BODY), BODY[:90_000])
        assert wire.final().status == 409
    assert ask(daemon, second).status == 404
    assert [kept(daemon, location) for location in (first, second)] == [[], []]
    assert len(kept(daemon, third)) == 2
    assert patch(daemon, third, BODY[90_000:], 90_000).status == 201
    assert daemon.get(slot).body == BODY


# Time, restarts, other daemons


def test_a_session_ends(make_daemon: MakeDaemon) -> None:
    """After SessionTimeout an upload can not be gone on with, and its files are removed."""
    daemon = make_daemon(SessionTimeout=3600).start()
    location = begun(daemon, "slot/a.bin", len(BODY), BODY[:1000])
    done = begun(daemon, "done/a.bin", 5)
    assert patch(daemon, done, b"hello", 0).status == 201
    for path in kept(daemon):
        if path.suffix == ".session":
            # An hour and a minute pass.
            record = json.loads(path.read_bytes())
            path.write_text(json.dumps(record | {"begun": record["begun"] - 3660}))
    assert [ask(daemon, which).status for which in (location, done)] == [404, 404]
    assert patch(daemon, location, BODY[1000:], 1000).status == 404
    # They go with the next sweep, which is one at the start too.
    daemon.stop()
    daemon.start()
    eventually(lambda: daemon.files() == {"done/a.bin"}, what="the files are removed")
    assert daemon.get("done/a.bin").body == b"hello"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart(make_daemon: MakeDaemon, how: int) -> None:
    """An upload that the daemon's end broke off goes on after its restart; what was told to be safe is there."""
    daemon = make_daemon(ShutdownTimeout=1).start()
    location = begun(daemon, "slot/a.bin", len(BODY), BODY[:20_000])
    waiting = begun(daemon, "other/a.bin", 10, b"01234")
    with daemon.wire() as wire:
        wire.send(head("PATCH", location, 6, len(BODY) - 20_000, True, 20_000) + BODY[20_000:70_000])
        eventually(lambda: daemon.running() == 1)
        daemon.stop(how)
        wire.rest()
    daemon.start()
    offset = int(told(ask(daemon, location))["upload-offset"])
    if how == signal.SIGKILL:
        assert 20_000 <= offset <= 70_000
    else:
        assert offset > 20_000
    assert patch(daemon, location, BODY[offset:], offset).status == 201
    assert daemon.get("slot/a.bin").body == BODY
    assert patch(daemon, waiting, b"56789", 5).status == 201
    assert daemon.get("other/a.bin").body == b"0123456789"
    assert record_only(daemon, location)
    assert record_only(daemon, waiting)


def test_another_daemon(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """An upload goes on at another daemon of the same StoreDir, which ends the request that the first still has."""
    one = make_daemon().start()
    two = make_daemon(tmp_path / "two", StoreDir=str(one.store)).start()
    with put(one, "slot/a.bin", BODY) as wire:
        location = wire.interim().headers["location"]
        wire.send(BODY[:70_000])
        answer = ask(two, location)
        offset = int(told(answer)["upload-offset"])
        assert 0 <= offset <= 70_000
        assert wire.final().status == 409
    assert patch(two, location, BODY[offset:80_000], offset, False).status == 201
    with one.wire() as wire:
        wire.send(head("PATCH", location, 6, 20_000, True, 80_000, Expect="100-continue"))
        assert wire.interim().status == 100  # It has the upload now.
        assert exchange(two, head("PATCH", location, 6, 20_000, True, 80_000), BODY[80_000:]).status == 201
        assert wire.final().status == 409
    for daemon in (one, two):
        assert told(ask(daemon, location))["upload-complete"] == "?1"
        assert daemon.get("slot/a.bin").body == BODY
    # And DELETE.
    with put(one, "other/a.bin", BODY) as wire:
        location = wire.interim().headers["location"]
        assert exchange(two, head("DELETE", location)).status == 204
        assert wire.final().status == 409
    assert ask(one, location).status == 404
    assert kept(one, location) == []


def test_another_worker(make_daemon: MakeDaemon) -> None:
    """An upload goes on at whichever worker its next request reaches, while earlier requests still hang at others."""
    daemon = make_daemon(Workers=3).start()
    hanging = [put(daemon, "slot/a.bin", BODY)]
    location = hanging[0].interim().headers["location"]
    offset = 0
    for step in range(6):
        hanging[-1].send(BODY[offset : offset + 10_000])
        before, offset = offset, int(told(ask(daemon, location))["upload-offset"])
        assert before <= offset <= before + 10_000
        assert hanging[-1].final().status == 409
        if step < 5:
            request = head("PATCH", location, 6, len(BODY) - offset, True, offset, Expect="100-continue")
            hanging.append(daemon.wire().send(request))
            assert hanging[-1].interim().status == 100  # It has the upload now.
    assert patch(daemon, location, BODY[offset:], offset).status == 201
    assert daemon.get("slot/a.bin").body == BODY
    assert record_only(daemon, location)
    for wire in hanging:
        wire.close()
    assert "Traceback" not in daemon.log


def test_a_slot_that_begins_anew_elsewhere(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A slot's upload that begins anew at another daemon ends the one that still runs at the first."""
    one = make_daemon().start()
    two = make_daemon(tmp_path / "two", StoreDir=str(one.store)).start()
    with put(one, "slot/a.bin", BODY) as wire:
        first = wire.interim().headers["location"]
        wire.send(BODY[:70_000])
        second = begun(two, "slot/a.bin", len(BODY), BODY[:10])
        assert wire.final().status == 409
    assert ask(one, first).status == 404
    assert patch(one, second, BODY[10:], 10).status == 201
    assert two.get("slot/a.bin").body == BODY


def test_a_newer_append_ends_an_older_one(daemon: Daemon, slot: str) -> None:
    """The newest request has the upload: a HEAD or PATCH ends the PATCH that hangs, and its bytes count."""
    location = begun(daemon, slot, len(BODY), BODY[:10_000])
    with daemon.wire() as first, daemon.wire() as second:
        first.send(head("PATCH", location, 6, len(BODY) - 10_000, True, 10_000))
        eventually(lambda: daemon.running() == 1)
        second.send(head("PATCH", location, 6, len(BODY) - 10_000, True, 10_000) + BODY[10_000:30_000])
        answer = first.final()
        assert (answer.status, answer.headers["connection"]) == (409, "close")
        # What the first one still sends goes nowhere.
        with contextlib.suppress(OSError):
            first.send(b"?" * 10_000)
        answer = eventually(lambda: ask(daemon, location))
        offset = int(told(answer)["upload-offset"])
        assert 10_000 <= offset <= 30_000
        assert second.final().status == 409
    assert patch(daemon, location, BODY[offset:], offset).status == 201
    assert daemon.get(slot).body == BODY


# Progress


def test_progress_is_on_the_disk(make_daemon: MakeDaemon) -> None:
    """An offset that was told while the upload ran is safe: kill -9 right then, and it is still there."""
    daemon = make_daemon().start()
    size = 20 << 20
    body = random.Random(1).randbytes(size)
    with put(daemon, "slot/a.bin", body, 6) as wire:
        location = wire.interim().headers["location"]
        with ThreadPoolExecutor() as pool:
            sent = pool.submit(wire.send, body[: size - 1000])
            interim = wire.interim()
            daemon.stop(signal.SIGKILL)
            assert isinstance(sent.exception(), OSError | None)
    assert interim.headers.keys() == {"upload-draft-interop-version", "upload-offset"}
    offset = int(interim.headers["upload-offset"])
    # 16 MiB, or what has come within some seconds.
    assert 0 < offset <= size
    data = next(path for path in kept(daemon) if path.suffix == ".data")
    assert data.read_bytes()[:offset] == body[:offset]
    record = json.loads(data.with_suffix(".session").read_bytes())
    assert record["safe"] >= offset
    daemon.start()
    safe = int(told(ask(daemon, location))["upload-offset"])
    assert safe >= offset
    assert patch(daemon, location, body[safe:], safe).status == 201
    assert daemon.get("slot/a.bin").body == body


def test_who_is_told_of_progress(daemon: Daemon, slot: str) -> None:
    """On a PATCH, too, progress is told, without a Location; not in version 3, nor to who names no version."""
    size = 20 << 20
    body = bytes(size)
    for begun_in, version, is_told in ((3, 3, False), (9, None, False), (9, 9, True)):
        location = begun(daemon, f"{begun_in}-{version}-{slot}", size, b"", begun_in)
        with daemon.wire() as wire:
            wire.send(head("PATCH", location, version, size, True, 0) + body)
            answers = [wire.answer()]
            while answers[-1].status == 104:
                answers.append(wire.answer())
        assert answers.pop().status == 201
        assert bool(answers) == is_told
        assert all(answer.headers.keys() == {"upload-draft-interop-version", "upload-offset"} for answer in answers)


# A hundred cuts


def cut(wire: Wire, chance: random.Random) -> None:
    """End a connection, in one of the ways that a network has."""
    with contextlib.suppress(OSError):
        way = chance.randrange(3)
        if way == 0:
            wire.socket.shutdown(socket.SHUT_WR)
            wire.rest()
        elif way == 1:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


def test_random_cuts(make_daemon: MakeDaemon) -> None:
    """However often and wherever an upload is cut, it ends byte for byte right; no offset that was told goes back."""
    daemon = make_daemon(MinFreeSpace=0).start()
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    cuts = kills = uploads = backtracked = 0
    while cuts < CUTS:
        uploads += 1
        path = f"cut{uploads}/a.bin"
        body = chance.randbytes(chance.randrange(1, 3 << 20))
        version = chance.choice(VERSIONS)
        wire = put(daemon, path, body, version)
        location = wire.interim().headers["location"]
        offset = 0
        while True:
            # Most of what is left is cut somewhere, so that a file is cut several times.
            end = chance.randrange(offset, len(body) + 1) if cuts < CUTS else len(body)
            if end < len(body):
                cuts += 1
                if cuts % 10 == 0:
                    kills += 1
                    wire.send(body[offset:end])
                    daemon.stop(signal.SIGKILL)
                    wire.close()
                    daemon.start()
                else:
                    wire.send(body[offset:end])
                    cut(wire, chance)
                answer = ask(daemon, location, version)
                assert answer.status == 204, answer
                before, offset = offset, int(told(answer)["upload-offset"])
                assert before <= offset <= end
                backtracked += offset < end
                request = head("PATCH", location, version, len(body) - offset, True, offset)
                wire = daemon.wire().send(request)
                continue
            wire.send(body[offset:])
            answer = wire.final()
            assert answer.status == 201, answer
            wire.close()
            break
        assert daemon.get(path).body == body
        assert record_only(daemon, location)
    print(f"{cuts} cuts ({kills} by kill -9) of {uploads} uploads, {backtracked} times bytes had to be sent again")
    assert "Traceback" not in daemon.log


# Hostile clients


def test_offsets_that_lie(daemon: Daemon, slot: str) -> None:
    """Whatever offset a client claims, only the right one is taken, and the file is right in the end."""
    chance = random.Random(3)
    location = begun(daemon, slot, len(BODY))
    offset = 0
    while offset < len(BODY):
        lie = chance.choice([0, 1, offset - 1, offset + 1, len(BODY), len(BODY) + 1, 10**15 - 1, 10**15, -1])
        if lie != offset:
            answer = exchange(daemon, head("PATCH", location, 6, 7, False, lie), b"garbage")
            assert answer.status in (400, 409)
        end = min(len(BODY), offset + chance.randrange(1, 20_000))
        assert patch(daemon, location, BODY[offset:end], offset, end == len(BODY)).status == 201
        offset = end
    assert daemon.get(slot).body == BODY


def test_appends_at_once(daemon: Daemon, slot: str) -> None:
    """However many requests append at once, no byte is written twice or left out."""
    size = 2_000_000
    body = random.Random(5).randbytes(size)
    location = begun(daemon, slot, size)

    end_at = time.monotonic() + 3 * DEADLINE

    def append() -> None:
        while True:
            assert time.monotonic() < end_at
            try:
                answer = ask(daemon, location)
                if told(answer)["upload-complete"] == "?1":
                    return
                offset = int(told(answer)["upload-offset"])
                end = min(size, offset + 300_000)
                answer = patch(daemon, location, body[offset:end], offset, end == size)
                assert answer.status in (201, 409, 400), answer
            except (OSError, EOFError):
                continue

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(append) for _ in range(4)]:
            done.result()
    assert daemon.get(slot).body == body


def test_a_stolen_url(daemon: Daemon, slot: str) -> None:
    """Another slot's URL lets nobody write more than was signed, write elsewhere, or read what is there."""
    theirs = begun(daemon, f"theirs-{slot}", 10, b"01234", Repr_Digest=digest(b"0123456789"))
    mine = put_target(f"mine-{slot}", 1000).partition("?")[2]
    for request in (
        head("PATCH", f"{theirs}?{mine}", 6, 995, True, 5),
        head("PATCH", f"{theirs}?{mine}", 6, 6, True, 5, length=11),
        head("PUT", f"{theirs}?{mine}", 6, 1000, True),
        head("PATCH", f"/upload/mine-{slot}?{mine}", 6, 5, True, 5),
        head("PUT", f"/upload/theirs-{slot}?{mine}", 6, 1000, True),
    ):
        assert exchange(daemon, request).status in (400, 403, 405)
    assert exchange(daemon, head("GET", theirs)).body == b""
    # Garbage does not become the file of whoever said what it must be.
    assert patch(daemon, theirs, b"evil!", 5).status == 400
    assert [daemon.get(f"{name}-{slot}").status for name in ("theirs", "mine")] == [404, 404]
    assert kept(daemon, theirs) == []


def test_patch_after_completion(daemon: Daemon, slot: str) -> None:
    """A complete upload takes nothing more, wherever it is said to go."""
    for version in VERSIONS:
        path = f"v{version}-{slot}"
        location = begun(daemon, path, 10, b"01234", version)
        assert patch(daemon, location, b"56789", 5, version=version).status == 201
        before = (daemon.store / path).stat()
        for offset, body, complete in ((10, b"x", False), (5, b"56789", True), (0, b"x" * 10, True), (10, b"", False)):
            answer = patch(daemon, location, body, offset, complete, version)
            assert answer.status in (400, 409)
        assert (daemon.store / path).stat() == before
        assert told(ask(daemon, location, version))["upload-offset"] == "10"


def test_tokens_are_not_logged(daemon: Daemon, slot: str) -> None:
    """The log never has a whole token, with which its reader could go on with the upload, however it is asked for."""
    location = begun(daemon, slot, 10, b"01234")
    token = location.rpartition("/")[2]
    for target in (
        location,
        f"{location}/",
        f"{location}/x/y",
        f"{location}?a=b",
        f"http://a{location}",
        f"/{location}",
    ):
        for method in ("HEAD", "GET", "PUT", "DELETEX", "OPTIONS"):
            exchange(daemon, head(method, target, 6, 0))
    exchange(daemon, head("PATCH", location, 6, 7, True, 9), b"")
    assert patch(daemon, location, b"56789", 5).status == 201
    eventually(lambda: daemon.log.count(f"PATCH /upload/{RESERVED}/{token[:6]}...") == 2)
    assert token not in daemon.log


def test_begun_and_left(make_daemon: MakeDaemon) -> None:
    """Uploads that are begun and left cost little and are counted, up to a bound; others are served all the while."""
    daemon = make_daemon().start()
    statuses = [begin(daemon, f"left{number}/a.bin", 1000, b"x").status for number in range(BEGUN)]
    expected = statuses.count(201)
    # Now and then the bound is reached a little early, for what begins during a count is counted twice; never late.
    few = 100
    assert min(BEGUN, MOST_KEPT - few) <= expected <= MOST_KEPT
    assert set(statuses[: MOST_KEPT - few]) == {201}
    assert set(statuses) <= {201, 503}
    eventually(lambda: daemon.metric("hmac_file_server_sessions_kept") == expected)
    assert len(kept(daemon)) == 2 * expected
    assert daemon.put("good/a.bin", b"hello").status == 201
    daemon.stop()
    daemon.start()
    eventually(lambda: daemon.metric("hmac_file_server_sessions_kept") == expected)
    with put(daemon, "good/b.bin", BODY) as wire:
        wire.send(BODY)
        assert wire.final().status == 201
    print(f"{BEGUN} begun and left, {expected} kept")
    assert "Traceback" not in daemon.log


def test_the_bound(make_daemon: MakeDaemon) -> None:
    """With as many uploads kept as can be, a whole upload is taken as a plain one, and one in parts is put off."""
    daemon = make_daemon()
    (daemon.store / RESERVED).mkdir(parents=True, mode=0o700)
    left = [daemon.store / RESERVED / f"{number:032x}.data" for number in range(MOST_KEPT)]
    for path in left:
        path.touch()
    daemon.start()
    eventually(lambda: daemon.metric("hmac_file_server_sessions_kept") == MOST_KEPT)
    with put(daemon, "slot/a.bin", BODY) as wire:
        wire.send(BODY)
        answer = wire.answer()
        assert (answer.status, told(answer)) == (201, {})
    assert daemon.get("slot/a.bin").body == BODY
    answer = begin(daemon, "other/a.bin", 10, b"01234")
    assert (answer.status, answer.headers["retry-after"]) == (503, "60")
    left[0].unlink()
    eventually(lambda: daemon.metric("hmac_file_server_sessions_kept") < MOST_KEPT)
    assert begin(daemon, "other/a.bin", 10, b"01234").status == 201


def test_complete_uploads_do_not_count(make_daemon: MakeDaemon) -> None:
    """What is complete waits for nothing: it is not counted among the uploads that do."""
    daemon = make_daemon().start()
    begun(daemon, "left/a.bin", 10)
    for number in range(3):
        assert patch(daemon, begun(daemon, f"done{number}/a.bin", 5), b"hello", 0).status == 201
    eventually(lambda: daemon.metric("hmac_file_server_sessions_kept") == 1)
    daemon.stop()
    daemon.start()
    eventually(lambda: daemon.metric("hmac_file_server_sessions_kept") == 1)


def test_metrics(make_daemon: MakeDaemon) -> None:
    """Whole files count as uploads, requests that went on with one as resumed, and broken ones as broken off."""
    daemon = make_daemon().start()
    with put(daemon, "slot/a.bin", BODY) as wire:
        location = wire.interim().headers["location"]
        wire.send(BODY[:50_000])
        break_off(wire)
    eventually(lambda: daemon.metric("hmac_file_server_upload_errors_total", '{reason="broken_off"}') == 1)
    # One that begins while they are counted may be counted twice until the next time.
    eventually(lambda: daemon.metric("hmac_file_server_sessions_kept") == 1)
    assert daemon.metric("hmac_file_server_uploads_total") == 0
    assert patch(daemon, location, BODY[50_000:60_000], 50_000, False).status == 201
    assert patch(daemon, location, BODY[60_000:], 60_000).status == 201
    assert patch(daemon, location, b"x", 3).status == 400
    eventually(lambda: daemon.metric("hmac_file_server_uploads_total") == 1)
    assert daemon.metric("hmac_file_server_uploads_resumed_total") >= 2
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="complete"}') == 1


def test_metrics_that_need_a_right(make_daemon: MakeDaemon) -> None:
    """Who has signed nothing and knows no upload is counted as refused; who asks again stores nothing."""
    daemon = make_daemon().start()
    nowhere = f"/upload/{RESERVED}/{'0' * 32}"
    location = begun(daemon, "slot/a.bin", 5, b"", 9)
    assert patch(daemon, location, b"hello", 0, version=9).status == 201
    for _ in range(3):
        assert patch(daemon, nowhere, b"x", 0).status == 404
        assert patch(daemon, nowhere, b"", 0).status == 404
        assert patch(daemon, location, b"", 5, version=9).status == 201
    eventually(lambda: daemon.metric("hmac_file_server_refusals_total", '{reason="not_found"}') == 6)
    eventually(lambda: daemon.metric("hmac_file_server_uploads_resumed_total") == 4)
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="not_found"}') == 0
    assert daemon.metric("hmac_file_server_uploads_total") == 1


def test_space(make_daemon: MakeDaemon) -> None:
    """What is kept counts against the free space, and no more is begun than fits."""
    daemon = make_daemon().start()
    size = 10**15 - 1
    answer = begin(daemon, "slot/a.bin", size)
    assert answer.status == 507
    assert exchange(daemon, head("PUT", put_target("slot/a.bin", size), 6, size, True)).status == 507
    assert daemon.files() == set()
    free = eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes"))
    assert free > 0
    with put(daemon, "slot/a.bin", bytes(64 << 20)) as wire:
        wire.interim()
        wire.send(bytes(1 << 20))
        break_off(wire)
    data = eventually(lambda: [path for path in kept(daemon) if path.suffix == ".data"])[0]
    # The room that had been reserved for the rest is free again; what came is kept.
    eventually(lambda: data.stat().st_blocks * 512 < 2 << 20)
    eventually(lambda: data.stat().st_size == 1 << 20)


def test_room_that_nobody_signed_for(daemon: Daemon, slot: str) -> None:
    """However much a PATCH without a right to anything says that it brings, nobody else lacks room for that."""
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes"))
    location = begun(daemon, slot, 10, b"01234")
    with contextlib.ExitStack() as stack:
        for target in (f"/upload/{RESERVED}/{'0' * 32}", location):
            wire = stack.enter_context(daemon.wire())
            wire.send(head("PATCH", target, 6, 10**15 - 1, True, 5))
            assert wire.final().status == (400 if target == location else 404)
            assert daemon.put(f"other-{slot}", b"hello").status == 201


def test_a_client_that_waits_long(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A stalled request is ended by UploadTimeout as ever; what came of it is kept."""
    daemon = make_daemon(UploadTimeout=1).start()
    with daemon.wire() as wire:
        wire.send(head("PUT", put_target("slot/a.bin", len(BODY)), 6, len(BODY), True) + BODY[:50_000])
        location = wire.interim().headers["location"]
        wire.rest()
    eventually(lambda: daemon.metric("hmac_file_server_upload_errors_total", '{reason="timeout"}') == 1)
    # On a machine that is busy it may be less than what was sent.
    came = daemon.metric("hmac_file_server_received_bytes_total")
    offset = int(told(ask(daemon, location))["upload-offset"])
    assert 0 < offset == came
    # With more patience, for the same reason.
    other = make_daemon(tmp_path / "other", StoreDir=str(daemon.store)).start()
    assert patch(other, location, BODY[offset:], offset).status == 201
    assert daemon.get("slot/a.bin").body == BODY


def test_the_lines_of_the_manual(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """The shell lines of docs/resuming.rst do what the text around them says."""
    need("curl", "openssl")
    daemon = make_daemon(TrustedProxies=["127.0.0.1"], ProxiesPass104=True, Secret=EXAMPLE_SECRET.decode()).start()
    manual = (Path(__file__).parents[2] / "docs/resuming.rst").read_text()
    lines = [
        line[4:]
        for line in manual.partition("Try it\n")[2].partition("What to send\n")[0].split("\n")
        if line[:4] == "    "
    ]
    script = "\n".join(lines).replace("http://[::1]:8080", f"http://127.0.0.1:{daemon.port}")
    at_once = next(line for line in lines if "--limit-rate" in line)
    # Ctrl-C when it is seen.
    seen = "until grep -q '104 Upload' at-once.txt; do sleep 0.05; done; kill $!; wait $! || true"
    script = script.replace(at_once, f"{at_once} 2> at-once.txt &\n{seen}")
    script = re.sub(r"(?m)^URL=.*# what Location said$", "", script)
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE * 3,
    )
    assert done.returncode == 0, done.stderr
    # Of the first try: where it could be gone on with.
    assert "104 Upload Resumption Supported" in (tmp_path / "at-once.txt").read_text()
    statuses = re.findall(r"^HTTP/1.1 (\d+)", done.stdout, re.MULTILINE)
    # curl asks for 100 Continue before it sends a large part.
    assert [status for status in statuses if status not in ("100", "104")] == ["204", "201", "201", "204"]
    assert "the same" in done.stdout
