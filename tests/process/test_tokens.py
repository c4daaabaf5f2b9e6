"""Bearer tokens of mod_http_file_share, with the real daemon: what is kept with a file, and how long it is served."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bearer import put_with, token
from tests.support import SECRET, Answer, Daemon, eventually, missing

MakeDaemon = Callable[..., Daemon]

OWNER, EXPIRES, TYPE = "user.hmac_file_server.owner", "user.hmac_file_server.expires", "user.mime_type"
VERSION = "Upload-Draft-Interop-Version: 6"


def put(daemon: Daemon, path: str, body: bytes, *headers: str, made: bytes | None = None) -> Answer:
    with daemon.wire() as wire:
        wire.send(put_with(made if made is not None else token(path, len(body)), path, len(body), *headers) + body)
        return wire.final()


def test_what_is_kept(daemon: Daemon) -> None:
    """The type, the owner and the end lie with the file, for small files and large ones."""
    end = int(time.time()) + 3600
    for path, size in (("kept/small.bin", 5), ("kept/large.bin", 3 << 20), ("kept/empty.bin", 0)):
        body = os.urandom(size)
        made = token(path, size, expires=end, sub="ålice@exämple.org", filetype="audio/ogg")
        assert put(daemon, path, body, made=made).status == 201
        file = daemon.store / path
        assert file.read_bytes() == body
        assert os.getxattr(file, OWNER).decode() == "ålice@exämple.org"
        assert os.getxattr(file, EXPIRES) == b"%d" % end
        assert os.getxattr(file, TYPE) == b"audio/ogg"
        assert daemon.get(path).headers["content-type"] == "audio/ogg"
        assert put(daemon, path, body, made=made).status == 201


def test_an_end_comes(daemon: Daemon) -> None:
    """From its end on a file is 404, though it was just served."""
    path = "ends/a.txt"
    assert put(daemon, path, b"hello", made=token(path, 5, expires=time.time() + 2)).status == 201
    assert "31536000" not in daemon.get(path).headers.get("cache-control", "")
    eventually(lambda: daemon.get(path).status == 404, what="the file's end")
    assert daemon.request("HEAD", f"/upload/{path}").status == 404
    assert (daemon.store / path).read_bytes() == b"hello"


def test_an_end_that_somebody_wrote(daemon: Daemon) -> None:
    """An attribute that is no time is passed over; one that is gone by is not."""
    path = "written/a.txt"
    assert put(daemon, path, b"hello").status == 201
    for value, status in ((b"soon", 200), (b"", 200), (b"9" * 30, 200), (b"1000", 404)):
        os.setxattr(daemon.store / path, EXPIRES, value)
        eventually(lambda: daemon.get(path).status == status, what=f"{value!r}")  # noqa: B023


def test_resumed(daemon: Daemon) -> None:
    """What a token says is kept by an upload that is resumed, also when the token has expired meanwhile."""
    path, body, end = "resumed/a.bin", os.urandom(100_000), int(time.time()) + 3600
    made = token(path, len(body), exp=time.time() + 2, expires=end, filetype="video/webm")
    head = put_with(made, path, 40_000, VERSION, "Upload-Complete: ?0", f"Upload-Length: {len(body)}")
    with daemon.wire() as wire:
        answer = wire.send(head + body[:40_000]).final()
    assert (answer.status, answer.headers["upload-complete"]) == (201, "?0")
    location = answer.headers["location"]
    eventually(lambda: put(daemon, "resumed/b.bin", b"", made=made).status == 401, what="the token's end")
    patch = [f"PATCH {location} HTTP/1.1", "Host: a", VERSION, "Upload-Complete: ?1", "Upload-Offset: 40000"]
    patch += ["Content-Type: application/partial-upload", "Content-Length: 60000", "", ""]
    with daemon.wire() as wire:
        assert wire.send("\r\n".join(patch).encode() + body[40_000:]).final().status == 201
    file = daemon.store / path
    assert file.read_bytes() == body
    assert (os.getxattr(file, OWNER), os.getxattr(file, EXPIRES)) == (b"juliet@example.com", b"%d" % end)
    assert daemon.get(path).headers["content-type"] == "video/webm"


def test_a_part_of_another_length(daemon: Daemon) -> None:
    """Of a file that comes in parts it is Upload-Length that the token must be for."""
    path = "parts/a.bin"
    for length, status in ((100, 201), (101, 413)):
        head = put_with(token(path, 100), path, 5, VERSION, "Upload-Complete: ?0", f"Upload-Length: {length}")
        with daemon.wire() as wire:
            assert wire.send(head + b"hello").final().status == status


def test_a_running_upload_outlives_its_token(daemon: Daemon) -> None:
    """A token counts when the request arrives: it does not cut an upload that takes longer."""
    path = "runs/a.bin"
    made = token(path, 10, exp=time.time() + 2)
    with daemon.wire() as wire:
        wire.send(put_with(made, path, 10) + b"01234")
        eventually(lambda: put(daemon, path, b"", made=made).status == 401, what="the token's end")
        assert wire.send(b"56789").answer().status == 201


def test_nobody_logs_a_token(daemon: Daemon) -> None:
    """Neither a token that holds nor one that does not is in the log; the claim that is wrong is."""
    good, late = token("log/a.bin", 5), token("log/b.bin", 5, exp=1000)
    assert put(daemon, "log/a.bin", b"hello", made=good).status == 201
    assert put(daemon, "log/b.bin", b"hello", made=late).status == 401
    line = eventually(lambda: [line for line in daemon.log.splitlines() if "/log/b.bin" in line])[0]
    assert "the claim exp has passed" in line
    for made in (good, late):
        assert not any(part in daemon.log for part in made.decode().split("."))


def test_the_example_secret(make_daemon: MakeDaemon) -> None:
    """A token of the example's secret is good for programs on this machine alone, as its signatures are."""
    secret = "orbit7-shadow23-breeze91-echo17"
    daemon = make_daemon(Secret=secret).start()
    made = token("a/b.bin", 5, secret)
    for host, status in ((f"127.0.0.1:{daemon.port}", 201), ("upload.example.com", 403)):
        head = put_with(made, "a/b.bin", 5).replace(b"Host: a", f"Host: {host}".encode())
        with daemon.wire() as wire:
            assert wire.send(head + b"hello").final().status == status


