"""TOML, read so that whoever wrote it learns in one line what is wrong with it."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from hmac_file_server.log import printable

_PLACE = re.compile(r"\(at line (\d+), column \d+\)")
_KEY = re.compile(r"""\s*(?:\[\s*)?["']?([\w.-]{1,100})""")

_BOOLEAN = re.compile(r"=\s*(?:True|TRUE|False|FALSE|yes|no|on|off)\b")

_HINTS = (
    ("Expected '='", "a line is written Key = value, and a comment begins with #"),
    ("Unescaped", r"in 'single quotes' a backslash stands for itself"),
    ("Illegal character '\\n'", "the quote at the end of a text is missing"),
    ("Unterminated string", "the quote at the end of a text is missing"),
    ('Expected "\'"', "the quote at the end of a text is missing"),
    ("Unclosed array", "the ] at the end of a list is missing"),
)
"""What messages of tomllib begin with, and what to do then."""


def read_toml(data: bytes) -> dict[str, Any]:
    """Read a file's content.

    :raises ValueError: with what is wrong, which never quotes a value.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; save it as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_what_is_wrong(str(error), text)) from None
    except Exception:  # numbers too long to convert, nesting too deep
        raise ValueError("not TOML that can be read; see etc/config.toml for how it is written") from None


def _what_is_wrong(message: str, text: str) -> str:
    place = _PLACE.search(message)
    line = int(place[1]) if place else 0
    if message.startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate")) and line:
        key = _KEY.match(text.split("\n")[line - 1])
        return f"not TOML: {key[1] if key else 'a key'} is there twice, the second time in line {line}; keep one"
    hint = next((hint for begin, hint in _HINTS if message.startswith(begin)), "text is written in quotes")
    if _BOOLEAN.search(text.split("\n")[line - 1] if line else ""):
        hint += ", and true and false in small letters"
    return f"not TOML: {printable(message)}; {hint}"
