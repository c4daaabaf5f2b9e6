"""``import``: the files of another server are taken into the store."""

from __future__ import annotations

import re
from typing import Any

import click

from hmac_file_server.command.options import chosen_host, loaded, print_json, with_config, with_host, with_json
from hmac_file_server.importing.prosody import Prosody
from hmac_file_server.importing.source import Layout, NoStore, Refused, Skipped
from hmac_file_server.importing.takeover import Report, take_over
from hmac_file_server.importing.xmpp_http_upload import xmpp_http_upload
from hmac_file_server.log import from_wire, printable
from hmac_file_server.stores.faults import explain

_PROSODY, _XMPP_HTTP_UPLOAD = "prosody", "xmpp-http-upload"
_UNITS = {"s": 1, "h": 3600, "d": 86400, "w": 604800}


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """What ``30d`` is in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([shdw])", value)
    if found is None or not int(found[1]):
        reason = f"{value!r}: write a number of weeks, days, hours or seconds, as 4w, 30d, 12h or 600s"
        raise click.BadParameter(reason, context, parameter)
    return int(found[1]) * _UNITS[found[2]]


@click.command("import")
@click.argument("source", type=click.Path())
@click.option(
    "--from", "kind", required=True, type=click.Choice([_PROSODY, _XMPP_HTTP_UPLOAD]), help="Whose files these are."
)
@with_config
@with_host
@click.option("--xmpp-host", metavar="HOST", help="Of Prosody's hosts, the component whose files these are.")
@click.option(
    "--expires-after",
    "lifetime",
    metavar="DURATION",
    callback=_seconds,
    help="When a file expires, from its upload on: 30d, 4w. Without it, it stays.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@with_json
@click.pass_context
def import_(
    context: click.Context,
    source: str,
    kind: str,
    config: str,
    host: str | None,
    xmpp_host: str | None,
    lifetime: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take over the files of another server, so that its links go on working below UploadSubDir.

    SOURCE is Prosody's data_path, where mod_http_file_share stores its files, or the DATA_ROOT of xmpp-http-upload. It
    is never changed, and nothing in the store is replaced. A second run takes over what is new.

    Run it as root, or as a user who can read SOURCE and write to StoreDir. Root gives what it makes to StoreDir's
    owner. Files that belong to that owner and lie on StoreDir's file system are linked. All others are copied: a link
    is the same file by another name, and giving it away would take it from the other server. Type, owner and end are
    kept as extended attributes, of a link with the file itself.

    Ends with 0 if all is in the store that has bytes and has not expired, 1 if not.
    """
    if kind == _PROSODY:
        layout: Layout = Prosody(xmpp_host)
    elif xmpp_host is not None:
        raise click.UsageError("--xmpp-host: xmpp-http-upload does not tell hosts apart")
    else:
        layout = xmpp_http_upload
    settings = loaded(config)
    folder = chosen_host(settings, host).store_dir
    report, problem = Report(), ""
    try:
        take_over(source, folder, layout, report, settings.remember_removed, lifetime, writes=not dry_run)
    except (OSError, NoStore, Refused) as error:
        problem = explain(error)
    if as_json:
        print_json(_as_json(report, problem))
    else:
        _print(report, problem, dry_run)
    context.exit(1 if problem or report.lost else 0)


def _print(report: Report, problem: str, dry_run: bool) -> None:
    for one in report.lost:
        click.secho("not taken over: ", fg="red", bold=True, nl=False)
        click.echo(f"{_name(one)}: {printable(one.reason)}")
    how = "" if dry_run else f" ({report.linked} linked, {report.imported - report.linked} copied)"
    click.echo(f"{'would be imported' if dry_run else 'imported'}: {report.imported}{how}, {report.size} bytes")
    click.echo(f"already there: {report.already_there}")
    for reason, count in sorted(report.reasons.items()):
        click.echo(f"skipped: {count}: {reason}")
    if report.lost:
        click.echo(f"not taken over: {len(report.lost)}")
    if report.bare:
        click.secho("warning: ", fg="yellow", bold=True, nl=False)
        click.echo(f"{report.bare} are stored without their owner or end, which StoreDir's file system does not keep")
    if problem:
        click.secho("error: ", fg="red", bold=True, nl=False)
        click.echo(printable(problem))


def _as_json(report: Report, problem: str) -> dict[str, Any]:
    return {
        "imported": report.imported,
        "linked": report.linked,
        "bytes": report.size,
        "without_attributes": report.bare,
        "already_there": report.already_there,
        "skipped": dict(report.reasons),
        "not_taken_over": [{"file": _name(one), "reason": printable(one.reason)} for one in report.lost],
        "error": printable(problem) or None,
    }


def _name(one: Skipped) -> str:
    return printable(from_wire(one.what))
