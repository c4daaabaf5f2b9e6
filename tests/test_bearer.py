from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.slots.bearer import BadToken, TokenVerifier, presented
from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.slot import Slot
from tests.bearer import HEADER, claims, encoded, put_with, signed, token
from tests.stores import MemoryStore
from tests.support import SECRET, put_target, v
from tests.test_request import Server, status

PATH = "RVbKAgWPcrUYAodj/picture.png"
SIZE = 7168
# The vector of docs: what Prosody 0.12 signs, with a secret that is text and not base64.
VECTOR = (
    b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjE4OTM0NTYzMDAsImV4cGlyZXMiOjE4OTQwNjA4MDAsImZpbGVuYW1lIjoicGljdHVyZS5w"
    b"bmciLCJmaWxlc2l6ZSI6NzE2OCwiZmlsZXR5cGUiOiJpbWFnZS9wbmciLCJpYXQiOjE4OTM0NTYwMDAsInNsb3QiOiJSVmJLQWdXUGNyVVlBb2RqIiwi"
    b"c3ViIjoidXNlckBleGFtcGxlLmNvbSJ9.IZOjp4sxkTsebQRXZxjScpZTFPvHyeYHUpwG2fiWzBE"
)
NOW = 1_893_456_100.0


def slot(made: bytes, path: str = PATH, size: int = SIZE, secret: str = SECRET, now: float | None = None) -> Slot:
    verifier = TokenVerifier([b"another-secret-that-is-long", secret.encode()], lambda: now or time.time())
    return verifier.verify(made, slot_path([part.encode() for part in path.split("/")]), size)


def refusal(made: bytes, **others: Any) -> BadToken:
    with pytest.raises(BadToken) as caught:
        slot(made, **others)
    assert len(made) < 20 or made.decode("latin-1") not in str(caught.value)
    return caught.value


def test_the_vector() -> None:
    """What Prosody signs is taken, with its type, owner and end."""
    found = slot(VECTOR, secret="U2VjcmV0VG9rZW4wMzYz", now=NOW)
    assert (found.media_type, found.owner, found.end) == (b"image/png", "user@example.com", 1_894_060_800)
    assert refusal(VECTOR, now=NOW).status == 401


def test_any_secret_of_the_list() -> None:
    """While one secret replaces another, tokens of either hold."""
    assert slot(token(PATH, SIZE, "another-secret-that-is-long")).size == SIZE
    assert slot(token(PATH, SIZE)).size == SIZE
    assert refusal(token(PATH, SIZE, "a third secret")).status == 401


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS384"},
        {"alg": "HS512"},
        {"alg": "RS256"},
        {"alg": "hs256"},
        {"alg": ["HS256"]},
        {"alg": None},
        {},
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "b64": False},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "zip": "DEF"},
    ],
)
def test_another_algorithm(header: dict[str, Any]) -> None:
    """HS256 alone is taken, whatever the token says of itself, and nothing that changes what its bytes mean."""
    assert refusal(token(PATH, SIZE, header=header)).status == 401


def test_no_signature() -> None:
    """A token without its signature, with an empty or a foreign one, or with one more, gives no right."""
    head, payload, signature = token(PATH, SIZE).split(b".")
    other = token("other/b.png", SIZE).split(b".")[1]
    for made in (
        b".".join([head, payload]),
        b".".join([head, payload, b""]),
        b".".join([head, payload, signature, signature]),
        b".".join([head, payload, signature]) + b".",
        b".".join([head, other, signature]),
        b".".join([head, payload, signature[:-1]]),
        b".".join([head, payload, signature + b"AAAA"]),
        b".".join([head, payload, signature]) + b"=",
        b".".join([head, payload + b" ", signature]),
        b"",
        b"..",
        b"x",
    ):
        assert refusal(made).status == 401


