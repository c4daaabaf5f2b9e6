"""Stores for the commands: opened as their owner, and the files that are meant."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from hmac_file_server.command.options import Size
from hmac_file_server.command.owner import become_owner
from hmac_file_server.config import Config
from hmac_file_server.housekeeping.select import Selection
from hmac_file_server.log import printable
from hmac_file_server.settings.hosts import Host
from hmac_file_server.stores.errors import Unusable
from hmac_file_server.stores.faults import explain
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.walk import Entry, walk

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3
    """A date, or a date and a time, in this machine's time zone."""

    name = "date"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except ValueError:
            self.fail("write it as 2026-11-27 or 2026-11-27T18:00", param, ctx)


def with_selection(command: _Command) -> _Command:
    """Give a command the options that say which files, which it gets as the fields of a :class:`Selection`."""
    for option in (
        click.option(
            "--type", "media_type", metavar="TYPE", help="Of this type, as image/png, or image/* for all of a kind."
        ),
        click.option("--larger-than", type=Size(), help="Of more bytes."),
        click.option("--before", type=Moment(), help="Uploaded before, as 2026-11-27."),
        click.option("--owner", metavar="JID", help='Of alice@example.org, say; "-" reads it from standard input.'),
    ):
        command = option(command)
    return command


def selection_of(
    owner: str | None, before: float | None, larger_than: int | None, media_type: str | None
) -> Selection:
    """What the options say."""
    if owner == "-":
        owner = sys.stdin.readline().rstrip("\r\n")
        if not owner:
            raise click.UsageError("--owner -: standard input has no JID")
    return Selection(owner, before, larger_than, media_type)


class Stores:
    """The stores of some hosts, as their owner, which this process becomes."""

    def __init__(self, config: Config, hosts: Sequence[Host]) -> None:
        self._config = config
        self._folders = dict(zip(hosts, become_owner([host.store_dir for host in hosts]), strict=True))

    @contextlib.contextmanager
    def opened(self, host: Host, removes: bool = False) -> Iterator[Disk]:
        """The store of a host; one at a time.

        :param removes: whether files are going to be removed.
        :raises click.ClickException: if it can not be had.
        """
        os.fchdir(self._folders[host])
        try:
            disk = Disk(".", self._config.fsync, removes, self._config.remember_removed)
        except (Unusable, OSError) as error:
            raise click.ClickException(f"{host.store_dir}: {error}") from None
        with contextlib.closing(disk):
            yield disk


def files_of(disk: Disk, selection: Selection) -> Iterator[Entry]:
    """The files that are meant. Of what can not be read standard error tells."""
    for entry in walk(disk.place.root, lambda error: click.echo(printable(explain(error)), err=True)):
        if selection.takes(entry):
            yield entry
