"""The configuration: config.toml, checked once, into one frozen :class:`Config`."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from hmac_file_server.address import Listen, RedisServer, listen_on_socket
from hmac_file_server.log import printable
from hmac_file_server.settings import values
from hmac_file_server.settings.hosts import Given, Host, handed_down_of, hosts_of, shared_secrets, tables_of
from hmac_file_server.settings.problems import BROKEN, ConfigError, NotYet, Report, checked, line_of, nearest, stop
from hmac_file_server.settings.secretfile import take_secrets
from hmac_file_server.settings.tomlfile import read_toml
from hmac_file_server.settings.values import key
from hmac_file_server.settings.version3 import take_tables
from hmac_file_server.slots.secret import EXAMPLE_SECRET, weaknesses
from hmac_file_server.stores.faults import user
from hmac_file_server.web.client import Network

WORKER = "HMAC_FILE_SERVER_WORKER"
"""In the environment of a worker, one process of several: the descriptor of the socket that it accepts from."""

_LARGEST_FILE = 1 << 20
_NEEDED = frozenset({"secret", "storedir", "listenport", "uploadsubdir"})
_SECRET = frozenset({"secret", "deletesecret", "redispassword"})
_FOREIGN = frozenset(
    """
    autobantime autounban blockafterfails blockduration buffer_size bufferenabled buffersize
    checksumverification chunk_max_retries chunk_size chunkmaxretries cleanupinterval deletefiles
    deletefilesafterperiod deletefilesreport deletefilesreportpath enablegetretries enableversioning filettl
    filettlenabled loggingenabled maxretentionsize maxretentiontime maxversions minfreebytes
    minfreespacethreshold numcores read_timeout readtimeout reask_secret_enabled reask_secret_interval
    reasksecretenabled reasksecretinterval redisenabled reportpath retentionpolicyenabled unixsocketpath
    versioningdirectory versioningstrategy write_timeout writereport writetimeout
    """.split()
)
"""Keys of prosody-filer and hmac-file-server 1.0.x that mean nothing here."""

_ALIASES = {"metrics_enabled": "metricsenabled", "metrics_port": "metricsport"}
"""How hmac-file-server 1.0.x also wrote keys that do mean something here."""


@attrs.frozen
class Config:
    """All settings, in their units: bytes, seconds. ``etc/config.toml`` says what each is for.

    :ivar hosts: one at least; what it has in common with the others is what the plain keys say.
    """

    secrets: tuple[bytes, ...] = key("Secret", values.secrets, shown=False)
    store_dir: str = key("StoreDir", values.path)
    delete_secret: bytes = key("DeleteSecret", values.delete_secret, "", shown=False)
    remember_removed: float = key("RememberRemoved", values.seconds(0, 1 << 32), 0)
    listen: Listen = key("ListenPort", values.address, "[::1]:8080")
    workers: int = key("Workers", values.workers, 1)
    upload_sub_dir: str = key("UploadSubDir", values.prefix, "upload/")
    log_level: str = key("LogLevel", values.level, "info")
    log_format: str = key("LogFormat", values.form, "text")
    log_file: str = key("LogFile", values.text, "")
    max_retries: int = key("MaxRetries", values.whole(0, 1000), 5)
    retry_delay: float = key("RetryDelay", values.seconds(0, 3600), 2)
    redis: RedisServer | None = key("RedisAddr", values.redis, "")
    redis_password: str = key("RedisPassword", values.text, "", shown=False)
    redis_db: int = key("RedisDB", values.whole(0, 1 << 16), 0)
    redis_prefix: str = key("RedisPrefix", values.text, "hmac-file-server:")
    resumable_uploads: bool = key("ResumableUploads", values.flag, True)
    session_timeout: float = key("SessionTimeout", values.seconds(1, 31_536_000), 86400)
    metrics_enabled: bool = key("MetricsEnabled", values.flag, True)
    metrics_listen: Listen = key("MetricsPort", values.address, "127.0.0.1:9090")
    status_details: bool = key("StatusDetails", values.flag, False)
    chunk_size: int = key("ChunkSize", values.size(4096, 64 << 20), 1 << 20)
    max_upload_size: int = key("MaxUploadSize", values.size(0, 1 << 62), 0)
    keep_for: float = key("KeepFor", values.lifetime(0, 1 << 34), 0)
    keep_large_for: float = key("KeepLargeFor", values.lifetime(0, 1 << 34), 0)
    large_from: int = key("LargeFrom", values.size(0, 1 << 62), 100 << 20)
    store_limit: int = key("StoreLimit", values.size(0, 1 << 62), 0)
    tidy_every: float = key("TidyEvery", values.lifetime(1, 1 << 31), 3600)
    min_free_space: int = key("MinFreeSpace", values.size(0, 1 << 62), 256 << 20)
    fsync: bool = key("Fsync", values.flag, True)
    max_connections: int = key("MaxConnections", values.whole(1, 1 << 20), 4096)
    max_connections_per_address: int = key("MaxConnectionsPerAddress", values.whole(1, 1 << 20), 256)
    min_rate: int = key("MinRate", values.size(0, 1 << 30), 256)
    trusted_proxies: tuple[Network, ...] = key("TrustedProxies", values.networks, ["127.0.0.1", "::1"])
    proxies_pass_104: bool = key("ProxiesPass104", values.flag, False)
    upload_timeout: float = key("UploadTimeout", values.seconds(1, 86400), 60)
    idle_timeout: float = key("IdleTimeout", values.seconds(1, 86400), 75)
    shutdown_timeout: float = key("ShutdownTimeout", values.seconds(0, 86400), 30)
    hosts: tuple[Host, ...] = attrs.field(default=(), kw_only=True)
    file: str = attrs.field(default="", kw_only=True)
    warnings: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    handed_down: bytes = attrs.field(default=b"", kw_only=True, repr=False, eq=False)
    """One line for a worker, which then has the very same settings, whatever has become of the files."""

    def keeping(self, old: Config) -> tuple[Config, list[str]]:
        """The same, but for what can not change while the daemon runs.

        :param old: the configuration that it runs by.
        :returns: with the names of the keys that would have changed.
        :raises ConfigError: if the two do not go together.
        """
        ours, theirs = json.loads(self.handed_down), json.loads(old.handed_down)
        changed = [name for name, differ in _FIXED.items() if differ(old, self)]
        for name in changed:
            ours.pop(name, None)
            ours |= {name: theirs[name]} if name in theirs else {}
        kept = load(self.file, json.dumps(ours).encode("ascii"))
        metrics = old.metrics_listen if old.metrics_enabled else self.metrics_listen
        kept = attrs.evolve(kept, listen=old.listen, metrics_listen=metrics, workers=old.workers)
        return attrs.evolve(kept, warnings=self.warnings), changed

    def problem(self, name: str, value: object, reason: str) -> str:
        """One line that names the file, the key, its value and the remedy."""
        return line_of(self.file, name, value, reason)


_FIELDS = {field.metadata["name"].lower(): field for field in attrs.fields(Config) if field.metadata}
_FIXED: dict[str, Callable[[Config, Config], bool]] = {
    "ListenPort": lambda old, new: old.listen.given != new.listen.given,
    "MetricsPort": lambda old, new: old.metrics_enabled and old.metrics_listen.given != new.metrics_listen.given,
    "Workers": lambda old, new: old.workers != new.workers,
}
"""What changes with a start only, and whether it would."""

_NAMES = [field.metadata["name"] for field in _FIELDS.values()] + ["SecretFile"]


def load(path: str, handed_down: bytes | None = None, report: Report = stop) -> Config:
    """Read a configuration file.

    :param handed_down: what stands for its content, from :attr:`Config.handed_down`.
    :param report: of each thing that is wrong, in one line for the operator. Where it returns, what is returned is no
        configuration to run by.
    :raises ConfigError: by default, with the first of them; in any case if the file can not be read at all.
    """
    read = _read(path) if handed_down is None else json.loads(handed_down)
    tables = tables_of(path, read, _FIELDS.keys() | {"unixsocket"}, report)
    given, warnings = _known_keys(path, read, report)
    take_secrets(path, given, report)
    settings: dict[str, Any] = {}
    _take_socket(path, given, settings, report)
    for lower, (name, value) in given.items():
        field = _FIELDS[lower]
        if field.name not in settings and value is not BROKEN:
            try:
                settings[field.name] = checked(path, name, value, field.metadata["parse"])
            except ConfigError as error:
                if (
                    name.startswith("[") and lower not in _NEEDED
                ):  # Of a table of 3.x, whose other limits do not hold here.
                    warnings.append(f"{error}; passed over")
                else:
                    report(error)
                given[lower] = name, BROKEN
    for lower, remedy in (
        ("secret", "add the secret that the XMPP server signs with, or SecretFile"),
        ("storedir", "add the folder for the files"),
    ):
        if lower not in given and not tables:
            report(ConfigError(f"{path}: {_FIELDS[lower].metadata['name']} is missing; {remedy}"))
    config = Config(
        file=path,
        warnings=tuple(warnings),
        handed_down=_to_hand_down(given, settings, tables),
        **{"secrets": (), "store_dir": "", **settings},
    )
    if config.status_details and not config.metrics_listen.loopback:
        reason = "names of files and clients are for this machine only; give MetricsPort a loopback address"
        report(ConfigError(line_of(path, "StatusDetails", True, reason)))
    return attrs.evolve(config, hosts=hosts_of(path, config.listen, given, tables, report))


def _take_socket(path: str, given: dict[str, tuple[str, Any]], settings: dict[str, Any], report: Report) -> None:
    """Take UnixSocket of prosody-filer, which says how ListenPort is meant."""
    if "unixsocket" not in given:
        return
    name, value = given.pop("unixsocket")
    try:
        if checked(path, name, value, values.flag):
            name, value = given.setdefault("listenport", ("ListenPort", ""))
            settings["listen"] = checked(path, name, value, listen_on_socket)
    except ConfigError as error:
        report(error)
        given["listenport"] = name, BROKEN


def _to_hand_down(given: Given, settings: Mapping[str, Any], tables: Sequence[Given]) -> bytes:
    handed: dict[str, Any] = {}
    for lower, (_, value) in given.items():
        field = _FIELDS[lower]
        if value is not BROKEN:
            setting = settings[field.name]
            # An endpoint holds no name that the worker would have to resolve.
            handed[field.metadata["name"]] = setting.endpoint if isinstance(setting, Listen) else value
    if tables:
        handed["Host"] = [handed_down_of(table) for table in tables]
    return json.dumps(handed).encode("ascii") + b"\n"


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


def _known_keys(path: str, read: dict[str, Any], report: Report) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """The settings by their keys in lower case, with the keys as written; and warnings."""
    of_tables, warnings = take_tables(path, read)
    given = {ours.lower(): setting for ours, setting in of_tables.items()}
    for name, value in read.items():
        lower = _ALIASES.get(name.lower(), name.lower())
        if lower in given:
            report(ConfigError(f"{path}: {printable(name)} is there twice, also as {given[lower][0]}; keep one"))
        elif lower in _FOREIGN:
            warnings.append(f"{path}: {name} means nothing to this server and is passed over")
        elif lower in _FIELDS or lower in ("secretfile", "unixsocket"):
            given[lower] = (name, value)
        else:
            report(ConfigError(f"{path}: {printable(name)}: unknown key{nearest(name, _NAMES)}"))
    return given, warnings


def secret_files(config: Config) -> Iterator[str]:
    """The files that a configuration has its secrets from, itself among them if some stand in it."""
    read = _read(config.file)
    lists = [value if isinstance(value, list) else [value] for value in read.values()]
    for place in (read, *(table for tables in lists for table in tables if isinstance(table, dict))):
        for name, value in place.items():
            if name.lower() == "secretfile":
                yield from map(str, value if isinstance(value, list) else [value])
            elif name.lower() in _SECRET and value and value != EXAMPLE_SECRET.decode():
                yield config.file


def advice_on_secrets(config: Config) -> Iterator[str]:
    """What could be better in the secrets, a line for each."""
    for host in config.hosts:
        whose = f" of {host.name}" if len(config.hosts) > 1 else ""
        for weakness in weaknesses(host.secrets):
            yield f"{config.file}: Secret{whose}: {weakness}"
    for one, two in shared_secrets(config.hosts):
        both = f"the hosts {one.name} and {two.name} share a secret"
        yield f"{config.file}: {both}: a slot of one works once below the other, too"


def defaults() -> Iterator[tuple[str, Any]]:
    """Each key with its default, for those that have one."""
    for field in _FIELDS.values():
        if field.default is not attrs.NOTHING:
            yield field.metadata["name"], field.default
