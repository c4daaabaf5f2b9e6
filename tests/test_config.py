from __future__ import annotations

import json
import os
import re
import tomllib
import unicodedata
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hmac_file_server.address import RedisServer
from hmac_file_server.config import Config, defaults, load
from hmac_file_server.settings.hosts import Host
from hmac_file_server.settings.problems import ConfigError
from hmac_file_server.slots.secret import EXAMPLE_SECRET, is_placeholder, weaknesses

ROOT = Path(__file__).parent.parent
SECRET = "orbit9-hollow23"
NEEDED = f'Secret = "{SECRET}"\nStoreDir = "/srv/upload"\n'
FIELDS = {field.metadata["name"]: field.name for field in attrs.fields(Config) if field.metadata}
KEYS = [*FIELDS, "SecretFile", "unixSocket"]

in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def read(path: Path, content: str | bytes) -> Config:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(str(path))


def refusal(path: Path, content: str | bytes | None = None) -> str:
    """The one line that a configuration is refused with, after the path."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as raised:
        load(str(path))
    line = str(raised.value)
    assert len(line.splitlines()) == 1
    assert SECRET not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


# What is accepted


def test_two_keys_are_enough(path: Path) -> None:
    """With Secret and StoreDir alone everything else has its default."""
    config = read(path, NEEDED)
    host = Host(name="upload", store_dir="/srv/upload", secrets=(SECRET.encode(),))
    assert config == Config(secrets=host.secrets, store_dir="/srv/upload", hosts=(host,), file=str(path))
    assert (config.listen.endpoint, config.listen.loopback) == (r"tcp6:8080:interface=\:\:1", True)
    assert (config.max_retries, config.retry_delay, config.chunk_size) == (5, 2, 1 << 20)


def test_example_is_the_defaults() -> None:
    """etc/config.toml names every key, explains each, and sets those that have a default to it."""
    example = ROOT / "etc" / "config.toml"
    text = example.read_text("utf-8")
    config = load(str(example))
    assert config.warnings == ()
    for name, default in defaults():
        assert getattr(config, FIELDS[name]) == default, name
        assert re.search(rf"^{name} = ", text, re.MULTILINE), name
    for name in ("Secret", "StoreDir", "# SecretFile"):
        assert re.search(rf"^{name} = ", text, re.MULTILINE), name
    assert set(tomllib.loads(text)) == set(FIELDS)


def test_every_key_but_two_has_a_default() -> None:
    """Only the secret and the folder must be given."""
    assert set(FIELDS) - {name for name, _ in defaults()} == {"Secret", "StoreDir"}


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('Secret = "grüße"', "secrets", ("grüße".encode(),)),
        ('Secret = ["new", "old"]', "secrets", (b"new", b"old")),
        ('UploadSubDir = "/upload/"', "upload_sub_dir", "upload"),
        ('UploadSubDir = "a/b"', "upload_sub_dir", "a/b"),
        ('UploadSubDir = ""', "upload_sub_dir", ""),
        ('LogLevel = "WARNING"', "log_level", "warn"),
        ('LogLevel = "Debug"', "log_level", "debug"),
        ('LogFormat = "JSON"', "log_format", "json"),
        ("ChunkSize = 4096", "chunk_size", 4096),
        ('ChunkSize = "64 MiB"', "chunk_size", 64 << 20),
        ('MaxUploadSize = "10GB"', "max_upload_size", 10**10),
        ('MaxUploadSize = "1tib"', "max_upload_size", 1 << 40),
        ('MaxUploadSize = "5"', "max_upload_size", 5),
        ("RetryDelay = 0.5", "retry_delay", 0.5),
        ("RetryDelay = 0", "retry_delay", 0.0),
        ("MaxRetries = 0", "max_retries", 0),
        ("ShutdownTimeout = 0", "shutdown_timeout", 0.0),
        ("Fsync = false", "fsync", False),
        ('TrustedProxies = ["10.1.2.3/8", "::1"]', "trusted_proxies", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("TrustedProxies = []", "trusted_proxies", ()),
        ("ProxiesPass104 = true", "proxies_pass_104", True),
        ('RedisAddr = "localhost:6379"', "redis", RedisServer("localhost", 6379)),
        ('RedisAddr = "[::1]:6379"', "redis", RedisServer("::1", 6379)),
        ('RedisAddr = "tls:redis.example.com:6380"', "redis", RedisServer("redis.example.com", 6380, tls=True)),
        ('RedisAddr = "unix:/run/redis.sock"', "redis", RedisServer(path="/run/redis.sock")),
        ('RedisAddr = ""', "redis", None),
    ],
)
def test_values(path: Path, line: str, field: str, value: object) -> None:
    """Each value is taken in the units and forms that etc/config.toml names."""
    needed = 'StoreDir = "/srv/upload"\n' + ("" if field == "secrets" else f'Secret = "{SECRET}"\n')
    assert getattr(read(path, needed + line), field) == value


@pytest.mark.parametrize(
    "listen", [":8080", "[::1]:8080", "localhost:8080", "unix:/run/a.sock:mode=660", "systemd:domain=INET6:index=0"]
)
def test_what_is_handed_down(path: Path, listen: str) -> None:
    """A worker has the settings of its parent, without a look at the files."""
    secret = path.with_name("secret")
    secret.write_text("orbit9-\u00fc-hollow23\n")
    settings = f'SecretFile = "{secret}"\nlistenport = "{listen}"\nStoreDir = "/srv/\u00e4"\n'
    config = read(
        path, settings + 'MaxUploadSize = "10GB"\nTrustedProxies = ["10.1.2.3/8"]\nRedisAddr = "localhost:1"'
    )
    secret.unlink()
    path.unlink()
    handed = load(str(path), config.handed_down)
    assert handed.listen.endpoint == config.listen.endpoint
    assert attrs.evolve(handed, listen=config.listen) == config
    assert config.handed_down.count(b"\n") == 1


def test_configuration_of_prosody_filer(path: Path) -> None:
    """prosody-filer's config.toml works unchanged."""
    config = read(
        path,
        "### IP address and port\nlistenPort = '127.0.0.1:5050'\nunixSocket = false\n"
        f'secret = "{SECRET}"\nstoreDir = "./uploads/"\nuploadSubDir = "upload/"\nlogLevel = "error"\n',
    )
    assert (config.listen.endpoint, config.secrets) == ("tcp:5050:interface=127.0.0.1", (SECRET.encode(),))
    assert (config.store_dir, config.upload_sub_dir, config.log_level) == ("./uploads/", "upload", "error")
    assert config.warnings == ()


