"""nginx, HAProxy, Caddy and Apache in front of the daemon, each as its file in contrib sets it up, over TLS.

What phones and browsers do must work through each, with HTTP/2 and HTTP/1.1, several requests on one connection.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import attrs
import pytest

from hmac_file_server.slots.issue import PROTOCOLS
from hmac_file_server.slots.signature import sign
from tests.bearer import token
from tests.neighbours.apache import Apache
from tests.neighbours.caddy import Caddy
from tests.neighbours.haproxy import HAProxy
from tests.neighbours.nginx import BUFFERED, HTTP_1_0, NewestNginx, Nginx
from tests.neighbours.proxy import NAME, Http1, Http2, Proxy
from tests.neighbours.xmpp import AWKWARD_NAMES
from tests.process.test_command import MAIN
from tests.support import SECRET, Answer, Daemon, eventually, free_port, need, put_target

MIB = 1 << 20
MOST = 8 * MIB
RESERVED = ".hmac-file-server"
DELETE_SECRET = "delete7-secret23-of91-metronome17"

Client = Http1 | Http2


@attrs.frozen
class Setup:
    """A proxy and the daemon's configuration.

    :param changes: to the proxy's file in contrib.
    """

    proxy: type[Proxy]
    changes: tuple[tuple[str, str], ...] = ()
    passes_104: bool = False
    unix: bool = False


SETUPS = {
    "nginx": Setup(Nginx),
    "nginx buffered": Setup(Nginx, (BUFFERED,)),
    "nginx with HTTP/1.0": Setup(Nginx, (HTTP_1_0,)),
    "nginx buffered with HTTP/1.0": Setup(Nginx, (BUFFERED, HTTP_1_0)),
    "newest nginx": Setup(NewestNginx),
    "newest nginx with its default": Setup(NewestNginx, (HTTP_1_0,)),
    "HAProxy": Setup(HAProxy, passes_104=True),
    "HAProxy by default": Setup(HAProxy),
    "Caddy": Setup(Caddy, passes_104=True),
    "Caddy by default": Setup(Caddy),
    "Apache": Setup(Apache),
}

UNIX = {
    "nginx at a Unix socket": Setup(Nginx, unix=True),
    "HAProxy at a Unix socket": Setup(HAProxy, passes_104=True, unix=True),
    "Caddy at a Unix socket": Setup(Caddy, passes_104=True, unix=True),
    "Apache at a Unix socket": Setup(Apache, unix=True),
}

BUFFERING = {
    "HAProxy that buffers": Setup(
        HAProxy, (("    option forwardfor\n", "    option forwardfor\n    option http-buffer-request\n"),)
    ),
    "Caddy that buffers": Setup(
        Caddy, (("\t\ttransport http", "\t\tbuffer_requests\n\t\tmax_buffer_size 1GB\n\t\ttransport http"),)
    ),
    "Apache that buffers": Setup(
        Apache,
        (
            ("<VirtualHost", "LoadModule buffer_module /usr/lib/apache2/modules/mod_buffer.so\n<VirtualHost"),
            ("    LimitRequestBody", "    SetInputFilter BUFFER\n    LimitRequestBody"),
        ),
    ),
}

PASSING = [name for name, setup in SETUPS.items() if setup.passes_104]
UNBUFFERED = [name for name, setup in SETUPS.items() if BUFFERED not in setup.changes and setup.proxy is not Apache]


@attrs.frozen
class House:
    """A daemon, and the proxy before it."""

    daemon: Daemon
    proxy: Proxy
    passes_104: bool

    def connect(self, protocol: str, source: str = "127.0.0.1") -> Client:
        return self.proxy.http2(source) if protocol == "HTTP/2" else self.proxy.wire(source)


@pytest.fixture(scope="module", params=SETUPS)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests of a setup."""
    setup = (SETUPS | UNIX | BUFFERING)[request.param]
    need(setup.proxy.command, "openssl")
    # What pytest makes is closed to the users that the proxies' workers run as.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("body", "proxy"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    settings = {"ListenPort": f"unix:{folder}/http.sock:mode=666"} if setup.unix else {}
    daemon = Daemon(
        tmp_path_factory.mktemp("daemon"),
        MaxUploadSize=MOST,
        ProxiesPass104=setup.passes_104,
        DeleteSecret=DELETE_SECRET,
        **settings,
    )
    try:
        proxy = setup.proxy(folder, daemon.start(), *setup.changes)
        try:
            yield House(daemon, proxy, setup.passes_104)
        finally:
            proxy.program.end()
        assert "Traceback" not in daemon.log
    finally:
        daemon.stop()
        shutil.rmtree(folder)


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def slot() -> str:
    """A path that no other test uses."""
    return f"{os.urandom(8).hex()}/photo.jpg"


