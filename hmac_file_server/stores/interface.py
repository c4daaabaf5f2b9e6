"""What a store is to the rest of the daemon. Whatever may wait answers with a Deferred.

What fails with OSError, and may pass, can be called again and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.room import Space
from hmac_file_server.stores.session import Part, Session

Chunks = list[bytes | bytearray]
"""Pieces of a body in their order."""


@attrs.frozen
class Present:
    """A file that is at a slot's path.

    :param size: bytes.
    :param mtime_ns: when the last byte was written, in nanoseconds since 1970.
    :param owner: whose it is, if that is kept with it.
    """

    size: int
    mtime_ns: int
    owner: str | None = None


Condition = Callable[[Present | None], bool]
"""Whether to store a file where the slot's path has this one, or none."""


class Source(Protocol):
    """A socket whose bytes a draft may take by itself, as far as it can."""

    descriptor: int
    taken: int
    dry: bool

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""


class IDraft(Interface):
    """A file on its way into the store. One call at a time."""

    path: SlotPath | None = Attribute("the slot's; None while that is not known")
    end: int = Attribute("where in the file the request's last byte goes")
    position: int = Attribute("where in the file the next byte goes")
    claimed: int = Attribute("how long the file may become in the room that is kept for it; set between two calls")
    owed: int = Attribute("bytes that are claimed, and still to be taken from the store's free space")
    takes_from_sockets: bool = Attribute("whether it can take bytes straight from a Source")
    condition: Condition | None = Attribute("the client's, if it has one; set before it begins")
    digests: Sequence[bytes] = Attribute("each the SHA-256 of the file, as the client says; set before it begins")

    def begin() -> Deferred[None]:
        """Make the file, and look whether the slot is free and can be written to.

        Fails with SlotTaken, SlotRemoved, Unmet, BadName, TooLong or OSError.
        """

    def write(chunks: Chunks, source: Source | None = None) -> Deferred[None]:  # noqa: N805  # methods of an Interface have no self
        """Append the chunks; those that are written are removed from the list.

        :param source: has what comes after them, as far as it is there already. What was taken and could not be
            written is in the list if this fails.
        """

    def publish(chunks: Chunks) -> Deferred[None]:  # noqa: N805
        """Append the last chunks, give the whole file its public name, and let go of it.

        It replaces nothing, and is done when all survives a power loss, if the store promises that. If the very bytes
        are already there under the name, that file is left as it is and counts as ours. Fails with SlotTaken,
        SlotRemoved, Unmet, WrongFile, NotDurable or OSError.
        """

    def give_up(chunks: Chunks, reason: Exception) -> Deferred[None]:  # noqa: N805
        """The request has failed: keep of it what can be gone on with, and let go of it.

        :param chunks: what came and was not written.
        :param reason: why.
        """


class IPart(IDraft):
    """One request's part of an upload that can be resumed, appended to what is there already.

    ``begin`` fails with Held, NoSession, AlreadyComplete, WrongOffset or WrongLength too, ``publish`` with
    WrongDigest; where the part is not the last one it only keeps what has come.
    """

    token: str = Attribute("names the session")
    part: Part = Attribute("what the request brings")
    session: Session | None = Attribute("the session's record, as soon as it is taken")
    dropped: bool = Attribute("whether nothing of the upload was kept, because nobody could go on with it")

    def reserve() -> Deferred[None]:
        """Keep room for a part that goes on."""

    def write_safely(chunks: Chunks) -> Deferred[None]:  # noqa: N805
        """Append the chunks, and make safe all that has come."""


