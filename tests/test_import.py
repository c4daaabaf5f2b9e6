"""``hmac-file-server import``: the stores of Prosody and xmpp-http-upload are taken over, and nothing is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.command.main import main
from hmac_file_server.importing import lua, prosody
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.stores.local.disk import Disk
from tests.support import Daemon

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
UPLOADED = 1_700_000_000
HOST = "share.example.org"
OWNER, DAEMON = 61001, 61002  # Nobody has these numbers.

AWKWARD = [
    "my  photo .jpg",
    "Größe Äöß 🎉.pdf",
    "100%25 of 50%.txt",
    'it\'s "quoted" \\n & <b>.txt',
    ".hidden",
    "~",
    "n" * 251 + ".bin",
    "ü" * 127,
]
IMPOSSIBLE = {
    "a\nb.txt": "control character",
    "../../etc/passwd": "encoded slash",
    "..": ". or .. segment",
    "": "empty segment",
    ".hmac-file-server-x": "keeps for itself",
    "n" * 256: "256 bytes",
}


class Stage:
    """A store of ours, beside that of another server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        self.source = folder / "theirs"
        self.source.mkdir()
        self.config = folder / "config.toml"
        self.config.write_text(f'Secret = "a-secret-that-nobody-knows"\nStoreDir = "{self.store}"')

    def run(self, kind: str, *options: str) -> Result:
        arguments = ["import", "--from", kind, str(self.source), "--config", str(self.config), *options]
        return CliRunner().invoke(main, arguments, catch_exceptions=False)

    def json(self, kind: str, *options: str) -> dict[str, Any]:
        found = self.run(kind, *options, "--json")
        report: dict[str, Any] = json.loads(found.output)
        assert found.exit_code == (1 if report["not_taken_over"] or report["error"] else 0)
        return report

    def stored(self) -> dict[str, bytes]:
        """All public files of the store."""
        return {
            str(path.relative_to(self.store)): path.read_bytes()
            for path in sorted(self.store.rglob("*"))
            if path.is_file() and not path.is_relative_to(self.store / ".hmac-file-server")
        }


class Theirs(Stage):
    """Prosody's files and records, as its own modules write them.

    :param storage: ``internal`` or ``sql``.
    """

    def __init__(self, folder: Path, storage: str) -> None:
        super().__init__(folder)
        self.storage = storage
        self.host = self.source / HOST.replace(".", "%2e")
        self.bins = self.host / "http_file_share"
        self.bins.mkdir(parents=True)

    def put(self, slot: str, name: str, body: bytes | None, **about: Any) -> None:
        """Store a file; with None its slot is never used."""
        about = {"media_type": "text/plain", "owner": "alice@example.org", "when": UPLOADED} | about
        attributes = {"filename": name, "size": str(about.get("size", len(body or b""))), "xmlns": "urn:xmpp:http"}
        if about["media_type"] is not None:
            attributes["content-type"] = about["media_type"]
        if self.storage == "internal":
            self.write_list(serialized(slot, attributes, about["when"], about["owner"]))
        else:
            self.insert(slot, about["when"], about["owner"], element(attributes))
        if body is not None:
            (self.bins / f"{prosody.encode(slot.encode()).decode()}.bin").write_bytes(body)

    def write_list(self, text: str) -> None:
        with (self.host / "uploads.list").open("ab") as file:
            file.write(text.encode("ascii"))

    def insert(self, slot: str, when: int, owner: str, value: str) -> None:
        with closing(sqlite3.connect(self.source / "prosody.sqlite")) as database, database:
            database.execute(
                """CREATE TABLE IF NOT EXISTS "prosodyarchive" ("sort_id" INTEGER PRIMARY KEY AUTOINCREMENT,
                "host" TEXT, "user" TEXT, "store" TEXT, "key" TEXT, "when" INTEGER, "with" TEXT, "type" TEXT,
                "value" TEXT)"""
            )
            row = (HOST, "", "uploads", slot, when, owner, "xml", value)
            columns = '"host", "user", "store", "key", "when", "with", "type", "value"'
            database.execute(f"INSERT INTO prosodyarchive ({columns}) VALUES (?,?,?,?,?,?,?,?)", row)
            database.execute(
                f"INSERT INTO prosodyarchive ({columns}) VALUES (?,?,?,?,?,?,?,?)",
                ("example.org", "alice", "archive", slot, when, owner, "xml", "<message/>"),
            )


