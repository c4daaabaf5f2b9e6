"""PUT: small and large ones, odd names, pauses, and what is refused."""

from __future__ import annotations

import time
from urllib.parse import quote

from hmac_file_server.doctor.answer import Answer
from hmac_file_server.doctor.deployment import WRONG, Deployment
from hmac_file_server.doctor.finding import Blocked, Finding, Findings, NoAnswer, Party, ok, problem, skipped, warning
from hmac_file_server.doctor.wire import Wire

SMALL = "small.txt"
SMALL_BODY = b"hmac-file-server doctor\n" * 100
LARGE = "large.bin"
_LARGE_BYTES = 8 << 20
_HUGE_BYTES = 2 << 30
_PIECE = 256 << 10
_PIECES = 16
_SOON_SECONDS = 5.0
_BARELY_SECONDS = 0.3
_PAUSE_SECONDS = 5.0
_ANSWER_SECONDS = 30.0

ODD_NAMES = {
    "spaces": " two  spaces .txt",
    "umlauts": "Größe Äöß.txt",
    "percent signs": "100%25 of 50%.txt",
    "plus signs": "a+b + c.txt",
    "ampersands": "a&b=c;d?e#f.txt",
    "quotes": 'it\'s "quoted" `so`.txt',
    "an emoji": "party 🎉.txt",
    "200 bytes": "n" * 196 + ".txt",
}


