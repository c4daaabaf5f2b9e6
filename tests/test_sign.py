"""``hmac-file-server sign``: a slot as the XMPP server would give it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

import pytest
from click.testing import CliRunner, Result

from hmac_file_server.command.main import main
from hmac_file_server.slots.issue import PROTOCOLS
from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.verifier import Presented, Verifier

SECRET = "a-secret-that-nobody-knows-4711"
OTHER = "another-secret-of-another-host"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.toml"
    file.write_text(
        f'Secret = ["{SECRET}", "{OTHER}"]\nStoreDir = "{tmp_path}/store"\nListenPort = "127.0.0.1:8088"\n'
    )
    return str(file)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["photo.jpg", "my phöto's 100%+?&#.jpg", "$(reboot) `x`;.txt"])
def test_what_it_signs_is_taken(config: str, protocol: str, name: str) -> None:
    """A verifier with the same secret takes what it prints, for that path and size alone."""
    options = ["--size", "1KiB", "--protocol", protocol, "--json", "-c", config]
    found = invoke("sign", f"3f2b/{name}", *options, "--type", "image/jpeg")
    assert found.exit_code == 0, found.output
    slot = json.loads(found.stdout)
    url = urlsplit(slot["put"])
    assert slot["get"] == slot["put"].partition("?")[0]
    assert url.netloc == "127.0.0.1:8088"
    prefix, *segments = url.path[1:].split("/")
    assert prefix == "upload"
    path = slot_path([unquote_to_bytes(segment) for segment in segments])
    assert path.name == name
    parameters = {key.encode(): [value.encode() for value in values] for key, values in parse_qs(url.query).items()}
    authorization = [slot["headers"]["Authorization"].encode()] if protocol == "jwt" else []
    shown = Presented(parameters, slot["headers"]["Content-Type"].encode(), authorization)
    verifier = Verifier([SECRET.encode()])
    assert verifier.verify(shown, path, 1024).size == 1024
    assert not verifier.holds(shown, path, 1025)


def test_the_vectors(config: str) -> None:
    """The signatures of the contract."""
    Path(config).write_text(Path(config).read_text().replace(SECRET, "orbit7-shadow23-breeze91-echo17"))
    path = "b7f2c9e0-5d3a-4c11-9a57-0f2d6a1b8c44/photo.jpg"
    for protocol, digits in (
        ("v", "ed6988dfde2293db2d8f60a4f540b14452298aadb7eb04daec431beef6f3c2e3"),
        ("v2", "31dd434bc9dcd3bfd5d4798cbef8dda6d86502fcad2bdc224140e9fb9403cfb6"),
        ("token", "31dd434bc9dcd3bfd5d4798cbef8dda6d86502fcad2bdc224140e9fb9403cfb6"),
    ):
        found = invoke("sign", path, "--size", "1048576", "--protocol", protocol, "-c", config)
        assert f"PUT http://127.0.0.1:8088/upload/{path}?{protocol}={digits}\n" in found.output
        assert "    Content-Type: image/jpeg\n" in found.output


def test_the_public_url(config: str) -> None:
    for url in ("https://upload.example.org/files", "https://upload.example.org/files/"):
        found = invoke("sign", "a/b.txt", "--size", "5", "--url", url, "-c", config)
        assert "\nGET https://upload.example.org/files/a/b.txt\n" in found.output


def test_of_several_hosts(tmp_path: Path) -> None:
    """--host says whose secret and prefix count, by the host's name or its prefix."""
    file = tmp_path / "config.toml"
    file.write_text(
        f'[[Host]]\nName = "one"\nUploadSubDir = "1/"\nSecret = "{SECRET}"\nStoreDir = "{tmp_path}/1"\n'
        f'[[Host]]\nUploadSubDir = "2/"\nSecret = "{OTHER}"\nStoreDir = "{tmp_path}/2"\n'
    )
    options = ["sign", "a/b.txt", "--size", "5", "-c", str(file)]
    asked = invoke(*options)
    assert asked.exit_code == 2
    assert "say which of one, 2" in asked.output
    assert "takes one of one, 2" in invoke(*options, "--host", "three").output
    urls = {host: invoke(*options, "--host", host).output.split()[1] for host in ("one", "1/", "2")}
    assert urls["one"] == urls["1/"]
    assert urls["one"].startswith("http://[::1]:8080/1/a/b.txt?v=")
    assert urls["2"].startswith("http://[::1]:8080/2/a/b.txt?v=")
    assert urls["one"].partition("=")[2] != urls["2"].partition("=")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a/../b", "--size", "5"], "has a . or .. segment"),
        (["/a/b", "--size", "5"], "empty segment"),
        (["a/b", "--size", "five"], "write a size"),
        (["a/b", "--size", "-1"], "write a size"),
        (["a/b"], "Missing option '--size'"),
        (["b", "--size", "5", "--protocol", "jwt"], "a path of two parts"),
    ],
)
def test_what_can_not_be_signed(config: str, arguments: list[str], words: str) -> None:
    found = invoke("sign", *arguments, "-c", config)
    assert found.exit_code == 2
    assert words in " ".join(found.output.split())


def test_a_unix_socket(config: str) -> None:
    Path(config).write_text(Path(config).read_text().replace("127.0.0.1:8088", "unix:/run/upload.sock:mode=660"))
    found = invoke("sign", "a/b.txt", "--size", "5", "-c", config)
    assert "curl --globoff --unix-socket /run/upload.sock " in found.output
    Path(config).write_text(Path(config).read_text().replace("unix:/run/upload.sock:mode=660", "systemd:index=0"))
    assert "give --url" in invoke("sign", "a/b.txt", "--size", "5", "-c", config).output


def test_a_config_that_is_none(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["sign", "a/b.txt", "--size", "5", "-c", str(tmp_path / "none.toml")])
    assert found.exit_code == 78
    assert "name the file with --config" in found.output
