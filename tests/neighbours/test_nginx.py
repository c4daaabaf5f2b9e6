"""nginx in front of the daemon, over TCP and over a Unix socket, with the configuration in contrib."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest

from tests import support
from tests.neighbours.nginx import NAME, Nginx
from tests.neighbours.xmpp import AWKWARD_NAMES
from tests.support import Answer, Daemon, eventually, need

MIB = 1 << 20
MOST = 64 * MIB
# The example's is refused at a Unix socket, which may be open to all.
SECRET = "correct-horse-battery-staple"


@attrs.frozen
class House:
    """A daemon, and the nginx before it."""

    daemon: Daemon
    nginx: Nginx

    def request(
        self, method: str, target: str, body: bytes = b"", source: str = "127.0.0.1", **headers: str
    ) -> Answer:
        with self.nginx.wire(source) as wire:
            return wire.send(head(method, target, len(body), **headers) + body).answer(head=method == "HEAD")


def put_target(path: str, size: int) -> str:
    return support.put_target(path, size, secret=SECRET)


def head(method: str, target: str, size: int | None = 0, **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {NAME}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if size or method == "PUT":
        lines.append("Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}")
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture(scope="module", params=["tcp", "unix"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests of a way to listen."""
    need("nginx", "openssl")
    folder = tmp_path_factory.mktemp(request.param)
    # The tests' own folders are closed to the user that nginx's workers run as.
    open_folder = Path(tempfile.mkdtemp())
    open_folder.chmod(0o755)
    settings = {"MaxUploadSize": MOST, "Secret": SECRET}
    if request.param == "unix":
        settings["ListenPort"] = f"unix:{open_folder}/http.sock:mode=666"
    daemon = Daemon(folder, **settings)
    try:
        daemon.start()
        nginx = Nginx(folder, f"unix:{daemon.socket}" if daemon.socket else f"127.0.0.1:{daemon.port}")
        try:
            yield House(daemon, nginx)
        finally:
            nginx.program.end()
    finally:
        daemon.stop()
        shutil.rmtree(open_folder)


def arrived(daemon: Daemon) -> int:
    """Bytes in the files of the store that the daemon has open."""
    total = 0
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        try:
            if os.readlink(entry).startswith(str(daemon.store)) and stat.S_ISREG((status := entry.stat()).st_mode):
                total += status.st_size
        except FileNotFoundError:
            continue
    return total


@pytest.mark.parametrize("name", AWKWARD_NAMES.values(), ids=AWKWARD_NAMES)
def test_upload_and_download(house: House, name: str) -> None:
    """A file of any name goes up and comes down through nginx in the spelling that the client chose."""
    slot = f"{os.urandom(8).hex()}/{name}"
    body = os.urandom(300_000)
    assert house.request("PUT", put_target(slot, len(body)), body).status == 201
    assert (house.daemon.store / slot).read_bytes() == body
    for spelling in (quote(slot), quote(slot, safe="/!$&'()*+,;=:@"), "".join(f"%{b:02x}" for b in name.encode())):
        target = f"/upload/{spelling if '/' in spelling else slot.partition('/')[0] + '/' + spelling}"
        answer = house.request("GET", target)
        assert (answer.status, answer.body) == (200, body)
        answer = house.request("HEAD", target)
        assert (answer.status, answer.headers["content-length"]) == (200, "300000")
        answer = house.request("GET", target, Range="bytes=100000-")
        assert (answer.status, answer.body) == (206, body[100_000:])


def test_spelling_is_left_alone(house: House) -> None:
    """nginx does not decode the URL, so a slash that was encoded is seen by the daemon, which refuses it."""
    target = put_target("encoded/folder/a.bin", 5)
    assert house.request("PUT", target.replace("folder/a", "folder%2Fa"), b"hello").status == 400
    assert not (house.daemon.store / "encoded").exists()
    assert house.request("PUT", target, b"hello").status == 201


