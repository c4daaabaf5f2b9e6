"""Chromium and Firefox, told what to do: open a link in a tab of its own, and look at what comes of it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import attrs

from tests.support import DEADLINE, eventually

_CHROMIUM_FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --mute-audio
    --disable-background-networking --disable-component-update --disable-sync --disable-extensions
    --autoplay-policy=no-user-gesture-required --remote-debugging-pipe
""".split()
_NARROW = 600
_ONLY_LOCAL = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
_FIREFOX_PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.download.folderList": 2,
    "browser.safebrowsing.downloads.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "extensions.update.enabled": False,
    "marionette.port": 0,
    "media.autoplay.default": 0,
    "media.cubeb.force_mock_context": True,  # sound without a sound card
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disableIPv6": True,
    "services.settings.server": "data:,",
    "toolkit.telemetry.server": "data:,",
}


class Refused(Exception):
    """What the browser says to a call that failed."""


@attrs.frozen
class Page:
    """A tab in which a link was opened.

    :param saved: whether the browser saved what it got instead of showing it.
    :param value: gives what a script in the tab gives; a promise is waited for.
    :param close: closes the tab.
    """

    saved: bool
    value: Callable[[str], Any] = attrs.field(repr=False)
    close: Callable[[], None] = attrs.field(repr=False)

    def comes_true(self, expression: str) -> None:
        """Wait until a script gives something true."""
        eventually(lambda: self.value(expression), what=expression)


@attrs.frozen
class Look:
    """A page, looked at.

    :param complaints: what the browser wrote to its console.
    :param asked: the URLs of all that was fetched.
    :param picture: of the whole page, as PNG.
    :param value: as that of a :class:`Page`.
    :param close: likewise.
    """

    complaints: list[str]
    asked: list[str]
    picture: bytes = attrs.field(repr=False)
    value: Callable[[str], Any] = attrs.field(repr=False)
    close: Callable[[], None] = attrs.field(repr=False)


class Browser(Protocol):
    """What the tests ask of a browser.

    :ivar name: of its program.
    """

    name: str

    def open(self, url: str) -> Page:
        """Open a link in a new tab, like one that was clicked in a chat, and wait until it is loaded."""
        ...

    def close(self) -> None:
        """End the browser."""
        ...


