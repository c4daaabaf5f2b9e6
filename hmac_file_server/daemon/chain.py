"""The certificates between a server's own and one that clients know."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from hmac_file_server.address import Listen

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@contextlib.contextmanager
def chain(listen: Listen) -> Iterator[str]:
    """What to add to an ``ssl:`` endpoint so that all certificates of its file are sent; Twisted sends the first one.

    A file as Let's Encrypt's ``fullchain.pem`` has them one after the other, the server's own first.

    :raises OSError: if the file can not be read.
    """
    given = listen.arguments
    if listen.kind != "ssl" or "extraCertChain" in given:
        yield ""
        return
    with open(given.get("certKey") or given.get("privateKey", "server.pem"), "rb") as file:
        _, *others = _CERTIFICATE.findall(file.read()) or [b""]
    if not others:
        yield ""
        return
    # Twisted takes them from a file only; this one has no name, and lasts until it is read.
    descriptor = os.memfd_create("chain")
    try:
        os.write(descriptor, b"\n".join(others).replace(b"\r\n", b"\n") + b"\n")
        yield f":extraCertChain=/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
