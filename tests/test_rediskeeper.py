from __future__ import annotations

import importlib.util

import pytest
import txredisapi
from twisted.internet import defer, error

from hmac_file_server.listen import RedisServer, redis_at
from hmac_file_server.uploads.rediskeeper import _reason


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
