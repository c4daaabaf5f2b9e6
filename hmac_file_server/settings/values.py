"""How values are written in config.toml: each of these takes what TOML makes of one, and gives the setting.

Whatever is wrong is a ValueError that says what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs

from hmac_file_server.address import Listen, RedisServer, listen_at, redis_at
from hmac_file_server.log import FORMS, LEVELS
from hmac_file_server.processors import processors
from hmac_file_server.web.client import Network

_LONGEST_NAME = 64
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800, "y": 31_536_000}
_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12}
_UNITS |= {"tb": 10**12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError("not a text; write it in quotes")
    if "\0" in value:
        raise ValueError("has a NUL character")
    return value


def path(value: Any) -> str:
    """A path."""
    if not text(value):
        raise ValueError("is empty; write a path")
    return str(value)


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("write true or false")
    return value


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A whole number between two bounds."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return value

    return parse


def workers(value: Any) -> int:
    """A number of processes; 0 stands for the processors that may be used."""
    return whole(0, 256)(value) or min(processors(), 256)


def seconds(low: float, high: float) -> Callable[[Any], float]:
    """A number of seconds between two bounds."""

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"write a number of seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def lifetime(low: float, high: float) -> Callable[[Any], float]:
    """A number of seconds between two bounds, or a text with a unit; 0 may stand for none."""

    def parse(value: Any) -> float:
        seconds = value
        if isinstance(value, str):
            found = re.fullmatch(r"(\d{1,9})\s*([smhdwy])", value.strip())
            seconds = int(found[1]) * _SPANS[found[2]] if found else None
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not low <= seconds <= high:
            raise ValueError('write a time as "30d", with s, m, h, d, w or y, or a number of seconds')
        return float(seconds)

    return parse


def size(low: int, high: int) -> Callable[[Any], int]:
    """A size in bytes between two bounds, in one of the forms that people write."""

    def parse(value: Any) -> int:
        size = value
        if isinstance(value, str):
            found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-zA-Z]*)", value.strip())
            unit = _UNITS.get(found[2].lower()) if found else None
            size = int(Decimal(found[1]) * unit) if found and unit else None
        if isinstance(size, bool) or not isinstance(size, int) or not low <= size <= high:
            raise ValueError(f'write a size from {low} to {high} bytes, as a number or as "1MiB"')
        return size

    return parse


def level(value: Any) -> str:
    """A level of the log."""
    level = {"warning": "warn"}.get(text(value).lower(), value.lower())
    if level not in LEVELS:
        raise ValueError("write debug, info, warn or error")
    return str(level)


def form(value: Any) -> str:
    """What lines of the log look like."""
    form = text(value).lower()
    if form not in FORMS:
        raise ValueError("write text or json")
    return form


def address(value: Any) -> Listen:
    """Where to listen."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("not an address to listen at")
    return listen_at(value)


def redis(value: Any) -> RedisServer | None:
    """Where Redis is, if it is anywhere."""
    return redis_at(text(value))


def networks(value: Any) -> tuple[Network, ...]:
    """A list of networks."""
    try:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(_plain(ipaddress.ip_network(item, strict=False)) for item in value)
    except ValueError:
        pass
    raise ValueError('write a list of addresses or networks, as ["127.0.0.1", "10.0.0.0/8"]')


def _plain(network: Network) -> Network:
    """IPv4 as IPv4, also where it is written in IPv6's form: ``::ffff:10.0.0.0/104`` is ``10.0.0.0/8``."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - 96))


def prefix(value: Any) -> str:
    """What stands in URLs before the signed path."""
    segments = text(value).strip("/").split("/")
    if segments != [""] and any(part in ("", ".", "..") for part in segments):
        raise ValueError("not a URL prefix")
    return "/".join(segments)


def secrets(value: Any) -> tuple[bytes, ...]:
    """A secret, or several."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) and item for item in values):
        raise ValueError("write the secret in quotes, or a list of such while one replaces another")
    return tuple(item.encode("utf-8") for item in values)


def delete_secret(value: Any) -> bytes:
    """The secret of DELETE; empty for none."""
    if not isinstance(value, str):
        raise ValueError("write the secret in quotes; without one nothing can be removed")
    if "\0" in value:
        # The text would be one that v2 signs, too: an upload's signature could remove.
        raise ValueError("has a NUL character")
    return value.encode("utf-8")


def name(value: Any) -> str:
    """The name of a host."""
    if not text(value).strip() or len(value) > _LONGEST_NAME or not value.isprintable() or '"' in value:
        raise ValueError(f"write a name of at most {_LONGEST_NAME} letters, in quotes")
    return str(value)


def key(name: str, parse: Callable[[Any], Any], default: Any = attrs.NOTHING, shown: bool = True) -> Any:
    """A field of settings.

    :param name: as it is written in the file.
    :param parse: one of these.
    :param default: as it would be written there.
    :param shown: whether the value may be; a secret may not.
    """
    return attrs.field(
        default=parse(default) if default is not attrs.NOTHING else attrs.NOTHING,
        metadata={"name": name, "parse": parse},
        repr=shown,
        kw_only=True,
    )
