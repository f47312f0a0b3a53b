"""A real headless browser: pages as a reader sees them, at any width, light and dark.

Chromium's DevTools protocol over its pipe (file descriptors 3 and 4, JSON between null bytes), so
that neither a websocket nor a driver is needed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESKTOP = 390, 1280
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # root in a container has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    # Whatever asks for a name gets no answer, and the event is seen.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)


def found() -> str | None:
    """The browser's program; None if there is none on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """One tab."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, session=self.session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def open(self, path: Path, *, width: int = DESKTOP, dark: bool = False, script: bool = True):
        """Load a file at a width in CSS pixels."""
        self.requests.clear(), self.errors.clear()
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, mobile=mobile,
                  deviceScaleFactor=2 if mobile else 1)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.browser.loaded.discard(self.session)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.browser.wait(lambda: self.session in self.browser.loaded)
        return self

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True,
                         clip=self._whole())  # fmt: skip
        file.write_bytes(base64.b64decode(shot["data"]))

    def _whole(self) -> dict[str, float]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


class Browser:
    """The running browser."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads from 3 and writes to 4; a shell puts them there in any process.
        command = [program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        plumbing = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", plumbing, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        os.close(to_browser), os.close(from_browser)
        self._rest, self._number = b"", 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}
        self.loaded: set[str] = set()

    def page(self) -> Page:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait(self, until, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not until():
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            got = os.read(self._read, 1 << 20)
            assert got, "the browser has ended"
            *messages, self._rest = (self._rest + got).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        page = self._pages.get(message.get("sessionId", ""))
        if page is None:
            return
        kind, params = message["method"], message["params"]
        if kind == "Page.loadEventFired":
            self.loaded.add(page.session)
        elif kind == "Network.requestWillBeSent":
            page.requests.append(params["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            page.errors.append(str(params["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled":
            page.errors.append(str(params["args"]))
        elif kind == "Log.entryAdded":
            page.errors.append(params["entry"]["text"])

    def close(self) -> None:
        try:
            self.call("Browser.close")
        except (AssertionError, OSError):
            self.process.kill()
        self.process.wait(30)
        os.close(self._write), os.close(self._read)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start the browser; it ends with the block."""
    program = found()
    assert program is not None
    running = Browser(program, profile)
    try:
        yield running
    finally:
        running.close()
