"""``put``: upload files, as a client of the XMPP server would."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

import click

from hmac_file_server.command.options import (
    chosen_host,
    loaded,
    need_tls,
    run_reactor,
    with_config,
    with_host,
    with_protocol,
    with_url,
)
from hmac_file_server.command.slot import Base, base_of, checked_path, issued, type_of
from hmac_file_server.log import printable
from hmac_file_server.settings.hosts import Host

_STDIN = "-"


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@with_protocol
@with_url
@with_config
@with_host
@click.pass_context
def put(
    context: click.Context,
    files: Sequence[str],
    protocol: str,
    url: str | None,
    config: str,
    host: str | None,
) -> None:
    """Upload each FILE to a slot of its own, and print the URL that it can be fetched from.

    It signs the slot as the XMPP server would, tries again when the server or the network fails, and resumes large
    files where the server can. "-" is standard input. With --url it goes through the proxy, as clients do: a test of
    both, and of the disk.

    Ends with 0 if all were uploaded, 1 if not.
    """
    settings = loaded(config)
    chosen = chosen_host(settings, host)
    base = base_of(settings.listen, chosen, url)
    if base.url.startswith("https:"):
        need_tls()
    failed = run_reactor(_Uploads(files, base, chosen, protocol).run)
    context.exit(1 if failed else 0)


class _Uploads:
    """What was asked for.

    :param files: their paths.
    """

    def __init__(self, files: Sequence[str], base: Base, host: Host, protocol: str) -> None:
        self._files, self._base, self._host, self._protocol = files, base, host, protocol

    async def run(self, reactor: Any) -> int:
        """Upload one after the other.

        :returns: how many failed.
        """
        from hmac_file_server.command.transfer import Failed, client_for

        client, failed = client_for(reactor, self._base.socket), 0
        for name in self._files:
            try:
                with _opened(name) as file:
                    url = await self._upload(reactor, client, "stdin" if name == _STDIN else name, file)
            except click.ClickException as error:
                failed += _tell(f"{printable(name)}: {printable(error.format_message())}")
            except (Failed, OSError) as error:
                failed += _tell(f"{printable(name)}: {error.strerror if isinstance(error, OSError) else error}")
            else:
                failed += _print(url)
        return failed

    async def _upload(self, reactor: Any, client: Any, name: str, file: BinaryIO) -> str:
        from hmac_file_server.command.transfer import Transfer, size_of

        size, short = size_of(file), os.path.basename(name)
        path = checked_path(f"{secrets.token_urlsafe(16)}/{short}")
        slot = issued(self._host, path, size, type_of(short), self._protocol)
        with _bar(size, short) as bar:
            began = time.monotonic()

            def progress(sent: int) -> None:
                bar.current_item = f"{sent / (1 << 20) / max(time.monotonic() - began, 0.001):.1f} MiB/s"
                bar.update(sent - bar.pos)

            def say(what: str) -> None:
                click.echo(f"\n{name}: {what}", err=True)

            url = f"{self._base.url}{slot.quoted}{slot.query}"
            await Transfer(reactor, client, url, slot, file, size, progress, say).run()
        return f"{self._base.url}{slot.quoted}"


def _tell(line: str) -> int:
    """Say what is wrong; 1, for it is one more."""
    click.echo(line, err=True)
    return 1


def _print(url: str) -> int:
    """Print it, or say it where that can not be; how often it could not."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        click.echo(url)
        sys.stdout.flush()
    except OSError as error:
        return _tell(f"{url} is stored; standard output: {error.strerror}")
    return 0


def _bar(size: int, name: str) -> Any:
    return click.progressbar(
        length=max(size, 1),
        label=f"{name} ({_readable(size)})",
        item_show_func=lambda rate: rate,
        file=sys.stderr,
        width=24,
    )


def _readable(size: float) -> str:
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _opened(name: str) -> BinaryIO:
    """A file that can seek."""
    if name != _STDIN:
        return open(name, "rb")
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    source = sys.stdin.buffer
    if source.seekable():
        return open(source.fileno(), "rb", closefd=False)
    spooled: Any = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    shutil.copyfileobj(source, spooled)
    return spooled  # type: ignore[no-any-return]
