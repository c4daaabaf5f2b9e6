"""Each row of the table of answers, as bytes on the wire and on the disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest

from hmac_file_server.slots.secret import EXAMPLE_SECRET
from tests.support import SECRET, Answer, Daemon, Wire, eventually, missing, put_target, v, v2

MakeDaemon = Callable[..., Daemon]

SLOT = "b7f2c9e0-5d3a-4c11-9a57-0f2d6a1b8c44/photo.jpg"
SIZE = 1048576
"""The size of the vectors' file; also MaxUploadSize here."""
V = "ed6988dfde2293db2d8f60a4f540b14452298aadb7eb04daec431beef6f3c2e3"
V2_JPEG = "31dd434bc9dcd3bfd5d4798cbef8dda6d86502fcad2bdc224140e9fb9403cfb6"
V2_UNKNOWN = "35554e871c49db8b12f7d68d37ff50efc442580cbdca1112c2d60b6931825797"
V_NO_SIZE = "8b712a6a1f7b1f3170588172a776bb3b4e70078792a5eff331cdf4a40880f046"
V_PATH_ONLY = "2599e21c0167967b9e1264bdd12dbe624cd0f501a15e138cf50197c797a3bcac"
DELETE_TOKEN = "d6d0cdc56476cfb62f309a76975ae0ac035b30a5fbc6db19ed2836fb0094e775"

EVERYWHERE = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
PREFLIGHT = ("access-control-allow-methods", "access-control-allow-headers", "access-control-max-age")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that need no settings of their own; each uses paths of its own."""
    # The second secret is that of the contract's test vectors.
    secrets = [SECRET, EXAMPLE_SECRET.decode()]
    daemon = Daemon(tmp_path_factory.mktemp("answers"), Secret=secrets, MaxUploadSize=SIZE, MinFreeSpace=0).start()
    try:
        yield daemon
        assert "Traceback" not in daemon.log
    finally:
        daemon.stop()


@pytest.fixture
def slot(shared: Daemon) -> Iterator[Path]:
    """The vectors' slot, empty again after the test."""
    file = shared.store / SLOT
    yield file
    file.unlink(missing_ok=True)


def untouched(daemon: Daemon, name: str) -> bool:
    """Whether nothing with a name is in the store, neither file nor folder."""
    return not any(name in str(place) for place in daemon.store.rglob("*"))


def exchange(daemon: Daemon, request: bytes) -> tuple[bytes, dict[str, list[str]], bytes]:
    """Send bytes; the status line, each header with all its values, and whatever follows until the end."""
    with daemon.wire() as wire:
        head, _, body = wire.send(request).rest().partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    headers: dict[str, list[str]] = {}
    for header in lines:
        name, _, value = header.decode("latin-1").partition(": ")
        headers.setdefault(name.lower(), []).append(value)
    return line, headers, body


# PUT: what is stored


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        (f"v={V}", {}),
        (f"v={V.upper()}", {"Content_Type": "any/thing"}),
        (f"v2={V2_JPEG}", {"Content_Type": "image/jpeg"}),
        (f"v2={V2_JPEG}", {"Content_Type": "image/jpeg; name=photo.jpg"}),
        (f"v2={V2_JPEG}", {}),
        (f"token={V2_JPEG}", {"Content_Type": ""}),
        (f"token={V2_JPEG}", {"Content_Type": "image/jpeg"}),
        (f"v2={V2_UNKNOWN}", {"Content_Type": "application/octet-stream"}),
        (f"v2={V2_UNKNOWN}", {"Content_Type": ""}),
        (f"v2={V2_UNKNOWN}", {}),
        (f"token={V2_UNKNOWN}", {}),
        (f"v2={V2_JPEG}&token=x&v=x", {"Content_Type": "image/jpeg"}),
        (f"v={V}&unknown=1", {}),
    ],
)
def test_the_vectors_are_stored(shared: Daemon, slot: Path, query: str, headers: dict[str, str]) -> None:
    """A PUT with a signature of the contract's test vectors is answered with 201 and stored byte for byte."""
    body = os.urandom(SIZE)
    assert shared.request("PUT", f"/upload/{SLOT}?{query}", body, **headers).status == 201
    assert slot.read_bytes() == body
    assert shared.get(SLOT).body == body


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("unknown=1", {}),
        ("v=", {}),
        ("v", {}),
        (f"v={V[:-1]}", {}),
        (f"v={V}0", {}),
        (f"v={V[:-1]}g", {}),
        (f"v={V[:-1]}%00", {}),
        (f"v={V[:-1]}%0a", {}),
        (f"v=%20{V[:-1]}", {}),
        (f"v={V[:-1]}%c2%b2", {}),
        (f"v={V}&v={V}", {}),
        (f"V={V}", {}),
        (f"v={V_NO_SIZE}", {}),
        (f"v={V_PATH_ONLY}", {}),
        (f"v={DELETE_TOKEN}", {}),
        (f"token={DELETE_TOKEN}", {}),
        (f"v2={V}", {"Content_Type": "image/jpeg"}),
        (f"v={V2_JPEG}", {"Content_Type": "image/jpeg"}),
        (f"v2={V2_JPEG}", {"Content_Type": "image/png"}),
        (f"v2={V2_UNKNOWN}", {"Content_Type": "image/jpeg"}),
        # The strongest that is there counts; a good weaker one does not help.
        (f"v2={'0' * 64}&v={V}", {"Content_Type": "image/jpeg"}),
        (f"v2=&v={V}", {}),
        (f"token={'0' * 64}&v={V}", {}),
        (f"v2={'0' * 64}&token={V2_JPEG}", {"Content_Type": "image/jpeg"}),
    ],
)
def test_no_signature_that_holds(shared: Daemon, slot: Path, query: str, headers: dict[str, str]) -> None:
    """A PUT without a signature that holds is answered with 403, and neither file nor folder is made."""
    answer = shared.request("PUT", f"/upload/{SLOT}?{query}", b"x" * SIZE, **headers)
    assert (answer.status, answer.headers["connection"]) == (403, "close")
    assert not slot.exists()


