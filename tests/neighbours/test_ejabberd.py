"""ejabberd's mod_http_upload hands out slots with external_secret, and a real client uses them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, unquote

import attrs
import pytest
from slixmpp.plugins.xep_0363.http_upload import FileTooBig

from tests.neighbours import xmpp
from tests.neighbours.ejabberd import Ejabberd, need_ejabberd
from tests.support import Daemon, eventually


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


def test_the_owner_is_kept(house: House) -> None:
    """The first part of ejabberd's paths, one for each user, is kept as the file's owner."""
    before = house.daemon.files()
    house.upload("photo.jpg", b"hello")
    (stored,) = house.daemon.files() - before
    owner = os.getxattr(house.daemon.store / stored, "user.hmac_file_server.owner").decode()
    assert owner == stored.partition("/")[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_several_hosts(make_daemon: Callable[..., Daemon], tmp_path: Path, workers: int) -> None:
    """Users of two hosts upload at once, each to their own host's folder; nobody sees a file at the other's URL."""
    need_ejabberd()
    names = ["localhost", "other.localhost"]
    hosts = [{"UploadSubDir": f"upload/{name}/", "StoreDir": str(tmp_path / name)} for name in names]
    daemon = make_daemon(StoreDir=None, hosts=hosts, Workers=workers).start()
    eventually(lambda: daemon.log.count("share a secret") == 1, what="a warning of the one secret")
    # ejabberd insists on @HOST@ where it has several.
    ejabberd = Ejabberd(tmp_path, daemon, ('/upload"', '/upload/@HOST@"'), hosts=names)
    bodies = {(name, number): os.urandom(300_000) for name in names for number in range(4)}

    def upload(name: str, number: int) -> tuple[str, bytes]:
        return xmpp.upload(f"alice@{name}", ejabberd.port, "photo.jpg", bodies[name, number])

    try:
        with ThreadPoolExecutor(len(bodies)) as pool:
            done = {key: pool.submit(upload, *key) for key in bodies}
        for (name, number), future in done.items():
            url, body = future.result()
            assert body == bodies[name, number]
            target = url.removeprefix(f"http://127.0.0.1:{daemon.port}")
            assert target.startswith(f"/upload/{name}/")
            slot = target.removeprefix(f"/upload/{name}/")
            assert (tmp_path / name / slot).read_bytes() == body
            (other,) = set(names) - {name}
            assert xmpp.fetch(daemon.port, f"/upload/{other}/{slot}").status == 404
            assert not (tmp_path / other / slot).exists()
        for name in names:
            label = f'{{host="upload/{name}"}}'
            eventually(lambda: daemon.metric("hmac_file_server_uploads_total", label) == 4, what=label)  # noqa: B023
            assert daemon.log.count(f"host=upload/{name} ") == 12  # four uploads, downloads, and looks by the other
    finally:
        ejabberd.program.end()