def serialized(slot: str, attributes: dict[str, str], when: int, owner: str) -> str:
    """A record as util.serialization writes it."""
    pairs = "".join(f"\t\t[{quoted(key)}] = {quoted(value)};\n" for key, value in attributes.items())
    rest = f'["when"] = {when};\n\t["with"] = {quoted(owner)};\n\t["key"] = {quoted(slot)};\n'
    return f'item({{\n\t["name"] = "request";\n\t["attr"] = {{\n{pairs}\t}};\n\t{rest}}});\n'


def quoted(text: str) -> str:
    escapes = {0x0A: "\\n", 0x22: '\\"', 0x27: "\\'", 0x5C: "\\\\", 0x09: "\\t"}
    return '"{}"'.format(
        "".join(
            escapes.get(byte, chr(byte) if 32 <= byte < 127 else f"\\{byte:03d}")
            for byte in text.encode("utf-8", "surrogateescape")
        )
    )


def element(attributes: dict[str, str]) -> str:
    """A record as util.stanza writes it."""
    escapes = str.maketrans({"'": "&apos;", '"': "&quot;", "<": "&lt;", ">": "&gt;", "&": "&amp;"})
    pairs = "".join(f" {key}='{value.translate(escapes)}'" for key, value in attributes.items())
    return f"<request{pairs}/>"


class Uploads(Stage):
    """The files of xmpp-http-upload."""

    def put(self, slot: str, name: str, body: bytes, media_type: str | None = "text/plain") -> None:
        folder = self.source / slot
        folder.mkdir(exist_ok=True, parents=True)
        data = folder / f"{name}.data"
        data.write_bytes(body)
        os.utime(data, (UPLOADED, UPLOADED))
        if media_type is not None:
            (folder / f"{name}.meta").write_text(json.dumps({"headers": {"Content-Type": media_type}}))


