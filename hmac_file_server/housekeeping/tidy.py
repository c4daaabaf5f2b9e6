"""One walk of the housekeeper's."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import attrs

from hmac_file_server.files.lifetime import Lifetime
from hmac_file_server.housekeeping.oldest import oldest
from hmac_file_server.stores.errors import Unmet
from hmac_file_server.stores.faults import explain
from hmac_file_server.stores.interface import Present
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.walk import Entry, walk

EXPIRED, STORE_LIMIT = "expired", "store_limit"
"""Why a file is removed."""


@attrs.frozen
class Rules:
    """What a host's settings say.

    :param limit: bytes of all files; above it the oldest go. 0 for any number.
    """

    lifetime: Lifetime = attrs.field(factory=Lifetime)
    limit: int = 0

    @property
    def removes(self) -> bool:
        """Whether files are removed that have no end of their own."""
        return bool(self.lifetime.keep_for or self.lifetime.keep_large_for or self.limit)


@attrs.define
class Outcome:
    """What a walk has found and done.

    :ivar files: how many there are now.
    :ivar size: bytes of all these.
    :ivar oldest: when the oldest was uploaded, in seconds since 1970; None if there is none.
    :ivar removed: how many are gone, by reason.
    :ivar freed: bytes of these.
    :ivar failed: how many could not be removed, or not be read.
    :ivar seconds: how long it took.
    """

    files: int = 0
    size: int = 0
    oldest: float | None = None
    removed: Counter[str] = attrs.field(factory=Counter)
    freed: int = 0
    failed: int = 0
    seconds: float = 0.0

    def summary(self, dry_run: bool = False) -> str:
        """One line."""
        gone = ", ".join(f"{count} {_WORDS[reason]}" for reason, count in sorted(self.removed.items()))
        done = "would be removed" if dry_run else "removed"
        text = f"{self.files} files of {self.size} bytes stay; {gone or 'none'} {done}, {self.freed} bytes"
        return text + (f"; {self.failed} could not be read or removed" if self.failed else "")


_WORDS = {EXPIRED: "whose time is over", STORE_LIMIT: "above StoreLimit"}


def tidy(disk: Disk, rules: Rules, say: Callable[[str, str], object], dry_run: bool = False) -> Outcome:
    """Remove what has ended, and count the rest. Others may do the same at the same time.

    :param say: is told of each file that is removed: the level, and a line.
    :param dry_run: only tell.
    """
    return _Tidying(disk, rules, say, dry_run).run()


class _Tidying:
    def __init__(self, disk: Disk, rules: Rules, say: Callable[[str, str], object], dry_run: bool) -> None:
        self._disk, self._rules, self._say, self._dry_run = disk, rules, say, dry_run
        self._outcome = Outcome()

    def run(self) -> Outcome:
        begun, outcome, limit = time.monotonic(), self._outcome, self._rules.limit
        first = last = 0
        for entry in self._walk():
            if why := self._why_over(entry):
                self._remove(entry, EXPIRED, why)
                continue
            first = min(first or entry.mtime_ns, entry.mtime_ns)
            last = max(last, entry.mtime_ns)
            outcome.files += 1
            outcome.size += entry.size
        if outcome.files:
            outcome.oldest = first / 1e9
        if limit and outcome.size > limit:
            newest_gone = 0
            for entry in oldest(self._that_stay, limit, first, last):
                if self._remove(entry, STORE_LIMIT, "above StoreLimit"):
                    outcome.files -= 1
                    outcome.size -= entry.size
                    newest_gone = max(newest_gone, entry.mtime_ns)
            outcome.oldest = newest_gone / 1e9 if outcome.files and newest_gone else outcome.oldest
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _walk(self) -> Iterator[Entry]:
        return walk(self._disk.place.root, self._unreadable)

    def _that_stay(self) -> Iterator[Entry]:
        return (entry for entry in walk(self._disk.place.root, lambda _: None) if not self._why_over(entry))

    def _unreadable(self, error: OSError) -> None:
        self._outcome.failed += 1
        self._say("warn", f"can not be read: {explain(error)}")

    def _why_over(self, entry: Entry) -> str:
        lifetime = self._rules.lifetime
        end = lifetime.end(entry.size, entry.mtime_ns, entry.about)
        if end is None or end > time.time():
            return ""
        if end == entry.about.end:
            return "the end that its token named"
        is_large = lifetime.keep_large_for and end == entry.mtime_ns / 1e9 + lifetime.keep_large_for
        return "KeepLargeFor" if is_large else "KeepFor"

    def _remove(self, entry: Entry, reason: str, why: str) -> bool:
        def is_the_same(there: Present | None) -> bool:
            return there is not None and (there.size, there.mtime_ns) == (entry.size, entry.mtime_ns)

        path = os.fsdecode(entry.path.signed)
        if not self._dry_run:
            try:
                if self._disk.remove(entry.path, is_the_same) is None:
                    return False
            except Unmet:
                return False  # Somebody else was here.
            except OSError as error:
                self._outcome.failed += 1
                self._say("warn", f"{path} can not be removed: {explain(error)}")
                return False
        self._outcome.removed[reason] += 1
        self._outcome.freed += entry.size
        self._say("debug", f"{'would remove' if self._dry_run else 'removed'} {path} of {entry.size} bytes: {why}")
        return True