@pytest.mark.parametrize("size", [SIZE - 1, 0])
def test_another_size_than_the_signed_one(shared: Daemon, slot: Path, size: int) -> None:
    """The signature covers the length: a shorter body under it is refused."""
    assert shared.request("PUT", f"/upload/{SLOT}?v={V}", b"x" * size).status == 403
    assert not slot.exists()


def test_another_path_than_the_signed_one(shared: Daemon) -> None:
    """The signature covers the path, without the prefix: another path, or a path signed with it, is refused."""
    for target in (
        f"/upload/other-path/a.bin?v={v('signed-path/a.bin', 5)}",
        f"/upload/other-path/a.bin?v={v('upload/other-path/a.bin', 5)}",
        f"/upload/other-path/a.bin?v={v('/upload/other-path/a.bin', 5)}",
        f"/upload/other-path/a.bin?v={v('/other-path/a.bin', 5)}",
        f"/upload/other-path/a.bin?v={v('other-path/a.bin', 5, 'another secret')}",
        f"/upload/other-path/A.bin?v={v('other-path/a.bin', 5)}",
    ):
        assert shared.request("PUT", target, b"hello").status == 403
    assert untouched(shared, "other-path")


def test_a_retry_of_the_same_bytes(shared: Daemon) -> None:
    """A client whose 201 was lost sends the very bytes again and gets 201; the file stays the same one."""
    body = os.urandom(100_000)
    assert shared.put("retry/a.bin", body).status == 201
    before = (shared.store / "retry/a.bin").stat()
    assert shared.put("retry/a.bin", body).status == 201
    target = f"/upload/retry/a.bin?v2={v2('retry/a.bin', len(body), 'image/png')}"
    assert shared.request("PUT", target, body, Content_Type="image/png").status == 201
    after = (shared.store / "retry/a.bin").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    assert shared.get("retry/a.bin").body == body


def test_a_retry_without_a_signature(shared: Daemon) -> None:
    """That the bytes are there already is told only to who has a signature."""
    assert shared.put("retry-unsigned/a.bin", b"hello").status == 201
    assert shared.request("PUT", "/upload/retry-unsigned/a.bin", b"hello").status == 403


@pytest.mark.parametrize("other", [b"y" * 100_000, b"x" * 99_999 + b"y", b"x" * 99_999, b"x" * 100_001, b""])
def test_other_bytes(shared: Daemon, other: bytes) -> None:
    """A PUT over other bytes, of the same length or another, is answered with 409; the first file stays."""
    shared.put("conflict/a.bin", b"x" * 100_000)
    before = (shared.store / "conflict/a.bin").stat()
    assert shared.put("conflict/a.bin", other).status == 409
    after = (shared.store / "conflict/a.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (shared.store / "conflict/a.bin").read_bytes() == b"x" * 100_000


def test_a_file_where_a_folder_should_be(shared: Daemon) -> None:
    """A slot below a file, or a slot that is a folder, is refused without a server error and changes nothing."""
    assert shared.put("nested/a.bin", b"hello").status == 201
    for path in ("nested/a.bin/b.bin", "nested"):
        answer = shared.put(path, b"hello")
        assert answer.status in (400, 404, 409), answer
    assert (shared.store / "nested/a.bin").read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("names/plain.bin", "names/plain.bin"),
        ("names/a b.bin", "names/a%20b.bin"),
        ("names/a+b.bin", "names/a+b.bin"),
        ("names/plus%2B.bin", "names/plus%252B.bin"),
        ("names/50%.bin", "names/50%25.bin"),
        ("names/not-encoded%zz.bin", "names/not-encoded%zz.bin"),
        ("names/grüße 🎉.bin", "names/gr%c3%bc%C3%9Fe%20%f0%9f%8e%89.bin"),
        ("names/a&b=c;d.bin", "names/a%26b%3Dc%3bd.bin"),
        ("names/question?.bin", "names/question%3f.bin"),
        ("names/hash#.bin", "names/hash%23.bin"),
        ("names/..two-dots", "names/..two-dots"),
        ("names/.hidden.bin", "names/%2ehidden.bin"),
        ("names/back\\slash.bin", "names/back%5Cslash.bin"),
        ("top-level.bin", "top-level.bin"),
        ("names/" + "n" * 255, "names/" + "n" * 255),
    ],
)
def test_names(shared: Daemon, path: str, sent: str) -> None:
    """A path is decoded exactly once, signed and stored as its bytes, and found in any spelling."""
    body = path.encode()
    target = f"/upload/{sent}"
    assert shared.request("PUT", f"{target}?v={v(path, len(body))}", body).status == 201
    assert (shared.store / path).read_bytes() == body
    every_byte = "".join("/" if byte == 0x2F else f"%{byte:02X}" for byte in path.encode())
    for spelling in (target, f"/upload/{quote(path)}", f"/upload/{every_byte}"):
        assert shared.request("GET", spelling).body == body


