"""Space on the disk for a file that is about to be written."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE in linux/falloc.h
_NOT_POSSIBLE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def reserve(file: int, size: int) -> bool:
    """Take the space for a file now, without changing its length.

    fallocate(2) itself: posix_fallocate of the C library writes zeros where the file system can not.

    :returns: whether the file system could.
    :raises OSError: ENOSPC and the like.
    """
    if _libc.fallocate(file, _KEEP_SIZE, 0, size) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_POSSIBLE:
        return False
    raise OSError(number, os.strerror(number))
