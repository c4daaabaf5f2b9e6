"""Sockets below transports, for what the kernel can do with them alone."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.tcp import Connection

READ = 128 << 10
"""Bytes to read at once, at the most, between two requests: many an upload is here as a whole then."""


def has_plain_socket(transport: Any) -> bool:
    """Whether what is on its socket are the very bytes of the connection, as with TLS they are not."""
    return isinstance(transport, Connection) and not transport.TLS


def duplicate(transport: Any) -> int:
    """Another descriptor of its socket, for a thread: the transport's own number, once lost, may soon be another's.

    :raises OSError: if there are no more descriptors.
    """
    return os.dup(transport.fileno())
