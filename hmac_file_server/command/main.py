"""The command itself: its subcommands, and what it does without one."""

from __future__ import annotations

import click

from hmac_file_server import __version__
from hmac_file_server.command.check import check
from hmac_file_server.command.doctor import doctor
from hmac_file_server.command.explain import explain
from hmac_file_server.command.import_ import import_
from hmac_file_server.command.ls import ls
from hmac_file_server.command.options import DEFAULT_CONFIG
from hmac_file_server.command.put import put
from hmac_file_server.command.rm import rm
from hmac_file_server.command.run import run, run_daemon
from hmac_file_server.command.sign import sign
from hmac_file_server.command.tidy import tidy
from hmac_file_server.command.usage import usage

_EPILOG = """\b
Examples:
  hmac-file-server check /etc/hmac-file-server/config.toml
  hmac-file-server run --config /etc/hmac-file-server/config.toml
  hmac-file-server import --from prosody --xmpp-host upload.example.com /var/lib/prosody
  hmac-file-server doctor --config /etc/hmac-file-server/config.toml https://upload.example.org/upload/

Completion: add this line to ~/.bashrc (for zsh and fish, write zsh_source or fish_source):

\b
  eval "$(_HMAC_FILE_SERVER_COMPLETE=bash_source hmac-file-server)"
"""


@click.group(invoke_without_command=True, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c", "--config", metavar="FILE", type=click.Path(), help=f"Configuration file.  [default: {DEFAULT_CONFIG}]"
)
@click.version_option(__version__, "-V", "--version", prog_name="hmac-file-server")
@click.pass_context
def main(context: click.Context, config: str | None) -> None:
    """The upload server for XMPP (XEP-0363 HTTP File Upload).

    Without a subcommand it runs the daemon.
    """
    context.obj = config
    if context.invoked_subcommand is None:
        run_daemon(config or DEFAULT_CONFIG)


for _command in (run, check, sign, put, explain, doctor, usage, ls, rm, tidy, import_):
    main.add_command(_command)
