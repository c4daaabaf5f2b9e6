"""``check``: all that is wrong with a configuration, and what is legal and unwise."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import stat
from collections.abc import Iterator

import click

from hmac_file_server.address import NOT_SHARED, Listen
from hmac_file_server.command.options import print_json, with_config, with_json
from hmac_file_server.config import Config, advice_on_secrets, load, secret_files
from hmac_file_server.daemon.listener import Listener, cannot_listen
from hmac_file_server.log import printable
from hmac_file_server.settings.hosts import Host
from hmac_file_server.settings.problems import ConfigError
from hmac_file_server.slots.path import MAX_NAME, RESERVED
from hmac_file_server.stores.faults import user

_EVERYWHERE = frozenset({"::", "0.0.0.0"})  # noqa: S104
_LONGEST_SOCKET = 107


@click.command()
@click.argument("file", required=False, type=click.Path())
@with_config
@with_json
@click.pass_context
def check(context: click.Context, file: str | None, config: str, as_json: bool) -> None:
    """Check a configuration FILE, by default the one that --config names.

    Prints all that is wrong with it, one line each, and warns of what is legal and unwise. Nothing is changed, and no
    daemon needs to run. Ends with 0 if the daemon could start, 78 if it could not.
    """
    path = file or config
    errors, warnings = examine(path)
    if as_json:
        print_json({"file": path, "errors": errors, "warnings": warnings})
    else:
        for line in errors:
            click.secho("error: ", fg="red", bold=True, nl=False)
            click.echo(line)
        for line in warnings:
            click.secho("warning: ", fg="yellow", bold=True, nl=False)
            click.echo(line)
        click.echo(_sum(path, errors, warnings))
    context.exit(os.EX_CONFIG if errors else 0)


def _sum(path: str, errors: list[str], warnings: list[str]) -> str:
    counts = [
        f"{len(found)} {what}{'s' * (len(found) > 1)}"
        for found, what in ((errors, "error"), (warnings, "warning"))
        if found
    ]
    return f"{path}: {', '.join(counts) or 'nothing to complain of'}"


def examine(path: str) -> tuple[list[str], list[str]]:
    """What is wrong with a configuration, and what is unwise; each in one line."""
    errors: list[str] = []
    try:
        config = load(path, report=lambda error: errors.append(str(error)))
    except ConfigError as error:
        return [str(error)], []
    for host in config.hosts:
        errors.extend(_wrong_with_store(config, host))
    errors.extend(_wrong_with_addresses(config))
    errors.extend(_wrong_with_log(config))
    warnings = [*config.warnings, *advice_on_secrets(config), *_unwise(config)]
    return errors, warnings


# What a start would fail by


def _wrong_with_store(config: Config, host: Host) -> Iterator[str]:
    folder, parent = host.store_dir, _nearest(host.store_dir)
    own = os.path.join(folder, os.fsdecode(RESERVED))
    if any(len(os.fsencode(part)) > MAX_NAME for part in folder.split("/")):
        yield config.problem("StoreDir", folder, f"a part of it is longer than {MAX_NAME} bytes")
    elif not os.path.isdir(parent):
        yield config.problem("StoreDir", folder, f"{printable(parent)} is no folder")
    elif not os.access(parent, os.W_OK | os.X_OK):
        what = "it" if parent == folder else f"{printable(parent)}, in which it would be made,"
        yield config.problem("StoreDir", folder, f"the user {user()} can not write to {what}")
    elif os.path.lexists(own) and not (os.path.isdir(own) and os.access(own, os.W_OK | os.X_OK)):
        reason = f"the user {user()} can not write to {printable(own)}, which an earlier run by another one has made"
        yield config.problem("StoreDir", folder, reason)


def _wrong_with_addresses(config: Config) -> Iterator[str]:
    from twisted.internet import reactor
    from twisted.internet.protocol import ServerFactory

    keys = {"ListenPort": config.listen}
    if config.metrics_enabled:
        keys["MetricsPort"] = config.metrics_listen
        if _meet(config.listen, config.metrics_listen):
            yield config.problem("MetricsPort", config.metrics_listen.given, "is ListenPort, too; give each its own")
    if config.workers > 1 and not config.listen.can_be_shared:
        yield config.problem("ListenPort", config.listen.given, NOT_SHARED)
    for key, listen in keys.items():
        if listen.kind != "systemd":  # Its sockets are there only when systemd starts the daemon.
            try:
                Listener(config, key, listen, ServerFactory(), reactor)
                _try_address(listen)
            except ConfigError as error:
                yield str(error)
            except OSError as error:
                yield str(cannot_listen(config, key, listen, error))


def _meet(one: Listen, other: Listen) -> bool:
    """Whether two listen at the same place."""
    if one.bind is None or other.bind is None:
        return one.endpoint == other.endpoint
    hosts = {one.bind[0], other.bind[0]}
    return one.bind[1] == other.bind[1] != 0 and (len(hosts) == 1 or not hosts.isdisjoint(_EVERYWHERE))


def _try_address(listen: Listen) -> None:
    """See whether the address can be had, but not its port: the daemon may run.

    :raises OSError: if not.
    """
    if listen.bind is not None:
        host = listen.bind[0]
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.bind(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][4])
    elif listen.unix is not None:
        path = os.path.abspath(listen.unix.path)
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if os.path.lexists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
            missing = errno.EACCES if os.path.isdir(os.path.dirname(path)) else errno.ENOENT
            raise OSError(missing, os.strerror(missing))


def _wrong_with_log(config: Config) -> Iterator[str]:
    if not config.log_file:
        return
    path = os.path.realpath(config.log_file)
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        yield config.problem("LogFile", config.log_file, f"there is no folder {printable(parent)}; make it")
    elif os.path.isdir(path) or (os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)):
        yield config.problem("LogFile", config.log_file, "is no file")
    elif not os.access(path if os.path.exists(path) else parent, os.W_OK):
        yield config.problem("LogFile", config.log_file, f"the user {user()} can not write to it")


# What is legal


def _unwise(config: Config) -> Iterator[str]:
    yield from _open_secrets(config)
    for host in config.hosts:
        yield from _about_store(config, host)
    if config.metrics_enabled and _is_every_address(config.metrics_listen):
        reason = 'whoever reaches this machine can read the figures; "127.0.0.1:9090" keeps them here'
        yield config.problem("MetricsPort", config.metrics_listen.given, reason)
    if _is_open(config.listen) and all(network.is_loopback for network in config.trusted_proxies):
        reason = (
            "names only this machine, and ListenPort is open to others: if a proxy there, or in a container, passes"
            " requests on, add its address, or all its clients count as one"
        )
        yield config.problem("TrustedProxies", [str(network) for network in config.trusted_proxies], reason)
    if not config.fsync:
        yield config.problem("Fsync", False, "a power cut can lose files whose upload was answered with 201")


def _open_secrets(config: Config) -> Iterator[str]:
    for file in dict.fromkeys(secret_files(config)):
        with contextlib.suppress(OSError, ValueError):
            mode = os.stat(file).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                yield f"{file}: every user of this machine can read the secret in it: chmod o-r {shlex.quote(file)}"


def _about_store(config: Config, host: Host) -> Iterator[str]:
    folder = _nearest(host.store_dir)
    kind = _file_system(folder)
    if kind in ("tmpfs", "ramfs"):
        reason = f"lies on {kind}, which is memory: all files are gone with the next start of the machine"
        yield config.problem("StoreDir", host.store_dir, reason)
    if not _keeps_attributes(folder):
        reason = (
            f"the file system{f' ({kind})' if kind else ''} keeps no extended attributes: the type that was signed,"
            " the owner and the end can not be kept with a file"
        )
        yield config.problem("StoreDir", host.store_dir, reason)
    with contextlib.suppress(OSError):
        there = os.statvfs(folder)
        free = there.f_bavail * there.f_frsize
        if free <= config.min_free_space:
            reason = f"only {free >> 20} MiB are free there, and MinFreeSpace keeps {config.min_free_space >> 20} MiB"
            yield config.problem("StoreDir", host.store_dir, f"{reason}: every upload is refused with 507")
        if os.geteuid() == 0 and os.path.isdir(host.store_dir) and os.stat(host.store_dir).st_uid == 0:
            reason = "belongs to root, whose rights the daemon does not need: give it a user, and the folder to that"
            yield config.problem("StoreDir", host.store_dir, reason)


def _nearest(folder: str) -> str:
    """The folder, or the one above it that is there."""
    folder = os.path.abspath(folder)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def _is_every_address(listen: Listen) -> bool:
    return not listen.loopback and listen.unix is None and (listen.bind or ("::", 0))[0] in _EVERYWHERE


def _is_open(listen: Listen) -> bool:
    """Whether other machines reach it, without TLS of its own and without a proxy that it knows of."""
    return not listen.loopback and listen.kind in ("tcp", "tcp4", "tcp6") and not listen.is_proxied


def _keeps_attributes(folder: str) -> bool:
    try:
        os.getxattr(folder, "user.hmac-file-server")
    except OSError as error:
        return error.errno != errno.ENOTSUP
    return True


def _file_system(folder: str) -> str:
    """The kind of file system that a folder is on; empty if nobody can tell."""
    try:
        device = os.stat(folder).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                mount, _, about = line.partition(" - ")
                if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                    return about.split()[0]
    except (OSError, IndexError):
        pass
    return ""
