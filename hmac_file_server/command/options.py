"""What several subcommands share: options, and the configuration."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from hmac_file_server.config import Config, load
from hmac_file_server.settings.hosts import Host
from hmac_file_server.settings.problems import ConfigError, fail
from hmac_file_server.settings.values import size as parse_size
from hmac_file_server.slots.issue import PROTOCOLS

DEFAULT_CONFIG = "./config.toml"

_LARGEST = 1 << 62

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3
    """A number of bytes, in the forms that the configuration takes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(0, _LARGEST)(
                value if isinstance(value, int) or not str(value).isdigit() else int(str(value))
            )
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _config_or_groups(context: click.Context, _: click.Parameter, value: str | None) -> str:
    """``hmac-file-server --config FILE check`` is as good as ``hmac-file-server check --config FILE``."""
    return value or (context.obj if isinstance(context.obj, str) else DEFAULT_CONFIG)


def with_config(command: _Command) -> _Command:
    """Give a command ``--config``, whose path it gets as ``config``."""
    return click.option(
        "-c",
        "--config",
        metavar="FILE",
        type=click.Path(),
        callback=_config_or_groups,
        help=f"Configuration file.  [default: {DEFAULT_CONFIG}]",
    )(command)


def with_host(command: _Command) -> _Command:
    """Give a command ``--host``, which it gets as ``host`` for :func:`chosen_host`."""
    return click.option(
        "--host", metavar="NAME", help="Which of several [[Host]] tables, by its Name or its UploadSubDir."
    )(command)


def with_protocol(command: _Command) -> _Command:
    """Give a command ``--protocol``, one of :data:`PROTOCOLS`."""
    return click.option(
        "--protocol",
        type=click.Choice(PROTOCOLS),
        default=PROTOCOLS[0],
        show_default=True,
        help="v and v2 of Prosody's mod_http_upload_external and ejabberd, Metronome's token, or the JWT of Prosody's"
        " mod_http_file_share.",
    )(command)


def with_url(command: _Command) -> _Command:
    """Give a command ``--url``."""
    return click.option(
        "--url",
        metavar="BASE",
        help="Public URL of the upload prefix, as https://upload.example.org/upload/.  [default: the daemon's own]",
    )(command)


def with_json(command: _Command) -> _Command:
    """Give a command ``--json``, which it gets as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def loaded(path: str) -> Config:
    """The configuration; where it is none, one line says why, and the command ends."""
    try:
        return load(path)
    except ConfigError as error:
        fail(error)


def chosen_host(config: Config, name: str | None) -> Host:
    """The host that was asked for; without a name the only one.

    :raises click.UsageError: if nobody can tell which.
    """
    if name is None and len(config.hosts) == 1:
        return config.hosts[0]
    for host in config.hosts:
        if name is not None and name in (host.name, host.upload_sub_dir, f"{host.upload_sub_dir}/"):
            return host
    names = ", ".join(host.name for host in config.hosts)
    raise click.UsageError(
        f"no host is called {name!r}: --host takes one of {names}" if name else f"--host: say which of {names}"
    )


def chosen_hosts(config: Config, name: str | None) -> list[Host]:
    """The host that was asked for, or all."""
    return list(config.hosts) if name is None else [chosen_host(config, name)]


def print_json(value: object) -> None:
    """Print what a program reads."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def need_tls() -> None:
    """:raises click.UsageError: if Twisted can not speak TLS here."""
    if importlib.util.find_spec("OpenSSL") is None:
        raise click.UsageError("https needs pyOpenSSL: pip install 'hmac-file-server[tls]'")


def run_reactor(main: Callable[[Any], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run the reactor until something is done.

    :param main: does it, and is given the reactor.
    """
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    results: list[_Result] = []
    try:
        react(lambda reactor: Deferred.fromCoroutine(main(reactor)).addCallback(results.append))
    except SystemExit as ended:
        if ended.code:
            raise
    if not results:
        raise click.Abort  # Ctrl-C
    return results[0]
