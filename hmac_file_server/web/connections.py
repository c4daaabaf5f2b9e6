"""Limits on what one client, and all together, can hold open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import attrs

from hmac_file_server.web.client import Peer, Proxies, one_user, speaks_for_others
from hmac_file_server.web.errors import HTTPError, unavailable


@attrs.frozen
class Limits:
    """How much, how long and how slowly.

    :param upload_timeout: seconds without a byte of a body.
    :param idle_timeout: seconds without a byte on a connection otherwise, and for all headers of a request.
    :param min_rate: bytes a second that a body or a reader keeps up over those; 0 for any.
    :param connections: at once, in all.
    :param per_address: connections from one address, or one /64 of IPv6; behind a proxy, requests that run.
    :param proxies: what is known of those in front.
    """

    upload_timeout: float = 60.0
    idle_timeout: float = 75.0
    min_rate: int = 0
    connections: int = 4096
    per_address: int = 256
    proxies: Proxies = Proxies()


@attrs.frozen
class Counts:
    """Who is there.

    :param connections: that are open.
    :param by_user: connections, and requests through proxies, by user.
    """

    connections: int = 0
    by_user: Mapping[str, int] = attrs.field(factory=dict)


class Connections:
    """Who is there: connections by user, and requests by the user that a proxy named.

    :ivar elsewhere: who is there in the other workers, as of late.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.elsewhere = Counts()
        self._connections = 0
        self._by_user: Counter[str] = Counter()

    @property
    def counts(self) -> Counts:
        """Who is there in this process."""
        return Counts(self._connections, self._by_user)

    def connected(self, peer: Peer) -> str:
        """Count a connection.

        :returns: under what, for :meth:`gone`; empty for a proxy, whose clients are counted one by one.
        :raises HTTPError: if it is one too many; it is not counted then.
        """
        connections = self._connections + self.elsewhere.connections
        if connections >= self.limits.connections:
            detail = f"too many connections: there are {connections} (MaxConnections)"
            raise unavailable("connections", "too many connections", detail, seconds=5)
        user = "" if peer.trusted else one_user(peer.address)
        self._enter(user)
        self._connections += 1
        return user

    def gone(self, user: str) -> None:
        """A connection that was counted is closed."""
        self._connections -= 1
        self.left(user)

    def renamed(self, user: str, peer: Peer) -> str:
        """Count a connection, which is there already, as another user's.

        :returns: as :meth:`connected`.
        """
        self.left(user)
        user = "" if peer.trusted else one_user(peer.address)
        if user:
            self._by_user[user] += 1
        return user

    def arrived(self, address: str) -> str:
        """Count a request that came through a proxy.

        :param address: the client that the proxy names, or its own.
        :returns: under what, for :meth:`left`; empty if the proxy does not name its clients.
        :raises HTTPError: if its client has too many already.
        """
        if speaks_for_others(address, self.limits.proxies.trusted):
            return ""
        user = one_user(address)
        self._enter(user)
        return user

    def left(self, user: str) -> None:
        """What was counted under a user is over."""
        if user:
            self._by_user[user] -= 1
            if not self._by_user[user]:
                del self._by_user[user]

    def _enter(self, user: str) -> None:
        if not user:
            return
        count = self._by_user[user] + self.elsewhere.by_user.get(user, 0)
        if count >= self.limits.per_address:
            detail = (
                f"too many at once from {user}: {count} (MaxConnectionsPerAddress);"
                " if that is a proxy's address, add it to TrustedProxies"
            )
            headers = {b"Retry-After": b"5"}
            raise HTTPError(429, "connections", "too many connections from your address", detail, headers)
        self._by_user[user] += 1
