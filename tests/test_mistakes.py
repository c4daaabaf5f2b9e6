"""What the log says of uploads that are refused for a mistake in setting up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.slots.mistakes import Asked, likely_mistake
from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.secret import EXAMPLE_SECRET, PLACEHOLDER
from hmac_file_server.slots.signature import BadSignature, sign
from hmac_file_server.slots.verifier import Presented, Verifier
from tests.stores import MemoryStore
from tests.support import v, v2
from tests.test_request import Server, put, status

SECRET = "correct-horse-battery-staple"
SLOT = "b7f2c9e0/my photo.jpg"
EJABBERD = f"{'0a' * 20}/{'Zz9' * 13}a/photo.jpg"
VERIFIER = Verifier([b"another-secret-that-is-long", SECRET.encode()])


def mistake(
    path: str | bytes,
    parameters: dict[str, str] | None = None,
    prefix: str = "upload",
    authorization: bytes | None = None,
) -> str:
    given = {b"v": [v(SLOT, 5, SECRET).encode()]}
    if parameters is not None:
        given = {name.encode(): [value.encode()] for name, value in parameters.items()}
    shown = Presented(given, b"image/jpeg", () if authorization is None else [authorization])
    asked = Asked(quote(path).encode(), shown, 5)
    return likely_mistake(asked, prefix, VERIFIER)


@pytest.mark.parametrize(
    ("path", "prefix", "words"),
    [
        (f"/upload{SLOT}", "upload", r'for what follows "/upload", where a slash is missing: .* end in "/upload/"'),
        (f"/a/b{SLOT}", "a/b", r'for what follows "/a/b", where a slash is missing: .* must end in "/a/b/"'),
        (f"/{SLOT}", "upload", r'for the whole path, without "/upload/" before it: a proxy cuts that off .*nginx'),
        (f"//{SLOT}", "upload", r'for the whole path, without "/upload/" before it: a proxy cuts that off .*nginx'),
        (f"/files/{SLOT}", "upload", r'after "/files/": set UploadSubDir = "files/", or .* must end in "/upload/"'),
        (f"/Upload/{SLOT}", "upload", r'after "/Upload/": set UploadSubDir = "Upload/", or'),
        (f"/share/x/{SLOT}", "upload", r'after "/share/x/": set UploadSubDir = "share/x/", or'),
        (f"/b/{SLOT}", "a/b", r'after "/b/": set UploadSubDir = "b/", or .* must end in "/a/b/"'),
        (f"/files/{SLOT}", "", r'after "/files/": set UploadSubDir = "files/", or .* must end after the host'),
        (f"/upload/upload/{SLOT}", "upload", r'after "/upload/upload/": "/upload/" is there twice'),
        (f"/upload/a.example/{SLOT}", "upload", r'after "/upload/a.example/": set .* there must be no @HOST@'),
        (f"/upload//{SLOT}", "upload", r"without a doubled slash: .* one slash too many"),
        (f"//upload/{SLOT}", "upload", r"without a doubled slash: .* one slash too many"),
        (f"//{SLOT}", "", r"without a doubled slash: .* one slash too many"),
        (f"/upload/{quote(SLOT)}", "upload", r"for the path decoded once more: a proxy has encoded it again"),
    ],
)  # fmt: skip
def test_prefix(path: str, prefix: str, words: str) -> None:
    """A slot whose signature holds for another part of its URL's path tells which setting puts that right."""
    assert re.match(f"the signature holds {words}", mistake(path, prefix=prefix))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (f"upload/{SLOT} 5", 'for the path with "/upload/", as hmac-file-server 3.x has it'),
        (f"/upload/{SLOT} 5", 'for the path with "/upload/", as hmac-file-server 3.x has it'),
        (f"/{SLOT} 5", "for the path with a slash before it"),
        (f"{quote(SLOT)} 5", "for the percent-encoded path: it must be signed decoded"),
        (SLOT, "for the path alone, as hmac-file-server 3.x has it"),
    ],
)
def test_signer(message: str, words: str) -> None:
    """A signer that signs something else than the contract has it is told what must be signed."""
    signature = sign(SECRET.encode(), message.encode())
    assert mistake(f"/upload/{SLOT}", {"v": signature}).startswith(f"the signature holds {words}")


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        (EXAMPLE_SECRET.decode(), "was made with an example's secret"),
        (PLACEHOLDER.decode(), "was made with an example's secret"),
        ("change-me", "was made with an example's secret"),
        (SECRET + "\n", "holds for Secret with a newline after it"),
    ],
)
def test_secret(secret: str, words: str) -> None:
    """An XMPP server that was left with an example's secret, or reads a newline with it, is found out."""
    assert words in mistake(f"/upload/{SLOT}", {"v": v(SLOT, 5, secret)})
    assert words in mistake(f"/upload/{SLOT}", {"v2": v2(SLOT, 5, "image/jpeg", secret)})


def test_secret_with_white_space() -> None:
    """A Secret with white space around it is told from a wrong one."""
    asked = Asked(f"/upload/{quote(SLOT)}".encode(), Presented({b"v": [v(SLOT, 5, SECRET).encode()]}), 5)
    assert "without the white space" in likely_mistake(asked, "upload", Verifier([f" {SECRET} ".encode()]))


@pytest.mark.parametrize("path", [f"/upload/{SLOT}", f"/{SLOT}", "/"])
def test_unsigned(path: str) -> None:
    """A URL without a signature tells which modules sign, whichever way the other one went."""
    assert "mod_http_upload_external" in mistake(path, {})
    assert "the query" in mistake(path, {})
    assert "http_file_share_secret" in mistake(path, {})


