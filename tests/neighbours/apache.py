"""A real Apache in front of the daemon, with the example configuration."""

from __future__ import annotations

from pathlib import Path

from tests.neighbours.program import example, find
from tests.neighbours.proxy import NAME, Proxy
from tests.support import Daemon

_MODULES = "mpm_event authz_core socache_shmcb ssl http2 proxy proxy_http headers reqtimeout env filter deflate"


class Apache(Proxy):
    """Apache with mod_proxy_http. It reads no answer, be it an interim one, before it has handed on the whole body."""

    command = "apache2"
    early = ()

    def backend(self, daemon: Daemon) -> str:
        where = super().backend(daemon)
        return f"{where}|http://localhost/" if daemon.socket else f"http://{where}/"

    def prepare(self, backend: str) -> list[str | Path]:
        live = f"/etc/letsencrypt/live/{NAME}"
        site = example(
            "apache/hmac-file-server.conf",
            ("*:443", f"127.0.0.1:{self.port}"),
            (f"{live}/fullchain.pem", str(self.certificate)),
            (f"{live}/privkey.pem", str(self.key)),
            ("http://[::1]:8080/", backend),
            *self.changes,
        )
        lines = [
            *(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _MODULES.split()),
            f"ServerName {NAME}",
            f"ServerRoot {self.folder}",
            f"DefaultRuntimeDir {self.folder}",
            f"PidFile {self.folder}/apache.pid",
            "User nobody",
            "Group nogroup",
            "ErrorLog /dev/stderr",
            f"Listen 127.0.0.1:{self.port}",
            # As in Debian's mods-enabled.
            "AddOutputFilterByType DEFLATE text/html text/plain text/xml text/css text/javascript application/xml",
        ]
        config = self.folder / "apache.conf"
        config.write_text("\n".join([*lines, site]))
        return [find(self.command), "-D", "FOREGROUND", "-f", config]
