"""Signatures: the v, v2 and token parameters of a slot's PUT URL.

All are the hex digits of an HMAC-SHA256 whose key is the secret that the XMPP server shares with us.
"""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Iterator, Mapping, Sequence

import attrs

from hmac_file_server import media_types
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.slot import Slot, owner_by_path

_DIGEST_SIZE = 32

PARAMETERS = (b"v2", b"token", b"v")
"""The query parameters that hold signatures, the strongest first."""


class BadSignature(ValueError):
    """No signature, or none that holds; the text is for the operator's log."""


@attrs.frozen
class SignatureVerifier:
    """Checks signatures against one or more secrets; more while one replaces another.

    :param secrets: HMAC keys; any of them verifies.
    """

    secrets: Sequence[bytes] = attrs.field(repr=False)
    # Reading the key costs more than the rest of a signature.
    _keyed: Sequence[hmac.HMAC] = attrs.field(init=False, repr=False, eq=False)

    @_keyed.default
    def _read_keys(self) -> list[hmac.HMAC]:
        return [hmac.new(secret, digestmod="sha256") for secret in self.secrets]

    def verify(
        self,
        parameters: Mapping[bytes, Sequence[bytes]],
        path: SlotPath,
        size: int,
        content_type: bytes | None,
    ) -> Slot:
        """Find the strongest signature among the query parameters and check it.

        A weaker one is never tried after a stronger one failed.

        :param size: the request's Content-Length in bytes.
        :param content_type: the request's Content-Type header as sent, None if it has none.
        :raises BadSignature: if there is no signature, or it does not hold.
        """
        name, digest = strongest(parameters)
        if name == b"v":
            if self.signed(digest, b"%b %d" % (path.signed, size)):
                return Slot(path, size, None, owner_by_path(path))
            raise BadSignature(
                "signature does not match: the secret, the path prefix or the size differs"
                " from what the XMPP server signed"
            )
        for media_type in candidate_types(content_type, path.name):
            if self.signed(digest, b"%b\0%d\0%b" % (path.signed, size, media_type)):
                kind = media_types.parse(media_type) if media_type else b""
                return Slot(path, size, kind, owner_by_path(path))
        raise BadSignature(
            "signature does not match: the secret, the path prefix, the size or the Content-Type"
            " differs from what the XMPP server signed"
        )

    def holds(
        self,
        parameters: Mapping[bytes, Sequence[bytes]],
        path: SlotPath,
        size: int,
        content_type: bytes | None,
    ) -> bool:
        """Whether :meth:`verify` finds a slot."""
        try:
            self.verify(parameters, path, size, content_type)
        except BadSignature:
            return False
        return True

    def signed(self, digest: bytes, message: bytes) -> bool:
        """Whether a signature is of this message."""
        held = []
        for keyed in self._keyed:
            made = keyed.copy()
            made.update(message)
            held.append(hmac.compare_digest(made.digest(), digest))
        return any(held)


def strongest(parameters: Mapping[bytes, Sequence[bytes]]) -> tuple[bytes, bytes]:
    """The strongest signature among the query parameters: its name, and the 32 bytes.

    :raises BadSignature: if there is none, or it is none.
    """
    for name in PARAMETERS:
        if name in parameters:
            break
    else:
        raise BadSignature("no signature: the URL has no v, v2 or token parameter")
    return name, only_digest(name, parameters[name])


def only_digest(name: bytes, values: Sequence[bytes]) -> bytes:
    """The 32 bytes of a signature.

    :param name: of the query parameter.
    :param values: all that it has.
    :raises BadSignature: if they are not one signature.
    """
    digest = _from_hex(values[0]) if len(values) == 1 else b""
    if len(digest) != _DIGEST_SIZE:
        raise BadSignature(f"the {name.decode()} parameter is not one signature of 64 hex digits")
    return digest


def _from_hex(digits: bytes) -> bytes:
    try:
        return binascii.unhexlify(digits)
    except ValueError:
        return b""


def candidate_types(content_type: bytes | None, name: str) -> Iterator[bytes]:
    """The types that an XMPP server may have signed for a PUT with this Content-Type.

    Real clients leave the header out or send it empty, and some add parameters that they did not
    name when they asked for the slot.

    :param name: the file's, whose extension tells what a client that left the header out may have asked for.
    """
    sent = (content_type or b"").strip()
    if not sent:
        yield media_types.UNKNOWN
        yield b""
        by_extension = media_types.of_name(name)
        if by_extension != media_types.UNKNOWN:
            yield by_extension
        return
    yield sent
    bare = sent.partition(b";")[0].strip()
    if bare != sent:
        yield bare


def sign(secret: bytes, message: bytes) -> str:
    """The hex digits that an XMPP server would put into a slot's URL.

    :param message: path SP size for v; path NUL size NUL type for v2 and token.
    """
    return hmac.digest(secret, message, "sha256").hex()
