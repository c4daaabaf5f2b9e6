"""The status page in a real browser, on a phone and on a screen, light and dark.

``PICTURES`` names a folder to keep what it looked like in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.neighbours.browser import Chromium
from tests.support import Daemon, Wire, eventually, need, put_head, v

NAME = "b" * 56 + ".example"
LONG = "x" * 120 + " <b>&.jpg"
WIDEST = """
    Math.max(document.documentElement.scrollWidth, ...[...document.querySelectorAll('body *')].map(
        (element) => Math.ceil(element.getBoundingClientRect().right)
    ))
"""
CONTRAST = """
    (() => {
        const light = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).map((part) => {
                const share = part / 255;
                return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const back = light(getComputedStyle(document.querySelector('section')).backgroundColor);
        return Math.min(...[...document.querySelectorAll('section *')].map((element) => {
            const front = light(getComputedStyle(element).color);
            return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        }));
    })()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    need("chromium")
    made = Chromium(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon of which there is much to tell: all of it as long as it can be."""
    folder = tmp_path_factory.mktemp("status")
    host = {"Name": NAME, "UploadSubDir": "b/", "StoreDir": str(folder / ("store-" + "y" * 100))}
    daemon = Daemon(folder, hosts=[host], Workers=2, StatusDetails=True, TrustedProxies=[], RedisAddr="127.0.0.1:1")
    daemon.start()
    eventually(lambda: daemon.ready()[0] == 200, what="both workers run")
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def busy(daemon: Daemon) -> Iterator[Daemon]:
    """The same, with uploads that run, and some that were refused."""
    for number in range(9):
        assert daemon.put(f"4f2a{number}/a.bin", bytes(number << 16)).status == 201
        assert daemon.get(f"4f2a{number}/a.bin").status == 200
        assert daemon.request("PUT", f"/upload/4f2a/{number}{LONG.replace(' ', '%20')}?v={v('x', 5)}").status == 403
    assert daemon.put("4f2a8/a.bin", b"other").status == 409
    assert daemon.get("none/a.bin").status == 404
    wires: list[Wire] = []
    for number, came in enumerate((1 << 18, 3 << 20)):
        wires.append(daemon.wire())
        wires[-1].send(put_head(f"{number}/{LONG}", 4 << 20) + bytes(came))
    eventually(lambda: daemon.metric("hmac_file_server_uploads_in_progress", '{host="upload"}') == 2)
    yield daemon
    for wire in wires:
        wire.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits(chromium: Chromium, busy: Daemon, width: int, dark: bool, request: pytest.FixtureRequest) -> None:
    """Nothing is wider than the window, all can be read, nothing is complained of, and nobody else is asked."""
    url = f"http://127.0.0.1:{busy.metrics_port}/"
    look = chromium.look(url, width, dark)
    if folder := os.environ.get("PICTURES"):
        Path(folder, f"{request.node.callspec.id}.png").write_bytes(look.picture)
    assert look.value("innerWidth") == width
    assert look.value(WIDEST) <= width
    assert look.value(CONTRAST) >= 4.5
    assert look.complaints == []
    assert {asked for asked in look.asked if not asked.startswith("data:")} == {url}
    text = look.value("document.body.innerText")
    for words in (LONG, NAME, "signature", "of 4.0 MiB", "not connected; uploads go on without it"):
        assert words in text
    assert look.value("document.querySelectorAll('progress').length") == 4
    assert look.value("document.querySelector('section > :not(h2) svg path').getBBox().height") > 0
    look.close()


def test_it_renews_itself(chromium: Chromium, daemon: Daemon) -> None:
    """Without any script, the page comes anew by itself."""
    look = chromium.look(f"http://127.0.0.1:{daemon.metrics_port}/", 1280, False)
    look.value("(window.seen = true, 1)")
    eventually(lambda: not look.value("window.seen"), what="the page is another one")
    assert look.value("document.scripts.length") == 0
    look.close()
