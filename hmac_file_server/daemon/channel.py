"""What a worker and its parent say to each other, over one socket pair (AMP).

First the parent sends a line of settings, then nothing until the worker says that it runs.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure

from hmac_file_server.daemon.share import Share
from hmac_file_server.daemon.signals import leave_to_parent
from hmac_file_server.daemon.status import Status

_INPUT = 0
_PIECE = 32 << 10
_LONGEST_PROBLEM = 10_000


class Running(amp.Command):
    """From a worker: its reactor turns."""


class Report(amp.Command):
    """To a worker: what are your figures, and your share? Whoever answers is alive, also without memory to tell them.

    What the others have of what is bounded comes with the question.
    """

    arguments = [(b"others", amp.String())]
    response = [
        (b"figures", amp.String()),
        (b"share", amp.String()),
        (b"status", amp.String()),
        (b"problem", amp.Unicode()),
    ]


class Settings(amp.Command):
    """To a worker: a piece of new settings, which as a whole may be longer than one message."""

    arguments = [(b"piece", amp.String())]
    response: ClassVar[list[tuple[bytes, amp.Argument]]] = []


class Prepare(amp.Command):
    """To a worker: do what can fail of the settings that you were sent. The answer says what is wrong with them."""

    response = [(b"problem", amp.Unicode())]


class Settle(amp.Command):
    """To a worker: take the settings that you have prepared for, or drop them."""

    arguments = [(b"wanted", amp.Boolean())]
    response: ClassVar[list[tuple[bytes, amp.Argument]]] = []


class Stop(amp.Command):
    """To a worker: finish what runs, and end."""

    requiresAnswer = False


def receive_settings() -> bytes:
    """The line that the parent sends first. Blocks until it is there; nothing runs before."""
    line = b""
    with socket.socket(fileno=os.dup(_INPUT)) as parent:
        while not line.endswith(b"\n"):
            there = parent.recv(1 << 16, socket.MSG_PEEK)
            if not there:
                raise SystemExit(os.EX_UNAVAILABLE)  # The parent has gone.
            line += parent.recv(there.find(b"\n") + 1 or len(there))
    return line


class Parent(amp.AMP):
    """A worker's end: it stops when its parent asks for it, or is gone.

    :param prepare: does what can fail of new settings; gives what is wrong with them.
    :param settle: takes them, or drops them.
    :param report: is told the others' share; gives the figures, the own share, what runs, and why nothing gets done.
    """

    def __init__(
        self,
        reactor: Any,
        report: Callable[[Share], tuple[bytes, Share, Status, str]],
        prepare: Callable[[bytes], Coroutine[Any, Any, str]],
        settle: Callable[[bool], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._report = report
        self._prepare, self._settle = prepare, settle
        self._pieces: list[bytes] = []

    @classmethod
    def attend(
        cls,
        reactor: Any,
        report: Callable[[Share], tuple[bytes, Share, Status, str]],
        prepare: Callable[[bytes], Coroutine[Any, Any, str]],
        settle: Callable[[bool], Coroutine[Any, Any, None]],
    ) -> None:
        """Listen to the parent."""
        # When the reactor has set its own handlers.
        reactor.callWhenRunning(leave_to_parent)
        reactor.callWhenRunning(adopt, reactor, _INPUT, cls(reactor, report, prepare, settle))

    def connectionMade(self) -> None:
        super().connectionMade()
        self.callRemote(Running).addErrback(lambda failure: None)

    @Report.responder
    def _told_to_report(self, others: bytes) -> dict[str, bytes | str]:
        try:
            figures, share, status, problem = self._report(Share.decode(others))
            return {"figures": figures, "share": share.encode(), "status": status.encode(), "problem": problem}
        except MemoryError:  # AMP would end the conversation, and with it the worker.
            return {"figures": b"", "share": b"", "status": b"", "problem": ""}

    @Settings.responder
    def _told_settings(self, piece: bytes) -> dict[str, object]:
        self._pieces.append(piece)
        return {}

    @Prepare.responder
    def _told_to_prepare(self) -> Deferred[dict[str, str]]:
        settings, self._pieces = b"".join(self._pieces), []
        prepared = Deferred.fromCoroutine(self._prepare(settings))
        return prepared.addCallback(lambda problem: {"problem": problem[:_LONGEST_PROBLEM]})

    @Settle.responder
    def _told_to_settle(self, wanted: bool) -> Deferred[dict[str, object]]:
        return Deferred.fromCoroutine(self._settle(wanted)).addCallback(lambda _: {})

    @Stop.responder
    def _told_to_stop(self) -> dict[str, object]:
        self._stop()
        return {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._stop()

    def _stop(self) -> None:
        with contextlib.suppress(ReactorNotRunning):
            self._reactor.stop()


class Child(amp.AMP):
    """The parent's end.

    :param runs: called when the worker runs.
    """

    transport: Any

    def __init__(self, runs: Callable[[], None]) -> None:
        super().__init__()
        self._runs = runs

    @Running.responder
    def _told_that_it_runs(self) -> dict[str, object]:
        self._runs()
        return {}


def send_settings(child: Child, settings: bytes) -> Deferred[str]:
    """Have a worker prepare for new settings; fires with what is wrong with them, and fails if it is gone."""
    for at in range(0, len(settings), _PIECE):
        child.callRemote(Settings, piece=settings[at : at + _PIECE]).addErrback(lambda failure: None)
    asked: Deferred[dict[str, str]] = child.callRemote(Prepare)
    return asked.addCallback(lambda answer: answer["problem"])


def adopt(reactor: Any, descriptor: int, protocol: amp.AMP) -> None:
    """Let a protocol have a connected socket, of which the caller keeps its own descriptor."""
    factory = Factory.forProtocol(lambda: protocol)
    factory.noisy = False
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, factory)