# PUT: what is refused for another reason than its signature


@pytest.mark.parametrize("length", [None, "chunked"])
def test_no_length(shared: Daemon, length: str | None) -> None:
    """Without a decimal Content-Length a PUT is answered with 411, also with a signature made for size -1."""
    head = f"PUT /upload/{SLOT}?v={V_NO_SIZE} HTTP/1.1\r\nHost: a\r\n"
    if length:
        head += "Transfer-Encoding: chunked\r\n"
    body = b"5\r\nhello\r\n0\r\n\r\n" if length else b""
    with shared.wire().send(f"{head}\r\n".encode() + body) as wire:
        assert wire.answer().status == 411
    assert untouched(shared, SLOT)


def test_the_longest_body(shared: Daemon) -> None:
    """A body of MaxUploadSize is taken; with one byte more it is answered with 413, though it is signed."""
    assert shared.put("longest/a.bin", b"x" * SIZE).status == 201
    answer = shared.put("longest/b.bin", b"x" * (SIZE + 1))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert {file.name for file in (shared.store / "longest").iterdir()} == {"a.bin"}


UNUSABLE = [
    "",
    "unusable/",
    "/unusable",
    "unusable//a.bin",
    ".",
    "..",
    "unusable/.",
    "unusable/..",
    "unusable/./a.bin",
    "unusable/../a.bin",
    "../unusable.bin",
    "../../../../../../../../etc/unusable",
    "unusable/%2e%2e/a.bin",
    "unusable/%2E/a.bin",
    "%2e%2e%2funusable",
    "unusable%2fa.bin",
    "unusable/a%2F..%2Fb.bin",
    "unusable/%00",
    "unusable/a%00.bin",
    "unusable/a%0a.bin",
    "unusable/a%0d%0a.bin",
    "unusable/a%1b.bin",
    "unusable/a%7f.bin",
    "unusable/a%c2%85.bin",
    "unusable/%ff.bin",
    "unusable/%c0%ae%c0%ae/a.bin",
    "unusable/%ed%a0%80.bin",
    "unusable/%c3",
    "unusable/" + "n" * 256,
    "unusable/" + "%c3%bc" * 128,
    ".hmac-file-server/unusable",
    ".hmac-file-server",
    ".hmac-file-server-unusable",
    "%2ehmac-file-server/unusable",
    "unusable/.hmac-file-server/a.bin",
    "unusable/.hmac-file-server.part",
]


@pytest.mark.parametrize("target", UNUSABLE)
def test_an_unusable_path(shared: Daemon, target: str) -> None:
    """A path that can not name a file is refused, well signed or not; for GET and HEAD there is nothing."""
    path = unquote_to_bytes(target)
    # In the daemon's own folder are the resources of resumable uploads, which know no PUT.
    refused = (404, 405) if path.startswith(b".hmac-file-server") else (400,)
    answer = shared.request("PUT", f"/upload/{target}?v={v(path, 5)}", b"hello")
    assert answer.status in (*refused, 400), answer
    assert shared.request("PUT", f"/upload/{target}", b"hello").status in (*refused, 400, 403)
    assert shared.request("GET", f"/upload/{target}").status == 404
    assert shared.request("HEAD", f"/upload/{target}").status == 404
    assert untouched(shared, "unusable")
    assert not (shared.store.parent / "unusable.bin").exists()


@pytest.mark.parametrize("prefix", ["/", "/upload", "/uploads/", "/Upload/", "//upload/", "/upload/../"])
def test_a_put_beside_the_prefix(shared: Daemon, prefix: str) -> None:
    """Outside UploadSubDir nothing can be stored, however it is signed."""
    for path in ("beside.bin", "upload/beside.bin"):
        target = f"{prefix}{path}?v={v('beside.bin', 5)}"
        if not target.startswith("/upload/beside"):
            assert shared.request("PUT", target, b"hello").status in (400, 403, 404)
    assert untouched(shared, "beside")


def test_a_very_long_path(shared: Daemon) -> None:
    """A path of many segments, longer than the system's own limit for one, is no server error."""
    folder = "d" * 250
    path = "/".join([folder] * 20) + "/a.bin"
    try:
        answer = shared.put(path, b"hello")
        assert answer.status in (201, 400)
        assert shared.get(path).status == (200 if answer.status == 201 else 404)
    finally:
        # Other tests walk the store by whole paths.
        shutil.rmtree(shared.store / folder, ignore_errors=True)


def test_no_room(make_daemon: MakeDaemon) -> None:
    """A body that does not fit beside MinFreeSpace is answered with 507; nothing stays."""
    daemon = make_daemon(MinFreeSpace=1 << 60).start()
    eventually(lambda: daemon.metric("hmac_file_server_store_free_bytes") > 0)
    answer = daemon.put("slot/a.bin", b"hello")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (507, "*")
    assert daemon.files() == set()
    assert [place.name for place in daemon.store.iterdir()] == [".hmac-file-server"]


