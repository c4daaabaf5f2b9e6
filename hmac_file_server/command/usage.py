"""``usage``: how much there is, by owner, age, size, type or host."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import click

from hmac_file_server.command.options import chosen_hosts, loaded, print_json, with_config, with_host, with_json
from hmac_file_server.command.store import Stores, files_of
from hmac_file_server.housekeeping.select import Selection, owner_of, type_of
from hmac_file_server.log import printable
from hmac_file_server.stores.local.walk import Entry

_DAY = 86400
_AGES = ((_DAY, "up to a day"), (7 * _DAY, "up to a week"), (30 * _DAY, "up to a month"), (365 * _DAY, "up to a year"))
_SIZES = tuple(
    (10**power, f"up to {name}") for power, name in ((4, "10 kB"), (5, "100 kB"), (6, "1 MB"), (7, "10 MB"))
)


@click.command()
@click.option(
    "--by",
    type=click.Choice(["owner", "age", "size", "type", "host"]),
    default="host",
    show_default=True,
    help="What to sum up by.",
)
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the N that have most.")
@with_config
@with_host
@with_json
def usage(by: str, top: int | None, config: str, host: str | None, as_json: bool) -> None:
    """Show how many files there are, and of how many bytes.

    Owners are known by the tokens of Prosody's mod_http_file_share, and by ejabberd's paths, which have a hash in
    place of the JID. No daemon needs to run. Root becomes StoreDir's owner first.
    """
    settings = loaded(config)
    files, sizes = Counter[str](), Counter[str]()
    hosts = chosen_hosts(settings, host)
    stores = Stores(settings, hosts)
    for each in hosts:
        key = _key(by, each.name)
        with stores.opened(each) as disk:
            for entry in files_of(disk, Selection()):
                files[key(entry)] += 1
                sizes[key(entry)] += entry.size
    rows = [(name, files[name], size) for name, size in sizes.most_common(top)]
    if as_json:
        print_json([{by: name, "files": count, "bytes": size} for name, count, size in rows])
        return
    for name, count, size in [*rows, ("all", sum(files.values()), sum(sizes.values()))]:
        click.echo(f"{size:>16} bytes {count:>10} files  {printable(name) or '(nobody knows)'}")


def _key(by: str, host: str) -> Callable[[Entry], str]:
    now = time.time()
    keys: dict[str, Callable[[Entry], str]] = {
        "owner": owner_of,
        "type": type_of,
        "host": lambda entry: host,
        "size": lambda entry: _span(entry.size, _SIZES, "more"),
        "age": lambda entry: _span(now - entry.mtime_ns / 1e9, _AGES, "older"),
    }
    return keys[by]


def _span(value: float, spans: tuple[tuple[int, str], ...], beyond: str) -> str:
    return next((name for bound, name in spans if value <= bound), beyond)
