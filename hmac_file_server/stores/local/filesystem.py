"""What a file system can be trusted with. Some take what they do not keep: a file may be gone a second later."""

from __future__ import annotations

import ctypes
import os

import attrs

_EXT, _XFS, _BTRFS, _F2FS = 0xEF53, 0x58465342, 0x9123683E, 0xF2F52010
_TMPFS, _OVERLAY = 0x01021994, 0x794C7630

_SPECIAL = {_EXT, _XFS, _BTRFS, _F2FS, _TMPFS, _OVERLAY}
_SYNCED_WHOLE = _SPECIAL - {_OVERLAY}  # What overlayfs tells of its layers' errors depends on the kernel.
_SYNCFS_TELLS = (5, 8)

_libc = ctypes.CDLL(None, use_errno=True)


@attrs.frozen
class FileSystem:
    """What may be done on a file system beside plain POSIX.

    :param special: whether ``O_TMPFILE``, ``fallocate``, ``splice`` and ``sync_file_range`` do there what they
        promise, and a lock of ``flock`` holds for all who share it.
    :param synced_whole: whether ``syncfs`` is known to wait for all, and to tell what was lost.
    """

    special: bool
    synced_whole: bool

    @classmethod
    def of(cls, descriptor: int) -> FileSystem:
        """The one that a file or folder lies on.

        :param descriptor: of the file or folder.
        """
        kind = _type(descriptor)
        return cls(kind in _SPECIAL, kind in _SYNCED_WHOLE and _kernel() >= _SYNCFS_TELLS)


def _type(descriptor: int) -> int:
    """Its kind, as statfs(2) names it."""
    answer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(descriptor, answer) != 0:
        return 0
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF


def _kernel() -> tuple[int, ...]:
    """The kernel's version; of what is no number nothing is made, and an older one supposed."""
    numbers = os.uname().release.partition("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())
