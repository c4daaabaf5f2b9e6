"""``hmac-file-server doctor``, run as a process of its own.

As a program it is the command, in a world in which the names of tests have addresses, and little time passes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.support import DEADLINE

NAME = "upload.example.com"
_NAMES, _HURRY = "TEST_NAMES", "TEST_HURRY"


@attrs.frozen
class Diagnosis:
    """What it has found.

    :param status: that it ended with.
    :param findings: by check; of several the worst.
    """

    status: int
    proxy: str | None
    findings: dict[str, dict[str, Any]]

    def level(self, check: str) -> str:
        return str(self.findings[check]["level"])

    def words(self, check: str) -> str:
        """Who breaks it, how, and what mends it."""
        return " ".join(str(self.findings[check][key]) for key in ("party", "text", "remedy"))

    @property
    def bad(self) -> dict[str, str]:
        """The problems and warnings."""
        return {name: self.words(name) for name in self.findings if self.level(name) in ("problem", "warning")}

    @property
    def skipped(self) -> set[str]:
        return {name for name in self.findings if self.level(name) == "skipped"}


def doctor(
    url: str,
    config: Path,
    *options: str,
    names: Mapping[str, Sequence[str]] | None = None,
    authority: Path | None = None,
    hurry: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run it.

    :param names: addresses of names that it looks up.
    :param authority: a certificate that is trusted.
    :param hurry: whether it waits for moments only.
    """
    environment = os.environ | {_NAMES: json.dumps(names or {})}
    if authority is not None:
        environment["SSL_CERT_FILE"] = environment["CURL_CA_BUNDLE"] = str(authority)
    if hurry:
        environment[_HURRY] = "1"
    return subprocess.run(
        [sys.executable, "-m", "tests.doctored", "doctor", url, "--config", str(config), *options],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=environment,
        timeout=DEADLINE * 2,
        check=False,
    )


def diagnose(url: str, config: Path, *options: str, **named: Any) -> Diagnosis:
    """What it has found."""
    done = doctor(url, config, "--json", *options, **named)
    assert not done.stderr, done.stderr
    found = json.loads(done.stdout)
    order = ["ok", "skipped", "warning", "problem"]
    findings = {one["check"]: one for one in sorted(found["findings"], key=lambda one: order.index(one["level"]))}
    assert found["problems"] == sum(one["level"] == "problem" for one in found["findings"])
    return Diagnosis(done.returncode, found["proxy"], findings)


def _change_the_world() -> None:
    names, look_up = json.loads(os.environ[_NAMES]), socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        return [found for address in names.get(host, [host]) for found in look_up(address, *rest, **named)]

    socket.getaddrinfo = getaddrinfo
    if os.environ.get(_HURRY):
        from hmac_file_server.doctor import resuming, uploads

        for module, seconds in ((uploads, ("_SOON_SECONDS", "_PAUSE_SECONDS")), (resuming, ("_PATIENCE",))):
            for name in seconds:
                assert hasattr(module, name)
                setattr(module, name, 1.0)


if __name__ == "__main__":
    _change_the_world()
    from hmac_file_server.command.main import main

    main()
