"""Upload resources: where a client asks how far its upload is, goes on with it, or drops it."""

from __future__ import annotations

import time
from urllib.parse import quote

import attrs
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from hmac_file_server.files.errors import bug, not_stored, nothing_here
from hmac_file_server.files.node import Node
from hmac_file_server.files.upload import Upload
from hmac_file_server.resumption import wire
from hmac_file_server.resumption.keeper import Superseded
from hmac_file_server.resumption.upload import Busy, Resumables, ResumableUpload, TooMany
from hmac_file_server.slots.path import RESERVED
from hmac_file_server.slots.signature import Slot
from hmac_file_server.stores.local.draft import SlotTaken, WrongFile
from hmac_file_server.stores.local.part import AlreadyComplete, Part, WrongDigest, WrongLength, WrongOffset
from hmac_file_server.stores.local.sessions import NoSession, Session, is_token
from hmac_file_server.web.errors import HTTPError, precondition_failed, unavailable
from hmac_file_server.web.headers import preflight
from hmac_file_server.web.request import Request


@attrs.frozen
class Offer:
    """A client's wish for a resumable upload.

    :param length: of the whole file in bytes, as its slot must be signed.
    :param part: what the first request brings.
    """

    resumables: Resumables
    client: str
    version: int
    length: int
    part: Part
    digest: bytes | None

    def take(self, slot: Slot) -> ResumableUpload | None:
        """Begin the upload; None to go on as a plain one.

        :raises HTTPError: if it can be neither.
        """
        try:
            return self.resumables.create(slot, self.part, self.version, self.digest, self.client)
        except TooMany:
            if self.part.last:
                return None
            raise unavailable("sessions", "too many uploads wait to be resumed", seconds=60) from None