def test_socket_of_prosody_filer(path: Path) -> None:
    """With unixSocket, listenPort is the path of a socket."""
    config = read(path, NEEDED + 'unixSocket = true\nlistenPort = "/run/filer.sock"\n')
    assert config.listen.endpoint == "unix:address=/run/filer.sock:mode=666"


def test_foreign_keys_are_named(path: Path) -> None:
    """Keys of hmac-file-server 1.0.x that mean nothing here are passed over, each with a warning."""
    config = read(path, NEEDED + "DeleteFiles = true\nNumCores = 2\nLOGLEVEL = 'info'\n")
    assert config.warnings == (
        f"{path}: DeleteFiles means nothing to this server and is passed over",
        f"{path}: NumCores means nothing to this server and is passed over",
    )


@pytest.mark.parametrize(
    ("value", "secrets"),
    [
        (r'''"\"\"]]m's="''', [b'""]]m\'s=']),
        ('[",comma"]', [b",comma"]),
        ('["new", ",comma"]', [b"new", b",comma"]),
        ('[", a", "b"]', [b", a", b"b"]),
        ("'a#b'", [b"a#b"]),
        ('"a\\u0041 # b"', [b"aA # b"]),
        ('"""a"b"""', [b'a"b']),
    ],
)
def test_secrets_that_are_hard_to_read(path: Path, value: str, secrets: list[bytes]) -> None:
    """Whatever stands in a secret, it is read as TOML says."""
    assert read(path, f'Secret = {value}\nStoreDir = "/srv/upload"\n').secrets == tuple(secrets)


