"""What a check has found, and how checks look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum

import attrs


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


class Party(StrEnum):
    """Who has to change something."""

    NETWORK = "network"
    PROXY = "proxy"
    DAEMON = "daemon"
    XMPP_SERVER = "XMPP server"
    CLIENT = "client"


@attrs.frozen
class Finding:
    """One thing that a check has found.

    :param party: who breaks it; None where nothing is broken.
    :param remedy: what mends it, where that is known.
    """

    level: Level
    text: str
    party: Party | None = None
    remedy: str = ""


Findings = AsyncIterator[Finding]


class NoAnswer(Exception):
    """A request was not answered; the text says what happened instead."""


class Blocked(Exception):
    """After what a check has found nothing else can be tested."""


def ok(text: str) -> Finding:
    """Nothing is to be done."""
    return Finding(Level.OK, text)


def skipped(text: str) -> Finding:
    """Nobody can tell; the text says why."""
    return Finding(Level.SKIPPED, text)


def warning(party: Party, text: str, remedy: str = "") -> Finding:
    """Clients get along, but some worse than they could."""
    return Finding(Level.WARNING, text, party, remedy)


def problem(party: Party, text: str, remedy: str = "") -> Finding:
    """Clients fail."""
    return Finding(Level.PROBLEM, text, party, remedy)
