"""The housekeeper: what has ended goes, and above StoreLimit the oldest."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hmac_file_server.command.main import main
from hmac_file_server.files.lifetime import Lifetime
from hmac_file_server.housekeeping.oldest import oldest
from hmac_file_server.housekeeping.tidy import Outcome, Rules, tidy
from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import SlotRemoved
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.walk import walk

DAY = 86400.0
NOW = time.time()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with closing(Disk(str(tmp_path / "store"))) as made:
        yield made


def put(disk: Disk, name: str, size: int = 10, age: float = 0.0, about: Attributes = Attributes()) -> Path:  # noqa: B008
    """Store a file that was uploaded so many seconds ago."""
    path = slot_path(os.fsencode(name).split(b"/"))
    with closing(disk.draft(path, size, about)) as draft:
        draft.write([bytes(size)])
        draft.publish()
    there = Path(os.readlink(f"/proc/self/fd/{disk.place.root}")) / name
    os.utime(there, (NOW - age, NOW - age))
    return there


def run(disk: Disk, rules: Rules, dry_run: bool = False) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    return tidy(disk, rules, lambda level, text: said.append(f"{level} {text}"), dry_run), said


def names(disk: Disk) -> set[str]:
    root = disk.place.root
    return {os.fsdecode(entry.path.signed) for entry in walk(root, lambda error: pytest.fail(str(error)))}


def is_dead(disk: Disk, name: str) -> bool:
    with closing(disk.draft(slot_path(os.fsencode(name).split(b"/")), 10)) as draft:
        try:
            draft.write([bytes(10)])
            draft.publish()
        except SlotRemoved:
            return True
    return False


def test_a_walk_changes_nothing(disk: Disk) -> None:
    """Without rules files are counted, and none goes; what is not served is not counted."""
    put(disk, "a/one.txt", 10, 3 * DAY)
    put(disk, "b/c/two.txt", 5, DAY)
    root = put(disk, "d/three.txt", 1).parent.parent
    (root / ".hidden").mkdir()
    (root / ".hidden/x").write_text("x")
    (root / "link").symlink_to(root / "a/one.txt")
    os.mkfifo(root / "pipe")
    outcome, said = run(disk, Rules())
    assert (outcome.files, outcome.size, outcome.failed, said) == (3, 16, 0, [])
    assert outcome.oldest == pytest.approx(NOW - 3 * DAY, abs=1)
    assert names(disk) == {"a/one.txt", "b/c/two.txt", "d/three.txt"}


def test_expiry(disk: Disk) -> None:
    """KeepFor, KeepLargeFor from LargeFrom on, and the end of a token: the earliest counts."""
    ended = Attributes(end=int(NOW) - 1)
    put(disk, "old/a", 10, 31 * DAY)
    put(disk, "young/a", 10, 29 * DAY)
    put(disk, "large/a", 100, 8 * DAY)
    put(disk, "large-young/a", 100, 6 * DAY)
    put(disk, "token/a", 10, 0, ended)
    put(disk, "token-later/a", 10, 0, Attributes(end=int(NOW) + 1000))
    outcome, said = run(disk, Rules(Lifetime(30 * DAY, 7 * DAY, 100)))
    assert names(disk) == {"young/a", "large-young/a", "token-later/a"}
    assert (outcome.files, outcome.removed, outcome.freed) == (3, {"expired": 3}, 120)
    assert sorted(said) == [
        "debug removed large/a of 100 bytes: KeepLargeFor",
        "debug removed old/a of 10 bytes: KeepFor",
        "debug removed token/a of 10 bytes: the end that its token named",
    ]


def test_what_is_removed_stays_removed(disk: Disk, tmp_path: Path) -> None:
    """Its slot is dead, and the empty folder of the slot is gone."""
    put(disk, "old/a", 10, 31 * DAY)
    run(disk, Rules(Lifetime(30 * DAY)))
    assert not (tmp_path / "store/old").exists()
    assert is_dead(disk, "old/a")
    with closing(Disk(str(tmp_path / "store"))) as other:
        assert is_dead(other, "old/a")


def test_a_dry_run(disk: Disk) -> None:
    put(disk, "old/a", 10, 31 * DAY)
    put(disk, "older/b", 10, 1)
    outcome, said = run(disk, Rules(Lifetime(30 * DAY), 5), dry_run=True)
    assert names(disk) == {"old/a", "older/b"}
    assert outcome.removed == {"expired": 1, "store_limit": 1}
    assert said[0] == "debug would remove old/a of 10 bytes: KeepFor"
    assert not is_dead(disk, "old/x")


def test_the_limit(disk: Disk) -> None:
    """The oldest go, no more than have to, and what has expired first."""
    for age in range(10):
        put(disk, f"{age}/a", 10, age)
    outcome, _ = run(disk, Rules(limit=65))
    assert names(disk) == {f"{age}/a" for age in range(6)}
    assert (outcome.files, outcome.size, outcome.removed) == (6, 60, {"store_limit": 4})
    assert outcome.oldest == pytest.approx(NOW - 5, abs=1.1)
    outcome, _ = run(disk, Rules(limit=65))
    assert outcome.removed == {}
    put(disk, "expired/a", 10, 0, Attributes(end=1))
    outcome, _ = run(disk, Rules(limit=60))
    assert outcome.removed == {"expired": 1}
    assert len(names(disk)) == 6


@pytest.mark.parametrize("most", [1, 7, 1000])
@pytest.mark.parametrize("span", [1e-6, 10.0, 1e9])
def test_the_oldest(disk: Disk, most: int, span: float) -> None:
    """Those that are older than all others, whatever the times and however few can be put in order at once."""
    choice = random.Random(4711)
    files = {}
    for number in range(60):
        there = put(disk, f"{number}/a", choice.randrange(1, 50))
        mtime = int((1e9 + choice.random() * span) * 1e9)
        os.utime(there, ns=(mtime, mtime))
        files[f"{number}/a"] = mtime, there.stat().st_size
    total, times = sum(size for _, size in files.values()), [mtime for mtime, _ in files.values()]

    def again() -> Iterator[object]:
        return walk(disk.place.root, lambda error: pytest.fail(str(error)))

    for limit in (0, 1, total // 3, total - 1, total, total + 1):
        gone = [
            os.fsdecode(entry.path.signed)
            for entry in oldest(again, limit, min(times), max(times), most)  # type: ignore[arg-type]
        ]
        stays = set(files) - set(gone)
        assert sum(files[name][1] for name in stays) <= limit or not stays
        assert not stays or not gone or max(files[name][0] for name in gone) <= min(files[name][0] for name in stays)
        if gone:  # One less would have been too few.
            last = max(gone, key=lambda name: files[name][0])
            assert sum(files[name][1] for name in [*stays, last]) > limit


def test_a_file_that_is_replaced_meanwhile(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer file under the same path is not removed in place of the one that was seen."""
    there = put(disk, "a/one", 10, 31 * DAY)
    remove = disk.remove

    def replace(*of: object) -> object:
        there.unlink()
        there.write_bytes(b"newer")
        return remove(*of)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "remove", replace)
    outcome, _ = run(disk, Rules(Lifetime(30 * DAY)))
    assert there.read_bytes() == b"newer"
    assert outcome.removed == {}


