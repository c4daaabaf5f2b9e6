"""Root gives up its rights before it touches a store: what is made there must be the daemon's."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence

import click


def become_owner(folders: Sequence[str]) -> list[int]:
    """Become the user that all these folders belong to, if this is root, for good.

    :returns: descriptors of the folders. That user may not be able to find them by their paths: those of systemd's
        DynamicUser= lie in /var/lib/private, which is root's alone.
    :raises click.ClickException: if one is not there, or they belong to several users.
    """
    opened = [_opened(folder) for folder in folders]
    for folder, descriptor in zip(folders, opened, strict=True):
        _become(folder, os.fstat(descriptor))
    return opened


def _opened(folder: str) -> int:
    try:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise click.ClickException(f"StoreDir {folder}: {error.strerror}") from None


def _become(folder: str, there: os.stat_result) -> None:
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
