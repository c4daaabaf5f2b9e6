"""Names, addresses, certificates, and what answers there."""

from __future__ import annotations

import errno
import ssl
import time
import warnings

from hmac_file_server.doctor.deployment import Deployment, addresses_of
from hmac_file_server.doctor.finding import Blocked, Finding, Findings, NoAnswer, Party, ok, problem, skipped, warning
from hmac_file_server.doctor.proxies import proxy_of
from hmac_file_server.doctor.wire import connect

_DAY = 86_400
_SOON, _AT_ONCE = 21, 7
_NO_ROUTE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_EXPIRED, _NOT_YET, _OTHER_NAME = 10, 9, (62, 64)
_INCOMPLETE = (2, 20, 21)
_OURS = "hmac-file-server"


async def dns(site: Deployment) -> Findings:
    """The name stands for addresses, and each of them can be reached."""
    try:
        found = await site.in_thread(addresses_of, site.url)
    except OSError as error:
        yield problem(Party.NETWORK, f"{site.url.host}: {error.strerror}", "add an A and an AAAA record")
        raise Blocked from None
    reached: list[str] = []
    for family, addresses in found.items():
        for address in addresses:
            error_number, why = await site.in_thread(_reach, address, site.url.port)
            if not error_number and not why:
                reached.append(address)
            elif error_number in _NO_ROUTE:
                yield skipped(f"{address}: this machine has no {family}")
            else:
                text = f"{site.url.host} is also {address}, and there nobody answers at port {site.url.port}: {why}"
                yield problem(
                    Party.NETWORK, text, f"listen there and open the firewall, or remove the {family} record"
                )
    if not reached:
        raise Blocked
    site.ip = reached[0]
    missing = [family for family, addresses in found.items() if not addresses]
    lacks = f"; it has no {missing[0]} address" if missing else ""
    yield ok(f"{site.url.host} answers at {' and '.join(reached)}{lacks}")


def _reach(address: str, port: int) -> tuple[int, str]:
    try:
        connect((address, port), "").close()
    except OSError as error:
        return error.errno or 0, error.strerror or str(error)
    return 0, ""


async def tls(site: Deployment) -> Findings:
    """The certificate is good for the name, with its chain, and for a while."""
    if not site.url.secure:
        yield warning(
            Party.XMPP_SERVER,
            "the URL is http:// and XEP-0363 asks for https://, without which many clients upload nothing",
            "serve it by TLS, and let the XMPP server hand out https://",
        )
        return
    try:
        version, end = await site.in_thread(_handshake, site)
    except ssl.SSLCertVerificationError as error:
        yield _bad_certificate(site, error)
        raise Blocked from None
    except OSError as error:
        yield problem(Party.PROXY, f"no TLS at port {site.url.port}: {error.strerror or error}")
        raise Blocked from None
    days = int((end - time.time()) // _DAY)
    if days < _AT_ONCE:
        yield problem(Party.PROXY, f"the certificate ends in {days} days", _RENEW)
    elif days < _SOON:
        yield warning(Party.PROXY, f"the certificate ends in {days} days", _RENEW)
    else:
        yield ok(f"{version}, and a certificate for another {days} days")
    if await site.in_thread(_takes_old_tls, site):
        yield warning(Party.PROXY, "TLS 1.0 or 1.1 is spoken, too", site.proxy.remedy("old-tls"))


_RENEW = "renew it (certbot renew), and reload the proxy after each renewal"


def _handshake(site: Deployment) -> tuple[str, float]:
    """The version, and when the certificate ends, in seconds since 1970."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with connect((site.ip, site.url.port), site.url.host, context) as secure:
        assert isinstance(secure, ssl.SSLSocket)
        site.offers_h2 = secure.selected_alpn_protocol() == "h2"
        certificate = secure.getpeercert()
        assert certificate
        return secure.version() or "TLS", ssl.cert_time_to_seconds(str(certificate["notAfter"]))


def _bad_certificate(site: Deployment, error: ssl.SSLCertVerificationError) -> Finding:
    code = error.verify_code
    if code == _EXPIRED:
        return problem(Party.PROXY, "the certificate has expired", _RENEW)
    if code == _NOT_YET:
        return problem(Party.PROXY, "the certificate is not valid yet", "set the clock of the machine that made it")
    if code in _OTHER_NAME:
        text = f"the certificate is not for {site.url.host}"
        return problem(Party.PROXY, text, f"get one for it (certbot -d {site.url.host})")
    if code in _INCOMPLETE:
        text = "nobody that is trusted here has signed the certificate, or those between are missing"
        return problem(Party.PROXY, text, site.proxy.remedy("chain"))
    text = f"the certificate is not trusted: {error.verify_message}"
    return problem(Party.PROXY, text, "get one from an authority that clients know (certbot)")


def _takes_old_tls(site: Deployment) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # Nothing is said to whom it may be.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            connect((site.ip, site.url.port), site.url.host, context).close()
        except (OSError, ValueError):
            return False
    return True


async def proxy(site: Deployment) -> Findings:
    """Which proxy it is: what it answers by itself tells."""
    names, pages = await site.in_thread(_own_answers, site)
    site.proxy = proxy_of(names, pages)
    yield ok(f"{site.proxy.name} answers" if site.proxy.name else "none is to be seen")


def _own_answers(site: Deployment) -> tuple[list[str], list[bytes]]:
    """What stands in Server and Via, and on the pages, of what is answered beside the daemon's paths."""
    names: list[str] = []
    pages: list[bytes] = []
    for target, headers in (("/", {}), ("/", {"Not a header": "x"})):
        try:
            with site.wire() as wire:
                wire.begin("GET", target, headers)
                answer = wire.answer(_PATIENCE)
        except NoAnswer:
            continue
        names += [*answer.all("server"), *answer.all("via")]
        pages.append(answer.body)
    return [name for name in names if name and name != _OURS], pages


_PATIENCE = 10.0


async def http2(site: Deployment) -> Findings:
    """HTTP/2 is offered (RFC 7301)."""
    if not site.url.secure:
        yield skipped("clients speak it through TLS only")
    elif site.offers_h2:
        yield ok("it is offered")
    elif not site.proxy.name:
        yield ok("the daemon by itself speaks HTTP/1.1; a proxy could offer it")
    else:
        text = "it is not offered: each of a client's requests waits for a connection of its own"
        yield warning(Party.PROXY, text, site.proxy.remedy("http2"))


async def client_address(site: Deployment) -> Findings:
    """The proxy is believed when it says who its clients are."""
    listen, trusted = site.config.listen, site.config.trusted_proxies
    if not site.proxy.name:
        yield skipped("no proxy is to be seen")
    elif listen.is_proxied or listen.unix is not None:
        yield ok("ListenPort is one that only a trusted proxy reaches")
    elif not listen.loopback:
        text = "it can not be seen from here: the addresses in the daemon's log must be the clients', not the proxy's"
        yield skipped(text)
    elif any(network.is_loopback for network in trusted):
        yield ok("the proxy is on the daemon's machine, which TrustedProxies names")
    else:
        text = "ListenPort is for this machine only, and TrustedProxies does not name it: all clients count as one"
        yield problem(Party.DAEMON, text, 'TrustedProxies = ["127.0.0.1", "::1"]')
