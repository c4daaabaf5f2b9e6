"""A real Caddy in front of the daemon, with the example configuration."""

from __future__ import annotations

from pathlib import Path

from tests.neighbours.program import example, find
from tests.neighbours.proxy import NAME, Proxy

_GLOBAL = "{\n\tadmin off\n\tauto_https off\n}\n\n"


class Caddy(Proxy):
    """Caddy."""

    command = "caddy"
    unix = "unix/"
    early = ("HTTP/2",)

    @property
    def environment(self) -> dict[str, str]:
        return dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(self.folder))

    def prepare(self, backend: str) -> list[str | Path]:
        config = self.folder / "Caddyfile"
        site = f"https://{NAME}:{self.port} {{\n\tbind 127.0.0.1\n\ttls {self.certificate} {self.key}\n"
        changes = ((f"{NAME} {{\n", site), ("/upload/* [::1]:8080", f"/upload/* {backend}"))
        config.write_text(_GLOBAL + example("caddy/Caddyfile", *changes, *self.changes))
        return [find(self.command), "run", "--config", config, "--adapter", "caddyfile"]