def ask(
    client: Client, method: str, target: str, body: bytes | None = None, size: int | None = None, **headers: str
) -> Answer:
    """One request on a connection that stays, and its answer.

    :param size: of the body in the headers, where that is longer than what is sent of it.
    """
    length = size if size is not None or body is None else len(body)
    client.begin(method, target, length, **headers)
    if body:
        client.send(body)
    return client.final()


def upload(client: Client, slot: str, body: bytes, **headers: str) -> Answer:
    return ask(client, "PUT", put_target(slot, len(body)), body, **headers)


def resumable(version: int, complete: bool = True, **headers: str) -> dict[str, str]:
    """What an iPhone adds to a request by itself."""
    name, value = ("Upload_Incomplete", not complete) if version == 3 else ("Upload_Complete", complete)
    return {"Upload_Draft_Interop_Version": str(version), name: f"?{int(value)}", **headers}


def kept(daemon: Daemon) -> set[str]:
    return {name for name in daemon.files() if name.startswith(RESERVED)}


def arrived(daemon: Daemon) -> int:
    """Bytes in the files of the store that the daemon has open, but for its memory of removed slots."""
    total = 0
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        try:
            path, status = os.readlink(entry), entry.stat()
            is_ours = path.startswith(str(daemon.store)) and not path.endswith(".removed")
            if is_ours and stat.S_ISREG(status.st_mode):
                total += status.st_size
        except FileNotFoundError:
            continue
    return total


# Uploads that ask to be resumable


@pytest.mark.parametrize("size", [2, MOST])
@pytest.mark.parametrize("version", [3, 6])
def test_an_iphone_uploads(house: House, protocol: str, version: int, size: int, slot: str) -> None:
    """Its uploads arrive, two and a download on one connection; it hears of its upload resource where 104 passes."""
    before = kept(house.daemon)
    body = os.urandom(size)
    with house.connect(protocol) as client:
        for number in range(2):
            answer = upload(client, f"{number}-{slot}", body, **resumable(version))
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (201, "*")
            locations = [interim.headers.get("location") for interim in client.interims]
            assert len([location for location in locations if location]) == int(house.passes_104)
            assert {interim.status for interim in client.interims} == ({104} if house.passes_104 else set())
            assert (house.daemon.store / f"{number}-{slot}").read_bytes() == body
        assert ask(client, "GET", f"/upload/0-{slot}").body == body
    assert len(kept(house.daemon) - before) == (2 if house.passes_104 else 0)


@pytest.mark.parametrize("version", [3, 6, 9])
def test_an_upload_in_parts(house: House, protocol: str, version: int, slot: str) -> None:
    """An upload that is begun with a part goes on through any proxy, for its final answer says where."""
    body = os.urandom(3 * MIB)
    length = {"Upload_Length": str(len(body))}
    with house.connect(protocol) as client:
        target = put_target(slot, len(body))
        answer = ask(client, "PUT", target, body[:MIB], **resumable(version, False), **length)
        assert answer.status == 201
        location = answer.headers["location"]
        for begin, end in ((MIB, 2 * MIB), (2 * MIB, 3 * MIB)):
            answer = ask(client, "HEAD", location, Upload_Draft_Interop_Version=str(version))
            assert (answer.status, answer.headers["upload-offset"]) == (204, str(begin))
            headers = resumable(version, end == len(body), Upload_Offset=str(begin))
            headers["Content_Type"] = "application/partial-upload"
            answer = ask(client, "PATCH", location, body[begin:end], **headers)
            assert answer.status in (201, 204)
            assert all(interim.status == 104 for interim in client.interims)
            assert house.passes_104 or not client.interims
        assert ask(client, "GET", f"/upload/{slot}").body == body


