"""With the secret of the example, which everybody knows, only programs on this machine upload."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hmac_file_server.slots.secret import EXAMPLE_SECRET
from tests.support import Answer, Daemon, eventually, need, put_target

EXAMPLE = EXAMPLE_SECRET.decode()
OWN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests."""
    daemon = Daemon(tmp_path_factory.mktemp("example"), Secret=[OWN, EXAMPLE]).start()
    yield daemon
    daemon.stop()


def put(
    daemon: Daemon,
    host: str = "localhost",
    more: str = "",
    secret: str = EXAMPLE,
    begin: str = "",
    version: str = "1.1",
) -> Answer:
    """An upload whose head is written out."""
    target = put_target(f"{os.urandom(4).hex()}/a.txt", 5, secret=secret)
    lines = [f"PUT {begin}{target} HTTP/{version}", f"Host: {host}", "Content-Length: 5"]
    with daemon.wire() as wire:
        wire.send("\r\n".join([*lines, *([more] if more else []), "", "hello"]).encode())
        return wire.answer()


def test_the_line_that_the_banner_prints(make_daemon: Callable[..., Daemon]) -> None:
    """The curl command that the daemon prints uploads a file, and fetches it."""
    need("curl")
    daemon = make_daemon(Secret=EXAMPLE).start()
    command = eventually(lambda: re.search(r"try it: (curl .*)", daemon.log))[1]
    assert subprocess.run(command, shell=True, capture_output=True, check=True).stdout == b"hello"


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:8080", "127.0.0.2", "[::1]:8080", "[::1]"])
def test_this_machine(daemon: Daemon, host: str) -> None:
    """A program that asks this machine by any of its own names may upload."""
    assert put(daemon, host).status == 201
    assert put(daemon, host, begin=f"http://{host}").status == 201
    assert put(daemon, host, f"Origin: http://{host}\r\nReferer: http://{host}/a?b").status == 201


REFUSED = {
    "another host": {"host": "upload.example.com"},
    "an address of a network": {"host": "192.0.2.1:8080"},
    "a name that begins so": {"host": "localhost.example.com"},
    "another host in the target": {"begin": "http://upload.example.com"},
    "X-Forwarded-For": {"more": "X-Forwarded-For: 127.0.0.1"},
    "X-Forwarded-Proto": {"more": "x-forwarded-proto: https"},
    "Forwarded": {"more": "Forwarded: for=127.0.0.1"},
    "X-Real-IP": {"more": "X-Real-IP: 127.0.0.1"},
    "Via": {"more": "Via: 1.1 proxy"},
    "HTTP/1.0": {"version": "1.0"},
    "a page elsewhere": {"more": "Origin: https://upload.example.com"},
    "a page without a name": {"more": "Origin: null"},
    "a link elsewhere": {"more": "Referer: https://upload.example.com/a"},
    "X-Original-URI": {"more": "X-Original-URI: /upload/a"},
}


@pytest.mark.parametrize("how", REFUSED.values(), ids=REFUSED)
def test_through_a_proxy(daemon: Daemon, how: dict[str, str]) -> None:
    """What a proxy hands on, or is for another host, is refused, and the log says what to do."""
    lines = len(daemon.log.splitlines())
    files = daemon.files()
    answer = put(daemon, **how)
    assert (answer.status, answer.body) == (403, b"the server's secret is the one of its example\n")
    line = eventually(lambda: [line for line in daemon.log.splitlines()[lines:] if " 403 " in line])[0]
    assert "only programs on this machine may upload" in line
    assert "openssl rand -hex 32" in line
    assert daemon.files() == files


@pytest.mark.parametrize("how", REFUSED.values(), ids=REFUSED)
def test_another_secret_beside_it(daemon: Daemon, how: dict[str, str]) -> None:
    """What is signed with a secret of the operator's own is taken from everywhere."""
    assert put(daemon, secret=OWN, **how).status == 201


def test_downloads(daemon: Daemon) -> None:
    """Files that are there are served to everybody."""
    (daemon.store / "there").write_bytes(b"hello")
    assert daemon.request("GET", "/upload/there", X_Forwarded_For="192.0.2.1").body == b"hello"


def test_weak_secret(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """A short secret is complained of at the start, and is not written to the log."""
    daemon = make_daemon(Secret="hunter2").start()
    eventually(lambda: "can be guessed" in daemon.log)
    assert f"{daemon.config}: Secret: a secret of 7 bytes can be guessed" in daemon.log
    assert "hunter2" not in daemon.log
