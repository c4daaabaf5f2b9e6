"""Files whose uploads can be resumed, and upload resources: where a client goes on with its upload, or drops it."""

from __future__ import annotations

import time

from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from hmac_file_server.files.errors import bug, nothing_here
from hmac_file_server.files.node import Node
from hmac_file_server.files.resource import Files, body_length, hold_to_conditions
from hmac_file_server.files.upload import Upload
from hmac_file_server.resumption import wire
from hmac_file_server.resumption.errors import asked_version, explain, unanswered, upload_of
from hmac_file_server.resumption.protocol import Resumption, digest_of
from hmac_file_server.resumption.upload import Resumables, ResumableUpload
from hmac_file_server.stores.errors import AlreadyComplete
from hmac_file_server.stores.session import Part, Session, is_token
from hmac_file_server.web.body import IBodyConsumer
from hmac_file_server.web.errors import HTTPError, precondition_failed
from hmac_file_server.web.headers import preflight
from hmac_file_server.web.request import Request


class ResumableFiles(Node):
    """Files, of whose PUTs some ask to be resumable; all others, and what else is asked, are the files' own."""

    isLeaf = True

    def __init__(self, files: Files, resumption: Resumption) -> None:
        super().__init__()
        self._files = files
        self._resumption = resumption
        self.methods = files.methods

    def accept_body(self, request: Request, length: int | None) -> Upload:
        """Verify the slot's signature, and start the upload."""
        size = body_length(request, length)
        creation = self._resumption.asked(request, size)
        if creation is None:
            return self._files.accept_body(request, size)
        try:
            slot = self._files.verify(request, creation.length)
        except HTTPError as error:
            raise (error.having(self._resumption.limits.announced) if error.status == 413 else error) from None
        upload = creation.take(slot)
        if upload is None:
            return self._files.receive(request, slot)
        hold_to_conditions(request, upload)
        return upload

    def begun(self, request: Request) -> None:
        if isinstance(request.body, ResumableUpload):
            self._resumption.begun(request)

    def explain(self, request: Request, failure: Failure) -> HTTPError:
        if isinstance(request.body, ResumableUpload):
            return explain(request, failure)
        return self._files.explain(request, failure)

    def render_OPTIONS(self, request: Request) -> int:
        request.answer(204, preflight(self.methods) | self._resumption.limits.announced)
        return NOT_DONE_YET

    def render_PUT(self, request: Request) -> int:
        """Answer when the file is public and safe, or a part of it is safe."""
        if isinstance(request.body, ResumableUpload):
            return self.answer_when_stored(request, self._resumption.answer)
        return self._files.render_PUT(request)

    def render_DELETE(self, request: Request) -> int:
        return self._files.render_DELETE(request)

    def render_GET(self, request: Request) -> int:
        return self._files.render_GET(request)

    render_HEAD = render_GET


class UploadResources(Node):
    """All of them; each is known by its token only."""

    def __init__(self, resumables: Resumables, resumption_: Resumption) -> None:
        super().__init__()
        self._resumables = resumables
        self._resumption = resumption_

    def getChild(self, path: bytes, request: Request) -> Node:
        token = path.decode("latin-1")
        if not is_token(token) or request.postpath:
            return Nothing()
        return UploadResource(token, self._resumables, self._resumption)


class Nothing(Node):
    """What is no upload resource. It is a leaf, so that the log does not take what follows a token for one."""

    isLeaf = True

    def accept(self, request: Request, length: int | None) -> None:
        if request.method != b"OPTIONS":
            raise nothing_here()


