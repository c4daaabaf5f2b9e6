"""``hmac-file-server explain``: why an upload is refused, and what mends it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hmac_file_server.command.main import main
from hmac_file_server.slots.mistakes import Asked, clues
from hmac_file_server.slots.signature import sign
from hmac_file_server.slots.verifier import Presented
from tests import support
from tests.bearer import token
from tests.support import v, v2
from tests.test_request import Server, put

SECRET = "a-secret-that-nobody-knows-4711"
OTHER = "another-secret-of-another-host"
SLOT = "b7f2c9e0/photo.jpg"
BASE = "https://upload.example.org"
KIND = "image/jpeg"


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.toml"
    file.write_text(f'Secret = "{SECRET}"\nStoreDir = "{tmp_path}/store"\nMaxUploadSize = "1MiB"\n')
    return str(file)


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    file = tmp_path / "hosts.toml"
    file.write_text(
        f'[[Host]]\nName = "one"\nUploadSubDir = "1/"\nSecret = "{SECRET}"\nStoreDir = "{tmp_path}/1"\n'
        f'[[Host]]\nName = "two"\nUploadSubDir = "2/"\nSecret = "{OTHER}"\nStoreDir = "{tmp_path}/2"\n'
    )
    return str(file)


def explain(config: str, url: str, *options: str, size: int = 5) -> Result:
    found = CliRunner().invoke(main, ["explain", url, "--size", str(size), *options, "-c", config])
    assert SECRET not in found.output
    assert OTHER not in found.output
    return found


def test_good(config: str) -> None:
    """A slot that is signed well is told so, in each protocol."""
    for query in (f"v={v(SLOT, 5, SECRET)}", f"v2={v2(SLOT, 5, KIND, SECRET)}", f"token={v2(SLOT, 5, KIND, SECRET)}"):
        found = explain(config, f"{BASE}/upload/{SLOT}?{query}", "--type", KIND)
        assert (found.exit_code, found.output) == (0, "the signature is good for 5 bytes\n")


def test_good_and_too_large(config: str) -> None:
    found = explain(config, f"{BASE}/upload/{SLOT}?v={v(SLOT, 2 << 20, SECRET)}", size=2 << 20)
    assert found.exit_code == 1
    assert "MaxUploadSize is 1048576 bytes" in found.output


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        (f"/files/{SLOT}", f"v={v(SLOT, 5, SECRET)}", 'holds after "/files/": set UploadSubDir = "files/", or'),
        (f"/{SLOT}", f"v={v(SLOT, 5, SECRET)}", 'without "/upload/" before it: a proxy cuts that off'),
        (f"/upload{SLOT}", f"v={v(SLOT, 5, SECRET)}", "where a slash is missing: .*, and a proxy's path with it"),
        ("/upload/a/b.jpg", f"v2={v2('a/b.jpg', 5, 'Image/JPEG', SECRET)}", "for the type Image/JPEG"),
        ("/upload/a/b.jpg", f"v2={v2('a/b.jpg', 5, 'image/jpg', SECRET)}", "for the type image/jpg"),
        (
            "/upload/a/b.jpg",
            f"v2={v2('a/b.jpg', 5, 'image/jpeg; charset=utf-8', SECRET)}",
            "for the type image/jpeg; ch",
        ),
        ("/upload/a/caf\u00e9.jpg", f"v={v('a/cafe' + chr(0x301) + '.jpg', 5, SECRET)}", "in another normal form"),
        (f"/upload/{SLOT}", f"x=1&amp;v={v(SLOT, 5, SECRET)}", "&amp;"),
        (f"/upload//{SLOT}", f"v={v(SLOT, 5, SECRET)}", "without a doubled slash"),
        (f"/upload/upload/{SLOT}", f"v={v(SLOT, 5, SECRET)}", "is there twice"),
        (f"/upload/{SLOT}", f"v={v('upload/' + SLOT, 5, SECRET)}", "only what follows must be signed"),
        (f"/upload/{SLOT}", f"v={v('/' + SLOT, 5, SECRET)}", "a slash before it"),
        ("/upload/a/b%20c.jpg", f"v={v('a/b%20c.jpg', 5, SECRET)}", "percent-encoded path: it must be signed decoded"),
        ("/upload/a/b c.jpg", f"v={v('a/b%20c.jpg', 5, SECRET)}", "percent-encoded path: it must be signed decoded"),
        ("/upload/a/b%2520c.jpg", f"v={v('a/b c.jpg', 5, SECRET)}", "a proxy has encoded it again"),
        ("/upload/a/b+c.jpg", f"v={v('a/b c.jpg', 5, SECRET)}", "spaces for its plus signs"),
        (f"/upload/{SLOT}", f"v={v(SLOT, -1, SECRET)}", "size -1"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 0, SECRET)}", "size 0"),
        (f"/upload/{SLOT}", f"v2={v(SLOT, 5, SECRET)}", "is one of v: the signer must name the parameter v"),
        (f"/upload/{SLOT}", f"v={v2(SLOT, 5, KIND, SECRET)}", "is one of v2"),
        (f"/upload/{SLOT}", f"v={sign(SECRET.encode(), SLOT.encode())}", "for the path alone"),
        (f"/upload/{SLOT}", f"v2={v2(SLOT, 5, 'image/png', SECRET)}", "for the type image/png: the client asked"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 5, SECRET + chr(10))}", "with a newline after it"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 5, f' {SECRET}')}", "with a space before it"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 5, base64.b64encode(SECRET.encode()).decode())}", "base64 encoded"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 5, SECRET.encode().hex())}", "as hex digits"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 5, f'{chr(34)}{SECRET}{chr(34)}')}", "with quotes around it"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 5, SECRET.upper())}", "in capital letters"),
        (f"/upload/{SLOT}", f"v={v(SLOT, 5, 'change-me')}", "made with an example's secret"),
        (
            f"/files/{SLOT}",
            f"v={v(SLOT, 5, 'change-me')}",
            'holds after "/files/": .*; and it was made with an example',
        ),
        (f"/files/{SLOT}", f"v2={v2(SLOT, 5, 'image/png', SECRET)}", 'after "/files/": .*; and it holds for the type'),
        (
            f"/upload/{SLOT}",
            f"v={v(SLOT, 5, OTHER)}",
            "no known mistake explains it: most likely the two secrets differ",
        ),
        (f"/files/{SLOT}", f"v={v(SLOT, 5, OTHER)}", 'uploads go below "/upload/"'),
        (f"/upload/{SLOT}", "", "the URL has no signature: Prosody signs with mod_http_upload_external"),
    ],
)
def test_mistakes(config: str, path: str, query: str, words: str) -> None:
    """Each mistake is named, and what mends it; two at once, too."""
    found = explain(config, f"{BASE}{path}?{query}", "--type", KIND)
    assert found.exit_code == 1
    assert re.search(words, found.output), found.output


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        (base64.b64encode(b"some bytes that are the secret").decode(), "base64 decoded"),
        ("c0ffee" * 8, "decoded from hex digits"),
    ],
)
def test_a_secret_that_was_decoded(config: str, secret: str, words: str) -> None:
    raw = base64.b64decode(secret) if words.startswith("base64") else bytes.fromhex(secret)
    Path(config).write_text(Path(config).read_text().replace(SECRET, secret))
    made = sign(raw, f"{SLOT} 5".encode())
    assert words in explain(config, f"{BASE}/upload/{SLOT}?v={made}").output


def test_the_other_host(hosts: str) -> None:
    """A URL with one host's prefix and another one's secret; --host is not needed."""
    found = explain(hosts, f"{BASE}/1/{SLOT}?v={v(SLOT, 5, OTHER)}")
    assert "with the secret of the host two" in found.output
    assert explain(hosts, f"{BASE}/2/{SLOT}?v={v(SLOT, 5, OTHER)}").exit_code == 0
    found = explain(hosts, f"{BASE}/3/{SLOT}?v={v(SLOT, 5, OTHER)}")
    assert 'after "/3/"' in found.output


# Tokens


def bearer(secret: str = SECRET, **changed: object) -> list[str]:
    return ["--header", f"Authorization: Bearer {token(SLOT, 5, secret, **changed).decode()}"]


@pytest.mark.parametrize(
    ("path", "secret", "changed", "words"),
    [
        (f"/upload/{SLOT}", SECRET, {}, "the token is good for 5 bytes"),
        (f"/upload/{SLOT}", SECRET, {"iat": 1 << 40}, "the claim iat lies ahead: the clocks"),
        (f"/upload/{SLOT}", OTHER, {}, "the XMPP server has another secret"),
        (f"/upload/{SLOT}", SECRET + "\n", {}, "with a newline after it"),
        (f"/upload/{SLOT}", SECRET, {"filesize": 6}, "the claim filesize is 6"),
        (f"/upload/{SLOT}", SECRET, {"slot": "else"}, "of another path"),
        (f"/files/{SLOT}", SECRET, {}, 'the token holds after "/files/"'),
        # It has expired by the time that somebody asks.
        (f"/upload/{SLOT}", SECRET, {"iat": 1000, "exp": 1300}, "the token was good for 5 bytes until 1970-01-01"),
        (f"/upload/{SLOT}", SECRET, {"iat": 1000, "exp": 1300, "filesize": 6}, "the claim filesize is 6"),
        (f"/files/{SLOT}", SECRET, {"iat": 1000, "exp": 1300}, 'the token holds after "/files/"'),
        (f"/upload/{SLOT}", SECRET, {"iat": None, "exp": 1}, "the claim exp has passed"),
    ],
)
def test_tokens(config: str, path: str, secret: str, changed: dict[str, object], words: str) -> None:
    found = explain(config, BASE + path, *bearer(secret, **changed))
    assert words in found.output
    assert found.exit_code == (0 if "is good" in words else 1)


def test_the_size_that_a_token_names(config: str) -> None:
    found = CliRunner().invoke(main, ["explain", f"{BASE}/upload/{SLOT}", *bearer(), "-c", config])
    assert (found.exit_code, found.output) == (0, "the token is good for 5 bytes\n")


# Lines of the log


def line_of(request: str, folder: Path) -> str:
    """The log's line of a request."""
    server = Server(folder)
    server.send(request)
    server.hang_up()
    [(ended, _, _)] = server.ended
    server.store.close()
    path = ended.path.decode()
    return f'2026-11-27T21:00:00+0000 warn  127.0.0.1 PUT {path} {ended.code} in=0 out=9 0.001s "curl" - {ended.error}'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("/upload/", "/files/", 'after "/files/"'),
        ("/upload/", "/upload//", "without a doubled slash"),
        ("Content-Length: 5", "Content-Length: 0", "no known mistake explains it"),
        ("?v=", "?v=0", "the v parameter is not one signature of 64 hex digits"),
        ("?v=", "?x=", "no signature: the URL has no v, v2 or token parameter"),
    ],
)
def test_a_line_of_the_log(config: str, tmp_path: Path, old: str, new: str, words: str) -> None:
    """The line of a refusal is enough, and has nothing that opens anything."""
    made = v("a/b.jpg", 5)
    Path(config).write_text(Path(config).read_text().replace(SECRET, support.SECRET))
    line = line_of(put("a/b.jpg", 5).replace(old, new, 1), tmp_path)
    assert made[:9] not in line
    found = CliRunner().invoke(main, ["explain", "--log", line, "-c", config])
    assert found.exit_code == 1
    assert words in found.output


