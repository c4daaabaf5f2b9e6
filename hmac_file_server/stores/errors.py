"""What a store may answer instead of doing what it was asked."""

from __future__ import annotations

from hmac_file_server.stores.session import Session


class NoSuchFile(Exception):
    """There is no file to serve under this path."""


class Unusable(Exception):
    """There is no store where one should be; the text says why and what would help.

    :ivar lasting: whether that will not pass by itself.
    """

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class BadName(Exception):
    """The store can not hold a file of this name."""


class TooLong(Exception):
    """The store can not hold a file of this length."""


class ReaderLeft(Exception):
    """Nobody is at the other end of the socket any more that a file was to be sent to."""


class SlotTaken(Exception):
    """Another file, with other bytes, already has the slot's path."""


class SlotRemoved(Exception):
    """The slot's file was removed, for good."""


class Unmet(Exception):
    """The slot's path has a file, or has none, against the client's condition."""


class WrongFile(Exception):
    """The whole file is not the one that the client's digest is of (RFC 9530)."""


# Of uploads that can be resumed


class NoSession(Exception):
    """There is no such session, or it has ended."""


class Held(Exception):
    """Somebody else is using the session.

    :ivar token: names it.
    """

    def __init__(self, token: str) -> None:
        super().__init__("the upload is in use")
        self.token = token


class WrongOffset(Exception):
    """The part does not begin where the data ends.

    :ivar session: what there is.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(f"{session.safe} bytes are here")
        self.session = session


class WrongLength(Exception):
    """The part and the session disagree about the length of the file."""


class WrongDigest(Exception):
    """The part is not the one that the client's Content-Digest is of (RFC 9530)."""


class AlreadyComplete(Exception):
    """The file is stored already.

    :ivar session: its record.
    """

    def __init__(self, session: Session) -> None:
        super().__init__("the upload is complete")
        self.session = session


class Cancelled(Exception):
    """The client does not want the upload any more."""

    def __init__(self) -> None:
        super().__init__("the upload was dropped")
