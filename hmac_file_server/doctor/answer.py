"""Answers, and what one means that nobody wanted."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from hmac_file_server.doctor.finding import Finding, Party, problem
from hmac_file_server.doctor.proxies import Proxy
from hmac_file_server.log import printable
from hmac_file_server.web.headers import EVERYWHERE, POLICY

_DAEMON = "hmac-file-server"
_POLICY = POLICY.decode("ascii")
_EXPOSED = EVERYWHERE[b"Access-Control-Expose-Headers"].decode("ascii")
_SHOWN = 60


@attrs.frozen
class Answer:
    """An answer to a request.

    :param headers: with their names in lower case.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = attrs.field(default=b"", repr=False)

    def all(self, name: str) -> list[str]:
        """The values of a header, whose name is in lower case."""
        return [value for known, value in self.headers if known == name]

    def first(self, name: str) -> str:
        """The first value of a header; empty if there is none."""
        return next(iter(self.all(name)), "")

    @property
    def is_daemons(self) -> bool:
        """Whether the daemon gave it. A proxy may hide or change each of the marks, but hardly all."""
        return (
            _DAEMON in self.all("server")
            or _EXPOSED in self.all("access-control-expose-headers")
            or any(value.startswith(_POLICY) for value in self.all("content-security-policy"))
        )

    @property
    def shown(self) -> str:
        """The status, and what stands in the text of an answer that is none of the daemon's."""
        if self.is_daemons:
            text = self.body.decode("utf-8", "replace").strip() if self.status >= 400 else ""
        else:
            title = self.body.decode("utf-8", "replace").partition("<title>")[2].partition("</title>")[0]
            text = " ".join(title.split())
        return f"{self.status} ({printable(text[:_SHOWN])})" if text else str(self.status)


def explain(answer: Answer, what: str, proxy: Proxy, limit: int, reached: bool) -> Finding:
    """What an answer means that is not the one that a client needs.

    :param what: was asked for.
    :param limit: ``MaxUploadSize`` as the configuration has it.
    :param reached: whether the daemon has been reached before, by the same path.
    """
    party, words, remedy = _of_daemon(answer, limit) if answer.is_daemons else _of_proxy(answer, proxy, reached)
    return problem(party, f"{what} is answered {answer.shown}: {words}", remedy)


def _of_daemon(answer: Answer, limit: int) -> tuple[Party, str, str]:
    match answer.status:
        case 401 | 403:
            return (
                Party.DAEMON,
                "the daemon has another Secret than the configuration given here, or the proxy changes the path",
                "compare Secret; the line that the daemon has just logged says what it makes of the signature",
            )
        case 404:
            return (
                Party.PROXY,
                "the path does not lie below UploadSubDir when it reaches the daemon",
                "pass the path on as it is (nginx: proxy_pass without a path), and end the URL in UploadSubDir",
            )
        case 413:
            return Party.DAEMON, f"MaxUploadSize of the running daemon is not {limit}", "reload the daemon"
        case 429:
            return Party.DAEMON, "too many connections from one address", "raise MaxConnectionsPerAddress"
        case 507:
            return Party.DAEMON, "the store has no room", "free some, or lower MinFreeSpace"
    return Party.DAEMON, "this is the daemon's answer, and its log says why", ""


def _of_proxy(answer: Answer, proxy: Proxy, reached: bool) -> tuple[Party, str, str]:
    status = answer.status
    if 300 <= status < 400:
        where = printable(answer.first("location").partition("?")[0][:200])
        words = f"it sends clients on to {where}, and those do not follow with an upload"
        return Party.XMPP_SERVER, words, "let the XMPP server hand out the URL that it leads to"
    if status == 400 and b"HTTPS port" in answer.body:
        return Party.CLIENT, "the port speaks TLS", "write https:// in the URL"
    if reached and status in _REPLACED:
        words = (
            "the proxy has put a page of its own in place of the daemon's answer, or a rule of its own forbids this"
        )
        return Party.PROXY, words, proxy.remedy("pages")
    if reached and status == 502:
        words = (
            "the proxy, which has reached the daemon before, breaks this off: a limit of its own, or the daemon ended"
        )
        return Party.PROXY, words, proxy.remedy("size")
    words, topic = _MEANINGS.get(status, ("", ""))
    if not words:
        words = "not the daemon but something before it answers"
        words += ", with a page of its own" if answer.first("content-type").startswith("text/html") else ""
        topic = "route"
    return Party.PROXY, words, proxy.remedy(topic)


_REPLACED = (400, 401, 403, 404, 409, 416, 500)
_UNREACHED = "the proxy does not reach the daemon: that does not run, or the proxy asks at a wrong address"
_MEANINGS = {
    401: ("something before the daemon asks for a password, and XMPP clients have none", "login"),
    403: ("a rule before the daemon forbids it", "forbidden"),
    404: ("the request does not reach the daemon", "route"),
    405: ("a web server that serves files by itself is asked, and not the daemon", "static"),
    407: ("something before the daemon asks for a password, and XMPP clients have none", "login"),
    408: ("the proxy has lost patience", "patience"),
    413: ("the proxy takes no body of this length", "size"),
    417: ("the proxy does not know Expect: 100-continue", "expect"),
    429: ("the proxy limits how often one asks", "rate"),
    502: (_UNREACHED, "upstream"),
    503: (_UNREACHED, "upstream"),
    504: (_UNREACHED, "upstream"),
}
