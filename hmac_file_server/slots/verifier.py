"""The right to upload: whatever an XMPP server gives a client to show, checked in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import attrs

from hmac_file_server.slots.bearer import BadToken, TokenVerifier, presented
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.signature import BadSignature, SignatureVerifier
from hmac_file_server.slots.slot import Slot


@attrs.frozen
class Presented:
    """What a request shows.

    :param parameters: of its query.
    :param content_type: its Content-Type header as sent, None if it has none.
    :param authorization: its Authorization headers as sent.
    """

    parameters: Mapping[bytes, Sequence[bytes]] = attrs.field(repr=False)
    content_type: bytes | None = None
    authorization: Sequence[bytes] = attrs.field(default=(), repr=False)


class Verifier:
    """Checks what was presented against one or more secrets; more while one replaces another.

    :param secrets: HMAC keys; any of them verifies.
    :param now: tells seconds since 1970.
    :ivar signatures: checks what stands in the query.
    """

    def __init__(self, secrets: Sequence[bytes], now: Callable[[], float] = time.time) -> None:
        self.signatures = SignatureVerifier(secrets)
        self._tokens = TokenVerifier(secrets, now)

    def verify(self, shown: Presented, path: SlotPath, size: int) -> Slot:
        """The slot that was vouched for. A bearer token counts before all query parameters.

        :param size: of the file in bytes.
        :raises BadToken: if a token was presented, and gives no right.
        :raises BadSignature: if there is no signature, or it does not hold.
        """
        token = presented(shown.authorization) if shown.authorization else None
        if token is not None:
            return self._tokens.verify(token, path, size)
        return self.signatures.verify(shown.parameters, path, size, shown.content_type)

    def holds(self, shown: Presented, path: SlotPath, size: int) -> bool:
        """Whether :meth:`verify` finds a slot."""
        try:
            self.verify(shown, path, size)
        except (BadSignature, BadToken):
            return False
        return True
