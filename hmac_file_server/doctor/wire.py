"""Plain sockets, for what no HTTP library lets one see: interim answers, early ones, and who waits for whom.

All of it blocks, and runs in a thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Mapping

from hmac_file_server.doctor.answer import Answer
from hmac_file_server.doctor.finding import NoAnswer

_LONGEST_BODY = 1 << 20
_LONGEST_HEAD = 64 << 10
_CONNECT_SECONDS = 10.0


class Wire:
    """A connection that speaks HTTP/1.1.

    :param address: an IP address and a port.
    :param name: of the server, for TLS; empty without it.
    :param host: what stands in ``Host``.
    """

    def __init__(self, address: tuple[str, int], name: str, host: str) -> None:
        self._host = host
        self._buffer = b""
        try:
            self._socket = connect(address, name)
        except OSError as error:
            raise NoAnswer(f"no connection to {address[0]}: {error}") from None

    def begin(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        """Send a request's headers."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host}", *(f"{n}: {v}" for n, v in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode("ascii"))

    def send(self, data: bytes, seconds: float = 30.0) -> bool:
        """Send.

        :returns: whether it went: who has answered may close, and what it answered can be read all the same.
        """
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def answer(self, seconds: float) -> Answer:
        """The next answer, be it an interim one.

        :raises NoAnswer: if there is none after so many seconds.
        """
        end = time.monotonic() + seconds
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > _LONGEST_HEAD:
                raise NoAnswer("the answer's head has no end")
            self._more(end)
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        answer = _parsed(head)
        length = answer.first("content-length")
        if answer.status < 200 or answer.status in (204, 304) or not length.isdecimal():
            return answer
        size = min(int(length), _LONGEST_BODY)
        while len(self._buffer) < size:
            self._more(end)
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return Answer(answer.status, answer.headers, body)

    def answer_or_none(self, seconds: float) -> Answer | None:
        """As :meth:`answer`; None if there is none yet. An ended connection is none that will ever answer."""
        try:
            return self.answer(seconds)
        except TimeoutError:
            return None

    def final(self, seconds: float) -> Answer:
        """The next answer that is no interim one."""
        while (answer := self.answer(seconds)).status < 200:
            pass
        return answer

    def _more(self, end: float) -> None:
        left = end - time.monotonic()
        if left <= 0:
            raise Late("there was no answer in time")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            raise Late("there was no answer in time") from None
        except OSError as error:
            raise NoAnswer(f"the connection broke: {error}") from None
        if not data:
            raise NoAnswer("the connection was closed without an answer")
        self._buffer += data

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


class Late(NoAnswer, TimeoutError):
    """There is no answer yet."""


def connect(address: tuple[str, int], name: str, context: ssl.SSLContext | None = None) -> socket.socket:
    """A connection, through TLS if the server has a name.

    :param context: by default the system's.
    :raises OSError: if there is none.
    """
    plain = socket.create_connection(address, _CONNECT_SECONDS)
    if not name:
        return plain
    try:
        return (context or ssl.create_default_context()).wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def _parsed(head: bytes) -> Answer:
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
        raise NoAnswer("what came is no HTTP")
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.decode("latin-1").lower(), value.strip().decode("latin-1")))
    return Answer(int(parts[1]), headers)
