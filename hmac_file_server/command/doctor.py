"""``doctor``: a deployment, tested through its public URL."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from hmac_file_server.command.options import (
    chosen_host,
    loaded,
    need_tls,
    print_json,
    run_reactor,
    with_config,
    with_host,
    with_json,
    with_protocol,
)
from hmac_file_server.doctor.finding import Finding, Level

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red", Level.SKIPPED: "blue"}
_WIDEST = 11


@click.command()
@click.argument("url")
@with_protocol
@with_config
@with_host
@with_json
@click.pass_context
def doctor(context: click.Context, url: str, protocol: str, config: str, host: str | None, as_json: bool) -> None:
    """Test a deployment through its public URL, proxy and all.

    URL is where the XMPP server sends uploads, as https://upload.example.org/upload/. Some files are uploaded, signed
    with the configuration's Secret, and fetched; they are removed again where there is a DeleteSecret. Ends with 0 if
    there is no problem, else with 1.
    """
    from hmac_file_server.doctor.deployment import Address, Deployment
    from hmac_file_server.doctor.examine import examine

    settings = loaded(config)
    chosen = chosen_host(settings, host)
    try:
        address = Address.of(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    if address.secure:
        need_tls()
    findings: list[tuple[str, Finding]] = []

    def report(check: str, finding: Finding) -> None:
        findings.append((check, finding))
        if not as_json:
            _print(check, finding)

    if not as_json:
        click.echo(f"{address}")

    async def run(reactor: Any) -> Deployment:
        site = Deployment(reactor, address, settings, chosen, protocol)
        await examine(site, report)
        return site

    site = run_reactor(run)
    counts = Counter(finding.level for _, finding in findings)
    if as_json:
        print_json(
            {
                "url": str(address),
                "proxy": site.proxy.name or None,
                "problems": counts[Level.PROBLEM],
                "warnings": counts[Level.WARNING],
                "findings": [_as_json(*found) for found in findings],
            }
        )
    else:
        click.echo(_sum(counts))
    context.exit(1 if counts[Level.PROBLEM] else 0)


def _print(check: str, finding: Finding) -> None:
    click.secho(f"{finding.level:<8} ", fg=_COLOURS[finding.level], bold=True, nl=False)
    click.echo(f"{check:<{_WIDEST}} {f'{finding.party}: ' if finding.party else ''}{finding.text}")
    if finding.remedy:
        click.echo(f"{'':<{_WIDEST + 9}} -> {finding.remedy}")


def _as_json(check: str, finding: Finding) -> dict[str, str | None]:
    return {
        "check": check,
        "level": finding.level.value,
        "party": finding.party.value if finding.party else None,
        "text": finding.text,
        "remedy": finding.remedy or None,
    }


def _sum(counts: Counter[Level]) -> str:
    found = [
        f"{counts[level]} {level}{'s' * (counts[level] > 1)}"
        for level in (Level.PROBLEM, Level.WARNING)
        if counts[level]
    ]
    if found:
        return ", ".join(found)
    return "All is well. If uploads fail all the same, compare the XMPP server's secret and base URL."
