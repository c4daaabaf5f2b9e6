"""``tidy``: what the housekeeper does, by hand."""

from __future__ import annotations

import attrs
import click

from hmac_file_server.command.options import chosen_hosts, loaded, print_json, with_config, with_host, with_json
from hmac_file_server.command.store import Stores
from hmac_file_server.housekeeping.rules import rules_of
from hmac_file_server.housekeeping.tidy import tidy as walk_and_tidy
from hmac_file_server.log import printable


@click.command()
@with_config
@with_host
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("-v", "--verbose", is_flag=True, help="Name each file that is removed.")
@with_json
@click.pass_context
def tidy(context: click.Context, config: str, host: str | None, dry_run: bool, verbose: bool, as_json: bool) -> None:
    """Remove the files whose time is over, and the oldest above StoreLimit.

    The daemon does the same every TidyEvery, in a process of its own; it need not run for this, and may. What is
    removed stays removed: its slot takes no upload any more. Root becomes StoreDir's owner first.

    Ends with 0 if all could be read and removed, 1 if not.
    """
    settings = loaded(config)
    failed, outcomes = 0, {}
    hosts = chosen_hosts(settings, host)
    stores = Stores(settings, hosts)
    for each in hosts:

        def say(level: str, text: str) -> None:
            if level == "warn" or (verbose and not as_json):
                click.echo(printable(text), err=level == "warn")

        rules = rules_of(each)
        with stores.opened(each, rules.removes and not dry_run) as disk:
            outcome = walk_and_tidy(disk, rules, say, dry_run)
        failed += outcome.failed
        outcomes[each.name] = attrs.asdict(outcome)
        if not as_json:
            prefix = f"{each.name}: " if len(settings.hosts) > 1 else ""
            click.echo(f"{prefix}{outcome.summary(dry_run)}")
    if as_json:
        print_json(outcomes)
    context.exit(1 if failed else 0)
