"""``104 Upload Resumption Supported``: whether it arrives, and whether uploads that ask for it do."""

from __future__ import annotations

import os
import re
import shutil

import attrs
from twisted.internet.utils import getProcessOutputAndValue

from hmac_file_server.doctor.answer import Answer
from hmac_file_server.doctor.deployment import Deployment
from hmac_file_server.doctor.finding import Finding, Findings, NoAnswer, Party, ok, problem, skipped, warning
from hmac_file_server.slots.issue import Issued

_BODY = b"what an iPhone sends"
_ASKS = {"Upload-Draft-Interop-Version": "6", "Upload-Complete": "?1"}
_PATIENCE = 10.0
# What curl ends with if HTTP breaks: framing, the end in the midst, time, nothing, receiving, a stream's error.
_BROKEN_OFF = (16, 18, 28, 52, 56, 92)
_STATUS = re.compile(rb"^HTTP/[\d.]+ (\d{3})", re.MULTILINE)

_BETTER = "ProxiesPass104 = true in the daemon's configuration"
_PASSES = ("HAProxy", "Caddy")


async def resumption(site: Deployment) -> Findings:
    """Over HTTP/1.1: the upload ends with a final answer, and so does what follows it on the connection."""
    slot = site.slot("resumable.bin", len(_BODY))
    site.keep_in_mind(slot)
    heard, found = await site.in_thread(_upload, site, slot)
    yield _judged(site, heard, found) if isinstance(found, Answer) else _cut(site, heard, str(found))


def _upload(site: Deployment, slot: Issued) -> tuple[bool, Answer | NoAnswer]:
    """Whether 104 came, and the final answer."""
    heard = False
    with site.wire() as wire:
        wire.begin("PUT", site.target(slot), {**slot.headers, **_ASKS, "Content-Length": str(len(_BODY))})
        wire.send(_BODY)
        try:
            while (answer := wire.answer(_PATIENCE)).status < 200:
                heard = heard or answer.status == 104
            if heard and answer.first("connection").lower() != "close":
                # A proxy that has taken 104 for the answer waits for more of it now.
                wire.begin("GET", site.where(slot), {})
                wire.final(_PATIENCE)
        except NoAnswer as error:
            return heard, error
    return heard, answer


def _cut(site: Deployment, heard: bool, reason: str) -> Finding:
    """What it means that there is no final answer.

    :param heard: whether 104 came.
    """
    if site.config.proxies_pass_104:
        remedy = "ProxiesPass104 = false in the daemon's configuration"
    elif heard:
        remedy = "add the proxy's address to TrustedProxies: the daemon takes it for a client that can read 104"
    else:
        return problem(Party.PROXY, f"an upload that asks to be resumable has no answer: {reason}")
    text = (
        "iPhones can not upload: they ask for 104 Upload Resumption Supported by themselves, and the proxy breaks it"
    )
    return problem(Party.DAEMON, f"{text} ({reason})", remedy)


def _judged(site: Deployment, heard: bool, answer: Answer) -> Finding:
    if answer.status != 201:
        return site.explain(answer, "an upload that asks to be resumable")
    if heard:
        return ok("104 arrives: a phone goes on with an upload that was cut off")
    if site.proxy.kind in _PASSES and site.config.resumable_uploads and not site.config.proxies_pass_104:
        text = f"no 104 is sent, though {site.proxy.kind} passes it: a phone starts over after a cut"
        return warning(Party.DAEMON, text, f"{_BETTER}, if every proxy before it passes 104")
    return ok("no 104 is sent: uploads work, and a phone starts over after a cut")


async def resumption_http2(site: Deployment) -> Findings:
    """The same over HTTP/2, as phones do it. curl speaks it."""
    if not site.offers_h2:
        yield skipped("HTTP/2 is not offered")
        return
    curl = await _curl()
    if curl is None:
        yield skipped("curl with HTTP/2 is not installed here")
        return
    slot = site.slot("resumable-2.bin", len(_BODY))
    site.keep_in_mind(slot)
    said = await curl.put(site, slot)
    if said.exit_status not in (0, *_BROKEN_OFF):
        yield skipped(f"curl does not work here: {said.error}")
    elif said.exit_status or said.statuses[-1:] == [104]:
        heard = ", ".join(map(str, said.statuses)) or "no answer"
        yield _cut(site, 104 in said.statuses, f"over HTTP/2 {heard}; {said.error or 'nothing more'}")
    else:
        yield _judged(site, 104 in said.statuses, Answer(said.statuses[-1] if said.statuses else 0))


@attrs.frozen
class _Said:
    """What curl says of an upload.

    :param statuses: of all answers, interim ones too.
    :param exit_status: 0 if all is well.
    :param error: what it complains of.
    """

    statuses: list[int]
    exit_status: int
    error: str


@attrs.frozen
class _Curl:
    """The command, where it speaks HTTP/2."""

    path: str

    async def put(self, site: Deployment, slot: Issued) -> _Said:
        """Upload."""
        ip = f"[{site.ip}]" if ":" in site.ip else site.ip
        options = {
            "url": site.url.root + site.target(slot),
            "resolve": f"{site.url.host}:{site.url.port}:{ip}",
            "data-binary": _BODY.decode(),
        }
        lines = [f'{name} = "{value}"' for name, value in options.items()]
        lines += [f'header = "{name}: {value}"' for name, value in {**slot.headers, **_ASKS}.items()]
        # What signs the upload goes by standard input: everybody can read a command line.
        quietly = ["-q", "-K", "-", "--http2", "-sS", "-g", "-o", os.devnull, "-D", "-", "-X", "PUT"]
        bounded = ["--noproxy", "*", "--max-time", f"{_PATIENCE:g}"]
        out, errors, status = await getProcessOutputAndValue(
            self.path, [*quietly, *bounded], os.environ, reactor=site.reactor, stdinBytes="\n".join(lines).encode()
        )
        reason = errors.decode("utf-8", "replace").strip().partition("\n")[0]
        return _Said([int(found) for found in _STATUS.findall(out)], status, reason)


async def _curl() -> _Curl | None:
    path = shutil.which("curl")
    if path is None:
        return None
    out, _, status = await getProcessOutputAndValue(path, ["-V"], os.environ)
    return _Curl(path) if status == 0 and b" HTTP2" in out else None