def test_a_member_that_is_there_twice() -> None:
    """What two readers could read differently is refused, in the header and in the claims."""
    payload = json.dumps(claims(PATH, SIZE))
    for name in ("filesize", "exp", "slot", "whatever"):
        twice = payload[:-1] + f', "{name}": 1, "{name}": 1}}'
        assert refusal(signed(json.dumps(HEADER).encode(), twice.encode())).status == 401
    assert refusal(signed(b'{"alg": "none", "alg": "HS256"}', payload.encode())).status == 401


@pytest.mark.parametrize("payload", [b"", b"[]", b'"x"', b"1", b"null", b"{", b"\xff", b"[" * 6000, b"{}"])
def test_claims_that_are_none(payload: bytes) -> None:
    """What is signed must be an object with the claims."""
    assert refusal(signed(json.dumps(HEADER).encode(), payload)).status == 401


def test_a_huge_token() -> None:
    """A token that is longer than any slot needs is not even read."""
    assert refusal(token(PATH, SIZE, more="x" * 9000)).status == 401
    assert slot(token(PATH, SIZE, more="x" * 4000)).size == SIZE


@pytest.mark.parametrize("name", ["exp", "slot", "filename", "filesize"])
@pytest.mark.parametrize("value", [None, True, False, "", [], {}, "1893456300", -1, float("nan"), float("inf")])
def test_a_required_claim(name: str, value: Any) -> None:
    """Without it, or with something else in it, the token gives no right, and the log names it."""
    error = refusal(token(PATH, SIZE, **{name: value}))
    assert error.status == (403 if isinstance(value, str) and value and name in ("slot", "filename") else 401)
    assert name in str(error) or "payload" in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filesize", 7168.0),
        ("filesize", 7168.5),
        ("filesize", "7168"),
        ("exp", 10**400),
        ("expires", "1894060800"),
        ("expires", True),
        ("expires", -1),
        ("expires", 10**300),
        ("sub", 1),
        ("sub", ["juliet@example.com"]),
        ("sub", "x" * 2048),
        ("sub", "\ud800"),
        ("filetype", 1),
        ("filetype", {"a": 1}),
        ("filename", "\ud800.png"),
        ("iat", "now"),
        ("iat", True),
        ("nbf", "now"),
    ],
)
def test_a_claim_of_another_type(name: str, value: Any) -> None:
    """A claim is of its type, or the token gives no right."""
    error = refusal(token(PATH, SIZE, **{name: value}))
    assert error.status == 401
    assert name in str(error)


def test_claims_that_may_be_missing() -> None:
    """Files that are kept for ever have no end; an owner and a type need not be named."""
    found = slot(token(PATH, SIZE, sub=None, filetype=None, iat=None))
    assert (found.media_type, found.owner, found.end) == (None, None, None)
    assert slot(token(PATH, SIZE, filetype="", sub="")).attributes == found.attributes


def test_time() -> None:
    """A token counts before exp, to the second and without leeway; one that is made a minute ahead is not believed."""
    made = token(PATH, SIZE, iat=1000, exp=1300)
    assert slot(made, now=1299.9).size == SIZE
    assert "exp" in str(refusal(made, now=1300))
    assert slot(made, now=940).size == SIZE
    assert "iat" in str(refusal(made, now=939.9))
    assert "nbf" in str(refusal(token(PATH, SIZE, iat=1, exp=1300, nbf=1200), now=1100))


@pytest.mark.parametrize(
    "path",
    [
        "RVbKAgWPcrUYAodj/other.png",
        "other/picture.png",
        "RVbKAgWPcrUYAodj/picture.png/more",
        "more/RVbKAgWPcrUYAodj/picture.png",
        "RVbKAgWPcrUYAodj",
        "picture.png",
        "rvbkagwpcruyaodj/picture.png",
    ],
)
def test_another_path(path: str) -> None:
    """A token is for one slot and one name: 403 for any other."""
    error = refusal(token(PATH, SIZE), path=path)
    assert (error.status, error.error) == (403, "insufficient_scope")


