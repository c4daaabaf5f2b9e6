"""The one HTTP error: raised anywhere below a request, answered in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

import attrs


@attrs.frozen
class HTTPError(Exception):
    """An answer other than the one that was asked for.

    :param status: the status code (RFC 9110, section 15).
    :param reason: one word or two for the metrics, from a fixed set.
    :param message: for the client, one sentence.
    :param detail: for the operator's log where that may say more than the client is told; or what makes it, if that
        costs something and the line may not be written.
    :param headers: further response headers.
    :param clues: makes what else the line says, if it says more.
    :param content: what the client is sent instead of the message, of the type that the headers give.
    """

    status: int
    reason: str
    message: str
    detail: str | Callable[[], str] = ""
    headers: Mapping[bytes, bytes] = attrs.field(factory=dict)
    content: bytes = b""
    clues: Callable[[], object] | None = None

    def __str__(self) -> str:
        return f"{self.said} ({self.clues()})" if self.clues else self.said

    @property
    def said(self) -> str:
        """For the operator's log, without its clues."""
        detail = self.detail() if callable(self.detail) else self.detail
        return detail or self.message

    def all_headers(self) -> dict[bytes, bytes]:
        """Its headers, with the type of :attr:`body`."""
        return {b"Content-Type": b"text/plain; charset=utf-8", **self.headers}

    @property
    def body(self) -> bytes:
        """What the client is sent."""
        return self.content or self.message.encode("utf-8") + b"\n"

    @property
    def phrase(self) -> bytes:
        """What stands beside the status."""
        return HTTPStatus(self.status).phrase.encode("ascii")

    def having(self, headers: Mapping[bytes, bytes]) -> HTTPError:
        """The same error with further headers."""
        return attrs.evolve(self, headers={**self.headers, **headers})


def method_not_allowed(allowed: bytes, detail: str = "") -> HTTPError:
    """405, with what is allowed (RFC 9110, section 15.5.6)."""
    return HTTPError(405, "method", "this method is not served here", detail, {b"Allow": allowed})


def precondition_failed(headers: Mapping[bytes, bytes] | None = None) -> HTTPError:
    """412, with the validators of the file that is there (RFC 9110, section 15.5.13)."""
    return HTTPError(412, "precondition", "the file is not the one that was meant", headers=headers or {})


def unavailable(reason: str, message: str, detail: str = "", seconds: int = 30) -> HTTPError:
    """503, with the seconds after which to come again (RFC 9110, section 15.6.4)."""
    return HTTPError(503, reason, message, detail, {b"Retry-After": b"%d" % seconds})


MALFORMED = HTTPError(400, "malformed", "the request is malformed")
