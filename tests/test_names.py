"""Hostile names: whatever a path says, and however it is spelled, it never leads outside the store."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.support import v
from tests.test_request import Server, status

OUTSIDE = b"nobody may read this"
RESERVED = b"nor this"
HIDDEN = b"and not this"
BODY = b"hello"

# The folder is the same for all examples; each leaves it as it was.
in_one_folder = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Names(Server):
    """A store beside, above and inside of what nobody may reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "srv" / "store"
        super().__init__(self.root)
        reserved = self.root / ".hmac-file-server"
        for place, text in (
            (folder / "secret.txt", OUTSIDE),
            (folder / "srv" / "secret.txt", OUTSIDE),
            (reserved / "secret.txt", RESERVED),
            (self.root / ".hmac-file-server.secret", RESERVED),
            (self.root / ".git" / "secret.txt", HIDDEN),
            (self.root / "slot" / "a.txt", b"public"),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text)
        self.before = self.tree()

    def tree(self) -> dict[bytes, bytes | None]:
        """All files with their bytes, and all folders, by their paths."""
        found: dict[bytes, bytes | None] = {}
        for folder, _, files in os.walk(os.fsencode(self.folder)):
            found[folder] = None
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[path] = file.read()
        return found

    def ask(self, head: bytes, body: bytes = b"") -> bytes:
        """The whole answer to one request on a connection of its own."""
        self.hang_up()
        self.connect()
        return self.send(head + b"\r\nHost: a\r\n\r\n" + body)

    def get(self, target: bytes) -> bytes:
        return self.ask(b"GET %b HTTP/1.1" % target)

    def put(self, target: bytes, path: bytes, body: bytes = BODY) -> bytes:
        """Upload with a signature of the path: XMPP servers sign whatever a client calls its file."""
        length = b"\r\nContent-Length: %d" % len(body)
        return self.ask(b"PUT %b?v=%b HTTP/1.1" % (target, v(path, len(body)).encode()) + length, body)

    def remove(self, paths: set[bytes]) -> None:
        """Remove what an example made."""
        for path in sorted(paths, reverse=True):
            if os.path.isdir(path):
                os.rmdir(path)
            else:
                os.unlink(path)
        # What was served may be served again for a moment.
        self.clock.advance(60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Names]:
    made = Names(tmp_path)
    yield made
    made.store.close()


# What may stand as it is in the path of a request target; all else comes percent-encoded.
PLAIN = set(range(0x21, 0x7F)) - set(b"%?#/")

TRICKS = [
    b"", b".", b"..", b"...", b"%2e", b"%2E%2e", b".%2e", b"%252e%252e", b"%c0%ae%c0%ae", b"%e0%80%ae%e0%80%ae",
    b"%c0%af", b"..%2f", b"..%2f..", b"..%5c..", b"..\\..", b"%2f", b"%2fetc%2fpasswd", b"..;", b"..%00", b"%00",
    b"a%00.txt", b"..%0d%0a", b"%uff0e%uff0e", "\uff0e\uff0e".encode(), b"%ef%bc%8e%ef%bc%8e",
    b"%e2%80%a5", b"%e2%88%95..%e2%88%95", b"~", b"~root",
    b"C:", b"CON", b"a.", b"a ".replace(b" ", b"%20"), b".hmac-file-server", b".hmac%2dfile-server",
    b".HMAC-file-server", b".hmac-file-server.secret", b"%2ehmac-file-server", b".git", b"%2egit", b"secret.txt",
    b"secret%2etxt", b"slot", b"a.txt", b"srv", b"store", b"upload", b"proc", b"self", b"%ff", b"%ed%a0%80",
    b"%f4%90%80%80", b"%", b"%2", b"%zz", b"+", b"a+b", b"x" * 255, b"x" * 256, b"%c3%bc" * 127, b"%c3%bc" * 128,
    b"x" * 1024, b"*", b"@", b"a:b", b"%e2%80%ae", b"%7f", b"%c2%85",
]  # fmt: skip

PREFIXES = [
    b"/upload/", b"/upload//", b"//upload/", b"/upload/../upload/", b"/upload/./", b"/upload%2f", b"/uploa%64/",
    b"/", b"//", b"", b"http://a/upload/", b"HTTPS://a/upload/", b"http:///upload/", b"/../", b"/upload/slot/",
    b"/upload/.hmac-file-server/", b"/upload/../", b"/upload/%2e%2e/", b"/upload/slot/../../", b"/./upload/",
]  # fmt: skip