class UploadResource(Node):
    """One upload: HEAD tells how far it is, PATCH goes on with it, DELETE drops it.

    :param token: names it, and lets whoever knows it do all that.
    """

    methods = wire.METHODS

    def __init__(self, token: str, resumables: Resumables, resumption_: Resumption) -> None:
        super().__init__()
        self._token = token
        self._resumables = resumables
        self._resumption = resumption_

    def accept(self, request: Request, length: int | None) -> IBodyConsumer | None:
        if request.method == b"PUT":
            raise HTTPError(400, "path", "the path has a name that the server keeps for itself")
        if request.said(b"If-Match") not in (None, b"*") and request.method != b"OPTIONS":
            raise precondition_failed()  # It has no ETag, and no time: the other conditions hold, or are passed over.
        return super().accept(request, length)

    def accept_body(self, request: Request, length: int | None) -> ResumableUpload:
        """Check what the headers tell, and go on with the upload at once."""
        headers, version = request.requestHeaders, asked_version(request)
        if length is None:
            raise HTTPError(411, "length_required", "a Content-Length is needed")
        if wire.needs_partial_type(version):
            media_type = (request.getHeader(b"Content-Type") or b"").partition(b";")[0].strip().lower()
            if media_type != wire.PARTIAL:
                accepted = {b"Accept-Patch": wire.PARTIAL}
                raise HTTPError(415, "type", f"a PATCH is of type {wire.PARTIAL.decode()}", headers=accepted)
        offset = wire.asked_integer(headers, b"Upload-Offset")
        complete = wire.asked_complete(headers, version)
        if complete is None:
            complete = wire.said_by_silence(version)
        if offset is None or complete is None:
            raise HTTPError(400, "resumption", "a PATCH says its Upload-Offset, and whether the upload is complete")
        whole = wire.asked_integer(headers, b"Upload-Length")
        digests = digest_of(request, b"Content-Digest"), digest_of(request, b"Repr-Digest")
        part = Part(length, complete, offset, whole, *digests)
        return self._resumables.append(self._token, part)

    def begun(self, request: Request) -> None:
        self._resumption.begun(request)

    def explain(self, request: Request, failure: Failure) -> HTTPError:
        return explain(request, failure)

    def render_OPTIONS(self, request: Request) -> int:
        request.answer(204, preflight(self.methods) | self._resumption.limits.announced)
        return NOT_DONE_YET

    def render_HEAD(self, request: Request) -> int:
        """How far the upload is. A request of it that is still running ends: its client has given it up."""
        self._check_bare(request)
        self._resumables.status(self._token).addCallbacks(
            lambda session: self._tell(request, session), lambda failure: request.fail(unanswered(failure))
        ).addErrback(lambda failure: request.fail(bug(failure, "telling how far an upload is")))
        return NOT_DONE_YET

    render_GET = render_HEAD

    def _tell(self, request: Request, session: Session) -> None:
        version = asked_version(request)
        request.answer(204, wire.status(version, session, self._resumption.limits, time.time()))

    def render_PATCH(self, request: Request) -> int:
        """Answer when the part is safe, or the file public."""
        return self.answer_when_stored(request, self._resumption.answer)

    def failed(self, request: Request, failure: Failure) -> None:
        error, version = failure.value, asked_version(request)
        part = upload_of(request).part
        asked_again = part.last and not part.size and wire.replays(version)
        if asked_again and isinstance(error, AlreadyComplete) and part.offset == error.session.length:
            # A client that missed the answer to its last part.
            request.answer(201, wire.state(version, error.session))
            return
        super().failed(request, failure)

    def render_DELETE(self, request: Request) -> int:
        """Drop the upload."""
        self._check_bare(request)
        self._resumables.cancel(self._token).addCallbacks(
            lambda _: request.answer(204, {}), lambda failure: request.fail(unanswered(failure))
        ).addErrback(lambda failure: request.fail(bug(failure, "dropping an upload")))
        return NOT_DONE_YET

    def _check_bare(self, request: Request) -> None:
        names = wire.forbidden(asked_version(request), request.method)
        if any(map(request.requestHeaders.hasHeader, names)):
            raise HTTPError(400, "resumption", "this request says nothing of offset or completeness")
