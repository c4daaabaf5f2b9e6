"""The body of a request on its way in: how fast it is read, and whether its client still sends."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer
from zope.interface import Attribute, implementer

from hmac_file_server.web.pace import of_body
from hmac_file_server.web.sockets import READ, duplicate, has_plain_socket, unread

if TYPE_CHECKING:
    from hmac_file_server.web.request import Request

_LARGE_READ = 1 << 20
_LOAN, _SMALLEST_LOAN = 4 << 20, 64 << 10
_HANGUP_CHECK = 1.0


class Broken(Exception):
    """The client went away before the body was complete."""


@attrs.define(eq=False)
class Loan:
    """A socket that somebody else may take bytes from while nobody reads it here.

    :param descriptor: the socket's, which does not block.
    :param most: bytes to take at the most.
    :param give_back: ends the loan; for the thread that lent it.
    :ivar taken: bytes that were.
    :ivar dry: whether there was nothing more for the moment.
    """

    descriptor: int
    most: int
    give_back: Callable[[Loan], None]
    taken: int = 0
    dry: bool = False

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return 0 if self.dry else self.most - self.taken


class ILender(IPushProducer):
    """A push producer whose bytes can be taken straight from its socket."""

    def lend() -> Loan | None:
        """Lend the socket. Nobody else reads it until it is given back.

        :returns: None where that can not be, or would not pay.
        """

    def watch(ready: Callable[[], None]) -> None:  # noqa: N805  # interfaces have no self
        """Resume, but read nothing.

        :param ready: told once, when there is something to read.
        """


class IBodyConsumer(IConsumer):
    """Takes the body of a request. ``unregisterProducer`` says that all of it has come."""

    done: Deferred[None] = Attribute("fires when all has been done with the body, or fails with why it was not")
    share: int = Attribute("bytes that it should be given at once, at the most, as things are")
    begins_early: bool = Attribute("whether it must begin before the first byte has come")

    def begin() -> Deferred[None]:
        """Get ready for the first byte; ``done`` fails if that can not be."""

    def abandon(reason: Exception | None = None) -> None:  # noqa: N805
        """The rest will never come.

        :param reason: :exc:`Broken` by default.
        """


@implementer(ILender)
class IncomingBody:
    """The body of a request as a push producer: pausing it stops reading from the client.

    While it is paused the reactor would not notice that the client leaves, so the socket is asked now
    and then. (What the client sent before it left must have fitted the kernel's buffer to be seen. If that
    is all that was to come, it is waited for.)

    :param large: whether the body is, and worth large reads.
    :ivar ended: whether no more of it is wanted or to come.
    """

    def __init__(self, request: Request, large: bool) -> None:
        self._request = request
        self._channel = channel = request.channel
        self._transport: Any = channel.transport
        self._paused = False
        self._limits = channel.site.limits
        self._most = _LARGE_READ if large else READ
        self._pace = of_body(request, channel.timeoutConnection)
        self._pace.go()
        self._check: IDelayedCall | None = None
        self._loan: Loan | None = None
        self.ended = False

    def pauseProducing(self) -> None:
        self._paused = True
        self._pace.pause()
        self._transport.pauseProducing()
        self._channel.setTimeout(None)
        self._check_later()

    def resumeProducing(self) -> None:
        self._stop_check()
        self._paused = False
        if not self.ended:
            self._pace.go()
            self._channel.setTimeout(self._limits.upload_timeout)
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        self._transport.loseConnection()

    def lend(self) -> Loan | None:
        # The last byte comes the usual way, with all that follows from it.
        most = min(self._channel.body_left - 1, _LOAN)
        if self.ended or most < _SMALLEST_LOAN or not has_plain_socket(self._transport):
            return None
        try:
            descriptor = duplicate(self._transport)
        except OSError:
            return None
        # The channel, too, may resume the transport.
        self._transport.doRead = self._transport.pauseProducing
        self._loan = Loan(descriptor, most, self._given_back)
        return self._loan

    def _given_back(self, source: Loan) -> None:
        self._loan = None
        os.close(source.descriptor)
        vars(self._transport).pop("doRead", None)
        self._request.body_received += source.taken
        self._channel.body_taken(source.taken)

    def watch(self, ready: Callable[[], None]) -> None:
        def readable() -> None:
            del self._transport.doRead
            ready()

        self._transport.doRead = readable
        self.resumeProducing()

    def end(self, lost: bool = False) -> None:
        """No more of the body is wanted or to come."""
        self.ended = True
        self._stop_check()
        self._pace.end()
        if not lost:
            self._transport.bufferSize = READ
            vars(self._transport).pop("doRead", None)
            if self._paused:
                self.resumeProducing()

    def size_reads(self, share: int) -> None:
        """Read much at once, for that decides how much CPU a large body costs.

        :param share: bytes that may be in hand.
        """
        self._transport.bufferSize = min(self._most, share)

    def _check_later(self) -> None:
        if self._check is None and hasattr(self._transport, "fileno"):
            self._check = self._channel.site.reactor.callLater(_HANGUP_CHECK, self._look_for_hangup)

    def _stop_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _look_for_hangup(self) -> None:
        self._check = None
        poll = select.poll()
        poll.register(self._transport.fileno(), select.POLLRDHUP)
        found = poll.poll(0)
        # POLLHUP says nothing more: a Unix socket has it at an orderly end, with all that was sent still to be read.
        if found and (found[0][1] & select.POLLERR or not self._rest_is_here()):
            self._transport.abortConnection()
        else:
            self._check_later()

    def _rest_is_here(self) -> bool:
        """Whether a client that has left had sent all before."""
        taken = 0 if self._loan is None else self._loan.taken
        return unread(self._transport) >= self._channel.body_left - taken
