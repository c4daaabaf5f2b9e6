"""Prosody hands out slots, by mod_http_upload_external and mod_http_file_share, and real clients use them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest
from slixmpp.plugins.xep_0363.http_upload import HTTPError

from tests.neighbours import xmpp
from tests.neighbours.program import run
from tests.neighbours.prosody import Prosody, need_prosody
from tests.support import Daemon, need

V1 = pytest.mark.parametrize("house", ["v1"], indirect=True)
TYPED = pytest.mark.parametrize("house", ["v2", "share"], indirect=True)
SHARE = pytest.mark.parametrize("house", ["share"], indirect=True)


@attrs.frozen
class House:
    """A daemon, and the Prosody that signs for it."""

    protocol: str
    daemon: Daemon
    prosody: Prosody

    def upload(self, name: str, body: bytes, media_type: str | None = None) -> tuple[str, bytes]:
        return xmpp.upload("alice@localhost", self.prosody.port, name, body, media_type)


@pytest.fixture(scope="module", params=["v1", "v2", "share"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests of a protocol."""
    need_prosody()
    folder = tmp_path_factory.mktemp(request.param)
    daemon = Daemon(folder)
    prosody = Prosody(folder, daemon, request.param)
    try:
        yield House(request.param, daemon.start(), prosody)
    finally:
        prosody.program.end()
        daemon.stop()


@pytest.mark.parametrize("name", xmpp.AWKWARD_NAMES.values(), ids=xmpp.AWKWARD_NAMES)
def test_awkward_names(house: House, name: str) -> None:
    """A file of any name is stored under that name, and comes back byte for byte in every spelling of its URL."""
    body = os.urandom(100_000)
    url, downloaded = house.upload(name, body)
    assert downloaded == body
    slot = re.fullmatch(rf"http://127.0.0.1:{house.daemon.port}/upload/([^/]+)/[^/?#]+", url)
    assert slot
    assert (house.daemon.store / slot[1] / name).read_bytes() == body
    for target in xmpp.spellings(url):
        answer = xmpp.fetch(house.daemon.port, target)
        assert (answer.status, answer.body) == (200, body)
        assert f"filename*=UTF-8''{quote(name, safe='!#$&+^`|')}" in answer.headers["content-disposition"]


@TYPED
@pytest.mark.parametrize(
    ("name", "media_type", "served"),
    [
        ("page.html", "text/plain", "text/plain; charset=utf-8"),
        ("photo.jpg", "image/png", "image/png"),
        ("Grüße.unknown", "application/vnd.example+json", "application/octet-stream"),
        ("notes.txt", "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("without-extension", "video/mp4", "video/mp4"),
    ],
)
def test_signed_type_is_served(house: House, name: str, media_type: str, served: str) -> None:
    """Where a type is signed the file is served with it, if it is harmless, whatever its extension says."""
    url, _ = house.upload(name, b"hello", media_type)
    for target in xmpp.spellings(url):
        answer = xmpp.fetch(house.daemon.port, target)
        assert (answer.headers["content-type"], answer.body) == (served, b"hello")


@V1
@pytest.mark.parametrize(
    ("name", "media_type"), [("photo.jpg", "image/jpeg"), ("Grüße.unknown", "application/octet-stream")]
)
def test_unsigned_type_is_not_believed(house: House, name: str, media_type: str) -> None:
    """With v1 the type that the client claims is not signed, so the extension decides."""
    url, _ = house.upload(name, b"hello", "text/html")
    assert xmpp.fetch(house.daemon.port, xmpp.spellings(url)[0]).headers["content-type"] == media_type


@SHARE
def test_owner_and_end_are_kept(house: House) -> None:
    """Whose a file is, and when it expires, lies beside it, and no cache is told to keep it longer."""
    url, _ = house.upload("photo.jpg", b"hello", "image/jpeg")
    target, _ = xmpp.spellings(url)
    file = house.daemon.store / target.removeprefix("/upload/")
    assert os.getxattr(file, "user.hmac_file_server.owner") == b"alice@localhost"
    left = int(os.getxattr(file, "user.hmac_file_server.expires")) - time.time()
    assert 29 * 86400 < left <= 30 * 86400
    age = re.search(r"max-age=(\d+)", xmpp.fetch(house.daemon.port, target).headers["cache-control"])
    assert age is not None
    assert left - 60 < int(age[1]) <= left


def test_large_file(house: House) -> None:
    """A file of many chunks comes back byte for byte, and so does its middle."""
    body = os.urandom(12_345_678)
    url, downloaded = house.upload("film.mp4", body)
    assert downloaded == body
    target, _ = xmpp.spellings(url)
    part = xmpp.fetch(house.daemon.port, target, Range="bytes=5000000-5999999")
    assert (part.status, part.body) == (206, body[5_000_000:6_000_000])


def test_empty_file(house: House) -> None:
    """A file of no bytes is stored and served."""
    url, downloaded = house.upload("empty.txt", b"")
    assert downloaded == b""
    answer = xmpp.fetch(house.daemon.port, xmpp.spellings(url)[1])
    assert (answer.status, answer.headers["content-length"]) == (200, "0")


def test_a_name_that_no_file_system_takes(house: House) -> None:
    """A name of 200 emoji is signed by Prosody, but refused by the daemon, and the client is told why."""
    before = house.daemon.files()
    with pytest.raises(HTTPError) as refused:
        house.upload("🎉" * 200, b"hello")
    status, text = refused.value.args
    assert status == 400
    assert "800 bytes" in text
    assert house.daemon.files() == before


def test_second_client(house: House, tmp_path: Path) -> None:
    """go-sendxmpp, which names a type with parameters, uploads too."""
    need("go-sendxmpp")
    path = tmp_path / "notes.txt"
    path.write_bytes(body := b"Hello!\n" * 10_000)
    before = house.daemon.files()
    server = f"127.0.0.1:{house.prosody.port}"
    account = ["-u", "alice@localhost", "-p", xmpp.PASSWORD, "-j", server, "-n"]
    run("go-sendxmpp", *account, "-h", path, "bob@localhost", cwd=tmp_path)
    (stored,) = house.daemon.files() - before
    assert stored.partition("/")[2] == path.name
    assert (house.daemon.store / stored).read_bytes() == body
    answer = house.daemon.get(stored)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
