"""All checks, in their order."""

from __future__ import annotations

from collections.abc import Callable

from hmac_file_server.doctor import browsers, downloads, network, resuming, uploads
from hmac_file_server.doctor.deployment import Deployment
from hmac_file_server.doctor.finding import Blocked, Finding, Findings, NoAnswer, Party, problem, skipped

Check = Callable[[Deployment], Findings]
Report = Callable[[str, Finding], None]
"""Is told the name of a check and what it has found."""

GATES: dict[str, Check] = {
    "dns": network.dns,
    "tls": network.tls,
    "proxy": network.proxy,
    "upload": uploads.upload,
}
"""What all others need."""

CHECKS: dict[str, Check] = {
    "large": uploads.large,
    "names": uploads.names,
    "spelling": uploads.spelling,
    "slow": uploads.slow,
    "signature": uploads.signature,
    "refusal": uploads.early,
    "expect": uploads.expect,
    "download": downloads.download,
    "head": downloads.head,
    "ranges": downloads.ranges,
    "conditions": downloads.conditions,
    "media": downloads.media,
    "compression": downloads.compression,
    "caching": downloads.caching,
    "listing": downloads.listing,
    "cors": browsers.cors,
    "preflight": browsers.preflight,
    "cors-errors": browsers.cors_on_errors,
    "http2": network.http2,
    "104": resuming.resumption,
    "104-http2": resuming.resumption_http2,
    "client": network.client_address,
}


async def examine(site: Deployment, report: Report) -> None:
    """Test a deployment.

    :param report: is told of each finding as soon as it is there.
    """
    try:
        for name, check in GATES.items():
            if not await _run(site, name, check, report):
                report("others", skipped(f"they need {name}: {', '.join(CHECKS)}"))
                return
        for name, check in CHECKS.items():
            await _run(site, name, check, report)
    finally:
        if site.stored:
            await _run(site, "removal", uploads.removal, report)


async def _run(site: Deployment, name: str, check: Check, report: Report) -> bool:
    """Whether others can go on from there."""
    try:
        async for finding in check(site):
            report(name, finding)
    except Blocked:
        return False
    except NoAnswer as error:
        report(name, problem(Party.PROXY, str(error)))
        return False
    return True
