"""A real nginx in front of the daemon, with the example configuration."""

from __future__ import annotations

import shutil
import socket
import ssl
from pathlib import Path

from tests.neighbours.program import PATH, Program, certificate, example
from tests.support import DEADLINE, Wire, free_port

_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr info;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/hmac-file-server.conf;
}}
"""

NAME = "upload.example.com"


class Nginx:
    """nginx on TLS. Its workers run as nobody, who can not write where it would buffer to.

    :param backend: where the daemon listens, as ``server`` in an ``upstream`` block takes it.
    :param mistakes: what to replace in the example, by what.
    """

    def __init__(self, folder: Path, backend: str, *mistakes: tuple[str, str]) -> None:
        self.port = free_port()
        self.folder = folder
        self._certificate, key = certificate(folder, NAME)
        live = f"/etc/letsencrypt/live/{NAME}"
        site = example(
            "nginx/hmac-file-server.conf",
            ("    server [::1]:8080;", f"    server {backend};"),
            ("    listen [::]:443 ssl;\n", ""),
            ("listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl;"),
            (f"{live}/fullchain.pem", str(self._certificate)),
            (f"{live}/privkey.pem", str(key)),
            *mistakes,
        )
        (folder / "hmac-file-server.conf").write_text(site)
        config = folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=folder))
        nginx = shutil.which("nginx", path=PATH)
        assert nginx
        self.program = Program(folder, [nginx, "-c", config, "-p", folder, "-e", "stderr"]).listens(self.port)

    def wire(self, source: str = "127.0.0.1") -> Wire:
        """A connection through TLS.

        :param source: the client's own address.
        """
        return _TLSWire(self.port, self._certificate, source)


class _TLSWire(Wire):
    def __init__(self, port: int, authority: Path, source: str) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        plain = socket.create_connection(("127.0.0.1", port), DEADLINE, (source, 0))
        self.socket = context.wrap_socket(plain, server_hostname=NAME)
        self._buffer = bytearray()
