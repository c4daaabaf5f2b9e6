"""The file site: its connections, its limits, and how it drains when the daemon stops."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web import server
from twisted.web.resource import IResource

from hmac_file_server.web.channel import Channel
from hmac_file_server.web.connections import Connections, Limits
from hmac_file_server.web.errors import HTTPError, unavailable
from hmac_file_server.web.hints import Hints
from hmac_file_server.web.request import Request

Ended = Callable[[Request, bool, bool], None]
"""Told of each request when it is over: the request, whether it timed out, whether it was cut off."""

TurnedAway = Callable[[str, HTTPError], None]
"""Told of each connection that is refused: the address, and what it was told."""


class Site(server.Site):
    """Serves a Resource tree whose leaves decide at the end of the headers.

    :param clock: for all timeouts.
    :param limits: what clients may hold open.
    :param ended: told of each request when it is over.
    :param turned_away: told of each connection that is refused.
    :param hints: tells the operator what does not fit in front of it.

    :ivar draining: whether the daemon is about to stop and takes no new requests.
    """

    protocol = Channel  # type: ignore[assignment]  # HTTP/2 never takes the channel's place
    requestFactory = Request
    noisy = False

    def __init__(
        self,
        resource: IResource,
        clock: IReactorTime,
        limits: Limits,
        ended: Ended,
        turned_away: TurnedAway = lambda address, error: None,
        hints: Hints | None = None,
    ) -> None:
        super().__init__(resource, timeout=limits.idle_timeout, reactor=clock, parsePOSTFormSubmission=False)
        self.limits = limits
        self.connections = Connections(limits)
        self.draining = False
        self._ended = ended
        self.turned_away = turned_away
        self.hints = hints or Hints()
        self._channels: set[Channel] = set()
        self._drained: Deferred[None] | None = None

    def configure(self, resource: IResource, limits: Limits, hints: Hints) -> None:
        """Do as these say from the next request on. What runs is not touched."""
        has_other_proxies = limits.proxies != self.limits.proxies
        self.resource, self.limits, self.hints = resource, limits, hints
        self.connections.limits = limits
        self.timeOut = limits.idle_timeout
        if has_other_proxies:
            for channel in self._channels:
                channel.meet_again()

    @property
    def requests(self) -> set[Request]:
        """Those that run."""
        return {request for channel in self._channels for request in channel.requests}

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: HTTP/2 is the proxy's to speak."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Nothing to start: there is no access log of twisted.web's."""

    def stopFactory(self) -> None:
        """Nothing to stop; :meth:`drain` and :meth:`abort` end the connections."""

    def log(self, request: Request) -> None:  # type: ignore[override]  # all requests are ours
        """Take note that a request was answered whole."""
        self._ended(request, request.channel.timed_out, False)

    def ended(self, request: Request, timed_out: bool, cut: bool) -> None:
        """Take note that a request's connection was lost before it was over.

        :param cut: whether the answer, too, was cut off.
        """
        self._ended(request, timed_out, cut)

    def check_open(self) -> None:
        """:raises HTTPError: when no new request is served any more."""
        if self.draining:
            raise unavailable("draining", "the server is about to stop", seconds=10)

    def opened(self, channel: Channel) -> None:
        """Take note of a new connection."""
        self._channels.add(channel)

    def closed(self, channel: Channel) -> None:
        """Take note that a connection is gone."""
        self._channels.discard(channel)
        if self._drained is not None and not self._channels:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def drain(self) -> Deferred[None]:
        """Finish what is running and take nothing new; fires when no connection is left."""
        self.draining = True
        drained: Deferred[None] = Deferred()
        self._drained = drained
        for channel in list(self._channels):
            if channel.idle:
                channel.loseConnection()
        if not self._channels:
            self._drained = None
            drained.callback(None)
        return drained

    def abort(self) -> None:
        """Cut all connections."""
        for channel in list(self._channels):
            channel.transport.abortConnection()
