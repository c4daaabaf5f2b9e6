from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmac_file_server.slots.path import slot_path
from hmac_file_server.slots.signature import BadSignature, SignatureVerifier, sign
from hmac_file_server.slots.slot import Slot
from tests import support

SECRET = "orbit7-shadow23-breeze91-echo17"
"""The contract's."""

NAME = b"b7f2c9e0-5d3a-4c11-9a57-0f2d6a1b8c44/photo.jpg"
PATH = slot_path(NAME.split(b"/"))
SIZE = 1048576
VERIFIER = SignatureVerifier([SECRET.encode()])

# Made by other implementations: see the contract.
V = b"ed6988dfde2293db2d8f60a4f540b14452298aadb7eb04daec431beef6f3c2e3"
V2_JPEG = b"31dd434bc9dcd3bfd5d4798cbef8dda6d86502fcad2bdc224140e9fb9403cfb6"
V2_OCTETS = b"35554e871c49db8b12f7d68d37ff50efc442580cbdca1112c2d60b6931825797"
V_SIZE_MINUS_1 = b"8b712a6a1f7b1f3170588172a776bb3b4e70078792a5eff331cdf4a40880f046"
V_PATH_ALONE = b"2599e21c0167967b9e1264bdd12dbe624cd0f501a15e138cf50197c797a3bcac"
DELETE = "d6d0cdc56476cfb62f309a76975ae0ac035b30a5fbc6db19ed2836fb0094e775"


def verify(parameters: dict[bytes, bytes], content_type: bytes | None = None, size: int = SIZE) -> Slot:
    return VERIFIER.verify({name: [value] for name, value in parameters.items()}, PATH, size, content_type)


@pytest.mark.parametrize(
    ("name", "value", "content_type", "media_type"),
    [
        (b"v", V, None, None),
        (b"v", V, b"text/html", None),
        (b"v", V.upper(), None, None),
        (b"v2", V2_JPEG, b"image/jpeg", b"image/jpeg"),
        (b"token", V2_JPEG, b"image/jpeg", b"image/jpeg"),
        (b"v2", V2_JPEG.upper(), b"image/jpeg", b"image/jpeg"),
        (b"v2", V2_OCTETS, b"application/octet-stream", b"application/octet-stream"),
        (b"v2", V2_OCTETS, None, b"application/octet-stream"),
        (b"token", V2_OCTETS, b"", b"application/octet-stream"),
    ],
)
def test_accepts_what_the_servers_sign(
    name: bytes, value: bytes, content_type: bytes | None, media_type: bytes | None
) -> None:
    """Signatures of real XMPP servers hold, in either case, and vouch for the path, the size and the type."""
    assert verify({name: value}, content_type) == Slot(PATH, SIZE, media_type)


def test_signs_deletion_as_metronome_does() -> None:
    """The bytes that are signed are the path as it is, with a NUL and no prefix."""
    assert sign(SECRET.encode(), NAME + b"\0delete-secret-example") == DELETE


@pytest.mark.parametrize("size", [0, 1, SIZE, 10**15])
@pytest.mark.parametrize("value", [V_SIZE_MINUS_1, V_PATH_ALONE], ids=["size -1", "path alone"])
@pytest.mark.parametrize("name", [b"v", b"v2", b"token"])
def test_refuses_signatures_of_unlimited_uploads(name: bytes, value: bytes, size: int) -> None:
    """A signature over size -1, or over the path alone, lets nobody upload anything."""
    with pytest.raises(BadSignature, match=r"^signature does not match: the secret, the path prefix"):
        verify({name: value}, None, size)


@pytest.mark.parametrize(
    ("signed", "sent", "kept"),
    [
        ("text/plain; charset=utf-8", b"text/plain; charset=utf-8", b"text/plain; charset=utf-8"),
        ("text/plain", b"text/plain; charset=utf-8", b"text/plain"),
        ("text/plain", b" text/plain ;charset=utf-8", b"text/plain"),
        ("application/octet-stream", b"  ", b"application/octet-stream"),
        ("", None, b""),
        ("", b"", b""),
        ("image/jpeg", None, b"image/jpeg"),
        ("image/jpeg", b"", b"image/jpeg"),
        ("IMAGE/JPEG; a=b", b"IMAGE/JPEG; a=b", b"image/jpeg"),
        ("Text/Plain;charset=UTF-8", b"Text/Plain;charset=UTF-8", b"text/plain; charset=utf-8"),
        ("image/png;,text/html", b"image/png;,text/html", b"application/octet-stream"),
        ("nonsense", b"nonsense", b"application/octet-stream"),
    ],
)
def test_type_is_found_in_what_clients_send(signed: str, sent: bytes | None, kept: bytes) -> None:
    """A client that adds parameters to its Content-Type, or leaves it out, can use its slot all the same.

    Of what was signed, only what everybody reads alike is kept.
    """
    assert verify({b"v2": support.v2(NAME, SIZE, signed, SECRET).encode()}, sent).media_type == kept