OLD = {
    "ListenPort": ":8080",
    "UnixSocket": False,
    "Secret": SECRET,
    "StoreDir": "/mnt/storage/hmac-file-server/",
    "UploadSubDir": "upload",
    "LogLevel": "debug",
    "LogFile": "/var/log/hmac-file-server.log",
    "MaxRetries": 5,
    "RetryDelay": 2,
    "MaxUploadSize": 1073741824,
    "MetricsEnabled": True,
    "MetricsPort": ":9091",
    "RedisAddr": "localhost:6379",
    "RedisPassword": "",
    "RedisDB": 0,
}
OLD_AND_MEANINGLESS = {
    "LoggingEnabled": True,
    "UnixSocketPath": "/run/filer.sock",
    "EnableVersioning": True,
    "VersioningDirectory": "/mnt/storage/versions/",
    "MaxVersions": 2,
    "VersioningStrategy": "timestamp",
    "EnableGetRetries": True,
    "BlockAfterFails": 5,
    "BlockDuration": 300,
    "AutoUnban": True,
    "AutoBanTime": 600,
    "DeleteFiles": True,
    "DeleteFilesAfterPeriod": "1y",
    "DeleteFilesReport": True,
    "DeleteFilesReportPath": "/var/log/deleted_files.log",
    "WriteReport": True,
    "ReportPath": "/var/log/report.log",
    "NumCores": "auto",
    "MinFreeSpaceThreshold": 104857600,
    "ReaskSecretEnabled": True,
    "ReaskSecretInterval": "1h",
    "reask_secret_enabled": True,
    "reask_secret_interval": "1h",
    "ChecksumVerification": True,
    "RetentionPolicyEnabled": True,
    "MaxRetentionSize": 10737418240,
    "MaxRetentionTime": "30d",
    "RedisEnabled": True,
    "ReadTimeout": 900,
    "WriteTimeout": 900,
    "BufferEnabled": True,
    "BufferSize": 65536,
    "ChunkMaxRetries": 3,
    "read_timeout": 900,
    "write_timeout": 900,
    "buffer_size": 65536,
    "chunk_size": 1048576,
    "chunk_max_retries": 3,
}


def test_configuration_of_the_old_server(path: Path) -> None:
    """A whole configuration of hmac-file-server 1.0.x works unchanged; each key that means nothing is named."""
    lines = [f"{key} = {_toml(value)}  # as documented\n" for key, value in (OLD | OLD_AND_MEANINGLESS).items()]
    config = read(path, "".join(lines))
    assert (config.secrets, config.store_dir) == ((SECRET.encode(),), "/mnt/storage/hmac-file-server/")
    assert (config.upload_sub_dir, config.max_upload_size) == ("upload", 1 << 30)
    assert (config.metrics_listen.given, config.redis) == (":9091", RedisServer("localhost", 6379))
    assert config.chunk_size == Config(secrets=(), store_dir="").chunk_size
    assert config.warnings == tuple(
        f"{path}: {key} means nothing to this server and is passed over" for key in OLD_AND_MEANINGLESS
    )


def test_old_names_of_the_metrics_keys(path: Path) -> None:
    """Metrics that 1.0.x was told to leave out by metrics_enabled stay out; metrics_port says where they are."""
    config = read(path, NEEDED + 'metrics_enabled = false\nmetrics_port = ":9091"\n')
    assert (config.metrics_enabled, config.metrics_listen.given, config.warnings) == (False, ":9091", ())


def test_byte_order_mark(path: Path) -> None:
    """A file that an editor on Windows saved, with its mark and line ends, is read."""
    assert read(path, b"\xef\xbb\xbf" + NEEDED.replace("\n", "\r\n").encode()).store_dir == "/srv/upload"


