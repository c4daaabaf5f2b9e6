"""What one worker of several has of what is bounded for all of them together."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable

import attrs

from hmac_file_server.web.connections import Counts

_MOST_USERS = 1000


@attrs.frozen
class Share:
    """So much is in use.

    :param counts: who is there.
    :param claimed: bytes of the store's free space that running uploads have still to take.
    """

    counts: Counts = Counts()
    claimed: int = 0

    def encode(self) -> bytes:
        """For another process, of the users those who have most; at most some 20 KiB."""
        users = dict(Counter(self.counts.by_user).most_common(_MOST_USERS))
        return zlib.compress(json.dumps([self.counts.connections, users, self.claimed]).encode("ascii"))

    @classmethod
    def decode(cls, data: bytes) -> Share:
        """What :meth:`encode` has made."""
        connections, users, claimed = json.loads(zlib.decompress(data))
        return cls(Counts(connections, users), claimed)

    @classmethod
    def together(cls, shares: Iterable[Share]) -> Share:
        """What several have."""
        users: Counter[str] = Counter()
        connections = claimed = 0
        for share in shares:
            users.update(share.counts.by_user)
            connections += share.counts.connections
            claimed += share.claimed
        return cls(Counts(connections, users), claimed)


NOTHING = Share()
