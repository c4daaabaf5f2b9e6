"""What becomes of each file of another server."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter

import attrs

from hmac_file_server.importing.source import Found, Layout, NoStore, Refused, Skipped, Source
from hmac_file_server.slots.path import BadPath, slot_path
from hmac_file_server.stores.errors import SlotRemoved, SlotTaken
from hmac_file_server.stores.faults import NO_ROOM, explain
from hmac_file_server.stores.local.intake import Intake


@attrs.define
class Report:
    """What has become of all.

    :ivar imported: how many are in the store now.
    :ivar linked: how many of these are links to the other server's files.
    :ivar size: bytes of all these.
    :ivar bare: how many of these lack their owner or their end, which the file system does not keep.
    :ivar already_there: how many were in the store.
    :ivar skipped: what is not taken over.
    """

    imported: int = 0
    linked: int = 0
    size: int = 0
    bare: int = 0
    already_there: int = 0
    skipped: list[Skipped] = attrs.field(factory=list)

    @property
    def lost(self) -> list[Skipped]:
        """What should be in the store, and is not."""
        return [one for one in self.skipped if one.lost]

    @property
    def reasons(self) -> Counter[str]:
        """Why the rest is not, and how often."""
        return Counter(one.reason for one in self.skipped if not one.lost)


def take_over(
    source: str,
    store: str,
    layout: Layout,
    report: Report,
    remember: float = 0.0,
    lifetime: float | None = None,
    writes: bool = True,
) -> None:
    """Take all files of another server into a store. What is there already stays as it is, so it can be repeated.

    :param source: path of the other server's folder.
    :param store: path of the store.
    :param report: takes note of what is done.
    :param remember: seconds for which a removal from the store counts; 0 for ever.
    :param lifetime: seconds after which a file expires, from its upload on; None if it stays.
    :param writes: whether to do it, or only to tell what would be done.
    :raises NoStore: if there is no such folder, and as the layout does.
    :raises Refused: as the layout does.
    :raises OSError: if there is no room for more, and as the layout does.
    """
    try:
        with contextlib.closing(Source(source)) as theirs, contextlib.closing(Intake(store, remember, writes)) as ours:
            _Takeover(theirs, ours, report, lifetime, writes).run(layout)
    except FileNotFoundError as error:
        raise NoStore(f"{error.filename or source}: there is no such folder") from None


@attrs.frozen
class _Takeover:
    source: Source
    intake: Intake
    report: Report
    lifetime: float | None
    writes: bool

    def run(self, layout: Layout) -> None:
        for found in layout(self.source):
            if isinstance(found, Skipped):
                self.report.skipped.append(found)
                continue
            try:
                self._take(found)
            except _Skip as reason:
                self.report.skipped.append(Skipped(b"/".join(found.path), str(reason), reason.lost))

    def _take(self, found: Found) -> None:
        try:
            file = self.source.open(found.file)
        except FileNotFoundError:
            raise _Skip("its slot was never used, or its file is gone", lost=False) from None
        except (Refused, OSError) as error:
            raise _Skip(f"{os.fsdecode(b'/'.join(found.file))}: {explain(error)}") from None
        try:
            self._store(found, file)
        except BadPath as error:
            raise _Skip(f"it could not be served: {error}") from None
        except SlotTaken:
            raise _Skip("something else has its place in the store, and stays there") from None
        except SlotRemoved:
            raise _Skip("it was removed from the store, for good", lost=False) from None
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise _Skip(explain(error)) from None
        finally:
            os.close(file)

    def _store(self, found: Found, file: int) -> None:
        path = slot_path(found.path)
        status = os.fstat(file)
        if found.size not in (None, status.st_size):
            raise _Skip(f"it has {status.st_size} bytes, and should have {found.size}")
        if self.intake.has(path, file):
            self.report.already_there += 1
            return
        mtime_ns = status.st_mtime_ns if found.time is None else int(found.time * 1e9)
        about = found.about
        if self.lifetime is not None:
            about = attrs.evolve(about, end=int(mtime_ns / 1e9 + self.lifetime))
        if about.is_over(time.time()):
            raise _Skip("its time is over", lost=False)
        if self.writes:
            taken = self.intake.take(path, file, about, mtime_ns)
            self.report.linked += taken.is_linked
            self.report.bare += not taken.is_kept
        self.report.imported += 1
        self.report.size += status.st_size


class _Skip(Exception):
    def __init__(self, reason: str, lost: bool = True) -> None:
        super().__init__(reason)
        self.lost = lost
