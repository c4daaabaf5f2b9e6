from __future__ import annotations

import importlib.util
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import txredisapi
from twisted.internet import defer, error
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from hmac_file_server.address import RedisServer, redis_at
from hmac_file_server.resumption.keeper import FileKeeper
from hmac_file_server.resumption.rediskeeper import _REST, RedisKeeper, _reason
from hmac_file_server.slots.path import slot_path
from hmac_file_server.stores.session import Session, new_token
from tests.stores import local_store


@pytest.mark.parametrize(
    ("value", "server"),
    [
        ("", None),
        ("localhost:6379", RedisServer("localhost", 6379)),
        ("192.0.2.1:1", RedisServer("192.0.2.1", 1)),
        ("[::1]:6379", RedisServer("::1", 6379)),
        ("[fe80::1%eth0]:65535", RedisServer("fe80::1%eth0", 65535)),
        ("unix:/run/redis/redis.sock", RedisServer(path="/run/redis/redis.sock")),
        ("unix:/run/with:colon.sock", RedisServer(path="/run/with:colon.sock")),
    ],
)
def test_addresses(value: str, server: RedisServer | None) -> None:
    """Each form of RedisAddr means the server that it says; an empty one means none."""
    assert redis_at(value) == server


@pytest.mark.skipif(importlib.util.find_spec("OpenSSL") is None, reason="there is no pyOpenSSL")
@pytest.mark.parametrize(
    ("value", "host"), [("tls:redis.example.com:6380", "redis.example.com"), ("tls:[::1]:6380", "::1")]
)
def test_tls(value: str, host: str) -> None:
    """A RedisAddr that begins with tls: is spoken to with TLS."""
    assert redis_at(value) == RedisServer(host, 6380, tls=True)


@pytest.mark.parametrize(
    "value",
    ["localhost", "6379", ":6379", "localhost:0", "localhost:65536", "localhost:x", "::1:6379", "[::1]", "tls:6379",
     "unix:", "unix:redis.sock", "/run/redis.sock", "redis://localhost:6379", "localhost:6379/1", " localhost:6379",
     "secret@localhost:6379"],
)  # fmt: skip
def test_no_addresses(value: str) -> None:
    """What is no address is refused with the forms that are."""
    with pytest.raises(ValueError, match=r"^write \"localhost:6379\", .*unix:"):
        redis_at(value)


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (txredisapi.ResponseError("ERR invalid password"), "wrongpass"),  # Redis 5
        (txredisapi.ResponseError("ERR Client sent AUTH, but no password is set"), "wrongpass"),
        (txredisapi.ResponseError("ERR Error running script (call to f_1): @user_script:1: -OOM command"), "oom"),
        (txredisapi.ResponseError("NOPERM this user has no permissions to run the 'eval' command"), "noperm"),
        (txredisapi.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "misconf"),
        (txredisapi.ResponseError("ERR unknown command 'EVAL'"), "error"),
        (txredisapi.InvalidResponse("Cannot convert data 'x' to integer"), "error"),
        (txredisapi.TimeoutError("Not received Redis response in 1 seconds"), "timeout"),
        (defer.TimeoutError(), "timeout"),
        (error.TimeoutError(), "timeout"),
        (error.DNSLookupError("no such host"), "unreachable"),
        (error.ConnectionRefusedError(), "unreachable"),
        (txredisapi.ConnectionError("Connection was closed cleanly."), "unreachable"),
    ],
    ids=str,
)
def test_reasons(problem: Exception, word: str) -> None:
    """The reason that is counted for a failure is one of few words, and what is logged is never empty."""
    found, text = _reason(problem)
    assert found == word
    assert text


