"""The memory of removed slots: a URL that was good for an upload once must not bring its file back.

It lies in files of fixed records, one for each process, in a folder of the store's own. All read all of them. A record
is safe before its file is unlinked; its place was taken from the disk before, so that removing works on a full one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import struct
import threading
import time
import zlib

import attrs

from hmac_file_server.slots.path import SlotPath
from hmac_file_server.stores.local.filesystem import FileSystem

FOLDER = b"removed"
"""The folder's name, in the store's own."""

_SUFFIX = b".removed"
_RECORD = struct.Struct(">4s32sQI")  # magic, SHA-256 of the path, seconds since 1970, CRC-32 of all before
_MAGIC = b"gone"
_AT_ONCE = 1024
_RESERVE = 64 << 10
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT_SECONDS = 86400.0
_TIDY_SECONDS = 600.0
_GETFLAGS, _SETFLAGS, _NOCOW = 0x80086601, 0x40086602, 0x00800000  # in linux/fs.h
_RACY_NS = 2_000_000_000
"""A folder that changed so recently may change again without its time telling."""


@attrs.define
class _File:
    """One file of records, as far as it was read."""

    descriptor: int
    offset: int = 0
    is_new: bool = True


class Removed:
    """The removed slots of a store. All methods but :meth:`knows` block and belong in a thread.

    :param own: descriptor of the store's own folder.
    :param fsync: whether a record survives a power loss.
    :param remember: seconds for which a removal counts; 0 for ever.
    """

    def __init__(self, own: int, file_system: FileSystem, fsync: bool, remember: float) -> None:
        self._folder = own
        self._file_system = file_system
        self._fsync = fsync
        self._remember = remember
        self._lock = threading.Lock()
        self._known: dict[bytes, int] = {}
        self._files: dict[bytes, _File] = {}
        self._seen: tuple[int, int] | None = None
        self._own: int | None = None
        self._own_name = b""
        self._end = self._reserved = 0
        self._tidied = time.monotonic()

    def knows(self, path: SlotPath) -> bool:
        """Whether a slot was removed, as far as that was read before."""
        when = self._known.get(_digest(path)) if self._known else None
        return when is not None and self._counts(when)

    def has(self, path: SlotPath) -> bool:
        """Whether a slot was removed, by whatever process.

        :raises OSError: if nobody can tell.
        """
        with self._lock:
            self._read_new()
        return self.knows(path)

    def read(self) -> None:
        """Read what others have removed.

        :raises OSError: if that can not be read.
        """
        with self._lock:
            self._read_new()

    def add(self, path: SlotPath) -> None:
        """Remember a slot for good.

        :raises OSError: if that can not be.
        """
        with self._lock:
            self._append(_record(_digest(path), int(time.time())))
            self._known[_digest(path)] = int(time.time())

    def prepare(self) -> None:
        """Take room on the disk for what will be removed.

        :raises OSError: if there is none.
        """
        with self._lock:
            self._read_new()
            self._open_own()

    def tidy(self) -> None:
        """Write again what somebody has removed; now and then show others that this process lives, and forget."""
        with self._lock, contextlib.suppress(OSError):
            if self._own is None:
                return
            self._open_own()
            if time.monotonic() < self._tidied + _TIDY_SECONDS:
                return
            self._tidied = time.monotonic()
            os.utime(self._own)
            if self._remember:
                self._compact()

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._forget_own()
            for file in self._files.values():
                os.close(file.descriptor)
            self._files, self._seen = {}, None

    def _counts(self, when: int) -> bool:
        return not self._remember or when + self._remember > time.time()

    # Reading

    def _read_new(self) -> None:
        try:
            there = os.stat(FOLDER, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        seen = there.st_ino, there.st_mtime_ns
        if seen != self._seen:
            self._find_files()
            self._seen = seen if there.st_mtime_ns < time.time_ns() - _RACY_NS else None
        for name, file in list(self._files.items()):
            try:
                self._read_file(file)
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.EBADF, errno.ENOENT):
                    raise
                self._drop(name)  # Another machine has put a shorter one in its place.
                self._seen = None

    def _find_files(self) -> None:
        folder = _open_folder(self._folder)
        try:
            names = {os.fsencode(name) for name in os.listdir(folder)}
            names = {name for name in names if name.endswith(_SUFFIX)}
            for name in self._files.keys() - names:
                self._drop(name)
            for name in names - self._files.keys():
                with contextlib.suppress(FileNotFoundError):
                    self._files[name] = _File(os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=folder))
        finally:
            os.close(folder)

    def _drop(self, name: bytes) -> None:
        with contextlib.suppress(OSError):
            os.close(self._files.pop(name).descriptor)

    def _read_file(self, file: _File) -> None:
        # Nearly always there is nothing new, which costs one call. At first all is read: a record that a power cut has
        # taken hides none behind it.
        while file.is_new or os.pread(file.descriptor, _RECORD.size, file.offset).strip(b"\0"):
            file.is_new = False
            data = os.pread(file.descriptor, _AT_ONCE * _RECORD.size, file.offset)
            records = [data[at : at + _RECORD.size] for at in range(0, len(data), _RECORD.size)]
            used = max((index + 1 for index, record in enumerate(records) if record.strip(b"\0")), default=0)
            for index, record in enumerate(records[:used]):
                found = _parse(record)
                if found is not None:
                    digest, when = found
                    self._known[digest] = max(when, self._known.get(digest, 0))
                elif index == used - 1:
                    used -= 1  # It is being written just now, or was never finished.
            file.offset += used * _RECORD.size
            if used < _AT_ONCE:
                return

    # Writing

    def _append(self, record: bytes) -> None:
        file = self._open_own()
        if os.pwrite(file, record, self._end) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += len(record)  # Also if the flush fails: others may have read so far, and look only behind it.
        if self._fsync:
            os.fdatasync(file)
        if self._end + _RESERVE // 2 > self._reserved:
            with contextlib.suppress(OSError):
                self._take_room()

    def _open_own(self) -> int:
        if self._own is not None and os.fstat(self._own).st_nlink:
            return self._own
        was_lost = self._own is not None
        self._forget_own()
        with contextlib.suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=self._folder)
            self._flush_folder(self._folder)
        if not self._adopt():
            self._make()
        if was_lost:
            # Somebody has removed the folder.
            self._write_all(self._known)
        assert self._own is not None
        return self._own

    def _forget_own(self) -> None:
        if self._own is not None:
            os.close(self._own)
        self._own = None

    def _adopt(self) -> bool:
        """Go on with the file of a process that has ended."""
        for name in sorted(_names(self._folder)):
            if not name.endswith(_SUFFIX):
                continue
            try:
                file = os.open(_in_folder(name), os.O_RDWR | _FLAGS, dir_fd=self._folder)
            except OSError:
                continue
            try:
                if self._is_nobodys(file):
                    self._find_end(file)
                    self._own, self._own_name = file, name
                    with contextlib.suppress(OSError):  # On a full disk what was reserved before must do.
                        self._take_room()
                    return True
            except OSError:
                pass
            os.close(file)
        return False

    def _is_nobodys(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        there = os.fstat(file)
        # On a network's file system another host's lock may not be seen here; whoever lives changes the time.
        is_left = self._file_system.special or there.st_mtime + _LEFT_SECONDS < time.time()
        return is_left and there.st_nlink > 0

    def _find_end(self, file: int) -> None:
        size = os.fstat(file).st_size
        reader = _File(file)
        self._read_file(reader)
        self._end, self._reserved = reader.offset, size

    def _make(self) -> None:
        self._own_name = secrets.token_hex(16).encode("ascii") + _SUFFIX
        file = os.open(
            _in_folder(self._own_name), os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=self._folder
        )
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_in_place(file)
        self._own, self._end, self._reserved = file, 0, 0
        folder = _open_folder(self._folder)
        try:
            self._flush_folder(folder)
        finally:
            os.close(folder)
        self._take_room()

    def _take_room(self) -> None:
        assert self._own is not None
        goal = self._end + _RESERVE
        if goal <= self._reserved:
            return
        if self._file_system.special:
            os.posix_fallocate(self._own, self._reserved, goal - self._reserved)
        else:
            goal = self._reserved + os.pwrite(self._own, bytes(goal - self._reserved), self._reserved)
        if self._fsync:
            os.fsync(self._own)
        self._reserved = goal

    def _write_all(self, known: dict[bytes, int]) -> None:
        for digest, when in known.items():
            self._append(_record(digest, when))

    def _compact(self) -> None:
        """Put in place of the own file a new one, without what counts no more."""
        self._read_new()
        over = [digest for digest, when in self._known.items() if not self._counts(when)]
        for digest in over:
            del self._known[digest]
        if not over or self._own is None:
            return
        ours = dict[bytes, int]()
        for at in range(0, self._end, _RECORD.size):
            found = _parse(os.pread(self._own, _RECORD.size, at))
            if found is not None and self._counts(found[1]):
                ours[found[0]] = found[1]
        if len(ours) * _RECORD.size == self._end:
            return
        old, old_name = self._own, self._own_name
        self._own = None
        try:
            self._make()
            self._write_all(ours)
        except OSError:
            if self._own is not None:
                os.unlink(_in_folder(self._own_name), dir_fd=self._folder)
                os.close(self._own)
            self._own, self._own_name = old, old_name
            self._find_end(old)
            raise
        os.unlink(_in_folder(old_name), dir_fd=self._folder)
        os.close(old)

    def _flush_folder(self, folder: int) -> None:
        if self._fsync:
            os.fsync(folder)


def _write_in_place(file: int) -> None:
    """Have Btrfs write where the room was taken, for each record, and not only for the first in a block (chattr +C).

    :param file: an empty one.
    """
    with contextlib.suppress(OSError):
        flags = struct.unpack("l", fcntl.ioctl(file, _GETFLAGS, bytes(struct.calcsize("l"))))[0]
        fcntl.ioctl(file, _SETFLAGS, struct.pack("l", flags | _NOCOW))


def _digest(path: SlotPath) -> bytes:
    return hashlib.sha256(path.signed).digest()


def _record(digest: bytes, when: int) -> bytes:
    body = _RECORD.pack(_MAGIC, digest, when, 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "big")


def _parse(record: bytes) -> tuple[bytes, int] | None:
    """Which slot, and when; None if it is no record."""
    if len(record) != _RECORD.size:
        return None
    magic, digest, when, check = _RECORD.unpack(record)
    return (digest, when) if magic == _MAGIC and check == zlib.crc32(record[:-4]) else None


def _in_folder(name: bytes) -> bytes:
    return b"%b/%b" % (FOLDER, name)


def _open_folder(own: int) -> int:
    return os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=own)


def _names(own: int) -> list[bytes]:
    folder = _open_folder(own)
    try:
        return [os.fsencode(name) for name in os.listdir(folder)]
    finally:
        os.close(folder)
