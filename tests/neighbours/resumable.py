"""A client that resumes its upload, in version 6 of the IETF's draft."""

from __future__ import annotations

import attrs

from tests.support import Answer, Wire, put_target

BODY = bytes(range(256)) * 400
"""What it uploads."""


@attrs.frozen
class Resumable:
    """A resumable upload in version 6, as it goes through proxies that drop 104: begun without content."""

    port: int
    path: str
    location: str

    @classmethod
    def create(cls, port: int, path: str) -> Resumable:
        target = put_target(path, len(BODY))
        length = str(len(BODY))
        answer = ask(port, "PUT", target, Upload_Complete="?0", Upload_Length=length, Content_Length="0")
        assert answer.status == 201, answer
        assert answer.headers["upload-complete"] == "?0"
        return cls(port, path, answer.headers["location"])

    @property
    def token(self) -> str:
        return self.location.rpartition("/")[2]

    def offset(self) -> int:
        answer = ask(self.port, "HEAD", self.location)
        assert answer.status == 204, answer
        return int(answer.headers["upload-offset"])

    def append(self, offset: int, end: int = len(BODY)) -> Wire:
        """Send what comes after the offset, up to an end: a request that is whole, or one that is not yet."""
        head = _head("PATCH", self.location, Upload_Offset=str(offset), Upload_Complete="?1",
                     Content_Type="application/partial-upload", Content_Length=str(len(BODY) - offset))  # fmt: skip
        return Wire(self.port).send(head + BODY[offset:end])

    def cancel(self) -> int:
        return ask(self.port, "DELETE", self.location).status


def _head(method: str, target: str, **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Upload-Draft-Interop-Version: 6"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def ask(port: int, method: str, target: str, **headers: str) -> Answer:
    """One request on a connection of its own. Header names are written with underscores."""
    with Wire(port) as wire:
        return wire.send(_head(method, target, **headers)).final(head=method == "HEAD")
