"""Stores for tests: one on the disk whose threads are as quick as can be, and one in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from hmac_file_server.slots.path import RESERVED, SlotPath
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.errors import NoSuchFile, SlotTaken, Unmet, WrongFile
from hmac_file_server.stores.interface import Chunks, Condition, IDraft, IFile, IStore, Present, Source
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.store import LocalStore
from hmac_file_server.stores.room import Space

Files = dict[SlotPath, tuple[bytes, Attributes]]
"""Content and what is kept with it, of each."""


def local_store(
    folder: Path, fsync: bool = True, run: Callable[..., Deferred[Any]] = maybeDeferred, clock: Any = None
) -> LocalStore:
    """A store on the disk.

    :param run: runs what blocks: at once, or when the test says so.
    """
    return LocalStore(Disk(str(folder), fsync), run, run, run, clock or Clock())


@implementer(IFile)
class MemoryFile:
    """A file in memory."""

    def __init__(self, content: bytes, about: Attributes, mtime_ns: int, preload: int) -> None:
        self._content = content
        self.size = len(content)
        self.mtime_ns = mtime_ns
        self.about = about
        self.content = content if len(content) <= preload else None

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        return succeed(self._content[offset : offset + length])

    def send(self, transport: Any, offset: int, length: int) -> Deferred[int | bytes]:
        raise NotImplementedError

    def close(self) -> None:
        pass


@implementer(IDraft)
class MemoryDraft:
    """An upload that is kept in memory."""

    condition: Condition | None = None
    digests: Sequence[bytes] = ()
    takes_from_sockets = False
    claimed = 0

    def __init__(self, files: Files, path: SlotPath, size: int, about: Attributes) -> None:
        self._files = files
        self.path, self.end = path, size
        self._about = about
        self._body = b""

    @property
    def position(self) -> int:
        return len(self._body)

    @property
    def owed(self) -> int:
        return max(0, self.claimed - self.position)

    def begin(self) -> Deferred[None]:
        return maybeDeferred(self._look)

    def _look(self) -> None:
        there = self._files.get(self.path)
        if self.condition is not None and not self.condition(there and Present(len(there[0]), 0)):
            raise Unmet
        if there is not None and len(there[0]) != self.end:
            raise SlotTaken

    def write(self, chunks: Chunks, source: Source | None = None) -> Deferred[None]:
        self._body += b"".join(chunks)
        chunks.clear()
        return succeed(None)

    def publish(self, chunks: Chunks) -> Deferred[None]:
        self.write(chunks)
        return maybeDeferred(self._publish)

    def _publish(self) -> None:
        self._look()
        if any(hashlib.sha256(self._body).digest() != digest for digest in self.digests):
            raise WrongFile
        if self._files.setdefault(self.path, (self._body, self._about))[0] != self._body:
            raise SlotTaken

    def give_up(self, chunks: Chunks, reason: Exception) -> Deferred[None]:
        return succeed(None)


@implementer(IStore)
class MemoryStore:
    """A store that is gone with the process, and knows nothing of descriptors, threads and flushes."""

    space = Space(None)
    stuck = ""
    keeps_attributes = True
    sends = False

    def __init__(self) -> None:
        self.files: Files = {}
        self.gone: set[SlotPath] = set()

    def draft(self, path: SlotPath, size: int, about: Attributes) -> MemoryDraft:
        return MemoryDraft(self.files, path, size, about)

    def open(self, path: SlotPath, preload: int = 0) -> Deferred[IFile]:
        if path not in self.files or path.segments[0].startswith(RESERVED):
            return fail(NoSuchFile())
        return succeed(MemoryFile(*self.files[path], 10**18, preload))

    def was_removed(self, path: SlotPath) -> bool:
        return path in self.gone

    def remove(self, path: SlotPath, condition: Condition | None = None) -> Deferred[Present | None]:
        self.gone.add(path)
        there = self.files.pop(path, None)
        return succeed(there and Present(len(there[0]), 0))

    def sessions(self, timeout: float) -> Any:
        raise NotImplementedError

    def look(self, ran_out: bool = False) -> Deferred[Space]:
        return succeed(self.space)

    def check_writable(self) -> Deferred[None]:
        return succeed(None)

    def sweep(self) -> Deferred[int]:
        return succeed(0)

    def retire(self) -> Deferred[None]:
        return succeed(None)

    def close(self) -> None:
        pass
