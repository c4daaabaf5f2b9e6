"""What to answer where a part of an upload could not be stored: what ``files`` does not know of."""

from __future__ import annotations

from twisted.python.failure import Failure

from hmac_file_server.files.errors import not_stored, nothing_here
from hmac_file_server.files.upload import Superseded
from hmac_file_server.resumption import wire
from hmac_file_server.resumption.upload import Busy, ResumableUpload
from hmac_file_server.stores.errors import (
    AlreadyComplete,
    Cancelled,
    NoSession,
    SlotTaken,
    WrongDigest,
    WrongFile,
    WrongLength,
    WrongOffset,
)
from hmac_file_server.stores.session import Session
from hmac_file_server.web.errors import HTTPError, unavailable
from hmac_file_server.web.request import Request


def asked_version(request: Request) -> int:
    """The version to answer in."""
    return wire.asked_version(request.requestHeaders) or wire.NEWEST


def upload_of(request: Request) -> ResumableUpload:
    """The upload that a request is a part of."""
    upload = request.body
    assert isinstance(upload, ResumableUpload)
    return upload


def explain(request: Request, failure: Failure) -> HTTPError:
    """What to answer when a part could not be stored, and whether the client can go on."""
    upload, version, error = upload_of(request), asked_version(request), failure.value
    session = upload.session
    if isinstance(error, WrongOffset):
        return _wrong_offset(request, version, error.session)
    if isinstance(error, WrongLength):
        return inconsistent(version)
    if isinstance(error, AlreadyComplete):
        if wire.replays(version) and upload.part.offset != error.session.length:
            return _wrong_offset(request, version, error.session)
        if wire.replays(version) and upload.part.size:
            return inconsistent(version)
        headers, content = wire.problem("completed-upload", "the upload is complete")
        headers |= wire.completeness(version, True)
        return HTTPError(400, "complete", "the upload is complete", headers=headers, content=content)
    if isinstance(error, WrongDigest) and session is not None:
        message = "the bytes are not those of the Content-Digest"
        return HTTPError(400, "digest", message, headers=wire.state(version, session))
    if isinstance(error, WrongFile):
        return not_stored(failure).having(wire.completeness(version, True))
    answer = _own(error) or not_stored(failure)
    if answer.status == 404:
        return answer
    if isinstance(error, SlotTaken) or upload.dropped:
        return answer.having(wire.completeness(version, True))
    if session is None or isinstance(error, Superseded):
        return answer.having(wire.completeness(version, False))
    return answer.having(wire.state(version, session))


def inconsistent(version: int) -> HTTPError:
    """400: the upload has another length."""
    message = "the lengths that the upload's requests give do not agree"
    headers, content = wire.problem("inconsistent-upload-length", message)
    headers |= wire.completeness(version, False)
    return HTTPError(400, "resumption", message, headers=headers, content=content)


def _wrong_offset(request: Request, version: int, session: Session) -> HTTPError:
    message = "the offset is not where the upload ends"
    provided = upload_of(request).part.offset
    headers, content = wire.problem(
        "mismatching-upload-offset", message, expected_offset=session.safe, provided_offset=provided
    )
    headers |= wire.state(version, session) | wire.completeness(version, False)
    return HTTPError(409, "offset", message, headers=headers, content=content)


def _own(error: BaseException | None) -> HTTPError | None:
    if isinstance(error, NoSession):
        return nothing_here()
    if isinstance(error, Cancelled):
        return HTTPError(409, "cancelled", str(error))
    if isinstance(error, Busy):
        return unavailable("busy", "another request of this upload does not end", seconds=5)
    return None


def unanswered(failure: Failure) -> HTTPError:
    """What to answer where an upload can not be told of, or dropped."""
    return _own(failure.value) or not_stored(failure)
