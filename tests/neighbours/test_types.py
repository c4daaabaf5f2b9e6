"""What browsers make of the types of files: of odd ones, and of those that a page could use as code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.neighbours.browser import Browser
from tests.neighbours.elsewhere import Elsewhere
from tests.neighbours.upload import upload
from tests.support import Daemon, eventually, missing

SCRIPT = "fetch('$B/ran/$L')"
HTML = f'<!doctype html><html><body onload="{SCRIPT}"><script>{SCRIPT}</script><img src="$B/img/$L"></body></html>'

ESSENCES = """
    text/html text/plain text/xml text/javascript text/css text/xsl text/vtt text/x-html text/event-stream
    text/calendar image/png image/svg+xml image/x image/gif image/jpeg image/vnd.microsoft.icon
    application/xhtml+xml application/xml application/pdf application/json application/octet-stream
    application/javascript application/x-shockwave-flash application/mathml+xml application/rss+xml
    application/vnd.mozilla.xul+xml application/signed-exchange application/x-xpinstall application/x-x509-ca-cert
    application/http-index-format application/x-unknown-content-type application/x-view-source application/wasm
    application/hta video/mp4 audio/mpeg multipart/x-mixed-replace multipart/mixed multipart/related message/rfc822
    font/woff2 model/gltf-binary x-world/x-vrml unknown/unknown chemical/x
""".split()
ODD = [
    b"image/png;,text/html", b'image/png;x=",text/html', b'image/png;x="\\",text/html"', b"image/png,text/html",
    b"text/html,image/png", b"image/png, text/html", b"image/png;x=y,text/html", b"image/png;x=text/html",
    b'image/svg+xml;x=",text/html', b"image/svg+xml,image/png", b"image/png,image/svg+xml",
    b'image/png;x=",image/svg+xml',
    b'application/pdf;x=",text/html', b"application/pdf,text/html", b'image/png;x=",application/pdf',
    b'text/plain;x=",text/html', b"text/plain,text/html", b"text/plain;charset=utf-8,text/html",
    b'text/plain;charset="utf-8,text/html', b"text/plain;charset=utf-7", b"text/plain;charset=utf-16",
    b"text/html;charset=utf-7", b"text/html;,image/png", b"text/html image/png", b"image/png text/html",
    b"image/png\ttext/html", b"image/png;text/html", b"image/png/text/html", b"image/png\\text/html", b"image\\png",
    b"IMAGE/PNG", b"Image/Png;X=Y", b" image/png ", b"image/png;", b"image/png;;", b"image /png", b"image/ png",
    b"/png", b"image/", b"image", b"/", b";", b",", b",text/html", b";text/html", b"text/html;", b"text/html,",
    b"*/*", b"image/*", b"*/html", b"text/*", b"text/htm", b"text/html5", b"html", b"<html>", b"text/html\x0b",
    b"text/html\x0c", b"text/html\x7f", b"image/png\x00text/html", b"image/png\x00", b"\x00text/html",
    b"image/png\r\n\r\n<script>", b"image/png\r\nContent-Type: text/html", b"image/png\ntext/html", b"image/png\r;x",
    b"image/png\r\n ;x=y", b"text/\xffhtml", b"text/html;\xff", b"\xef\xbb\xbftext/html", "tëxt/html".encode(),
    "image/png;x=ü,text/html".encode(), b"image/png;x='", b"image/png;x='\",text/html'", b"'image/png'",
    b'"image/png"',
    b'"image/png",text/html', b"(comment)text/html", b"text/html(comment)", b"text/html;q=0.1,image/png;q=0.9",
    b"data:text/html,x", b"text/html:", b"text:html", b"text/html#", b"text/html?", b"image/png=text/html",
    b"x" * 127 + b"/" + b"y" * 127, b"x" * 200 + b"/html", b"image/png;" + b" " * 200 + b",text/html",
    b"application/x-",
]  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all of these tests."""
    daemon = Daemon(tmp_path_factory.mktemp("types")).start()
    yield daemon
    daemon.stop()


def typed(daemon: Daemon, elsewhere: Elsewhere, folder: str) -> dict[str, bytes]:
    """Upload a page under each type, some signed, others as only somebody else may have left them in the store."""
    found = {}
    for number, value in enumerate([*(essence.encode() for essence in ESSENCES), *ODD]):
        path = f"{folder}/{number}"
        content = elsewhere.content(HTML, f"{number}-")
        is_text = value.isascii() and value.decode().isprintable() and value == value.strip()
        upload(daemon, path, content, value.decode() if is_text else "")
        if not is_text:
            try:
                os.setxattr(daemon.store / path, "user.mime_type", value)
            except OSError:
                missing("the file system has no extended attributes")
        found[path] = value
    return found