def test_a_slash_in_a_claim() -> None:
    """Two segments, whatever the claims hold: a slash in one of them makes no third."""
    for given_claims in ({"slot": "a/b", "filename": "c"}, {"slot": "a", "filename": "b/c"}):
        assert refusal(token("a/b/c", 1, **given_claims), path="a/b/c", size=1).status == 403


def test_another_length() -> None:
    """A file of another length is 413."""
    assert refusal(token(PATH, SIZE), size=SIZE + 1).status == 413


def test_a_type_with_a_line_break() -> None:
    """What a client asked Prosody for is made harmless before it is stored."""
    assert slot(token(PATH, SIZE, filetype="text/html\r\nX-Evil: 1")).media_type == b"application/octet-stream"
    assert slot(token(PATH, SIZE, filetype="Image/PNG; a=b")).media_type == b"image/png"


@given(st.binary(max_size=200))
def test_anything(made: bytes) -> None:
    """Whatever a stranger shows, it is refused, and nothing else happens."""
    assert refusal(made).status == 401
    assert refusal(encoded(made) + b"." + encoded(made) + b"." + encoded(made)).status == 401


@pytest.mark.parametrize("value", [b"Basic eDp5", b"", b"Digest a=b", b"bearerx y", b"Bearers x"])
def test_nothing_presented(value: bytes) -> None:
    """Another scheme is nobody's token."""
    assert presented([value]) is None
    assert presented([]) is None


@pytest.mark.parametrize("value", [b"Bearer x", b"bearer x", b"BEARER   x", b" Bearer\tx "])
def test_presented(value: bytes) -> None:
    """The scheme's name is read in any case (RFC 9110, section 11.1)."""
    assert presented([value]) == b"x"


def test_presented_badly() -> None:
    """No token where one is announced, or two headers: 401."""
    for values in ([b"Bearer"], [b"Bearer "], [b"Bearer x", b"Bearer x"], [b"Basic x", b"Bearer y"]):
        with pytest.raises(BadToken) as caught:
            presented(values)
        assert caught.value.status == 401
        assert caught.value.challenge.startswith(b"Bearer")


# On the wire


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, store=MemoryStore())


def head_of(answer: bytes, name: str) -> str:
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return next((line.partition(": ")[2] for line in lines if line.lower().startswith(f"{name}: ")), "")


def test_an_upload(server: Server) -> None:
    """A PUT with its token is stored, and served with the token's type, whatever the PUT called it."""
    assert (
        status(server.send(put_with(token("a/b.bin", 5), "a/b.bin", 5, "Content-Type: text/html") + b"hello"))
        == b"201"
    )
    answer = server.send(b"GET /upload/a/b.bin HTTP/1.1\r\nHost: a\r\n\r\n")
    assert head_of(answer, "content-type") == "image/png"
    assert status(server.send(put_with(token("a/b.bin", 5), "a/b.bin", 5) + b"hello")) == b"201"
    assert status(server.send(put_with(token("a/b.bin", 5), "a/b.bin", 5) + b"hellO")) == b"409"


@pytest.mark.parametrize(
    "name", ["grüße.png", "a b.png", "100%.png", "+.png", "'\"\\.png", "\N{GRINNING FACE}.png", ".png"]
)
def test_awkward_names(server: Server, name: str) -> None:
    """The decoded path is compared, in whatever spelling it comes."""
    assert status(server.send(put_with(token(f"a/{name}", 5), f"a/{name}", 5) + b"hello")) == b"201"
    target = "".join(f"%{byte:02x}" for byte in name.encode())
    assert status(server.send(f"GET /upload/a/{target} HTTP/1.1\r\nHost: a\r\n\r\n")) == b"200"


def test_it_counts_before_the_query(server: Server) -> None:
    """A bad token is not made good by a good signature, nor a good one bad by a bad signature."""
    query = f"?v={v('a/b.bin', 5)}"
    assert status(server.send(put_with(b"x.y.z", "a/b.bin", 5, query=query))) == b"401"
    server.connect()
    assert status(server.send(put_with(token("a/b.bin", 5), "a/b.bin", 5, query="?v=00") + b"hello")) == b"201"


