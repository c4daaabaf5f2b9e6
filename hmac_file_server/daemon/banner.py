"""What the daemon says when it has started: where it is, and how to try it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from hmac_file_server import __version__
from hmac_file_server.address import Listen
from hmac_file_server.config import Config
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.secret import EXAMPLE_SECRET
from hmac_file_server.slots.signature import sign


def banner(config: Config) -> Iterator[str]:
    """Its lines."""
    at = _where(config.listen)
    workers = f", {config.workers} workers" if config.workers > 1 else ""
    if len(config.hosts) == 1:
        (host,) = config.hosts
        yield f"hmac-file-server {__version__} listens on {_base(at, host)}{workers}"
        yield f"files are stored in {host.store_dir}"
    else:
        yield f"hmac-file-server {__version__} listens on {at}/ for {len(config.hosts)} hosts{workers}"
        for host in config.hosts:
            yield f"files of {host.name} are at {_base(at, host)} and stored in {host.store_dir}"
    yield f"metrics are at {_where(config.metrics_listen)}/metrics" if config.metrics_enabled else "metrics are off"
    for host in config.hosts:
        if EXAMPLE_SECRET in host.secrets:
            # Only with the secret that is public anyway; a usable signature never goes to a log.
            path = f"try-{secrets.token_hex(4)}/hello.txt"
            url, signature = _base(at, host) + path, sign(EXAMPLE_SECRET, f"{path} 5".encode())
            yield f"try it: curl -g -X PUT --data-binary hello '{url}?v={signature}' && curl -g '{url}'"


def _base(at: str, host: Host) -> str:
    return f"{at}/{host.upload_sub_dir}{'/' if host.upload_sub_dir else ''}"


def _where(listen: Listen) -> str:
    return f"http://{listen.authority}" if listen.authority else listen.endpoint
