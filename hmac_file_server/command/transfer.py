"""The transfer of one file to its slot: tried again as a client should, and resumed where the server can."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO
from urllib.parse import urljoin

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionLost, DNSLookupError
from twisted.internet.task import LoopingCall, deferLater
from twisted.web.client import (
    Agent,
    FileBodyProducer,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
    readBody,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from hmac_file_server import __version__
from hmac_file_server.slots.issue import Issued

TRIES = 6
_AGENT = f"hmac-file-server/{__version__}"
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0
_CONNECT_SECONDS = 20.0
_STALLED_SECONDS = 90.0
_WORTH_RESUMING = 1 << 20
_SHOWN = 300
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
                here = self.file.tell() if self._location else 0
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
        response = await self._request("PUT", self.url, dict(self.slot.headers) | asked, FileBodyProducer(BytesIO()))
        location = response.headers.getRawHeaders("Location")
        if response.code != 201 or not location:
            return False  # A plain server takes it for an empty file, whose signature does not hold.
        self._location = urljoin(self.url, location[0])
        return True

    async def _ask_offset(self) -> int:
        response = await self._request("HEAD", self._location, dict(_VERSION))
        offset = response.headers.getRawHeaders("Upload-Offset")
        if response.code == 204 and offset and offset[0].isdigit() and int(offset[0]) <= self.size:
            return int(offset[0])
        self._location = ""
        raise _Again(f"the upload can not be resumed ({response.code})")

    async def _send(self, method: str, url: str, headers: dict[str, str], offset: int) -> None:
        self.file.seek(offset)
        self.progress(offset)
        response = await self._request(method, url, headers, FileBodyProducer(_Rest(self.file, self._report)))
        if response.code not in (200, 201):
            await self._refused(response)
        self.progress(self.size)

    async def _request(self, method: str, url: str, headers: dict[str, str], data: Any = None) -> Any:
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
        if response.code in (429, 500, 502, 503, 504):
            after = (response.headers.getRawHeaders("Retry-After") or ["0"])[0]
            raise _Again(await _said(response), float(after) if after.isdigit() else 0.0)
        return response

    def _end_if_stalled(self, asked: Any) -> None:
        if self.reactor.seconds() > self._moved + _STALLED_SECONDS:
            asked.cancel()

    def _report(self) -> None:
        self._moved = self.reactor.seconds()
        self.progress(self.file.tell())

    async def _refused(self, response: Any) -> None:
        if self._location and response.code in (404, 409, 410):  # Somebody else goes on with it, or it has ended.
            raise _Again(await _said(response))
        raise Failed(await _said(response))


class _Rest:
    """A file from where it stands, which is told to nobody when it is closed."""

    def __init__(self, file: BinaryIO, moved: Callable[[], None]) -> None:
        self._file, self._moved = file, moved
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._moved()
        return data

    def close(self) -> None:
        pass


async def _said(response: Any) -> str:
    """What the server says, in one line."""
    text = (await readBody(response))[:_SHOWN].decode("utf-8", "replace").strip()
    line = text.splitlines()[0] if text and not text.startswith("<") else ""
    by = (response.headers.getRawHeaders("Server") or [""])[0]
    return f"{response.code}{f' {line}' if line else ''}{f' ({by})' if by else ''}"


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
