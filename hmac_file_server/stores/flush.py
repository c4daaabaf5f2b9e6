"""Flushing to the disk, shared: many small files and folders at once cost little more than one."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence

import attrs

_SEVERAL = 3
_ROUNDS = 4
_SLOW = 0.25
_PAUSE = 30.0
_REPORTS_ERRORS = (5, 8)

_libc = ctypes.CDLL(None, use_errno=True)


@attrs.define(eq=False)
class _Wish:
    descriptors: Sequence[int]
    done: bool = False
    error: OSError | None = None


class Flusher:
    """Makes files and folders of one file system safe from a power loss.

    A flush that nobody else asks for is a plain fsync(2). What is asked for while some are running waits for
    the next round, and a round of several is one syncfs(2), unless that would wait for other people's data.

    :param root: a descriptor on the file system.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._changed = threading.Condition()
        self._waiting: list[_Wish] = []
        self._rounds = 0
        self._large = 0
        self._avoid_until = 0.0 if _kernel() >= _REPORTS_ERRORS else float("inf")

    def flush(self, descriptors: Sequence[int]) -> None:
        """Return when all that was written to these before is on the disk.

        :raises OSError: if it is not, or may not be.
        """
        wish = _Wish(descriptors)
        with self._changed:
            self._waiting.append(wish)
            while not wish.done and (self._rounds >= _ROUNDS or wish not in self._waiting):
                self._changed.wait()
            if not wish.done:
                self._rounds += 1
                wishes, self._waiting = self._waiting, []
        if not wish.done:
            try:
                self._fulfil(wishes)
            finally:
                with self._changed:
                    for each in wishes:
                        each.done = True
                    self._rounds -= 1
                    self._changed.notify_all()
        if wish.error is not None:
            raise wish.error

    def large(self, change: int) -> None:
        """Take note that one more file (1), or one less (-1), has much to flush, which nobody else is to wait for."""
        with self._changed:
            self._large += change

    def _fulfil(self, wishes: list[_Wish]) -> None:
        if len(wishes) >= _SEVERAL and not self._large and time.monotonic() >= self._avoid_until and self._sync_all():
            return
        flushed: dict[int, OSError | None] = {}
        for wish in wishes:
            for descriptor in wish.descriptors:
                if descriptor not in flushed:
                    flushed[descriptor] = _fsync(descriptor)
                wish.error = wish.error or flushed[descriptor]

    def _sync_all(self) -> bool:
        """Flush the file system; False if it says that something was lost, which fsync then tells of each file."""
        begun = time.monotonic()
        succeeded: bool = _libc.syncfs(self._root) == 0
        now = time.monotonic()
        if now - begun > _SLOW:
            self._avoid_until = now + _PAUSE
        return succeeded


def _fsync(descriptor: int) -> OSError | None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        return error
    return None


def _kernel() -> tuple[int, ...]:
    """The kernel's version; from 5.8 on syncfs(2) reports errors."""
    numbers = os.uname().release.partition("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())