class ISessions(Interface):
    """The sessions of all daemons that share a store."""

    timeout: float = Attribute("seconds after which a session ends")

    def create(session: Session, part: Part) -> IPart:  # noqa: N805
        """A new upload; nothing is kept before it begins. It displaces what was kept of an earlier one of its slot."""

    def append(token: str, part: Part) -> IPart:  # noqa: N805
        """Go on with an upload."""

    def read(token: str) -> Deferred[Session]:  # noqa: N805
        """A session as its record tells it. Fails with NoSession."""

    def settle(token: str) -> Deferred[Session]:  # noqa: N805
        """How far an upload really is, when nobody uses it. Fails with NoSession or Held."""

    def drop(token: str) -> Deferred[None]:  # noqa: N805
        """Forget an upload and its data, when nobody uses it. Fails with NoSession or Held."""

    def want(token: str) -> Deferred[None]:  # noqa: N805
        """Ask whoever holds a session, in another process, to let go of it."""

    def wanted(tokens: Iterable[str]) -> Deferred[list[str]]:  # noqa: N805
        """Those that somebody else waits for."""

    def sweep() -> Deferred[list[Session]]:
        """Remove what has ended; fires with the sessions that go on, or are complete."""

    def count() -> Deferred[int]:
        """How many sessions run, or wait to be resumed."""


class IFile(Interface):
    """A file of the store, open for reading.

    It has a :class:`hmac_file_server.web.conditional.Representation`'s attributes.
    """

    size: int = Attribute("bytes")
    mtime_ns: int = Attribute("when the last byte was written, in nanoseconds since 1970")
    about: Attributes = Attribute("what was kept with it when it was uploaded, as far as the store could")
    content: bytes | None = Attribute("all its bytes where it is small and was asked for, else None")

    def read(offset: int, length: int) -> Deferred[bytes]:  # noqa: N805
        """A range of it. Fails with EOFError if the file has become shorter, or OSError."""

    def send(transport: Any, offset: int, length: int) -> Deferred[int | bytes]:  # noqa: N805
        """Send the beginning of a range straight to a plain socket, as far as that goes.

        :returns: fires with how many bytes the socket took; or with bytes that the transport must be given. Fails with
            EOFError, OSError, or ReaderLeft.
        """

    def close() -> None:
        """Let go of it."""


class IStore(Interface):
    """Files by the paths of their slots."""

    space: Space = Attribute("what was free when it was opened")
    stuck: str = Attribute("why nothing gets done, although the store answers when it is looked at; empty if it does")
    keeps_attributes: bool = Attribute("whether it keeps with a file what is known of it")
    sends: bool = Attribute("whether its files can send themselves to a socket")

    def draft(path: SlotPath, size: int, about: Attributes) -> IDraft:  # noqa: N805
        """A new upload; nothing is kept before it begins.

        :param size: its length in bytes.
        :param about: what is kept with it.
        :raises BadName: if the store can hold no file of that name.
        """

    def open(path: SlotPath, preload: int = 0) -> Deferred[IFile]:  # noqa: N805
        """Open a file to serve it. Fails with NoSuchFile or OSError.

        :param preload: read the content at once if it is no longer than so many bytes.
        """

    def was_removed(path: SlotPath) -> bool:  # noqa: N805
        """Whether a slot's file was removed, as far as that is known at once. Uploads find out in any case."""

    def remove(path: SlotPath, condition: Condition | None = None) -> Deferred[Present | None]:  # noqa: N805
        """Remove a file, so that it does not come back: its slot takes no upload any more, and its sessions end.

        :param condition: of what is there.
        :returns: fires with what was there, None if nothing was. Fails with Unmet or OSError.
        """

    def sessions(timeout: float) -> ISessions:  # noqa: N805
        """The uploads that can be resumed.

        :param timeout: seconds after which one ends.
        """

    def look(ran_out: bool = False) -> Deferred[Space]:  # noqa: N805
        """What is free. Fails with Unusable or OSError if the store can not be used.

        :param ran_out: whether an upload found no room, whatever the figures say.
        """

    def check_writable() -> Deferred[None]:
        """Fails with Unusable if uploads would fail now; that there is no room for them is no fault of the store's."""

    def sweep() -> Deferred[int]:
        """Remove what uploads of dead daemons left, but for what can be resumed; fires with how many files."""

    def retire() -> Deferred[None]:
        """As :meth:`close`, when all is done that was asked of it. Fires then; never if its disk is dead."""

    def close() -> None:
        """Let go of all."""
