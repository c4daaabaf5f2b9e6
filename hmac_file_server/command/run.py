"""``run``: the daemon, as ``twist hmac-file-server`` runs it."""

from __future__ import annotations

import runpy
import sys
from typing import NoReturn

import click

from hmac_file_server.command.options import with_config


@click.command()
@with_config
def run(config: str) -> None:
    """Run the daemon.

    The same as "twist hmac-file-server --config FILE". It stays in the foreground; SIGTERM and Ctrl-C stop it, SIGHUP
    has it read its configuration again.
    """
    run_daemon(config)


def run_daemon(config: str) -> NoReturn:
    """Become ``twist hmac-file-server``."""
    # In place: Twisted has the list itself as a default.
    sys.argv[:] = ["twist", "hmac-file-server", "--config", config]
    runpy.run_module("twisted", run_name="__main__", alter_sys=True)
    raise SystemExit(0)