# Other methods


@pytest.mark.parametrize(
    "method", ["POST", "DELETE", "PATCH", "TRACE", "MKCOL", "PROPFIND", "MOVE", "get", "Put", "X-Y_Z!"]
)
@pytest.mark.parametrize("target", ["/upload/method/a.bin", "/upload/", "/"])
def test_other_methods(shared: Daemon, method: str, target: str) -> None:
    """A method that is not served is answered with 405, and with those that are; the file stays."""
    assert shared.put("method/a.bin", b"hello").status == 201
    answer = shared.request(method, target)
    assert answer.status == 405
    allowed = {word.strip() for word in answer.headers["allow"].split(",")}
    assert allowed >= {"OPTIONS", "HEAD", "GET", "PUT"}
    assert method not in allowed
    assert (shared.store / "method/a.bin").read_bytes() == b"hello"


def test_a_delete_with_a_token(shared: Daemon, slot: Path) -> None:
    """Metronome's DELETE token removes nothing where removing is not on."""
    assert shared.request("PUT", f"/upload/{SLOT}?v={V}", b"x" * SIZE).status == 201
    assert shared.request("DELETE", f"/upload/{SLOT}?token={DELETE_TOKEN}").status == 405
    assert slot.exists()


@pytest.mark.parametrize("target", ["/upload/any/a.bin", "/upload/any/a.bin?v=0", "/upload/", "/", "/upload/..", "*"])
def test_options(shared: Daemon, target: str) -> None:
    """A browser's preflight is answered with 204 and all that CORS needs, without any signature."""
    answer = shared.request("OPTIONS", target, Origin="https://chat.example", Access_Control_Request_Method="PUT")
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers
    assert "transfer-encoding" not in answer.headers
    methods = {word.strip() for word in answer.headers["access-control-allow-methods"].split(",")}
    assert methods >= {"OPTIONS", "HEAD", "GET", "PUT"}
    allowed = {word.strip().lower() for word in answer.headers["access-control-allow-headers"].split(",")}
    conditions = {"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "range"}
    assert allowed >= {"authorization", "content-type"} | conditions
    assert answer.headers["access-control-max-age"] == "7200"
    assert answer.headers["access-control-allow-origin"] == "*"


# GET: what is there and what is not


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/upload",
        "/upload/",
        "/upload/folder",
        "/upload/folder/",
        "/upload/folder/sub",
        "/upload/folder/sub/a.bin/",
        "/upload/folder/sub/a.bin/b.bin",
        "/upload/folder/sub/none.bin",
        "/upload/.hmac-file-server",
        "/upload/.hmac-file-server/",
        "/upload/%2ehmac-file-server/draft",
        "/upload/.hmac-file-server/draft",
        "/upload/folder/.hidden/a.bin",
        "/upload/folder/link.bin",
        "/upload/folder/link/a.bin",
        "/upload/folder/dangling",
        "/upload/folder/pipe",
        "/upload/folder/..%2fsub/a.bin",
        "/folder/sub/a.bin",
        "/UPLOAD/folder/sub/a.bin",
        "//folder/sub/a.bin",
        "/favicon.ico",
        "/metrics",
        "*",
    ],
)
def test_nothing_to_see(shared: Daemon, target: str) -> None:
    """Folders, the root, the daemon's own folder, links and devices are answered with 404, never a listing."""
    shared.put("folder/sub/a.bin", b"secret")
    folder = shared.store / "folder"
    (shared.store / ".hmac-file-server/draft").write_bytes(b"secret")
    (folder / ".hidden").mkdir(exist_ok=True)
    (folder / ".hidden/a.bin").write_bytes(b"secret")
    if not (folder / "pipe").exists():
        (folder / "link.bin").symlink_to("sub/a.bin")
        (folder / "link").symlink_to("sub")
        (folder / "dangling").symlink_to("nowhere")
        os.mkfifo(folder / "pipe")
    answer = shared.request("GET", target)
    assert answer.status == 404
    assert answer.body == shared.get("none").body
    assert shared.request("HEAD", target).status == 404


def test_an_unfinished_upload(shared: Daemon) -> None:
    """A file is there when it is whole, and not a moment before; no name in the store shows half of it."""
    body = os.urandom(300_000)
    with shared.wire() as wire:
        head = f"PUT {put_target('unfinished/a.bin', len(body))} HTTP/1.1\r\nHost: a\r\n"
        wire.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
        eventually(lambda: shared.running() == 1)
        assert shared.get("unfinished/a.bin").status == 404
        assert shared.request("HEAD", "/upload/unfinished/a.bin").status == 404
        assert untouched(shared, "unfinished")
        wire.send(body[-1:])
        assert wire.answer().status == 201
    assert shared.get("unfinished/a.bin").body == body


# Headers


