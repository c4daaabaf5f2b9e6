"""A real proxy in front of the daemon, started with its file in contrib, and clients that speak to it over TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from tests.neighbours.program import Program, certificate
from tests.support import DEADLINE, Answer, Daemon, Wire, free_port

NAME = "upload.example.com"


class Proxy:
    """A proxy on TLS.

    :param changes: to the file in contrib.
    :cvar unix: how the proxy writes a Unix socket, before its path.
    :cvar command: what it is started by.
    :cvar early: the protocols in which a refusal gets through before the body.
    """

    command = ""
    unix = "unix:"
    early: tuple[str, ...] = ("HTTP/1.1", "HTTP/2")

    def __init__(self, folder: Path, daemon: Daemon, *changes: tuple[str, str]) -> None:
        self.folder = folder
        self.changes = changes
        self.port = free_port()
        self.certificate, self.key = certificate(folder, NAME)
        self.program = Program(folder, self.prepare(self.backend(daemon)), self.environment).listens(self.port)

    @property
    def environment(self) -> dict[str, str]:
        """What is added to the program's environment."""
        return {}

    def backend(self, daemon: Daemon) -> str:
        """Where the daemon listens, as the proxy writes it."""
        return f"{self.unix}{daemon.socket}" if daemon.socket else f"127.0.0.1:{daemon.port}"

    def prepare(self, backend: str) -> list[str | Path]:
        """Write its configuration.

        :returns: the command that starts it.
        """
        raise NotImplementedError

    def wire(self, source: str = "127.0.0.1") -> Http1:
        """A connection that speaks HTTP/1.1.

        :param source: the client's own address.
        """
        return Http1(self.port, self.certificate, source)

    def http2(self, source: str = "127.0.0.1") -> Http2:
        """A connection that speaks HTTP/2."""
        return Http2(self.port, self.certificate, source)


def _connect(port: int, authority: Path, source: str, protocol: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols([protocol])
    plain = socket.create_connection(("127.0.0.1", port), DEADLINE, (source, 0))
    secure = context.wrap_socket(plain, server_hostname=NAME)
    assert secure.selected_alpn_protocol() in (protocol, None)
    return secure


class Http1(Wire):
    """A connection that speaks HTTP/1.1 through TLS.

    :ivar interims: what came before the last final answer.
    """

    def __init__(self, port: int, authority: Path, source: str) -> None:
        self.socket = _connect(port, authority, source, "http/1.1")
        self._buffer = bytearray()
        self.interims: list[Answer] = []
        self._method = ""

    def begin(self, method: str, target: str, size: int | None = None, **headers: str) -> None:
        """Send a request's headers.

        :param size: of its body; None if it has none.
        :param headers: their names written with underscores.
        """
        self._method = method
        lines = [f"{method} {target} HTTP/1.1", f"Host: {NAME}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if size is not None:
            lines.append(f"Content-Length: {size}")
        self.send("\r\n".join([*lines, "", ""]).encode())

    def send(self, data: bytes) -> Http1:
        # Who has answered may close: its answer can be read all the same.
        with contextlib.suppress(OSError):
            super().send(data)
        return self

    def final(self, head: bool = False) -> Answer:
        self.interims = []
        while (answer := self.answer(head or self._method == "HEAD")).status < 200:
            self.interims.append(answer)
        return answer


class Http2:
    """A connection that speaks HTTP/2, with one request at a time. As :class:`Http1`."""

    def __init__(self, port: int, authority: Path, source: str) -> None:
        self.socket = _connect(port, authority, source, "h2")
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="latin-1"))
        self._h2.initiate_connection()
        self._flush()
        self.interims: list[Answer] = []

    def begin(self, method: str, target: str, size: int | None = None, **headers: str) -> None:
        self.interims, self._answer, self._ended, self._left = [], None, False, size or 0
        self._stream = self._h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":authority", NAME), (":path", target)]
        fields += [(name.replace("_", "-").lower(), value) for name, value in headers.items()]
        if size is not None:
            fields.append(("content-length", str(size)))
        self._h2.send_headers(self._stream, fields, end_stream=not size)
        self._flush()

    def send(self, data: bytes) -> Http2:
        """Send of the body, unless the answer has come already."""
        while data and not self._ended:
            size = min(self._h2.local_flow_control_window(self._stream), self._h2.max_outbound_frame_size, len(data))
            if size <= 0:
                self._read()
                continue
            self._left -= size
            self._h2.send_data(self._stream, data[:size], end_stream=not self._left)
            data = data[size:]
            self._flush()
        return self

    def interim(self) -> Answer:
        """Read until an interim answer has come."""
        while not self.interims:
            assert not self._ended
            self._read()
        return self.interims[0]

    def final(self) -> Answer:
        while not self._ended:
            self._read()
        assert self._answer is not None, "the stream was reset without an answer"
        return self._answer

    def _flush(self) -> None:
        self.socket.sendall(self._h2.data_to_send())

    def _read(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError("the connection ended")
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.InformationalResponseReceived):
                self.interims.append(_answer(event.headers))
            elif isinstance(event, h2.events.ResponseReceived):
                self._answer = _answer(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                assert self._answer is not None
                self._answer.body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                self._ended = True
        self._flush()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(headers: list[tuple[str, str]]) -> Answer:
    (_, status), *fields = headers
    return Answer("\r\n".join([f"HTTP/2 {status}", *(f"{name}: {value}" for name, value in fields)]).encode(), b"")
