"""Space on the disk for a file that is about to be written."""

from __future__ import annotations

import ctypes
import errno
import os
import resource

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE in linux/falloc.h
_NOT_POSSIBLE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def reserve(file: int, offset: int, length: int) -> bool:
    """Take the space for a part of a file now, without changing the file's length.

    fallocate(2) itself: posix_fallocate of the C library writes zeros where the file system can not.

    :returns: whether the file system could.
    :raises OSError: ENOSPC and the like.
    """
    if _libc.fallocate(file, _KEEP_SIZE, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_POSSIBLE:
        return False
    raise OSError(number, os.strerror(number))


def check_length(file: int, size: int) -> None:
    """:raises OSError: EFBIG if no file there can have so many bytes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    here = os.lseek(file, 0, os.SEEK_CUR)
    try:
        # Refused beyond what the file system can count to.
        os.lseek(file, size, os.SEEK_SET)
        too_long = resource.RLIM_INFINITY != limit < size
    except OSError:
        too_long = True
    os.lseek(file, here, os.SEEK_SET)
    if too_long:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