def test_another_scheme(server: Server) -> None:
    """Credentials of another scheme, which a proxy may have asked for, leave the query's signature its right."""
    query = f"?v={v('a/b.bin', 5)}"
    assert status(server.send(put_with(b"eDp5", "a/b.bin", 5, query=query, scheme="Basic") + b"hello")) == b"201"


@pytest.mark.parametrize(
    ("made", "path", "size", "said", "challenge"),
    [
        (
            token("a/b.bin", 5, exp=1000),
            "a/b.bin",
            5,
            b"401",
            'Bearer error="invalid_token", error_description="the claim exp',
        ),
        (
            token("a/b.bin", 5, "wrong"),
            "a/b.bin",
            5,
            b"401",
            'Bearer error="invalid_token", error_description="the token',
        ),
        (b"", "a/b.bin", 5, b"401", "Bearer"),
        (token("a/b.bin", 5, exp=4e9), "a/c.bin", 5, b"403", 'Bearer error="insufficient_scope"'),
        (token("a/b.bin", 5, exp=4e9), "a/b.bin", 6, b"413", ""),
    ],
    ids=["expired", "wrong", "none", "path", "length"],
)
def test_refusals(server: Server, made: bytes, path: str, size: int, said: bytes, challenge: str) -> None:
    """A refusal comes before the body, without 100 Continue; it says why as RFC 6750 has it, and not the token."""
    answer = server.send(put_with(made, path, size, "Expect: 100-continue"))
    assert status(answer) == said
    assert head_of(answer, "www-authenticate").startswith(challenge)
    assert head_of(answer, "access-control-allow-origin") == "*"
    request = server.ended.pop()[0] if server.ended else server.channel.requests[0]
    assert not made or made.decode() not in str(request.error) + answer.decode("latin-1")


def test_nothing_at_all(server: Server) -> None:
    """Without a token and without a signature: 403, as ever."""
    assert status(server.send(b"PUT /upload/a/b.bin HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")) == b"403"


def test_an_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its end a file is 404 to GET and HEAD, ranges and conditions; no cache is told to keep it longer."""
    now = int(time.time())
    made = token("a/b.bin", 5, expires=now + 100)
    assert status(server.send(put_with(made, "a/b.bin", 5) + b"hello")) == b"201"
    get = "GET /upload/a/b.bin HTTP/1.1\r\nHost: a\r\n{}\r\n"
    answer = server.send(get.format(""))
    age = int(head_of(answer, "cache-control").partition("max-age=")[2].partition(",")[0])
    assert 90 < age < 100
    etag = head_of(answer, "etag")
    unchanged = server.send(get.format(f"If-None-Match: {etag}\r\n"))
    assert status(unchanged) == b"304"
    assert head_of(unchanged, "cache-control") == head_of(answer, "cache-control")
    monkeypatch.setattr(time, "time", lambda: now + 100.0)
    for more in ("", "Range: bytes=0-1\r\n", f"If-None-Match: {etag}\r\n"):
        assert status(server.send(get.format(more))) == b"404"
        assert status(server.send(get.format(more).replace("GET", "HEAD", 1))) == b"404"


def test_an_owner_by_ejabberds_path(server: Server) -> None:
    """The first segment of ejabberd's paths names the owner; no other path names any."""
    path = f"{'0a' * 20}/{'Zz9' * 13}a/photo.jpg"
    others = [
        f"{'0A' * 20}/{'Zz9' * 13}a/photo.jpg",
        f"{'0a' * 20}/short/photo.jpg",
        "a/b/c",
        f"{'0a' * 20}/photo.jpg",
    ]
    for each in (path, *others):
        target = put_target(each, 5)
        assert status(server.send(f"PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")) == b"201"
    owners = [about.owner for _, about in server.store.files.values()]
    assert owners == ["0a" * 20, None, None, None, None]
