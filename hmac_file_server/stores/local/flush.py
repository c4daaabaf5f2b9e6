"""Flushing to the disk, shared: many small files and folders at once cost little more than one."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence

import attrs

from hmac_file_server.stores.local.filesystem import FileSystem

Unflushed = Sequence[int]
"""Descriptors of files and folders that must be on the disk."""

Steps = Generator[Unflushed, None, None]
"""Work that yields what must be on the disk before it goes on; an error that is thrown in says that it is not."""

_SEVERAL = 3
_SLOW = 0.25
_PAUSE = 30.0
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Flusher:
    """Makes files and folders of one file system safe from a power loss.

    A few are flushed one by one, by fsync(2); those of several calls at once by one syncfs(2), unless that would wait
    for other people's data.

    :param root: a descriptor on the file system.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._large = 0
        kind = FileSystem.of(root)
        self._begins_early = kind.special
        self._avoid_until = 0.0 if kind.synced_whole else math.inf

    def flush(self, unflushed: Unflushed) -> None:
        """Return when all that was written to these before is on the disk.

        :raises OSError: if it is not, or may not be.
        """
        (error,) = self.flush_all([unflushed])
        if error is not None:
            raise error

    def flush_all(self, all_unflushed: Sequence[Unflushed]) -> list[OSError | None]:
        """As :meth:`flush`, for many at once; returns what is wrong with each."""
        if len(all_unflushed) >= _SEVERAL and self._sync_all():
            return [None] * len(all_unflushed)
        flushed: dict[int, OSError | None] = {}
        return [_fsync_all(unflushed, flushed) for unflushed in all_unflushed]

    def begin(self, file: int, offset: int, size: int) -> None:
        """Have the disk begin with a part of a file, so that a later flush finds less to do.

        :param file: its descriptor.
        :param offset: where the part begins, in bytes.
        :param size: its length in bytes.
        """
        if not self._begins_early:
            return
        # What comes of it, the flush will tell.
        _libc.sync_file_range(file, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)

    def large(self, change: int) -> None:
        """Take note that one more file (1), or one less (-1), has much to flush, which nobody else is to wait for."""
        with self._lock:
            self._large += change

    def _sync_all(self) -> bool:
        """Flush the file system; False if only fsync can tell of each file whether it is safe.

        What was lost is told once, to whoever asks next, and may be a file that nobody has asked for yet. So one
        thread at a time asks, and after the first loss nobody does any more.
        """
        with self._syncing:
            begun = time.monotonic()
            if self._large or begun < self._avoid_until:
                return False
            if _libc.syncfs(self._root) != 0:
                self._avoid_until = math.inf
                return False
            now = time.monotonic()
            if now - begun > _SLOW:
                self._avoid_until = now + _PAUSE
            return True


@attrs.frozen(eq=False)
class Stepwise:
    """A blocking function whose flushes whoever runs it may share with those of others.

    Called, it runs by itself.

    :param begin: begins the work.
    :param flusher: flushes what it yields; None if it yields nothing.
    """

    begin: Callable[[], Steps]
    flusher: Flusher | None

    def __call__(self) -> None:
        run_alone(self.begin(), self.flusher)


def run_alone(steps: Steps, flusher: Flusher | None) -> None:
    """Run the steps, and flush what they yield."""
    error: BaseException | None = None
    while True:
        try:
            unflushed = next(steps) if error is None else steps.throw(error)
        except StopIteration:
            return
        assert flusher is not None
        try:
            (error,) = flusher.flush_all([unflushed])
        except BaseException as unexpected:  # The steps clean up.
            error = unexpected


def _fsync_all(unflushed: Unflushed, flushed: dict[int, OSError | None]) -> OSError | None:
    for descriptor in unflushed:
        if descriptor not in flushed:
            flushed[descriptor] = _fsync(descriptor)
    return next((flushed[descriptor] for descriptor in unflushed if flushed[descriptor] is not None), None)


def _fsync(descriptor: int) -> OSError | None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        return error
    return None
