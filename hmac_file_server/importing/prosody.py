"""Prosody's ``mod_http_file_share``, 0.12 and later, where it stores the files by itself.

The bytes lie in ``<data_path>/<host>/http_file_share/<slot>.bin``. Prosody's archive store ``uploads`` knows the name,
type, length, uploader and time of each: by its internal storage in ``<data_path>/<host>/uploads.list`` (the index
beside it, ``uploads.lidx``, is not needed), by SQLite in ``<data_path>/prosody.sqlite``. Its URLs end with
``<slot>/<name>``. What it does not store is when a file expires.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

import attrs

from hmac_file_server import media_types
from hmac_file_server.importing import lua
from hmac_file_server.importing.source import Found, NoStore, Skipped, Source
from hmac_file_server.slots.slot import Attributes

_FILES = b"http_file_share"
_LIST = b"uploads.list"
_DATABASE = b"prosody.sqlite"
_BESIDE = (b"", b"-wal")
_JOURNAL = b"-journal"
_SUFFIX = b".bin"
_LONGEST_LIST = 1 << 28
_BLOCK = 1 << 20
_LATEST = 1 << 34

_ELEMENT = re.compile(r"""<request((?:\s++[\w:.-]++=(?:'[^'<]*+'|"[^"<]*+"))*+)\s*+/?>""")
_ATTRIBUTE = re.compile(r"""([\w:.-]++)=(?:'([^'<]*+)'|"([^"<]*+)")""")
_REFERENCE = re.compile(r"&([^;&]*+);?")
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "apos": "'", "quot": '"'}

_SELECT = """
    SELECT "key", "when", "with", "type", "value" FROM "prosodyarchive" WHERE "host" = ? AND "store" = 'uploads'
    ORDER BY "sort_id"
"""


@attrs.frozen
class Prosody:
    """The files of one of its hosts.

    :param host: the component's; None if there is only one.
    """

    host: str | None = None

    def __call__(self, source: Source) -> Iterator[Found | Skipped]:
        """What there is.

        :raises NoStore: if there is none of that host, or of several.
        :raises Refused: if what should be a folder is a link.
        :raises OSError: if it can not be read.
        """
        host = self._chosen(source)
        folder = encode(host)
        bins = {name.removesuffix(_SUFFIX) for name, _ in source.listed((folder, _FILES)) if name.endswith(_SUFFIX)}
        known = set[bytes]()
        for record in _records(source, host, folder):
            if isinstance(record, Skipped):
                yield record
                continue
            name = encode(record.path[0])
            if name not in known:  # After a change of its storage Prosody may have it twice.
                known.add(name)
                yield record
        for name in sorted(bins - known):
            reason = "Prosody has no record of it, in uploads.list or prosody.sqlite: nobody knows its name"
            yield Skipped(b"/".join((folder, _FILES, name + _SUFFIX)), reason)

    def _chosen(self, source: Source) -> bytes:
        folders = [name for name, kind in source.listed(()) if kind == stat.S_IFDIR]
        hosts = [decode(name) for name in folders if source.has((name, _FILES))]
        names = ", ".join(sorted(os.fsdecode(host) for host in hosts))
        if self.host is None and len(hosts) == 1:
            return hosts[0]
        if self.host is None and hosts:
            raise NoStore(f"several hosts have files there; say which with --xmpp-host: {names}")
        wanted = os.fsencode(self.host or "")
        if wanted in hosts:
            return wanted
        if hosts:
            raise NoStore(f"{self.host} has no files there; these hosts have: {names}")
        raise NoStore("no host has files of mod_http_file_share there; name Prosody's data_path (prosodyctl about)")


def encode(name: bytes) -> bytes:
    """A name as Prosody's ``util.datamanager`` writes it: all but letters and digits of ASCII in percent form."""
    return re.sub(rb"[^A-Za-z0-9]", lambda found: b"%%%02x" % ord(found[0]), name)


def decode(name: bytes) -> bytes:
    """The name that is written so."""
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), name)


