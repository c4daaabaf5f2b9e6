"""Room: whether a body will fit, known before its first byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs


class NoRoom(Exception):
    """The body can not fit; the text has the figures."""


class Away(Exception):
    """The store can not be reached; the text says why.

    :ivar lasting: whether that will not pass by itself.
    """

    def __init__(self, reason: str, lasting: bool) -> None:
        super().__init__(reason)
        self.lasting = lasting


@attrs.frozen
class Space:
    """What a file system has free.

    :param free: bytes; None where it does not tell.
    :param full: whether nothing can be stored, however many that are: it has no inodes left, or a quota is used up.
    :param size: bytes that it has in all; None where it does not tell.
    """

    free: int | None
    full: bool = False
    size: int | None = None


class Claimant(Protocol):
    """An upload that runs."""

    @property
    def owed(self) -> int:
        """Bytes that it has still to take from the free space."""


class Room:
    """Accounts for free space between two looks at the file system.

    :param min_free: bytes that uploads leave free, for everything else on the disk; may change.
    :ivar claimed: bytes that running uploads have still to take.
    :ivar claimed_elsewhere: the same of the other workers, as of late.
    :ivar beside: the rooms of other hosts, whose stores may be on the same file system.
    :ivar free: bytes that the file system has free, None while that is not known.
    :ivar size: bytes that it has in all, likewise.
    :ivar away: why the store can not be reached, empty if it can.
    :ivar doubtful: whether it can be reached, and nothing be written to it; one folder in it may be an exception.
    :ivar full: whether not the smallest body fits.
    :ivar ran_out: whether an upload found no room, since the last look that found some.
    """

    def __init__(self, min_free: int) -> None:
        self.min_free = min_free
        self.claimed = self.claimed_elsewhere = 0
        self.beside: Sequence[Room] = ()
        self._away_lasts = False
        self.away = ""
        self.doubtful = False
        self.full = False
        self.ran_out = False
        self.free: int | None = None
        self.size: int | None = None

    @property
    def closed(self) -> bool:
        """Whether no upload can be taken."""
        return bool(self.away) or self.doubtful or self.full

    def found(self, space: Space, running: Iterable[Claimant]) -> None:
        """Take note of what the file system says, and of what is still to come."""
        self.free, self.size = space.free, space.size
        self.full = space.full or (space.free is not None and space.free <= self.min_free)
        self.ran_out = space.full
        self.claimed = sum(upload.owed for upload in running)
        self.away, self.doubtful = "", False

    def lost(self, reason: str, lasting: bool = False) -> None:
        """Take note that the store can not be reached.

        :param lasting: whether that will not pass by itself.
        """
        self.away, self._away_lasts = reason, lasting
        self.free = self.size = None

    def refused(self) -> None:
        """Take note that nothing can be written to the store."""
        self.away, self.doubtful = "", True

    def check(self, size: int) -> None:
        """Look whether a body fits.

        :raises NoRoom: if it does not fit beside what runs already.
        :raises Away: if the store can not be reached.
        """
        if self.away:
            raise Away(self.away, self._away_lasts)
        if not size:
            return  # What goes on is looked at when its session is found.
        claimed = self.claimed + self.claimed_elsewhere
        for room in self.beside:
            claimed += room.claimed
        if self.free is not None and size > self.free - self.min_free - claimed:
            raise NoRoom(
                f"{size} bytes do not fit: {self.free} are free, {claimed} are claimed by running uploads,"
                f" {self.min_free} stay free (MinFreeSpace)"
            )
        if self.full:
            raise NoRoom("nothing fits: a quota is used up, or the file system has no inodes left")

    def claim(self, size: int) -> None:
        """Keep room for what comes next. What is not used comes back with the next look.

        :raises NoRoom: as :meth:`check`, which also says when it raises Away.
        """
        self.check(size)
        self.claimed += size
