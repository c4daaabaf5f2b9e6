"""What the housekeeper does for a host."""

from __future__ import annotations

from hmac_file_server.files.lifetime import Lifetime
from hmac_file_server.housekeeping.tidy import Rules
from hmac_file_server.settings.hosts import Host

COUNT = "--count"
"""Argument of a walk that removes nothing."""


def lifetime_of(host: Host) -> Lifetime:
    """How long the files of a host stay."""
    return Lifetime(host.keep_for, host.keep_large_for, host.large_from)


def rules_of(host: Host) -> Rules:
    """The rules that a host's settings make."""
    return Rules(lifetime_of(host), host.store_limit)