# What is refused


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("MaxRetrys = 5", "MaxRetrys: unknown key; did you mean MaxRetries?"),
        ("listen_port = 5", "listen_port: unknown key; did you mean ListenPort?"),
        ('secretfil = "x"', "secretfil: unknown key; did you mean SecretFile?"),
        ("xyzzy = 5", "xyzzy: unknown key; etc/config.toml lists the keys"),
        ('"a\\nb" = 5', "a\\nb: unknown key; etc/config.toml lists the keys"),
        ("[xyzzy]", "xyzzy: unknown key; etc/config.toml lists the keys"),
        ("fsync = true\nFSYNC = true", "FSYNC is there twice, also as fsync; keep one"),
        ("Fsync = 1", "Fsync = 1: write true or false"),
        ('MetricsEnabled = "true"', 'MetricsEnabled = "true": write true or false'),
        ("MaxRetries = 1.5", "MaxRetries = 1.5: write a whole number from 0 to 1000"),
        ("MaxRetries = true", "MaxRetries = true: write a whole number from 0 to 1000"),
        ("maxretries = -1", "maxretries = -1: write a whole number from 0 to 1000"),
        ("MaxRetries = 1001", "MaxRetries = 1001: write a whole number from 0 to 1000"),
        ('MaxRetries = "a\\u001bb"', 'MaxRetries = "a\\x1bb": write a whole number from 0 to 1000'),
        ("RetryDelay = -1", "RetryDelay = -1: write a number of seconds from 0 to 3600"),
        ("RetryDelay = nan", "RetryDelay = nan: write a number of seconds from 0 to 3600"),
        ('UploadTimeout = "60s"', 'UploadTimeout = "60s": write a number of seconds from 1 to 86400'),
        ("IdleTimeout = 86401", "IdleTimeout = 86401: write a number of seconds from 1 to 86400"),
        (
            "ChunkSize = 0",
            'ChunkSize = 0: write a size from 4096 to 67108864 bytes, as a number or as "1MiB"',
        ),
        (
            'ChunkSize = "1XB"',
            'ChunkSize = "1XB": write a size from 4096 to 67108864 bytes, as a number or as "1MiB"',
        ),
        ('LogLevel = "loud"', 'LogLevel = "loud": write debug, info, warn or error'),
        ('LogFormat = "xml"', 'LogFormat = "xml": write text or json'),
        ("LogFormat = 3", "LogFormat = 3: not a text; write it in quotes"),
        ("LogLevel = 3", "LogLevel = 3: not a text; write it in quotes"),
        ("LogFile = 3", "LogFile = 3: not a text; write it in quotes"),
        ('LogFile = "a\\u0000"', 'LogFile = "a\\x00": has a NUL character'),
        ('UploadSubDir = "a/../b"', 'UploadSubDir = "a/../b": not a URL prefix'),
        ("ListenPort = 70000", "ListenPort = 70000: a port is at most 65535"),
        ("ListenPort = true", "ListenPort = true: not an address to listen at"),
        ("MetricsPort = 1.5", "MetricsPort = 1.5: not an address to listen at"),
        ('unixSocket = "yes"', 'unixSocket = "yes": write true or false'),
        (
            "unixSocket = true\nListenPort = 5050",
            'ListenPort = 5050: with unixSocket, write the path of the socket, as "/run/hmac-file-server.sock"',
        ),
        (
            'TrustedProxies = "127.0.0.1"',
            'TrustedProxies = "127.0.0.1": write a list of addresses or networks, as ["127.0.0.1", "10.0.0.0/8"]',
        ),
        (f'RedisPassword = ["{SECRET}"]', "RedisPassword: not a text; write it in quotes"),
    ],
)
def test_refused_values(path: Path, line: str, reason: str) -> None:
    """A wrong key or value is refused in one line with the key as written, the value and the remedy."""
    assert refusal(path, NEEDED + line) == reason


def test_refused_listen_address(path: Path) -> None:
    """An address that makes no sense is refused with the forms that do."""
    assert refusal(path, NEEDED + 'ListenPort = "nonsense"') == (
        'ListenPort = "nonsense": not an address to listen at; write ":8080", "127.0.0.1:8080", "[::1]:8080", '
        '"unix:/run/hmac-file-server.sock:mode=660" or a Twisted endpoint'
    )


def test_refused_proxy_has_a_remedy(path: Path) -> None:
    """A name among the trusted proxies is refused with what to write instead."""
    line = refusal(path, NEEDED + 'TrustedProxies = ["proxy.example"]')
    assert line.startswith("TrustedProxies = ['proxy.example']: ")
    assert line.endswith('write a list of addresses or networks, as ["127.0.0.1", "10.0.0.0/8"]')


def test_number_without_end(path: Path) -> None:
    """A number too long to be written out is out of range like any other."""
    line = refusal(path, f"{NEEDED}MaxRetries = 0x{'f' * 5000}")
    assert line.endswith(": write a whole number from 0 to 1000")


def test_more_digits_than_python_reads(path: Path) -> None:
    """A number that Python's parser gives up on is refused in one line too."""
    assert refusal(path, f"{NEEDED}MaxRetries = {'9' * 5000}") == (
        "not TOML that can be read; see etc/config.toml for how it is written"
    )


