"""XMPP servers and proxies that are set up wrongly, as operators do it: the daemon's log tells what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from slixmpp.plugins.xep_0363.http_upload import HTTPError

from hmac_file_server.slots.secret import EXAMPLE_SECRET
from tests.neighbours import xmpp
from tests.neighbours.ejabberd import Ejabberd, need_ejabberd
from tests.neighbours.nginx import Nginx
from tests.neighbours.program import Program
from tests.neighbours.prosody import Prosody, need_prosody
from tests.neighbours.proxy import NAME
from tests.support import SECRET, Daemon, Wire, eventually, free_port, need, put_target


def line_of_the_refusal(daemon: Daemon, port: int, status: int) -> str:
    """What the log says of an upload that a client tries."""
    with pytest.raises(HTTPError) as refused:
        xmpp.upload("alice@localhost", port, "my photo.jpg", b"hello", "image/jpeg")
    assert refused.value.args[0] == status
    return last_line(daemon, "PUT")


def last_line(daemon: Daemon, method: str) -> str:
    lines = eventually(lambda: [line for line in daemon.log.splitlines() if f" {method} /" in line])
    return lines[-1]


PROSODY = {
    "no slash": ("v1", ('/upload/"', '/upload"'), 404, 'where a slash is missing: http_upload_external_base_url'),
    "no slash, v2": ("v2", ('/upload/"', '/upload"'), 404, 'where a slash is missing: http_upload_external_base_url'),
    "no prefix": ("v1", ('/upload/"', '/"'), 404, 'without "/upload/" before it'),
    "another prefix": ("v2", ('/upload/"', '/files/"'), 404, 'set UploadSubDir = "files/"'),
    "two slashes": ("v2", ('/upload/"', '/upload//"'), 400, "one slash too many"),
    "the prefix twice": ("v1", ('/upload/"', '/upload/upload/"'), 403, '"/upload/" is there twice'),
    "a newline in the secret": ("v2", (f'"{SECRET}"', f'"{SECRET}\\n"'), 403, "with a newline after it"),
    "a placeholder": ("v2", (f'"{SECRET}"', '"change-me"'), 403, "an example's secret"),
    "another secret": ("v2", (f'"{SECRET}"', '"other"'), 403, "signature does not match: the secret"),
}  # fmt: skip


@pytest.mark.parametrize(("protocol", "change", "status", "words"), PROSODY.values(), ids=PROSODY)
def test_prosody(
    make_daemon: Callable[..., Daemon],
    tmp_path: Path,
    protocol: str,
    change: tuple[str, str],
    status: int,
    words: str,
) -> None:
    """A mistake in http_upload_external's settings is named by the line of the first upload."""
    need_prosody()
    daemon = make_daemon(Secret=SECRET).start()
    prosody = Prosody(tmp_path, daemon, protocol, change)
    try:
        assert words in line_of_the_refusal(daemon, prosody.port, status)
    finally:
        prosody.program.end()


SHARE = {
    "no prefix": (('/upload/"', '/"'), 404, 'the token holds for the whole path, without "/upload/" before it'),
    "another prefix": (('/upload/"', '/files/"'), 404, 'set UploadSubDir = "files/"'),
    "the prefix twice": (('/upload/"', '/upload/upload/"'), 403, '"/upload/" is there twice'),
    "a newline in the secret": ((f'"{SECRET}"', f'"{SECRET}\\n"'), 401, "with a newline after it"),
    "a placeholder": ((f'"{SECRET}"', '"change-me"'), 401, "an example's secret"),
    "another secret": ((f'"{SECRET}"', '"other"'), 401, "the XMPP server has another secret"),
    "no secret": ((f'http_file_share_secret = "{SECRET}"', ""), 401, "the XMPP server has another secret"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "status", "words"), SHARE.values(), ids=SHARE)
