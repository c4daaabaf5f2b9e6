from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock

from hmac_file_server.address import UnixAddress, listen_at
from hmac_file_server.daemon.listener import SharedListener
from hmac_file_server.daemon.sockets import UnixSocket


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that keeps no locks can hold a socket all the same."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    UnixSocket(UnixAddress(str(tmp_path / "http.sock"))).socket.close()
    assert (tmp_path / "http.sock").is_socket()


class NoDescriptors(MemoryReactorClock):
    """A reactor in a process that may open nothing more."""

    def adoptStreamPort(self, *_: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("endpoint", ["127.0.0.1:0", "haproxy:tcp:0:interface=127.0.0.1"])
def test_a_socket_that_can_not_be_taken(endpoint: str) -> None:
    """A socket that can not be accepted from ends the start; the daemon does not run on without one."""
    opened = socket.create_server(("127.0.0.1", 0))
    listener = SharedListener(opened.detach(), listen_at(endpoint), Factory(), NoDescriptors())
    with pytest.raises(OSError, match="Too many open files"):
        listener.startService()