@pytest.mark.parametrize(
    "value",
    [f"{{a = '{SECRET}'}}", f'["{SECRET}", ""]', f'[["{SECRET}"]]', "5", "true", '""', "[]", "2020-01-01"],
)
def test_refused_secrets(path: Path, value: str) -> None:
    """What is no secret is refused without showing it."""
    assert refusal(path, f'StoreDir = "/srv/upload"\nSecret = {value}') == (
        "Secret: write the secret in quotes, or a list of such while one replaces another"
    )


@pytest.mark.parametrize(
    "line",
    [
        "Secret = {}",
        "Secret = [{}]",
        "Secret = 1{}",
        "Secret = 0x{}",
        "Secret = +{}",
        'Secret = "{}',
        'Secret = "{}" "{}"',
        'Secret = "\\q{}"',
        "Secret {}",
        "Secret: {}",
        'Secret = "{0}"\nSecret = "{0}"',
    ],
)
def test_broken_line_of_the_secret(path: Path, line: str) -> None:
    """A secret without its quotes, or otherwise misspelt, is not shown either."""
    assert refusal(path, line.format(SECRET, SECRET) + '\nStoreDir = "/srv/upload"\n').startswith("not TOML: ")


def test_list_without_its_end(path: Path) -> None:
    """A list that is never closed is refused; it is not read with the last secret cut short."""
    assert refusal(path, f'StoreDir = "/srv/upload"\nSecret = ["{SECRET}"\n').startswith("not TOML: ")


@pytest.mark.parametrize("host", ["redis.example:6379", "[::1]:6379", "redis.example:6379/0"])
@pytest.mark.parametrize("form", ['"redis://:{}@{}"', '"redis://user:p@{}@{}"', '"tls:{}@{}"', '["redis://:{}@{}"]'])
def test_refused_redis_hides_its_password(path: Path, form: str, host: str) -> None:
    """What stands before the host of Redis may be a password, and is not shown."""
    line = refusal(path, f"{NEEDED}redisaddr = {form.format(SECRET, host)}")
    assert line.startswith("redisaddr = ")
    assert f"...@{host}" in line


def test_secret_is_not_shown(path: Path) -> None:
    """A configuration in a log or a traceback shows neither the secret nor the password."""
    config = read(path, NEEDED + 'RedisPassword = "hunter2"')
    assert config.redis_password == "hunter2"
    assert not re.search(f"{SECRET}|hunter2", repr(config))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Secret is missing; add the secret that the XMPP server signs with, or SecretFile"),
        ("# nothing\n", "Secret is missing; add the secret that the XMPP server signs with, or SecretFile"),
        (f'Secret = "{SECRET}"\n', "StoreDir is missing; add the folder for the files"),
        (b'Secret = "\xff\xfe"\n', "not UTF-8 at byte 10; save it as UTF-8"),
        ("Secret".encode("utf-16"), "not UTF-8 at byte 0; save it as UTF-8"),
        (b"#" * (1 << 20) + b"#", "too large for a configuration file"),
    ],
    ids=["empty", "comment", "no store", "Latin-1", "UTF-16", "large"],
)
def test_refused_files(path: Path, content: str | bytes, reason: str) -> None:
    """A file that is no configuration is refused with what is wrong with it."""
    assert refusal(path, content) == reason


def test_absent_file(path: Path) -> None:
    """Without a file the daemon says how to name one."""
    assert refusal(path) == "No such file or directory; name the file with --config"


def test_directory(tmp_path: Path) -> None:
    """A directory is no configuration."""
    assert refusal(tmp_path) == "Is a directory; name the file with --config"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_unreadable_file(path: Path) -> None:
    """A file of another user is refused with the reason."""
    path.touch(0)
    assert refusal(path) == "Permission denied; name the file with --config"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="there is no /proc")
def test_file_that_can_not_be_read() -> None:
    """A file that opens but gives nothing is refused with the reason."""
    assert refusal(Path("/proc/self/mem")) == "Input/output error; name the file with --config"


