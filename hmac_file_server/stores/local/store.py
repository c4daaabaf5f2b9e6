"""The store on a file system, as the daemon knows it: it owns the threads that wait for the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.interface import Condition, IFile, IStore, Present
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.file import Closer, LocalFile
from hmac_file_server.stores.local.in_threads import DraftInThreads, SessionsInThreads
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.local.threads import Run, Threads
from hmac_file_server.stores.room import Space

_WRITERS = 32
_READERS = 16
_STUCK_SECONDS = 10.0
_LOOK = "look"
_NO_POOLS: Mapping[str, Threads] = {}


@implementer(IStore)
class LocalStore:
    """A folder full of uploads.

    :param disk: the folder.
    :param writers: run what uploads do.
    :param readers: others, so that no number of uploads to a slow disk keeps a download waiting.
    :param looker: one more, so that looking at a disk that does not answer keeps nobody waiting.
    :param pools: the pools of threads behind these, by what they do.
    """

    sends = True

    def __init__(
        self,
        disk: Disk,
        writers: Run,
        readers: Run,
        looker: Run,
        clock: IReactorTime,
        pools: Mapping[str, Threads] = _NO_POOLS,
    ) -> None:
        self.disk = disk
        self.space = disk.look()
        self._writers = writers
        self._readers = readers
        self._looker = looker
        self._closer = Closer(readers, clock)
        self._pools = pools

    @classmethod
    def at(cls, folder: str, fsync: bool, reactor: Any, removes: bool = False, remember: float = 0.0) -> LocalStore:
        """The store in a folder, which is made if it is not there.

        :param fsync: whether a published file has reached the disk.
        :param removes: whether files are going to be removed.
        :param remember: seconds for which a removal counts; 0 for ever.
        :raises Unusable: if files can not be made or published there.
        """
        disk = Disk(folder, fsync, removes, remember)
        writers, readers = Threads(reactor, _WRITERS, "writer"), Threads(reactor, _READERS, "reader")
        looker = Threads(reactor, 1, "looker")
        pools = {"write": writers, "read": readers, _LOOK: looker}
        return cls(disk, writers.run, readers.run, looker.run, reactor, pools)

    @property
    def keeps_attributes(self) -> bool:
        return self.disk.keeps_attributes

    @property
    def stuck(self) -> str:
        for what, pool in self._pools.items():
            if what != _LOOK and pool.stuck_seconds > _STUCK_SECONDS:
                return f"all threads that {what} wait for the disk"
        return ""

    def draft(self, path: SlotPath, size: int, about: Attributes) -> DraftInThreads:
        return DraftInThreads(self.disk.draft(path, size, about), self._writers)

    def open(self, path: SlotPath, preload: int = 0) -> Deferred[IFile]:
        return self._readers(lambda: self._open(path, preload))

    def _open(self, path: SlotPath, preload: int) -> LocalFile:
        file = self.disk.open(path, preload)
        try:
            return LocalFile(file, self._readers, self._closer)
        except BaseException:  # no memory
            file.close()
            raise

    def was_removed(self, path: SlotPath) -> bool:
        return self.disk.was_removed(path)

    def remove(self, path: SlotPath, condition: Condition | None = None) -> Deferred[Present | None]:
        return self._writers(lambda: self.disk.remove(path, condition))

    def sessions(self, timeout: float) -> SessionsInThreads:
        return SessionsInThreads(lambda: SessionFiles(self.disk.place, timeout), timeout, self._writers, self._readers)

    def look(self, ran_out: bool = False) -> Deferred[Space]:
        return self._looker(lambda: self.disk.look(ran_out))

    def check_writable(self) -> Deferred[None]:
        return self._looker(self.disk.check_writable)

    def sweep(self) -> Deferred[int]:
        return self._writers(self.disk.sweep)

    def retire(self) -> Deferred[None]:
        ended = DeferredList([pool.end(_nothing) for what, pool in self._pools.items() if what != "write"])
        return ended.addCallback(lambda _: self._pools["write"].end(self.disk.close))

    def close(self) -> None:
        self.disk.close()


def _nothing() -> None:
    pass
