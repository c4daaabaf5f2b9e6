"""The status page of the real daemon, with one worker and with two."""

from __future__ import annotations

import html
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hmac_file_server import __version__
from tests.support import SECRET, Answer, Daemon, Wire, eventually, put_head, v

MakeDaemon = Callable[..., Daemon]
WORKERS = pytest.mark.parametrize("workers", [1, 2])
SIZE = 4 << 20


def ask(daemon: Daemon, target: str = "/") -> Answer:
    with Wire(daemon.metrics_port) as wire:
        return wire.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).answer()


def page(daemon: Daemon) -> str:
    """What a reader of the status page sees, with single spaces."""
    answer = ask(daemon)
    assert answer.status == 200
    body = re.sub(r"<(style|title)>.*?</\1>", " ", answer.body.decode(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@WORKERS
def test_what_has_been_done(make_daemon: MakeDaemon, workers: int) -> None:
    """Uploads, downloads and refusals are on the page, with what to do; nothing on it opens a file."""
    daemon = make_daemon(Workers=workers).start()
    eventually(lambda: "takes uploads" in page(daemon), what="it is ready")
    for number in range(6):
        assert daemon.put(f"4f2a{number}/a.bin", b"hello").status == 201
        assert daemon.get(f"4f2a{number}/a.bin").status == 200
    assert daemon.put("4f2a0/a.bin", b"other").status == 409
    assert daemon.request("PUT", f"/upload/4f2a1/b.bin?v={v('else', 5)}", b"hello").status == 403
    text = eventually(lambda: text if "signature 1 Ask" in (text := page(daemon)) else "", what="all are counted")
    for words in (
        f"version {__version__}, up for ",
        "uploads 6 in the last hour",
        "downloads 6 in the last hour",
        "conflict 1 Nothing",
        "warn PUT 409 conflict: the slot has been used for another file",
        "warn PUT 403 signature: the signature does not hold",
        f"store {daemon.store} used ",
        "MinFreeSpace 256.0 MiB",
        "configuration read at ",
    ):
        assert words in text
    assert ("worker 2 runs" in text) is (workers == 2)
    body = ask(daemon).body.decode()
    for hidden in (SECRET, "4f2a", "a.bin", "b.bin", "127.0.0.1", v("else", 5)[:8]):
        assert hidden not in body
    assert ask(daemon, "/upload/4f2a0/a.bin").status == 404


@WORKERS
@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("details", [False, True])
def test_an_upload_that_runs(make_daemon: MakeDaemon, workers: int, resumable: bool, details: bool) -> None:
    """The page shows how much of it has come, and whose it is only if it should; and forgets it when it is over."""
    daemon = make_daemon(Workers=workers, StatusDetails=details, TrustedProxies=[]).start()
    headers = ("Upload-Draft-Interop-Version: 6", "Upload-Complete: ?1") if resumable else ()
    with daemon.wire() as wire:
        wire.send(put_head("4f2a/holiday.jpg", SIZE, *headers) + bytes(1 << 20))
        text = eventually(lambda: text if "1.0 MiB of 4.0 MiB" in (text := page(daemon)) else "", what="a part")
        assert re.search(r"1\.0 MiB of 4\.0 MiB since \d\d:\d\d:\d\d \(\d+ s\)", text)
        assert ("holiday.jpg, 127.0.0.1" in text) is details
        assert ("holiday" in text) is details
        assert "4f2a" not in text
        if resumable:
            location = next(answer for answer in iter(wire.interim, None) if "location" in answer.headers)
            assert location.headers["location"].rpartition("/")[2] not in ask(daemon).body.decode()
        wire.send(bytes(1 << 20))
        eventually(lambda: "2.0 MiB of 4.0 MiB" in page(daemon), what="more of it")
        wire.send(bytes(SIZE - (2 << 20)))
        assert wire.final().status == 201
    eventually(lambda: "Uploads that run none" in page(daemon), what="it is over")


def test_a_worker_that_dies(make_daemon: MakeDaemon) -> None:
    """What went wrong in a worker that is gone is still told, and that it was started again."""
    daemon = make_daemon(Workers=2).start()
    eventually(lambda: "takes uploads" in page(daemon), what="it is ready")
    for _ in range(10):  # Each worker has some.
        assert daemon.request("PUT", "/upload/a/b.bin", b"hello").status == 403
    eventually(lambda: "signature 10 Ask" in page(daemon), what="all are counted")
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)
    eventually(lambda: page(daemon).count("runs, started again once") == 2, what="both run again")
    text = page(daemon)
    assert "warn PUT 403 signature: the signature does not hold (10 times)" in text
    assert re.search(r"error worker \d has ended", text)
    assert "signature 10 Ask" in text


def test_a_failed_reload(make_daemon: MakeDaemon) -> None:
    """A configuration that could not be read again is told, and why."""
    daemon = make_daemon().start()
    assert "configuration read at " in page(daemon)
    daemon.settings["MinRate"] = -1
    daemon.configure()
    os.kill(daemon.pid, signal.SIGHUP)
    text = eventually(lambda: text if "configuration stayed" in (text := page(daemon)) else "", what="it fails")
    assert "error the configuration stays as it was: " in text


def test_details_are_switched_on(make_daemon: MakeDaemon) -> None:
    """StatusDetails changes with a reload, too; but not where others could see them."""
    daemon = make_daemon().start()
    daemon.settings["StatusDetails"] = True
    daemon.configure()
    with daemon.wire() as wire:
        wire.send(put_head("4f2a/holiday.jpg", SIZE) + bytes(1 << 20))
        eventually(lambda: "1.0 MiB of 4.0 MiB" in page(daemon), what="a part")
        assert "holiday" not in page(daemon)
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: "holiday.jpg, 127.0.0.1" in page(daemon), what="its name")


def test_details_for_others(make_daemon: MakeDaemon) -> None:
    """With details, and a port that others can reach, the daemon does not start."""
    daemon = make_daemon(StatusDetails=True, MetricsPort="0.0.0.0:1").launch()
    assert daemon.process
    assert daemon.process.wait(60) == os.EX_CONFIG
    assert "StatusDetails = true: " in daemon.log
