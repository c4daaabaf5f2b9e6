"""CORS: what web clients need in order to upload, to download, and to read a refusal."""

from __future__ import annotations

from hmac_file_server.doctor.answer import Answer
from hmac_file_server.doctor.deployment import WRONG, Deployment
from hmac_file_server.doctor.finding import Finding, Findings, Party, ok, problem
from hmac_file_server.doctor.uploads import SMALL

_ORIGIN = "https://web-client.example"
_ALLOW = "access-control-allow-origin"
_METHODS = ("PUT", "GET", "HEAD")
_HEADERS = ("authorization", "content-type")


async def cors(site: Deployment) -> Findings:
    """A page of another site may read answers."""
    answer = await site.ask("GET", site.where(site.slot(SMALL, 0)), headers={"Origin": _ORIGIN})
    yield _wrong_origin(site, answer, "a download") or ok("web clients may read answers")


async def preflight(site: Deployment) -> Findings:
    """A browser that asks first is told that it may (Fetch, "CORS-preflight fetch")."""
    headers = {"Origin": _ORIGIN, "Access-Control-Request-Method": "PUT"}
    headers["Access-Control-Request-Headers"] = ", ".join(_HEADERS)
    answer = await site.ask("OPTIONS", site.where(site.slot("preflight.txt", 5)), headers=headers)
    if answer.status not in (200, 204):
        yield problem(
            Party.DAEMON if answer.is_daemons else Party.PROXY,
            f"OPTIONS is answered {answer.shown}: no web client can upload",
            site.proxy.remedy("preflight"),
        )
        return
    wrong = _wrong_origin(site, answer, "OPTIONS")
    if wrong:
        yield wrong
        return
    methods, allowed = (_listed(answer, f"access-control-allow-{what}") for what in ("methods", "headers"))
    lacks = [name for name in _METHODS if name.lower() not in methods]
    lacks += [name for name in _HEADERS if name not in allowed]
    if lacks:
        text = f"the answer to OPTIONS does not allow {', '.join(lacks)}: web clients fail"
        yield problem(Party.PROXY, text, site.proxy.remedy("preflight"))
    else:
        yield ok("OPTIONS allows what web clients need")


async def cors_on_errors(site: Deployment) -> Findings:
    """A page can read why something was refused; without that it sees a broken network."""
    where, origin = site.where(site.slot("no-such-file.txt", 5)), {"Origin": _ORIGIN}
    answers = {
        "a 404": await site.ask("GET", where, headers=origin),
        "a 403": await site.ask("PUT", f"{where}{WRONG}", b"hello", headers=origin),
        "a 416": await site.ask("GET", site.where(site.slot(SMALL, 0)), headers={**origin, "Range": "bytes=999999-"}),
    }
    for what, answer in answers.items():
        if not answer.is_daemons and not answer.all(_ALLOW):
            yield site.explain(answer, f"what is {what} of the daemon")
            return
        wrong = _wrong_origin(site, answer, what)
        if wrong:
            yield wrong
            return
    yield ok("web clients may read refusals, too")


def _wrong_origin(site: Deployment, answer: Answer, what: str) -> Finding | None:
    found = answer.all(_ALLOW)
    if found == ["*"]:
        return None
    if not found:
        text = f"{what} has no Access-Control-Allow-Origin: web clients can not read it"
    elif len(found) > 1 or "," in found[0]:
        text = f"{what} has Access-Control-Allow-Origin twice ({', '.join(found)}): browsers refuse that"
    else:
        text = f"{what} has Access-Control-Allow-Origin: {found[0]}: web clients of other sites can not read it"
    return problem(Party.PROXY, text, site.proxy.remedy("cors"))


def _listed(answer: Answer, name: str) -> set[str]:
    return {part.strip().lower() for value in answer.all(name) for part in value.split(",")}
