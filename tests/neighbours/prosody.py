"""A real Prosody that signs slots for the daemon."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.neighbours.program import PATH, Program, certificate, example, run
from tests.neighbours.xmpp import PASSWORD
from tests.support import SECRET, Daemon, free_port, missing, need

_CONFIG = """
run_as_root = true
daemonize = false
pidfile = "{folder}/prosody.pid"
data_path = "{folder}/data"
plugin_paths = {{ "{modules}" }}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
modules_enabled = {{ "roster", "saslauth", "tls", "disco" }}
modules_disabled = {{ "s2s" }}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
{settings}
log = {{ info = "*console" }}
ssl = {{ certificate = "{certificate}", key = "{key}" }}
VirtualHost "localhost"
{component}
"""

_INTERNAL = 'storage = "internal"'
_STORAGES = {
    "internal": _INTERNAL,
    "sql": 'storage = "sql"\nsql = { driver = "SQLite3", database = "prosody.sqlite" }',
}

_FILE_SHARE = """
Component "share.localhost" "http_file_share"
http_host = "localhost"
http_external_url = "http://localhost:{port}/"
"""

_MODULES = Path("/usr/lib/prosody/modules")


class Prosody:
    """Prosody with the accounts ``alice@localhost`` and ``bob@localhost``.

    :param protocol: ``v1`` or ``v2``, http_upload_external_protocol; ``share`` for mod_http_file_share.
    :param mistakes: what to replace in the example for the upload component, by what.
    """

    def __init__(self, folder: Path, daemon: Daemon, protocol: str, *mistakes: tuple[str, str]) -> None:
        self.port = free_port()
        changes = [
            ('Component "upload.example.com"', 'Component "upload.localhost"'),
            ("https://upload.example.com/upload/", f"http://127.0.0.1:{daemon.port}/upload/"),
            ("REPLACE-ME: openssl rand -hex 32", SECRET),
        ]
        if protocol == "share":
            component = example("prosody/file-share.cfg.lua", *changes, *mistakes)
        else:
            change = ('http_upload_external_protocol = "v2"', f'http_upload_external_protocol = "{protocol}"')
            component = example("prosody/hmac-file-server.cfg.lua", *changes, change, *mistakes)
        config = _configure(folder, self.port, component)
        self.program = _start(folder, config, self.port)


class FileShare:
    """Prosody with the same accounts, which stores files by itself, below ``/file_share/`` of its own.

    :param storage: ``internal`` or ``sql``, which is SQLite.
    :ivar data: its data_path.
    """

    def __init__(self, folder: Path, storage: str) -> None:
        self.folder, self.data = folder, folder / "data"
        self.port, self.http_port = free_port(), free_port()
        http = f'http_ports = {{ {self.http_port} }}\nhttp_interfaces = {{ "127.0.0.1" }}\nhttps_ports = {{ }}\n'
        component = _FILE_SHARE.format(port=self.http_port)
        self._config = _configure(folder, self.port, component, http + _STORAGES[storage])
        self.start()

    def start(self) -> None:
        """Start it, also again."""
        self.program = _start(self.folder, self._config, self.port).listens(self.http_port)


def _configure(folder: Path, port: int, component: str, settings: str = _INTERNAL) -> Path:
    cert, key = certificate(folder, "localhost")
    config = folder / "prosody.cfg.lua"
    config.write_text(
        _CONFIG.format(
            folder=folder,
            modules=_MODULES,
            port=port,
            certificate=cert,
            key=key,
            component=component,
            settings=settings,
        )
    )
    (folder / "data").mkdir()
    for user in ("alice", "bob"):
        run("prosodyctl", "--root", "--config", config, "register", user, "localhost", PASSWORD)
    return config


def _start(folder: Path, config: Path, port: int) -> Program:
    prosody = shutil.which("prosody", path=PATH)
    assert prosody
    return Program(folder, [prosody, "--config", config, "-F"]).listens(port)


def need_prosody() -> None:
    need("prosody", "prosodyctl", "openssl")
    if not (_MODULES / "mod_http_upload_external").is_dir():
        missing("prosody-modules is not installed")
