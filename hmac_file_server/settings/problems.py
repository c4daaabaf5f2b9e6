"""What is wrong with a configuration, in one line that says what would be right."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hmac_file_server.address import NoSuchHost
from hmac_file_server.log import printable

_HIDDEN = {"secret", "deletesecret", "redispassword"}


class ConfigError(Exception):
    """A configuration that can not be used; the text is one line that says what to do.

    :cvar status: what the daemon ends with, by which a service manager can tell whether to start it again.
    """

    status = os.EX_CONFIG


class NotYet(ConfigError):
    """A start that fails for what the configuration leads to, not for what it says: it may succeed later."""

    status = os.EX_TEMPFAIL


BROKEN = object()
"""Stands for a value of which has been said what is wrong with it."""

Report = Callable[[ConfigError], None]
"""Is told of what is wrong; where it returns, what else there is to read is read, too."""


def stop(error: ConfigError) -> NoReturn:
    """The report of those who need to know no more than the first thing."""
    raise error


def fail(error: ConfigError) -> NoReturn:
    """End with one line on standard error."""
    print(error, file=sys.stderr)
    raise SystemExit(error.status)


def nearest(name: str, names: Sequence[str]) -> str:
    """The known name that was most likely meant."""
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else "; etc/config.toml lists the keys"


def checked(place: str, name: str, value: Any, parse: Callable[[Any], Any]) -> Any:
    """A setting.

    :param place: where it is written.
    :raises ConfigError: if the value is none.
    """
    try:
        return parse(value)
    except ValueError as error:
        # What no name server knows now, one may know later.
        kind = NotYet if isinstance(error, NoSuchHost) else ConfigError
        raise kind(line_of(place, name, value, printable(str(error)))) from None


def line_of(place: str, name: str, value: object, reason: str) -> str:
    """One line; no secret is ever shown in it.

    :param place: where the key is written.
    """
    last = name.lower().rpartition(" ")[2]  # Of "[security] secret", say.
    if last in _HIDDEN:
        return f"{place}: {name}: {reason}"
    shown = _shown(value)
    if last == "redisaddr":  # It may be a URL with a password, redis://:password@host.
        shown = re.sub(r"""(["']?).*@""", r"\1...@", shown).partition(",")[0]
    if last == "secretfile" and "/" not in shown:  # It may be the secret itself.
        shown = '"..."'
    return f"{place}: {name} = {shown[:200]}: {reason}"


def _shown(value: object) -> str:
    """A value as it is written in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = printable(str(value))
    except ValueError:  # Python writes out no number of so many digits, wherever in the value it stands.
        return "a very large number"
    return f'"{text}"' if isinstance(value, str) else text
