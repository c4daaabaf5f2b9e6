"""The transfer of one file to its slot: tried again as a client should, and resumed where the server can."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO
from urllib.parse import urljoin

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionLost, DNSLookupError
from twisted.internet.protocol import Protocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.web.client import (
    Agent,
    FileBodyProducer,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from hmac_file_server import __version__
from hmac_file_server.log import printable
from hmac_file_server.slots.issue import Issued

TRIES = 6
_AGENT = f"hmac-file-server/{__version__}"
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0
_CONNECT_SECONDS = 20.0
_STALLED_SECONDS = 90.0
_WORTH_RESUMING = 1 << 20
_SHOWN = 300
_SAYS_SECONDS = 10.0
_VERSION = {"Upload-Draft-Interop-Version": "6"}

_LOST = (
    CancelledError,
    ConnectError,
    ConnectionLost,
    DNSLookupError,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)


class Failed(Exception):
    """The file was not uploaded; the text says why."""


class _Again(Exception):
    """What may be better at the next try; the text says what.

    :ivar seconds: that the server asks to wait.
    """

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


@implementer(IAgentEndpointFactory)
class _Socket:
    """Leads to a Unix socket, whatever the URL says."""

    def __init__(self, reactor: Any, path: str) -> None:
        self._reactor, self._path = reactor, path

    def endpointForURI(self, uri: Any) -> UNIXClientEndpoint:
        return UNIXClientEndpoint(self._reactor, self._path)


def client_for(reactor: Any, socket: str = "") -> Agent:
    """What makes requests.

    :param socket: to go through, if any.
    """
    if socket:
        return Agent.usingEndpointFactory(reactor, _Socket(reactor, socket))  # type: ignore[no-any-return]
    return Agent(reactor, connectTimeout=_CONNECT_SECONDS)


@attrs.define
class Transfer:
    """One file's.

    :param url: of the PUT.
    :param slot: what gives the right to it.
    :param file: open for reading, at its beginning; can seek.
    :param size: of the file in bytes.
    :param progress: is told how many bytes have been sent.
    :param say: is told what is tried again, and why.
    """

    reactor: Any
    client: Agent
    url: str
    slot: Issued
    file: BinaryIO
    size: int
    progress: Callable[[int], None]
    say: Callable[[str], None]
    _location: str = ""
    _moved: float = 0.0
    _sent: int = 0
    _is_shorter: bool = False

    async def run(self) -> None:
        """Upload the file.

        :raises Failed: if that can not be.
        """
        delay, left, sent = _FIRST_DELAY, TRIES, 0
        while True:
            try:
                await self._try()
                return
            except _Again as error:
                left -= 1
                if self._is_shorter:
                    raise Failed("the file became shorter while it was read") from None
                here = self._sent if self._location else 0
                if here > sent:  # It goes on, if slowly.
                    delay, left, sent = _FIRST_DELAY, TRIES, here
                if not left:
                    raise Failed(str(error)) from None
                wait = max(delay, min(error.seconds, _LONGEST_DELAY))
                self.say(f"{error}; trying again in {wait:.0f} s")
            await deferLater(self.reactor, wait, lambda: None)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _try(self) -> None:
        if self._location:
            offset = await self._ask_offset()
        elif self.size >= _WORTH_RESUMING and await self._create():
            offset = 0
        else:
            await self._send("PUT", self.url, dict(self.slot.headers), 0)
            return
        if self._location:
            headers = _VERSION | {"Content-Type": "application/partial-upload", "Upload-Complete": "?1"}
            await self._send("PATCH", self._location, headers | {"Upload-Offset": str(offset)}, offset)

    async def _create(self) -> bool:
        """Ask for an upload that can be resumed; whether there is one."""
        asked = _VERSION | {"Upload-Complete": "?0", "Upload-Length": str(self.size)}
        nothing = _Body(self.file, 0, 0, lambda at: None)
        response = await self._request("PUT", self.url, dict(self.slot.headers) | asked, nothing)
        location = urljoin(self.url, (response.headers.getRawHeaders("Location") or [""])[0])
        if response.code != 201 or location == self.url or not location.startswith(("http://", "https://")):
            return False  # A plain server takes it for an empty file, whose signature does not hold.
        self._location = location
        return True

    async def _ask_offset(self) -> int:
        response = await self._request("HEAD", self._location, dict(_VERSION))
        offset = response.headers.getRawHeaders("Upload-Offset")
        if response.code == 204 and offset and offset[0].isdigit() and int(offset[0]) <= self.size:
            return int(offset[0])
        self._location = ""
        raise _Again(f"the upload can not be resumed ({response.code})")

    async def _send(self, method: str, url: str, headers: dict[str, str], offset: int) -> None:
        self._report(offset)
        response = await self._request(method, url, headers, _Body(self.file, offset, self.size, self._report))
        if response.code not in (200, 201):
            await self._refused(response)
        self.progress(self.size)

    async def _request(self, method: str, url: str, headers: dict[str, str], data: _Body | None = None) -> Any:
        """A response.

        :raises _Again: if it does not come.
        """
        self._moved = self.reactor.seconds()
        fields = Headers({name: [value] for name, value in {"User-Agent": _AGENT, **headers}.items()})
        asked = self.client.request(method.encode("ascii"), url.encode("ascii"), fields, data)
        watch = LoopingCall(self._end_if_stalled, asked)
        watch.clock = self.reactor
        watch.start(_STALLED_SECONDS / 10, now=False)
        try:
            response = await asked
        except _LOST as error:
            raise _Again(_reason(error)) from None
        finally:
            watch.stop()
            if data is not None:
                self._is_shorter |= data.is_shorter
                data.end()
        if response.code in (429, 500, 502, 503, 504):
            after = (response.headers.getRawHeaders("Retry-After") or ["0"])[0]
            raise _Again(await self._said(response), float(after) if after.isdigit() else 0.0)
        return response

    def _end_if_stalled(self, asked: Any) -> None:
        if self.reactor.seconds() > self._moved + _STALLED_SECONDS:
            asked.cancel()

    def _report(self, at: int) -> None:
        self._moved, self._sent = self.reactor.seconds(), at
        self.progress(at)

    async def _refused(self, response: Any) -> None:
        if self._location and response.code in (404, 409, 410):  # Somebody else goes on with it, or it has ended.
            raise _Again(await self._said(response))
        raise Failed(await self._said(response))

    async def _said(self, response: Any) -> str:
        """What the server says, in one line."""
        beginning = _Beginning()
        response.deliverBody(beginning)
        text = (await beginning.done.addTimeout(_SAYS_SECONDS, self.reactor, lambda *_: beginning.text)).decode(
            "utf-8", "replace"
        )
        line = text.strip().splitlines()[0] if text.strip() and not text.strip().startswith("<") else ""
        where = (response.headers.getRawHeaders("Location") or [""])[0] if response.code // 100 == 3 else ""
        by = (response.headers.getRawHeaders("Server") or [""])[0]
        words = [str(response.code), line, f"to {where}" if where else "", f"({by})" if by else ""]
        return printable(" ".join(filter(None, words)))


class _Rest:
    """A file from somewhere on, which others may read at the same time."""

    def __init__(self, file: BinaryIO, start: int, size: int, moved: Callable[[int], None]) -> None:
        self._file, self._at, self._size, self._moved = file, start, size, moved
        self.is_shorter = self._is_closed = False

    def read(self, size: int) -> bytes:
        wanted = min(size, self._size - self._at)
        if wanted <= 0 or self._is_closed:
            return b""
        data = os.pread(self._file.fileno(), wanted, self._at)
        self.is_shorter = not data
        self._at += len(data)
        self._moved(self._at)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        self._at = self._size + offset if whence == os.SEEK_END else offset

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._is_closed = True


class _Body(FileBodyProducer):
    """A request's body: a file from somewhere on.

    :param size: where it ends.
    :param moved: is told how far it has been read.
    """

    def __init__(self, file: BinaryIO, start: int, size: int, moved: Callable[[int], None]) -> None:
        self._rest = _Rest(file, start, size, moved)
        self._is_begun = False
        super().__init__(self._rest)

    @property
    def is_shorter(self) -> bool:
        """Whether the file had an end before that."""
        return self._rest.is_shorter

    def startProducing(self, consumer: Any) -> Any:
        self._is_begun = True
        return super().startProducing(consumer)

    def end(self) -> None:
        """Read no more: an answer has come before all was sent, perhaps."""
        if self._is_begun:
            self.stopProducing()


class _Beginning(Protocol):
    """Takes the beginning of an answer's body.

    :ivar done: fires with it.
    """

    transport: Any

    def __init__(self) -> None:
        self.text = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.text = (self.text + data)[:_SHOWN]
        if len(self.text) == _SHOWN:
            self._end()

    def connectionLost(self, reason: Any = None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.done.called:
            self.done.callback(self.text)


def _reason(error: Exception) -> str:
    reasons = getattr(error, "reasons", None)
    if reasons:
        return _reason(reasons[-1].value)
    if isinstance(error, CancelledError):
        return f"nothing moved for {_STALLED_SECONDS:.0f} s"
    return str(error) or type(error).__name__


def size_of(file: BinaryIO) -> int:
    """Bytes in a file that can seek; it stands at its beginning afterwards."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size
