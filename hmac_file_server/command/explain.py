"""``explain``: why an upload is refused."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

import attrs
import click

from hmac_file_server.command.options import (
    Size,
    chosen_host,
    loaded,
    print_json,
    with_config,
    with_host,
    with_json,
)
from hmac_file_server.config import Config
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.bearer import BadToken, claimed_numbers, presented
from hmac_file_server.slots.mistakes import (
    Asked,
    Case,
    Proof,
    Signature,
    Token,
    proof_of,
    where_uploads_go,
    why_unsigned,
)
from hmac_file_server.slots.path import BadPath, slot_path
from hmac_file_server.slots.secret import EXAMPLE_SECRET
from hmac_file_server.slots.signature import BadSignature
from hmac_file_server.slots.verifier import Presented

_LINE = re.compile(
    r"\bPUT (?P<path>/\S*) (?P<status>\d{3}) in=.*?(?: host=(?P<host>\S+))? \".*\" - (?P<note>.*)"
    r" \(size=(?P<size>\d+) type=(?:-|\"(?P<type>.*)\")(?: (?P<protocol>v|v2|token)=(?P<signature>[0-9a-f]+))?\)\s*$"
)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


_JSON: dict[str, Callable[[Any], Any]] = {
    "path": str,
    "host": _text_or_none,
    "note": str,
    "size": int,
    "type": _text_or_none,
    "protocol": _text_or_none,
    "signature": _text_or_none,
}
"""What of a line is needed, as the text has it."""

_UNKNOWN = (
    "no known mistake explains it: most likely the two secrets differ, or --size or --type are not what the client"
    " told its XMPP server. Compare the daemon's Secret with"
    " http_upload_external_secret or http_file_share_secret (Prosody) or external_secret (ejabberd), character by"
    " character, and see that the daemon and the XMPP server have both read their configuration again"
)


@attrs.frozen
class Explanation:
    """What is said of an upload.

    :param holds: whether its signature, or token, is good.
    """

    holds: bool
    text: str


@click.command()
@click.argument("url", required=False)
@click.option("--size", type=Size(), help='Length of the file in bytes, as a number or as "1MiB".')
@click.option("--type", "media_type", metavar="TYPE", help="The same as --header 'Content-Type: TYPE'.")
@click.option(
    "--header", "headers", metavar="HEADER", multiple=True, help="A header of the request, as curl takes it."
)
@click.option("--log", "line", metavar="LINE", help="A line of the daemon's log, instead of a URL.")
@with_config
@with_host
@with_json
@click.pass_context
def explain(
    context: click.Context,
    url: str | None,
    size: int | None,
    media_type: str | None,
    headers: Sequence[str],
    line: str | None,
    config: str,
    host: str | None,
    as_json: bool,
) -> None:
    """Say why an upload to URL is refused, and what mends it.

    URL is the one that the client was given, with its query. The signature covers the file's size, and often its type:
    give both as the client sends them. For Prosody's mod_http_file_share give --header 'Authorization: Bearer ...'.
    Or give --log a line of the daemon's log that tells of a refusal. "-" as URL reads it from standard input, and
    headers from the lines that follow: the list of processes shows no signature then.

    Ends with 0 if the signature is good, 1 if it is not.
    """
    settings = loaded(config)
    reason = ""
    if (url is None) == (line is None):
        raise click.UsageError("give either a URL or --log LINE")
    if url == "-":
        url, *more = [*filter(None, map(str.strip, sys.stdin)), ""]
        headers = [*headers, *filter(None, more)]
    if url is not None:
        upload, proof = _of_url(url, size, [*headers, *([f"Content-Type: {media_type}"] if media_type else [])])
    else:
        upload, proof, host, reason = _of_line(str(line), host)
    hosts = [chosen_host(settings, host)] if host is not None else list(settings.hosts)
    found = explained(settings, hosts, upload, proof, reason)
    if as_json:
        print_json({"holds": found.holds, "explanation": found.text})
    else:
        click.echo(found.text)
    context.exit(0 if found.holds else 1)


def _of_url(url: str, size: int | None, headers: Sequence[str]) -> tuple[Asked, Proof | None]:
    given: dict[str, list[bytes]] = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise click.BadParameter("write it as 'Name: value'", param_hint="--header")
        given.setdefault(name.strip().lower(), []).append(value.strip().encode("utf-8"))
    parts = urlsplit(url)
    parameters = parse_qs(parts.query, keep_blank_values=True, encoding="latin-1")
    shown = Presented(
        {name.encode("latin-1"): [value.encode("latin-1") for value in values] for name, values in parameters.items()},
        given.get("content-type", [None])[-1],  # type: ignore[list-item]
        given.get("authorization", ()),
    )
    try:
        token = presented(shown.authorization)
        claims = claimed_numbers(token) if token is not None else {}
        if size is None:
            size = claims.get("filesize", 0 if token is not None else None)
        if size is None:
            raise click.UsageError("give --size: the signature covers it")
        upload, proof = Asked(_sent(parts.path), shown, size), proof_of(shown)
    except (BadSignature, BadToken) as error:
        raise click.UsageError(str(error)) from None
    if isinstance(proof, Token) and {"iat", "exp"} <= claims.keys() and claims["exp"] <= time.time():
        # It was good for some minutes: what else is wrong with it is to be found out, too.
        proof = attrs.evolve(proof, at=float(claims["iat"]))
    return upload, proof


def _of_line(line: str, host: str | None) -> tuple[Asked, Proof | None, str | None, str]:
    found = _of_json(line) or _LINE.search(line)
    if found is None:
        raise click.UsageError(
            'not a line of a refused upload: one ends in (size=... type="..." v=...), or is JSON with size, type and'
            " signature, and has all of the log's line"
        )
    kind = found["type"]
    shown = Presented({}, None if kind is None else kind.encode("utf-8", "surrogateescape"))
    proof = Signature(found["protocol"], found["signature"]) if found["signature"] else None
    name = found["host"]
    return (
        Asked(_sent(found["path"]), shown, int(found["size"])),
        proof,
        host or (None if name == "-" else name),
        "" if found["signature"] else found["note"],
    )


def _of_json(line: str) -> dict[str, Any] | None:
    """What a line of LogFormat = "json" says, also with what journalctl or docker writes before it."""
    try:
        found = json.loads(line[line.index("{") :])
        return {name: kind(found[name]) for name, kind in _JSON.items()}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _sent(path: str) -> bytes:
    """The path as a client sends it that was given it as people write it."""
    return quote(path, safe="/%!$&'()*+,;=:@~").encode("ascii")


def explained(
    config: Config, hosts: Sequence[Host], upload: Asked, proof: Proof | None, reason: str = ""
) -> Explanation:
    """Find out about an upload.

    :param hosts: to which it may be.
    :param reason: what the log says already.
    """
    if proof is None and reason:
        return Explanation(False, reason)
    if proof is None:
        return Explanation(False, f"the URL has no signature: {why_unsigned(upload)}")
    cases = [Case(upload, proof, host.upload_sub_dir, host.secrets, _elsewhere(config, host)) for host in hosts]
    for host, case in zip(hosts, cases, strict=True):
        if case.holds():
            return _about_good(host, upload, proof)
    reasons = [reason for host in hosts if isinstance(proof, Token) for reason in _about_token(host, upload, proof)]
    reasons += filter(None, (case.mistakes() for case in cases))
    if not any(case.as_asked.path is not None for case in cases) and not reasons:
        reasons = [where_uploads_go(" or ".join(f'"/{host.upload_sub_dir}/"' for host in hosts))]
    return Explanation(False, "; ".join(dict.fromkeys(reasons)) or _UNKNOWN)


def _elsewhere(config: Config, host: Host) -> dict[str, Sequence[bytes]]:
    return {other.name: other.secrets for other in config.hosts if not set(other.secrets) & set(host.secrets)}


def _about_token(host: Host, upload: Asked, token: Token) -> Iterator[str]:
    path = Case(upload, token, host.upload_sub_dir, host.secrets).as_asked.path
    if path is not None:
        try:
            token.verifier(host.secrets).verify(upload.shown, slot_path(path.split(b"/")), upload.size)
        except (BadToken, BadPath) as error:
            yield str(error)


def _about_good(host: Host, upload: Asked, proof: Proof) -> Explanation:
    """What may be refused although it was signed well."""
    segments = [unquote_to_bytes(segment) for segment in upload.path.split(b"/")[1:]]
    try:
        slot_path(segments)
    except BadPath as error:
        return Explanation(False, f"the {proof.what} is good, but {error}, which no file can have")
    if host.max_upload_size and upload.size > host.max_upload_size:
        reason = f"MaxUploadSize is {host.max_upload_size} bytes: raise it, or lower the XMPP server's own limit"
        return Explanation(False, f"the {proof.what} is good, but {reason}")
    if isinstance(proof, Token) and proof.at is not None:
        end = claimed_numbers(presented(proof.shown.authorization) or b"")["exp"]
        when = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Explanation(False, f"the token was good for {upload.size} bytes until {when}")
    text = f"the {proof.what} is good for {upload.size} bytes"
    if EXAMPLE_SECRET in host.secrets:
        text += "; but the secret is the example's, with which only programs on this machine may upload"
    return Explanation(True, text)