def test_a_disk_that_refuses(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can not be removed is said and counted, and the rest goes on."""
    put(disk, "a/one", 10, 31 * DAY)
    put(disk, "b/two", 10, 31 * DAY)
    remove = disk.remove

    def fail(path: object, *of: object) -> object:
        if getattr(path, "name", "") == "one":
            raise OSError(5, "Input/output error")
        return remove(path, *of)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "remove", fail)
    outcome, said = run(disk, Rules(Lifetime(30 * DAY)))
    assert names(disk) == {"a/one"}
    assert outcome.failed == 1
    assert "warn a/one can not be removed: Input/output error" in said


# The command


def command(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["tidy", *arguments, "-c", str(tmp_path / "config.toml")])


def test_the_command(disk: Disk, tmp_path: Path) -> None:
    text = f'Secret = "a-secret-that-nobody-knows"\nStoreDir = "{tmp_path}/store"\nKeepFor = "30d"\n'
    (tmp_path / "config.toml").write_text(text)
    put(disk, "old/a", 10, 31 * DAY)
    put(disk, "new/a", 10)
    found = command(tmp_path, "--dry-run", "-v")
    assert found.output.splitlines() == [
        "would remove old/a of 10 bytes: KeepFor",
        "1 files of 10 bytes stay; 1 whose time is over would be removed, 10 bytes",
    ]
    assert names(disk) == {"old/a", "new/a"}
    found = command(tmp_path, "--json")
    assert found.exit_code == 0
    [outcome] = json.loads(found.output).values()
    assert (outcome["files"], outcome["removed"]) == (1, {"expired": 1})
    assert names(disk) == {"new/a"}
    assert command(tmp_path).output == "1 files of 10 bytes stay; none removed, 0 bytes\n"


def test_the_command_without_a_store(tmp_path: Path) -> None:
    text = f'Secret = "a-secret-that-nobody-knows"\nStoreDir = "{tmp_path}/none"\n'
    (tmp_path / "config.toml").write_text(text)
    found = command(tmp_path)
    assert found.exit_code == 1
    assert "No such file or directory" in found.output
    assert not (tmp_path / "none").exists()
