"""The Resource tree: what can be asked for, and who may."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import attrs
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from hmac_file_server.files.errors import not_stored, nothing_here
from hmac_file_server.files.node import Node
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.upload import Upload, Uploads
from hmac_file_server.resumption.resource import Resumption
from hmac_file_server.resumption.wire import asked_digest
from hmac_file_server.slots.mistakes import Asked, likely_mistake, where_uploads_go
from hmac_file_server.slots.path import RESERVED, BadPath, slot_path
from hmac_file_server.slots.secret import COMMAND
from hmac_file_server.slots.signature import BadSignature, Verifier
from hmac_file_server.web import conditional
from hmac_file_server.web.errors import HTTPError
from hmac_file_server.web.headers import NOTHING_RUNS, lines, preflight
from hmac_file_server.web.request import Request

_STORED = lines({**NOTHING_RUNS, b"Content-Length": b"0"})
_DIGESTS = frozenset((b"Content-Digest", b"Repr-Digest"))
_EXAMPLE = (
    "with the secret of etc/config.toml only programs on this machine may upload, and through no proxy:"
    f" give Secret, and the XMPP server, one of your own (this prints one: {COMMAND})"
)


class Files(Node):
    """The files below the upload prefix: PUT with a signature; GET and HEAD for whoever knows the path.

    :param serving: answers GET and HEAD.
    :param max_size: the longest body in bytes; 0 for whatever was signed.
    :param resumption: what makes uploads resumable, if they are.
    :param example: checks signatures of the example's secret, which are good for programs on this machine only.
    """

    isLeaf = True

    def __init__(
        self,
        verifier: Verifier,
        serving: Serving,
        uploads: Uploads,
        max_size: int,
        resumption: Resumption | None = None,
        example: Verifier | None = None,
    ) -> None:
        super().__init__()
        self._verifier = verifier
        self._example = example
        self._serving = serving
        self._uploads = uploads
        self._max_size = max_size
        self._resumption = resumption

    # PUT

    def accept_body(self, request: Request, length: int | None) -> Upload:
        """Verify the slot's signature, and start the upload."""
        if length is None or request.said(b"Content-Length") is None:
            raise HTTPError(411, "length_required", "a Content-Length is needed")
        offer = self._resumption.offer(request, length) if self._resumption is not None else None
        size = length if offer is None else offer.length
        try:
            path = slot_path(request.postpath or ())
            slot = self._verifier.verify(request.args, path, size, request.said(b"Content-Type"))
        except BadPath as error:
            raise HTTPError(400, "path", str(error), self._detail(str(error), request, size)) from None
        except BadSignature as error:
            reason = self._detail(str(error), request, size)
            raise HTTPError(403, "signature", "the signature does not hold", reason) from None
        if (
            self._example is not None
            and not request.is_local
            and self._example.holds(request.args, path, size, request.said(b"Content-Type"))
        ):
            raise HTTPError(403, "signature", "the server's secret is the one of its example", _EXAMPLE)
        if self._max_size and slot.size > self._max_size:
            limits = self._resumption.limits.announced if self._resumption is not None and offer is not None else {}
            message = f"at most {self._max_size} bytes are taken"
            detail = f"{slot.size} bytes, but {message} (MaxUploadSize); the XMPP server's own limit is higher"
            raise HTTPError(413, "too_large", message, detail, limits)
        upload: Upload | None = offer.take(slot) if offer is not None else None
        if upload is None:
            upload = self._uploads.start(slot, request.client_address)
            if request.says_any(_DIGESTS):
                upload.digests_are(_digests(request))
        if request.says_any(conditional.NAMES_OF_PUT):
            upload.store_only_if(conditional.condition_of_put(request.requestHeaders))
        return upload

    def _detail(self, reason: str, request: Request, size: int) -> Callable[[], str]:
        # What leads here is the prefix.
        mistake = self.mistake(request, size, b"/".join(request.prepath or ()).decode("utf-8"))
        return lambda: "; ".join(filter(None, (reason, mistake())))

    def mistake(self, request: Request, size: int, prefix: str) -> Callable[[], str]:
        """What an operator most likely did who has such an upload refused; empty if nobody can tell.

        :param size: of the file in bytes.
        :param prefix: ``UploadSubDir``, without slashes around it.
        :returns: what guesses: that costs more than the refusal, and is for the log only.
        """
        said, verifier = request.said, self._verifier
        asked = Asked(request.path, request.args, size, said(b"Content-Type"), said(b"Authorization"))
        return lambda: likely_mistake(asked, prefix, verifier)

    def render_OPTIONS(self, request: Request) -> int:
        limits = self._resumption.limits.announced if self._resumption is not None else {}
        request.answer(204, preflight(self.methods) | limits)
        return NOT_DONE_YET

    def begun(self, request: Request) -> None:
        if self._resumption is None or request.body is None or not request.body.token:
            return
        self._resumption.begun(request)

    def render_PUT(self, request: Request) -> int:
        """Answer when the file is public and safe, or a part of it is safe."""
        assert request.body is not None
        stored = self._resumption.answer if self._resumption and request.body.token else _stored
        return self.answer_when_stored(request, stored)

    def explain(self, request: Request, failure: Failure) -> HTTPError:
        if self._resumption is not None and request.body is not None and request.body.token:
            return self._resumption.explain(request, failure)
        return not_stored(failure)

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


def _digests(request: Request) -> list[bytes]:
    """What a plain PUT says of its content, which is the whole file.

    What is no digest is passed over, for nobody answers to it there; in a resumable upload it is refused.
    """
    digests = []
    for name in _DIGESTS:
        with contextlib.suppress(ValueError):
            digests.append(asked_digest(request.requestHeaders, name))
    return [digest for digest in digests if digest is not None]


def _stored(request: Request) -> None:
    request.answer_ready(201, _STORED, b"")


class Prefix(Node):
    """The place that the prefix leads to: below it are the files, and in a corner of its own the upload resources."""

    def __init__(self, files: Files, resumption: Resumption | None) -> None:
        super().__init__()
        self._files = files
        if resumption is not None:
            self.putChild(RESERVED, resumption.resources)

    def getChild(self, path: bytes, request: Request) -> Node:
        # The files are a leaf, which takes the whole path below the prefix.
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

    def accept_body(self, request: Request, length: int | None) -> Upload:
        error, prefix = nothing_here(), self._prefix
        mistake: Callable[[], str] = str
        if request.method == b"PUT":
            mistake = self._files.mistake(request, length or 0, prefix)
        raise attrs.evolve(error, detail=lambda: f"{error}; {mistake() or where_uploads_go(prefix)}")

    def render_GET(self, request: Request) -> int:
        error = nothing_here()
        raise attrs.evolve(error, detail=f'{error}: files lie below "/{self._prefix}/" (UploadSubDir)')

    render_HEAD = render_GET


def root(prefix: str, files: Files, resumption: Resumption | None = None) -> Node:
    """The tree: everything below the prefix is a file's path.

    :param prefix: ``UploadSubDir``; empty if files lie at the root.
    """
    node: Node = Prefix(files, resumption)
    for segment in reversed([segment for segment in prefix.split("/") if segment]):
        parent = Outside(prefix, files)
        parent.putChild(segment.encode("utf-8"), node)
        node = parent
    return node