class Resumption:
    """Makes uploads resumable (draft-ietf-httpbis-resumable-upload).

    :param prefix: ``UploadSubDir``.
    :ivar resources: the place in the tree for the upload resources.
    """

    def __init__(self, resumables: Resumables, prefix: str, max_size: int) -> None:
        self._resumables = resumables
        self._base = b"/" + (quote(prefix).encode("ascii") + b"/" if prefix else b"") + RESERVED + b"/"
        self.limits = wire.Limits(max_size, resumables.timeout)
        self.resources = UploadResources(resumables, self)

    def offer(self, request: Request, size: int) -> Offer | None:
        """What a PUT asks for; None if it is a plain one, or a whole upload whose client would not hear of it.

        :param size: of its body in bytes.
        :raises HTTPError: if it contradicts itself.
        """
        headers = request.requestHeaders
        version = wire.asked_version(headers)
        complete = None if version is None else wire.asked_complete(headers, version)
        if version is None or complete is None:
            return None
        length = wire.asked_integer(headers, b"Upload-Length")
        if complete and length not in (None, size):
            raise _inconsistent(version)
        if complete and not request.hears_104:
            return None
        if complete:
            length = size
        elif length is None:
            raise HTTPError(411, "length_required", "an Upload-Length is needed: the slot is signed for it")
        elif size > length:
            raise _inconsistent(version)
        part = Part(size, complete, length=length, digest=_digest(request, b"Content-Digest"))
        digest = _digest(request, b"Repr-Digest")
        return Offer(self._resumables, request.client_address, version, length, part, digest)

    def location(self, token: str) -> bytes:
        """The upload resource's URL, as a path."""
        return self._base + token.encode("ascii")

    def begun(self, request: Request) -> None:
        """Tell the client where it can go on, and from now on how much is safe."""
        upload, version = _upload(request), asked_version(request)
        assert upload.session is not None
        if upload.is_new:
            self._inform(request, wire.offered(version, self.location(upload.token), self.limits))
        upload.progress = lambda safe: self._inform(request, wire.progress(version, safe))

    def _inform(self, request: Request, headers: dict[bytes, bytes] | None) -> None:
        if headers is not None and wire.asked_version(request.requestHeaders) is not None:
            request.send_104(headers)

    def answer(self, request: Request) -> None:
        """The request's content is stored: answer as to a plain PUT if the file is whole now."""
        upload, version = _upload(request), asked_version(request)
        session = upload.session
        assert session is not None
        headers = wire.state(version, session)
        if upload.is_new and (not upload.whole or wire.locates_all(version)):
            headers[b"Location"] = self.location(upload.token)
        if upload.whole:
            request.answer(201, headers)
            return
        headers |= self.limits.header(version, time.time() - session.begun)
        request.answer(wire.part_status(version, upload.is_new), headers)

    def explain(self, request: Request, failure: Failure) -> HTTPError:
        """What to answer when a part could not be stored, and whether the client can go on."""
        upload, version, error = _upload(request), asked_version(request), failure.value
        session = upload.session
        if isinstance(error, WrongOffset):
            return _wrong_offset(request, version, error.session)
        if isinstance(error, WrongLength):
            return _inconsistent(version)
        if isinstance(error, AlreadyComplete):
            if wire.replays(version) and upload.part.offset != error.session.length:
                return _wrong_offset(request, version, error.session)
            if wire.replays(version) and upload.part.size:
                return _inconsistent(version)
            headers, content = wire.problem("completed-upload", "the upload is complete")
            headers |= wire.completeness(version, True)
            return HTTPError(400, "complete", "the upload is complete", headers=headers, content=content)
        if isinstance(error, WrongDigest) and session is not None:
            message = "the bytes are not those of the Content-Digest"
            return HTTPError(400, "digest", message, headers=wire.state(version, session))
        if isinstance(error, WrongFile):
            return not_stored(failure).having(wire.completeness(version, True))
        answer = _not_found_or_busy(error) or not_stored(failure)
        if answer.status == 404:
            return answer
        if isinstance(error, SlotTaken) or upload.dropped:
            return answer.having(wire.completeness(version, True))
        if session is None or isinstance(error, Superseded):
            return answer.having(wire.completeness(version, False))
        return answer.having(wire.state(version, session))


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

    def accept(self, request: Request, length: int | None) -> Upload | None:
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
        digests = _digest(request, b"Content-Digest"), _digest(request, b"Repr-Digest")
        part = Part(length, complete, offset, whole, *digests)
        return self._resumables.append(self._token, part)

    def begun(self, request: Request) -> None:
        self._resumption.begun(request)

    def explain(self, request: Request, failure: Failure) -> HTTPError:
        return self._resumption.explain(request, failure)

    def render_OPTIONS(self, request: Request) -> int:
        request.answer(204, preflight(self.methods) | self._resumption.limits.announced)
        return NOT_DONE_YET

    def render_HEAD(self, request: Request) -> int:
        """How far the upload is. A request of it that is still running ends: its client has given it up."""
        self._check_bare(request)
        self._resumables.status(self._token).addCallbacks(
            lambda session: self._tell(request, session), lambda failure: request.fail(_unanswered(failure))
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
        part = _upload(request).part
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
            lambda _: request.answer(204, {}), lambda failure: request.fail(_unanswered(failure))
        ).addErrback(lambda failure: request.fail(bug(failure, "dropping an upload")))
        return NOT_DONE_YET

    def _check_bare(self, request: Request) -> None:
        names = wire.forbidden(asked_version(request), request.method)
        if any(map(request.requestHeaders.hasHeader, names)):
            raise HTTPError(400, "resumption", "this request says nothing of offset or completeness")


def asked_version(request: Request) -> int:
    """The version to answer in."""
    return wire.asked_version(request.requestHeaders) or wire.NEWEST


def _upload(request: Request) -> ResumableUpload:
    upload = request.body
    assert isinstance(upload, ResumableUpload)
    return upload


def _digest(request: Request, name: bytes) -> bytes | None:
    try:
        return wire.asked_digest(request.requestHeaders, name)
    except ValueError as error:
        raise HTTPError(400, "digest", str(error)) from None


def _inconsistent(version: int) -> HTTPError:
    message = "the lengths that the upload's requests give do not agree"
    headers, content = wire.problem("inconsistent-upload-length", message)
    headers |= wire.completeness(version, False)
    return HTTPError(400, "resumption", message, headers=headers, content=content)


def _wrong_offset(request: Request, version: int, session: Session) -> HTTPError:
    message = "the offset is not where the upload ends"
    provided = _upload(request).part.offset
    headers, content = wire.problem(
        "mismatching-upload-offset", message, expected_offset=session.safe, provided_offset=provided
    )
    headers |= wire.state(version, session) | wire.completeness(version, False)
    return HTTPError(409, "offset", message, headers=headers, content=content)


def _not_found_or_busy(error: BaseException | None) -> HTTPError | None:
    if isinstance(error, NoSession):
        return nothing_here()
    if isinstance(error, Busy):
        return unavailable("busy", "another request of this upload does not end", seconds=5)
    return None


def _unanswered(failure: Failure) -> HTTPError:
    return _not_found_or_busy(failure.value) or not_stored(failure)
