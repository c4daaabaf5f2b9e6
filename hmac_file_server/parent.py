"""A worker's parent: where its settings come from, and what it ends with."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from hmac_file_server.signals import leave_to_parent

_INPUT = 0


def receive_settings() -> bytes:
    """The line that the parent sends first. Blocks until it is there; nothing runs before."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(_INPUT, 1 << 16)
        if not more:
            raise SystemExit(os.EX_UNAVAILABLE)  # The parent has gone.
        line += more
    return line


@implementer(IReadDescriptor)
class Parent:
    """Stops this worker when its parent asks for it, or is gone."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        # When the reactor has set its own handlers.
        reactor.callWhenRunning(leave_to_parent)
        reactor.addReader(self)

    def fileno(self) -> int:
        return _INPUT

    def logPrefix(self) -> str:
        return "parent"

    def doRead(self) -> None:
        os.read(_INPUT, 1024)

    def connectionLost(self, reason: Failure) -> None:
        """The pipe from the parent is closed."""
        with contextlib.suppress(ReactorNotRunning):
            self._reactor.stop()
