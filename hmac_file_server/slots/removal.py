"""DELETE of a file: Metronome removes what its users remove, by a token of its own."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.signature import BadSignature, SignatureVerifier, only_digest


@attrs.frozen
class Removal:
    """The right to remove: the secret that the XMPP server signs a path with, beside the one that it signs slots with.

    :param secrets: HMAC keys; any of them verifies.
    :param delete_secret: ``DeleteSecret``, in bytes.
    """

    secrets: Sequence[bytes] = attrs.field(repr=False)
    delete_secret: bytes = attrs.field(repr=False)
    _keyed: SignatureVerifier = attrs.field(init=False, repr=False)

    @_keyed.default
    def _read_keys(self) -> SignatureVerifier:
        return SignatureVerifier(self.secrets)

    def verify(self, tokens: Sequence[bytes], path: SlotPath) -> None:
        """:raises BadSignature: if none was presented, several, or one that does not hold."""
        digest = only_digest(b"token", tokens)
        if not self._keyed.signed(digest, b"%b\0%b" % (path.signed, self.delete_secret)):
            raise BadSignature("the token does not hold: Secret or DeleteSecret differs from what the XMPP server has")
