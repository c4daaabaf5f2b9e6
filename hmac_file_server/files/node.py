"""Places in the Resource tree, which decide about a request when its headers are complete."""

from __future__ import annotations

from collections.abc import Callable

from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from hmac_file_server.files.errors import bug, not_taken, nothing_here
from hmac_file_server.stores.errors import BadName
from hmac_file_server.stores.room import Away, NoRoom
from hmac_file_server.web.body import IBodyConsumer
from hmac_file_server.web.errors import HTTPError, method_not_allowed
from hmac_file_server.web.headers import ALLOWED_METHODS, preflight
from hmac_file_server.web.request import Request

_POST = "this method is not served here: XMPP clients PUT to the URL of a slot that their server gives them (XEP-0363)"


_OF_CONTENT = frozenset((b"Content-Range", b"Content-Encoding"))


class Node(Resource):
    """A place in the tree; without children or methods of its own there is nothing here.

    :cvar methods: what it answers to.
    """

    methods = ALLOWED_METHODS

    def getChild(self, path: bytes, request: Request) -> Node:
        return Node()

    def accept(self, request: Request, length: int | None) -> IBodyConsumer | None:
        """Decide at the end of the headers.

        :param length: of the body in bytes; None if it is chunked.
        :returns: what consumes the body; None if there is none.
        :raises HTTPError: to refuse the request before its body.
        """
        if request.method not in self.methods.split(b", "):
            raise method_not_allowed(self.methods, _POST if request.method == b"POST" else "")
        if request.method in (b"PUT", b"PATCH"):
            if request.says_any(_OF_CONTENT):
                _check_content(request)
            try:
                return self.accept_body(request, length)
            except (NoRoom, Away, BadName) as error:
                raise not_taken(error) from None
        if length != 0:
            raise HTTPError(400, "body", "a body makes no sense here")
        return None

    def accept_body(self, request: Request, length: int | None) -> IBodyConsumer:
        """As :meth:`accept`, for a method that brings one.

        :raises NoRoom: if it can not fit.
        :raises Away: if the store can not be reached.
        :raises BadName: if the file system can hold no file of that name.
        """
        raise nothing_here()

    def begun(self, request: Request) -> None:
        """The store is ready for the body."""

    def answer_when_stored(self, request: Request, stored: Callable[[Request], None]) -> int:
        """Answer when the body's consumer is done.

        :param stored: answers that it has what it wanted.
        """
        assert request.body is not None
        request.body.done.addCallbacks(
            lambda _: stored(request), lambda failure: self.failed(request, failure)
        ).addErrback(lambda failure: request.fail(bug(failure, "answering an upload")))
        return NOT_DONE_YET

    def failed(self, request: Request, failure: Failure) -> None:
        """Answer when the body's consumer has failed; a client that has gone leaves the reason to the log."""
        request.fail(self.explain(request, failure))

    def explain(self, request: Request, failure: Failure) -> HTTPError:
        """What to answer when the body's consumer failed."""
        raise NotImplementedError

    def render_OPTIONS(self, request: Request) -> int:
        """Answer a browser's preflight."""
        request.answer(204, preflight(self.methods))
        return NOT_DONE_YET

    def render_GET(self, request: Request) -> int:
        """There is no listing."""
        raise nothing_here()

    render_HEAD = render_GET


def _check_content(request: Request) -> None:
    """Refuse a body that is not, as it is, the whole of what it is said to be."""
    if request.said(b"Content-Range") is not None:
        # Not a part to be stored as if it were all (RFC 9110, section 14.5).
        raise HTTPError(400, "content_range", "a part of a file is not taken: a PUT brings the whole of it")
    codings = b",".join(request.requestHeaders.getRawHeaders(b"Content-Encoding", ()))
    if any(coding.strip().lower() not in (b"", b"identity") for coding in codings.split(b",")):
        # It would be served without its coding (RFC 9110, section 15.5.16).
        accepted = {b"Accept-Encoding": b"identity"}
        raise HTTPError(415, "content_encoding", "a file is taken as it is, without an encoding", headers=accepted)
