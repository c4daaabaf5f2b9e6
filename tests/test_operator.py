"""``usage``, ``ls`` and ``rm``: the operator's hands."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hmac_file_server.command.main import main
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.local.disk import Disk
from tests.test_tidy import DAY, is_dead, put

ALICE, BOB = "alice@example.org", "$(reboot)@example.org"
HASH = hashlib.sha1(b"alice@example.org").hexdigest()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = f'Secret = "a-secret-that-nobody-knows"\nStoreDir = "{tmp_path}/store"\n'
    file = tmp_path / "config.toml"
    file.write_text(text)
    with closing(Disk(str(tmp_path / "store"))) as disk:
        put(disk, "1/a.jpg", 100, 3 * DAY, Attributes(b"image/jpeg", ALICE, 4_000_000_000))
        put(disk, "2/b.png", 2000, 40 * DAY, Attributes(b"image/png", BOB))
        put(disk, f"{HASH}/{'Z' * 40}/c.txt", 30, 1)
        put(disk, "3/nobody's.txt", 4, 400 * DAY)
    return file


def run(config: Path, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, [*arguments, "-c", str(config)], input=stdin)


def left(config: Path) -> set[str]:
    store = config.parent / "store"
    return {path.name for path in store.rglob("*") if path.is_file() and ".hmac-file-server" not in str(path)}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("owner", {ALICE: (1, 100), BOB: (1, 2000), HASH: (1, 30), "": (1, 4)}),
        ("type", {"image/jpeg": (1, 100), "image/png": (1, 2000), "text/plain": (2, 34)}),
        ("age", {"up to a day": (1, 30), "up to a week": (1, 100), "up to a year": (1, 2000), "older": (1, 4)}),
        ("size", {"up to 10 kB": (4, 2134)}),
        ("host", {"upload": (4, 2134)}),
    ],
)
def test_usage(config: Path, by: str, expected: dict[str, tuple[int, int]]) -> None:
    rows = json.loads(run(config, "usage", "--by", by, "--json").output)
    assert {row[by]: (row["files"], row["bytes"]) for row in rows} == expected
    assert [row["bytes"] for row in rows] == sorted((row["bytes"] for row in rows), reverse=True)
    text = run(config, "usage", "--by", by, "--top", "1").output.splitlines()
    assert len(text) == 2
    assert text[1].split() == ["2134", "bytes", "4", "files", "all"]


def test_ls(config: Path) -> None:
    """Each file, as text and as JSON; what was asked for, and nothing else."""
    lines = [json.loads(line) for line in run(config, "ls", "--json").output.splitlines()]
    by_path = {line["path"]: line for line in lines}
    assert len(by_path) == 4
    assert by_path["1/a.jpg"]["owner"] == ALICE
    assert by_path["1/a.jpg"]["expires"] == 4_000_000_000
    assert by_path["2/b.png"]["type"] == "image/png"
    for options, names in (
        (["--owner", ALICE], {"a.jpg", "c.txt"}),
        (["--owner", BOB], {"b.png"}),
        (["--owner", HASH], {"c.txt"}),
        (["--owner", "x@y"], set()),
        (["--type", "image/*"], {"a.jpg", "b.png"}),
        (["--type", "text/plain"], {"c.txt", "nobody's.txt"}),
        (["--larger-than", "30"], {"a.jpg", "b.png"}),
        (["--larger-than", "1KiB"], {"b.png"}),
        (["--before", "2020-01-01"], set()),
        (["--before", "2099-01-01T12:00", "--type", "image/png"], {"b.png"}),
    ):
        found = run(config, "ls", *options).output.splitlines()
        assert {line.rpartition("/")[2] for line in found} == names, options


def test_rm_by_path_and_url(config: Path) -> None:
    """By either; the slot stays dead, and it can be repeated."""
    found = run(config, "rm", "1/a.jpg", "https://upload.example.org/upload/3/nobody%27s.txt")
    assert (found.exit_code, found.output) == (0, "2 files of 104 bytes removed\n")
    assert left(config) == {"b.png", "c.txt"}
    assert not (config.parent / "store/1").exists()
    found = run(config, "rm", "1/a.jpg")
    assert (found.exit_code, found.output) == (0, "0 files of 0 bytes removed\n")
    with closing(Disk(str(config.parent / "store"))) as disk:
        assert is_dead(disk, "1/a.jpg")
        assert not is_dead(disk, "1/b.jpg")


def test_rm_of_an_account(config: Path) -> None:
    """All files of an account, whichever XMPP server it uploaded by; the JID may come by standard input."""
    assert run(config, "rm", "--owner", "-", "--yes", stdin=f"{ALICE}\n").output == "2 files of 130 bytes removed\n"
    assert left(config) == {"b.png", "nobody's.txt"}
    assert run(config, "rm", "--owner", "-", "--yes", stdin=f"{BOB}\n").output == "1 files of 2000 bytes removed\n"
    assert left(config) == {"nobody's.txt"}


def test_rm_asks(config: Path) -> None:
    """Before it removes more than one."""
    found = run(config, "rm", "--owner", ALICE, stdin="n\n")
    assert found.exit_code == 1
    assert "Remove 2 files of 130 bytes of upload? [y/N]" in found.output
    assert len(left(config)) == 4
    assert run(config, "rm", "--owner", ALICE, stdin="y\n").output.endswith("2 files of 130 bytes removed\n")
    assert len(left(config)) == 2


def test_rm_dry_run(config: Path) -> None:
    before = {path for path in (config.parent / "store").rglob("*") if ".hmac" not in str(path)}
    found = run(config, "rm", "--before", "2099-01-01", "--dry-run", "--json")
    assert json.loads(found.output) == {"files": 4, "bytes": 2134, "failed": 0, "dry_run": True}
    assert {path for path in (config.parent / "store").rglob("*") if ".hmac" not in str(path)} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rm"], "name files, or say which"),
        (["rm", "a/b", "--owner", "x"], "name files, or say which"),
        (["rm", "../b"], "has a . or .. segment"),
        (["rm", "https://upload.example.org/files/a/b"], "no host has files there"),
        (["rm", "https://upload.example.org/upload/a//b"], "empty segment"),
        (["rm", "--owner", "-"], "add --yes"),
        (["ls", "--before", "yesterday"], "write it as 2026-11-27"),
        (["usage", "--top", "0"], "0 is not in the range"),
    ],
)
def test_what_makes_no_sense(config: Path, arguments: list[str], words: str) -> None:
    found = run(config, *arguments, stdin="")
    assert found.exit_code == 2
    assert words in " ".join(found.output.split())
    assert len(left(config)) == 4


def test_several_hosts(tmp_path: Path) -> None:
    """URLs tell the hosts apart; paths need --host."""
    for name in "ab":
        with closing(Disk(str(tmp_path / name))) as disk:
            put(disk, "1/x.txt", 10)
    file = tmp_path / "config.toml"
    table = '[[Host]]\nUploadSubDir = "{0}/"\nSecret = "a-secret-that-nobody-{0}"\nStoreDir = "{1}/{0}"\n'
    file.write_text("".join(table.format(name, tmp_path) for name in "ab"))
    rows = json.loads(run(file, "usage", "--json").output)
    assert sorted((row["host"], row["files"]) for row in rows) == [("a", 1), ("b", 1)]
    assert "--host: say whose" in run(file, "rm", "1/x.txt").output
    assert run(file, "rm", "https://u.example.org/b/1/x.txt").output == "1 files of 10 bytes removed\n"
    assert os.path.exists(tmp_path / "a/1/x.txt")
    assert run(file, "rm", "--host", "a", "1/x.txt").output == "1 files of 10 bytes removed\n"
