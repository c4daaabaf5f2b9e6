"""GET and HEAD: the same bytes, ranges, conditions, and what a browser may do with a file."""

from __future__ import annotations

from hmac_file_server.doctor.answer import Answer
from hmac_file_server.doctor.deployment import Deployment
from hmac_file_server.doctor.finding import Finding, Findings, Party, ok, problem, warning
from hmac_file_server.doctor.uploads import LARGE, SMALL, SMALL_BODY, large_body
from hmac_file_server.doctor.wire import Wire
from hmac_file_server.files.headers import CACHE, file_headers

_HTML = b"<!doctype html><title>test</title><script>document.title = 'ran'</script>\n" + b"<p>text</p>\n" * 200
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8ffff3f0005fe02fea1398ae50000000049454e44ae426082"
)
_PATIENCE = 30.0
_MEDIA = {"page.html": (b"text/html", _HTML), "picture.png": (b"image/png", _PNG)}
_SAFETY = ("x-content-type-options", "content-security-policy", "content-disposition", "content-type")


async def download(site: Deployment) -> Findings:
    """What was uploaded comes back, to the byte."""
    for name, body in ((SMALL, SMALL_BODY), (LARGE, large_body(site))):
        slot = site.slot(name, len(body))
        if not site.has(slot):
            continue
        answer = await site.ask("GET", site.where(slot))
        if answer.status != 200:
            yield site.explain(answer, "a download")
            return
        if answer.body != body:
            text = f"other bytes come back than were sent: {len(answer.body)} of {len(body)}"
            yield problem(Party.PROXY, text, site.proxy.remedy("headers"))
            return
    yield ok("what was uploaded comes back, to the byte")


async def head(site: Deployment) -> Findings:
    """HEAD has the headers of GET, the length among them."""
    target = site.where(site.slot(SMALL, 0))
    got = await site.ask("GET", target)
    answer = await site.ask("HEAD", target)
    if answer.status != 200:
        yield site.explain(answer, "HEAD")
    elif answer.first("content-length") != str(len(SMALL_BODY)):
        text = "HEAD has no Content-Length, or a wrong one: Conversations downloads nothing then"
        yield problem(Party.PROXY, text, site.proxy.remedy("compression"))
    else:
        names = ("etag", "last-modified", "content-type", "cache-control", "accept-ranges", *_SAFETY)
        other = [name for name in dict.fromkeys(names) if answer.all(name) != got.all(name)]
        text = f"HEAD and GET differ in {', '.join(other)}"
        remedy = site.proxy.remedy("compression" if "etag" in other else "headers")
        yield warning(Party.PROXY, text, remedy) if other else ok("as GET, with Content-Length")


async def ranges(site: Deployment) -> Findings:
    """Parts of a file can be had (RFC 9110, section 14)."""
    target, size = site.where(site.slot(SMALL, 0)), len(SMALL_BODY)
    wanted = {"bytes=0-99": SMALL_BODY[:100], "bytes=100-": SMALL_BODY[100:], "bytes=-7": SMALL_BODY[-7:]}
    for asked, part in wanted.items():
        answer = await site.ask("GET", target, headers={"Range": asked})
        if answer.status != 206 or answer.body != part:
            text = f"Range: {asked} is answered {answer.status}, and not with that part: downloads do not resume"
            yield problem(Party.PROXY, text, site.proxy.remedy("ranges"))
            return
    answer = await site.ask("GET", target, headers={"Range": f"bytes={size}-"})
    if answer.status != 416 or answer.first("content-range") != f"bytes */{size}":
        text = f"a range behind the end is answered {answer.status}, not 416 with Content-Range"
        yield warning(Party.PROXY, text, site.proxy.remedy("ranges"))
        return
    yield ok("206 with the part that is asked for, 416 behind the end")


