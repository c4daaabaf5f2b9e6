"""What browsers show of what phones and other browsers save: links opened by themselves, and in a page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.bearer import token
from tests.neighbours.browser import Browser, Page
from tests.neighbours.elsewhere import Elsewhere
from tests.neighbours.upload import upload
from tests.support import SECRET, Daemon, eventually, need, v, v2

FILM = "-f lavfi -i testsrc=duration=6:size=64x64:rate=10"
SOUND = "-f lavfi -i sine=duration=6"
PICTURE = "-f lavfi -i testsrc=duration=1:size=64x64:rate=1 -frames:v 1"
H264 = f"{FILM} {SOUND} -c:v libx264 -pix_fmt yuv420p -c:a aac"
BOTH = {"chromium", "firefox-esr"}

# A name, how ffmpeg makes it, and who must show it; others may save it.
MEDIA = {
    "film.mp4": (H264, BOTH),
    "begins-early.mp4": (f"{H264} -movflags +faststart", BOTH),
    "film.m4v": (H264, BOTH),
    "film.mov": (H264, {"firefox-esr"}),
    "film.3gp": (H264, {"chromium"}),
    "film.mkv": (H264, {"chromium"}),
    "vp8.webm": (f"{FILM} {SOUND} -c:v libvpx -c:a libvorbis", BOTH),
    "vp9.webm": (f"{FILM} {SOUND} -c:v libvpx-vp9 -c:a libopus", BOTH),
    "silent.webm": (f"{FILM} -c:v libvpx", BOTH),
    "sound.mp3": (SOUND, BOTH),
    "sound.m4a": (SOUND, BOTH),
    "book.m4b": (f"{SOUND} -f ipod", BOTH),
    "sound.aac": (SOUND, BOTH),
    "sound.flac": (SOUND, BOTH),
    "sound.wav": (SOUND, {"chromium"}),
    "sound.mka": (SOUND, {"chromium"}),
    "vorbis.ogg": (f"{SOUND} -c:a libvorbis", BOTH),
    "voice.oga": (f"{SOUND} -c:a libopus", BOTH),
    "voice.opus": (f"{SOUND} -c:a libopus", BOTH),
    "voice.weba": (f"{SOUND} -c:a libopus -f webm", BOTH),
    "long.flac": ("-f lavfi -i anoisesrc=duration=150:sample_rate=48000 -ac 2", BOTH),
    "film.avi": (H264, set()),
    "film.mts": (H264, set()),
    "film.mpg": (f"{FILM} -c:v mpeg1video -r 25", set()),
    "sound.aiff": (SOUND, set()),
    "sound.caf": (SOUND, set()),
}
PICTURES = {
    "picture.png": (PICTURE, BOTH),
    "animated.apng": (f"{FILM} -frames:v 3 -f apng -plays 0", BOTH),
    "picture.gif": (PICTURE, BOTH),
    "picture.jpg": (PICTURE, BOTH),
    "download.jfif": (f"{PICTURE} -f mjpeg", BOTH),
    "picture.webp": (PICTURE, BOTH),
    "picture.avif": (f"{PICTURE} -c:v libaom-av1 -still-picture 1", BOTH),
    "picture.bmp": (PICTURE, BOTH),
    "picture.ico": (PICTURE, BOTH),
    "picture.jxl": (PICTURE, set()),
    "picture.tiff": (PICTURE, set()),
    "picture.jp2": (PICTURE, set()),
}
PLAYER = "document.querySelector('video, audio')"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all of these tests; each file has a folder of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("shown")).start()
    yield daemon
    daemon.stop()


def put(daemon: Daemon, name: str, content: bytes, media_type: str = "") -> str:
    """Upload a file; its URL."""
    return upload(daemon, f"{os.urandom(8).hex()}/{name}", content, media_type)


@cache
def made(name: str) -> bytes:
    """A file that ffmpeg made."""
    need("ffmpeg")
    arguments, _ = (MEDIA | PICTURES)[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        command = ["ffmpeg", "-v", "error", "-y", *arguments.split(), "-strict", "experimental", str(path)]
        subprocess.run(command, check=True, timeout=120)
        return path.read_bytes()


def plays(page: Page, seconds: int) -> None:
    """Check that the page's player plays, and plays on from near its end."""
    page.comes_true(f"{PLAYER}.readyState >= 2")
    assert seconds - 2 < page.value(f"{PLAYER}.duration") < seconds + 1  # Of AAC without a container it is a guess.
    page.value(f"({PLAYER}.muted = true, {PLAYER}.play(), 1)")
    page.comes_true(f"{PLAYER}.currentTime > 0.2")
    page.value(f"({PLAYER}.currentTime = {seconds - 2}, 1)")
    page.comes_true(f"!{PLAYER}.seeking && {PLAYER}.currentTime >= {seconds - 2} && {PLAYER}.readyState >= 2")


