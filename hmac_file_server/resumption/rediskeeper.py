"""Sessions in Redis: what runs on all daemons of a site, in one place, and who may write a slot.

Redis holds nothing that can not be lost. The files beside the partial data stay the truth, so nothing waits
for Redis, and without it everything works as with :class:`FileKeeper` alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import txredisapi
from twisted.application.service import Service
from twisted.internet import defer, error
from twisted.internet._resolver import GAIResolver
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from hmac_file_server.address import RedisServer
from hmac_file_server.files.upload import Superseded, Upload
from hmac_file_server.resumption.keeper import SWEEP_SECONDS, FileKeeper, ISessionKeeper
from hmac_file_server.resumption.upload import ResumableUpload
from hmac_file_server.stores.session import Session, encode

_log = Logger()

REPLY_SECONDS = 1.0
"""How long an answer of Redis is waited for."""
LEASE_SECONDS = 15
"""How long a slot stays claimed by a daemon that says nothing more."""

_TICK = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_STEADY = 3.0
_MOST_AT_ONCE = 256
_RESOLVERS = 2
_WAITS_SECONDS = int(2.5 * SWEEP_SECONDS)

_REASONS = {
    "WRONGPASS": "wrongpass",
    "invalid password": "wrongpass",
    "AUTH <password>": "wrongpass",  # there is none to give
    "Client sent AUTH": "wrongpass",
    "NOAUTH": "noauth",
    "NOPERM": "noperm",
    "OOM": "oom",
    "READONLY": "readonly",
    "LOADING": "loading",
    "MISCONF": "misconf",
    "MASTERDOWN": "masterdown",
    "DB index": "dbid",
}
"""What Redis's answers contain that say why."""

# KEYS: the daemon's, then a lease and a record for each upload. ARGV: seconds for all of them, what is known of the
# daemon, then for each upload its holder and the record. Holders are ordered: who began later takes the slot from who
# began before, whenever either of them comes by. Returns whose lease somebody else has.
_RENEW = """
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
local lost = {}
for i = 1, (#KEYS - 1) / 2 do
    local lease, holder = KEYS[2 * i], ARGV[2 * i + 1]
    local held = redis.call('GET', lease)
    if held and held > holder then
        lost[#lost + 1] = i
    else
        redis.call('SET', lease, holder, 'EX', ARGV[1])
        redis.call('SET', KEYS[2 * i + 1], ARGV[2 * i + 2], 'EX', ARGV[1])
    end
end
return lost
"""

# KEYS: a lease and a record for each upload that does not run here. ARGV: for each who held the slot until now,
# seconds for the record (0: there is nothing left to tell), the record. What runs elsewhere is told of from there.
_REST = """
for i = 1, #KEYS / 2 do
    local lease, record = KEYS[2 * i - 1], KEYS[2 * i]
    local held = redis.call('GET', lease)
    if held == ARGV[3 * i - 2] then
        redis.call('DEL', lease)
        held = false
    end
    if ARGV[3 * i - 1] == '0' then
        redis.call('DEL', record)
    elseif not held then
        redis.call('SET', record, ARGV[3 * i], 'EX', ARGV[3 * i - 1])
    end
end
return {}
"""


@attrs.define
class _Lease:
    """An upload that runs here.

    :param name: of this upload, in leases.
    :param begun: when its request began, in seconds since 1970.
    :param fresh: whether it was not claimed yet.
    :param told: whether Redis may know of it.
    """

    upload: Upload
    name: str
    begun: float
    fresh: bool = True
    told: bool = False

    def holder(self, session: Session) -> str:
        """What its lease says. Of two, the one whose upload began later is the greater; of one upload, its request."""
        return f"{session.begun:017.6f} {self.begun:017.6f} {self.name}"