def _records(source: Source, host: bytes, folder: bytes) -> Iterator[Found | Skipped]:
    if source.has((folder, _LIST)):
        for item in lua.records(source.read((folder, _LIST), _LONGEST_LIST)):
            if isinstance(item, lua.Torn):
                where = b"%b/%b" % (folder, _LIST)
                yield Skipped(where, f"the record at byte {item.position} is torn")
            else:
                about = item.get(b"attr")
                about = about if isinstance(about, dict) else {}
                yield _found(folder, item.get(b"key"), item.get(b"when"), item.get(b"with"), about)
    if source.has((_DATABASE,)):
        yield from _of_database(source, host, folder)


def _of_database(source: Source, host: bytes, folder: bytes) -> Iterator[Found | Skipped]:
    # A journal names files that SQLite removes when it rolls it back, whosever they are: it gets none.
    if source.has((_DATABASE + _JOURNAL,)) and _has_begun(source):
        raise NoStore("prosody.sqlite-journal: a transaction is not finished; start Prosody once more, and stop it")
    # SQLite opens by path, follows links, and writes beside a database that it reads: it gets a copy.
    with tempfile.TemporaryDirectory(prefix="hmac-file-server-") as place:
        for suffix in _BESIDE:
            if source.has((_DATABASE + suffix,)):
                _copy(source, _DATABASE + suffix, os.fsencode(place))
        try:
            yield from _selected(os.path.join(place, os.fsdecode(_DATABASE)), host, folder)
        except sqlite3.Error as error:
            raise NoStore(f"prosody.sqlite can not be read: {error}; stop Prosody, which may be writing it") from None


def _has_begun(source: Source) -> bool:
    """Whether there is something in the journal; one that is over has zeros at its beginning, or nothing."""
    file = source.open((_DATABASE + _JOURNAL,))
    try:
        return os.pread(file, 1, 0) not in (b"", b"\0")
    finally:
        os.close(file)


def _selected(database: str, host: bytes, folder: bytes) -> Iterator[Found | Skipped]:
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.text_factory = bytes
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        kind = connection.execute("SELECT type FROM sqlite_master WHERE name = 'prosodyarchive'").fetchall()
        if kind != [(b"table",)]:
            return
        for key, when, owner, form, value in connection.execute(_SELECT, (host.decode("utf-8", "replace"),)):
            about = _attributes(value) if form == b"xml" else None
            if about is None:
                yield Skipped(b"prosody.sqlite", f"the record {key!r} is torn")
            else:
                yield _found(folder, key, when, owner, about)
    finally:
        connection.close()


def _copy(source: Source, name: bytes, folder: bytes) -> None:
    with open(source.open((name,)), "rb") as file:
        try:
            with open(os.path.join(folder, name), "xb") as copy:
                shutil.copyfileobj(file, copy, _BLOCK)
        except OSError as error:
            reason = f"{os.fsdecode(name)} can not be copied to {os.fsdecode(folder)}: {error.strerror}"
            raise NoStore(f"{reason}; TMPDIR can name a folder with more room") from None


def _attributes(value: Any) -> dict[bytes, bytes] | None:
    """The attributes of an element as Prosody writes it; None if it is none."""
    try:
        found = _ELEMENT.match(value.decode("utf-8"))
        assert found is not None
        return {
            name.encode(): _REFERENCE.sub(_referred, one or other).encode("utf-8")
            for name, one, other in _ATTRIBUTE.findall(found[1])
        }
    except (AttributeError, AssertionError, ValueError, KeyError):
        return None


def _referred(found: re.Match[str]) -> str:
    return _ENTITIES[found[1]]


def _found(folder: bytes, key: Any, when: Any, owner: Any, about: dict[Any, Any]) -> Found | Skipped:
    name, size, media_type = about.get(b"filename"), about.get(b"size"), about.get(b"content-type")
    if not (isinstance(key, bytes) and key and isinstance(name, bytes)):
        return Skipped(folder, "a record names no slot, or no file")
    path = (key, name)
    if not (isinstance(size, bytes) and re.fullmatch(rb"[0-9]{1,18}", size)):
        return Skipped(b"/".join(path), "its record names no length")
    is_time = isinstance(when, int | float) and not isinstance(when, bool) and 0 <= when < _LATEST
    return Found(
        path,
        (folder, _FILES, encode(key) + _SUFFIX),
        Attributes(
            media_types.parse(media_type) if isinstance(media_type, bytes) and media_type else None,
            _text(owner) or None,
        ),
        int(size),
        when if is_time else None,
    )


def _text(value: Any) -> str | None:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return None
