"""Renaming that replaces nothing: renameat2(2) with ``RENAME_NOREPLACE``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets

_NOREPLACE = 1  # in linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)


def move(name: bytes, folder: int, to_name: bytes, to_folder: int) -> None:
    """Give a file another name.

    :param folder: descriptor of the folder that it is in.
    :param to_folder: of the one that it will be in.
    :raises OSError: EEXIST if the name is taken; EINVAL or ENOSYS where files can not be renamed so.
    """
    try:
        renamed = _libc.renameat2(folder, name, to_folder, to_name, _NOREPLACE)
    except AttributeError:  # Some C libraries do not know it.
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if renamed != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def replaces_nothing(folder: int) -> bool:
    """Whether files in a folder can be renamed so, and a name that is taken is left alone.

    :param folder: its descriptor; two files are made in it and removed again.
    """
    names = [b"%b.part" % secrets.token_hex(16).encode("ascii") for _ in range(3)]
    try:
        for name in names[:2]:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder))
        with contextlib.suppress(FileExistsError):
            move(names[0], folder, names[1], folder)
            return False
        move(names[0], folder, names[2], folder)
        return True
    except OSError:
        return False
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
