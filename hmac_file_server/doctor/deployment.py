"""The deployment that is tested: its URL, its secret, and how it is asked."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.web.http_headers import Headers

from hmac_file_server.config import Config
from hmac_file_server.doctor.answer import Answer, explain
from hmac_file_server.doctor.finding import Finding, NoAnswer
from hmac_file_server.doctor.proxies import Proxy
from hmac_file_server.doctor.wire import Wire
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.issue import Issued, issue
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.signature import sign

if TYPE_CHECKING:
    from treq.client import HTTPClient

WRONG = "?v=" + "0" * 64
"""A query with a signature that holds for nothing."""

SECONDS = 30.0
"""How long an answer may take."""

T = TypeVar("T")


@attrs.frozen
class Address:
    """The public URL, taken apart.

    :param host: in ASCII.
    :param path: begins and ends with a slash.
    """

    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Read a URL.

        :raises ValueError: if it is none that can be tested; the text says why.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it as https://upload.example.org/upload/")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("it has no query, no fragment and no user name")
        secure = parts.scheme == "https"
        host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode("ascii")
        path = f"/{parts.path.strip('/')}/" if parts.path.strip("/") else "/"
        return cls(secure, host, parts.port or (443 if secure else 80), path)

    @property
    def authority(self) -> str:
        """Host and port as a URL and ``Host`` have them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def root(self) -> str:
        """The URL without its path."""
        return f"{'https' if self.secure else 'http'}://{self.authority}"

    def __str__(self) -> str:
        return self.root + self.path


@attrs.frozen
class Stored:
    """A file that the tests have left.

    :param target: of its URL.
    :param signed: its path, as DELETE signs it.
    """

    target: str
    signed: bytes


class Deployment:
    """What is tested.

    :param host: whose secret signs, and whose limits count.
    :param protocol: by which slots are signed.
    :ivar ip: the address that is asked.
    :ivar proxy: what answers there.
    :ivar offers_h2: whether it offers HTTP/2.
    :ivar stored: the files that were left.
    """

    def __init__(self, reactor: Any, url: Address, config: Config, host: Host, protocol: str) -> None:
        self.url = url
        self.config = config
        self.host = host
        self.reactor = reactor
        self.ip = ""
        self.proxy = Proxy()
        self.offers_h2 = False
        self.stored: list[Stored] = []
        self.folder = f"doctor-{secrets.token_hex(8)}"
        self._protocol = protocol

    # Slots

    def slot(self, name: str, size: int, media_type: str = "application/octet-stream", before: str = "") -> Issued:
        """A slot in a folder of this test's own.

        :param before: what its signed path begins with.
        """
        path = SlotPath(tuple(f"{before}{self.folder}/{name}".encode().split(b"/")))
        return issue(self._protocol, self.host.secrets[0], path, size, media_type)

    def target(self, slot: Issued) -> str:
        """Where a slot is put to; the signature with it."""
        return self.where(slot) + slot.query

    def where(self, slot: Issued) -> str:
        """Where its file is to be had."""
        return self.url.path + slot.quoted

    def keep_in_mind(self, slot: Issued) -> None:
        """Take note of a file that may be there by now."""
        self.keep_at(self.where(slot), slot)

    def keep_at(self, target: str, slot: Issued) -> None:
        """Take note of a file that was stored by way of another URL than its own."""
        self.stored.append(Stored(target, slot.path.signed))

    def right_to_remove(self, file: Stored) -> str:
        """The token of its DELETE."""
        return sign(self.host.secrets[0], b"%b\0%b" % (file.signed, self.host.delete_secret))

    def has(self, slot: Issued) -> bool:
        """Whether its file was stored."""
        return any(file.signed == slot.path.signed for file in self.stored)

    # Asking

    async def put(self, slot: Issued, body: bytes) -> Answer:
        """Upload."""
        try:
            answer = await self.ask("PUT", self.target(slot), body, slot.headers)
        except NoAnswer:
            self.keep_in_mind(slot)
            raise
        if answer.status in (200, 201, 504):
            self.keep_in_mind(slot)
        return answer

    async def ask(
        self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own.

        :raises NoAnswer: if nothing, or no HTTP, came back.
        """
        answered = Deferred.fromCoroutine(self._asked(method, target, body, headers or {}))
        try:
            return await answered.addTimeout(SECONDS, self.reactor)
        except Exception as error:
            raise NoAnswer(f"{method}: {_reason(error)}") from None

    async def _asked(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        data = None if body is None else BytesIO(body)
        answer = await self._client().request(
            method,
            self.url.root + target,
            headers=Headers({name: [value] for name, value in headers.items()}),
            data=data,
            allow_redirects=False,
            reactor=self.reactor,
        )
        content = b"" if method == "HEAD" else await answer.content()
        found = answer.headers.getAllRawHeaders()
        fields = [(name.decode().lower(), value.decode("latin-1")) for name, values in found for value in values]
        return Answer(answer.code, fields, content)

    def _client(self) -> HTTPClient:
        from treq.client import HTTPClient
        from twisted.web.client import Agent

        return HTTPClient(Agent.usingEndpointFactory(self.reactor, _Endpoints(self)))

    def explain(self, answer: Answer, what: str) -> Finding:
        """What an answer means that is not the one that a client needs.

        :param what: was asked for.
        """
        return explain(answer, what, self.proxy, self.host.max_upload_size, bool(self.stored))

    def wire(self) -> Wire:
        """A connection on which nothing is hidden. It blocks."""
        name = self.url.host if self.url.secure else ""
        return Wire((self.ip, self.url.port), name, self.url.authority)

    def in_thread(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        """Run what blocks."""
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *arguments)


@attrs.frozen
class _Endpoints:
    """Connects to the one address that is tested, by whatever name (``IAgentEndpointFactory``)."""

    deployment: Deployment

    def endpointForURI(self, uri: object) -> object:
        from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS

        there = self.deployment
        endpoint = HostnameEndpoint(there.reactor, there.ip, there.url.port)
        if not there.url.secure:
            return endpoint
        from twisted.internet.ssl import optionsForClientTLS

        return wrapClientTLS(optionsForClientTLS(there.url.host), endpoint)


def _reason(error: BaseException) -> str:
    """What went wrong, without what was asked."""
    for failure in getattr(error, "reasons", None) or ():
        return _reason(failure.value)
    return str(error).partition("\n")[0] or type(error).__name__


def addresses_of(url: Address) -> dict[str, list[str]]:
    """What a name stands for: addresses by ``IPv4`` and ``IPv6``. It blocks.

    :raises OSError: if nobody knows the name.
    """
    found: dict[str, list[str]] = {"IPv4": [], "IPv6": []}
    for family, _, _, _, address in socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM):
        known = found["IPv6" if family == socket.AF_INET6 else "IPv4"]
        if address[0] not in known:
            known.append(str(address[0]))
    return found
