"""The Resource tree: what can be asked for, and who may."""

from __future__ import annotations

import secrets
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from hmac_file_server.slots.path import BadPath, SlotPath, slot_path
from hmac_file_server.slots.signature import BadSignature, Verifier
from hmac_file_server.stores.draft import SlotTaken
from hmac_file_server.stores.local import LocalStore, NoSuchFile, StoredFile
from hmac_file_server.stores.room import Away, NoRoom
from hmac_file_server.uploads.retry import NO_ROOM, InThread
from hmac_file_server.uploads.upload import Upload, Uploads
from hmac_file_server.web import conditional, download
from hmac_file_server.web.errors import HTTPError, method_not_allowed, unavailable
from hmac_file_server.web.headers import ALLOWED_METHODS, CACHE, PREFLIGHT, file_headers, served_type
from hmac_file_server.web.request import Request

_log = Logger()

METHODS = frozenset(ALLOWED_METHODS.split(b", "))

_PRELOAD = 64 << 10


class Node(Resource):
    """A place in the tree; without children or methods of its own there is nothing here."""

    def getChild(self, path: bytes, request: Request) -> Node:
        return Node()

    def accept(self, request: Request, length: int | None) -> Upload | None:
        """Decide at the end of the headers.

        :param length: of the body in bytes; None if it is chunked.
        :returns: what consumes the body; None if there is none.
        :raises HTTPError: to refuse the request before its body.
        """
        if request.method not in METHODS:
            raise method_not_allowed(ALLOWED_METHODS)
        if request.method == b"PUT":
            return self.accept_PUT(request, length)
        if length != 0:
            raise HTTPError(400, "body", "a body makes no sense here")
        return None

    def accept_PUT(self, request: Request, length: int | None) -> Upload:
        """As :meth:`accept`, for a PUT."""
        raise _nothing_here()

    def explain(self, failure: Failure) -> HTTPError:
        """What to answer when the body's consumer failed."""
        raise NotImplementedError

    def render_OPTIONS(self, request: Request) -> int:
        """Answer a browser's preflight."""
        request.answer(204, PREFLIGHT)
        return NOT_DONE_YET

    def render_GET(self, request: Request) -> int:
        """There is no listing."""
        raise _nothing_here()

    render_HEAD = render_GET