@pytest.mark.parametrize(
    ("signed", "sent"),
    [
        ("image/png", None),
        ("image/png", b""),
        ("image/*", None),
        ("image/jpeg", b"image/png"),
        ("image/jpeg", b"IMAGE/JPEG"),
        ("text/plain; charset=utf-8", b"text/plain"),
        ("application/octet-stream", b"image/jpeg"),
        ("", b"image/jpeg"),
    ],
)
def test_type_is_never_guessed(signed: str, sent: bytes | None) -> None:
    """A type that the client did not send holds only where it is that of the extension, and was signed."""
    with pytest.raises(BadSignature) as raised:
        verify({b"token": support.v2(NAME, SIZE, signed, SECRET).encode()}, sent)
    assert str(raised.value) == (
        "signature does not match: the secret, the path prefix, the size or the Content-Type"
        " differs from what the XMPP server signed"
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {b"v2": b"0" * 64, b"v": V},
        {b"token": b"0" * 64, b"v": V},
        {b"v2": b"0" * 64, b"token": V2_JPEG},
        {b"v2": b"", b"v": V},
    ],
)
def test_never_falls_back_to_a_weaker_signature(parameters: dict[bytes, bytes]) -> None:
    """A stronger signature that fails is not made good by a weaker one that holds."""
    with pytest.raises(BadSignature):
        verify(parameters, b"image/jpeg")


@pytest.mark.parametrize("weaker", [b"token", b"v"])
def test_strongest_signature_counts(weaker: bytes) -> None:
    """A wrong weaker signature does no harm beside a stronger one that holds."""
    assert verify({b"v2": V2_JPEG, weaker: b"junk"}, b"image/jpeg").media_type == b"image/jpeg"


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_size_is_signed(size: int) -> None:
    """A slot takes a file of the size that was asked for, and of no other."""
    with pytest.raises(BadSignature) as raised:
        verify({b"v": V}, size=size)
    assert str(raised.value) == (
        "signature does not match: the secret, the path prefix or the size differs from what the XMPP server signed"
    )


@pytest.mark.parametrize("path", [b"upload/" + NAME, NAME + b".html", NAME.replace(b"b7", b"B7")])
def test_path_is_signed(path: bytes) -> None:
    """A slot's signature opens no other path."""
    with pytest.raises(BadSignature):
        VERIFIER.verify({b"v": [V]}, slot_path(path.split(b"/")), SIZE, None)


@pytest.mark.parametrize(
    "value",
    [b"", V[:-1], V + b"0", V + b"\n", b" " + V[1:], V[:-1] + b"g", b"0x" + V[2:], V[:-2] + "²".encode(), V * 2],
)
def test_refuses_what_is_no_hex(value: bytes) -> None:
    """A parameter that is not exactly 64 hex digits is refused with words that say so."""
    with pytest.raises(BadSignature) as raised:
        verify({b"v": value})
    assert str(raised.value) == "the v parameter is not one signature of 64 hex digits"


def test_refuses_a_repeated_parameter() -> None:
    """Two signatures of one kind are refused, whichever of them holds."""
    with pytest.raises(BadSignature, match=r"^the v parameter is not one signature of 64 hex digits$"):
        VERIFIER.verify({b"v": [V, V]}, PATH, SIZE, None)


@pytest.mark.parametrize("parameters", [{}, {b"V": V}, {b"v3": V}, {b"": V}])
def test_refuses_without_a_signature(parameters: dict[bytes, bytes]) -> None:
    """A URL without a signature is refused with the names of the parameters that are looked for."""
    with pytest.raises(BadSignature, match=r"^no signature: the URL has no v, v2 or token parameter$"):
        verify(parameters)


def test_any_of_several_secrets_verifies() -> None:
    """While one secret replaces another, slots signed with either work, and with a third do not."""
    verifier = SignatureVerifier([b"new", "älter".encode()])
    for secret in ("new", "älter"):
        assert verifier.verify({b"v": [support.v(NAME, 5, secret).encode()]}, PATH, 5, None).size == 5
    with pytest.raises(BadSignature):
        verifier.verify({b"v": [support.v(NAME, 5, "third").encode()]}, PATH, 5, None)


def test_secret_is_not_shown() -> None:
    """A verifier that ends up in a log or a traceback does not show its secret."""
    assert SECRET not in repr(VERIFIER)


@given(
    st.dictionaries(st.sampled_from([b"v", b"v2", b"token"]), st.lists(st.binary(max_size=70), max_size=3)),
    st.none() | st.binary(max_size=40),
)
def test_refuses_junk_without_an_accident(parameters: dict[bytes, list[bytes]], content_type: bytes | None) -> None:
    """Whatever a stranger puts into the URL and the Content-Type ends as a refusal."""
    with pytest.raises(BadSignature):
        VERIFIER.verify(parameters, PATH, SIZE, content_type)