def test_two_secrets(make_daemon: MakeDaemon) -> None:
    """While one secret replaces another, tokens of both are taken."""
    daemon = make_daemon(Secret=["another-secret-that-is-long", SECRET]).start()
    assert put(daemon, "a/b.bin", b"hello").status == 201
    assert put(daemon, "a/c.bin", b"hello", made=token("a/c.bin", 5, "another-secret-that-is-long")).status == 201
    assert put(daemon, "a/d.bin", b"hello", made=token("a/d.bin", 5, "a third one")).status == 401


def test_without_attributes(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Where the file system keeps none, the start says so, and the log when a file loses its owner; it is stored."""
    if os.geteuid() != 0:
        missing("only root can mount")
    folder = tmp_path / "plain"
    folder.mkdir()
    # ramfs keeps no attributes of users.
    if subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=False).returncode:
        missing("ramfs can not be mounted")
    try:
        daemon = make_daemon(StoreDir=str(folder / "store"), MinFreeSpace=0).start()
        eventually(lambda: "keeps no extended attributes" in daemon.log)
        assert put(daemon, "a/b.bin", b"hello").status == 201
        eventually(lambda: "without its owner" in daemon.log)
        assert daemon.get("a/b.bin").body == b"hello"
        assert daemon.stop() is not None
    finally:
        subprocess.call(["umount", "-l", str(folder)])


@pytest.mark.parametrize("header", ["Authorization: Bearer", "Authorization: bearer ", "AUTHORIZATION: Bearer \t"])
def test_a_token_that_is_missing(daemon: Daemon, header: str) -> None:
    """401 with a challenge, and without an error's name, for who announces a token and has none (RFC 6750)."""
    with daemon.wire() as wire:
        wire.send(f"PUT /upload/a/b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n{header}\r\n\r\nhello".encode())
        answer = wire.answer()
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
