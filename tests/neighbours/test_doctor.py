"""``hmac-file-server doctor`` beside real proxies: as contrib sets them up, and broken on purpose."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from tests.doctored import NAME, Diagnosis, diagnose, doctor
from tests.neighbours.apache import Apache
from tests.neighbours.caddy import Caddy
from tests.neighbours.haproxy import HAProxy
from tests.neighbours.nginx import BUFFERED, HTTP_1_0, NewestNginx, Nginx
from tests.neighbours.program import certificate
from tests.neighbours.proxy import Proxy
from tests.support import SECRET, Daemon, free_port, need

DELETE_SECRET = "delete7-secret23-of91-metronome17"


@contextlib.contextmanager
def setup(
    kind: type[Proxy], *changes: tuple[str, str], days: int = 0, **settings: object
) -> Iterator[tuple[Daemon, Proxy]]:
    """A daemon, and a proxy before it.

    :param changes: to its file in contrib; {folder} stands for its folder.
    :param days: the age of another certificate, which is made in {folder}/static.
    """
    need(kind.command, "openssl", "curl")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("body", "proxy", "daemon", "static"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    filled = tuple(
        (old.replace("{folder}", str(folder)), new.replace("{folder}", str(folder))) for old, new in changes
    )
    daemon = Daemon(folder / "daemon", **{"DeleteSecret": DELETE_SECRET, **settings})
    if days:
        certificate(folder / "static", NAME, f"-{days}d")
    certificate(folder, NAME)[0].rename(folder / "other.pem")
    try:
        proxy = kind(folder, daemon.start(), *filled)
        try:
            yield daemon, proxy
        finally:
            proxy.program.end()
        assert "Traceback" not in daemon.log
    finally:
        daemon.stop()
        shutil.rmtree(folder)


def diagnosed(
    daemon: Daemon,
    proxy: Proxy,
    *options: str,
    addresses: Sequence[str] = ("127.0.0.1",),
    authority: Path | None = None,
    hurry: bool = True,
) -> Diagnosis:
    url, trusted = f"https://{NAME}:{proxy.port}/upload/", authority or proxy.certificate
    return diagnose(url, daemon.config, *options, names={NAME: addresses}, authority=trusted, hurry=hurry)


WELL = {
    "nginx": (Nginx, (), False),
    "nginx with HTTP/1.0": (Nginx, (HTTP_1_0,), False),
    "newest nginx": (NewestNginx, (), False),
    "HAProxy": (HAProxy, (), True),
    "Caddy": (Caddy, (), True),
    "Apache": (Apache, (), False),
}


@pytest.mark.parametrize("protocol", ["v", "jwt"])
@pytest.mark.parametrize(("kind", "changes", "passes"), WELL.values(), ids=WELL)
def test_as_contrib_has_it(
    kind: type[Proxy], changes: tuple[tuple[str, str], ...], passes: bool, protocol: str
) -> None:
    """Nothing is found behind a proxy as its file in contrib sets it up, and nothing is left of the test."""
    with setup(kind, *changes, ProxiesPass104=passes) as (daemon, proxy):
        found = diagnosed(daemon, proxy, "--protocol", protocol, hurry=False)
        assert (found.status, found.bad, found.skipped) == (0, {}, set())
        assert kind.__name__.removeprefix("Newest").lower() in str(found.proxy).lower()
        assert ("104 arrives" in found.words("104")) == passes
        assert ("104 arrives" in found.words("104-http2")) == passes
        assert not {name for name in daemon.files() if not name.startswith(".hmac-file-server")}


@attrs.frozen
class Broken:
    """A proxy with a mistake.

    :param finds: the checks that find something, each with words of what it says.
    :param only: whether no other check does.
    """

    kind: type[Proxy]
    changes: tuple[tuple[str, str], ...]
    finds: dict[str, str]
    passes_104: bool = False
    only: bool = True


TO_NGINX = "proxy_pass http://hmac_file_server;"
IN_NGINX = "        client_max_body_size 0;\n"
IN_APACHE = "    LimitRequestBody 0\n"
IN_HAPROXY = "    timeout connect 5s\n"
IN_CADDY = "\treverse_proxy /upload/*"
HOP = '        proxy_set_header Connection "";\n'


def in_nginx(*lines: str) -> tuple[tuple[str, str], ...]:
    return ((IN_NGINX, IN_NGINX + "".join(f"        {line}\n" for line in lines)),)


def in_apache(*lines: str) -> tuple[tuple[str, str], ...]:
    return ((IN_APACHE, IN_APACHE + "".join(f"    {line}\n" for line in lines)),)


BROKEN = {
    # The length of bodies
    "nginx's default limit": Broken(
        Nginx,
        ((IN_NGINX, ""),),
        {
            "large": "proxy an upload of 8 MiB is answered 413 (413 Request Entity Too Large): the proxy takes no body"
            " of this length nginx: client_max_body_size 0;",
            "refusal": "2 GiB is answered 413",
        },
    ),
    "nginx's limit of 1 GiB": Broken(
        Nginx, (("body_size 0;", "body_size 1g;"),), {"refusal": "client_max_body_size 0;"}
    ),
    "Apache's limit": Broken(
        Apache,
        in_apache('<If "%{HTTP:Content-Length} -gt 1048576">', "Require all denied", "</If>"),
        {"large": "answered 403 (403 Forbidden)"},
    ),
    "Caddy's limit": Broken(
        Caddy,
        ((IN_CADDY, "\trequest_body {\n\t\tmax_size 1MB\n\t}\n" + IN_CADDY),),
        {"large": "Caddy: take out request_body"},
        passes_104=True,
    ),
    "HAProxy's limit": Broken(
        HAProxy,
        (
            (
                IN_HAPROXY,
                IN_HAPROXY
                + "    http-request deny deny_status 413 if { req.hdr(content-length),div(1048576) gt 1 }\n",
            ),
        ),
        {"large": "HAProxy: take out the http-request deny", "refusal": "413"},
        passes_104=True,
    ),
    # Bodies that are gathered
    "nginx buffers": Broken(Nginx, (BUFFERED,), {"refusal": "nginx: proxy_request_buffering off;"}),
    # 104
    "104 through nginx": Broken(
        Nginx, (), {"104": "daemon iPhones can not upload", "104-http2": "ProxiesPass104 = false"}, passes_104=True
    ),
    "104 through the newest nginx": Broken(
        NewestNginx, (), {"104": "iPhones can not upload", "104-http2": "ProxiesPass104 = false"}, passes_104=True
    ),
    "no 104 through HAProxy": Broken(
        HAProxy, (), {"104": "ProxiesPass104 = true", "104-http2": "ProxiesPass104 = true"}
    ),
    # Paths
    "nginx cuts the prefix off": Broken(
        Nginx,
        ((TO_NGINX, "proxy_pass http://hmac_file_server/;"),),
        {"upload": "the path loses /upload/ before it reaches the daemon"},
    ),
    "nginx doubles the prefix": Broken(
        Nginx,
        ((TO_NGINX, "proxy_pass http://hmac_file_server/upload/upload/;"),),
        {"upload": "/upload/ is there twice when the path reaches the daemon"},
    ),
    "nginx spells the path anew": Broken(
        Nginx,
        ((TO_NGINX, "proxy_pass http://hmac_file_server/upload/;"),),
        {"spelling": "nginx: proxy_pass http://hmac_file_server; without a path"},
    ),
    "Apache without nocanon": Broken(Apache, ((" nocanon", ""), ("NoDecode", "On")), {"spelling": "nocanon"}),
    "Caddy cuts the prefix off": Broken(
        Caddy, ((IN_CADDY, "\turi strip_prefix /upload\n\treverse_proxy"),), {"upload": "loses /upload/"}
    ),
    # Who is asked at all
    "nothing behind nginx": Broken(
        Nginx, (("    server 127.0.0.1:", "    server 127.0.0.1:1; #"),), {"upload": "502 (502 Bad Gateway)"}
    ),
    "nothing behind Apache": Broken(
        Apache,
        (("ProxyPass /upload/ http://127.0.0.1:", "ProxyPass /upload/ http://127.0.0.1:1/upload/ nocanon\n    # "),),
        {"upload": "503"},
    ),
    "nothing behind HAProxy": Broken(
        HAProxy, (("server daemon 127.0.0.1:", "server daemon 127.0.0.1:1 #"),), {"upload": "HAProxy: server daemon"}
    ),
    "nothing behind Caddy": Broken(
        Caddy, (("/upload/* 127.0.0.1:", "/upload/* 127.0.0.1:1 {\n\t\t# "),), {"upload": "502"}
    ),
    "nginx serves a folder": Broken(
        Nginx,
        ((TO_NGINX, "root {folder}/static;"),),
        {"upload": "405 (405 Not Allowed): a web server that serves files by itself"},
    ),
    "nginx has no location": Broken(
        Nginx,
        (("location /upload/", "location / { return 404; }\n    location /files/"),),
        {"upload": "404 (404 Not Found)"},
    ),
    "nginx redirects": Broken(
        Nginx,
        ((TO_NGINX, "return 301 https://other.example$request_uri;"),),
        {"upload": "XMPP server an upload is answered 301"},
    ),
    "nginx asks for a password": Broken(
        Nginx, in_nginx('auth_basic "secret";', "auth_basic_user_file /dev/null;"), {"upload": "auth_basic off;"}
    ),
    "nginx limits the rate": Broken(
        Nginx,
        (
            ("upstream hmac_file_server", "limit_req_zone all zone=one:1m rate=1r/m;\nupstream hmac_file_server"),
            *in_nginx("limit_req zone=one burst=1 nodelay; limit_req_status 429;"),
        ),
        {"names": "429"},
        only=False,
    ),
    # Headers
    "nginx adds CORS": Broken(
        Nginx,
        in_nginx("add_header Access-Control-Allow-Origin * always;"),
        {"cors": "twice (*, *)", "preflight": "twice", "cors-errors": "twice"},
    ),
    "nginx hides CORS": Broken(
        Nginx,
        in_nginx("proxy_hide_header Access-Control-Allow-Origin;"),
        {"cors": "no Access-Control-Allow-Origin", "preflight": "nginx: take out", "cors-errors": "a 404 has no"},
    ),
    "nginx answers OPTIONS": Broken(
        Nginx,
        in_nginx("if ($request_method = OPTIONS) { return 204; }"),
        {"preflight": "OPTIONS has no Access-Control-Allow-Origin"},
    ),
    "nginx forbids OPTIONS and DELETE": Broken(
        Nginx,
        in_nginx("limit_except GET PUT { deny all; }"),
        {"preflight": "OPTIONS is answered 403", "removal": "nginx: let DELETE through"},
    ),
    "nginx has pages for errors": Broken(
        Nginx,
        in_nginx("proxy_intercept_errors on; error_page 403 404 /oops.html;"),
        dict.fromkeys(("cors-errors", "signature", "expect", "refusal"), "nginx: proxy_intercept_errors off;")
        | {"cors-errors": "a 404 of the daemon", "refusal": "413"},
    ),
    "HAProxy hides CORS": Broken(
        HAProxy,
        ((IN_HAPROXY, IN_HAPROXY + "    http-response del-header Access-Control-Allow-Origin\n"),),
        {"cors": "HAProxy: take out http-response", "preflight": "", "cors-errors": ""},
        passes_104=True,
    ),
    "nginx compresses": Broken(
        Nginx,
        (("        gzip off;\n", "        gzip on; gzip_proxied any; gzip_types text/plain;\n"),),
        {"compression": "nginx: gzip off;", "conditions": "", "head": "nginx: gzip off;"},
    ),
    "nginx compresses pages, as Debian's does": Broken(
        Nginx, (("        gzip off;\n", ""),), {"compression": "nginx: gzip off;"}
    ),
    "Apache compresses, as Debian's does": Broken(
        Apache, (("    SetEnv no-gzip 1\n", ""),), {"compression": "Apache: SetEnv no-gzip 1"}, only=False
    ),
    "Caddy compresses": Broken(
        Caddy,
        ((IN_CADDY, "\tencode gzip\n" + IN_CADDY),),
        {"compression": "Caddy: take out encode", "head": "Caddy: take out encode"},
        passes_104=True,
    ),
    "HAProxy compresses": Broken(
        HAProxy,
        (
            (
                IN_HAPROXY,
                IN_HAPROXY + "    filter compression\n    compression algo gzip\n    compression type text/plain\n",
            ),
        ),
        {"compression": "HAProxy: take out filter compression", "conditions": "the ETag is W/", "head": ""},
        passes_104=True,
    ),
    "nginx has its own policy": Broken(
        Nginx,
        in_nginx("proxy_hide_header Content-Security-Policy; proxy_hide_header X-Content-Type-Options;"),
        {"media": "content-security-policy"},
    ),
    "nginx shows pages": Broken(
        Nginx, in_nginx("proxy_hide_header Content-Disposition;"), {"media": "content-disposition"}
    ),
    "nginx caches": Broken(Nginx, in_nginx("expires 1h;"), {"caching": "max-age=3600"}),
    "Apache takes ranges away": Broken(
        Apache,
        in_apache("RequestHeader unset Range"),
        {"ranges": "Apache: take out RequestHeader", "conditions": "Range"},
    ),
    "nginx takes ETags away": Broken(
        Nginx, in_nginx("proxy_hide_header ETag;"), {"conditions": "the ETag is missing"}
    ),
    # Patience, and protocols
    "nginx has no patience": Broken(
        Nginx, in_nginx("client_body_timeout 100ms;"), {"slow": "nginx: client_body_timeout 60s"}
    ),
    "nginx without HTTP/2": Broken(Nginx, ((" ssl http2;", " ssl;"),), {"http2": "listen 443 ssl http2;"}),
    "nginx with old TLS": Broken(
        Nginx,
        (
            (
                "    location /upload/",
                "    ssl_protocols TLSv1 TLSv1.1 TLSv1.2;\n    ssl_ciphers ALL:@SECLEVEL=0;\n    location /upload/",
            ),
        ),
        {"tls": "TLS 1.0 or 1.1"},
    ),
    # nginx answers what is not the daemon's
    "nginx lists the folder": Broken(
        Nginx,
        (
            (
                "    location /upload/ {",
                "    location = /upload/ { default_type text/html; return 200 listing; }\n    location /upload/ {",
            ),
        ),
        {"listing": "answered 200, not 404"},
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_is_broken(broken: Broken) -> None:
    """What breaks is found, with who breaks it and the line that mends it; and nothing else."""
    with setup(broken.kind, *broken.changes, ProxiesPass104=broken.passes_104) as (daemon, proxy):
        found = diagnosed(daemon, proxy)
    assert set(found.bad) >= set(broken.finds), found.bad
    assert set(found.bad) == set(broken.finds) or not broken.only, found.bad
    for check, words in broken.finds.items():
        assert words in found.bad[check]
    assert found.status == int("problem" in map(found.level, found.bad))


# Certificates and names

AGED = {
    "expired": (100, "problem", "the certificate has expired renew it"),
    "hardly valid": (87, "problem", "the certificate ends in 2 days"),
    "not long valid": (75, "warning", "the certificate ends in 14 days"),
}


@pytest.mark.parametrize(("days", "level", "words"), AGED.values(), ids=AGED)
def test_an_aged_certificate(days: int, level: str, words: str) -> None:
    """An end that has come, or comes soon, is told; where no client connects nothing else is tried."""
    need("faketime", "openssl")
    changes = [
        (f"ssl_certificate{kind} {{folder}}/", f"ssl_certificate{kind} {{folder}}/static/") for kind in ("", "_key")
    ]
    with setup(Nginx, *changes, days=days) as (daemon, proxy):
        found = diagnosed(daemon, proxy, authority=proxy.folder / "static" / "cert.pem")
        assert (found.level("tls"), found.status) == (level, int(level == "problem"))
        assert words in found.words("tls")
        assert ("upload" in found.findings) == (days < 90)
        assert ("PUT" in daemon.log) == (days < 90)


def test_a_certificate_of_another_name() -> None:
    """Its name is compared with the URL's."""
    with setup(Nginx) as (daemon, proxy):
        url = f"https://files.example.com:{proxy.port}/upload/"
        names = {"files.example.com": ["127.0.0.1"]}
        found = diagnose(url, daemon.config, names=names, authority=proxy.certificate)
    assert "the certificate is not for files.example.com" in found.words("tls")
    assert found.skipped == {"others"}


