"""A store that the daemon may not write to, or not read: told at once, with the folder, the user and the remedy."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Daemon, eventually, missing, need, put_target

MakeDaemon = Callable[..., Daemon]

# To whom permissions apply, as to every other user.
AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"]
READY = "hmac_file_server_ready"
SMALL, LARGE = 5, 5 << 20
DENIED = "Permission denied, for the user root (0); give it to that user"


@pytest.fixture
def make_daemon(make_daemon: MakeDaemon) -> MakeDaemon:
    """Makes daemons to whom permissions apply."""
    need("setpriv")
    if os.geteuid() != 0:
        missing("the tests do not run as root")
    return lambda **settings: make_daemon(**({"prefix": AS_OTHERS, "MinFreeSpace": 0} | settings))


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    """A running daemon to whom permissions apply."""
    return make_daemon().start()


def logged(daemon: Daemon, text: str) -> None:
    eventually(lambda: text in daemon.log, what=text)


def test_a_store_that_can_not_be_written_to(daemon: Daemon) -> None:
    """Every upload is refused before its body, downloads go on, and all is well again when the folder is mended."""
    assert daemon.put("old/a.bin", b"hello").status == 201
    folder = daemon.store
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    eventually(lambda: daemon.metric(READY) == 0)
    for size in (SMALL, LARGE):
        assert daemon.refused("new/a.bin", size) == (500, None)
    assert daemon.put("new/a.bin", b"hello").status == 500
    logged(daemon, f"store: {folder}: {DENIED}")
    assert daemon.ready() == (503, eventually(lambda: daemon.ready()[1]))
    assert DENIED in daemon.ready()[1]
    assert daemon.get("old/a.bin").body == b"hello"
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="storage"}') == 3
    folder.chmod(mode)
    assert daemon.put("new/a.bin", b"hello").status == 201
    eventually(lambda: daemon.metric(READY) == 1)
    assert daemon.ready()[0] == 200


def test_the_drafts_folder_can_not_be_written_to(daemon: Daemon) -> None:
    """The operator is told. What needs no file there is taken; an upload in parts is refused."""
    folder = daemon.store / ".hmac-file-server"
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    eventually(lambda: daemon.metric(READY) == 0)
    logged(daemon, f"{folder}: {DENIED}")
    assert DENIED in eventually(lambda: daemon.ready()[1])
    assert daemon.put("new/a.bin", b"hello").status == 201
    headers = {
        "Upload_Draft_Interop_Version": "8",
        "Upload_Complete": "?0",
        "Upload_Length": "5",
        "Content_Length": "0",
    }
    assert daemon.request("PUT", put_target("parts/a.bin", 5), **headers).status == 500
    folder.chmod(mode)
    eventually(lambda: daemon.metric(READY) == 1)
    assert daemon.request("PUT", put_target("parts/a.bin", 5), **headers).status == 201


def test_a_folder_that_can_not_be_written_to(daemon: Daemon) -> None:
    """Only what goes into the folder is refused, a large upload before its body; the store as a whole is ready."""
    assert daemon.put("closed/a/a.bin", b"hello").status == 201
    folder = daemon.store / "closed"
    folder.chmod(0o555)
    assert daemon.refused("closed/b/b.bin", LARGE) == (500, None)
    assert daemon.put("closed/b/b.bin", b"hello").status == 500
    logged(daemon, f"store: {folder}: {DENIED}")
    # What is there already needs no folder.
    assert daemon.put("closed/a/a.bin", b"hello").status == 201
    assert daemon.put("closed/a/a.bin", b"jello").status == 409
    assert daemon.put("open/a.bin", b"hello").status == 201
    assert daemon.metric(READY) == 1
    assert os.listdir(daemon.store / ".hmac-file-server") == []


@pytest.mark.parametrize("what", ["slot", "slot/a.bin"])
def test_a_file_that_can_not_be_read(daemon: Daemon, what: str) -> None:
    """GET and HEAD are 500: the file is there, and nobody but the operator can help."""
    assert daemon.put("slot/a.bin", b"hello").status == 201
    (daemon.store / what).chmod(0)
    for method in ("GET", "HEAD"):
        answer = daemon.request(method, "/upload/slot/a.bin")
        assert (answer.status, answer.headers.get("retry-after")) == (500, None)
    logged(daemon, f"store: {daemon.store / what}: {DENIED}")


def test_upload_resources(daemon: Daemon) -> None:
    """An upload that can be resumed, and whose files can not be reached, is 500 to whoever asks for it or goes on."""
    version = {"Upload_Draft_Interop_Version": "6"}
    begun = daemon.request("PUT", put_target("slot/a.bin", 10), b"hello", Upload_Complete="?0", Upload_Length="10",
                           **version)  # fmt: skip
    assert begun.status == 201
    resource = begun.headers["location"]
    folder = daemon.store / ".hmac-file-server"
    folder.chmod(0)
    ask = {"Upload_Offset": "5", "Upload_Complete": "?1", "Content_Type": "application/partial-upload"} | version
    answers = [
        daemon.request("HEAD", resource, **version),
        daemon.request("PATCH", resource, b"world", **ask),
        daemon.request("DELETE", resource, **version),
    ]
    assert [(answer.status, answer.headers.get("retry-after")) for answer in answers] == [(500, None)] * 3
    logged(daemon, f"store: {folder}: {DENIED}")
    assert resource.rpartition("/")[2] not in daemon.log
    folder.chmod(0o700)
    assert daemon.request("PATCH", resource, b"world", **ask).status == 201
    assert daemon.get("slot/a.bin").body == b"helloworld"


def test_an_immutable_folder(daemon: Daemon) -> None:
    """A folder that must not change (chattr +i) is told as such."""
    need("chattr")
    assert daemon.put("slot/a.bin", b"hello").status == 201
    folder = daemon.store / "slot"
    if subprocess.call(["chattr", "+i", folder], stderr=subprocess.DEVNULL):
        pytest.skip("this file system has no such flag")
    try:
        assert daemon.refused("slot/b.bin", LARGE) == (500, None)
        logged(daemon, f"store: {folder}: Operation not permitted, for the user root (0); look for an immutable flag")
    finally:
        subprocess.check_call(["chattr", "-i", folder])


def test_at_the_start(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A StoreDir that can not be written to ends the start, with the folder, the user and the remedy."""
    store = tmp_path / "store"
    store.mkdir(0o555)
    daemon = make_daemon().launch()
    assert daemon.process is not None
    assert daemon.process.wait(60) != 0
    assert f"{store}: {DENIED}" in daemon.log
