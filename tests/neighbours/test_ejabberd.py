"""ejabberd's mod_http_upload hands out slots with external_secret, and a real client uses them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

import attrs
import pytest
from slixmpp.plugins.xep_0363.http_upload import FileTooBig

from tests.neighbours import xmpp
from tests.neighbours.ejabberd import Ejabberd, need_ejabberd
from tests.support import Daemon


@attrs.frozen
class House:
    """A daemon, and the ejabberd that signs for it."""

    daemon: Daemon
    ejabberd: Ejabberd

    def upload(self, name: str, body: bytes, media_type: str | None = None) -> tuple[str, bytes]:
        return xmpp.upload("alice@localhost", self.ejabberd.port, name, body, media_type)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests here."""
    need_ejabberd()
    folder = tmp_path_factory.mktemp("ejabberd")
    daemon = Daemon(folder)
    try:
        ejabberd = Ejabberd(folder, daemon.start())
        try:
            yield House(daemon, ejabberd)
        finally:
            ejabberd.program.end()
    finally:
        daemon.stop()


@pytest.mark.parametrize("name", xmpp.AWKWARD_NAMES.values(), ids=xmpp.AWKWARD_NAMES)
def test_awkward_names(house: House, name: str) -> None:
    """A file of any name is stored under the one that ejabberd makes of it, and comes back byte for byte."""
    body = os.urandom(100_000)
    before = house.daemon.files()
    url, downloaded = house.upload(name, body)
    assert downloaded == body
    (stored,) = house.daemon.files() - before
    # ejabberd keeps letters and digits of any script, and writes _ for most of the rest.
    assert re.fullmatch(r"[0-9a-f]{40}/\w{40}/[\w.-]+", stored)
    assert unquote(url) == f"http://127.0.0.1:{house.daemon.port}/upload/{stored}"
    assert (house.daemon.store / stored).read_bytes() == body
    for target in xmpp.spellings(url):
        answer = xmpp.fetch(house.daemon.port, target)
        assert (answer.status, answer.body) == (200, body)
        assert f"filename*=UTF-8''{quote(stored.rpartition('/')[2])}" in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("name", "media_type"), [("photo.jpg", "image/jpeg"), ("Grüße.unknown", "application/octet-stream")]
)
def test_unsigned_type_is_not_believed(house: House, name: str, media_type: str) -> None:
    """ejabberd does not sign the type that the client claims, so the extension decides."""
    url, _ = house.upload(name, b"hello", "text/html")
    assert xmpp.fetch(house.daemon.port, xmpp.spellings(url)[0]).headers["content-type"] == media_type


def test_large_file(house: House) -> None:
    """A file of many chunks comes back byte for byte, and so does its middle."""
    body = os.urandom(12_345_678)
    url, downloaded = house.upload("film.mp4", body)
    assert downloaded == body
    part = xmpp.fetch(house.daemon.port, xmpp.spellings(url)[0], Range="bytes=5000000-5999999")
    assert (part.status, part.body) == (206, body[5_000_000:6_000_000])


def test_limit_of_the_example(house: House) -> None:
    """A client that asks for a slot above the example's max_size is told so by ejabberd."""
    before = house.daemon.files()
    with pytest.raises(FileTooBig):
        house.upload("film.mp4", bytes(100 * (1 << 20) + 1))
    assert house.daemon.files() == before
