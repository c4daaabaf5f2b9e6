"""What a client asks of an upload that can be resumed, and what it is told on the way."""

from __future__ import annotations

import time
from urllib.parse import quote

import attrs

from hmac_file_server.resumption import wire
from hmac_file_server.resumption.errors import asked_version, inconsistent, upload_of
from hmac_file_server.resumption.upload import Resumables, ResumableUpload, TooMany
from hmac_file_server.slots.path import RESERVED
from hmac_file_server.slots.slot import Slot
from hmac_file_server.stores.session import Part
from hmac_file_server.web.digest import asked_digest
from hmac_file_server.web.errors import HTTPError, unavailable
from hmac_file_server.web.request import Request


@attrs.frozen
class Creation:
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
    """What requests ask for and are told of uploads that can be resumed (draft-ietf-httpbis-resumable-upload).

    :param prefix: ``UploadSubDir``.
    :param max_size: the longest file in bytes; 0 for whatever was signed.
    """

    def __init__(self, resumables: Resumables, prefix: str, max_size: int) -> None:
        self._resumables = resumables
        self._base = b"/" + (quote(prefix).encode("ascii") + b"/" if prefix else b"") + RESERVED + b"/"
        self.limits = wire.UploadLimits(max_size, resumables.timeout)

    def asked(self, request: Request, size: int) -> Creation | None:
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
            raise inconsistent(version)
        if complete and not request.hears_104:
            return None
        if complete:
            length = size
        elif length is None:
            raise HTTPError(411, "length_required", "an Upload-Length is needed: the slot is signed for it")
        elif size > length:
            raise inconsistent(version)
        part = Part(size, complete, length=length, digest=digest_of(request, b"Content-Digest"))
        digest = digest_of(request, b"Repr-Digest")
        return Creation(self._resumables, request.client_address, version, length, part, digest)

    def location(self, token: str) -> bytes:
        """The upload resource's URL, as a path."""
        return self._base + token.encode("ascii")

    def begun(self, request: Request) -> None:
        """Tell the client where it can go on, and from now on how much is safe."""
        upload, version = upload_of(request), asked_version(request)
        assert upload.session is not None
        if upload.is_new:
            self._inform(request, wire.offered(version, self.location(upload.token), self.limits))
        upload.progress = lambda safe: self._inform(request, wire.progress(version, safe))

    def _inform(self, request: Request, headers: dict[bytes, bytes] | None) -> None:
        if headers is not None and wire.asked_version(request.requestHeaders) is not None:
            request.send_104(headers)

    def answer(self, request: Request) -> None:
        """The request's content is stored: answer as to a plain PUT if the file is whole now."""
        upload, version = upload_of(request), asked_version(request)
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


def digest_of(request: Request, name: bytes) -> bytes | None:
    """The SHA-256 that a request names.

    :raises HTTPError: if it is none.
    """
    try:
        return asked_digest(request.requestHeaders, name)
    except ValueError as error:
        raise HTTPError(400, "digest", str(error)) from None