def test_a_line_with_what_the_daemon_does_not_guess(config: str) -> None:
    """The type, say: only here all of them are tried."""
    shown = Presented({b"v2": [v2(SLOT, 5, "video/mp4", SECRET).encode()]}, b'image/jpeg; name="x"')
    about = clues(Asked(f"/upload/{SLOT}".encode(), shown, 5))
    line = f'... PUT /upload/{SLOT} 403 in=0 out=1 0.001s "curl (x) - y" - signature does not match ({about})'
    found = CliRunner().invoke(main, ["explain", "--log", line, "-c", config])
    assert "for the type video/mp4" in found.output


def test_a_line_that_names_its_host(hosts: str) -> None:
    about = f"size=5 type=- v={v(SLOT, 5, OTHER)[:8]}"
    line = f'... PUT /1/{SLOT} 403 in=0 out=1 0.001s host=one "curl" - signature does not match ({about})'
    found = CliRunner().invoke(main, ["explain", "--log", line, "--json", "-c", hosts])
    assert "with the secret of the host two" in json.loads(found.output)["explanation"]


@pytest.mark.parametrize("before", ["", "Nov 27 21:00:00 host twist[7]: "])
def test_a_line_of_json(hosts: str, before: str) -> None:
    """LogFormat = "json" says as much; a journal's own beginning of the line does no harm."""
    shown = {"size": 5, "type": 'a"b', "protocol": "v2", "signature": v2(SLOT, 5, "video/mp4", OTHER)[:8]}
    line = {"method": "PUT", "path": f"/2/{SLOT}", "status": 403, "host": "two", "note": "it does not match", **shown}
    found = CliRunner().invoke(main, ["explain", "--log", before + json.dumps(line), "-c", hosts])
    assert "for the type video/mp4" in found.output
    line |= {"host": None, "protocol": "v", "signature": v(SLOT, 5, OTHER)[:8], "path": f"/1/{SLOT}", "type": None}
    found = CliRunner().invoke(main, ["explain", "--log", before + json.dumps(line), "-c", hosts])
    assert "with the secret of the host two" in found.output
    line |= {"protocol": None, "signature": None}
    found = CliRunner().invoke(main, ["explain", "--log", before + json.dumps(line), "-c", hosts])
    assert found.output == "it does not match\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--log", '{"message":"x"}'], "not a line of a refused upload"),
        (["--log", '{"size": 5, "type": [], "path'], "not a line of a refused upload"),
        ([], "give either a URL or --log LINE"),
        (["--log", "something else"], "not a line of a refused upload"),
        ([f"{BASE}/upload/{SLOT}?v={v(SLOT, 5)}"], "give --size"),
        ([f"{BASE}/upload/{SLOT}?v=12", "--size", "5"], "is not one signature of 64 hex digits"),
        ([f"{BASE}/upload/{SLOT}", "--size", "5", "--header", "x"], "write it as 'Name: value'"),
    ],
)
def test_what_it_can_not_read(config: str, arguments: list[str], words: str) -> None:
    found = CliRunner().invoke(main, ["explain", *arguments, "-c", config])
    assert found.exit_code == 2
    assert words in " ".join(found.output.split())