def test_file_share(
    make_daemon: Callable[..., Daemon], tmp_path: Path, change: tuple[str, str], status: int, words: str
) -> None:
    """A mistake in http_file_share's settings is named by the line of the first upload."""
    need_prosody()
    daemon = make_daemon(Secret=SECRET).start()
    prosody = Prosody(tmp_path, daemon, "share", change)
    try:
        assert words in line_of_the_refusal(daemon, prosody.port, status)
    finally:
        prosody.program.end()


EJABBERD = {
    "without external_secret": (("    external_secret:", "    # external_secret:"), 403, "set external_secret"),
    "with the host in put_url": (("/upload\"", "/upload/@HOST@\""), 403, "there must be no @HOST@"),
    "with another prefix": (("/upload\"", "/files\""), 404, 'set UploadSubDir = "files/"'),
}  # fmt: skip


@pytest.mark.parametrize(("change", "status", "words"), EJABBERD.values(), ids=EJABBERD)
def test_ejabberd(
    make_daemon: Callable[..., Daemon], tmp_path: Path, change: tuple[str, str], status: int, words: str
) -> None:
    """A mistake in mod_http_upload's settings is named by the line of the first upload."""
    need_ejabberd()
    daemon = make_daemon().start()
    ejabberd = Ejabberd(tmp_path, daemon, change)
    try:
        assert words in line_of_the_refusal(daemon, ejabberd.port, status)
    finally:
        ejabberd.program.end()


PASS = "proxy_pass http://hmac_file_server;"
NGINX = {
    "cuts the prefix off": ((PASS, PASS.replace(";", "/;")), 404, 'a proxy cuts that off (in nginx write proxy_pass'),
    "and leaves a slash": (
        ("location /upload/ {", "location /upload {", PASS, PASS.replace(";", "/;")),
        404,
        'a proxy cuts that off (in nginx write proxy_pass',
    ),
    "puts it there twice": ((PASS, PASS.replace(";", "/upload/upload/;")), 403, '"/upload/" is there twice'),
    "puts another one there": ((PASS, PASS.replace(";", "/x/;")), 404, 'set UploadSubDir = "x/"'),
    "cuts the query off": ((PASS, PASS.replace(";", "$uri;")), 403, "a proxy cuts the query off"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "words"), NGINX.values(), ids=NGINX)
def test_nginx(
    make_daemon: Callable[..., Daemon], tmp_path: Path, changes: tuple[str, ...], status: int, words: str
) -> None:
    """An nginx that does not pass the path on as it is, is named by the line of the first upload."""
    need("nginx", "openssl")
    daemon = make_daemon().start()
    mistakes = list(zip(changes[::2], changes[1::2], strict=True))
    nginx = Nginx(tmp_path, daemon, *mistakes)
    try:
        head = f"PUT {put_target('slot/photo.jpg', 5)} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\n\r\n"
        with nginx.wire() as wire:
            assert wire.send(head.encode() + b"hello").answer().status == status
        assert words in last_line(daemon, "PUT")
    finally:
        nginx.program.end()


BARE = """daemon off; pid {folder}/bare.pid; events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{to}; }} }} }}
"""


def test_the_example_through_nginx(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """With the example's secret nothing is uploaded through nginx, be it set up as in contrib or left as it is."""
    need("nginx", "openssl")
    daemon = make_daemon(Secret=EXAMPLE_SECRET.decode()).start()
    target = put_target("slot/photo.jpg", 5, secret=EXAMPLE_SECRET.decode())
    head = f"PUT {target} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\n\r\nhello".encode()
    nginx = Nginx(tmp_path, daemon)
    try:
        with nginx.wire() as wire:
            assert wire.send(head).answer().status == 403
    finally:
        nginx.program.end()
    port = free_port()
    (tmp_path / "bare.conf").write_text(BARE.format(folder=tmp_path, port=port, to=daemon.port))
    bare = Program(tmp_path, ["nginx", "-c", tmp_path / "bare.conf", "-p", tmp_path, "-e", "stderr"]).listens(port)
    try:
        with Wire(port) as wire:
            assert wire.send(head).answer().status == 403
    finally:
        bare.end()
    assert daemon.request("PUT", target, b"hello").status == 201