def same_but_method(daemon: Daemon, target: str, *headers: str) -> tuple[bytes, bytes]:
    """Check that GET and HEAD of a target answer alike; the status line and the GET's body."""
    tail = "\r\n".join(["Host: a", "Connection: close", *headers, "", ""])
    line, of_get, body = exchange(daemon, f"GET {target} HTTP/1.1\r\n{tail}".encode())
    head_line, of_head, no_body = exchange(daemon, f"HEAD {target} HTTP/1.1\r\n{tail}".encode())
    assert (head_line, no_body) == (line, b"")
    # The order is compared too.
    assert [item for item in of_head.items() if item[0] != "date"] == [
        item for item in of_get.items() if item[0] != "date"
    ]
    if line.split()[1] != b"304":
        assert of_head["content-length"] == [str(len(body))]
    return line, body


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 1_000_000])
def test_head_is_like_get(shared: Daemon, size: int) -> None:
    """HEAD answers as GET does, header by header, with the length and without the body."""
    body = os.urandom(size)
    shared.put(f"head/{size}.png", body)
    target = f"/upload/head/{size}.png"
    assert same_but_method(shared, target) == (b"HTTP/1.1 200 OK", body)
    tag = shared.request("HEAD", target).headers["etag"]
    assert same_but_method(shared, target, f"If-None-Match: {tag}")[0].split()[1] == b"304"
    assert same_but_method(shared, target, f"If-Match: {tag}")[0].split()[1] == b"200"
    assert same_but_method(shared, target, 'If-Match: "other"')[0].split()[1] == b"412"


@pytest.mark.parametrize("target", ["/upload/head/none.png", "/upload/head", "/upload/..", "/", "*"])
def test_head_is_like_get_where_nothing_is(shared: Daemon, target: str) -> None:
    """Also a 404 to HEAD has the headers of the one to GET, and no body."""
    assert same_but_method(shared, target)[0] == b"HTTP/1.1 404 Not Found"


def put(path: str, body: bytes, query: str | None = None, extra: str = "") -> bytes:
    signed = f"v={v(path, len(body))}" if query is None else query
    head = f"PUT /upload/{path}?{signed} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} /upload/{path} HTTP/1.1", "Host: a", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


EVERY_ANSWER = {
    "200 small": (200, get("cors/a.bin")),
    "200 large": (200, get("cors/b.bin")),
    "200 HEAD": (200, get("cors/a.bin", method="HEAD")),
    "201": (201, put("cors/a.bin", b"hello")),
    "204": (204, get("cors/a.bin", method="OPTIONS")),
    "206": (206, get("cors/a.bin", "Range: bytes=0-1")),
    "206 parts": (206, get("cors/a.bin", "Range: bytes=0-0,2-2")),
    "304": (304, get("cors/a.bin", "If-None-Match: *")),
    "400 path": (400, put("cors//a.bin", b"hello")),
    "400 body": (400, get("cors/a.bin", "Content-Length: 5") + b"hello"),
    "400 no host": (400, b"GET /upload/cors/a.bin HTTP/1.1\r\nConnection: close\r\n\r\n"),
    "400 request line": (400, b"hello\r\n\r\n"),
    "400 header": (400, get("cors/a.bin", "X Y: z")),
    "400 two lengths": (400, get("cors/a.bin", "Content-Length: 1", "Content-Length: 2")),
    "403": (403, put("cors/a.bin", b"hello", query="")),
    "403 before the body": (403, put("cors/a.bin", b"hello", query="v=0")),
    "404": (404, get("cors/none.bin")),
    "404 HEAD": (404, get("cors/none.bin", method="HEAD")),
    "405": (405, get("cors/a.bin", method="POST")),
    "405 with a body": (405, get("cors/a.bin", "Content-Length: 5", method="POST") + b"hello"),
    "409 other bytes": (409, put("cors/a.bin", b"jello")),
    "409 other length": (409, put("cors/a.bin", b"x" * 100_000)),
    "411": (411, get("cors/a.bin", method="PUT")),
    "411 chunked": (411, get("cors/a.bin", "Transfer-Encoding: chunked", method="PUT") + b"0\r\n\r\n"),
    "412": (412, get("cors/a.bin", 'If-Match: "other"')),
    "413": (413, put("cors/c.bin", b"x" * (SIZE + 1))),
    "416": (416, get("cors/a.bin", "Range: bytes=5-")),
}


@pytest.mark.parametrize(("status", "request_"), EVERY_ANSWER.values(), ids=EVERY_ANSWER.keys())
def test_cors_and_safety_everywhere(shared: Daemon, status: int, request_: bytes) -> None:
    """Every answer, errors too, can be read by a web page and can do it no harm; each header comes once."""
    shared.put("cors/a.bin", b"hello")
    shared.put("cors/b.bin", b"x" * 500_000)
    line, headers, _ = exchange(shared, request_)
    assert line.split()[:2] == [b"HTTP/1.1", b"%d" % status]
    assert {name: headers.get(name) for name in EVERYWHERE} == {name: [value] for name, value in EVERYWHERE.items()}
    exposed = headers["access-control-expose-headers"][0].lower().split(", ")
    assert {"content-range", "etag"} <= set(exposed)
    assert "access-control-allow-credentials" not in headers
    assert any(name in headers for name in PREFLIGHT) == (status == 204)
    assert all(len(values) == 1 for values in headers.values())
    assert ("www-authenticate" in headers) == (status == 401)


