"""What one worker of several has of what is bounded for all of them together."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

import attrs

_MOST_USERS = 1000


@attrs.frozen
class Share:
    """So much is in use.

    :param connections: that are open.
    :param by_user: connections, and requests through proxies, by user: of those who have most.
    :param claimed: bytes of the store's free space that running uploads have still to take.
    """

    connections: int = 0
    by_user: Mapping[str, int] = attrs.field(factory=dict)
    claimed: int = 0

    def encode(self) -> bytes:
        """For another process; at most some 20 KiB."""
        users = dict(Counter(self.by_user).most_common(_MOST_USERS))
        return zlib.compress(json.dumps([self.connections, users, self.claimed]).encode("ascii"))

    @classmethod
    def decode(cls, data: bytes) -> Share:
        """What :meth:`encode` has made."""
        return cls(*json.loads(zlib.decompress(data)))

    @classmethod
    def together(cls, shares: Iterable[Share]) -> Share:
        """What several have."""
        users: Counter[str] = Counter()
        connections = claimed = 0
        for share in shares:
            users.update(share.by_user)
            connections += share.connections
            claimed += share.claimed
        return cls(connections, users, claimed)


NOTHING = Share()
