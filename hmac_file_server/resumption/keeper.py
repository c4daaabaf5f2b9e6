"""Who keeps the sessions: what runs and what waits to be resumed, for all that share a store."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hmac_file_server.files.upload import IUploadWatcher, Superseded, Upload
from hmac_file_server.resumption.upload import ResumableUpload
from hmac_file_server.stores.interface import ISessions
from hmac_file_server.stores.session import Session

_log = Logger()

SWEEP_SECONDS = 600.0
"""How often what has ended is removed."""

_LOOK_EVERY = 1.0
_COUNT_EVERY = 5.0


class ISessionKeeper(IUploadWatcher):
    """Keeps the sessions of uploads; their records say whether they can be resumed when they do not run any more."""

    def kept() -> int:
        """How many sessions run or wait to be resumed, for all that share the store, as of late."""


@implementer(ISessionKeeper)
class FileKeeper(Service):
    """Sessions in the store, beside the partial data: safe across restarts, workers and hosts that share it.

    :ivar swept: told of the sessions that there are, now and then.
    """

    def __init__(self, sessions: ISessions, clock: IReactorTime) -> None:
        self._sessions = sessions
        self.swept: Callable[[list[Session]], None] = lambda sessions: None
        self._running: dict[str, ResumableUpload] = {}
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
        self._sweeps.start(min(SWEEP_SECONDS, max(1.0, self._sessions.timeout / 2)))

    def stopService(self) -> None:
        super().stopService()
        self._looks.stop()
        self._counts.stop()
        self._sweeps.stop()

    def begun(self, upload: Upload) -> None:
        if isinstance(upload, ResumableUpload):
            self._running[upload.token] = upload
            self._kept += upload.is_new
            self._new += upload.is_new

    def ended(self, upload: Upload) -> None:
        if not isinstance(upload, ResumableUpload):
            return
        if self._running.get(upload.token) is upload:
            del self._running[upload.token]
        if upload.stored or upload.dropped or (upload.is_new and upload.session is None):
            self._kept = max(0, self._kept - 1)

    def kept(self) -> int:
        return self._kept

    def find(self, token: str) -> Deferred[Session | None]:
        """A session as its record tells it; fires with None if there is none."""
        return self._sessions.read(token).addErrback(lambda failure: None)

    def _look(self) -> Deferred[None] | None:
        """See whether another process waits for what runs here; a disk that does not answer is asked once."""
        # Only what has its session: else whoever waits for one would give way to its own wish.
        running = {token: upload for token, upload in self._running.items() if upload.session is not None}
        if not running:
            return None
        return self._sessions.wanted(list(running)).addCallbacks(
            lambda wanted: self._yield(running, wanted), lambda failure: None
        )

    def _yield(self, running: dict[str, ResumableUpload], wanted: list[str]) -> None:
        for token in wanted:
            running[token].abandon(Superseded())

    def _count(self) -> Deferred[None]:
        """See what others have begun, and what has come to its end."""
        # What is just beginning, or does meanwhile, may be missed; rather it is counted twice until the next time.
        self._new = sum(upload.is_new and upload.session is None for upload in self._running.values())
        return self._sessions.count().addCallbacks(self._counted, lambda failure: None)

    def _counted(self, count: int) -> None:
        self._kept = count + self._new

    def sweep(self) -> Deferred[list[Session]]:
        """Remove the sessions that have ended, with their data; fires with those that there are."""
        return self._sessions.sweep().addCallbacks(self._swept, self._failed)

    def _swept(self, sessions: list[Session]) -> list[Session]:
        self.swept(sessions)
        return sessions

    def _failed(self, failure: Failure) -> list[Session]:
        error = failure.value
        path = getattr(error, "filename", None)
        _log.warn("the sessions can not be looked through: {error}", error=error, path=path)
        return []