@pytest.mark.parametrize(
    ("name", "signed", "served", "shown"),
    [
        # With v only the extension says what it is.
        ("a.jpg", None, "image/jpeg", "inline"),
        ("a.JPG", None, "image/jpeg", "inline"),
        ("a.png", None, "image/png", "inline"),
        ("a.mp4", None, "video/mp4", "inline"),
        ("a.ogg", None, "audio/ogg", "inline"),
        ("a.txt", None, "text/plain; charset=utf-8", "inline"),
        ("a.svg", None, "image/svg+xml", "attachment"),
        ("a.html", None, "text/html", "attachment"),
        ("a.xhtml", None, "application/xhtml+xml", "attachment"),
        ("a.pdf", None, "application/pdf", "attachment"),
        ("a.js", None, "application/octet-stream", "attachment"),
        ("a.unknown", None, "application/octet-stream", "attachment"),
        ("html", None, "application/octet-stream", "attachment"),
        # With v2 and token the signature says it, whatever the extension.
        ("a.bin", "image/png", "image/png", "inline"),
        ("a.html", "image/png", "image/png", "inline"),
        ("a.png", "text/html", "text/html", "attachment"),
        ("a.png", "image/svg+xml", "image/svg+xml", "attachment"),
        ("a.png", "IMAGE/SVG+XML", "image/svg+xml", "attachment"),
        ("a.txt", "text/plain; charset=utf-8", "text/plain; charset=utf-8", "inline"),
        ("a.png", "application/octet-stream", "application/octet-stream", "attachment"),
        ("a.png", "nonsense", "application/octet-stream", "attachment"),
        ("a.png", "text/html, image/png", "application/octet-stream", "attachment"),
        ("a.png", "image/png;x\x7f", "application/octet-stream", "attachment"),
        ("a.png", "multipart/x-mixed-replace", "application/octet-stream", "attachment"),
    ],
)
def test_types(shared: Daemon, name: str, signed: str | None, served: str, shown: str) -> None:
    """A file has the type that was signed, else its extension's; only harmless ones are shown, not saved."""
    path = f"types-{os.urandom(8).hex()}/{name}"
    if signed is None:
        # Not signed, so not believed.
        assert shared.put(path, b"hello", Content_Type="text/html").status == 201
    else:
        if not keeps_types(shared):
            missing("the file system has no extended attributes")
        target = f"/upload/{path}?v2={v2(path, 5, signed)}"
        assert shared.request("PUT", target, b"hello", Content_Type=signed).status == 201
    answer = shared.get(path)
    assert answer.headers["content-type"] == served
    assert answer.headers["content-disposition"].partition(";")[0] == shown


def keeps_types(daemon: Daemon) -> bool:
    probe = daemon.store / ".hmac-file-server"
    try:
        os.setxattr(probe, "user.probe", b"x")
    except OSError:
        return False
    return True


def test_a_type_signed_without_its_parameters(shared: Daemon) -> None:
    """Where the bare type was signed, the file has that, not the parameters that the client added."""
    if not keeps_types(shared):
        missing("the file system has no extended attributes")
    target = f"/upload/bare/a.bin?token={v2('bare/a.bin', 5, 'text/plain')}"
    assert shared.request("PUT", target, b"hello", Content_Type="text/plain;charset=utf-7").status == 201
    assert shared.get("bare/a.bin").headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("name", "plain", "exact"),
    [
        ("photo.jpg", "photo.jpg", "photo.jpg"),
        ("a b.jpg", "a b.jpg", "a%20b.jpg"),
        ('quo"te.jpg', "quo_te.jpg", "quo%22te.jpg"),
        ("back\\slash.jpg", "back_slash.jpg", "back%5Cslash.jpg"),
        ("grüße.jpg", "gr__e.jpg", "gr%C3%BC%C3%9Fe.jpg"),
        ("a%41.jpg", "a_41.jpg", "a%2541.jpg"),
        ("a;filename=b.exe", "a;filename=b.exe", "a%3Bfilename%3Db.exe"),
        ("it's.jpg", "it's.jpg", "it%27s.jpg"),
        ("rtl\u202egpj.exe", "rtl_gpj.exe", "rtl%E2%80%AEgpj.exe"),
        ("line\u2028.jpg", "line_.jpg", "line%E2%80%A8.jpg"),
    ],
)
def test_content_disposition(shared: Daemon, name: str, plain: str, exact: str) -> None:
    """A file is saved under its own name, which can not break out of the header (RFC 6266)."""
    path = f"disposition/{name}"
    assert shared.put(path, b"hello").status == 201
    value = shared.get(path).headers["content-disposition"]
    assert value.partition("; ")[2] == f"filename=\"{plain}\"; filename*=UTF-8''{exact}"


def test_headers_of_a_file(shared: Daemon) -> None:
    """A file can be kept by caches for good, resumed, and comes as it is, however well gzip would do."""
    shared.put("plain/a.txt", b"a" * 10_000)
    answer = shared.get("plain/a.txt", Accept_Encoding="gzip, deflate, br, zstd")
    assert answer.body == b"a" * 10_000
    assert "content-encoding" not in answer.headers
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"
    assert re.fullmatch(r'"[!#-~]+"', answer.headers["etag"])
    http_date = r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"
    assert re.fullmatch(http_date, answer.headers["last-modified"])
    assert re.fullmatch(http_date, answer.headers["date"])
    assert "cookie" not in " ".join(answer.headers)


def test_errors_are_not_kept_by_caches(shared: Daemon) -> None:
    """A 404 before the upload does not claim to be good for ever."""
    assert "cache-control" not in shared.get("later/a.bin").headers
    assert "etag" not in shared.get("later/a.bin").headers


# The log and the figures


