"""The XMPP hosts that the daemon serves: ``[[Host]]`` tables, and the plain keys that they inherit."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import attrs

from hmac_file_server.address import Listen
from hmac_file_server.log import printable
from hmac_file_server.settings import values
from hmac_file_server.settings.problems import BROKEN, ConfigError, Report, checked, nearest
from hmac_file_server.settings.secretfile import take_secrets
from hmac_file_server.settings.values import key
from hmac_file_server.slots.secret import COMMAND, EXAMPLE_SECRET, is_placeholder

Given = Mapping[str, tuple[str, Any]]
"""Settings by their keys in lower case, with the keys as written."""


@attrs.frozen
class Host:
    """One of the XMPP hosts that the daemon serves, by the prefix of its URLs."""

    name: str = attrs.field(default="", metadata={"name": "Name", "parse": values.name}, kw_only=True)
    upload_sub_dir: str = key("UploadSubDir", values.prefix, "upload/")
    store_dir: str = key("StoreDir", values.path)
    secrets: tuple[bytes, ...] = key("Secret", values.secrets, shown=False)
    delete_secret: bytes = key("DeleteSecret", values.delete_secret, "", shown=False)
    max_upload_size: int = key("MaxUploadSize", values.size(0, 1 << 62), 0)
    keep_for: float = key("KeepFor", values.lifetime(0, 1 << 34), 0)
    keep_large_for: float = key("KeepLargeFor", values.lifetime(0, 1 << 34), 0)
    large_from: int = key("LargeFrom", values.size(0, 1 << 62), 100 << 20)
    store_limit: int = key("StoreLimit", values.size(0, 1 << 62), 0)


_FIELDS = {field.metadata["name"].lower(): field for field in attrs.fields(Host)}
_NAMES = [field.metadata["name"] for field in _FIELDS.values()] + ["SecretFile"]


def tables_of(
    path: str, read: dict[str, Any], of_daemon: Set[str], report: Report
) -> list[dict[str, tuple[str, Any]]]:
    """Take the ``[[Host]]`` tables out of what was read.

    :param of_daemon: the keys, in lower case, of the daemon itself.
    """
    name = next((name for name in read if name.lower() == "host"), "Host")
    tables = read.pop(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        report(ConfigError(f"{path}: {name}: write each host as a table of its own, which begins with [[Host]]"))
        return []
    return [_known(_place(path, number), table, of_daemon, report) for number, table in enumerate(tables, 1)]


def _place(path: str, number: int) -> str:
    return f"{path}: [[Host]] {number}"


def _known(place: str, table: dict[str, Any], of_daemon: Set[str], report: Report) -> dict[str, tuple[str, Any]]:
    given: dict[str, tuple[str, Any]] = {}
    for name, value in table.items():
        lower = name.lower()
        if lower in given:
            report(ConfigError(f"{place}: {printable(name)} is there twice, also as {given[lower][0]}; keep one"))
        elif lower in _FIELDS or lower == "secretfile":
            given[lower] = (name, value)
        elif lower in of_daemon:
            reason = "belongs to the daemon, not to a host: write it above the first [[Host]]"
            report(ConfigError(f"{place}: {printable(name)}: {reason}"))
        else:
            report(ConfigError(f"{place}: {printable(name)}: unknown key{nearest(name, _NAMES)}"))
    take_secrets(place, given, report)
    return given


def handed_down_of(table: Given) -> dict[str, Any]:
    """A table for a worker."""
    return {_FIELDS[lower].metadata["name"]: value for lower, (_, value) in table.items() if value is not BROKEN}


def hosts_of(path: str, listen: Listen, given: Given, tables: Sequence[Given], report: Report) -> tuple[Host, ...]:
    """The hosts, with what they inherit.

    :param given: the plain keys, which are a host of their own if the secret and the folder are among them.
    :param tables: those of each host.
    :param report: of those that get in each other's way, or can not be served.
    """
    plain = {lower: given[lower] for lower in _FIELDS if lower in given}
    inherited = {lower: setting for lower, setting in plain.items() if lower != "storedir"}
    all_given = [(_place(path, number), {**inherited, **table}) for number, table in enumerate(tables, 1)]
    if {"secret", "storedir"} <= plain.keys():
        all_given.insert(0, (path, plain))
    found = [_host(place, settings, listen, report) for place, settings in all_given]
    hosts = [host for host in found if host is not None]
    for first, second in itertools.combinations(hosts, 2):
        for problem in _in_the_way(first, second):
            report(ConfigError(f"{path}: {problem}"))
    return tuple(hosts)


def shared_secrets(hosts: Sequence[Host]) -> Iterator[tuple[Host, Host]]:
    """The hosts of which two share a secret: a slot that is signed for one works once below each."""
    for first, second in itertools.combinations(hosts, 2):
        if not set(first.secrets).isdisjoint(second.secrets):
            yield first, second


def _host(place: str, given: Given, listen: Listen, report: Report) -> Host | None:
    settings: dict[str, Any] = {}
    for lower, (name, value) in given.items():
        field = _FIELDS[lower]
        if value is not BROKEN:
            try:
                settings[field.name] = checked(place, name, value, field.metadata["parse"])
            except ConfigError as error:
                report(error)
    if "secret" not in given:
        remedy = "add the secret that its XMPP server signs with, or SecretFile, here or above the first [[Host]]"
        report(ConfigError(f"{place}: Secret is missing; {remedy}"))
    if "storedir" not in given:
        report(ConfigError(f"{place}: StoreDir is missing; add the folder for its files"))
    if not {"secrets", "store_dir"} <= settings.keys():
        return None
    host = Host(**settings)
    for lower, secrets in (("secret", host.secrets), ("deletesecret", (host.delete_secret,))):
        known = lower == "deletesecret" and EXAMPLE_SECRET in secrets
        if known or any(map(is_placeholder, secrets)):
            reason = f"is a placeholder, which everybody knows; choose your own (this prints one: {COMMAND})"
            report(ConfigError(f"{place}: {given[lower][0]}: {reason}"))
    if EXAMPLE_SECRET in host.secrets and not listen.loopback:
        reason = "is the secret of the example, which everybody knows; choose your own, or listen on [::1] only"
        report(ConfigError(f"{place}: Secret: {reason}"))
    return host if host.name else attrs.evolve(host, name=host.upload_sub_dir or "/")


def _in_the_way(first: Host, second: Host) -> Iterator[str]:
    """Hosts are told by their prefixes and names, and none sees the files of another."""
    both = f"of the hosts {printable(first.name)} and {printable(second.name)}"
    if first.upload_sub_dir == second.upload_sub_dir:
        yield f'UploadSubDir {both} is "{first.upload_sub_dir}"; give each its own'
    elif first.name == second.name:
        yield f"Name: two hosts are called {printable(first.name)}; give each its own"
    folders = [os.path.realpath(host.store_dir) for host in (first, second)]
    if os.path.commonpath(folders) in folders or _same_folder(*folders):
        reason = "are one folder, or one lies in the other; give each its own"
        yield f"StoreDir {both}: {' and '.join(map(printable, folders))} {reason}"


def _same_folder(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # One of them is not there yet.
        return False
