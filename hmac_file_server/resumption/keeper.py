"""Who keeps the sessions: what runs and what waits to be resumed, for all that share a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from hmac_file_server.files.retry import InThread
from hmac_file_server.stores.local.sessions import Session, SessionFiles

if TYPE_CHECKING:
    from hmac_file_server.files.upload import Upload

_log = Logger()

SWEEP_SECONDS = 600.0
"""How often what has ended is removed."""

_LOOK_EVERY = 1.0
_COUNT_EVERY = 5.0


class Superseded(Exception):
    """A newer request took the upload's place."""

    def __init__(self) -> None:
        super().__init__("a newer request goes on with this upload")


class ISessionKeeper(Interface):
    """Keeps the sessions of uploads; what it is told never waits for anything."""

    def begun(upload: Upload) -> None:  # noqa: N805  # methods of an Interface have no self
        """An upload runs here. When somebody else takes it over it is abandoned with :exc:`Superseded`."""

    def ended(upload: Upload) -> None:  # noqa: N805
        """It does not run any more; its session says whether it can be resumed."""

    def kept() -> int:
        """How many sessions run or wait to be resumed, for all that share the store, as of late."""


@implementer(ISessionKeeper)
class FileKeeper(Service):
    """Sessions in files beside the partial data: safe across restarts, workers and hosts that share a store.

    :param files: gives the files; they change their place when the store is mounted anew.
    :param in_thread: runs blocking calls.
    :ivar swept: told of the sessions that there are, now and then.
    """

    def __init__(self, files: Callable[[], SessionFiles], in_thread: InThread, clock: IReactorTime) -> None:
        self._files = files
        self._in_thread = in_thread
        self.swept: Callable[[list[Session]], None] = lambda sessions: None
        self._running: dict[str, Upload] = {}
        self._kept = 0
        self._new = 0
        self._looks = LoopingCall(self._look)
        self._counts = LoopingCall(self._count)
        self._sweeps = LoopingCall(self.sweep)
        self._looks.clock = self._counts.clock = self._sweeps.clock = clock

    def startService(self) -> None:
        super().startService()
        self._looks.start(_LOOK_EVERY, now=False)
        self._counts.start(_COUNT_EVERY)
        self._sweeps.start(min(SWEEP_SECONDS, max(1.0, self._files().timeout / 2)))

    def stopService(self) -> None:
        super().stopService()
        self._looks.stop()
        self._counts.stop()
        self._sweeps.stop()

    def begun(self, upload: Upload) -> None:
        if upload.token:
            self._running[upload.token] = upload
            self._kept += upload.is_new
            self._new += upload.is_new

    def ended(self, upload: Upload) -> None:
        if self._running.get(upload.token) is upload:
            del self._running[upload.token]
        if upload.token and (upload.stored or upload.dropped or (upload.is_new and upload.session is None)):
            self._kept = max(0, self._kept - 1)

    def kept(self) -> int:
        return self._kept

    def find(self, token: str) -> Deferred[Session | None]:
        """A session as its files tell it; fires with None if there is none."""
        found: Deferred[Session | None] = self._in_thread(lambda: self._files().read(token))
        return found.addErrback(lambda failure: None)

    def _look(self) -> Deferred[None] | None:
        """See whether another process waits for what runs here; a disk that does not answer is asked once."""
        # Only what has its session: else whoever waits for one would give way to its own wish.
        running = {token: upload for token, upload in self._running.items() if upload.session is not None}
        if not running:
            return None
        files = self._files()
        return self._in_thread(lambda: [token for token in running if files.wanted(token)]).addCallbacks(
            lambda wanted: self._yield(running, wanted), lambda failure: None
        )

    def _yield(self, running: dict[str, Upload], wanted: list[str]) -> None:
        for token in wanted:
            running[token].abandon(Superseded())

    def _count(self) -> Deferred[None]:
        """See what others have begun, and what has come to its end."""
        # What is just beginning, or does meanwhile, may be missed; rather it is counted twice until the next time.
        self._new = sum(upload.is_new and upload.session is None for upload in self._running.values())
        return self._in_thread(self._files().count).addCallbacks(self._counted, lambda failure: None)

    def _counted(self, count: int) -> None:
        self._kept = count + self._new

    def sweep(self) -> Deferred[list[Session]]:
        """Remove the sessions that have ended, with their data; fires with those that there are."""
        return self._in_thread(self._files().sweep).addCallbacks(self._swept, self._failed)

    def _swept(self, sessions: list[Session]) -> list[Session]:
        self.swept(sessions)
        return sessions

    def _failed(self, failure: Failure) -> list[Session]:
        _log.warn("the sessions can not be looked through: {error}", error=failure.value)
        return []
