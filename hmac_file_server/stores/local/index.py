"""Which sessions each slot has, known without listing their folder, as long as no other process works in it."""

from __future__ import annotations

import fcntl
import struct
import threading
from collections.abc import Callable, Iterable

from hmac_file_server.stores.session import TAG

_LOCK = "hhqqi4x"  # struct flock of fcntl(2)


class Index:
    """The tokens of uploads that are not complete.

    :ivar is_known: whether it has all that there are, as long as no other process works there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._tokens: dict[str, set[str]] = {}
        self._added: set[str] = set()
        self.is_known = False

    def add(self, token: str) -> None:
        """A session was begun here."""
        with self._lock:
            self._added.add(token)
            self._tokens.setdefault(token[:TAG], set()).add(token)

    def drop(self, token: str) -> None:
        """It is complete, or gone."""
        with self._lock:
            self._added.discard(token)
            alike = self._tokens.get(token[:TAG], set())
            alike.discard(token)
            if not alike:
                self._tokens.pop(token[:TAG], None)

    def find(self, tag: str) -> list[str]:
        """The tokens that begin so."""
        with self._lock:
            return sorted(self._tokens.get(tag, ()))

    def renew(self, look: Callable[[], Iterable[str]], alone: bool) -> None:
        """Take in what others have done.

        :param look: lists the tokens that there are; what is added meanwhile may be missing.
        :param alone: whether no other process could add any meanwhile.
        """
        with self._renewing:
            with self._lock:
                self._added = set()
            tokens = list(look())
            with self._lock:
                self._tokens = {}
                for token in [*tokens, *self._added]:
                    self._tokens.setdefault(token[:TAG], set()).add(token)
                self.is_known = alone


def enter(folder: int) -> None:
    """Let other processes see that this one works in a folder.

    :raises OSError: if there are no locks.
    """
    fcntl.fcntl(folder, fcntl.F_OFD_SETLK, struct.pack(_LOCK, fcntl.F_RDLCK, 0, 0, 1, 0))


def is_alone(folder: int) -> bool:
    """Whether no other process works in a folder; False if nobody can tell."""
    try:
        enter(folder)
        found = fcntl.fcntl(folder, fcntl.F_OFD_GETLK, struct.pack(_LOCK, fcntl.F_WRLCK, 0, 0, 1, 0))
    except OSError:
        return False
    return bool(struct.unpack(_LOCK, found)[0] == fcntl.F_UNLCK)
