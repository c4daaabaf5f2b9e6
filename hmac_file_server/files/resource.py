"""The files: who may PUT one, and who may have it."""

from __future__ import annotations

import contextlib

import attrs
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from hmac_file_server.files.errors import bug, not_removed, not_stored, nothing_here, removed
from hmac_file_server.files.node import Node
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.upload import Upload, Uploads
from hmac_file_server.log import printable
from hmac_file_server.slots.bearer import BadToken
from hmac_file_server.slots.mistakes import Asked, clues, likely_mistake
from hmac_file_server.slots.path import BadPath, slot_path
from hmac_file_server.slots.removal import Removal
from hmac_file_server.slots.secret import COMMAND
from hmac_file_server.slots.signature import BadSignature
from hmac_file_server.slots.slot import Slot
from hmac_file_server.slots.verifier import Presented, Verifier
from hmac_file_server.stores.interface import Present
from hmac_file_server.web import conditional, digest
from hmac_file_server.web.errors import HTTPError
from hmac_file_server.web.headers import ALLOWED_METHODS, NOTHING_RUNS, lines
from hmac_file_server.web.request import Request

_STORED = lines({**NOTHING_RUNS, b"Content-Length": b"0"})
_EXAMPLE = (
    "with the secret of etc/config.toml only programs on this machine may upload, and through no proxy:"
    f" give Secret, and the XMPP server, one of your own (this prints one: {COMMAND})"
)


class Files(Node):
    """The files below the upload prefix: PUT with a signature; GET and HEAD for whoever knows the path.

    :param serving: answers GET and HEAD.
    :param max_size: the longest file in bytes; 0 for whatever was signed.
    :param removal: checks who may remove files; None where nobody may.
    :param example: checks signatures of the example's secret, which are good for programs on this machine only.
    """

    isLeaf = True

    def __init__(
        self,
        verifier: Verifier,
        serving: Serving,
        uploads: Uploads,
        max_size: int,
        removal: Removal | None = None,
        example: Verifier | None = None,
    ) -> None:
        super().__init__()
        self._verifier = verifier
        self._example = example
        self._serving = serving
        self._uploads = uploads
        self._max_size = max_size
        self._removal = removal
        if removal is not None:
            self.methods = ALLOWED_METHODS + b", DELETE"

    # PUT

    def accept_body(self, request: Request, length: int | None) -> Upload:
        """Verify the slot's signature, and start the upload."""
        return self.receive(request, self.verify(request, body_length(request, length)))

    def verify(self, request: Request, size: int) -> Slot:
        """The slot that a PUT has a right to.

        :param size: of the file in bytes.
        :raises HTTPError: if it has none, or the file is too large.
        """
        try:
            path = slot_path(request.postpath or ())
            shown = _presented(request)
            slot = self._verifier.verify(shown, path, size)
        except BadPath as error:
            refused = HTTPError(400, "path", str(error))
            raise self._for_operator(refused, str(error), request, size) from None
        except BadSignature as error:
            refused = HTTPError(403, "signature", "the signature does not hold")
            raise self._for_operator(refused, str(error), request, size) from None
        except BadToken as error:
            raise self._for_operator(_refused(error), str(error), request, size) from None
        if self._example is not None and not request.is_local and self._example.holds(shown, path, size):
            raise HTTPError(403, "signature", "the server's secret is the one of its example", _EXAMPLE)
        if self._max_size and slot.size > self._max_size:
            message = f"at most {self._max_size} bytes are taken"
            detail = f"{slot.size} bytes, but {message} (MaxUploadSize); the XMPP server's own limit is higher"
            raise HTTPError(413, "too_large", message, detail)
        if self._uploads.was_removed(path):
            raise removed()
        return slot

    def receive(self, request: Request, slot: Slot) -> Upload:
        """Start the upload of a slot."""
        upload = self._uploads.start(slot, request.client_address)
        if request.says_any(digest.NAMES):
            upload.digests_are(_digests(request))
        hold_to_conditions(request, upload)
        return upload

    def _for_operator(self, error: HTTPError, reason: str, request: Request, size: int) -> HTTPError:
        # What leads here is the prefix.
        prefix, upload = b"/".join(request.prepath or ()).decode("utf-8"), asked(request, size)
        return attrs.evolve(
            error,
            detail=lambda: "; ".join(filter(None, (reason, self.mistake(upload, prefix)))),
            clues=lambda: clues(upload),
        )

    def mistake(self, upload: Asked, prefix: str) -> str:
        """What an operator most likely did who has such an upload refused; empty if nobody can tell.

        It costs more than the refusal, and is for the log only.

        :param prefix: ``UploadSubDir``, without slashes around it.
        """
        return likely_mistake(upload, prefix, self._verifier)

    def render_PUT(self, request: Request) -> int:
        """Answer when the file is public and safe."""
        return self.answer_when_stored(request, _stored)

    def explain(self, request: Request, failure: Failure) -> HTTPError:
        return not_stored(failure)

    # DELETE

    def render_DELETE(self, request: Request) -> int:
        """Remove the file for good; it is no fault if there is none (Metronome counts only 204 as done)."""
        assert self._removal is not None
        try:
            path = slot_path(request.postpath or ())
            self._removal.verify(request.args.get(b"token", ()), path)
        except BadPath as error:
            raise HTTPError(400, "path", str(error)) from None
        except BadSignature as error:
            raise HTTPError(403, "signature", "the signature does not hold", str(error)) from None
        condition = None
        if request.says_any(conditional.NAMES_OF_PUT):
            condition = conditional.condition_of_put(request.requestHeaders)
        self._uploads.remove(path, condition).addCallbacks(
            lambda there: self._removed(request, there), lambda failure: request.fail(not_removed(failure))
        ).addErrback(lambda failure: request.fail(bug(failure, "answering a DELETE")))
        return NOT_DONE_YET

    def _removed(self, request: Request, there: Present | None) -> None:
        self._serving.forget()
        request.note = "there was no file" if there is None else f"removed {there.size} bytes"
        if there is not None and there.owner:
            request.note += f" of {printable(there.owner)}"
        request.answer(204, {})

    # GET and HEAD

    def render_GET(self, request: Request) -> int:
        """Send the file, or what was asked for of it."""
        if self._serving.serve_from_memory(request):
            return NOT_DONE_YET
        try:
            path = slot_path(request.postpath or ())
        except BadPath:
            raise nothing_here() from None
        self._serving.serve(request, path)
        return NOT_DONE_YET

    render_HEAD = render_GET


