"""``hmac-file-server doctor`` at the daemon itself, without a proxy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from hmac_file_server.command.main import main
from hmac_file_server.doctor.answer import Answer, explain
from hmac_file_server.doctor.deployment import Address
from hmac_file_server.doctor.examine import CHECKS, GATES
from hmac_file_server.doctor.finding import Party
from hmac_file_server.doctor.proxies import Proxy, proxy_of
from hmac_file_server.slots.issue import PROTOCOLS
from hmac_file_server.web.headers import EVERYWHERE
from tests.doctored import diagnose, doctor
from tests.support import SECRET, Daemon

DELETE_SECRET = "delete7-secret23-of91-metronome17"

MakeDaemon = Callable[..., Daemon]


def url_of(daemon: Daemon, path: str = "/upload/") -> str:
    return f"http://127.0.0.1:{daemon.port}{path}"


def stored(daemon: Daemon) -> set[str]:
    return {name for name in daemon.files() if not name.startswith(".hmac-file-server")}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_daemon_alone(make_daemon: MakeDaemon, protocol: str) -> None:
    """Nothing but the missing TLS is found, however slots are signed, and what was stored is removed."""
    daemon = make_daemon(DeleteSecret=DELETE_SECRET, ProxiesPass104=True).start()
    found = diagnose(url_of(daemon), daemon.config, "--protocol", protocol)
    assert found.status == 0
    assert set(found.bad) == {"tls"}
    assert found.proxy is None
    assert "104 arrives" in found.words("104")
    assert found.words("removal").startswith("None what was stored is removed")
    assert stored(daemon) == set()
    assert daemon.log.count(" 201 ") > 10


def test_what_it_prints(make_daemon: MakeDaemon) -> None:
    """A line for each finding, with its level, its check, who breaks it, and what mends it below."""
    daemon = make_daemon().start()
    done = doctor(url_of(daemon), daemon.config)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == url_of(daemon)
    assert "ok       upload      a small file is stored (201)" in lines
    index = next(number for number, line in enumerate(lines) if line.startswith("warning  tls         XMPP server: "))
    assert lines[index + 1].strip().startswith("-> serve it by TLS")
    assert lines[-1] == "1 warning"
    assert SECRET not in done.stdout
    folder = {name.partition("/")[0] for name in stored(daemon)}.pop()
    assert f"lies in StoreDir/{folder}" in lines[-2]


def test_a_host_of_several(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """The secret of the host that is chosen signs, and its files go where its others are."""
    tables = [
        {"UploadSubDir": f"{name}/", "StoreDir": str(tmp_path / name), "Secret": f"{SECRET}-{name}"} for name in "ab"
    ]
    daemon = make_daemon(hosts=tables, Secret=None, StoreDir=None).start()
    found = diagnose(url_of(daemon, "/b/"), daemon.config, "--host", "b")
    assert set(found.bad) == {"tls"}
    assert list((tmp_path / "b").glob("doctor-*/small.txt"))
    assert not list((tmp_path / "a").glob("doctor-*"))


def test_a_url_of_another_path(make_daemon: MakeDaemon) -> None:
    """A URL that does not end in UploadSubDir is told, and which one to test."""
    daemon = make_daemon().start()
    found = diagnose(url_of(daemon, "/files"), daemon.config)
    assert set(found.bad) == {"tls", "upload"}
    assert "client nothing can be stored there, and the URL ends in /files/" in found.words("upload")
    assert f"test {url_of(daemon)}" in found.words("upload")
    assert found.skipped == {"others"}
    assert stored(daemon) == set()


def test_other_limits_than_the_configuration(make_daemon: MakeDaemon) -> None:
    """A daemon that runs with another MaxUploadSize than the file says is told."""
    daemon = make_daemon(MaxUploadSize=100_000).start()
    daemon.settings["MaxUploadSize"] = 0
    daemon.configure()
    found = diagnose(url_of(daemon), daemon.config)
    assert set(found.bad) == {"tls", "large"}
    assert "daemon an upload of 8 MiB is answered 413 (at most 100000 bytes are taken)" in found.words("large")


def test_small_limits(make_daemon: MakeDaemon) -> None:
    """No more is uploaded than MaxUploadSize allows."""
    daemon = make_daemon(MaxUploadSize=100_000).start()
    found = diagnose(url_of(daemon), daemon.config)
    assert set(found.bad) == {"tls"}
    assert "an upload of 97.7 KiB is stored" in found.words("large")


def test_no_room(make_daemon: MakeDaemon) -> None:
    """A store without room is the daemon's affair."""
    daemon = make_daemon(MinFreeSpace=1 << 60).start()
    found = diagnose(url_of(daemon), daemon.config)
    assert "daemon an upload is answered 507 (there is no room for the file): the store has no room" in found.words(
        "upload"
    )
    assert found.status == 1


def test_nobody_there(make_daemon: MakeDaemon) -> None:
    """A port at which nobody listens, and a name that nobody knows, are told before all else."""
    daemon = make_daemon()
    found = diagnose(url_of(daemon), daemon.config)
    assert (found.status, set(found.bad)) == (1, {"dns"})
    assert "nobody answers" in found.words("dns")
    found = diagnose("https://no-such-name.invalid/upload/", daemon.config)
    assert (found.status, set(found.bad)) == (1, {"dns"})
    assert found.skipped == {"others"}