class Redis:
    """A Redis as the keeper sees it.

    :ivar tries: when a connection was tried.
    :ivar works: whether connections can be made, and what they are asked succeeds.
    :ivar is_full: whether it takes no records.
    :ivar told: what it knows of each upload.
    """

    def __init__(self, clock: Clock) -> None:
        self.tries: list[float] = []
        self.works = False
        self.is_full = False
        self.told: dict[str, Any] = {}
        self.connected = True
        self.transport = self
        self._clock = clock

    def connect(self) -> Deferred[Any]:
        self.tries.append(self._clock.seconds())
        return defer.succeed(self) if self.works else defer.fail(error.ConnectionRefusedError())

    def eval(self, script: str, keys: list[str], values: list[Any]) -> Deferred[Any]:
        if not self.works:
            return defer.fail(txredisapi.ConnectionError("gone"))
        if script == _REST:
            if self.is_full:
                return defer.fail(txredisapi.ResponseError("OOM command not allowed"))
            self.told |= zip(keys[1::2], map(json.loads, values[2::3]), strict=True)
        return defer.succeed([])

    def loseConnection(self) -> None:
        pass


class Setting:
    """A keeper on a clock of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.redis = Redis(self.clock)
        self.store = local_store(folder)
        self.ups: list[bool] = []
        self.said: list[str] = []
        files = FileKeeper(self.store.sessions(60.0), self.clock)
        failed: list[str] = []
        self.keeper = RedisKeeper(files, self.redis.connect, self.clock, "", 60.0, self.ups.append, failed.append)

    def take_note(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "hmac_file_server.resumption.rediskeeper":
            self.said.append(event["log_format"].partition(":")[0])

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    globalLogPublisher.addObserver(made.take_note)
    made.keeper.startService()
    yield made
    made.keeper.stopService()
    globalLogPublisher.removeObserver(made.take_note)
    made.store.close()


def pauses(setting: Setting) -> list[float]:
    tries = setting.redis.tries
    return [round(after - before) for before, after in itertools.pairwise(tries[3:])]


def test_a_redis_that_is_away_is_tried_ever_less_often(setting: Setting) -> None:
    """The pauses between two tries grow to a bound, and all of them have one line in the log."""
    setting.pass_time(70)
    assert pauses(setting) == [4, 8, 15, 15, 15]
    assert setting.said == ["Redis can not be used"]
    assert set(setting.ups) == {False}


def test_a_redis_that_comes_and_goes(setting: Setting) -> None:
    """One that never works for long is tried no more often than one that is away, and the log says no more of it."""
    setting.pass_time(30)
    for _ in range(20):
        setting.redis.works = True
        eventually(setting, lambda: setting.ups[-1])
        setting.pass_time(1.5)
        setting.redis.works = False
        eventually(setting, lambda: not setting.ups[-1])
    assert set(pauses(setting)[5:]) <= {15, 16, 17, 18}
    assert setting.said == ["Redis can not be used"]
    setting.redis.works = True
    eventually(setting, lambda: len(setting.said) == 2)
    assert setting.said[1] == "Redis works again"
    setting.redis.works = False
    tried = len(setting.redis.tries)
    eventually(setting, lambda: len(setting.redis.tries) > tried + 1)
    assert setting.redis.tries[-1] - setting.redis.tries[-2] < 2
    assert setting.said[2:] == ["Redis can not be used"]


def test_what_a_full_redis_did_not_take_is_told_later(setting: Setting) -> None:
    """What waits to be resumed is told when Redis takes it, also if the connection was never lost."""
    setting.redis.works = True
    eventually(setting, lambda: setting.ups[-1:] == [True])
    tried = len(setting.redis.tries)
    setting.redis.is_full = True
    now = time.time()
    path = slot_path([b"slot", b"a.bin"])
    waits = Session(new_token(path), path, 10, None, 6, None, "192.0.2.7", begun=now, touched=now, safe=4)
    setting.keeper._files.swept([waits])
    eventually(setting, lambda: not setting.ups[-1])
    setting.redis.is_full = False
    eventually(setting, lambda: setting.redis.told)
    [told] = setting.redis.told.values()
    assert (told["state"], told["safe"]) == ("waits", 4)
    assert len(setting.redis.tries) == tried


def eventually(setting: Setting, check: Any) -> None:
    for _ in range(300):
        if check():
            return
        setting.clock.advance(0.1)
    raise AssertionError