def test_client_address(house: House) -> None:
    """The log names the client's address as nginx saw it, whatever the client claims."""
    claims = {"X_Forwarded_For": "192.0.2.66", "Forwarded": "for=192.0.2.67"}
    slot = f"{os.urandom(8).hex()}/address.txt"
    assert house.request("PUT", put_target(slot, 5), b"hello", source="127.0.0.2", **claims).status == 201
    assert house.request("GET", f"/upload/{slot}", source="127.0.0.3", **claims).status == 200
    eventually(lambda: house.daemon.log.count(slot) > 1, what="both lines are logged")
    lines = [line for line in house.daemon.log.splitlines() if slot in line]
    assert f" 127.0.0.2 PUT /upload/{slot} 201 " in lines[0]
    assert f" 127.0.0.3 GET /upload/{slot} 200 " in lines[1]


def test_large_body_is_not_buffered(house: House) -> None:
    """The daemon stores the first half of a large body before the client has sent the second."""
    slot = f"{os.urandom(8).hex()}/film.mp4"
    body = os.urandom(32 * MIB)
    with house.nginx.wire() as wire:
        wire.send(head("PUT", put_target(slot, len(body)), len(body)) + body[: 16 * MIB])
        eventually(lambda: arrived(house.daemon) >= 14 * MIB, what="the first half is on the disk")
        assert not any((house.nginx.folder / "body").iterdir())
        assert wire.send(body[16 * MIB :]).answer().status == 201
    assert (house.daemon.store / slot).read_bytes() == body
    assert house.request("GET", f"/upload/{slot}").body == body


def test_broken_off_upload(house: House) -> None:
    """A client that leaves in the middle leaves nothing behind, and its slot works again."""
    slot = f"{os.urandom(8).hex()}/film.mp4"
    body = os.urandom(4 * MIB)
    before = house.daemon.files()
    with house.nginx.wire() as wire:
        wire.send(head("PUT", put_target(slot, len(body)), len(body)) + body[: 3 * MIB])
        eventually(lambda: arrived(house.daemon) > 0, what="its beginning is on the disk")
    eventually(lambda: house.daemon.metric("hmac_file_server_uploads_in_progress") == 0)
    eventually(lambda: arrived(house.daemon) == 0)
    assert house.daemon.files() == before
    assert house.request("PUT", put_target(slot, len(body)), body).status == 201
    assert house.request("GET", f"/upload/{slot}").body == body


REFUSALS = {
    "signature": ("slot/a.bin", 8 * MIB, "&v=" + "0" * 64, 403),
    "no-signature": ("slot/a.bin", 8 * MIB, None, 403),
    "too-large": ("slot/a.bin", MOST + 1, "", 413),
    "path": ("slot/.hmac-file-server-x", 8 * MIB, "", 400),
    "no-length": ("slot/a.bin", None, "", 411),
}


@pytest.mark.parametrize(("path", "size", "tail", "status"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_comes_before_the_body(
    house: House, path: str, size: int | None, tail: str | None, status: int
) -> None:
    """A client that waits after its headers reads the daemon's refusal, headers and all."""
    target = put_target(path, size or 0)
    target = target.partition("?")[0] if tail is None else target + tail
    with house.nginx.wire() as wire:
        answer = wire.send(head("PUT", target, size)).answer()
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "nginx" not in answer.body.decode()
    assert not (house.daemon.store / "slot").exists()


@pytest.mark.parametrize("size", [10_000, 24 * MIB])
def test_refusal_reaches_a_client_that_goes_on_sending(house: House, size: int) -> None:
    """A client that sends its whole body before it reads finds the refusal too."""
    answer = house.request("PUT", f"/upload/slot/a.bin?v={'0' * 64}", b"x" * size)
    assert answer.status == 403
    assert b"signature" in answer.body


def test_conflict(house: House) -> None:
    """Other bytes for a slot that is used are refused after the body, and the first file stays."""
    slot = f"{os.urandom(8).hex()}/a.bin"
    first, second = os.urandom(3 * MIB), os.urandom(3 * MIB)
    assert [house.request("PUT", put_target(slot, 3 * MIB), body).status for body in (first, first, second)] == [
        201,
        201,
        409,
    ]
    assert (house.daemon.store / slot).read_bytes() == first


@pytest.mark.parametrize("house", ["unix"], indirect=True)
def test_unix_socket_is_open_to_nginx(house: House) -> None:
    """mode=666 in ListenPort is the mode of the socket."""
    assert house.daemon.socket
    assert stat.S_IMODE(house.daemon.socket.stat().st_mode) == 0o666
