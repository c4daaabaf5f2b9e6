"""``hmac-file-server check``: all that is wrong with a configuration, and what is unwise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hmac_file_server import __version__
from hmac_file_server.command.main import main
from tests.neighbours.program import certificate as made_certificate
from tests.support import need

SECRET = "a-secret-that-nobody-knows-4711"


def invoke(*arguments: str, **named: str) -> Result:
    return CliRunner().invoke(main, arguments, **named)  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def written(file: Path, text: str, mode: int = 0o600) -> Path:
    file.write_text(text)
    file.chmod(mode)
    return file


def good(folder: Path, more: str = "") -> str:
    store = folder / "store"
    store.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(store, 65534, 65534)
    return f'Secret = "{SECRET}"\nStoreDir = "{store}"\nMinFreeSpace = 0\n{more}'


def test_a_good_one(file: Path) -> None:
    found = invoke("check", str(written(file, good(file.parent))))
    assert (found.exit_code, found.output) == (0, f"{file}: nothing to complain of\n")


def test_all_that_is_wrong(file: Path) -> None:
    """Each mistake is named, wherever it stands, and no secret is shown."""
    text = f"""
        Secret = "{SECRET}"
        MaxUploadSize = "5 apples"
        Foo = 1
        ListenPort = "127.0.0.1:99999"
        LogLevel = "loud"
        [[Host]]
        StoreDir = "{file.parent}/a"
        Bar = 1
        Workers = 2
        [[Host]]
        SecretFile = "/nowhere/secret"
        [[Host]]
        Secret = "REPLACE-ME {SECRET}"
        StoreDir = "{file.parent}/a/b"
        [[Host]]
        Secret = 7
        StoreDir = "/proc/nothing"
        UploadSubDir = "../x"
    """
    found = invoke("check", str(written(file, text)), "--json")
    assert found.exit_code == os.EX_CONFIG
    errors = json.loads(found.output)["errors"]
    expected = """
        [[Host]] 1: Bar: unknown key
        [[Host]] 1: Workers: belongs to the daemon
        [[Host]] 2: SecretFile = "/nowhere/secret": No such file
        Foo: unknown key
        MaxUploadSize = "5 apples": write a size
        ListenPort = "127.0.0.1:99999": a port is at most 65535
        LogLevel = "loud": write debug
        [[Host]] 2: StoreDir is missing
        [[Host]] 3: Secret: is a placeholder
        [[Host]] 4: UploadSubDir = "../x": not a URL prefix
        [[Host]] 4: Secret: write the secret in quotes
        UploadSubDir of the hosts upload and upload
        StoreDir of the hosts upload and upload
    """
    for line in filter(None, map(str.strip, expected.splitlines())):
        assert any(error.startswith(f"{file}: {line}") for error in errors), line
    assert len(errors) == len(expected.strip().splitlines())
    assert SECRET not in found.output


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "Secret is missing"),
        ("Secret = ", "not TOML"),
        ('Secret = "x"', "StoreDir is missing"),
        ("UnixSocket = true", "write the path of the socket"),
        ("Host = 3", "write each host as a table"),
    ],
)
def test_what_can_not_be_read(file: Path, text: str, word: str) -> None:
    found = invoke("check", str(written(file, text)))
    assert found.exit_code == os.EX_CONFIG
    assert "error: " in found.output
    assert word in found.output


def test_no_file(tmp_path: Path) -> None:
    found = invoke("check", str(tmp_path / "none.toml"))
    assert found.exit_code == os.EX_CONFIG
    assert "No such file" in found.output


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ('LogFile = "/nowhere/at/all.log"', "there is no folder /nowhere/at; make it"),
        ('ListenPort = "ssl:8443:privateKey=/nowhere/key.pem"', "/nowhere/key.pem"),
        ('ListenPort = "[::1]:9090"\nMetricsPort = "[::1]:9090"', "is ListenPort, too"),
        ('ListenPort = ":9090"\nMetricsPort = "127.0.0.1:9090"', "is ListenPort, too"),
        ('ListenPort = "unix:/nowhere/at/all.sock"', "the socket's folder must be there"),
        ('ListenPort = "unix:/etc/passwd"', "Address already in use"),
        (f'ListenPort = "unix:/tmp/{"x" * 120}"', "File name too long"),
        ('ListenPort = "192.0.2.1:8080"', "this machine has no such address"),
        ('ListenPort = "[fe80::1%nosuch]:8080"', "there is no interface nosuch"),
        ('ListenPort = "tcp:99999"', "a port is at most 65535"),
        ('LogFile = "/tmp"', "is no file"),
    ],
)
def test_what_a_start_would_fail_by(file: Path, more: str, word: str) -> None:
    found = invoke("check", str(written(file, good(file.parent, more))))
    assert found.exit_code == os.EX_CONFIG
    assert word in found.output


def test_workers_and_tls(file: Path) -> None:
    """Two workers can not share an address that speaks TLS."""
    need("openssl")
    certificate, key = made_certificate(file.parent, "localhost")
    more = f'ListenPort = "ssl:8443:privateKey={key}:certKey={certificate}"\n'
    assert invoke("check", str(written(file, good(file.parent, more)))).exit_code == 0
    found = invoke("check", str(written(file, good(file.parent, more + "Workers = 2"))))
    assert "several workers need a plain socket" in found.output


def test_what_listens_anywhere(file: Path) -> None:
    """Both ports may be 0, which stands for any; LogFile may be a link to what is not there yet."""
    (file.parent / "link").symlink_to(file.parent / "log")
    more = f'ListenPort = "127.0.0.1:0"\nMetricsPort = "127.0.0.1:0"\nLogFile = "{file.parent}/link"'
    assert invoke("check", str(written(file, good(file.parent, more)))).exit_code == 0


def test_a_folder_of_the_stores_own_that_is_a_file(file: Path) -> None:
    text = good(file.parent)
    (file.parent / "store/.hmac-file-server").write_text("x")
    found = invoke("check", str(written(file, text)))
    assert found.exit_code == os.EX_CONFIG
    assert "can not write to" in found.output


def test_a_file_name_that_is_none(file: Path) -> None:
    found = invoke("check", str(written(file, 'SecretFile = "a\\u0000b"\nStoreDir = "/x"')))
    assert found.exit_code == os.EX_CONFIG
    assert "has a NUL character" in found.output


def test_a_store_that_can_not_be(file: Path) -> None:
    (file.parent / "plain").write_text("no folder")
    text = f'Secret = "{SECRET}"\nStoreDir = "{file.parent}/plain/store"'
    found = invoke("check", str(written(file, text)))
    assert found.exit_code == os.EX_CONFIG
    assert f"{file.parent}/plain is no folder" in found.output


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ('MetricsPort = ":9090"', "whoever reaches this machine can read the figures"),
        ('ListenPort = "0.0.0.0:8080"', "names only this machine"),
        ("Fsync = false", "a power cut can lose files"),
        ("NumCores = 4", "means nothing to this server"),
        ('MinFreeSpace = "1000000TiB"', "every upload is refused with 507"),
    ],
)
def test_what_is_unwise(file: Path, more: str, word: str) -> None:
    text = good(file.parent).replace("MinFreeSpace = 0\n", "") + more
    found = invoke("check", str(written(file, text)))
    assert found.exit_code == 0
    assert "warning: " in found.output
    assert word in found.output


def test_a_secret_that_all_can_read(file: Path) -> None:
    """The file that a secret stands in is named: the configuration, or SecretFile."""
    assert f"chmod o-r {file}" in invoke("check", str(written(file, good(file.parent), 0o644))).output
    apart = written(file.parent / "secret", SECRET, 0o644)
    text = good(file.parent).replace(f'Secret = "{SECRET}"', f'SecretFile = ["{apart}"]')
    found = invoke("check", str(written(file, text, 0o644)))
    assert f"chmod o-r {apart}" in found.output
    assert f"chmod o-r {file}" not in found.output
    apart.chmod(0o640)
    assert "chmod" not in invoke("check", str(file)).output


def test_a_weak_secret(file: Path) -> None:
    found = invoke("check", str(written(file, good(file.parent).replace(SECRET, "short"))))
    assert "a secret of 5 bytes can be guessed" in found.output


def test_where_the_file_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument, with --config before or after the subcommand, or ./config.toml."""
    written(file, good(file.parent))
    monkeypatch.chdir(file.parent)
    for arguments in (["check", str(file)], ["-c", str(file), "check"], ["check", "--config", str(file)], ["check"]):
        found = invoke(*arguments)
        assert found.output.endswith("config.toml: nothing to complain of\n"), arguments


def test_its_version_is_ours() -> None:
    assert invoke("--version").output == f"hmac-file-server, version {__version__}\n"
