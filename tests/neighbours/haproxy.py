"""A real HAProxy in front of the daemon, with the example configuration."""

from __future__ import annotations

from pathlib import Path

from tests.neighbours.program import example, find
from tests.neighbours.proxy import NAME, Proxy


class HAProxy(Proxy):
    """HAProxy."""

    command = "haproxy"
    unix = "unix@"

    def prepare(self, backend: str) -> list[str | Path]:
        both = self.folder / "both.pem"
        both.write_text(self.certificate.read_text() + self.key.read_text())
        config = self.folder / "haproxy.cfg"
        config.write_text(
            "global\n    maxconn 256\n\n"
            + example(
                "haproxy/hmac-file-server.cfg",
                ("bind :::443 v4v6", f"bind 127.0.0.1:{self.port}"),
                (f"/etc/haproxy/certs/{NAME}.pem", str(both)),
                ("server daemon [::1]:8080", f"server daemon {backend}"),
                *self.changes,
            )
        )
        return [find(self.command), "-db", "-f", config]
