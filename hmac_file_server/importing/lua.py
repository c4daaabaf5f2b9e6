"""What Prosody's ``util.serialization`` has written: data in Lua's syntax, which is parsed and never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs

_DEEPEST = 32
_SPACE = re.compile(rb"[ \t\r\n]*+")
_TOKEN = re.compile(
    rb"""(?P<string>"(?:[^"\\\n]|\\[^\n])*+")|(?P<number>-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[+-]?[0-9]{1,3})?)"""
    rb"|(?P<word>[A-Za-z_][A-Za-z0-9_]*+)|(?P<sign>[][{}()=;,])"
)
_ESCAPE = re.compile(rb"\\([0-9]{1,3}|.)", re.DOTALL)
_ESCAPED = {
    b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v",
    b"\\": b"\\", b'"': b'"', b"'": b"'",
}  # fmt: skip
_WORDS = {b"true": True, b"false": False, b"nil": None}
_NEXT = re.compile(rb"^item\(|item\(\{\n", re.MULTILINE)


class NotData(ValueError):
    """It is not what the serializer writes."""


@attrs.frozen
class Torn:
    """A record that can not be read.

    :param position: where it begins, in bytes.
    """

    position: int


def records(data: bytes) -> Iterator[dict[Any, Any] | Torn]:
    """The records of a ``.list`` file of Prosody's internal storage, each of them a table in ``item(…);``.

    No string has a line break in it, so behind a record that is torn the next one is found by how it begins.
    """
    position = 0
    while (position := _skip(data, position)) < len(data):
        begin = position
        try:
            reader = _Reader(data, begin)
            for sign in (b"item", b"("):
                reader.expect(sign)
            record = reader.value()
            for sign in (b")", b";"):
                reader.expect(sign)
            if not isinstance(record, dict):
                raise NotData
        except NotData:
            yield Torn(begin)
            found = _NEXT.search(data, begin + 1)
            if found is None:
                return
            position = found.start()
        else:
            yield record
            position = reader.position


def _skip(data: bytes, position: int) -> int:
    found = _SPACE.match(data, position)
    assert found is not None
    return found.end()


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def expect(self, text: bytes) -> None:
        if self._token()[1] != text:
            raise NotData

    def value(self, depth: int = 0) -> Any:
        kind, text = self._token()
        if kind == "string":
            return _ESCAPE.sub(_unescape, text[1:-1])
        if kind == "number":
            return float(text) if {*b".e"} & {*text} else int(text)
        if kind == "word" and text in _WORDS:
            return _WORDS[text]
        if text == b"{" and depth < _DEEPEST:
            return self._table(depth + 1)
        raise NotData

    def _table(self, depth: int) -> dict[Any, Any]:
        table: dict[Any, Any] = {}
        place = 1
        while True:
            begin = self.position
            kind, text = self._token()
            if text == b"}":
                return table
            if text == b"[":
                key = self.value(depth)
                self.expect(b"]")
                self.expect(b"=")
            elif kind == "word" and text not in _WORDS:
                key = text
                self.expect(b"=")
            else:
                self.position = begin
                key, place = place, place + 1
            if isinstance(key, dict):
                raise NotData
            table[key] = self.value(depth)
            begin = self.position
            text = self._token()[1]
            if text == b"}":
                self.position = begin
            elif text not in (b";", b","):
                raise NotData

    def _token(self) -> tuple[str, bytes]:
        found = _TOKEN.match(self._data, _skip(self._data, self.position))
        if found is None:
            raise NotData
        self.position = found.end()
        assert found.lastgroup is not None
        return found.lastgroup, found[0]


def _unescape(found: re.Match[bytes]) -> bytes:
    code = found[1]
    if code.isdigit():
        if int(code) > 255:
            raise NotData
        return bytes([int(code)])
    try:
        return _ESCAPED[code]
    except KeyError:
        raise NotData from None