@st.composite
def spelled(draw: st.DrawFn, name: bytes) -> bytes:
    """Some percent-encoding of a name."""
    parts = []
    for byte in name:
        how = draw(st.integers(0, 2)) if byte in PLAIN else draw(st.integers(1, 2))
        parts.append((bytes([byte]), b"%%%02x" % byte, b"%%%02X" % byte)[how])
    return b"".join(parts)


targets = st.builds(
    lambda prefix, segments: prefix + b"/".join(segments),
    st.just(b"/upload/") | st.sampled_from(PREFIXES),
    st.lists(
        st.sampled_from(TRICKS)
        | st.binary(max_size=12).flatmap(spelled)
        | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")).flatmap(spelled)
        | st.sampled_from([b"..", b".", b".hmac-file-server", b".git", b"secret.txt"]).flatmap(spelled),
        min_size=1,
        max_size=6,
    ),
)


@in_one_folder
@given(target=targets)
@example(target=b"/upload/../secret.txt")
@example(target=b"/upload/..%2fsecret.txt")
@example(target=b"/upload/%2e%2e/%2e%2e/secret.txt")
@example(target=b"/upload/slot/%2e%2e/.hmac-file-server/secret.txt")
@example(target=b"/upload/.hmac-file-server/secret.txt")
@example(target=b"/upload/.hmac-file-server.secret")
@example(target=b"/upload/%2egit/secret.txt")
@example(target=b"http://a/upload/../../secret.txt")
def test_nothing_but_uploads_can_be_read(server: Names, target: bytes) -> None:
    """No path, in no spelling, brings a file from outside, one of the daemon's own or one of a hidden folder."""
    for method in (b"GET", b"HEAD"):
        answer = server.ask(b"%b %b HTTP/1.1" % (method, target))
        assert status(answer) in (b"200", b"400", b"404")
        for text in (OUTSIDE, RESERVED, HIDDEN):
            assert text not in answer
        if status(answer) == b"200":
            assert unquote_to_bytes(target).endswith(b"/upload/slot/a.txt")
    assert server.tree() == server.before


@in_one_folder
@given(target=targets)
@example(target=b"/upload/../evil.txt")
@example(target=b"/upload/slot/..%2f..%2f..%2fevil.txt")
@example(target=b"/upload/.hmac-file-server/evil.txt")
@example(target=b"/upload/.hmac-file-server.evil")
@example(target=b"/upload/%2fetc%2fevil.txt")
@example(target=b"/upload/slot/a.txt/evil.txt")
@example(target=b"/upload/slot/evil.txt")
def test_nothing_is_written_elsewhere(server: Names, target: bytes) -> None:
    """With a signature for any path whatever, an upload makes the one file that was signed, or none at all."""
    signed = unquote_to_bytes(target.partition(b"/upload/")[2])
    answer = server.put(target, signed)
    made = {path: text for path, text in server.tree().items() if path not in server.before}
    assert all(server.tree()[path] == text for path, text in server.before.items())
    files = {path for path, text in made.items() if text is not None}
    try:
        if status(answer) == b"201":
            assert files == {os.path.join(os.fsencode(server.root), signed)}
            assert set(made.values()) == {None, BODY} or set(made.values()) == {BODY}
            name = signed.split(b"/")
            assert not any(part.startswith(b".hmac-file-server") for part in name)
            assert not any(part.startswith(b".") for part in name[:-1])
            assert server.get(target).endswith(b"\r\n\r\n" + BODY)
        else:
            assert status(answer) in (b"400", b"403", b"404", b"409")
            assert not made
    finally:
        server.remove(set(made))


ordinary = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=40
).filter(
    lambda name: len(name.encode()) <= 255 and name not in (".", "..") and not name.startswith(".hmac-file-server")
)


@in_one_folder
@given(data=st.data(), name=ordinary)
def test_the_spelling_does_not_matter(server: Names, data: st.DataObject, name: str) -> None:
    """What was put in one spelling of a name is got in any other: `%c3` or `%C3`, `%26` or `&`."""
    path = b"other/" + name.encode()
    target = b"/upload/other/"
    try:
        put = target + data.draw(spelled(name.encode()))
        assert status(server.put(put, path)) == b"201"
        get = target + data.draw(spelled(name.encode()))
        assert server.get(get).endswith(b"\r\n\r\n" + BODY)
        assert server.tree()[os.path.join(os.fsencode(server.root), path)] == BODY
    finally:
        server.remove(set(server.tree()) - set(server.before))