@pytest.mark.parametrize("name", sorted(MEDIA.keys() - {"long.flac"}))
def test_sound_and_films(browser: Browser, daemon: Daemon, name: str) -> None:
    """A link to sound or a film, opened by itself, plays from any place; what the browser can not play is saved."""
    page = browser.open(put(daemon, name, made(name)))
    if browser.name in MEDIA[name][1]:
        assert not page.saved
    if not page.saved:
        plays(page, 6)
    page.close()


def test_far_into_a_long_file(browser: Browser, daemon: Daemon) -> None:
    """Who goes on from near the end is sent that part alone."""
    url = put(daemon, "long.flac", made("long.flac"))
    page = browser.open(url)
    plays(page, 150)
    assert re.search(rf"GET {urlsplit(url).path} 206", daemon.log)
    page.close()


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(browser: Browser, daemon: Daemon, name: str) -> None:
    """A link to a picture, opened by itself, shows it; what the browser does not know is saved."""
    page = browser.open(put(daemon, name, made(name)))
    if browser.name in PICTURES[name][1]:
        assert not page.saved
    if not page.saved:
        page.comes_true("document.images[0].complete && document.images[0].naturalWidth === 64")
    page.close()


def test_a_page_of_the_browsers_own(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """The page that a browser makes around a picture, a film or text looks as if we had set no policy."""
    # A tab in the background stops in the middle of a picture's fading in.
    look = """(document.getAnimations().forEach(animation => animation.finish()),
        [...document.querySelectorAll("html, body, img, video, pre")].map(element => {
            const style = getComputedStyle(element);
            return ["backgroundColor", "color", "margin", "position", "whiteSpace", "width", "height", "display"].map(
                name => style[name]).join(" ");
        }))"""
    for name, media_type, content in (
        ("picture.png", "image/png", made("picture.png")),
        ("film.mp4", "video/mp4", made("film.mp4")),
        ("long.txt", "text/plain; charset=utf-8", b"a long line " * 200),
    ):
        ours = browser.open(put(daemon, name, content))
        theirs = browser.open(elsewhere.page(f"/{name}", media_type, content))
        for page in (ours, theirs):
            page.comes_true(
                "[...document.images].every(image => image.naturalWidth)"
                " && [...document.querySelectorAll('video')].every(video => video.readyState >= 2)"
            )
        eventually(lambda ours=ours, theirs=theirs: ours.value(look) == theirs.value(look), what=name)
        ours.close()
        theirs.close()


TEXT = "Grüße, 日本語, Привет: 🎉\n"


@pytest.mark.parametrize(
    ("name", "media_type", "encoding"),
    [
        ("letter.txt", "", "utf-8"),
        ("daemon.log", "", "utf-8"),
        ("letter", "text/plain", "utf-8"),
        ("letter", "text/plain; charset=utf-8", "utf-8"),
        ("letter", 'TEXT/PLAIN;Charset="UTF-8";format=flowed', "utf-8"),
        ("letter", "text/plain; charset=unheard-of", "utf-8"),
        ("letter", "text/plain; charset=utf-16le", "utf-16le"),
    ],
)
def test_text(browser: Browser, daemon: Daemon, name: str, media_type: str, encoding: str) -> None:
    """Text is shown as it was written, in whatever language."""
    page = browser.open(put(daemon, name, TEXT.encode(encoding), media_type))
    assert not page.saved
    assert page.value("document.body.textContent") == TEXT
    page.close()


@pytest.mark.parametrize(("charset", "text"), [("iso-8859-1", "Grüße"), ("koi8-r", "Привет"), ("shift_jis", "日本語")])
def test_text_in_another_charset(browser: Browser, daemon: Daemon, charset: str, text: str) -> None:
    """Text whose signed type names its charset is shown in that."""
    page = browser.open(put(daemon, "old.txt", text.encode(charset), f"text/plain; charset={charset}"))
    assert page.value("document.body.textContent") == text
    page.close()


@pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "plain"])
@pytest.mark.parametrize("asked", ["", " crossorigin=anonymous"], ids=["no-cors", "cors"])
def test_in_a_page_of_another_site(
    browser: Browser, daemon: Daemon, elsewhere: Elsewhere, isolated: bool, asked: str
) -> None:
    """A web client shows pictures and plays sound and films, also where it is cross-origin isolated."""
    names = ("picture.png", "picture.svg", "film.mp4", "sound.mp3")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="9" height="9"/></svg>'
    picture, drawing, film, sound = (put(daemon, name, svg if name == "picture.svg" else made(name)) for name in names)
    content = f"""<!doctype html><img src="{picture}"{asked}><img src="{drawing}"{asked}>
        <video src="{film}" muted{asked}></video><audio src="{sound}" muted{asked}></audio>"""
    headers = {}
    if isolated:
        headers = {"Cross_Origin_Opener_Policy": "same-origin", "Cross_Origin_Embedder_Policy": "require-corp"}
    page = browser.open(elsewhere.page("/page.html", "text/html", content.encode(), **headers))
    assert page.value("window.crossOriginIsolated") == isolated
    page.comes_true("[...document.images].every(image => image.naturalWidth === 64)")
    page.comes_true("[...document.querySelectorAll('video, audio')].every(player => player.readyState >= 2)")
    page.close()


