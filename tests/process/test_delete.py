"""Metronome's DELETE, with the real daemon: what is removed is gone for good."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from hmac_file_server.slots.signature import sign
from tests.support import SECRET, Answer, Daemon, eventually, missing, put_head, put_target

MakeDaemon = Callable[..., Daemon]

DELETE_SECRET = "delete7-secret23-of91-metronome17"
WORKERS = pytest.mark.parametrize("workers", [1, 2])
MIB = 1 << 20
VERSION = {"Upload_Draft_Interop_Version": "6"}


def token(path: str, secret: str = SECRET, delete_secret: str = DELETE_SECRET) -> str:
    return sign(secret.encode(), f"{path}\0{delete_secret}".encode())


def delete(daemon: Daemon, path: str, made: str | None = None, **headers: str) -> Answer:
    target = f"/upload/{quote(path)}?token={token(path) if made is None else made}"
    return daemon.request("DELETE", target, **headers)


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    return make_daemon(DeleteSecret=DELETE_SECRET).start()


def test_the_vector(make_daemon: MakeDaemon) -> None:
    """The very bytes that Metronome sends remove the file."""
    daemon = make_daemon(Secret="orbit7-shadow23-breeze91-echo17", DeleteSecret="delete-secret-example").start()
    path = "b7f2c9e0-5d3a-4c11-9a57-0f2d6a1b8c44/photo.jpg"
    (daemon.store / path).parent.mkdir()
    (daemon.store / path).write_bytes(b"hello")
    made = "d6d0cdc56476cfb62f309a76975ae0ac035b30a5fbc6db19ed2836fb0094e775"
    for each in (made.upper(), made):
        answer = delete(daemon, path, each)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*")
    assert not (daemon.store / path).exists()


def test_where_it_is_off(make_daemon: MakeDaemon) -> None:
    """Without DeleteSecret nothing can be removed, and nobody is told that it could."""
    daemon = make_daemon().start()
    assert daemon.put("a/b.bin", b"hello").status == 201
    for made in (token("a/b.bin"), token("a/b.bin", delete_secret=""), token("a/b.bin", delete_secret=SECRET)):
        answer = delete(daemon, "a/b.bin", made)
        assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, HEAD, GET, PUT")
    methods = daemon.request("OPTIONS", "/upload/a/b.bin").headers["access-control-allow-methods"]
    assert methods == "OPTIONS, HEAD, GET, PUT"
    assert daemon.get("a/b.bin").status == 200


def test_it_tells_where_it_is_on(daemon: Daemon) -> None:
    """Allow and CORS name DELETE."""
    assert "DELETE" in daemon.request("OPTIONS", "/upload/a/b.bin").headers["access-control-allow-methods"]
    assert "DELETE" in daemon.request("POST", "/upload/a/b.bin").headers["allow"]


@WORKERS
def test_it_is_gone(make_daemon: MakeDaemon, workers: int) -> None:
    """204, also a second time and for what was never there; then 404 for all, and 403 for the slot."""
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, Workers=workers).start()
    for number in range(10):
        path = f"gone/{number} ü.txt"
        if number:
            assert daemon.put(path, b"hello").status == 201
            assert daemon.get(path).status == 200
        for _ in range(2):
            assert delete(daemon, path).status == 204
        for body in (b"hello", b"hellO", b"other", b""):
            assert daemon.put(path, body).status == 403
        eventually(lambda: daemon.get(path).status == 404, what="no worker has it at hand")  # noqa: B023
    assert not (daemon.store / "gone").exists()


@pytest.mark.parametrize(
    "made",
    [
        "",
        "0" * 64,
        "x" * 64,
        token("a/b.bin")[:-1],
        token("a/b.bin") + "0",
        token("a/c.bin"),
        token("a/b.bin", secret="another"),
        token("a/b.bin", delete_secret="another"),
        token("a/b.bin", delete_secret=""),
        f"{token('a/b.bin')}&token={token('a/b.bin')}",
        sign(SECRET.encode(), b"a/b.bin 5"),
        sign(DELETE_SECRET.encode(), b"a/b.bin\0" + SECRET.encode()),
    ],
)
def test_a_token_that_does_not_hold(daemon: Daemon, made: str) -> None:
    """403, and the file stays and its slot lives."""
    assert daemon.put("a/b.bin", b"hello").status == 201
    assert delete(daemon, "a/b.bin", made).status == 403
    assert daemon.get("a/b.bin").body == b"hello"
    assert daemon.put("a/b.bin", b"hello").status == 201
    assert DELETE_SECRET not in daemon.log
    assert not made[:64].isalnum() or made[:64] not in daemon.log


def test_a_slots_own_signature_removes_nothing(daemon: Daemon) -> None:
    """What lets a client upload does not let it remove."""
    assert daemon.put("a/b.bin", b"hello").status == 201
    assert daemon.request("DELETE", put_target("a/b.bin", 5)).status == 403
    assert daemon.request("DELETE", "/upload/a/b.bin").status == 403
    assert daemon.get("a/b.bin").status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [("a//b", 400), ("a/../b", 400), (".hmac-file-server/removed/x", 404), ("%ff", 400), ("", 400), ("a%2fb", 400)],
)
def test_paths_that_name_no_file(daemon: Daemon, target: str, status: int) -> None:
    """A path that can not be a slot's can not be removed."""
    answer = daemon.request("DELETE", f"/upload/{target}?token={token(target)}")
    assert answer.status in (status, 400, 404)