def test_a_port_of_something_else(make_daemon: MakeDaemon) -> None:
    """A port that speaks no TLS, and one that speaks it to whoever does not, are told from a bad certificate."""
    daemon = make_daemon().start()
    found = diagnose(f"https://127.0.0.1:{daemon.port}/upload/", daemon.config)
    assert "no TLS at port" in found.words("tls")
    assert found.skipped == {"others"}


@pytest.mark.parametrize(
    "url", ["upload.example.com", "ftp://example.com/", "https://a/?b", "https://u@a/", "http://a:x/"]
)
def test_what_is_no_url(make_daemon: MakeDaemon, url: str) -> None:
    """It is refused, with a usage line."""
    result = CliRunner().invoke(main, ["doctor", url, "--config", str(make_daemon().config)])
    assert result.exit_code == 2
    assert "Invalid value for URL" in result.output


def test_tls_without_pyopenssl(make_daemon: MakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    result = CliRunner().invoke(main, ["doctor", "https://a/upload/", "--config", str(make_daemon().config)])
    assert result.exit_code == 2
    assert "pip install 'hmac-file-server[tls]'" in result.output


def test_addresses() -> None:
    """A URL is read as clients read it."""
    assert str(Address.of("https://Upload.Example.com/upload")) == "https://upload.example.com/upload/"
    assert str(Address.of("https://[::1]:8443//a/b//")) == "https://[::1]:8443/a/b/"
    assert str(Address.of("http://bücher.example")) == "http://xn--bcher-kva.example/"


def test_proxies_by_what_they_say() -> None:
    """A proxy is known by its name, or by the page that HAProxy has."""
    assert proxy_of(["openresty/1.21"], []) == Proxy("nginx", "openresty/1.21")
    assert proxy_of(["Apache/2.4.62 (Debian)"], []).kind == "Apache"
    assert proxy_of(["1.1 Caddy"], []).kind == "Caddy"
    page = b"<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>\n"
    assert proxy_of([], [b"", page]).kind == "HAProxy"
    assert proxy_of(["cloudflare"], []) == Proxy("", "cloudflare")
    assert proxy_of([], []) == Proxy()


def test_each_topic_has_words_for_any_proxy() -> None:
    """What mends it is told of a proxy that nobody knows, too, and where a known one has no line."""
    assert Proxy("nginx").remedy("size") == "nginx: client_max_body_size 0;"
    assert Proxy("HAProxy").remedy("rate") == Proxy().remedy("rate")
    assert Proxy().remedy("rate").startswith("ask it")


OURS = [("access-control-expose-headers", EVERYWHERE[b"Access-Control-Expose-Headers"].decode())]

MEANINGS = {
    "another secret": (Answer(403, OURS), Party.DAEMON, "another Secret"),
    "another token": (Answer(401, OURS), Party.DAEMON, "another Secret"),
    "too many": (Answer(429, OURS), Party.DAEMON, "MaxConnectionsPerAddress"),
    "of the store": (Answer(503, OURS), Party.DAEMON, "its log says why"),
    "of a firewall": (Answer(403), Party.PROXY, "a rule before the daemon forbids it"),
    "of a login": (Answer(401), Party.PROXY, "asks for a password"),
    "too slow": (Answer(408), Party.PROXY, "lost patience"),
    "too long": (Answer(413), Party.PROXY, "no body of this length"),
    "no gateway": (Answer(504), Party.PROXY, "does not reach the daemon"),
    "a site": (Answer(200, [("content-type", "text/html")]), Party.PROXY, "with a page of its own"),
    "sent on": (Answer(302, [("location", "https://a/?v=secret")]), Party.XMPP_SERVER, "on to https://a/, and"),
    "plain": (Answer(400, body=b"The plain HTTP request was sent to HTTPS port"), Party.CLIENT, "speaks TLS"),
}


@pytest.mark.parametrize(("answer", "party", "words"), MEANINGS.values(), ids=MEANINGS)
def test_what_an_answer_means(answer: Answer, party: Party, words: str) -> None:
    """It is told who gave it, and what that means."""
    found = explain(answer, "an upload", Proxy(), 0, reached=False)
    assert found.party is party
    assert words in f"{found.text}: {found.remedy}"
    assert "secret" not in found.text


def test_each_check_is_explained() -> None:
    """docs/doctor.rst has a line for each, in their order."""
    text = (Path(__file__).parent.parent / "docs/doctor.rst").read_text()
    explained = re.findall(r"^``([a-z0-9-]+)``  ", text.partition("What is tested\n")[2], re.MULTILINE)
    assert explained == [*GATES, *CHECKS, "removal"]


def test_json_is_valid_where_names_are_not_ascii(make_daemon: MakeDaemon) -> None:
    """What is printed for programs is JSON, also where nothing can be tested."""
    done = doctor("https://bücher.invalid/upload/", make_daemon().config, "--json")
    assert json.loads(done.stdout)["url"] == "https://xn--bcher-kva.invalid/upload/"
