"""Room: whether a body will fit, known before its first byte."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class NoRoom(Exception):
    """The body can not fit; the text has the figures."""


class Away(Exception):
    """The store can not be reached; the text says why."""


class Claim(Protocol):
    """An upload that runs."""

    @property
    def owed(self) -> int:
        """Bytes that it has still to take from the free space."""


class Room:
    """Accounts for free space between two looks at the file system.

    :param min_free: bytes that uploads leave free, for everything else on the disk.
    :ivar free: bytes that the file system has free, None while that is not known.
    :ivar away: why the store can not be reached, empty if it can.
    """

    def __init__(self, min_free: int) -> None:
        self._min_free = min_free
        self._claimed = 0
        self.away = ""
        self.free: int | None = None

    def found(self, free: int, running: Iterable[Claim]) -> None:
        """Take note of what the file system says, and of what is still to come.

        :param free: bytes.
        """
        self.free = free
        self._claimed = sum(claim.owed for claim in running)
        self.away = ""

    def lost(self, reason: str) -> None:
        """Take note that the store can not be reached."""
        self.away = reason
        self.free = None

    def claim(self, size: int) -> None:
        """Keep room for a body. What is not used comes back with the next look.

        :raises NoRoom: if it does not fit beside what runs already.
        :raises Away: if the store can not be reached.
        """
        if self.away:
            raise Away(self.away)
        if self.free is not None and size > self.free - self._min_free - self._claimed:
            raise NoRoom(
                f"{size} bytes do not fit: {self.free} are free, {self._claimed} are claimed by running uploads,"
                f" {self._min_free} stay free (MinFreeSpace)"
            )
        self._claimed += size
