"""Sockets below transports, for what the kernel can do with them alone."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from typing import Any

from twisted.internet.tcp import Connection

READ = 128 << 10
"""Bytes to read at once, at the most, between two requests: many an upload is here as a whole then."""


def has_plain_socket(transport: Any) -> bool:
    """Whether what is on its socket are the very bytes of the connection, as with TLS they are not."""
    return isinstance(transport, Connection) and not transport.TLS


def unsent(transport: Any) -> int:
    """Bytes, roughly, that were written to a transport and that the other end's system has not taken.

    :returns: 0 for what is no socket.
    """
    waiting = 0
    while not isinstance(transport, Connection):
        # TLS: what it has encrypted waits in the transport below.
        waiting += sum(map(len, getattr(transport, "_appSendBuffer", ())))
        transport = getattr(transport, "transport", None)
        if transport is None:
            return 0
    waiting += len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    try:
        queued = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ of tcp(7) and unix(7)
    except (OSError, ValueError):
        return waiting
    return waiting + int.from_bytes(queued, sys.byteorder)


def duplicate(transport: Any) -> int:
    """Another descriptor of its socket, for a thread: the transport's own number, once lost, may soon be another's.

    :raises OSError: if there are no more descriptors.
    """
    return os.dup(transport.fileno())


def unread(transport: Any) -> int:
    """Bytes that its socket has for us and that nobody has read."""
    return int.from_bytes(fcntl.ioctl(transport.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