# SecretFile


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s3cret", b"s3cret"),
        (b"s3cret\n", b"s3cret"),
        (b"s3cret\r\n", b"s3cret"),
        (b" s3cret \n\n", b" s3cret \n"),
        ("grüße\n".encode(), "grüße".encode()),
    ],
)
def test_secret_file(path: Path, content: bytes, secret: bytes) -> None:
    """A secret in a file of its own is taken as it is, but for the newline that an editor leaves."""
    file = path.with_name("secret")
    file.write_bytes(content)
    assert read(path, f'SecretFile = "{file}"\nStoreDir = "/srv/upload"').secrets == (secret,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory; it must hold the secret"),
        (b"", "is empty; it must hold the secret"),
        (b"\n", "is empty; it must hold the secret"),
        (b"\xff\n", "not UTF-8; it must hold the secret as text"),
    ],
)
def test_refused_secret_file(path: Path, content: bytes | None, reason: str) -> None:
    """A secret file without a secret is refused in one line that names it."""
    file = path.with_name("secret")
    if content is not None:
        file.write_bytes(content)
    line = refusal(path, f'SecretFile = "{file}"\nStoreDir = "/srv/upload"')
    assert line == f'SecretFile = "{file}": {reason}'


def test_two_secrets_of_two_kinds(path: Path) -> None:
    """Secret beside SecretFile is refused, for nobody could tell which of them counts."""
    line = refusal(path, NEEDED + 'secretfile = "/x"')
    assert line == 'secretfile = "/x": there is a Secret too; keep one of the two'


def test_a_secret_in_the_wrong_place(path: Path) -> None:
    """SecretFile that has the secret itself, and Redis's password behind its address, are not shown."""
    for wrong in ('SecretFile = "hunter2-hunter2"\nStoreDir = "/x"\n', NEEDED + 'RedisAddr = "a:1,password=hunter2"'):
        assert "hunter2" not in refusal(path, wrong)


# The example's secret


@pytest.mark.parametrize("listen", ['":8080"', "8080", '"0.0.0.0:8080"', '"[::]:8080"', '"unix:/x"', '"tcp:8080"'])
def test_example_secret_off_loopback(path: Path, listen: str) -> None:
    """The secret that everybody knows is refused wherever others could reach the daemon."""
    example = (ROOT / "etc" / "config.toml").read_text("utf-8")
    assert refusal(path, re.sub("(?m)^ListenPort = .*", f"ListenPort = {listen}", example)) == (
        "Secret: is the secret of the example, which everybody knows; choose your own, or listen on [::1] only"
    )


def test_example_secret_among_others(path: Path) -> None:
    """The public secret is refused in a list and in a file too."""
    secret = tomllib.loads((ROOT / "etc" / "config.toml").read_text())["Secret"]
    rest = 'StoreDir = "/srv/upload"\nListenPort = ":8080"\n'
    assert "everybody knows" in refusal(path, f'Secret = ["new", "{secret}"]\n{rest}')
    file = path.with_name("secret")
    file.write_text(secret + "\n")
    assert "everybody knows" in refusal(path, f'SecretFile = "{file}"\n{rest}')


@pytest.mark.parametrize(
    "secret",
    [
        "change-me",
        "changeme",
        "CHANGE_ME!",
        "change me please",
        "REPLACE-ME: openssl rand -hex 32",
        "mysecret",
        "it-is-secret",
        "this is your secret string",
        "this is a secret string!",
        "your shared secret",
        "YOUR_HMAC_SECRET",
        "your-secret-key",
        "supersecret",
    ],
)
def test_placeholders(path: Path, secret: str) -> None:
    """A secret that some documentation has is refused everywhere, with a command that makes a good one."""
    reason = "is a placeholder, which everybody knows; choose your own (this prints one: openssl rand -hex 32)"
    rest = 'StoreDir = "/srv/upload"\nListenPort = "[::1]:8080"\n'
    for value in (f'"{secret}"', f'["{SECRET}", "{secret}"]'):
        assert refusal(path, f"secret = {value}\n{rest}") == f"secret: {reason}"
    file = path.with_name("secret")
    file.write_text(secret + "\n")
    assert refusal(path, f'SecretFile = "{file}"\n{rest}') == f"SecretFile: {reason}"


@pytest.mark.parametrize("file", ["prosody/hmac-file-server.cfg.lua", "ejabberd/hmac-file-server.yml"])
def test_placeholders_of_ours(path: Path, file: str) -> None:
    """The secret of each file in contrib can not be left as it is."""
    found = re.search(r'secret\W+"(.*)"', (ROOT / "contrib" / file).read_text("utf-8"))
    assert found
    assert "is a placeholder" in refusal(path, f'Secret = "{found[1]}"\nStoreDir = "/srv/upload"\n')