@pytest.fixture(params=["internal", "sql"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Theirs:
    return Theirs(tmp_path, request.param)


@pytest.fixture
def internal(tmp_path: Path) -> Theirs:
    return Theirs(tmp_path, "internal")


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


def attribute(file: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(file, f"user.{name}")
    except OSError:
        return None


def picture(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that there is in a folder, and all about it that a takeover must not change."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        there = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (there.st_ino, there.st_mode, there.st_uid, there.st_gid, there.st_mtime_ns, content)
    return found


# What is taken over


def test_prosody(theirs: Theirs) -> None:
    """Bytes, type, owner, time and end are Prosody's; the source is left as it was."""
    theirs.put("sLot-_1", "photo.jpg", b"a photo", media_type="image/JPEG")
    theirs.put("018c0000-0000-7000-8000-000000000000", "none", b"", media_type=None, owner="bob@example.org")
    (theirs.host / "uploads.lidx").write_bytes(b"\0" * 16)
    (theirs.bins / "half%2d.bin~").write_bytes(b"half")
    before = picture(theirs.source)
    report = theirs.json("prosody", "--expires-after", "5000d")
    assert (report["imported"], report["bytes"], report["skipped"]) == (2, 7, {})
    assert theirs.stored() == {"sLot-_1/photo.jpg": b"a photo", "018c0000-0000-7000-8000-000000000000/none": b""}
    photo = theirs.store / "sLot-_1/photo.jpg"
    assert attribute(photo, "mime_type") == b"image/jpeg"
    assert attribute(photo, "hmac_file_server.owner") == b"alice@example.org"
    assert attribute(photo, "hmac_file_server.expires") == b"%d" % (UPLOADED + 5000 * 86400)
    other = theirs.store / "018c0000-0000-7000-8000-000000000000/none"
    assert attribute(other, "mime_type") is None
    assert attribute(other, "hmac_file_server.owner") == b"bob@example.org"
    assert picture(theirs.source) == before


def test_xmpp_http_upload(uploads: Uploads) -> None:
    """The type comes from .meta, the time from the file; paths may be deep or not."""
    uploads.put("slot", "a.data", b"one", "text/html; charset=utf-8; boundary=x")
    uploads.put("sha1/random", "b", b"two", "nonsense")
    uploads.put("", "c", b"three", "")
    (uploads.source / "README").write_text("not a file of its")
    before = picture(uploads.source)
    assert uploads.json("xmpp-http-upload", "--expires-after", "9999w")["imported"] == 3
    assert uploads.stored() == {"slot/a.data": b"one", "sha1/random/b": b"two", "c": b"three"}
    assert attribute(uploads.store / "slot/a.data", "mime_type") == b"text/html; charset=utf-8"
    assert attribute(uploads.store / "sha1/random/b", "mime_type") == b"application/octet-stream"
    assert attribute(uploads.store / "c", "mime_type") is None
    assert attribute(uploads.store / "c", "hmac_file_server.expires") == b"%d" % (UPLOADED + 9999 * 604800)
    assert (uploads.store / "c").stat().st_mtime == UPLOADED
    assert picture(uploads.source) == before


def test_awkward_names(theirs: Theirs) -> None:
    for number, name in enumerate(AWKWARD):
        theirs.put(f"slot{number}", name, name.encode())
    assert theirs.json("prosody")["imported"] == len(AWKWARD)
    assert theirs.stored() == {f"slot{number}/{name}": name.encode() for number, name in enumerate(AWKWARD)}


def test_impossible_names(theirs: Theirs) -> None:
    """What could not be served is named, and nothing is written anywhere."""
    for number, name in enumerate(IMPOSSIBLE):
        theirs.put(f"slot{number}", name, b"x")
    theirs.put("../up", "name", b"x")
    report = theirs.json("prosody")
    reasons = [one["reason"] for one in report["not_taken_over"]]
    assert len(reasons) == len(IMPOSSIBLE) + 1
    for reason, part in zip(reasons, [*IMPOSSIBLE.values(), "encoded slash"], strict=True):
        assert part in reason
    assert theirs.stored() == {}
    assert not (theirs.folder / "up").exists()
    assert all("\n" not in one["file"] for one in report["not_taken_over"])


def test_awkward_paths(uploads: Uploads) -> None:
    for number, name in enumerate(AWKWARD):
        if len(name.encode()) <= 250:
            uploads.put(f"slot{number}", name, name.encode())
    uploads.put(".hidden", "name", b"x")
    uploads.put("slot", "a\nb", b"x")
    (uploads.source / "slot/.data").write_bytes(b"x")
    (uploads.source / "slot/.meta").write_text('{"headers": {"Content-Type": "text/plain"}}')
    report = uploads.json("xmpp-http-upload")
    assert report["imported"] == len(AWKWARD) - 2
    found = {one["file"]: one["reason"] for one in report["not_taken_over"]}
    assert found.keys() == {".hidden/name", "slot/a\\nb", "slot/"}


def test_old_links_work(uploads: Uploads, make_daemon: Callable[..., Daemon]) -> None:
    """The daemon serves each file under its old path: its bytes, its type, its time."""
    daemon = make_daemon(UploadSubDir="", MinFreeSpace=0)  # With the same folders.
    uploads.put("slot", "ä b.txt", b"hello", "image/png")
    uploads.json("xmpp-http-upload")
    daemon.start()
    answer = daemon.request("GET", "/slot/%C3%A4%20b.txt")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["last-modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert daemon.request("GET", "/slot/%C3%A4%20b.txt.data").status == 404


# What is not


def test_slots_that_were_never_used(theirs: Theirs) -> None:
    """Nothing is lost then, and the sum tells how many."""
    theirs.put("one", "a", None)
    theirs.put("two", "b", None)
    found = theirs.run("prosody")
    assert found.exit_code == 0
    assert "skipped: 2: its slot was never used, or its file is gone\n" in found.output
    assert not (theirs.store / "one").exists()


def test_files_of_which_there_is_no_record(theirs: Theirs) -> None:
    theirs.put("one", "a", b"x")
    (theirs.bins / "two.bin").write_bytes(b"y")
    report = theirs.json("prosody")
    assert report["imported"] == 1
    (lost,) = report["not_taken_over"]
    assert lost["file"] == "share%2eexample%2eorg/http_file_share/two.bin"


def test_torn_records(internal: Theirs) -> None:
    """Those around are read; each file whose record is torn is named."""
    record = serialized("cut", {"filename": "c", "size": "1"}, UPLOADED, "alice@example.org")
    internal.put("one", "a", b"x")
    internal.write_list(record[:-30].rstrip() + "\n")
    internal.put("two", "b", b"y")
    internal.write_list('item({["key"]=os.exit()});\nitem({["key"]="k"});\n  \nitem(7);\nos.execute("x")\n')
    internal.put("three", "c", b"z")
    internal.write_list(record[:60])
    internal.put("four", "d", b"w")
    internal.write_list(" " * 50)
    internal.put("five", "e", b"v")
    internal.write_list(record[:60])
    (internal.bins / "cut.bin").write_bytes(b"z")
    report = internal.json("prosody")
    assert internal.stored() == {
        "one/a": b"x",
        "two/b": b"y",
        "three/c": b"z",
        "four/d": b"w",
        "five/e": b"v",
    }
    reasons = [one["reason"] for one in report["not_taken_over"]]
    assert len(reasons) == 7
    assert sum(reason.startswith("the record ") for reason in reasons) == 5


def test_torn_rows(tmp_path: Path) -> None:
    theirs = Theirs(tmp_path, "sql")
    for number, value in enumerate(
        ["", "<request filename='a' size='1'", "<message/>", "<request filename='&x;'/>", "7"]
    ):
        theirs.insert(f"slot{number}", UPLOADED, "a", value)
    theirs.put("good", "a", b"x", owner="")
    report = theirs.json("prosody")
    assert (report["imported"], len(report["not_taken_over"])) == (1, 5)
    assert attribute(theirs.store / "good/a", "hmac_file_server.owner") is None


def test_a_database_that_is_none(tmp_path: Path) -> None:
    theirs = Theirs(tmp_path, "sql")
    (theirs.source / "prosody.sqlite").write_bytes(os.urandom(8192))
    assert "prosody.sqlite can not be read" in theirs.json("prosody")["error"]


def test_a_journal_of_somebody(tmp_path: Path) -> None:
    """A journal names another file, which SQLite would remove: it is not rolled back, and nothing is read."""
    theirs = Theirs(tmp_path, "sql")
    theirs.put("one", "a", b"x")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    name = os.fsencode(victim)
    magic = bytes.fromhex("d9d505f920a163d7")
    total = sum(name) & 0xFFFFFFFF
    tail = name + len(name).to_bytes(4, "big") + total.to_bytes(4, "big") + magic
    head = magic + bytes(8) + (0).to_bytes(4, "big") + (512).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    page = (1 << 30 // 4096).to_bytes(4, "big")
    (theirs.source / "prosody.sqlite-journal").write_bytes(head.ljust(512, b"\0") + page + tail)
    report = theirs.json("prosody", "--dry-run")
    assert "a transaction is not finished" in report["error"]
    assert victim.read_text() == "precious"
    (theirs.source / "prosody.sqlite-journal").write_bytes(bytes(512))
    assert theirs.json("prosody")["imported"] == 1


def test_a_database_with_a_log(tmp_path: Path) -> None:
    """What was written and not yet moved to the database itself (WAL) counts; the source is not touched."""
    theirs = Theirs(tmp_path, "sql")
    theirs.put("one", "a", b"x")
    with closing(sqlite3.connect(theirs.source / "prosody.sqlite")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("SELECT * FROM prosodyarchive").fetchall()
        theirs.put("two", "b", b"y")
        assert (theirs.source / "prosody.sqlite-wal").stat().st_size
        before = picture(theirs.source)
        assert theirs.json("prosody")["imported"] == 2
        assert picture(theirs.source) == before


def test_both_storages(tmp_path: Path) -> None:
    """Prosody's storage was changed, and has the records twice."""
    theirs = Theirs(tmp_path, "sql")
    theirs.put("one", "a", b"x")
    theirs.storage = "internal"
    theirs.put("one", "a", b"x")
    theirs.put("two", "b", b"y")
    assert theirs.json("prosody", "--dry-run")["imported"] == 2


def test_lengths_that_differ(theirs: Theirs) -> None:
    theirs.put("one", "a", b"half", size=8)
    theirs.put("two", "b", b"x", size="many")
    report = theirs.json("prosody")
    assert {one["reason"] for one in report["not_taken_over"]} >= {
        "it has 4 bytes, and should have 8",
        "its record names no length",
    }
    assert theirs.stored() == {}


def test_what_has_expired(theirs: Theirs) -> None:
    theirs.put("one", "a", b"x", when=int(time.time()) - 100)
    theirs.put("two", "b", b"y", when=int(time.time()) - 7200)
    report = theirs.json("prosody", "--expires-after", "1h")
    assert (report["imported"], report["skipped"]) == (1, {"its time is over": 1})


def test_torn_meta(uploads: Uploads) -> None:
    uploads.put("slot", "none", b"x", None)
    uploads.put("slot", "good", b"x")
    for number, text in enumerate(["", "{", "[]", "[" * 100_000, '{"headers": 3}', '{"headers": {}}', '"\\ud800"']):
        uploads.put("slot", f"torn{number}", b"x", None)
        (uploads.source / f"slot/torn{number}.meta").write_text(text)
    uploads.put("slot", "surrogate", b"x", "\ud800")
    report = uploads.json("xmpp-http-upload")
    assert uploads.stored() == {"slot/good": b"x"}
    assert len(report["not_taken_over"]) == 9


# Again, and beside others


@pytest.mark.parametrize("copies", [False, True])
def test_again(theirs: Theirs, copies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run finds all there, takes what is new, and changes nothing else."""
    if copies:
        forbid_links(monkeypatch)
    theirs.put("one", "a", b"x" * 3_000_000)
    assert theirs.json("prosody")["linked"] == (not copies)
    theirs.put("two", "b", b"y")
    before = picture(theirs.store / "one")
    report = theirs.json("prosody", "--expires-after", "9999w")
    assert (report["imported"], report["already_there"]) == (1, 1)
    assert picture(theirs.store / "one") == before
    report = theirs.json("prosody")
    assert (report["imported"], report["already_there"]) == (0, 2)


def forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other file systems, and users, have files that can not be linked."""
    link = os.link

    def refuse(source: Any, name: Any, **options: Any) -> None:
        if os.stat(source).st_nlink:
            raise PermissionError(1, "no")
        link(source, name, **options)

    monkeypatch.setattr(os, "link", refuse)


def test_links_and_copies(theirs: Theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is the same file; a copy has the time that Prosody's record tells."""
    theirs.put("one", "a", b"x")
    theirs.json("prosody")
    (linked,) = theirs.bins.iterdir()
    assert (theirs.store / "one/a").samefile(linked)
    theirs.put("two", "b", b"y" * 3_000_000)
    forbid_links(monkeypatch)
    assert theirs.json("prosody")["linked"] == 0
    copied = theirs.store / "two/b"
    assert copied.stat().st_mtime == UPLOADED
    assert copied.read_bytes() == b"y" * 3_000_000
    assert not copied.samefile(theirs.bins / "two.bin")
    assert copied.stat().st_nlink == 1
    assert {path.name for path in (theirs.store / ".hmac-file-server").iterdir()} == set()


def test_on_another_file_system(internal: Theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file can not do without a name it has one among the drafts, and keeps nothing of that."""
    monkeypatch.setattr("hmac_file_server.stores.local.filesystem._SPECIAL", frozenset())
    forbid_links(monkeypatch)
    internal.put("one", "a", b"x" * 100_000)
    assert internal.json("prosody")["imported"] == 1
    assert internal.stored() == {"one/a": b"x" * 100_000}
    assert list((internal.store / ".hmac-file-server").iterdir()) == []


def test_dry_run(theirs: Theirs) -> None:
    """Nothing is written, and the sums are those that a run would have."""
    theirs.put("one", "a", b"x")
    theirs.put("two", "..", b"x")
    before = picture(theirs.folder)
    found = theirs.run("prosody", "--dry-run")
    assert found.exit_code == 1
    assert "would be imported: 1, 1 bytes\n" in found.output
    assert "not taken over: two/..: " in found.output
    assert picture(theirs.folder) == before


def test_another_file_is_kept(theirs: Theirs) -> None:
    """What has a file's place stays there, whatever it is."""
    for number in range(5):
        theirs.put(f"slot{number}", "a", b"theirs")
        (theirs.store / f"slot{number}").mkdir()
    (theirs.store / "slot0/a").write_bytes(b"ours!!")
    (theirs.store / "slot1/a").write_bytes(b"longer than theirs")
    (theirs.store / "slot2/a").mkdir()
    (theirs.store / "slot3/a").symlink_to("/etc/passwd")
    (theirs.store / "slot4").rmdir()
    (theirs.store / "slot4").write_bytes(b"no folder")
    before = picture(theirs.store)
    found = theirs.run("prosody")
    assert found.exit_code == 1
    for number in range(5):
        assert f"not taken over: slot{number}/a: something else has its place" in found.output
    after = picture(theirs.store)
    assert {name: after[name] for name in before if name != str(theirs.store)} == {
        name: before[name] for name in before if name != str(theirs.store)
    }


def test_what_was_removed_stays_away(internal: Theirs) -> None:
    """A second run does not bring back what was removed from the store for good."""
    internal.put("one", "a", b"x")
    internal.json("prosody")
    with closing(Disk(str(internal.store))) as disk:
        disk.remove(SlotPath((b"one", b"a")))
    report = internal.json("prosody")
    assert (report["imported"], report["skipped"]) == (0, {"it was removed from the store, for good": 1})
    assert internal.stored() == {}


def test_no_room(internal: Theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, says so, and leaves no half a file, and no folder."""
    forbid_links(monkeypatch)
    monkeypatch.setattr("os.fsync", fails(28, "No space left on device"))
    internal.put("one", "a", b"x")
    report = internal.json("prosody")
    assert "No space left on device" in report["error"]
    assert internal.stored() == {}
    assert not (internal.store / "one").exists()


def fails(number: int, text: str) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise OSError(number, text)

    return call


# Strangers


def test_links_in_the_source(internal: Theirs) -> None:
    """No link is followed, whoever made it."""
    secret = internal.folder / "secret"
    secret.write_bytes(b"secret")
    internal.put("one", "a", None, size=6)
    (internal.bins / "one.bin").symlink_to(secret)
    os.mkfifo(internal.bins / "two.bin")
    internal.put("two", "b", None)
    found = {one["file"]: one["reason"] for one in internal.json("prosody")["not_taken_over"]}
    assert "symbolic link" in found["one/a"]
    assert "no plain file" in found["two/b"]
    assert internal.stored() == {}


def test_linked_folders_in_the_source(internal: Theirs) -> None:
    internal.put("one", "a", b"x")
    internal.bins.rename(internal.folder / "elsewhere")
    internal.bins.symlink_to(internal.folder / "elsewhere")
    assert "is no folder, or a symbolic link" in internal.json("prosody")["error"]


@pytest.mark.parametrize("name", ["uploads.list", "prosody.sqlite"])
def test_linked_records(internal: Theirs, name: str) -> None:
    place = (internal.source if name == "prosody.sqlite" else internal.host) / name
    place.symlink_to("/etc/passwd")
    assert "symbolic link" in internal.json("prosody")["error"]


def test_links_of_xmpp_http_upload(uploads: Uploads) -> None:
    uploads.put("slot", "a", b"x")
    outside = uploads.folder / "outside"
    outside.mkdir()
    (outside / "b.data").write_bytes(b"secret")
    (outside / "b.meta").write_text('{"headers": {"Content-Type": "text/plain"}}')
    (uploads.source / "folder").symlink_to(outside)
    (uploads.source / "slot/c.data").symlink_to(outside / "b.data")
    (uploads.source / "slot/c.meta").write_text('{"headers": {"Content-Type": "text/plain"}}')
    uploads.put("slot", "d", b"x", None)
    (uploads.source / "slot/d.meta").symlink_to(outside / "b.meta")
    report = uploads.json("xmpp-http-upload")
    assert uploads.stored() == {"slot/a": b"x"}
    assert [one["file"] for one in report["not_taken_over"]] == ["folder", "slot/c", "slot/d.data"]


@ROOT
def test_hard_links_to_files_of_others(internal: Theirs) -> None:
    """Who links a file that is not theirs into Prosody's folder does not get it served."""
    secret = internal.folder / "secret"
    secret.write_bytes(b"secret")
    internal.put("one", "a", None, size=6)
    os.link(secret, internal.bins / "one.bin")
    os.chown(internal.bins, OWNER, OWNER)
    (lost,) = internal.json("prosody")["not_taken_over"]
    assert "belongs to the user 0" in lost["reason"]


@ROOT
def test_links_in_the_store(internal: Theirs) -> None:
    """Root follows no link out of StoreDir."""
    outside = internal.folder / "outside"
    outside.mkdir()
    internal.put("one", "a", b"x")
    (internal.store / "one").symlink_to(outside)
    os.lchown(internal.store / "one", DAEMON, DAEMON)
    os.chown(internal.store, DAEMON, DAEMON)
    assert len(internal.json("prosody")["not_taken_over"]) == 1
    (internal.store / "one").unlink()
    own = internal.store / ".hmac-file-server"
    own.rmdir()
    own.symlink_to(outside)
    assert internal.json("prosody")["error"]
    own.unlink()
    own.mkdir()
    (own / "removed").symlink_to(outside)
    assert internal.json("prosody")["not_taken_over"]
    assert list(outside.iterdir()) == []
    assert outside.stat().st_uid == 0


@ROOT
@pytest.mark.parametrize("planted", ["link", "folder"])
def test_swaps_in_the_store(internal: Theirs, planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who puts something else in the place of a folder that root has just made gains nothing by it."""
    outside = internal.folder / "outside"
    outside.mkdir(0o700)
    (outside / "private").write_bytes(b"root's")
    internal.put("one", "a", b"x")
    os.chown(internal.store, DAEMON, DAEMON)
    mkdir = os.mkdir

    def swap(name: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        if name == b"one":
            os.rmdir(name, dir_fd=dir_fd)
            if planted == "link":
                os.symlink(outside, name, dir_fd=dir_fd)
            else:
                os.rename(outside, name, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swap)
    internal.json("prosody")
    place = outside if planted == "link" else internal.store / "one"
    assert (place.stat().st_uid, stat.S_IMODE(place.stat().st_mode)) == (0, 0o700)
    assert (outside / "a").exists() is False


@ROOT
def test_root_gives_all_to_the_owner_of_the_store(internal: Theirs) -> None:
    """Files of another user are copied, and stay whose they are."""
    internal.put("one", "a", b"x")
    os.chown(internal.store, DAEMON, DAEMON + 1)
    for path in [internal.bins, *internal.bins.iterdir()]:
        os.chown(path, OWNER, OWNER)
    (internal.bins / "one.bin").chmod(0o640)
    before = picture(internal.source)
    (internal.store / ".hmac-file-server").mkdir(0o700)
    internal.json("prosody", "--dry-run")
    assert (internal.store / ".hmac-file-server").stat().st_uid == 0
    report = internal.json("prosody")
    assert (report["imported"], report["linked"]) == (1, 0)
    for name in ("one", "one/a", ".hmac-file-server"):
        there = (internal.store / name).stat()
        assert (there.st_uid, there.st_gid) == (DAEMON, DAEMON + 1), name
    assert stat.S_IMODE((internal.store / "one/a").stat().st_mode) == 0o640
    assert picture(internal.source) == before
    assert internal.json("prosody")["already_there"] == 1


@ROOT
def test_root_links_where_both_users_are_one(internal: Theirs) -> None:
    internal.put("one", "a", b"x")
    for path in [internal.store, internal.bins, *internal.bins.iterdir()]:
        os.chown(path, DAEMON, DAEMON)
    before = picture(internal.source)
    assert internal.json("prosody")["linked"] == 1
    assert (internal.store / "one/a").samefile(internal.bins / "one.bin")
    assert (internal.store / "one").stat().st_uid == DAEMON
    assert picture(internal.source) == before


@ROOT
def test_folders_that_are_not_ours_to_give(internal: Theirs) -> None:
    """A folder of root's that the daemon's user has put in the place of a new one stays root's."""
    internal.put("one", "a", b"x")
    os.chown(internal.store, DAEMON, DAEMON)
    (internal.store / "one").mkdir()
    (internal.store / "one/private").write_bytes(b"root's")
    internal.json("prosody")
    assert (internal.store / "one").stat().st_uid == 0


@ROOT
def test_as_another_user(internal: Theirs) -> None:
    """Who is not root works with what may be read and written."""
    internal.put("one", "a", b"x")
    internal.put("two", "b", b"y")
    (internal.bins / "two.bin").chmod(0o600)
    os.chown(internal.store, DAEMON, DAEMON)
    with as_user(internal.folder, DAEMON):
        report = internal.json("prosody")
    assert report["imported"] == 1
    (lost,) = report["not_taken_over"]
    assert "Permission denied" in lost["reason"]
    assert (internal.store / "one/a").stat().st_uid == DAEMON


@contextmanager
def as_user(folder: Path, user: int) -> Iterator[None]:
    for above in (folder, *folder.parents):
        mode = stat.S_IMODE(above.stat().st_mode)
        if mode & 0o055 != 0o055:
            above.chmod(mode | 0o055)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


# Which


def test_which_host(internal: Theirs) -> None:
    """Prosody may have several components with files, and no other folder is taken for one."""
    internal.put("one", "a", b"x")
    (internal.source / "example%2eorg/roster").mkdir(parents=True)
    assert internal.json("prosody")["imported"] == 1
    (internal.source / "other%2eexample%2eorg/http_file_share").mkdir(parents=True)
    assert f"--xmpp-host: other.example.org, {HOST}" in internal.json("prosody")["error"]
    assert internal.json("prosody", "--xmpp-host", HOST)["already_there"] == 1
    assert internal.json("prosody", "--xmpp-host", "other.example.org")["already_there"] == 0
    assert f"these hosts have: other.example.org, {HOST}" in internal.json("prosody", "--xmpp-host", "x")["error"]


def test_what_is_no_store(internal: Theirs) -> None:
    internal.bins.rmdir()
    assert "name Prosody's data_path" in internal.json("prosody")["error"]
    internal.host.rmdir()
    internal.source.rmdir()
    assert f"{internal.source}: there is no such folder" in internal.json("prosody")["error"]


def test_a_store_that_is_not_there(internal: Theirs) -> None:
    internal.store.rmdir()
    assert f"{internal.store}: there is no such folder" in internal.json("prosody")["error"]


def test_one_of_our_hosts(internal: Theirs) -> None:
    internal.put("one", "a", b"x")
    second = internal.folder / "second"
    second.mkdir()
    with internal.config.open("a") as file:
        file.write(f'\n[[Host]]\nName = "second"\nUploadSubDir = "second"\nStoreDir = "{second}"\n')
    assert internal.run("prosody").exit_code == 2
    assert internal.json("prosody", "--host", "second")["imported"] == 1
    assert (second / "one/a").read_bytes() == b"x"
    assert internal.stored() == {}


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "0d", "1y", "1 d"])
def test_what_is_no_duration(internal: Theirs, text: str) -> None:
    found = internal.run("prosody", "--expires-after", text)
    assert found.exit_code == 2
    assert "write a number of weeks, days, hours or seconds" in found.output


def test_hosts_are_prosodys(uploads: Uploads) -> None:
    assert uploads.run("xmpp-http-upload", "--xmpp-host", "a").exit_code == 2


# Lua


@given(st.dictionaries(st.text(min_size=1), st.text()), st.integers(0, 1 << 40))
def test_what_prosody_writes_is_read(attributes: dict[str, str], when: int) -> None:
    encoded = {
        key.encode("utf-8", "surrogatepass"): value.encode("utf-8", "surrogatepass")
        for key, value in attributes.items()
    }
    text = serialized(
        "k",
        {k.decode("utf-8", "surrogateescape"): v.decode("utf-8", "surrogateescape") for k, v in encoded.items()},
        when,
        "o",
    )
    (record,) = lua.records(text.encode("ascii"))
    assert record == {b"name": b"request", b"attr": encoded, b"when": when, b"with": b"o", b"key": b"k"}


@given(st.binary())
def test_nothing_else_is(data: bytes) -> None:
    """Whatever is in the file, reading it comes to an end."""
    list(lua.records(data))
    list(lua.records(b"item(" + data + b");\nitem({" + data))


@pytest.mark.parametrize(
    "text",
    [
        "{[1]=os}",
        '{"\\300"}',
        '{"\\x41"}',
        '"a"..3',
        "{1/0}",
        "{{" * 100,
        "{[{}]=1}",
        "{a=1 b=2}",
        "{[nil]}",
        "{1e}",
        "--[[x]]{}",
    ],
)
def test_what_is_not_data(text: str) -> None:
    assert list(lua.records(f"item({text});".encode())) == [lua.Torn(0)]


def test_forms_of_data() -> None:
    text = b'item({1;2,-3.5e2;true,x=false;["y"]={};"\\9\\065\\\\"})  ;\r\n\titem({});'
    assert list(lua.records(text)) == [
        {1: 1, 2: 2, 3: -350.0, 4: True, b"x": False, b"y": {}, 5: b"\tA\\"},
        {},
    ]