async def conditions(site: Deployment) -> Findings:
    """Who has a file already is told so (RFC 9110, section 13)."""
    target = site.where(site.slot(SMALL, 0))
    etag = (await site.ask("GET", target)).first("etag")
    if not etag or etag.startswith("W/"):
        text = f"the ETag is {etag or 'missing'}: downloads do not resume, and caches do not ask"
        yield problem(Party.PROXY, text, site.proxy.remedy("compression" if etag else "headers"))
        return
    asked = {
        304: {"If-None-Match": etag},
        206: {"Range": "bytes=5-9", "If-Range": etag},
        200: {"Range": "bytes=5-9", "If-Range": '"another"'},
        412: {"If-Match": '"another"'},
    }
    for status, headers in asked.items():
        answer = await site.ask("GET", target, headers=headers)
        if answer.status != status:
            text = f"a GET with {' and '.join(headers)} is answered {answer.status}, not {status}"
            yield warning(Party.PROXY, text, site.proxy.remedy("ranges"))
            return
    yield ok("If-None-Match, If-Match and If-Range are obeyed")


async def media(site: Deployment) -> Findings:
    """Pictures are shown, pages are saved, and nothing runs."""
    found: list[Finding] = []
    for name, (media_type, body) in _MEDIA.items():
        slot = site.slot(name, len(body), media_type.decode())
        answer = await site.put(slot, body)
        if answer.status != 201:
            yield site.explain(answer, f"an upload of {name}")
            return
        answer = await site.ask("GET", site.where(slot))
        ours = {key.decode().lower(): value.decode() for key, value in file_headers(media_type, name).items()}
        ours["x-content-type-options"] = "nosniff"
        wrong = [header for header in _SAFETY if ours[header] not in answer.all(header)]
        if wrong:
            text = f"{name} is not served with the daemon's {', '.join(wrong)}: a stranger's page could run"
            found.append(problem(Party.PROXY, text, site.proxy.remedy("headers")))
    for finding in found or [ok("a picture is shown, a page is saved, and none can run")]:
        yield finding


async def compression(site: Deployment) -> Findings:
    """Nothing is compressed on its way: lengths, ranges and ETags hold for the bytes that were uploaded."""
    for name in (SMALL, "page.html"):
        answer = await site.in_thread(_compressed, site, site.where(site.slot(name, 0)))
        if answer.first("content-encoding"):
            text = f"the proxy compresses ({answer.first('content-encoding')}): lengths and ETags are lost, and with"
            text += " them progress bars and downloads that resume"
            yield problem(Party.PROXY, text, site.proxy.remedy("compression"))
            return
    yield ok("nothing is compressed on its way")


def _compressed(site: Deployment, target: str) -> Answer:
    """What comes for whoever can read gzip. HTTP libraries hide it."""
    with site.wire() as wire:
        return _asked(wire, target)


def _asked(wire: Wire, target: str) -> Answer:
    wire.begin("GET", target, {"Accept-Encoding": "gzip, br, zstd"})
    return wire.final(_PATIENCE)


async def caching(site: Deployment) -> Findings:
    """Browsers may keep a file, for it never changes (RFC 8246)."""
    found = (await site.ask("GET", site.where(site.slot(SMALL, 0)))).all("cache-control")
    if found == [CACHE.decode()]:
        yield ok("browsers may keep a file for a year")
    else:
        text = (
            f"Cache-Control is {' and '.join(found) or 'missing'}, not what the daemon sends: files are fetched anew"
        )
        yield warning(Party.PROXY, text, site.proxy.remedy("headers"))


async def listing(site: Deployment) -> Findings:
    """Nobody sees which files there are."""
    for target in (site.url.path, f"{site.url.path}{site.folder}/", f"{site.url.path}{site.folder}"):
        answer = await site.ask("GET", target)
        if answer.status != 404:
            yield problem(
                Party.PROXY,
                f"GET {target} is answered {answer.shown}, not 404: whoever sees names has the files",
                site.proxy.remedy("static"),
            )
            return
    yield ok("no folder is listed (404)")
