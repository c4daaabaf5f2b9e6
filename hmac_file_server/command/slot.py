"""Slots for the commands: where they are, and how they are signed."""

from __future__ import annotations

import os

import attrs
import click

from hmac_file_server import media_types
from hmac_file_server.address import Listen
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.issue import Issued, issue
from hmac_file_server.slots.path import BadPath, SlotPath, slot_path


@attrs.frozen
class Base:
    """Where slots are.

    :param url: of the upload prefix, with a slash at its end.
    :param socket: of the daemon, where only a Unix socket leads to it.
    """

    url: str
    socket: str = ""


def base_of(listen: Listen, host: Host, url: str | None) -> Base:
    """Where a host's slots are.

    :param url: that the user gives, else the daemon's own address is taken.
    :raises click.UsageError: if there is none that a URL could have.
    """
    if url is not None:
        if not url.isascii() or not url.startswith(("http://", "https://")):
            raise click.BadParameter("write it as https://upload.example.org/upload/", param_hint="--url")
        return Base(url if url.endswith("/") else url + "/")
    prefix = f"/{host.upload_sub_dir}/" if host.upload_sub_dir else "/"
    if listen.unix is not None:
        return Base(f"http://localhost{prefix}", listen.unix.path)
    if not listen.authority or listen.is_proxied:
        raise click.UsageError(f"ListenPort = {listen.given} has no URL of its own: give --url")
    return Base(f"http://{listen.authority}{prefix}")


def checked_path(path: str) -> SlotPath:
    """The path of a slot.

    :raises click.BadParameter: if it can not be one.
    """
    try:
        return slot_path([os.fsencode(segment) for segment in path.split("/")])
    except BadPath as error:
        raise click.BadParameter(f"{error}; write it as 3f2b/photo.jpg", param_hint="PATH") from None


def type_of(path: str) -> str:
    """The type that a client would name."""
    return media_types.of_name(os.path.basename(path)).decode("ascii")


def issued(host: Host, path: SlotPath, size: int, media_type: str, protocol: str) -> Issued:
    """A slot of a host, signed with its newest secret.

    :raises click.UsageError: if the protocol has no such path.
    """
    if protocol == "jwt" and len(path.segments) != 2:
        raise click.UsageError("a JWT is for a path of two parts, the slot and the file's name")
    return issue(protocol, host.secrets[0], path, size, media_type)
