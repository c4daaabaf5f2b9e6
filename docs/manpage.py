"""The manual page, made of the click commands: ``python docs/manpage.py FOLDER``."""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import click

from hmac_file_server import __version__
from hmac_file_server.command.main import main

NAME = "hmac-file-server"
SPECIAL = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"})
REST = r""".SH FILES
.TP
\fI/etc/hmac\-file\-server/config.toml\fR
The configuration, where the systemd unit reads it.
.SH SEE ALSO
.BR twist (1),
.BR systemd.service (5)
"""


def escaped(text: str) -> str:
    """What troff shows as it is."""
    return "\n".join(rf"\&{line}" if line[:1] == "." else line for line in text.translate(SPECIAL).split("\n"))


def filled(text: str) -> str:
    """In short lines, as troff likes its source."""
    return escaped("\n".join(textwrap.wrap(text, 70, break_on_hyphens=False, break_long_words=False)))


def paragraphs(text: str | None, macro: str = ".PP") -> Iterator[str]:
    """A help text as click shows it: a paragraph is filled, unless it says that it must not be."""
    for block in inspect.cleandoc((text or "").partition("\f")[0]).split("\n\n"):
        if block.startswith("\b\n"):
            yield f"{macro}\n.nf\n{escaped(block[2:])}\n.fi"
        elif block:
            yield f"{macro}\n{filled(block)}"
        macro = ".PP"


def synopsis(context: click.Context) -> Iterator[str]:
    """How a command is called."""
    pieces = " ".join(context.command.collect_usage_pieces(context))
    yield f"\\fB{escaped(context.command_path)}\\fR {escaped(pieces)}"


def options(context: click.Context) -> Iterator[str]:
    """One entry for each option of a command."""
    for parameter in context.command.get_params(context):
        name, text = parameter.get_help_record(context) or ("", "")
        if text:
            yield f".TP\n\\fB{escaped(name)}\\fR\n{filled(text)}"


def subcommands(context: click.Context) -> Iterator[click.Context]:
    """Those of a group that are not hidden, in the order of its help."""
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command and not command.hidden:
                inside = command.make_context(name, [], context, resilient_parsing=True)
                yield inside
                yield from subcommands(inside)


def page(context: click.Context) -> Iterator[str]:
    """The whole page; a section has each subcommand."""
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    what = (context.command.help or "").strip().partition("\n")[0].removeprefix("The ").rstrip(".")
    yield f'.TH HMAC\\-FILE\\-SERVER 1 "{date}" "{NAME} {__version__}" "User Commands"'
    yield f".SH NAME\n{escaped(NAME)} \\- {escaped(what)}\n.SH SYNOPSIS"
    yield from synopsis(context)
    yield from paragraphs(context.command.help, ".SH DESCRIPTION")
    yield ".SH OPTIONS"
    yield from options(context)
    yield ".SH COMMANDS"
    for inside in subcommands(context):
        yield f".SS {escaped(inside.command_path.removeprefix(NAME).lstrip())}"
        yield from synopsis(inside)
        yield from paragraphs(inside.command.help)
        yield from options(inside)
        yield from paragraphs(inside.command.epilog)
    yield from paragraphs(context.command.epilog, ".SH NOTES")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(page(main.make_context(NAME, [], resilient_parsing=True)))
    (folder / f"{NAME}.1").write_text(f"{text}\n{REST}", encoding="utf-8")
