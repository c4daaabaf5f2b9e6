"""Signals: which of them stop the daemon, and which do not."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

_log = Logger()

_STOP = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT}
_OURS = _STOP | {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


def decide(reactor: Any, reopen: Callable[[], None], reload: Callable[[], None]) -> None:
    """Decide what each signal means, but for SIGINT and SIGTERM, which the reactor stops for.

    What was ignored when the daemon was started stays so: nohup and shells rely on it.

    :param reopen: opens the log anew.
    :param reload: reads the configuration again.
    """

    def told_to_reopen() -> None:
        _log.info("the log is opened anew")
        reopen()

    def told_to_reload() -> None:
        told_to_reopen()
        reload()

    def told_to_stop() -> None:
        _log.info("Received SIGQUIT, shutting down.")
        with contextlib.suppress(ReactorNotRunning):
            reactor.stop()

    _handle(signal.SIGUSR1, lambda *_: reactor.callFromThread(told_to_reopen))
    _handle(signal.SIGHUP, lambda *_: reactor.callFromThread(told_to_reload))
    _handle(signal.SIGQUIT, lambda *_: reactor.callFromThread(told_to_stop))
    # Nobody has a use for it; it would end the daemon.
    _handle(signal.SIGUSR2, signal.SIG_IGN)
    # Whoever started us may have ignored it, which is inherited, and would hide that a worker has ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS | {signal.SIGCHLD})


def _handle(number: int, handler: Any) -> None:
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)


def ignore_stopping() -> None:
    """The daemon is stopping already: being told so once more changes nothing."""
    for number in _STOP:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """For starting a worker: it can not be ended by a signal to all processes before :func:`leave_to_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """What a terminal or a service manager sends to all processes is for the parent of this worker to decide about."""
    for number in _OURS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
