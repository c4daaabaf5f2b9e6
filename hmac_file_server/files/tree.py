"""The Resource tree: what lies below the upload prefix, and what beside it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from hmac_file_server.files.errors import nothing_here
from hmac_file_server.files.node import Node
from hmac_file_server.files.resource import Files, asked
from hmac_file_server.slots.mistakes import Asked, clues, where_uploads_go
from hmac_file_server.web.body import IBodyConsumer
from hmac_file_server.web.request import Request

_LONGEST = 20


class Prefix(Node):
    """The place that the prefix leads to: below it are the files, beside what else is put there.

    :param files: a leaf, which takes the whole path below the prefix.
    """

    def __init__(self, files: Node) -> None:
        super().__init__()
        self._files = files

    def getChild(self, path: bytes, request: Request) -> Node:
        assert request.postpath is not None
        assert request.prepath is not None
        request.postpath.insert(0, request.prepath.pop())
        return self._files


@attrs.frozen
class Place:
    """Where the files of one host are.

    :param prefix: ``UploadSubDir``; empty if they lie at the root.
    :param node: what the prefix leads to.
    :param files: know what mistakes look like.
    :param name: of the host.
    """

    prefix: str
    node: Node
    files: Files
    name: str = ""

    @property
    def segments(self) -> tuple[bytes, ...]:
        """The prefix as it stands in a path."""
        return tuple(self.prefix.encode("utf-8").split(b"/")) if self.prefix else ()


class Root(Node):
    """The root of the tree: a path belongs to the host with the longest prefix of it, and else to nobody."""

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__()
        self._places = {place.segments: place for place in places}
        self._lengths = sorted({len(segments) for segments in self._places}, reverse=True)
        self._outside = Outside(places)

    def getChild(self, path: bytes, request: Request) -> Node:
        segments = (path, *(request.postpath or ()))
        for length in self._lengths:
            place = self._places.get(segments[:length])
            if place is not None:
                request.host_name = place.name
                request.prepath, request.postpath = list(segments[:length]), list(segments[length:])
                return place.node
        return self._outside


class Outside(Node):
    """Beside and above the files, where a request comes by a mistake of the operator's, which the log's line names."""

    isLeaf = True

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__()
        self._places = places

    def accept_body(self, request: Request, length: int | None) -> IBodyConsumer:
        error = nothing_here()
        if request.method != b"PUT":
            raise attrs.evolve(error, detail=f"{error}; {where_uploads_go(self._prefixes)}")
        # Of an upload in parts the first one is shorter than what was signed.
        whole = request.said(b"Upload-Length") or b""
        upload = asked(request, int(whole) if whole.isdigit() and len(whole) < _LONGEST else length or 0)
        raise attrs.evolve(error, detail=lambda: f"{error}; {self._guess(upload)}", clues=lambda: clues(upload))

    def _guess(self, upload: Asked) -> str:
        guesses = (place.files.mistake(upload, place.prefix) for place in self._places)
        return next(filter(None, guesses), "") or where_uploads_go(self._prefixes)

    @property
    def _prefixes(self) -> str:
        return " or ".join(f'"/{place.prefix}/"' for place in self._places)

    def render_GET(self, request: Request) -> int:
        error = nothing_here()
        raise attrs.evolve(error, detail=f"{error}: files lie below {self._prefixes} (UploadSubDir)")

    render_HEAD = render_GET
