"""What an error of the file system means: whether it may pass, and what its operator can do about it."""

from __future__ import annotations

import errno
import functools
import os
import pwd

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that say that the disk, or a quota, is full."""

_MAY_PASS = NO_ROOM | {
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.ENOLCK,
    errno.EBUSY,
    errno.ENOTCONN,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ESHUTDOWN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EREMOTEIO,
    errno.ECOMM,
    errno.ENOLINK,
    errno.ENXIO,
    errno.ENODEV,
    errno.EKEYEXPIRED,
}
_ABOUT_NAMES = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})

_REMEDIES = {
    errno.EACCES: "give it to that user (chown) or let it read, write and enter (chmod, setfacl)",
    errno.EPERM: "look for an immutable flag (lsattr), a security module, or an option of the mount that forbids it",
    errno.EROFS: "mount it for writing; in a systemd unit name it in ReadWritePaths=; the kernel's log may say more",
    errno.EXDEV: "StoreDir must be one file system and subvolume: mount nothing inside it",
    errno.EMLINK: "it has as many folders as the file system can count; remove old files",
    errno.ELOOP: "there is a symbolic link in the way; put a folder, or a mount, in its place",
    errno.ENOTDIR: "there is no folder where one should be",
    errno.ENOENT: "it was removed",
    errno.EOPNOTSUPP: "the file system can not do this; choose another",
    errno.ENOSYS: "the file system can not do this; choose another",
    errno.EUCLEAN: "the file system is damaged; repair it (fsck)",
    errno.EBADMSG: "the file system is damaged; repair it (fsck)",
    errno.ENOKEY: "it is encrypted and locked; unlock it",
}
_ANY_REMEDY = "the file system's manual or the kernel's log may say why"


class NotDurable(OSError):
    """The disk lost data that is no longer at hand to be written again."""


class Crowded(OSError):
    """There is room, and others that run may need it: ENOSPC that passes when they have come to their end."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ENOSPC, reason)


def may_pass(error: BaseException | None) -> bool:
    """Whether the same step can succeed later: the disk may get room, a network file system may come back."""
    return isinstance(error, OSError) and not isinstance(error, NotDurable) and error.errno in _MAY_PASS


def is_full(error: BaseException | None) -> bool:
    """Whether the disk, or a quota, is full."""
    return isinstance(error, OSError) and not isinstance(error, Crowded) and error.errno in NO_ROOM


def is_lasting(error: BaseException | None) -> bool:
    """Whether nothing but a hand of the operator's helps, so that no client needs to come again."""
    return isinstance(error, OSError) and not isinstance(error, NotDurable) and not may_pass(error)


def is_gone(error: OSError) -> bool:
    """Whether somebody has removed what was to be used; of an open file JuiceFS says EBADF then, now and again."""
    return error.errno in (errno.ENOENT, errno.ESTALE, errno.EBADF)


def refuses_name(error: OSError) -> bool:
    """Whether it may be the name that the file system does not like."""
    return error.errno in _ABOUT_NAMES


def where(error: OSError) -> str:
    """What went wrong and where, as far as that is known."""
    place = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return f"{place}{error.strerror or error}"


def explain(error: BaseException | None) -> str:
    """What went wrong; of what the file system said and what does not pass by itself also for whom, and the remedy."""
    if not isinstance(error, OSError):
        return str(error)
    if not is_lasting(error):
        return where(error)
    return f"{where(error)}, for the user {user()}; {_REMEDIES.get(error.errno or 0, _ANY_REMEDY)}"


@functools.cache
def user() -> str:
    """Who the daemon is to the file system. Asked for at the start first: a directory service may take its time."""
    number = os.geteuid()
    try:
        return f"{pwd.getpwuid(number).pw_name} ({number})"
    except KeyError:
        return str(number)