@implementer(ISessionKeeper)
class RedisKeeper(Service):
    """Tells Redis what runs and what waits, and takes a slot from whoever had it before.

    :param files: keeps the sessions.
    :param connect: makes a connection; fires with it, or fails.
    :param prefix: of all keys.
    :param timeout: seconds after which a session ends.
    :param is_up: told whether Redis works.
    :param failed: told of each failure's reason, in a word.
    """

    def __init__(
        self,
        files: FileKeeper,
        connect: Callable[[], Deferred[Any]],
        clock: IReactorTime,
        prefix: str,
        timeout: float,
        is_up: Callable[[bool], None],
        failed: Callable[[str], None],
    ) -> None:
        self._files = files
        self._connect = connect
        self._clock = clock
        self._prefix = prefix
        self._timeout = timeout
        self._is_up = is_up
        self._count_failure = failed
        self._leases: dict[Upload, _Lease] = {}
        self._daemon = f"{socket.gethostname()}:{os.getpid()}"
        self._redis: Any = None
        self._reasons_told: set[str] = set()
        self._works_since: float | None = None
        self._pause = _FIRST_PAUSE
        self._waiting: list[Session] = []
        self._work: Deferred[None] | None = None
        self._news: Deferred[None] | None = None
        files.swept = self._swept

    def startService(self) -> None:
        super().startService()
        self._files.startService()
        self._work = Deferred.fromCoroutine(self._keep_up())
        self._work.addErrback(lambda failure: failure.trap(CancelledError))
        self._work.addErrback(lambda failure: _log.failure("a bug in keeping sessions in Redis", failure))

    def stopService(self) -> None:
        super().stopService()
        if self._work is not None:
            self._work.cancel()
        self._files.stopService()
        self._drop()

    # ISessionKeeper

    def begun(self, upload: Upload) -> None:
        self._files.begun(upload)
        self._leases[upload] = _Lease(upload, f"{self._daemon}:{secrets.token_hex(8)}", time.time())
        if self._news is not None:
            self._news.cancel()

    def ended(self, upload: Upload) -> None:
        self._files.ended(upload)
        lease = self._leases.pop(upload)
        session = _session(lease)
        if session is None:
            return
        resumable = isinstance(upload, ResumableUpload)
        if isinstance(upload, ResumableUpload) and not session.complete:
            # Whether it can be resumed is known to its record alone.
            self._files.find(upload.token).addCallback(lambda left: self._rests(lease, session, left))
        elif resumable or lease.told:
            self._rests(lease, session, None)

    def kept(self) -> int:
        return self._files.kept()

    # Redis

    async def _keep_up(self) -> None:
        """Be connected whenever that is possible, and renew what is claimed."""
        while True:
            try:
                anew = not self._connected()
                if anew:
                    self._redis = await self._connect().addTimeout(REPLY_SECONDS, self._clock)
                await self._renew(list(self._leases.values()))
                if anew:
                    # It may have forgotten what waits, or missed it.
                    self._files.sweep()
                await self._tell_waiting()
                self._works()
                await self._wait_and_claim(_TICK)
            except Exception as problem:
                if not self.running:
                    raise
                self._fails(problem)
                if not isinstance(problem, txredisapi.ResponseError):
                    self._drop()
                pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
                await deferLater(self._clock, pause, lambda: None)

    def _connected(self) -> bool:
        return self._redis is not None and bool(self._redis.connected)

    async def _wait_and_claim(self, seconds: float) -> None:
        """Wait, and claim at once what begins meanwhile."""
        end = self._clock.seconds() + seconds
        while (left := end - self._clock.seconds()) > 0:
            self._news = deferLater(self._clock, left, lambda: None)
            try:
                await self._news
            except CancelledError:
                if not self.running:
                    raise
            finally:
                self._news = None
            fresh = [lease for lease in self._leases.values() if lease.fresh]
            if fresh:
                await self._renew(fresh)

    async def _renew(self, leases: list[_Lease]) -> None:
        known = [(lease, session) for lease in leases if (session := _session(lease)) is not None]
        keys = [f"{self._prefix}daemon:{self._daemon}"]
        values: list[Any] = [LEASE_SECONDS, len(self._leases)]
        for lease, session in known:
            lease.told = True
            keys += [self._lease_key(session), self._record_key(session)]
            values += [lease.holder(session), self._record(session, "runs")]
        lost = await self._redis.eval(_RENEW, keys, values)
        for lease, _ in known:
            lease.fresh = False
        for index in lost or ():
            known[int(index) - 1][0].upload.abandon(Superseded())

    def _rests(self, lease: _Lease, session: Session, left: Session | None) -> None:
        """An upload does not run any more.

        :param left: what can be resumed of it.
        """
        if self._connected():
            keys, values = self._at_rest(left or session, lease.holder(session), left is not None)
            told: Deferred[Any] = maybeDeferred(self._redis.eval, _REST, keys, values)
            told.addErrback(self._not_told)

    def _not_told(self, failure: Failure) -> None:
        assert failure.value is not None
        self._fails(failure.value)

    def _swept(self, sessions: list[Session]) -> None:
        self._waiting = [session for session in sessions if not session.complete]

    async def _tell_waiting(self) -> None:
        some, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
        running = {lease.upload.token for lease in self._leases.values() if isinstance(lease.upload, ResumableUpload)}
        keys: list[str] = []
        values: list[Any] = []
        for session in some:
            if session.token not in running:
                more_keys, more_values = self._at_rest(session, "", True)
                keys += more_keys
                values += more_values
        if keys:
            try:
                await self._redis.eval(_REST, keys, values)
            except BaseException:
                self._waiting = some + self._waiting
                raise

    def _at_rest(self, session: Session, holder: str, waits: bool) -> tuple[list[str], list[Any]]:
        # Every sweep tells it again: a session can end where nobody tells Redis.
        left = max(1, int(session.begun + self._timeout - time.time()))
        seconds = min(left, _WAITS_SECONDS) if waits else 0
        keys = [self._lease_key(session), self._record_key(session)]
        return keys, [holder, seconds, self._record(session, "waits")]

    def _works(self) -> None:
        self._is_up(True)
        now = self._clock.seconds()
        if self._works_since is None:
            self._works_since = now
        # One that comes and goes is as good as away.
        if now < self._works_since + _STEADY:
            return
        self._pause = _FIRST_PAUSE
        if self._reasons_told:
            _log.info("Redis works again")
            self._reasons_told.clear()

    def _fails(self, problem: BaseException) -> None:
        word, text = _reason(problem)
        self._is_up(False)
        self._count_failure(word)
        self._works_since = None
        if word not in self._reasons_told:
            _log.warn("Redis can not be used: {text}; uploads go on, with their sessions in files only", text=text)
            self._reasons_told.add(word)

    def _drop(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None:
            redis.transport.loseConnection()

    def _lease_key(self, session: Session) -> str:
        return f"{self._prefix}slot:{hashlib.sha256(session.path.signed).hexdigest()}"

    def _record_key(self, session: Session) -> str:
        # Not by its token, which lets whoever knows it go on with the upload.
        return f"{self._prefix}session:{hashlib.sha256(session.token.encode()).hexdigest()[:32]}"

    def _record(self, session: Session, state: str) -> str:
        return json.dumps(json.loads(encode(session)) | {"state": state, "daemon": self._daemon})


def _session(lease: _Lease) -> Session | None:
    """What Redis is told of an upload; None while that is not known."""
    upload = lease.upload
    if isinstance(upload, ResumableUpload) and upload.session is not None:
        return upload.session
    if upload.slot is None:
        return None
    slot, now = upload.slot, time.time()
    return Session(lease.name, slot.path, slot.size, slot.media_type, 0, None, upload.client, upload.begun, now)


def _reason(problem: BaseException) -> tuple[str, str]:
    """A failure in one word of a small set, and in more words."""
    if isinstance(problem, defer.TimeoutError | error.TimeoutError | txredisapi.TimeoutError):
        return "timeout", f"no answer within {REPLY_SECONDS:g} s"
    text = str(problem) or type(problem).__name__
    if isinstance(problem, txredisapi.ResponseError):
        text = text.partition(" script: ")[0]
        return next((word for part, word in _REASONS.items() if part in text), "error"), text
    if isinstance(problem, OSError | error.ConnectError | txredisapi.ConnectionError):
        return "unreachable", text
    return "error", f"{type(problem).__name__}: {text}"


class _Redis(txredisapi.RedisProtocol):
    """A connection to Redis. It ends when an answer takes too long."""

    def __init__(self) -> None:
        super().__init__(replyTimeout=REPLY_SECONDS)

    def connectionLost(self, why: Failure) -> None:
        # By itself it would not tell who waits for an answer of, say, a certificate.
        while self.replyQueue.waiting:
            self.replyReceived(txredisapi.ConnectionError(why.getErrorMessage()))
        super().connectionLost(why)


class _RedisFactory(Factory):
    protocol = _Redis  # type: ignore[assignment]  # its base has no types
    noisy = False


def _resolve_in_own_threads(reactor: Any) -> None:
    """Look names up in threads that do not keep the daemon from ending; those of the reactor would be waited for."""
    pool = ThreadPool(0, _RESOLVERS, "resolver")
    pool.threadFactory = functools.partial(threading.Thread, daemon=True)  # type: ignore[assignment]
    pool.start()
    reactor.installNameResolver(GAIResolver(reactor, lambda: pool))


def connector(server: RedisServer, password: str, database: int) -> Callable[[], Deferred[Any]]:
    """Makes connections to a server."""
    from twisted.internet import reactor  # txredisapi knows no other either

    endpoint: Any
    if server.path:
        endpoint = UNIXClientEndpoint(reactor, server.path, REPLY_SECONDS)
    else:
        _resolve_in_own_threads(reactor)
        endpoint = HostnameEndpoint(reactor, server.host, server.port, REPLY_SECONDS)
    if server.tls:
        from twisted.internet.ssl import optionsForClientTLS

        endpoint = wrapClientTLS(optionsForClientTLS(server.host), endpoint)

    async def connect() -> Any:
        redis = await endpoint.connect(_RedisFactory())
        try:
            if password:
                await redis.auth(password)
            if database:
                await redis.select(database)
        except BaseException:
            redis.transport.abortConnection()
            raise
        return redis

    return lambda: Deferred.fromCoroutine(connect())