def test_conditions(daemon: Daemon) -> None:
    """A DELETE of another file than the client means is 412 and removes nothing (RFC 9110, section 13)."""
    assert daemon.put("a/b.bin", b"hello").status == 201
    etag = daemon.get("a/b.bin").headers["etag"]
    assert delete(daemon, "a/b.bin", If_Match='"other"').status == 412
    assert delete(daemon, "a/b.bin", If_None_Match="*").status == 412
    assert daemon.put("a/b.bin", b"hello").status == 201
    assert delete(daemon, "a/b.bin", If_Match=etag).status == 204


def test_a_body(daemon: Daemon) -> None:
    """A DELETE with a body is no DELETE that we know."""
    assert delete(daemon, "a/b.bin", Content_Length="5").status == 400


def test_the_line(daemon: Daemon) -> None:
    """The log says what was removed, and no token."""
    assert daemon.put("a/b.bin", b"hello").status == 201
    assert delete(daemon, "a/b.bin").status == 204
    assert delete(daemon, "a/b.bin").status == 204
    lines = eventually(lambda: (found := re.findall(r"DELETE /upload/a/b.bin .*", daemon.log))[1:] and found)
    assert lines[0].endswith("removed 5 bytes")
    assert lines[1].endswith("there was no file")
    assert token("a/b.bin") not in daemon.log


def test_the_line_names_the_owner(daemon: Daemon) -> None:
    """The log says whose file was removed, where that is known."""
    path = f"{'0123456789' * 4}/{'a' * 40}/photo.jpg"
    assert daemon.put(path, b"hello").status == 201
    assert delete(daemon, path).status == 204
    line = eventually(lambda: re.search(r"DELETE /upload/\d+/.*", daemon.log))
    assert line[0].endswith(f"removed 5 bytes of {'0123456789' * 4}")