@pytest.mark.parametrize("house", PASSING, indirect=True)
@pytest.mark.parametrize("version", [3, 6])
def test_an_iphone_goes_on_after_a_cut(house: House, protocol: str, version: int, slot: str) -> None:
    """Where 104 passes a whole upload that was cut off goes on where it was, on a new connection."""
    body = os.urandom(MOST)
    with house.connect(protocol) as client:
        client.begin("PUT", put_target(slot, MOST), MOST, **resumable(version))
        client.send(body[: MOST // 2])
        eventually(lambda: arrived(house.daemon) > MIB, what="its beginning is on the disk")
        location = heard(client)
    with house.connect(protocol) as client:
        answer = ask(client, "HEAD", location, Upload_Draft_Interop_Version=str(version))
        assert answer.status == 204
        offset = int(answer.headers["upload-offset"])
        assert 0 < offset <= MOST // 2
        headers = resumable(version, Upload_Offset=str(offset), Content_Type="application/partial-upload")
        assert ask(client, "PATCH", location, body[offset:], **headers).status == 201
        assert ask(client, "GET", f"/upload/{slot}").body == body


def heard(client: Client) -> str:
    """Where the upload can be gone on with, by the 104 that has come while its body was sent."""
    interim = client.interim()
    assert interim.status == 104
    return interim.headers["location"]


def test_a_cut_leaves_nothing_that_nobody_hears_of(house: House, protocol: str, slot: str) -> None:
    """Where no 104 is sent nothing is kept of an upload that was cut off, and its slot works again."""
    if house.passes_104:
        pytest.skip("it is kept here")
    body = os.urandom(4 * MIB)
    before = house.daemon.files()
    with house.connect(protocol) as client:
        client.begin("PUT", put_target(slot, len(body)), len(body), **resumable(6))
        client.send(body[: 3 * MIB])
    eventually(lambda: house.daemon.running() == 0)
    eventually(lambda: arrived(house.daemon) == 0)
    assert house.daemon.files() == before
    with house.connect(protocol) as client:
        assert upload(client, slot, body, **resumable(6)).status == 201


# The command


@pytest.mark.parametrize("signs", PROTOCOLS)
def test_put(house: House, signs: str, tmp_path: Path) -> None:
    """``hmac-file-server put`` uploads through the proxy, small files and those that it would resume."""
    bodies = {"smäll.txt": b"small", "large.bin": os.urandom(3 * MIB)}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    trusted = os.environ | {"SSL_CERT_FILE": str(house.proxy.certificate)}
    # Its name is in no DNS.
    found = f"lambda name, *more, **named: resolve('127.0.0.1' if name == {NAME!r} else name, *more, **named)"
    run = [sys.executable, "-c", f"import socket; resolve = socket.getaddrinfo; socket.getaddrinfo = {found}; {MAIN}"]
    options = ["--protocol", signs, "-c", house.daemon.config, "--url", f"https://{NAME}:{house.proxy.port}/upload"]
    ended = subprocess.run(
        [*run, "put", *map(str, options), *bodies],
        cwd=tmp_path,
        env=trusted,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    paths = [urlsplit(url).path.partition("/upload/")[2] for url in ended.stdout.splitlines()]
    assert [(house.daemon.store / unquote(path)).read_bytes() for path in paths] == list(bodies.values())
    assert "again" not in ended.stderr


# Tokens


@pytest.mark.parametrize("asks_as", [None, 6], ids=["plain", "resumable"])
def test_tokens(house: House, protocol: str, asks_as: int | None, slot: str) -> None:
    """The token of mod_http_file_share gets through, and so does the reason of its refusal."""
    body, others = os.urandom(300_000), {} if asks_as is None else resumable(asks_as)
    target = f"/upload/{slot}"
    with house.connect(protocol) as client:
        for made, status in ((token(slot, len(body)), 201), (token(slot, len(body)), 201)):
            answer = ask(client, "PUT", target, body, Authorization=f"Bearer {made.decode()}", **others)
            assert answer.status == status
        assert ask(client, "GET", target).headers["content-type"] == "image/png"
    with house.connect(protocol) as client:
        answer = ask(client, "PUT", target, b"hello", Authorization=f"Bearer {token(slot, 5, exp=1000).decode()}")
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    assert os.getxattr(house.daemon.store / slot, "user.hmac_file_server.owner") == b"juliet@example.com"


def test_removal(house: House, protocol: str, slot: str) -> None:
    """DELETE gets through, and what it has removed is gone for whoever comes through the proxy."""
    with house.connect(protocol) as client:
        assert upload(client, slot, b"hello").status == 201
        assert ask(client, "GET", f"/upload/{slot}").body == b"hello"
        signature = sign(SECRET.encode(), f"{slot}\0{DELETE_SECRET}".encode())
        for _ in range(2):
            assert ask(client, "DELETE", f"/upload/{slot}?token={signature}").status == 204
        assert ask(client, "GET", f"/upload/{slot}").status == 404
    with house.connect(protocol) as client:
        assert upload(client, slot, b"hello").status == 403


# All others


def test_plain_requests(house: House, protocol: str, slot: str) -> None:
    """PUT, GET, HEAD, ranges and preflights are answered as by the daemon alone, all on one connection."""
    body = os.urandom(300_000)
    target = f"/upload/{slot}"
    with house.connect(protocol) as client:
        answers = [
            upload(client, slot, body),
            ask(client, "GET", target),
            ask(client, "HEAD", target),
            ask(client, "GET", target, Range="bytes=100000-"),
            ask(client, "GET", target, Range="bytes=300000-"),
            ask(client, "GET", target, If_None_Match="*"),
            ask(client, "OPTIONS", target, Origin="https://web.example", Access_Control_Request_Method="PUT"),
            ask(client, "GET", f"/upload/no-{slot}"),
            upload(client, slot, body),
            upload(client, slot, body[::-1]),
        ]
    assert [answer.status for answer in answers] == [201, 200, 200, 206, 416, 304, 204, 404, 201, 409]
    _, got, head, part, beyond, *_ = answers
    assert got.body == body
    assert head.headers["content-length"] == "300000"
    assert (part.body, part.headers["content-range"]) == (body[100_000:], "bytes 100000-299999/300000")
    assert beyond.headers["content-range"] == "bytes */300000"
    assert got.headers["etag"] == head.headers["etag"]
    assert answers[6].headers["access-control-allow-methods"] == "OPTIONS, HEAD, GET, PUT, DELETE"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "content-security-policy" in got.headers
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"


REFUSALS = {
    "signature": ("slot/a.bin", MIB, "&v=" + "0" * 64, 403),
    "no signature": ("slot/a.bin", MIB, None, 403),
    "too large": ("slot/a.bin", MOST + 1, "", 413),
    "path": ("slot/.hmac-file-server-x", MIB, "", 400),
}


@pytest.mark.parametrize("sends", [True, False], ids=["sends", "waits"])
@pytest.mark.parametrize(("path", "size", "tail", "status"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(
    house: House, protocol: str, path: str, size: int, tail: str | None, status: int, sends: bool
) -> None:
    """A refusal reaches the client with the daemon's own headers, whether it sends its body or waits for an answer."""
    if not sends and (protocol not in house.proxy.early or BUFFERED in house.proxy.changes):
        pytest.skip("this proxy waits for the body")
    target = put_target(path, size)
    target = target.partition("?")[0] if tail is None else target + tail
    with house.connect(protocol) as client:
        answer = ask(client, "PUT", target, bytes(size) if sends else None, size)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert not (house.daemon.store / "slot").exists()


@pytest.mark.parametrize("house", [*SETUPS, *UNIX, *BUFFERING], indirect=True)
@pytest.mark.parametrize("status", [403, 413])
def test_a_large_body_that_is_refused(house: House, protocol: str, status: int, slot: str) -> None:
    """However large the body, its client reads the daemon's refusal, and a browser can, too."""
    size = 100 * MIB
    target = f"/upload/{slot}?v={'0' * 64}" if status == 403 else put_target(slot, size)
    with house.connect(protocol) as client:
        client.begin("PUT", target, size)
        for _ in range(size // MIB):
            client.send(bytes(MIB))
        answer = client.final()
    assert (answer.status, answer.headers.get("access-control-allow-origin")) == (status, "*")


@pytest.mark.parametrize("house", UNBUFFERED, indirect=True)
def test_a_large_body_is_not_buffered(house: House, protocol: str, slot: str) -> None:
    """The daemon stores the first half of a large body before the client has sent the second."""
    body = os.urandom(MOST)
    with house.connect(protocol) as client:
        client.begin("PUT", put_target(slot, MOST), MOST)
        client.send(body[: MOST // 2])
        eventually(lambda: arrived(house.daemon) >= MOST // 4, what="the first half is on the disk")
        client.send(body[MOST // 2 :])
        assert client.final().status == 201
    assert (house.daemon.store / slot).read_bytes() == body


@pytest.mark.parametrize("house", ["nginx", "HAProxy", "Caddy"], indirect=True)
def test_a_body_without_a_length(house: House) -> None:
    """A chunked body is refused, for nobody signed what it may come to."""
    with house.connect("HTTP/1.1") as client:
        client.begin("PUT", put_target("slot/a.bin", 5), Transfer_Encoding="chunked")
        client.send(b"5\r\nhello\r\n0\r\n\r\n")
        assert client.final().status == 411


@pytest.mark.parametrize("resumed", [True, False], ids=["resumable", "plain"])
def test_a_client_that_asks_first(house: House, resumed: bool, slot: str) -> None:
    """A client that waits for 100 Continue gets it, from the proxy or the daemon, and goes on; the next one too."""
    with house.connect("HTTP/1.1") as client:
        assert isinstance(client, Http1)
        for number in range(2):
            headers = resumable(6) if resumed else {}
            client.begin("PUT", put_target(f"{number}-{slot}", 5), 5, Expect="100-continue", **headers)
            while client.interim().status != 100:
                pass
            client.send(b"hello")
            assert client.final().status == 201


def test_a_client_that_asks_first_and_is_refused(house: House) -> None:
    """Its refusal arrives with or without a 100 Continue of the proxy's own before it."""
    with house.connect("HTTP/1.1") as client:
        client.begin("PUT", f"/upload/slot/a.bin?v={'0' * 64}", 5, Expect="100-continue", **resumable(6))
        answer = client.answer()
        if answer.status == 100:
            answer = client.send(b"hello").final()
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (403, "*")


@pytest.mark.parametrize("name", AWKWARD_NAMES.values(), ids=AWKWARD_NAMES)
def test_names(house: House, protocol: str, name: str) -> None:
    """A file of any name goes up and comes down in the spelling that the client chose."""
    slot = f"{os.urandom(8).hex()}/{name}"
    body = os.urandom(1000)
    folder = slot.partition("/")[0]
    with house.connect(protocol) as client:
        assert upload(client, slot, body).status == 201
        assert (house.daemon.store / slot).read_bytes() == body
        for spelling in (quote(name), quote(name, safe="!$&'()*+,;=:@"), "".join(f"%{b:02x}" for b in name.encode())):
            answer = ask(client, "GET", f"/upload/{folder}/{spelling}")
            assert (answer.status, answer.body) == (200, body)


def test_an_encoded_slash_stays_one(house: House, protocol: str) -> None:
    """The proxy does not decode the URL, so the daemon sees a slash that was encoded, and refuses it."""
    target = put_target("encoded/folder/a.bin", 5).replace("folder/a", "folder%2Fa")
    with house.connect(protocol) as client:
        assert ask(client, "PUT", target, b"hello").status == 400
    assert not (house.daemon.store / "encoded").exists()


def test_the_clients_address(house: House, protocol: str, slot: str) -> None:
    """The log names the client's address as the proxy saw it, whatever the client claims."""
    claims = {"X_Forwarded_For": "192.0.2.66", "Forwarded": "for=192.0.2.67"}
    with house.connect(protocol, "127.0.0.2") as client:
        assert upload(client, slot, b"hello", **claims).status == 201
    with house.connect(protocol, "127.0.0.3") as client:
        assert ask(client, "GET", f"/upload/{slot}", **claims).status == 200
    eventually(lambda: house.daemon.log.count(slot) > 1, what="both lines are logged")
    lines = [line for line in house.daemon.log.splitlines() if slot in line]
    assert f" 127.0.0.2 PUT /upload/{slot} 201 " in lines[0]
    assert f" 127.0.0.3 GET /upload/{slot} 200 " in lines[1]


@pytest.mark.parametrize("house", UNIX, indirect=True)
def test_unix_sockets(house: House, protocol: str, slot: str) -> None:
    """Each reaches the daemon over a Unix socket as well, and the log names its clients."""
    assert house.daemon.socket
    assert stat.S_IMODE(house.daemon.socket.stat().st_mode) == 0o666
    test_an_iphone_uploads(house, protocol, 6, MIB, f"1-{slot}")
    test_plain_requests(house, protocol, f"2-{slot}")
    test_the_clients_address(house, protocol, f"3-{slot}")


# Proxies that are set up wrongly

_TO_NGINX = "proxy_pass http://hmac_file_server;"
_TO_CADDY = ("reverse_proxy /upload/* ", "reverse_proxy /upload/* h2c://")
_AT = "server daemon 127.0.0.1:"

WRONG = {
    "nginx with TLS": (Nginx, (_TO_NGINX, _TO_NGINX.replace("http:", "https:")), "speaks TLS"),
    "HAProxy with TLS": (HAProxy, (_AT, f"default-server ssl verify none\n    {_AT}"), "speaks TLS"),
    "HAProxy with HTTP/2": (HAProxy, (_AT, f"default-server proto h2\n    {_AT}"), "speaks HTTP/2"),
    "HAProxy with send-proxy": (HAProxy, (_AT, f"default-server send-proxy\n    {_AT}"), "sends the PROXY protocol"),
    "HAProxy with send-proxy-v2": (HAProxy, (_AT, f"default-server send-proxy-v2\n    {_AT}"), "sends the PROXY"),
    "Caddy with HTTP/2": (Caddy, _TO_CADDY, "speaks HTTP/2"),
    "Caddy with TLS": (Caddy, ("transport http {", "transport http {\n\t\t\ttls_insecure_skip_verify"), "speaks TLS"),
    "Apache with TLS": (Apache, ("http://127.0.0.1", "https://127.0.0.1"), "speaks TLS"),
}


@pytest.mark.parametrize(("kind", "change", "words"), WRONG.values(), ids=WRONG)
def test_what_a_proxy_speaks_wrongly(
    make_daemon: Callable[..., Daemon], tmp_path: Path, kind: type[Proxy], change: tuple[str, str], words: str
) -> None:
    """Its client hears of an error at once, and the daemon's log tells once what to change."""
    need(kind.command, "openssl")
    daemon = make_daemon().start()
    changes = [change]
    if kind is Apache:
        changes.append(("SSLEngine on", "SSLEngine on\n    SSLProxyEngine on\n    SSLProxyVerify none"))
    proxy = kind(tmp_path, daemon, *changes)
    try:
        for _ in range(2):
            with proxy.wire() as client:
                assert ask(client, "GET", "/upload/none").status in (400, 500, 502, 503)
    finally:
        proxy.program.end()
    daemon.stop()
    lines = [line for line in daemon.log.splitlines() if words in line]
    assert len(lines) == 1
    assert "127.0.0.1" in lines[0]


def test_haproxy_with_the_proxy_protocol(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """With send-proxy and a haproxy: endpoint the log names the client, without any header in the request."""
    need("haproxy", "openssl")
    port = free_port()
    daemon = make_daemon(ListenPort=f"haproxy:tcp:{port}:interface=127.0.0.1", TrustedProxies=[]).launch()
    daemon.port = port
    eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    changes = ((_AT, f"default-server send-proxy-v2\n    {_AT}"), ("    option forwardfor\n", ""))
    proxy = HAProxy(tmp_path, daemon, *changes)
    try:
        with proxy.wire("127.0.0.2") as client:
            assert upload(client, "slot/a.bin", b"hello", **resumable(6)).status == 201
            assert not client.interims
    finally:
        proxy.program.end()
    daemon.stop()
    assert " 127.0.0.2 PUT /upload/slot/a.bin 201 " in daemon.log
    assert kept(daemon) == set()
