"""From a socket to a file without passing through the process."""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import closing
from pathlib import Path

from hmac_file_server.stores.local.splice import Pipe
from hmac_file_server.web.body import Loan

BODY = os.urandom(300_000)


def lent(most: int, body: bytes = BODY) -> Loan:
    """A socket with something to take; the other end is closed."""
    here, there = socket.socketpair()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    there.sendall(body)
    there.close()
    here.setblocking(False)
    return Loan(here.detach(), most, lambda source: os.close(source.descriptor))


def move(source: Loan, path: Path) -> list[bytes | bytearray]:
    """Move all that may be taken; what is left over."""
    left_over: list[bytes | bytearray] = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        with closing(Pipe()) as pipe:
            while source.left and not left_over:
                pipe.move(source, file, left_over)
    finally:
        os.close(file)
        source.give_back(source)
    return left_over


def test_no_more_than_may_be_taken(tmp_path: Path) -> None:
    """What may be taken gets into the file, byte for byte, and nothing of what follows."""
    source = lent(len(BODY) - 1)
    assert move(source, tmp_path / "a") == []
    assert (tmp_path / "a").read_bytes() == BODY[:-1]
    assert (source.taken, source.dry) == (len(BODY) - 1, False)


def test_all_there_is(tmp_path: Path) -> None:
    """When there is no more, the source says so."""
    source = lent(1 << 30)
    assert move(source, tmp_path / "a") == []
    assert (tmp_path / "a").read_bytes() == BODY
    assert source.dry


def test_what_the_file_does_not_take(tmp_path: Path) -> None:
    """What has left the socket and could not be written is left over."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        source = lent(len(BODY))
        left_over = move(source, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    there = (tmp_path / "a").read_bytes()
    assert 0 < len(there) <= 100_000
    assert there + b"".join(left_over) == BODY[: source.taken]