def test_ejabberd_without_its_secret() -> None:
    """A path as ejabberd makes it, without a signature, tells of external_secret."""
    for path in (f"/upload/{EJABBERD}", f"/{EJABBERD}"):
        assert "external_secret" in mistake(path, {})
        assert "Prosody" not in mistake(path, {})


@pytest.mark.parametrize(
    "parameters",
    [{"v": "00"}, {"v": ""}, {"v": "0" * 64}, {"v2": "0" * 64, "v": v(SLOT, 5, SECRET)}, {"v": v(SLOT, 6, SECRET)}],
)
def test_no_guess(parameters: dict[str, str]) -> None:
    """A signature of which nobody can tell anything has nothing made up about it."""
    for path in (f"/upload/{SLOT}", f"/{SLOT}"):
        assert mistake(path, parameters) == ""


def test_a_mistake_is_never_let_in() -> None:
    """Whatever is found out about a signature, it opens nothing."""
    with pytest.raises(BadSignature):
        VERIFIER.verify(
            Presented({b"v": [v(SLOT, 5, SECRET).encode()]}), slot_path([b"upload", *SLOT.encode().split(b"/")]), 5
        )


@given(
    st.binary(max_size=60),
    st.sampled_from(["", "upload", "a/b", "größe"]),
    st.dictionaries(st.sampled_from([b"v", b"v2", b"token"]), st.lists(st.just(b"0" * 64) | st.binary(), max_size=2)),
    st.none() | st.binary(max_size=20),
)
def test_anything(path: bytes, prefix: str, parameters: dict[bytes, Sequence[bytes]], more: bytes | None) -> None:
    """Whatever a stranger sends, guessing at it ends well, and in one line."""
    said = likely_mistake(Asked(path, Presented(parameters, more, [more] if more else ()), 5), prefix, VERIFIER)
    assert len(said) < 500


# Through the Site


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, store=MemoryStore())


def refused(server: Server, request: str) -> tuple[bytes, str]:
    """The answer's status, and what the log's line says."""
    answer = server.send(request)
    server.hang_up()
    ended, _, _ = server.ended.pop()
    return status(answer), str(ended.error)


@pytest.mark.parametrize(
    ("old", "new", "expected", "words"),
    [
        ("/upload/", "/upload", b"404", 'there is nothing here; the signature holds for what follows "/upload"'),
        ("/upload/", "/", b"404", 'there is nothing here; the signature holds for the whole path, without "/upload/"'),
        ("/upload/", "/x/", b"404", 'there is nothing here; the signature holds after "/x/"'),
        ("/upload/", "//upload/", b"404", "there is nothing here; the signature holds without a doubled slash"),
        ("/upload/", "/upload//", b"400", "empty segment; the signature holds without a doubled slash"),
        ("/upload/", "/upload/upload/", b"403", 'does not match: .*; the signature holds after "/upload/upload/"'),
        ("/upload/a/b?v=", "/x/a/b?v=0", b"404", 'there is nothing here; uploads go below "/upload/"'),
        ("?v=", "?x=", b"403", "no signature: .*mod_http_upload_external"),
        ("/upload/a/b?v=", "/x/a/b?x=", b"404", "there is nothing here; Prosody signs with mod_http_upload_external"),
        ("PUT", "POST", b"405", "XMPP clients PUT to the URL of a slot"),
    ],
)
def test_line(server: Server, old: str, new: str, expected: bytes, words: str) -> None:
    """The log's line of a refused upload names the mistake, and the client is told nothing of it."""
    said, line = refused(server, put("a/b", 5).replace(old, new, 1))
    assert said == expected
    assert re.search(words, line), line
    assert b"signature holds" not in server.transport.value()


def test_line_of_a_file_that_is_too_large(server: Server) -> None:
    """413 names the key, and the XMPP server's own limit."""
    said, line = refused(server, put("a/b", (1 << 30) + 1))
    assert (said, line) == (
        b"413",
        "1073741825 bytes, but at most 1073741824 bytes are taken (MaxUploadSize);"
        " the XMPP server's own limit is higher",
    )


def test_line_of_a_download_elsewhere(server: Server) -> None:
    """A GET outside the prefix is told from one of a file that is not there."""
    answer = server.send("GET /a/b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status(answer), answer.endswith(b"there is nothing here\n")) == (b"404", True)
    assert str(server.ended.pop()[0].error) == 'there is nothing here: files lie below "/upload/" (UploadSubDir)'


def test_no_guesses_at_what_is_very_long() -> None:
    """Each guess costs the more the longer a path is: of one that no client's slot has nobody guesses."""
    for length, guessed in ((1000, True), (1100, False)):
        long = "a" * length
        assert bool(mistake(f"/files/{long}", {"v": v(long, 5, SECRET)})) == guessed


def test_no_guesses_for_lines_that_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody reads is not guessed at: only the line in the log asks."""
    asked: list[Asked] = []
    monkeypatch.setattr("hmac_file_server.files.resource.likely_mistake", lambda *of: asked.append(of[0]) or "guess")
    server = Server(tmp_path, store=MemoryStore())
    for target in ("/upload/a/b?v=" + "00" * 32, "/elsewhere?v=" + "00" * 32, "/upload/a//b?v=" + "00" * 32):
        server.connect()
        server.send(f"PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    assert [request.code for request, _, _ in server.ended] == [403, 404, 400]
    assert not asked
    assert all("; guess" in str(request.error) for request, _, _ in server.ended)
    server.store.close()