def finished(daemon: Daemon, count: int, log: Path) -> list[str]:
    """The access lines, once there are so many."""

    def lines() -> list[str]:
        return [line for line in log.read_text().splitlines() if " in=" in line]

    eventually(lambda: len(lines()) >= count, what=f"{count} access lines")
    return lines()


def test_one_line_a_request(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Each request leaves one line in LogFile: who, what, how it ended and, if badly, why."""
    log = tmp_path / "access.log"
    daemon = make_daemon(LogFile=str(log), MaxUploadSize=1000).start()
    file = "/upload/slot/a.bin"
    answers = [
        daemon.put("slot/a.bin", b"hello", User_Agent="Client/1.0"),
        daemon.request("GET", file),
        daemon.request("GET", file, Range="bytes=0-1"),
        daemon.request("GET", file, Range="bytes=9-"),
        daemon.request("HEAD", file),
        daemon.get("slot/none.bin"),
        daemon.request("OPTIONS", file),
        daemon.request("POST", file),
        daemon.request("PUT", "/upload/slot/b.bin?v=0", b"hello"),
        daemon.put("slot/a.bin", b"jello"),
        daemon.put("slot/b.bin", b"x" * 1001),
        daemon.request("GET", file, X_Forwarded_For="198.51.100.1, 192.0.2.7"),
    ]
    exchange(daemon, b"nonsense\r\n\r\n")
    with daemon.wire() as wire:
        wire.send(put("slot/c.bin", b"hello")[:-1])
        eventually(lambda: daemon.running() == 1)
    lines = finished(daemon, 14, log)
    found = [re.fullmatch(r"\S+ (?P<level>\w+) +(?P<rest>.*)", line) for line in lines]
    rest = [re.sub(r" \d+\.\d{3}s ", " ", match["rest"]) for match in found if match]
    out = [f"out={len(answer.body)}" for answer in answers]
    assert rest[:12] == [
        f'127.0.0.1 PUT {file} 201 in=5 {out[0]} "Client/1.0"',
        f'127.0.0.1 GET {file} 200 in=0 {out[1]} "-"',
        f'127.0.0.1 GET {file} 206 in=0 {out[2]} "-"',
        f'127.0.0.1 GET {file} 416 in=0 {out[3]} "-" - the file has no such range',
        f'127.0.0.1 HEAD {file} 200 in=0 {out[4]} "-"',
        f'127.0.0.1 GET /upload/slot/none.bin 404 in=0 {out[5]} "-" - there is nothing here',
        f'127.0.0.1 OPTIONS {file} 204 in=0 {out[6]} "-"',
        f'127.0.0.1 POST {file} 405 in=0 {out[7]} "-" - this method is not served here:'
        " XMPP clients PUT to the URL of a slot that their server gives them (XEP-0363)",
        f'127.0.0.1 PUT /upload/slot/b.bin 403 in=5 {out[8]} "-"'
        " - the v parameter is not one signature of 64 hex digits (size=5 type=-)",
        f'127.0.0.1 PUT {file} 409 in=5 {out[9]} "-" - the slot has been used for another file',
        f'127.0.0.1 PUT /upload/slot/b.bin 413 in=1001 {out[10]} "-"'
        " - 1001 bytes, but at most 1000 bytes are taken (MaxUploadSize); the XMPP server's own limit is higher",
        f'192.0.2.7 GET {file} 200 in=0 {out[11]} "-"',
    ]
    assert " 400 " in rest[12]
    assert rest[13] == '127.0.0.1 PUT /upload/slot/c.bin - in=4 out=0 "-" - broken off'
    levels = [match["level"] for match in found if match]
    assert levels[:11] == ["info"] * 8 + ["warn"] * 3
    daemon.stop()
    assert len(finished(daemon, 14, log)) == 14
    assert "Traceback" not in log.read_text() + daemon.log


def test_no_signature_in_the_log(make_daemon: MakeDaemon) -> None:
    """Neither the secret nor a signature, usable or not, is logged, whatever became of the request."""
    daemon = make_daemon(LogLevel="debug", MinFreeSpace=0).start()
    signatures = set()

    def send(method: str, path: str, name: str, signature: str, body: bytes, **headers: Any) -> Answer:
        signatures.add(signature)
        return daemon.request(method, f"/upload/{path}?{name}={signature}", body, **headers)

    stored = v("slot/a.bin", 5)
    assert send("PUT", "slot/a.bin", "v", stored, b"hello").status == 201
    assert send("PUT", "slot/a.bin", "v", stored, b"jello").status == 409
    assert send("PUT", "slot/b.bin", "v", v("slot/b.bin", 5), b"too long").status == 403
    assert send("PUT", "slot/b.bin", "v2", v2("slot/b.bin", 5, "a/b"), b"hello", Content_Type="c/d").status == 403
    assert send("PUT", "slot/../b.bin", "v", v("slot/../b.bin", 5), b"hello").status == 400
    assert send("GET", "slot/a.bin", "v", stored, b"").status == 200
    assert send("GET", "slot/none.bin", "v", v("slot/none.bin", 5), b"").status == 404
    assert send("POST", "slot/c.bin", "token", v2("slot/c.bin", 5, "a/b"), b"").status == 405
    signature = v("slot/d.bin", 5)
    signatures.add(signature)
    for request in (
        f"PUT http://a/upload/slot/d.bin?v={signature} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nhell",
        f"PUT http://a?/upload/slot/d.bin&v={signature} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nhell",
        f"PUT /upload/slot/d.bin?v={signature} HTTP/1.1\r\nHost : a\r\n\r\n",
        f"PUT /upload/slot/d.bin?v={signature} HTTP/1.1 x\r\nHost: a\r\n\r\n",
        f"PUT /upload/slot/d.bin?v={signature}\r\nHost: a\r\n\r\n",
        f"CONNECT a:1?v={signature} HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        with daemon.wire().send(request.encode()) as wire:
            assert wire.answer().status in (400, 403, 404, 405)
    with daemon.wire() as wire:
        wire.send(f"PUT /upload/slot/d.bin?v={signature} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe".encode())
        eventually(lambda: daemon.running() == 1)
    eventually(lambda: "broken off" in daemon.log)
    daemon.stop()
    log = daemon.log.lower()
    assert SECRET not in log
    assert [signature for signature in signatures if signature in log] == []


def test_no_forged_lines(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Control characters from a client are escaped in the log: it can neither forge a line nor a terminal's state."""
    log = tmp_path / "access.log"
    daemon = make_daemon(LogFile=str(log)).start()
    forged = "%0a2026-01-01T00:00:00+0000 info  forged"
    for agent in ("\x1b[2Jred", "\x07\x08", "tab\tbed", '"quoted"', "\x85\x9b31m", "\xe2\x80\xa8"):
        daemon.get("slot/a.bin", User_Agent=agent, X_Forwarded_For=f"192.0.2.7{agent}")
    daemon.request("GET", f"/upload/{forged.replace(' ', '%20')}")
    daemon.request("GET", "/upload/%1b[2J%7f%c2%85%e2%80%a8%ff")
    for raw in (
        b"GET /upload/raw\x1b[2J\x7f\xff\xc2\x85 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"G\x1bT /upload/raw HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /upload/raw\nforged HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /upload/raw\rforged HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /upload/raw\0forged HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ):
        exchange(daemon, raw)
    # Malformed requests may be answered without a line that quotes them.
    finished(daemon, 8, log)
    daemon.stop()
    text = log.read_bytes().decode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", text)
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (debug|info|warn|error) ")
    assert [line for line in text.splitlines() if not stamp.match(line)] == []
    assert sum("forged" in stamp.sub("", line) for line in text.splitlines()) <= 4
    assert not any(stamp.sub("", line).strip().startswith("forged") for line in text.splitlines())


def test_metrics(make_daemon: MakeDaemon) -> None:
    """Uploads, refusals, downloads and bytes are counted, each once and by its reason."""
    daemon = make_daemon(MaxUploadSize=200_000).start()

    def count(name: str, labels: str = "") -> float:
        return daemon.metric(f"hmac_file_server_{name}", labels)

    daemon.put("slot/a.bin", b"x" * 100_000)
    daemon.put("slot/a.bin", b"x" * 100_000)
    daemon.put("slot/a.bin", b"y" * 100_000)
    daemon.request("PUT", "/upload/slot/b.bin", b"hello")
    daemon.put("slot/b.bin", b"x" * 200_001)
    daemon.put("slot//b.bin", b"hello")
    daemon.request("PUT", "/upload/slot/b.bin", b"", Content_Length="junk")
    exchange(daemon, get("slot/b.bin", method="PUT"))
    daemon.request("POST", "/upload/slot/a.bin")
    assert len(daemon.get("slot/a.bin").body) == 100_000
    assert len(daemon.get("slot/a.bin", Range="bytes=0-9").body) == 10
    daemon.request("HEAD", "/upload/slot/a.bin")
    daemon.get("slot/none.bin")
    daemon.get("slot/a.bin", Range="bytes=100000-")
    daemon.request("OPTIONS", "/upload/slot/a.bin")
    with daemon.wire() as wire:
        wire.send(put("slot/c.bin", b"hello")[:-1])
        eventually(lambda: count("uploads_in_progress") == 1)
    eventually(lambda: count("upload_errors_total", '{reason="broken_off"}') == 1)
    eventually(lambda: count("uploads_in_progress") == 0)
    assert count("uploads_total") == 2
    assert count("upload_duration_seconds_count") == 2
    assert count("upload_errors_total", '{reason="conflict"}') == 1
    refused = {"signature": 1, "too_large": 1, "path": 1, "malformed": 1, "length_required": 1, "method": 1}
    refused |= {"not_found": 1, "range": 1}
    assert {reason: count("refusals_total", f'{{reason="{reason}"}}') for reason in refused} == refused
    assert count("downloads_total") == 2
    assert count("downloads_broken_total") == 0
    assert count("received_bytes_total") == 3 * 100_000 + 5 + 200_001 + 5 + 4
    assert count("sent_bytes_total") >= 100_010
    assert count("store_free_bytes") > 0


def test_metrics_have_a_port_of_their_own(shared: Daemon) -> None:
    """Figures are on MetricsPort and nowhere on the public one; files are not on MetricsPort."""
    shared.put("metrics/a.bin", b"hello")
    assert shared.request("GET", "/metrics").status == 404
    with Wire(shared.metrics_port) as wire:
        assert wire.send(b"GET /upload/metrics/a.bin HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 404