def test_odd_types(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """Each browser reads of each type just what we say, and neither runs it nor shows it as anything else."""
    types = typed(daemon, elsewhere, f"{browser.name}-odd")
    base = f"http://127.0.0.1:{daemon.port}/upload/"
    client = browser.open(elsewhere.page("/client.html", "text/html", b"<!doctype html>"))
    urls = json.dumps([base + path for path in types])
    # What "extract a MIME type" of the Fetch standard gives in this browser.
    read = client.value(f"Promise.all({urls}.map(async url => (await (await fetch(url)).blob()).type))")
    for (path, value), understood in zip(types.items(), read, strict=True):
        headers = daemon.get(path).headers
        essence = headers["content-type"].partition(";")[0]
        assert understood.replace(" ", "") == headers["content-type"].replace(" ", ""), value
        assert essence not in ("text/javascript", "text/css", "application/json", "application/wasm"), value
        page = browser.open(base + path)
        if not page.saved:
            assert headers["content-disposition"].startswith("inline"), value
            assert page.value("document.contentType") in (essence, "text/html"), value  # a player has a page around it
            assert page.value("document.querySelectorAll('script:not([src^=\"chrome:\"])').length") == 0, value
        page.close()
    control = browser.open(elsewhere.page("/control.html", "text/html", elsewhere.content(HTML, "control")))
    eventually(lambda: elsewhere.called("ran", "img", label="control"))
    control.close()
    client.close()
    assert [call for call in elsewhere.calls if call.startswith(("/ran/", "/img/")) and "control" not in call] == []


def test_the_proof_can_fail(browser: Browser, elsewhere: Elsewhere) -> None:
    """Served as they are, odd types run as pages, also some that begin like a picture."""
    for number, value in enumerate(["text/html;", "image/png,text/html", "image/png;,text/html"]):
        label = f"proof-{number}"
        page = browser.open(elsewhere.page(f"/{label}", value, elsewhere.content(HTML, label)))
        eventually(lambda label=label: elsewhere.called("ran", label=label), what=value)
        page.close()


# Files that a page may use as code, and what they are.
CODE = {
    "script.js": ("text/javascript", b"document.title += ' script';"),
    "module.mjs": ("text/javascript", b"export const x = 1;"),
    "worker.js": ("application/javascript", b"self.postMessage(1);"),
    "shared.js": ("text/javascript", b"onconnect = event => event.ports[0].postMessage(1);"),
    "service.js": ("text/javascript", b"self.x = 1;"),
    "imported.js": ("text/javascript", b"self.imported = true;"),
    "sheet.css": ("text/css", b"body { color: rgb(1, 2, 3) }"),
    "data.json": ("application/json", b'{"a": 1}'),
    "more.json": ("application/ld+json", b'{"a": 1}'),
    "empty.wasm": ("application/wasm", b"\0asm\1\0\0\0"),
}
TRIES = """
    const at = location.hash.slice(1), results = {}, tried = [];
    function attempt(name, promise) {
        tried.push(promise.then(() => { results[name] = true; }, () => { results[name] = false; }));
    }
    function element(name, properties) {
        return new Promise((done, failed) => {
            document.head.append(Object.assign(
                document.createElement(name), properties, {onload: done, onerror: failed}));
        });
    }
    function message(worker, port) {
        return new Promise((done, failed) => { port.onmessage = done; worker.onerror = failed; });
    }
    function started(make) {
        try { return make(); } catch (error) { return Promise.reject(error); }
    }
    attempt("script", element("script", {src: at + "script.js"}));
    attempt("module script", element("script", {type: "module", src: at + "module.mjs"}));
    attempt("stylesheet", element("link", {rel: "stylesheet", href: at + "sheet.css"}));
    attempt("module", import(at + "module.mjs"));
    attempt("json", import(at + "data.json", {with: {type: "json"}}));
    attempt("more json", import(at + "more.json", {with: {type: "json"}}));
    attempt("worker", started(() => { const one = new Worker(at + "worker.js"); return message(one, one); }));
    attempt("module worker", started(() => {
        const one = new Worker(at + "worker.js", {type: "module"}); return message(one, one); }));
    attempt("shared worker", started(() => {
        const one = new SharedWorker(at + "shared.js"); return message(one, one.port); }));
    attempt("imported script", new Promise((done, failed) => {
        const one = new Worker("/importing.js" + location.hash);
        one.onmessage = event => event.data ? done() : failed();
        one.onerror = failed;
    }));
    attempt("service worker", navigator.serviceWorker.register(at + "service.js").then(one => one.unregister()));
    attempt("wasm", WebAssembly.compileStreaming(fetch(at + "empty.wasm")));
    window.finished = Promise.race([Promise.all(tried), new Promise(done => setTimeout(done, 15000))]).then(
        () => results);
"""
IMPORTING = """
    let imported = false;
    try { importScripts(location.hash.slice(1) + "imported.js"); imported = self.imported === true; } catch (error) {}
    postMessage(imported);
"""
POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'"


def tries(browser: Browser, elsewhere: Elsewhere, at: str) -> dict[str, bool]:
    """What a page of a site whose policy trusts only that site could use of the files below a path."""
    elsewhere.page("/tries.js", "text/javascript", TRIES.encode())
    elsewhere.page("/importing.js", "text/javascript", IMPORTING.encode())
    content = b'<!doctype html><html><head></head><body><script src="/tries.js"></script></body></html>'
    page = browser.open(elsewhere.page("/tries.html", "text/html", content, Content_Security_Policy=POLICY) + f"#{at}")
    results = page.value("window.finished")
    page.close()
    return dict(results)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "extension"])
def test_no_page_can_use_a_file_as_code(browser: Browser, daemon: Daemon, elsewhere: Elsewhere, signed: bool) -> None:
    """A page of the daemon's own host, whose policy trusts that host, gets no script, style or worker from uploads."""
    folder = f"{browser.name}-code-{signed}"
    for name, (media_type, content) in CODE.items():
        upload(daemon, f"{folder}/{name}", content, media_type if signed else "")
    elsewhere.daemon_port = daemon.port
    results = tries(browser, elsewhere, f"/upload/{folder}/")
    assert [name for name, worked in results.items() if worked] == []
    assert len(results) > 10


def test_the_proof_with_code_can_fail(browser: Browser, elsewhere: Elsewhere) -> None:
    """The same files under their own types are used."""
    for name, (media_type, content) in CODE.items():
        elsewhere.page(f"/code/{name}", media_type, content)
    results = tries(browser, elsewhere, "/code/")
    assert [name for name, worked in results.items() if not worked] == []
    assert len(results) > 10
