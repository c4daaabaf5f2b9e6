"""``rm``: remove files, so that they do not come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes, urlsplit

import attrs
import click

from hmac_file_server.command.options import chosen_hosts, loaded, print_json, with_config, with_host, with_json
from hmac_file_server.command.slot import checked_path
from hmac_file_server.command.store import Stores, files_of, selection_of, with_selection
from hmac_file_server.housekeeping.select import Selection
from hmac_file_server.log import from_wire, printable
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.path import BadPath, SlotPath, slot_path
from hmac_file_server.stores.errors import NoSuchFile
from hmac_file_server.stores.faults import explain
from hmac_file_server.stores.local.disk import Disk

_MANY = 1


@click.command()
@click.argument("files", nargs=-1, metavar="[URL|PATH]...")
@with_selection
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@with_config
@with_host
@with_json
@click.pass_context
def rm(
    context: click.Context,
    files: Sequence[str],
    owner: str | None,
    before: float | None,
    larger_than: int | None,
    media_type: str | None,
    dry_run: bool,
    yes: bool,
    config: str,
    host: str | None,
    as_json: bool,
) -> None:
    """Remove files: those that are named by their URL or the path below the upload prefix, or all that options select.

    Their slots take no upload any more, also if there is no file. It asks before it removes more than one that options
    select. It can be repeated. No daemon needs to run. Root becomes StoreDir's owner first.

    Ends with 0 if all are gone, 1 if not.
    """
    settings = loaded(config)
    if owner == "-" and not (yes or dry_run):
        raise click.UsageError("--owner -: add --yes, for standard input can not answer then")
    selection = selection_of(owner, before, larger_than, media_type)
    if bool(files) == (selection != Selection()):
        raise click.UsageError("name files, or say which by --owner, --before, --larger-than or --type")
    hosts = chosen_hosts(settings, host)
    named = [_named(hosts, file) for file in files]
    stores = Stores(settings, hosts)
    count = size = failed = 0
    for each in hosts:
        paths = [path for whose, path in named if whose is each]
        if files and not paths:
            continue
        with stores.opened(each, removes=not dry_run) as disk:
            found = _Found(disk, paths, selection)
            count_here, size_here = found.sum()
            many = not files and count_here > _MANY
            question = f"{count_here} files of {size_here} bytes of {each.name}"
            if many and not (dry_run or yes):
                click.confirm(f"Remove {question}?", abort=True, err=True)
            if not dry_run:
                failed += found.remove()
            count, size = count + count_here, size + size_here
    if as_json:
        print_json({"files": count, "bytes": size, "failed": failed, "dry_run": dry_run})
    else:
        click.echo(f"{count} files of {size} bytes {'would be removed' if dry_run else 'removed'}")
    context.exit(1 if failed else 0)


def _named(hosts: list[Host], file: str) -> tuple[Host, SlotPath]:
    """Whose a file is that was named, and its path."""
    if not file.startswith(("http://", "https://")):
        if len(hosts) > 1:
            raise click.UsageError("--host: say whose the paths are, or give URLs")
        return hosts[0], checked_path(file)
    segments = [unquote_to_bytes(segment) for segment in urlsplit(file).path.split("/")[1:]]
    for each in sorted(hosts, key=lambda host: -len(host.upload_sub_dir)):
        prefix = each.upload_sub_dir.encode("utf-8").split(b"/") if each.upload_sub_dir else []
        if segments[: len(prefix)] == prefix:
            try:
                return each, slot_path(segments[len(prefix) :])
            except BadPath as error:
                raise click.UsageError(f"{file}: {error}") from None
    raise click.UsageError(f"{file}: no host has files there")


@attrs.frozen
class _Found:
    disk: Disk
    paths: list[SlotPath]
    selection: Selection

    def _files(self) -> Iterator[tuple[SlotPath, int]]:
        if not self.paths:
            yield from ((entry.path, entry.size) for entry in files_of(self.disk, self.selection))
        for path in self.paths:
            try:
                file = self.disk.open(path)
            except NoSuchFile:
                continue
            file.close()
            yield path, file.size

    def sum(self) -> tuple[int, int]:
        """How many there are, and of how many bytes."""
        sizes = [0, 0]
        for _, size in self._files():
            sizes[0] += 1
            sizes[1] += size
        return sizes[0], sizes[1]

    def remove(self) -> int:
        """Remove them; how many could not be."""
        failed = 0
        for path in self.paths or (path for path, _ in self._files()):
            try:
                self.disk.remove(path)
            except OSError as error:
                failed += 1
                click.echo(f"{printable(from_wire(path.signed))}: {explain(error)}", err=True)
        return failed