def large_body(site: Deployment) -> bytes:
    """Eight mebibytes, or what is allowed; of a kind that no proxy can make smaller."""
    size = min(_LARGE_BYTES, site.host.max_upload_size or _LARGE_BYTES)
    block = bytes((number * number * 7 + number) % 251 for number in range(4093))
    return (block * (size // len(block) + 1))[:size]


async def upload(site: Deployment) -> Findings:
    """A small file with a right signature is stored."""
    slot = site.slot(SMALL, len(SMALL_BODY), "text/plain")
    answer = await site.put(slot, SMALL_BODY)
    if answer.status == 201:
        yield ok("a small file is stored (201)")
        return
    found = _other_url(site)
    if found is None and answer.is_daemons and answer.status in (401, 403, 404):
        found = await _wrong_prefix(site)
    yield found or site.explain(answer, "an upload")
    raise Blocked


def _other_url(site: Deployment) -> Finding | None:
    prefix = f"/{site.host.upload_sub_dir}/" if site.host.upload_sub_dir else "/"
    if site.url.path.endswith(prefix):
        return None
    text = f"nothing can be stored there, and the URL ends in {site.url.path}, while UploadSubDir is {prefix}"
    return problem(Party.CLIENT, text, f"test {site.url.root}{prefix}, which the XMPP server has to hand out, too")


async def _wrong_prefix(site: Deployment) -> Finding | None:
    """What the proxy makes of the path, by trying what the daemon would take then."""
    prefix = f"{site.host.upload_sub_dir}/" if site.host.upload_sub_dir else ""
    if not prefix:
        return None
    remedy = site.proxy.remedy("path")
    tries = (
        (quote(prefix), "", f"the path loses /{prefix} before it reaches the daemon"),
        ("", prefix, f"/{prefix} is there twice when the path reaches the daemon"),
    )
    for more, signed, words in tries:
        slot = site.slot(f"prefix-{len(more)}.txt", len(SMALL_BODY), "text/plain", before=signed)
        target = site.url.path + more + slot.quoted.removeprefix(quote(signed)) + slot.query
        answer = await site.ask("PUT", target, SMALL_BODY, slot.headers)
        if answer.status == 201:
            site.keep_at(target.partition("?")[0], slot)
            return problem(Party.PROXY, f"{words}: the proxy changes it", remedy)
    return None


async def large(site: Deployment) -> Findings:
    """A file of some mebibytes is stored."""
    body = large_body(site)
    begun = time.monotonic()
    answer = await site.put(site.slot(LARGE, len(body)), body)
    what = f"an upload of {_size(len(body))}"
    if answer.status == 201:
        yield ok(f"{what} is stored, in {time.monotonic() - begun:.1f} s")
    else:
        yield site.explain(answer, what)


async def names(site: Deployment) -> Findings:
    """Files of any name go up and come down."""
    wrong = []
    for what, name in ODD_NAMES.items():
        slot = site.slot(name, len(SMALL_BODY))
        answer = await site.put(slot, SMALL_BODY)
        if answer.status == 201:
            answer = await site.ask("GET", site.where(slot))
        if answer.status != 200 or answer.body != SMALL_BODY:
            wrong.append((what, answer))
    if not wrong:
        yield ok(f"{', '.join(ODD_NAMES)}: all names work")
        return
    listed = ", ".join(f"{what} ({answer.status})" for what, answer in wrong)
    if wrong[0][1].status == 400 and wrong[0][1].is_daemons:
        text = f"the file system of the store can not hold names with {listed}"
        yield problem(Party.DAEMON, text, "put StoreDir on ext4 or XFS")
    else:
        yield problem(Party.PROXY, f"names with {listed} do not work: the path is changed", site.proxy.remedy("path"))


async def spelling(site: Deployment) -> Findings:
    """The path reaches the daemon in the client's spelling: a slash that is encoded does not become one."""
    target = site.where(site.slot(SMALL, 0)).replace(f"{site.folder}/", f"{site.folder}%2F")
    answer = await site.ask("GET", target)
    if answer.status == 200:
        text = "the proxy decodes the path and spells it in its own way: some names may not work"
        yield warning(Party.PROXY, text, site.proxy.remedy("path"))
    else:
        yield ok("the path is passed on as it is")


async def slow(site: Deployment) -> Findings:
    """A body may pause for some seconds."""
    body = SMALL_BODY * 2
    slot = site.slot("slow.txt", len(body), "text/plain")
    site.keep_in_mind(slot)

    def talk() -> Answer:
        with site.wire() as wire:
            wire.begin("PUT", site.target(slot), {**slot.headers, "Content-Length": str(len(body))})
            wire.send(SMALL_BODY)
            early = wire.answer_or_none(_PAUSE_SECONDS)
            if early is None or early.status < 200:
                wire.send(SMALL_BODY)
                early = wire.final(_ANSWER_SECONDS)
            return early

    try:
        answer = await site.in_thread(talk)
    except NoAnswer as error:
        text = f"an upload that pauses for {_PAUSE_SECONDS:g} s is cut off: {error}"
        yield problem(Party.PROXY, text, site.proxy.remedy("patience"))
        return
    what = f"an upload that pauses for {_PAUSE_SECONDS:g} s"
    yield ok(f"{what} is stored") if answer.status == 201 else site.explain(answer, what)


# Refusals


async def signature(site: Deployment) -> Findings:
    """A wrong signature is refused."""
    answer = await site.ask("PUT", f"{site.where(site.slot('wrong.txt', 5))}{WRONG}", b"hello")
    if answer.status == 403 and answer.is_daemons:
        yield ok("a wrong signature is refused (403)")
    elif answer.status in (200, 201):
        text = f"an upload with a wrong signature is answered {answer.status}"
        yield problem(Party.PROXY, f"{text}: anybody can write there", site.proxy.remedy("static"))
    else:
        yield site.explain(answer, "a wrong signature")


async def early(site: Deployment) -> Findings:
    """A huge body is refused before it comes, and none is too long for the proxy."""
    size = min(_HUGE_BYTES, site.host.max_upload_size or _HUGE_BYTES)
    target = f"{site.where(site.slot('huge.bin', size))}{WRONG}"
    answer, sent = await site.in_thread(_refused_early, site, target, size)
    if answer is None and site.proxy.kind == "Apache":
        yield ok("Apache looks for no answer before it has handed on all: a refusal comes when a body is sent")
    elif answer is None:
        text = (
            f"a refusal does not come while {_size(sent)} are sent: the proxy gathers bodies before it passes them on"
        )
        yield warning(Party.PROXY, text, site.proxy.remedy("buffering"))
    elif answer.status == 403 and answer.is_daemons:
        when = f"after {_size(sent)} of it" if sent else "before its first byte"
        yield ok(f"a body of {_size(size)} with a wrong signature is refused {when}")
    else:
        yield site.explain(answer, f"an upload of {_size(size)}")


def _refused_early(site: Deployment, target: str, size: int) -> tuple[Answer | None, int]:
    """The answer to a huge body, and how much of that was sent."""
    with site.wire() as wire:
        wire.begin("PUT", target, {"Content-Length": str(size)})
        answer = wire.answer_or_none(_SOON_SECONDS)
        if answer is not None:
            return answer, 0
        return _while_sending(wire, min(size - 1, _PIECE * _PIECES))


def _while_sending(wire: Wire, size: int) -> tuple[Answer | None, int]:
    sent = 0
    while sent < size:
        going = wire.send(bytes(min(_PIECE, size - sent)), _SOON_SECONDS)
        sent = min(size, sent + _PIECE)
        try:
            answer = wire.answer_or_none(_BARELY_SECONDS if going else _SOON_SECONDS)
        except NoAnswer:
            return None, sent
        if answer is not None or not going:
            return answer, sent
    return None, sent


async def expect(site: Deployment) -> Findings:
    """``Expect: 100-continue``: a client hears whether its body is wanted."""
    body = b"hello"
    slot = site.slot("expect.txt", len(body))
    site.keep_in_mind(slot)
    headers = {"Content-Length": str(len(body)), "Expect": "100-continue"}

    def talk(target: str, more: dict[str, str]) -> tuple[int, Answer]:
        """The status that came before the body, 0 if none did; and the last answer."""
        with site.wire() as wire:
            wire.begin("PUT", target, {**more, **headers})
            first = wire.answer_or_none(_SOON_SECONDS)
            if first is not None and first.status >= 200:
                return first.status, first
            wire.send(body)
            return first.status if first else 0, wire.final(_ANSWER_SECONDS)

    before, answer = await site.in_thread(talk, site.target(slot), slot.headers)
    if answer.status != 201:
        yield site.explain(answer, "an upload with Expect: 100-continue")
        return
    if before != 100:
        text = "no 100 Continue comes: a client that waits for it (curl does) loses a second with each upload"
        yield warning(Party.PROXY, text, site.proxy.remedy("expect"))
        return
    before, answer = await site.in_thread(talk, f"{site.where(slot)}{WRONG}", {})
    if answer.status != 403:
        yield site.explain(answer, "a wrong signature with Expect: 100-continue")
    elif before == 100:
        name = site.proxy.name or "the proxy"
        yield ok(f"a right signature has its 100 Continue; a wrong one, too, for {name} gives it by itself")
    else:
        yield ok("a right signature has its 100 Continue, and a wrong one is refused at once")


def _size(size: int) -> str:
    """Bytes for a reader."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{round(size / (1 << shift), 1):g} {unit}"
    return f"{size} bytes"


async def removal(site: Deployment) -> Findings:
    """What the tests have stored is removed, where that is allowed."""
    left = site.stored
    if not left:
        yield skipped("nothing was stored")
        return
    if not site.host.delete_secret:
        folders = " and ".join(dict.fromkeys(file.signed.decode().rpartition("/")[0] for file in left))
        yield skipped(f"without DeleteSecret nothing can be removed: what was stored lies in StoreDir/{folders}")
        return
    for file in left:
        answer = await site.ask("DELETE", f"{file.target}?token={site.right_to_remove(file)}")
        if answer.status != 204:
            text = f"DELETE is answered {answer.shown}, so what was stored lies in StoreDir/{site.folder}"
            party = Party.DAEMON if answer.is_daemons else Party.PROXY
            remedy = "" if answer.is_daemons else site.proxy.remedy("delete")
            yield warning(party, text, remedy)
            return
    yield ok(f"what was stored is removed ({len(left)} files)")
