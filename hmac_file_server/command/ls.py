"""``ls``: the files of a store."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from hmac_file_server.command.options import chosen_hosts, loaded, with_config, with_host, with_json
from hmac_file_server.command.store import Stores, files_of, selection_of, with_selection
from hmac_file_server.housekeeping.select import owner_of, type_of
from hmac_file_server.log import from_wire, printable


@click.command()
@with_selection
@with_config
@with_host
@with_json
def ls(
    owner: str | None,
    before: float | None,
    larger_than: int | None,
    media_type: str | None,
    config: str,
    host: str | None,
    as_json: bool,
) -> None:
    """List the files of the store: when each was uploaded, its size, owner, type and path.

    With --json each line is an object. No daemon needs to run. Root becomes StoreDir's owner first.
    """
    settings, selection = loaded(config), selection_of(owner, before, larger_than, media_type)
    hosts = chosen_hosts(settings, host)
    stores = Stores(settings, hosts)
    for each in hosts:
        with stores.opened(each) as disk:
            for entry in files_of(disk, selection):
                when = datetime.fromtimestamp(entry.mtime_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                path, whose, kind = from_wire(entry.path.signed), owner_of(entry), type_of(entry)
                if as_json:
                    about = {"host": each.name, "path": path, "size": entry.size, "uploaded": when}
                    about |= {"owner": whose or None, "type": kind, "expires": entry.about.end}
                    click.echo(json.dumps(about))
                else:
                    click.echo(f"{when} {entry.size:>12} {printable(whose) or '-'} {kind} {printable(path)}")
