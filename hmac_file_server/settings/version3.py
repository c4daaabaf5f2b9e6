"""The ``config.toml`` of hmac-file-server 3.x, whose keys stand in tables: what means something here is taken."""

from __future__ import annotations

import re
from typing import Any

from hmac_file_server.log import printable

_SIGNS = frozenset({"server", "security"})
"""Tables that every such file has."""

_KEYS = {
    ("server", "bindip"): "",
    ("server", "listenaddress"): "ListenPort",
    ("server", "unixsocket"): "UnixSocket",
    ("server", "storagepath"): "StoreDir",
    ("server", "metricsenabled"): "MetricsEnabled",
    ("server", "metricsport"): "MetricsPort",
    ("server", "maxuploadsize"): "MaxUploadSize",
    ("server", "minfreebytes"): "MinFreeSpace",
    ("security", "secret"): "Secret",
    ("uploads", "chunksize"): "ChunkSize",
    ("uploads", "resumableuploadsenabled"): "ResumableUploads",
    ("uploads", "sessiontimeout"): "SessionTimeout",
    ("uploads", "maxretries"): "MaxRetries",
    ("timeouts", "idletimeout"): "IdleTimeout",
    ("timeouts", "shutdown"): "ShutdownTimeout",
    ("logging", "level"): "LogLevel",
    ("logging", "file"): "LogFile",
    ("redis", "enabled"): "",
    ("redis", "redisenabled"): "",
    ("redis", "redisaddr"): "RedisAddr",
    ("redis", "redispassword"): "RedisPassword",
    ("redis", "redisdbindex"): "RedisDB",
}
"""Keys that mean something here, by table and without underscores; empty where they go with another one."""

_LEVELS = {"trace": "debug", "fatal": "error", "panic": "error"}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATIONS = frozenset({"SessionTimeout", "IdleTimeout", "ShutdownTimeout"})


def take_tables(path: str, read: dict[str, Any]) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Take the tables out of what was read.

    :returns: the keys that they have of ours, each with the name that it has there; and warnings.
    """
    tables = {name: table for name, table in read.items() if isinstance(table, dict)}
    if _SIGNS.isdisjoint(map(str.lower, tables)):
        return {}, []
    given: dict[str, tuple[str, Any]] = {}
    warnings, others = [], dict[str, Any]()
    for title, table in tables.items():
        del read[title]
        unknown = []
        for name, value in table.items():
            place = title.lower(), name.lower().replace("_", "")
            ours = _KEYS.get(place)
            if ours:
                given[ours] = f"[{title}] {name}", _seconds(value) if ours in _DURATIONS else value
            elif ours is None:
                unknown.append(printable(name))
            else:
                others[place[1]] = value
        if unknown:
            warnings.append(f"{path}: [{title}] of hmac-file-server 3.x: {', '.join(unknown)}: passed over")
    _rewrite(given, others)
    if "uploadsubdir" not in map(str.lower, read):
        given["UploadSubDir"] = "UploadSubDir", ""
        warnings.append(
            f"{path}: files lie and are signed by the whole path of their URL, as hmac-file-server 3.x has it; if the"
            ' base URL in the XMPP server ends in "/upload/", write UploadSubDir = "upload/" above all tables, and add'
            " upload to storage_path"
        )
    return given, warnings


def _rewrite(given: dict[str, tuple[str, Any]], others: dict[str, Any]) -> None:
    """Spell the values as they are spelled here."""
    for ours, host in (("ListenPort", str(others.get("bindip", ""))), ("MetricsPort", "")):
        name, value = given.get(ours, ("", ""))
        port = str(value).removeprefix(":")
        if port.isdigit():
            given[ours] = name, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name, level = given.get("LogLevel", ("", ""))
    if str(level).lower() in _LEVELS:
        given["LogLevel"] = name, _LEVELS[str(level).lower()]
    if not given.get("UnixSocket", ("", True))[1]:
        del given["UnixSocket"]
    if not others.get("redisenabled", others.get("enabled", True)):
        for ours in ("RedisAddr", "RedisPassword", "RedisDB"):
            given.pop(ours, None)


def _seconds(value: Any) -> Any:
    """A duration of Go's, as 1h30m, in seconds; anything else as it is."""
    if not isinstance(value, str) or not re.fullmatch(rf"(?:{_SPAN.pattern})+", value):
        return value
    return sum(float(count) * _SECONDS[unit] for count, unit in _SPAN.findall(value))
