"""Secrets that everybody knows, or could guess, and how a good one is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

EXAMPLE_SECRET = b"orbit7-shadow23-breeze91-echo17"
"""The secret of ``etc/config.toml``; with it only programs on this machine may upload."""

PLACEHOLDER = b"REPLACE-ME: openssl rand -hex 32"
"""What stands for the secret in the files of ``contrib``."""

COMMAND = "openssl rand -hex 32"
"""Prints a good secret."""

_SHORTEST = 16

_TO_REPLACE = re.compile(r"(?:change|replace)(?:me|this)")

_WELL_KNOWN = frozenset(
    """
    changethis examplesecret hmacsecret itissecret mysecret mysecretkey mysupersecret mysupersecretkey secretkey
    secretstring sharedsecret supersecret supersecretkey thisisasecretstring thisisyoursecretstring topsecret
    verysecret yourexternalsecret yourhmacsecret yoursecret yoursecrethere yoursecretkey yoursecretkeyhere
    yoursecurehmacsecret yoursecuresecrethere yoursharedsecret yoursupersecretkey yourverysecrethmackey
    yourverysecretkey
    """.split()
)
"""The secrets in the documentation of XMPP servers and upload servers, in lower case and without what joins words."""


def is_placeholder(secret: bytes) -> bool:
    """Whether a secret was left as some example has it, in whatever spelling."""
    letters = "".join(filter(str.isalnum, secret.decode("utf-8", "replace").lower()))
    return letters in _WELL_KNOWN or _TO_REPLACE.match(letters) is not None


def weaknesses(secrets: Iterable[bytes]) -> Iterator[str]:
    """What to change in secrets that can be used but should not: a sentence for each."""
    for secret in secrets:
        if len(secret) < _SHORTEST:
            yield f"a secret of {len(secret)} bytes can be guessed; this prints a good one: {COMMAND}"
        if secret.strip() != secret:
            yield "a secret begins or ends with white space, which counts; cut it off if the XMPP server has none"
