"""The configuration: config.toml, checked once, into one frozen :class:`Config`."""

from __future__ import annotations

import difflib
import errno
import ipaddress
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import attrs

from hmac_file_server.address import Listen, NoSuchHost, RedisServer, listen_at, listen_on_socket, redis_at
from hmac_file_server.log import LEVELS, printable
from hmac_file_server.processors import processors
from hmac_file_server.slots.secret import COMMAND, EXAMPLE_SECRET, is_placeholder
from hmac_file_server.stores.faults import user
from hmac_file_server.tomlfile import read_toml
from hmac_file_server.web.client import Network

WORKER = "HMAC_FILE_SERVER_WORKER"
"""In the environment of a worker, one process of several: the descriptor of the socket that it accepts from."""

_LARGEST_FILE = 1 << 20
_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12}
_UNITS |= {"tb": 10**12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_HIDDEN = {"Secret", "DeleteSecret", "RedisPassword"}

_FOREIGN = frozenset(
    """
    autobantime autounban blockafterfails blockduration bufferenabled buffersize buffer_size checksumverification
    chunkmaxretries chunk_max_retries chunk_size deletefiles deletefilesafterperiod deletefilesreport
    deletefilesreportpath enablegetretries enableversioning loggingenabled maxretentionsize maxretentiontime
    maxversions minfreespacethreshold numcores readtimeout read_timeout reasksecretenabled reask_secret_enabled
    reasksecretinterval reask_secret_interval redisenabled reportpath retentionpolicyenabled unixsocketpath
    versioningdirectory versioningstrategy writereport writetimeout write_timeout
    """.split()
)
"""Keys of prosody-filer and hmac-file-server 1.0.x that mean nothing here."""

_ALIASES = {"metrics_enabled": "metricsenabled", "metrics_port": "metricsport"}
"""How hmac-file-server 1.0.x also wrote keys that do mean something here."""

_TABLES = frozenset(
    """
    auth build clamav client_network_support database deduplication downloads file handoff iso logging metrics network
    network_resilience redis security server session storage timeouts upload uploads versioning workers
    """.split()
)
"""Tables of hmac-file-server 3.x."""


class ConfigError(Exception):
    """A configuration that can not be used; the text is one line that says what to do.

    :cvar status: what the daemon ends with, by which a service manager can tell whether to start it again.
    """

    status = os.EX_CONFIG


class NotYet(ConfigError):
    """A start that fails for what the configuration leads to, not for what it says: it may succeed later."""

    status = os.EX_TEMPFAIL


def fail(error: ConfigError) -> NoReturn:
    """End with one line on standard error."""
    print(error, file=sys.stderr)
    raise SystemExit(error.status)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text; write it in quotes")
    if "\0" in value:
        raise ValueError("has a NUL character")
    return value


def _path(value: Any) -> str:
    text = _text(value)
    if not text:
        raise ValueError("is empty; write a path")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("write true or false")
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return value

    return parse


def _workers(value: Any) -> int:
    return _whole(0, 256)(value) or min(processors(), 256)


def _seconds(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"write a number of seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def _size(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        size = value
        if isinstance(value, str):
            found = re.fullmatch(r"(\d{1,18})\s*([a-zA-Z]*)", value.strip())
            unit = _UNITS.get(found[2].lower()) if found else None
            size = int(found[1]) * unit if found and unit else None
        if isinstance(size, bool) or not isinstance(size, int) or not low <= size <= high:
            raise ValueError(f'write a size from {low} to {high} bytes, as a number or as "1MiB"')
        return size

    return parse


def _level(value: Any) -> str:
    level = {"warning": "warn"}.get(_text(value).lower(), value.lower())
    if level not in LEVELS:
        raise ValueError("write debug, info, warn or error")
    return str(level)


def _address(value: Any) -> Listen:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("not an address to listen at")
    return listen_at(value)


def _redis(value: Any) -> RedisServer | None:
    return redis_at(_text(value))


def _networks(value: Any) -> tuple[Network, ...]:
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


def _prefix(value: Any) -> str:
    segments = _text(value).strip("/").split("/")
    if segments != [""] and any(part in ("", ".", "..") for part in segments):
        raise ValueError("not a URL prefix")
    return "/".join(segments)


def _secrets(value: Any) -> tuple[bytes, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) and item for item in values):
        raise ValueError("write the secret in quotes, or a list of such while one replaces another")
    return tuple(item.encode("utf-8") for item in values)


def _delete_secret(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("write the secret in quotes; without one nothing can be removed")
    return value.encode("utf-8")


def _key(name: str, parse: Callable[[Any], Any], default: Any = attrs.NOTHING, shown: bool = True) -> Any:
    return attrs.field(
        default=parse(default) if default is not attrs.NOTHING else attrs.NOTHING,
        metadata={"name": name, "parse": parse},
        repr=shown,
        kw_only=True,
    )


@attrs.frozen
class Config:
    """All settings, in their units: bytes, seconds. ``etc/config.toml`` says what each is for."""

    secrets: tuple[bytes, ...] = _key("Secret", _secrets, shown=False)
    store_dir: str = _key("StoreDir", _path)
    delete_secret: bytes = _key("DeleteSecret", _delete_secret, "", shown=False)
    remember_removed: float = _key("RememberRemoved", _seconds(0, 1 << 32), 0)
    listen: Listen = _key("ListenPort", _address, "[::1]:8080")
    workers: int = _key("Workers", _workers, 1)
    upload_sub_dir: str = _key("UploadSubDir", _prefix, "upload/")
    log_level: str = _key("LogLevel", _level, "info")
    log_file: str = _key("LogFile", _text, "")
    max_retries: int = _key("MaxRetries", _whole(0, 1000), 5)
    retry_delay: float = _key("RetryDelay", _seconds(0, 3600), 2)
    redis: RedisServer | None = _key("RedisAddr", _redis, "")
    redis_password: str = _key("RedisPassword", _text, "", shown=False)
    redis_db: int = _key("RedisDB", _whole(0, 1 << 16), 0)
    redis_prefix: str = _key("RedisPrefix", _text, "hmac-file-server:")
    resumable_uploads: bool = _key("ResumableUploads", _flag, True)
    session_timeout: float = _key("SessionTimeout", _seconds(1, 31_536_000), 86400)
    metrics_enabled: bool = _key("MetricsEnabled", _flag, True)
    metrics_listen: Listen = _key("MetricsPort", _address, "127.0.0.1:9090")
    chunk_size: int = _key("ChunkSize", _size(4096, 64 << 20), 1 << 20)
    max_upload_size: int = _key("MaxUploadSize", _size(0, 1 << 62), 0)
    min_free_space: int = _key("MinFreeSpace", _size(0, 1 << 62), 256 << 20)
    fsync: bool = _key("Fsync", _flag, True)
    max_connections: int = _key("MaxConnections", _whole(1, 1 << 20), 4096)
    max_connections_per_address: int = _key("MaxConnectionsPerAddress", _whole(1, 1 << 20), 256)
    min_rate: int = _key("MinRate", _size(0, 1 << 30), 256)
    trusted_proxies: tuple[Network, ...] = _key("TrustedProxies", _networks, ["127.0.0.1", "::1"])
    proxies_pass_104: bool = _key("ProxiesPass104", _flag, False)
    upload_timeout: float = _key("UploadTimeout", _seconds(1, 86400), 60)
    idle_timeout: float = _key("IdleTimeout", _seconds(1, 86400), 75)
    shutdown_timeout: float = _key("ShutdownTimeout", _seconds(0, 86400), 30)
    file: str = attrs.field(default="", kw_only=True)
    warnings: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    handed_down: bytes = attrs.field(default=b"", kw_only=True, repr=False, eq=False)
    """One line for a worker, which then has the very same settings, whatever has become of the files."""

    def problem(self, key: str, value: object, reason: str) -> str:
        """One line that names the file, the key, its value and the remedy."""
        return _line(self.file, key, value, reason)


_FIELDS = {field.metadata["name"].lower(): field for field in attrs.fields(Config) if field.metadata}
_NAMES = [field.metadata["name"] for field in _FIELDS.values()] + ["SecretFile"]


def load(path: str, handed_down: bytes | None = None) -> Config:
    """Read a configuration file.

    :param handed_down: what stands for its content, from :attr:`Config.handed_down`.
    :raises ConfigError: with one line for the operator.
    """
    given, warnings = _known_keys(path, _read(path) if handed_down is None else json.loads(handed_down))
    if "unixsocket" in given:
        name, value = given.pop("unixsocket")
        if _checked(path, name, value, _flag):
            name, value = given.get("listenport", ("ListenPort", ""))
            given["listenport"] = (name, _checked(path, name, value, listen_on_socket))
    if "secretfile" in given:
        name, value = given.pop("secretfile")
        if "secret" in given:
            raise ConfigError(_line(path, name, value, "there is a Secret too; keep one of the two"))
        given["secret"] = (name, _read_secret(path, name, _checked(path, name, value, _path)))
    settings: dict[str, Any] = {}
    for lower, (name, value) in given.items():
        field = _FIELDS[lower]
        ready = isinstance(value, Listen)
        settings[field.name] = value if ready else _checked(path, name, value, field.metadata["parse"])
    for lower, remedy in (
        ("secret", "add the secret that the XMPP server signs with, or SecretFile"),
        ("storedir", "add the folder for the files"),
    ):
        if _FIELDS[lower].name not in settings:
            raise ConfigError(f"{path}: {_FIELDS[lower].metadata['name']} is missing; {remedy}")
    config = Config(file=path, warnings=tuple(warnings), handed_down=_to_hand_down(given, settings), **settings)
    if is_placeholder(config.delete_secret):
        reason = f"is a placeholder, which everybody knows; choose your own (this prints one: {COMMAND})"
        raise ConfigError(f"{path}: {given['deletesecret'][0]}: {reason}")
    if any(map(is_placeholder, config.secrets)):
        reason = f"is a placeholder, which everybody knows; choose your own (this prints one: {COMMAND})"
        raise ConfigError(f"{path}: {given['secret'][0]}: {reason}")
    if EXAMPLE_SECRET in config.secrets and not config.listen.loopback:
        reason = "is the secret of the example, which everybody knows; choose your own, or listen on [::1] only"
        raise ConfigError(_line(path, "Secret", "", reason))
    return config


def _to_hand_down(given: Mapping[str, tuple[str, Any]], settings: Mapping[str, Any]) -> bytes:
    values = {}
    for lower, (_, value) in given.items():
        field = _FIELDS[lower]
        setting = settings[field.name]
        # An endpoint holds no name that the worker would have to resolve.
        values[field.metadata["name"]] = setting.endpoint if isinstance(setting, Listen) else value
    return json.dumps(values).encode("ascii") + b"\n"


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except PermissionError as error:
        raise ConfigError(f"{path}: {error.strerror}; the user {user()} must be able to read it") from None
    except OSError as error:
        kind = ConfigError if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR) else NotYet
        raise kind(f"{path}: {error.strerror}; name the file with --config") from None
    if len(data) > _LARGEST_FILE:
        raise ConfigError(f"{path}: too large for a configuration file")
    try:
        return read_toml(data)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _known_keys(path: str, read: dict[str, Any]) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """The settings by their keys in lower case, with the keys as written; and warnings."""
    given: dict[str, tuple[str, Any]] = {}
    warnings = []
    for name, value in read.items():
        lower = _ALIASES.get(name.lower(), name.lower())
        if lower in _TABLES and isinstance(value, dict):
            reason = "a table of hmac-file-server 3.x; here all keys stand at the top, and listen_address,"
            reason += " storage_path and secret are ListenPort, StoreDir and Secret; etc/config.toml lists the keys"
            raise ConfigError(f"{path}: [{name}]: {reason}")
        if lower in given:
            raise ConfigError(f"{path}: {printable(name)} is there twice, also as {given[lower][0]}; keep one")
        if lower in _FOREIGN:
            warnings.append(f"{path}: {name} means nothing to this server and is passed over")
        elif lower in _FIELDS or lower in ("secretfile", "unixsocket"):
            given[lower] = (name, value)
        else:
            raise ConfigError(f"{path}: {printable(name)}: unknown key{_nearest(name)}")
    return given, warnings


def _nearest(name: str) -> str:
    by_lower = {known.lower(): known for known in _NAMES}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else "; etc/config.toml lists the keys"


def _checked(path: str, name: str, value: Any, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        # What no name server knows now, one may know later.
        kind = NotYet if isinstance(error, NoSuchHost) else ConfigError
        raise kind(_line(path, name, value, printable(str(error)))) from None


def _line(path: str, name: str, value: object, reason: str) -> str:
    if name.lower() in {hidden.lower() for hidden in _HIDDEN}:
        return f"{path}: {name}: {reason}"
    shown = _shown(value)
    if name.lower() == "redisaddr":  # It may be a URL with a password, redis://:password@host.
        shown = re.sub(r"""(["']?).*@""", r"\1...@", shown)
    return f"{path}: {name} = {shown[:200]}: {reason}"


def _shown(value: object) -> str:
    """A value as it is written in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = printable(str(value))
    except ValueError:  # Python writes out no number of so many digits, wherever in the value it stands.
        return "a very large number"
    return f'"{text}"' if isinstance(value, str) else text


def _read_secret(path: str, name: str, file: str) -> str:
    try:
        with open(file, "rb") as source:
            secret = source.read(_LARGEST_FILE).decode("utf-8")
    except OSError as error:
        reason = f"{error.strerror}; it must hold the secret"
        if error.errno == errno.EACCES:
            reason += f", and the user {user()} must be able to read it"
        elif file.startswith("/run/credentials/"):
            reason += "; systemd puts it there: LoadCredential=secret:/etc/hmac-file-server/secret"
        raise NotYet(_line(path, name, file, reason)) from None
    except UnicodeDecodeError:
        raise ConfigError(_line(path, name, file, "not UTF-8; it must hold the secret as text")) from None
    secret = secret.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ConfigError(_line(path, name, file, "is empty; it must hold the secret"))
    return secret


def defaults() -> Iterator[tuple[str, Any]]:
    """Each key with its default, for those that have one."""
    for field in _FIELDS.values():
        if field.default is not attrs.NOTHING:
            yield field.metadata["name"], field.default