def test_weak_secrets() -> None:
    """A secret that is short, or has white space around it, is complained of; a good one is not."""
    assert list(weaknesses([b"0123456789abcdef", EXAMPLE_SECRET])) == []
    short, space = weaknesses([b"0123456789abcde", b"0123456789abcdef\n"])
    assert "15 bytes" in short
    assert "openssl rand -hex 32" in short
    assert "white space" in space


@in_one_folder
@given(st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1), min_size=1, max_size=3))
def test_any_secrets(path: Path, secrets: list[str]) -> None:
    """A list of any secrets is read as it was written."""
    assume(not any(is_placeholder(secret.encode()) for secret in secrets))
    config = read(path, f'Secret = {_toml(secrets)}\nStoreDir = "/srv/upload"\n')
    assert config.secrets == tuple(secret.encode() for secret in secrets)


# TOML


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('Secret = "a"\n\nSecret = "b"\n', "not TOML: Secret is there twice, the second time in line 3; keep one"),
        ("[server]\n[server]\n", "not TOML: server is there twice, the second time in line 2; keep one"),
        ("ListenPort: 8080\n", "a line is written Key = value, and a comment begins with #"),
        ('Secret = "abc\n', "the quote at the end of a text is missing"),
        ("Secret = 'abc", "the quote at the end of a text is missing"),
        ('StoreDir = "C:\\p"\n', "in 'single quotes' a backslash stands for itself"),
        ("ListenPort = :8080\n", "text is written in quotes"),
        ("ListenPort = 127.0.0.1:8080\n", "text is written in quotes"),
        ("Fsync = True\n", "text is written in quotes, and true and false in small letters"),
    ],
)
def test_remedies_for_toml(path: Path, content: str, reason: str) -> None:
    """What is no TOML is refused with what its writer most likely missed."""
    assert refusal(path, content).endswith(reason)


VERSION_3 = """
[server]
listen_address = "8088"
bind_ip = "127.0.0.1"
storage_path = "/srv/hmac/uploads"
metrics_enabled = true
metrics_port = "9099"
max_upload_size = "10GB"
min_free_bytes = "1GB"
pid_file = "/run/x.pid"
unixsocket = false

[security]
secret = "a-secret-of-somebody-with-3.x-4711"
enablejwt = false

[uploads]
allowed_extensions = [".txt"]
chunk_size = "2MB"
resumableuploadsenabled = true
sessiontimeout = "60m"
maxretries = 3

[timeouts]
readtimeout = "30s"
idletimeout = "120s"
shutdown = "30s"

[logging]
level = "INFO"
file = "/var/log/hmac.log"
max_size = 100

[redis]
redisenabled = {redis}
redisaddr = "127.0.0.1:6379"
redisdbindex = 2

[clamav]
enabled = false
"""


@pytest.mark.parametrize("redis", [True, False])
def test_tables_of_3(path: Path, redis: bool) -> None:
    """Of the tables of hmac-file-server 3.x what means something here is taken, and the rest is named."""
    path.write_text(VERSION_3.replace("{redis}", str(redis).lower()))
    config = load(str(path))
    [host] = config.hosts
    assert host.secrets == (b"a-secret-of-somebody-with-3.x-4711",)
    assert (host.store_dir, host.upload_sub_dir, host.max_upload_size) == ("/srv/hmac/uploads", "", 10 * 10**9)
    assert (config.listen.bind, config.metrics_listen.authority) == (("127.0.0.1", 8088), "localhost:9099")
    assert (config.min_free_space, config.chunk_size, config.max_retries) == (10**9, 2 * 10**6, 3)
    assert (config.session_timeout, config.idle_timeout, config.shutdown_timeout) == (3600, 120, 30)
    assert (config.log_level, config.log_file) == ("info", "/var/log/hmac.log")
    assert (config.redis is not None, config.redis_db) == ((True, 2) if redis else (False, 0))
    said = "\n".join(config.warnings)
    for words in (
        "[server] of hmac-file-server 3.x: pid_file: passed over",
        "[security] of hmac-file-server 3.x: enablejwt: passed over",
        "[uploads] of hmac-file-server 3.x: allowed_extensions: passed over",
        "[timeouts] of hmac-file-server 3.x: readtimeout: passed over",
        "[logging] of hmac-file-server 3.x: max_size: passed over",
        "[clamav] of hmac-file-server 3.x: enabled: passed over",
        'write UploadSubDir = "upload/" above all tables',
    ):
        assert words in said
    assert load(str(path), config.handed_down).hosts == config.hosts


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ('"10GB"', '"much"', '[server] max_upload_size = "much": write a size'),
        ('"2MB"', '"adaptive"', '[uploads] chunk_size = "adaptive": write a size'),
        ('"60m"', '"0s"', "[uploads] sessiontimeout = 0.0: write a number of seconds"),
        ("[clamav]", "[quotas]", "[quotas] of hmac-file-server 3.x: enabled: passed over"),
    ],
)
def test_values_of_3_that_mean_nothing_here(path: Path, old: str, new: str, warning: str) -> None:
    """They are named, and the defaults hold."""
    path.write_text(VERSION_3.replace("{redis}", "true").replace(old, new, 1))
    assert any(warning in said for said in load(str(path)).warnings)


