"""The Resource tree: what lies below the upload prefix, and what beside it."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from hmac_file_server.files.errors import nothing_here
from hmac_file_server.files.node import Node
from hmac_file_server.files.resource import Files
from hmac_file_server.slots.mistakes import where_uploads_go
from hmac_file_server.web.body import IBodyConsumer
from hmac_file_server.web.request import Request


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


class Outside(Node):
    """Beside and above the files, where a request comes by a mistake of the operator's, which the log's line names.

    :param prefix: where the files are.
    """

    def __init__(self, prefix: str, files: Files) -> None:
        super().__init__()
        self._prefix = prefix
        self._files = files

    def getChild(self, path: bytes, request: Request) -> Node:
        return Outside(self._prefix, self._files)

    def accept_body(self, request: Request, length: int | None) -> IBodyConsumer:
        error, prefix = nothing_here(), self._prefix
        mistake: Callable[[], str] = str
        if request.method == b"PUT":
            mistake = self._files.mistake(request, length or 0, prefix)
        raise attrs.evolve(error, detail=lambda: f"{error}; {mistake() or where_uploads_go(prefix)}")

    def render_GET(self, request: Request) -> int:
        error = nothing_here()
        raise attrs.evolve(error, detail=f'{error}: files lie below "/{self._prefix}/" (UploadSubDir)')

    render_HEAD = render_GET


def root(prefix: str, place: Prefix, files: Files) -> Node:
    """The tree: everything below the prefix is a file's path.

    :param prefix: ``UploadSubDir``; empty if files lie at the root.
    :param place: what the prefix leads to.
    :param files: know what mistakes look like.
    """
    node: Node = place
    for segment in reversed([segment for segment in prefix.split("/") if segment]):
        parent = Outside(prefix, files)
        parent.putChild(segment.encode("utf-8"), node)
        node = parent
    return node