def test_a_script_of_another_site_reads(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """A web client can fetch a file or a part of it, draw a picture on a canvas, and tell why it was refused."""
    picture = put(daemon, "picture.png", made("picture.png"))
    text = put(daemon, "letter.txt", TEXT.encode())
    page = browser.open(elsewhere.page("/page.html", "text/html", b"<!doctype html><title>client</title>"))
    assert page.value(f"fetch({json.dumps(text)}).then(answer => answer.text())") == TEXT
    asked = json.dumps({"headers": {"Range": "bytes=0-1"}})
    part = f"fetch({json.dumps(text)}, {asked}).then(async answer => [answer.status, await answer.text()])"
    assert page.value(part) == [206, "Gr"]
    assert page.value(f"fetch({json.dumps(text + 'x')}).then(answer => answer.status)") == 404
    drawn = f"""new Promise((done, failed) => {{
        const image = new Image(), canvas = document.createElement("canvas");
        image.crossOrigin = "anonymous";
        image.onerror = failed;
        image.onload = () => {{
            canvas.getContext("2d").drawImage(image, 0, 0);
            done(canvas.toDataURL().slice(0, 15));
        }};
        image.src = {json.dumps(picture)};
    }})"""
    assert page.value(drawn) == "data:image/png;"
    page.close()


def test_a_script_of_another_site_uploads(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """A web client can put with each header that a slot may carry (XEP-0363), and is told of a refusal."""
    page = browser.open(elsewhere.page("/page.html", "text/html", b"<!doctype html><title>client</title>"))
    base, folder = f"http://127.0.0.1:{daemon.port}/upload/", os.urandom(8).hex()
    carried = {"Authorization": "Basic YTpi", "Cookie": "a=b", "Expires": "Thu, 01 Jan 2037 00:00:00 GMT"}

    def url(name: str, kind: str, media_type: str = "") -> str:
        path = f"{folder}/{name}"
        signature = v2(path, 5, media_type) if kind == "v2" else v(path, 5)
        return json.dumps(f"{base}{quote(path)}?{kind}={signature}")

    def status(name: str, kind: str, headers: dict[str, str]) -> int:
        given = json.dumps({"method": "PUT", "headers": headers, "body": "hello"})
        asked = url(name, kind, headers.get("Content-Type", ""))
        return int(page.value(f"fetch({asked}, {given}).then(answer => answer.status)"))

    assert status("a.txt", "v", carried) == 201
    assert status("b c.png", "v2", {"Content-Type": "image/png"}) == 201
    conditional = carried | {"Content-Type": "text/plain", "If-None-Match": "*"}
    assert status("d.txt", "v", conditional) == 201
    assert status("d.txt", "v", conditional) == 412
    assert status("e.txt", "token", carried) == 403
    # As Converse does it, which sends an empty type for a file that it does not know.
    for name, media_type in (("f.jpg", "image/jpeg"), ("g", "")):
        sent = f"""new Promise((done, failed) => {{
            const request = new XMLHttpRequest();
            let told = 0;
            request.upload.onprogress = () => {{ told++; }};
            request.onload = () => done([request.status, told > 0]);
            request.onerror = failed;
            request.open("PUT", {url(name, "v2", media_type)}, true);
            request.setRequestHeader("Content-Type", {json.dumps(media_type)});
            request.send(new Blob(["hello"]));
        }})"""
        assert page.value(sent) == [201, True]
    assert {path.name for path in (daemon.store / folder).iterdir()} == {"a.txt", "b c.png", "d.txt", "f.jpg", "g"}
    page.close()


def test_a_web_client_uploads_with_a_token(browser: Browser, daemon: Daemon, elsewhere: Elsewhere) -> None:
    """The token of mod_http_file_share passes the browser's preflight, and the reason of a refusal can be read."""
    page = browser.open(elsewhere.page("/page.html", "text/html", b"<!doctype html><title>client</title>"))
    path = f"{os.urandom(8).hex()}/a b.png"
    url = json.dumps(f"http://127.0.0.1:{daemon.port}/upload/{quote(path)}")
    for secret, said in ((SECRET, [201, None]), ("wrong", [401, 'Bearer error="invalid_token"'])):
        headers = {"Authorization": f"Bearer {token(path, 5, secret).decode()}", "Content-Type": "image/png"}
        given = json.dumps({"method": "PUT", "headers": headers, "body": "hello"})
        told = 'answer => [answer.status, (answer.headers.get("WWW-Authenticate") || "").split(",")[0] || null]'
        assert page.value(f"fetch({url}, {given}).then({told})") == said
    page.close()