@st.composite
def twins(draw: st.DrawFn) -> tuple[str, str]:
    """Two names that some systems take for one: by case, by composition, by width, by a dot or space at the end."""
    name = draw(
        st.text(
            st.sampled_from("aAbB\u00e9\u00c9\u00f6\u212b\ufb01\uff21\u00df\u0130\u0131\u017fK\u0301"),
            min_size=1,
            max_size=8,
        )
        | ordinary
    )
    change = draw(
        st.sampled_from(
            [
                str.upper,
                str.lower,
                str.casefold,
                str.swapcase,
                lambda text: unicodedata.normalize("NFC", text),
                lambda text: unicodedata.normalize("NFD", text),
                lambda text: unicodedata.normalize("NFKC", text),
                lambda text: text + ".",
                lambda text: text + " ",
            ]
        )
    )
    return name, change(name)


@in_one_folder
@given(names=twins())
@example(names=("photo.jpg", "PHOTO.JPG"))
@example(names=("é.txt", "e\u0301.txt"))
@example(names=("\u212b", "\u00c5"))
@example(names=("straße", "strasse"))
def test_twins_are_kept_apart(server: Names, names: tuple[str, str]) -> None:
    """Names that differ in any byte are different files, however alike they look, as files and as folders."""
    one, two = (b"x" + name.encode() for name in names)
    assume(one != two and b"/" not in two and max(len(one), len(two)) <= 255)
    files = {b"twin/" + one: b"1", b"twin/" + two: b"2", b"twins/%b/a" % one: b"3", b"twins/%b/a" % two: b"4"}
    try:
        for path, text in files.items():
            assert status(server.put(b"/upload/" + quote(path).encode(), path, text)) == b"201"
        for path, text in files.items():
            assert server.get(b"/upload/" + quote(path).encode()).endswith(b"\r\n\r\n" + text)
    finally:
        server.remove(set(server.tree()) - set(server.before))


@pytest.mark.parametrize("unit", ["x", "ü", "€", "🎉"])
def test_names_as_long_as_possible(server: Names, unit: str) -> None:
    """A name of 255 bytes is stored and served; a byte more is refused and leaves nothing, whatever it is made of."""
    name = unit.encode() * (255 // len(unit.encode()))
    name += b"y" * (255 - len(name))
    for path in (b"long/" + name, name + b"/long"):
        target = b"/upload/" + quote(path).encode()
        assert status(server.put(target, path)) == b"201"
        assert server.get(target).endswith(b"\r\n\r\n" + BODY)
    tree = server.tree()
    for path in (b"long/" + name + b"z", name + b"z/long", b"new/" + name + b"z"):
        target = b"/upload/" + quote(path).encode()
        assert status(server.put(target, path)) == b"400"
        assert status(server.get(target)) == b"404"
    assert server.tree() == tree


def test_paths_longer_than_the_system_takes(server: Names) -> None:
    """A path of more bytes than the system takes at once (PATH_MAX) is a file like any other."""
    path = b"/".join([b"d" * 200] * 30) + b"/a.txt"
    assert len(path) > os.pathconf(server.root, "PC_PATH_MAX")
    assert status(server.put(b"/upload/" + path, path)) == b"201"
    assert server.get(b"/upload/" + path).endswith(b"\r\n\r\n" + BODY)


def test_a_file_where_a_folder_should_be(server: Names) -> None:
    """A file is no folder: nothing is put or found below it, and it stays as it is."""
    for below in (b"b.txt", b"b/c.txt", b".hidden"):
        path = b"slot/a.txt/" + below
        assert status(server.put(b"/upload/" + path, path)) == b"409"
        assert status(server.get(b"/upload/" + path)) == b"404"
    assert status(server.get(b"/upload/slot/a.txt/")) == b"404"
    assert server.tree() == server.before


def test_a_folder_where_a_file_should_be(server: Names) -> None:
    """A folder is no file: it is neither served nor replaced."""
    assert status(server.put(b"/upload/slot", b"slot")) == b"409"
    assert status(server.put(b"/upload/slot/", b"slot/")) == b"400"
    for target in (b"/upload/slot", b"/upload/slot/", b"/upload/", b"/upload", b"/"):
        assert status(server.get(target)) == b"404"
    assert server.tree() == server.before
