"""``sign``: a slot as the XMPP server would give it to its client."""

from __future__ import annotations

import os
import shlex

import click

from hmac_file_server.command.options import (
    Size,
    chosen_host,
    loaded,
    print_json,
    with_config,
    with_host,
    with_json,
    with_protocol,
    with_url,
)
from hmac_file_server.command.slot import base_of, checked_path, issued, type_of
from hmac_file_server.slots.issue import Issued


@click.command()
@click.argument("path")
@click.option("--size", type=Size(), required=True, help='Length of the file in bytes, as a number or as "1MiB".')
@click.option("--type", "media_type", metavar="TYPE", help="Media type of the file.  [default: by its name]")
@with_protocol
@with_url
@with_config
@with_host
@with_json
def sign(
    path: str,
    size: int,
    media_type: str | None,
    protocol: str,
    url: str | None,
    config: str,
    host: str | None,
    as_json: bool,
) -> None:
    """Sign a slot for PATH, as the XMPP server would.

    PATH is what follows the upload prefix in the URL, not percent-encoded, as "3f2b/photo.jpg". Prints the URLs, the
    headers that the PUT must have, and a curl line that uploads: the file itself if it is in the current folder with
    this size, else as many zeros.

    Whoever has the PUT's URL and headers can upload this file, once.
    """
    settings = loaded(config)
    chosen = chosen_host(settings, host)
    base = base_of(settings.listen, chosen, url)
    slot = issued(chosen, checked_path(path), size, media_type or type_of(path), protocol)
    put, get = f"{base.url}{slot.quoted}{slot.query}", f"{base.url}{slot.quoted}"
    line = curl_line(put, slot, os.path.basename(path), size, base.socket)
    if as_json:
        print_json({"put": put, "get": get, "headers": dict(slot.headers), "curl": line})
        return
    click.echo(f"PUT {put}")
    for name, value in slot.headers.items():
        click.echo(f"    {name}: {value}")
    click.echo(f"GET {get}\n\n{line}")


def curl_line(url: str, slot: Issued, name: str, size: int, socket: str) -> str:
    """A line for a shell that uploads."""
    options = ["--globoff"]
    if socket:
        options += ["--unix-socket", shlex.quote(socket)]
    for header, value in slot.headers.items():
        options += ["--header", shlex.quote(f"{header}: {value}")]
    if _is_here(name, size):
        return f"curl {' '.join(options)} --upload-file {shlex.quote(f'./{name}')} {shlex.quote(url)}"
    return f"head -c {size} /dev/zero | curl {' '.join(options)} --request PUT --data-binary @- {shlex.quote(url)}"


def _is_here(name: str, size: int) -> bool:
    try:
        return os.path.isfile(name) and os.path.getsize(name) == size
    except OSError:
        return False
