"""Root gives up its rights before it touches a store: what is made there must be the daemon's."""

from __future__ import annotations

import os
import pwd

import click


def become_owner(folder: str) -> None:
    """Become the user that a folder belongs to, if this is root, for good.

    :raises click.ClickException: if it is not there, or another one was become before.
    """
    try:
        there = os.stat(folder)
    except OSError as error:
        raise click.ClickException(f"StoreDir {folder}: {error.strerror}") from None
    if os.geteuid() == there.st_uid:
        return
    if os.geteuid() != 0:
        name = _name(there.st_uid)
        raise click.ClickException(f"StoreDir {folder} belongs to {name}: run this as {name}, or as root")
    os.setgroups([])
    os.setgid(there.st_gid)
    os.setuid(there.st_uid)


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