def asked(request: Request, size: int) -> Asked:
    """What is looked at to find out why an upload is refused.

    :param size: of the file in bytes.
    """
    return Asked(request.path, _presented(request), size)


def _presented(request: Request) -> Presented:
    return Presented(request.args, request.said(b"Content-Type"), request.all_said(b"Authorization"))


def _refused(error: BadToken) -> HTTPError:
    """What to answer to a token (RFC 6750, section 3)."""
    if error.status == 413:
        return HTTPError(413, "token", "the token is for a file of another length")
    message = "the token is for another file" if error.status == 403 else "the token gives no right to upload"
    return HTTPError(error.status, "token", message, headers={b"WWW-Authenticate": error.challenge})


def body_length(request: Request, length: int | None) -> int:
    """The length of a PUT's body.

    :raises HTTPError: if nobody knows it before its end.
    """
    if length is None or request.said(b"Content-Length") is None:
        raise HTTPError(411, "length_required", "a Content-Length is needed")
    return length


def hold_to_conditions(request: Request, upload: Upload) -> None:
    """Store an upload only if the conditions of its request are met (RFC 9110, section 13)."""
    if request.says_any(conditional.NAMES_OF_PUT):
        upload.store_only_if(conditional.condition_of_put(request.requestHeaders))


def _digests(request: Request) -> list[bytes]:
    """What a plain PUT says of its content, which is the whole file.

    What is no digest is passed over, for nobody answers to it there; in a resumable upload it is refused.
    """
    digests = []
    for name in digest.NAMES:
        with contextlib.suppress(ValueError):
            digests.append(digest.asked_digest(request.requestHeaders, name))
    return [found for found in digests if found is not None]


def _stored(request: Request) -> None:
    request.answer_ready(201, _STORED, b"")
