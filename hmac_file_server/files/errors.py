"""What to answer when the store fails: the one place that maps its errors to statuses."""

from __future__ import annotations

from twisted.logger import Logger
from twisted.python.failure import Failure

from hmac_file_server.files.upload import Superseded
from hmac_file_server.stores.errors import BadName, NoSuchFile, SlotRemoved, SlotTaken, TooLong, Unmet, WrongFile
from hmac_file_server.stores.faults import NO_ROOM, explain, is_lasting
from hmac_file_server.stores.room import Away, NoRoom
from hmac_file_server.web.errors import HTTPError, precondition_failed, unavailable

_log = Logger()


def not_taken(error: NoRoom | Away | BadName | TooLong) -> HTTPError:
    """What to answer to an upload that can not even begin."""
    if isinstance(error, NoRoom):
        return _no_room(str(error))
    if isinstance(error, BadName):
        return HTTPError(400, "path", "the server can not store a file of this name", str(error))
    if isinstance(error, TooLong):
        # Counted as a fault of the store's: the XMPP server has signed it, and MaxUploadSize lets it pass.
        return HTTPError(413, "storage", "the server can not store a file of this length", f"store: {error}")
    return _failed("stored", f"store: {error}", error.lasting)


def not_stored(failure: Failure) -> HTTPError:
    """What to answer when a file could not be stored."""
    error = failure.value
    if isinstance(error, SlotTaken):
        return HTTPError(409, "conflict", "the slot has been used for another file")
    if isinstance(error, SlotRemoved):
        return removed()
    if isinstance(error, Unmet):
        return precondition_failed()
    if isinstance(error, WrongFile):
        return HTTPError(400, "digest", "the file is not the one that the digest is of")
    if isinstance(error, Superseded):
        return HTTPError(409, "superseded", str(error))
    if isinstance(error, NoRoom | Away | BadName | TooLong):
        return not_taken(error)
    if isinstance(error, OSError):
        if error.errno in NO_ROOM:
            return _no_room(f"store: {explain(error)}")
        return _failed("stored", f"store: {explain(error)}", is_lasting(error))
    return bug(failure, "storing an upload")


def not_served(failure: Failure) -> HTTPError:
    """What to answer when a file can not be opened."""
    error = failure.value
    if isinstance(error, NoSuchFile):
        return nothing_here()
    if isinstance(error, OSError):
        return _failed("read", f"store: {explain(error)}", is_lasting(error))
    return bug(failure, "opening a file")


def removed() -> HTTPError:
    """403: the slot's file was removed, and a slot is good for one file."""
    return HTTPError(403, "removed", "the slot's file was removed")


def not_removed(failure: Failure) -> HTTPError:
    """What to answer when a file can not be removed."""
    error = failure.value
    if isinstance(error, Unmet):
        return precondition_failed()
    if isinstance(error, OSError):
        if error.errno in NO_ROOM:
            return _no_room(f"store: {explain(error)}")
        return _failed("removed", f"store: {explain(error)}", is_lasting(error))
    return bug(failure, "removing a file")


def nothing_here() -> HTTPError:
    """404: there is no such file, or nobody is told of it."""
    return HTTPError(404, "not_found", "there is nothing here")


def bug(failure: Failure, where: str) -> HTTPError:
    """Log what nobody expected; 500."""
    _log.failure("a bug in {where}", failure, where=where)
    return HTTPError(500, "bug", "the server failed; its log says how")


def _no_room(detail: str) -> HTTPError:
    return HTTPError(507, "no_room", "there is no room for the file", detail)


def _failed(what: str, detail: str, lasting: bool) -> HTTPError:
    """503 for what may pass; 500, and no word of coming again, for what somebody has to mend first."""
    if lasting:
        return HTTPError(500, "storage", f"the file can not be {what}; the server's log says why", detail)
    return unavailable("storage", f"the file can not be {what} now, try again later", detail)
