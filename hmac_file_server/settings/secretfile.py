"""SecretFile: secrets that are kept out of the configuration."""

from __future__ import annotations

import errno
from typing import Any

from hmac_file_server.settings.problems import BROKEN, ConfigError, NotYet, Report, checked, line_of
from hmac_file_server.settings.values import path
from hmac_file_server.stores.faults import user

_LARGEST_FILE = 1 << 20


def take_secrets(place: str, given: dict[str, tuple[str, Any]], report: Report) -> None:
    """Put in place of SecretFile what is in it."""
    if "secretfile" not in given:
        return
    name, value = given.pop("secretfile")
    if "secret" in given:
        report(ConfigError(line_of(place, name, value, "there is a Secret too; keep one of the two")))
        return
    try:
        files = value if isinstance(value, list) else [value]
        secrets = [_read_secret(place, name, checked(place, name, file, path)) for file in files]
        given["secret"] = (name, checked(place, name, secrets if isinstance(value, list) else secrets[0], _some))
    except ConfigError as error:
        report(error)
        given["secret"] = name, BROKEN


def _some(secrets: Any) -> Any:
    if not secrets:
        raise ValueError("name the file that holds the secret, or a list of such while one replaces another")
    return secrets


def _read_secret(place: str, name: str, file: str) -> str:
    try:
        with open(file, "rb") as source:
            secret = source.read(_LARGEST_FILE).decode("utf-8")
    except OSError as error:
        reason = f"{error.strerror}; it must hold the secret"
        if error.errno == errno.EACCES:
            reason += f", and the user {user()} must be able to read it"
        elif file.startswith("/run/credentials/"):
            reason += "; systemd puts it there: LoadCredential=secret:/etc/hmac-file-server/secret"
        raise NotYet(line_of(place, name, file, reason)) from None
    except UnicodeDecodeError:
        raise ConfigError(line_of(place, name, file, "not UTF-8; it must hold the secret as text")) from None
    secret = secret.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ConfigError(line_of(place, name, file, "is empty; it must hold the secret"))
    return secret