class Files(Node):
    """The files below the upload prefix: PUT with a signature; GET and HEAD for whoever knows the path.

    :param max_size: the longest body in bytes; 0 for whatever was signed.
    :param in_thread: runs blocking reads.
    """

    isLeaf = True

    def __init__(
        self,
        verifier: Verifier,
        store: LocalStore,
        uploads: Uploads,
        max_size: int,
        in_thread: InThread,
    ) -> None:
        super().__init__()
        self._verifier = verifier
        self._store = store
        self._uploads = uploads
        self._max_size = max_size
        self._in_thread = in_thread

    # PUT

    def accept_PUT(self, request: Request, length: int | None) -> Upload:
        """Verify the slot's signature, and start the upload."""
        headers = request.requestHeaders
        if length is None or not headers.hasHeader(b"Content-Length"):
            raise HTTPError(411, "length_required", "a Content-Length is needed")
        try:
            path = slot_path(request.postpath or ())
            slot = self._verifier.verify(request.args, path, length, request.getHeader(b"Content-Type"))
        except BadPath as error:
            raise HTTPError(400, "path", str(error)) from None
        except BadSignature as error:
            raise HTTPError(403, "signature", "the signature does not hold", str(error)) from None
        if self._max_size and slot.size > self._max_size:
            raise HTTPError(413, "too_large", f"at most {self._max_size} bytes are taken")
        try:
            return self._uploads.start(slot)
        except NoRoom as error:
            raise HTTPError(507, "no_room", "there is no room for the file", str(error)) from None
        except Away as error:
            raise unavailable("storage", "the file could not be stored, try again later", str(error)) from None

    def render_PUT(self, request: Request) -> int:
        """Answer when the file is public and safe."""
        upload = request.body
        assert upload is not None
        upload.done.addCallbacks(
            lambda _: request.answer(201, {}), lambda failure: request.fail(self.explain(failure))
        ).addErrback(_bug, "answering a PUT")
        return NOT_DONE_YET

    def explain(self, failure: Failure) -> HTTPError:
        error = failure.value
        if isinstance(error, SlotTaken):
            return HTTPError(409, "conflict", "the slot has been used for another file")
        if isinstance(error, OSError):
            if error.errno in NO_ROOM:
                return HTTPError(507, "no_room", "there is no room for the file", f"store: {error.strerror}")
            return unavailable("storage", "the file could not be stored, try again later", f"store: {error.strerror}")
        return _bug(failure, "storing an upload")

    # GET and HEAD

    def render_GET(self, request: Request) -> int:
        """Open the file in a thread and answer as HTTP asks."""
        try:
            path = slot_path(request.postpath or ())
        except BadPath:
            raise _nothing_here() from None
        preload = _PRELOAD if request.method == b"GET" and not request.requestHeaders.hasHeader(b"Range") else -1
        opened = self._in_thread(lambda: self._store.open(path, preload))
        opened.addCallbacks(
            lambda file: self._serve(request, path, file), lambda failure: request.fail(self._no_file(failure))
        ).addErrback(_bug, "answering a GET")
        return NOT_DONE_YET

    render_HEAD = render_GET

    def _no_file(self, failure: Failure) -> HTTPError:
        if failure.check(NoSuchFile):
            return _nothing_here()
        if failure.check(OSError):
            return unavailable("storage", "the file can not be read now", f"store: {failure.value}")
        return _bug(failure, "opening a file")

    def _serve(self, request: Request, path: SlotPath, file: StoredFile) -> None:
        try:
            pieces = self._answer(request, path, file)
        except BaseException:
            file.close()
            raise
        if pieces and not request.gone:
            download.send(request, file, pieces, self._in_thread)
        else:
            file.close()

    def _answer(self, request: Request, path: SlotPath, file: StoredFile) -> list[download.Piece]:
        """Answer, or write the headers and say what is to follow."""
        headers = {b"ETag": conditional.etag(file), b"Last-Modified": conditional.last_modified(file)}
        status = conditional.precondition_status(request.requestHeaders, file)
        if status == 304:
            request.answer(304, headers | {b"Cache-Control": CACHE})
            return []
        if status == 412:
            request.fail(HTTPError(412, "precondition", "the file is not the one that was meant", headers=headers))
            return []
        media_type = served_type(file.media_type, path.name)
        headers |= file_headers(media_type, path.name)
        if request.method == b"HEAD":
            request.answer(200, headers | {b"Content-Length": b"%d" % file.size})
            return []
        try:
            ranges = conditional.requested_ranges(request.requestHeaders, file)
        except conditional.Unsatisfiable:
            span = {b"Content-Range": b"bytes */%d" % file.size}
            request.fail(HTTPError(416, "range", "the file has no such range", headers=span))
            return []
        if file.content is not None:
            request.answer(200, headers, file.content)
            return []
        status, pieces = _body(ranges, file.size, media_type, headers)
        if not request.gone:
            request.start(status, headers)
        return pieces


def _nothing_here() -> HTTPError:
    return HTTPError(404, "not_found", "there is nothing here")


def _bug(failure: Failure, where: str) -> HTTPError:
    _log.failure("a bug in {where}", failure, where=where)
    return HTTPError(500, "bug", "the server failed; its log says how")


def _body(
    ranges: list[conditional.Range] | None, size: int, media_type: bytes, headers: dict[bytes, bytes]
) -> tuple[int, list[download.Piece]]:
    """The status and the pieces of a file's answer; adds what the headers must say of them."""
    if ranges is None:
        headers[b"Content-Length"] = b"%d" % size
        return 200, [(0, size)]
    if len(ranges) == 1:
        offset, length = ranges[0]
        headers[b"Content-Range"] = _content_range(offset, length, size)
        headers[b"Content-Length"] = b"%d" % length
        return 206, [(offset, length)]
    boundary = secrets.token_hex(16).encode("ascii")
    pieces: list[Any] = []
    for offset, length in ranges:
        span = _content_range(offset, length, size)
        pieces.append(b"\r\n--%b\r\nContent-Type: %b\r\nContent-Range: %b\r\n\r\n" % (boundary, media_type, span))
        pieces.append((offset, length))
    pieces.append(b"\r\n--%b--\r\n" % boundary)
    headers[b"Content-Type"] = b"multipart/byteranges; boundary=" + boundary
    headers[b"Content-Length"] = b"%d" % sum(len(p) if isinstance(p, bytes) else p[1] for p in pieces)
    return 206, pieces


def _content_range(offset: int, length: int, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (offset, offset + length - 1, size)


def root(prefix: str, files: Files) -> Node:
    """The tree: everything below the prefix is a file's path.

    :param prefix: ``UploadSubDir``; empty if files lie at the root.
    """
    segments = [segment.encode("utf-8") for segment in prefix.split("/") if segment]
    if not segments:
        return files
    top = node = Node()
    for segment in segments[:-1]:
        child = Node()
        node.putChild(segment, child)
        node = child
    node.putChild(segments[-1], files)
    return top