class Chromium:
    """Chromium, over its DevTools protocol.

    :param folder: for its profile, its downloads and its output.
    """

    name = "chromium"

    def __init__(self, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        program = shutil.which(self.name)
        assert program
        command = [program, *_CHROMIUM_FLAGS, _ONLY_LOCAL, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        # The protocol comes at descriptors 3 and 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash"]
        self._process = _start([*shell, *command], folder, (theirs_in, theirs_out))
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        # Downloads are what saves us here; they must be taken, not refused by the browser of this test.
        self._ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)

    def open(self, url: str) -> Page:
        self._events.clear()
        tab = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        self._ask("Page.enable", session)
        error = self._ask("Page.navigate", session, url=url).get("errorText", "")
        if error:
            assert error == "net::ERR_ABORTED", (url, error)  # this is how a download begins
            self._wait_for("Browser.downloadWillBegin", url=url)
        else:
            self._wait_for("Page.loadEventFired", session)
        return Page(
            bool(error),
            lambda expression: self._value(session, expression),
            lambda: self._close_tab(tab),
        )

    def _close_tab(self, tab: str) -> None:
        self._ask("Target.closeTarget", targetId=tab)

    def look(self, url: str, width: int, dark: bool) -> Look:
        """Open a link in a window of some width, on a device that likes it light or dark."""
        self._events.clear()
        tab = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Network", "Runtime"):
            self._ask(f"{domain}.enable", session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", session, features=[scheme])
        phone = width < _NARROW
        self._ask(
            "Emulation.setDeviceMetricsOverride", session, width=width, height=800, deviceScaleFactor=1, mobile=phone
        )
        self._ask("Page.navigate", session, url=url)
        self._wait_for("Page.loadEventFired", session)
        size = self._ask("Page.getLayoutMetrics", session)["cssContentSize"]
        picture = self._ask("Page.captureScreenshot", session, captureBeyondViewport=True, clip={**size, "scale": 1})
        complaints = [
            str(event["params"])
            for event in self._events
            if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        ]
        asked = [
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return Look(
            complaints,
            asked,
            base64.b64decode(picture["data"]),
            lambda expression: self._value(session, expression),
            lambda: self._close_tab(tab),
        )

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _value(self, session: str, expression: str) -> Any:
        result = self._ask("Runtime.evaluate", session, expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, (expression, result)
        return result["result"].get("value")

    def _ask(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
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
            self._events.append(answer)

    def _wait_for(self, method: str, session: str | None = None, **parameters: Any) -> None:
        """Wait for an event, which may have come already."""
        while not any(
            event["method"] == method
            and event.get("sessionId") == session
            and parameters.items() <= event["params"].items()
            for event in self._events
        ):
            self._events.append(self._message())

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE * 2
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, f"the browser ended with {self._process.wait()}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


class Firefox:
    """Firefox, over Marionette, the protocol below its WebDriver.

    :param folder: for its profile, its downloads and its output.
    """

    name = "firefox-esr"

    def __init__(self, folder: Path) -> None:
        profile, self._downloads = folder / "profile", folder / "downloads"
        profile.mkdir()
        self._downloads.mkdir()
        preferences = _FIREFOX_PREFERENCES | {"browser.download.dir": str(self._downloads)}
        lines = [f"user_pref({json.dumps(key)}, {json.dumps(value)});\n" for key, value in preferences.items()]
        (profile / "user.js").write_text("".join(lines))
        command = [self.name, "--headless", "--no-remote", "--marionette", "--profile", str(profile)]
        self._process = _start(command, folder)
        self._number = 0
        self._buffer = b""
        try:
            port_file = profile / "MarionetteActivePort"
            port = eventually(
                lambda: port_file.exists() and port_file.read_text(), DEADLINE * 3, what="Firefox starts"
            )
            self._socket = socket.create_connection(("127.0.0.1", int(port)), timeout=DEADLINE * 2)
            self._message()
            self._ask("WebDriver:NewSession", pageLoadStrategy="none")
        except BaseException:
            self._kill()
            raise

    def open(self, url: str) -> Page:
        tab = self._ask("WebDriver:NewWindow", type="tab")["handle"]
        before = set(self._downloads.iterdir())
        self._ask("WebDriver:SwitchToWindow", handle=tab)
        self._ask("WebDriver:Navigate", url=url)
        eventually(lambda: self._is_shown(tab) or set(self._downloads.iterdir()) - before, what=url)
        return Page(
            not self._is_shown(tab),
            lambda expression: self._value(tab, expression),
            lambda: self._close_tab(tab),
        )

    def _close_tab(self, tab: str) -> None:
        self._ask("WebDriver:SwitchToWindow", handle=tab)
        left = self._ask("WebDriver:CloseWindow")
        self._ask("WebDriver:SwitchToWindow", handle=left[0])

    def close(self) -> None:
        self._socket.close()
        self._kill()

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _is_shown(self, tab: str) -> bool:
        try:
            return bool(self._value(tab, "location.href !== 'about:blank' && document.readyState === 'complete'"))
        except Refused:
            return False  # the page is just being replaced

    def _value(self, tab: str, expression: str) -> Any:
        self._ask("WebDriver:SwitchToWindow", handle=tab)
        return self._ask("WebDriver:ExecuteScript", script=f"return {expression}", args=[])["value"]

    def _ask(self, method: str, **parameters: Any) -> Any:
        """Call a method and wait for its result."""
        self._number += 1
        message = json.dumps([0, self._number, method, parameters]).encode()
        self._socket.sendall(b"%d:%b" % (len(message), message))
        _, number, error, result = self._message()
        assert number == self._number
        if error is not None:
            raise Refused(method, parameters, error)
        return result

    def _message(self) -> Any:
        while b":" not in self._buffer:
            self._buffer += self._received()
        size, _, self._buffer = self._buffer.partition(b":")
        while len(self._buffer) < int(size):
            self._buffer += self._received()
        message, self._buffer = self._buffer[: int(size)], self._buffer[int(size) :]
        return json.loads(message)

    def _received(self) -> bytes:
        data = self._socket.recv(1 << 20)
        assert data, f"the browser ended with {self._process.wait()}"
        return data


def _start(command: list[str], folder: Path, descriptors: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    with (folder / "output").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=descriptors,
            start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
        )