def test_no_continue(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Whoever asks first is not told to send a body to a removed slot, whichever daemon removed it."""
    here = make_daemon(tmp_path / "here", DeleteSecret=DELETE_SECRET, StoreDir=str(tmp_path / "store")).start()
    there = make_daemon(tmp_path / "there", StoreDir=str(tmp_path / "store")).start()
    for number in range(5):
        path = f"continued/{number}.bin"
        assert delete(here, path).status == 204
        for daemon in (here, there):
            with daemon.wire() as wire:
                wire.send(put_head(path, MIB, "Expect: 100-continue"))
                assert wire.answer().status == 403


@WORKERS
def test_an_upload_that_runs(make_daemon: MakeDaemon, workers: int) -> None:
    """What is on its way when its slot is removed is refused, and is never public."""
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, Workers=workers).start()
    body = os.urandom(3 * MIB)
    for number in range(6):
        path = f"runs/{number}.bin"
        with daemon.wire() as wire:
            wire.send(put_head(path, len(body)) + body[: 2 * MIB])
            eventually(lambda: daemon.running() >= 1)
            assert delete(daemon, path).status == 204
            with contextlib.suppress(ConnectionError):
                wire.send(body[2 * MIB :])
            assert wire.answer().status == 403
        assert not (daemon.store / path).exists()
        eventually(lambda: daemon.running() == 0)


def test_a_race(make_daemon: MakeDaemon) -> None:
    """Of uploads and removals of one slot at the same time, the removal wins in the end, however they meet."""
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, Workers=2).start()
    for number in range(40):
        path = f"race/{number}.bin"
        said: list[int] = []
        threads = [threading.Thread(target=lambda: said.append(daemon.put(path, b"hello").status)) for _ in range(3)]  # noqa: B023
        threads.insert(number % 4, threading.Thread(target=lambda: said.append(delete(daemon, path).status)))  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(said) <= {201, 403, 204}
        assert not (daemon.store / path).exists()
        assert daemon.put(path, b"hello").status == 403


@WORKERS
def test_what_could_be_resumed(make_daemon: MakeDaemon, workers: int) -> None:
    """The upload resources of a removed slot are gone, begun ones and complete ones."""
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, Workers=workers).start()
    for length, complete in ((10, "?0"), (5, "?0")):
        path = f"resumed/{length}.bin"
        target = put_target(path, length)
        parts = VERSION | {"Upload_Complete": complete, "Upload_Length": str(length)}
        location = daemon.request("PUT", target, b"hello", **parts).headers["location"]
        if length == 5:
            more = {"Upload_Offset": "5", "Upload_Complete": "?1", "Content_Type": "application/partial-upload"}
            assert daemon.request("PATCH", location, Content_Length="0", **VERSION, **more).status == 201
        assert daemon.request("HEAD", location, **VERSION).status == 204
        assert delete(daemon, path).status == 204
        assert daemon.request("HEAD", location, **VERSION).status == 404
        more = {"Upload_Offset": "5", "Upload_Complete": "?1", "Content_Type": "application/partial-upload"}
        assert daemon.request("PATCH", location, b"world", **VERSION, **more).status == 404
        assert daemon.request("PUT", target, b"hello", **parts).status == 403
    assert not (daemon.store / "resumed").exists()
    assert not list((daemon.store / ".hmac-file-server").glob("*.data"))


def test_after_a_kill(make_daemon: MakeDaemon) -> None:
    """Whatever was answered with 204 stays dead, however the daemon ends, and also where DELETE is off again."""
    paths = [f"killed/{number}.bin" for number in range(20)]
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, Workers=2).start()
    for path in paths:
        assert daemon.put(path, b"hello").status == 201
        assert delete(daemon, path).status == 204
    daemon.stop(signal.SIGKILL)
    files = list((daemon.store / ".hmac-file-server/removed").iterdir())
    eventually(lambda: not subprocess.run(["fuser", *files], check=False, capture_output=True).stdout)
    daemon.config.write_text(daemon.config.read_text().replace("DeleteSecret", "# DeleteSecret"))
    daemon.start()
    for path in paths:
        assert daemon.put(path, b"hello").status == 403
        assert delete(daemon, path).status == 405


def test_several_daemons(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """What one daemon removes another one of the same store refuses from the next moment on."""
    here = make_daemon(tmp_path / "here", DeleteSecret=DELETE_SECRET, StoreDir=str(tmp_path / "store")).start()
    there = make_daemon(tmp_path / "there", StoreDir=str(tmp_path / "store")).start()
    for number in range(20):
        path = f"several/{number}.bin"
        assert there.put(path, b"hello").status == 201
        assert delete(here, path).status == 204
        assert there.put(path, b"hello").status == 403


def test_a_full_disk(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """On a full disk files can be removed, and then there is room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder]):
        missing("only root can mount")
    try:
        settings = {"StoreDir": str(folder / "store"), "MinFreeSpace": 0, "RetryDelay": 0.1}
        daemon = make_daemon(DeleteSecret=DELETE_SECRET, **settings).start()
        body = os.urandom(MIB)
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            stored = [number for number in range(9) if daemon.put(f"full/{number}.bin", body).status == 201]
            while True:
                filler.write(bytes(4096))
        assert daemon.refused("full/x.bin", MIB)[0] == 507
        for number in stored:
            assert delete(daemon, f"full/{number}.bin").status == 204
        eventually(lambda: daemon.put("full/y.bin", body).status == 201, what="there is room")
        for number in stored:
            assert daemon.put(f"full/{number}.bin", body).status == 403
        assert daemon.stop() is not None
    finally:
        subprocess.call(["umount", "-l", str(folder)])


def test_for_how_long(make_daemon: MakeDaemon) -> None:
    """After RememberRemoved a slot may be used again."""
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, RememberRemoved=2).start()
    assert delete(daemon, "a/b.bin").status == 204
    assert daemon.put("a/b.bin", b"hello").status == 403
    eventually(lambda: daemon.put("a/b.bin", b"hello").status == 201, what="it is forgotten")


def test_a_store_that_can_not_be_written(daemon: Daemon) -> None:
    """What can not be remembered is not removed: 500 or 503, and the file is still there."""
    assert daemon.put("a/b.bin", b"hello").status == 201
    folder = daemon.store / ".hmac-file-server/removed"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_bytes(b"")
    assert delete(daemon, "a/b.bin").status in (500, 503)
    assert (daemon.store / "a/b.bin").read_bytes() == b"hello"
    folder.unlink()
    assert delete(daemon, "a/b.bin").status == 204