def test_how_3_spells_values(path: Path) -> None:
    text = VERSION_3.replace("{redis}", "true").replace('"60m"', '"1h30m"').replace('"1GB"', '"1.5GB"')
    path.write_text(text.replace('"INFO"', '"trace"').replace('"8088"', '":8088"'))
    config = load(str(path))
    assert (config.session_timeout, config.min_free_space, config.log_level) == (5400, 1_500_000_000, "debug")
    assert config.listen.bind == ("127.0.0.1", 8088)


def test_a_table_without_those_of_3(path: Path) -> None:
    assert refusal(path, 'Secret = "x"\nStoreDir = "/x"\n[quotas]\nx = 1\n').startswith("quotas: unknown key")


def test_tables_of_3_beside_a_plain_key(path: Path) -> None:
    """UploadSubDir may stand above them; a key that is in both places is named, and a secret is not shown."""
    path.write_text('UploadSubDir = "upload/"\n' + VERSION_3.replace("{redis}", "true"))
    config = load(str(path))
    assert config.hosts[0].upload_sub_dir == "upload"
    assert "UploadSubDir" not in "".join(config.warnings)
    path.write_text('Secret = "x"\n' + VERSION_3.replace("{redis}", "true"))
    with pytest.raises(ConfigError, match=r"Secret is there twice, also as \[security\] secret; keep one"):
        load(str(path))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"a-secret-of-somebody-with-3.x-4711"', "4711", "[security] secret: write the secret in quotes"),
        (
            "a-secret-of-somebody-with-3.x-4711",
            "CHANGE-THIS-SECRET-KEY-MINIMUM-32-CHARACTERS",
            "[security] secret: is a placeholder",
        ),
    ],
)
def test_mistakes_in_tables_of_3(path: Path, old: str, new: str, line: str) -> None:
    assert refusal(path, VERSION_3.replace("{redis}", "true").replace(old, new, 1)).startswith(line)


# Anything


def one_line_or_fine(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        load(str(path))
        return
    except ConfigError as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    assert line.startswith(f"{path}: ")
    assert not any(unicodedata.category(character) == "Cc" for character in line)


@in_one_folder
@given(st.binary(max_size=200) | st.text("aS=\"'[]{}\\\n#.,-_0x9:T+e \t\r\0\ufeffé", max_size=80).map(str.encode))
def test_junk(path: Path, data: bytes) -> None:
    """Any bytes whatever are read or refused in one line."""
    one_line_or_fine(path, data)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _values() -> st.SearchStrategy[Any]:
    # No names that would be looked up in the DNS.
    text = st.text(max_size=12).filter(lambda value: not re.search(r":\d{1,5}\Z", value))
    plain = st.booleans() | st.integers() | st.floats() | text | st.sampled_from(["1MiB", "debug", "/x", "[::1]:1"])
    return plain | st.lists(text, max_size=3) | st.lists(st.integers(), max_size=3) | st.dictionaries(text, plain)


@in_one_folder
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), _values(), max_size=5))
def test_junk_values(path: Path, values: dict[str, Any]) -> None:
    """Any value of any type under any key is taken or refused in one line."""
    lines = {"Secret": SECRET, "StoreDir": "/srv/upload"} | values
    one_line_or_fine(path, "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in lines.items()).encode())
