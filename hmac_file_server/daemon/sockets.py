"""Sockets to accept clients from, where Twisted's own ways to open them fall short."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from hmac_file_server.address import UnixAddress

_BACKLOG = 1024
_PATIENCE = 5.0


def tcp_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that listen on one address; the kernel shares out the clients between them.

    :param host: an address, with its scope where it has one; ``::`` takes IPv4 as well.
    :raises OSError: if another process has it.
    """
    flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    alone = _listening(family, address, shared=False)
    if count == 1:
        return [alone]
    # It was to find out that nobody has the address: another daemon of the same user could share it, too.
    address = alone.getsockname()
    alone.close()
    return [_listening(family, address, shared=True) for _ in range(count)]


def _listening(family: int, address: tuple[object, ...], shared: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Not as the system's bindv6only has it.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        listening.bind(address)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


class UnixSocket:
    """A listening Unix socket, and its file.

    What a daemon that was killed has left there is replaced. Twisted tells that by the number of a process, which
    another one may have by now: in a container it is always 1.

    :raises OSError: if somebody listens there.
    """

    def __init__(self, address: UnixAddress) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._path = os.path.abspath(address.path)
        try:
            with _alone_in(os.path.dirname(self._path)):
                _clear(self._path)
                self.socket.bind(self._path)
                os.chmod(self._path, address.mode)
                self.socket.listen(_BACKLOG)
                self._file = os.stat(self._path)
        except BaseException:
            self.socket.close()
            raise

    def remove(self) -> None:
        """Remove the file, if it is still this socket's."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), self._file):
                os.unlink(self._path)


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Of several daemons that start at once, let one after the other look whether somebody listens."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # It is not there, or may not be read: whether a socket can be made in it is another question.
        yield
        return
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # Its file system keeps no locks.
            return
        else:
            return


def _clear(path: str) -> None:
    """Remove a socket that nobody listens on.

    :raises OSError: if somebody does, or it is no socket.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError("what is there is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
    else:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    # Twisted's lock, of an earlier version.
    if os.path.islink(path + ".lock"):
        os.unlink(path + ".lock")
