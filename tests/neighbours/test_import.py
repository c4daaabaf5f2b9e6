"""What a real Prosody has stored by itself is taken over, and its links go on working."""

from __future__ import annotations

import email.utils
import json
import os
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from hmac_file_server.command.main import main
from tests.neighbours import xmpp
from tests.neighbours.prosody import FileShare, need_prosody
from tests.support import Daemon, missing

OTHER = 61001
TYPES = {
    "photo.jpg": ("image/png", "image/png"),
    "page.html": ("text/plain", "text/plain; charset=utf-8"),
    "notes": ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
    "unknown": ("application/vnd.example+json", "application/octet-stream"),
}


@attrs.frozen
class Uploaded:
    """A file that a client has uploaded to Prosody, and how Prosody serves it."""

    target: str
    body: bytes
    media_type: str
    modified: str


@attrs.frozen
class Old:
    """A Prosody that has ended, and its files."""

    share: FileShare
    files: list[Uploaded]


def need_sqlite() -> None:
    if not list(Path("/usr/lib").glob("**/lua/5.*/dbd/sqlite3.so")):
        missing("lua-dbi-sqlite3 is not installed")


@pytest.fixture(scope="module", params=["internal", "sql"])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Old:
    need_prosody()
    if request.param == "sql":
        need_sqlite()
    share = FileShare(tmp_path_factory.mktemp(request.param), request.param)
    try:
        kinds = dict.fromkeys(xmpp.AWKWARD_NAMES.values(), (None, "")) | TYPES
        found = []
        for name, (media_type, served) in kinds.items():
            body = os.urandom(10_000)
            url, downloaded = xmpp.upload("alice@localhost", share.port, name, body, media_type)
            assert downloaded == body
            found.append((url.removeprefix(f"http://localhost:{share.http_port}"), body, served))
        # What it keeps in memory of a new file is not what it keeps on the disk.
        share.program.end()
        share.start()
        files = []
        for target, body, served in found:
            answer = xmpp.fetch(share.http_port, target)
            assert (answer.status, answer.body) == (200, body)
            files.append(Uploaded(target, body, served, answer.headers["last-modified"]))
    finally:
        share.program.end()
    return Old(share, files)


def bring_over(daemon: Daemon, source: Path) -> dict[str, object]:
    arguments = ["import", "--from", "prosody", str(source), "--config", str(daemon.config), "--json"]
    found = CliRunner().invoke(main, [*arguments, "--expires-after", "30d"], catch_exceptions=False)
    report: dict[str, object] = json.loads(found.output)
    assert found.exit_code == 0, report
    return report


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "copied"])
def test_links_go_on_working(old: Old, make_daemon: Callable[..., Daemon], linked: bool) -> None:
    """Each file is served under its old path, with its bytes, its type and its time."""
    daemon = make_daemon(UploadSubDir="file_share/", MinFreeSpace=0)
    daemon.store.mkdir()
    if not linked:
        os.chown(daemon.store, OTHER, OTHER)
    count = len(old.files)
    report = bring_over(daemon, old.share.data)
    assert (report["imported"], report["linked"]) == (count, count if linked else 0)
    daemon.start()
    for file in old.files:
        answer = xmpp.fetch(daemon.port, file.target)
        assert (answer.status, answer.body) == (200, file.body), file.target
        if file.media_type:
            assert answer.headers["content-type"] == file.media_type
        if linked:
            stored = daemon.store / file.target.removeprefix("/file_share/").partition("/")[0]
            (path,) = stored.iterdir()
            assert answer.headers["last-modified"] == email.utils.formatdate(path.stat().st_mtime, usegmt=True)
            assert os.getxattr(path, "user.hmac_file_server.owner") == b"alice@localhost"
        else:
            assert answer.headers["last-modified"] == file.modified
    assert bring_over(daemon, old.share.data)["already_there"] == count
