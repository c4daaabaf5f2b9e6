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
storage = "internal"
log = {{ info = "*console" }}
ssl = {{ certificate = "{certificate}", key = "{key}" }}
VirtualHost "localhost"
{component}
"""

_MODULES = Path("/usr/lib/prosody/modules")


class Prosody:
    """Prosody with the accounts ``alice@localhost`` and ``bob@localhost``.

    :param protocol: ``v1`` or ``v2``, http_upload_external_protocol; ``share`` for mod_http_file_share.
    :param mistakes: what to replace in the example for the upload component, by what.
    """

    def __init__(self, folder: Path, daemon: Daemon, protocol: str, *mistakes: tuple[str, str]) -> None:
        self.port = free_port()
        cert, key = certificate(folder, "localhost")
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
        config = folder / "prosody.cfg.lua"
        config.write_text(
            _CONFIG.format(
                folder=folder, modules=_MODULES, port=self.port, certificate=cert, key=key, component=component
            )
        )
        (folder / "data").mkdir()
        for user in ("alice", "bob"):
            run("prosodyctl", "--root", "--config", config, "register", user, "localhost", PASSWORD)
        prosody = shutil.which("prosody", path=PATH)
        assert prosody
        self.program = Program(folder, [prosody, "--config", config, "-F"]).listens(self.port)


def need_prosody() -> None:
    need("prosody", "prosodyctl", "openssl")
    if not (_MODULES / "mod_http_upload_external").is_dir():
        missing("prosody-modules is not installed")