def test_a_certificate_that_nobody_knows() -> None:
    """One that is signed by itself, and by nobody who is trusted, is told."""
    with setup(Nginx) as (daemon, proxy):
        found = diagnosed(daemon, proxy, authority=proxy.folder / "other.pem")
    assert found.level("tls") == "problem"
    assert "not trusted" in found.words("tls")
    assert found.skipped == {"others"}


def test_tls_of_the_daemons_own(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """The daemon's own TLS is tested like a proxy's."""
    need("openssl")
    chain, key = certificate(tmp_path, NAME)
    port = free_port()
    listen = f"ssl:{port}:interface=127.0.0.1:privateKey={key}:certKey={chain}"
    daemon = make_daemon(ListenPort=listen, ProxiesPass104=True)
    daemon.port = port
    daemon.start()
    found = diagnose(f"https://{NAME}:{port}/upload/", daemon.config, names={NAME: ["127.0.0.1"]}, authority=chain)
    assert (found.status, found.bad, found.proxy) == (0, {}, None)
    assert "104 arrives" in found.words("104")


def test_an_address_that_leads_nowhere() -> None:
    """Each address of the name is tried; the others are tested all the same."""
    with setup(Nginx) as (daemon, proxy):
        found = diagnosed(daemon, proxy, addresses=("127.0.0.1", "127.0.0.2"))
    assert set(found.bad) == {"dns"}
    assert "is also 127.0.0.2, and there nobody answers" in found.words("dns")
    assert found.status == 1
    assert found.level("upload") == "ok"


def test_a_proxy_that_is_taken_for_a_client() -> None:
    """One that says nothing of itself gets 104, and breaks it; the remedy is another one then."""
    changes = (
        ("        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n", ""),
        ('        proxy_set_header Forwarded "";\n', ""),
    )
    with setup(Nginx, *changes, TrustedProxies=["192.0.2.1"]) as (daemon, proxy):
        found = diagnosed(daemon, proxy)
    assert set(found.bad) == {"104", "104-http2", "client"}
    assert "add the proxy's address to TrustedProxies" in found.words("104")
    assert "TrustedProxies" in found.words("client")


def test_another_secret() -> None:
    """A daemon with another secret than the configuration that the doctor is given is told from a proxy's fault."""
    with setup(Nginx) as (daemon, proxy):
        other = daemon.folder / "other.toml"
        other.write_text(daemon.config.read_text().replace(SECRET, "another-secret-than-the-daemon-has"))
        url = f"https://{NAME}:{proxy.port}/upload/"
        found = diagnose(url, other, names={NAME: ["127.0.0.1"]}, authority=proxy.certificate)
    assert found.words("upload").startswith("daemon an upload is answered 403")
    assert "another Secret" in found.words("upload")


def test_no_word_of_a_signature() -> None:
    """What it prints holds no secret and no signature; without DeleteSecret it names the folder of what it stored."""
    with setup(Nginx, DeleteSecret=None) as (daemon, proxy):
        url = f"https://{NAME}:{proxy.port}/upload/"
        done = doctor(url, daemon.config, names={NAME: ["127.0.0.1"]}, authority=proxy.certificate)
        assert done.returncode == 0
        assert SECRET not in done.stdout + done.stderr
        assert "v=" not in done.stdout + done.stderr
        folder = {name.partition("/")[0] for name in daemon.files()}.pop()
        assert f"what was stored lies in StoreDir/{folder}" in done.stdout
