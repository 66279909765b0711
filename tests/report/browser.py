"""A headless Chromium at the other end of two pipes: the browser's own protocol, no driver and no port."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-extensions", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
LAUNCH = "import os, sys; [os.dup2(int(fd), to) for fd, to in zip(sys.argv[1:3], (33, 34))]; os.dup2(33, 3); os.dup2(34, 4); os.execv(sys.argv[3], sys.argv[3:])"  # noqa: E501
"""The protocol's pipes are descriptors 3 and 4 of the browser."""
WAIT = 60.0


@cache
def found() -> str | None:
    """The path of a browser that starts, or None: some distributions ship a script that only points elsewhere."""
    for path in filter(None, map(shutil.which, NAMES)):
        if subprocess.run([path, "--version"], check=False, capture_output=True).returncode == 0:
            return path
    return None


class Browser:
    """One page. troubles: console errors, exceptions and requests that left the machine, as text."""

    def __init__(self, profile: Path):
        path = found()
        assert path is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), path, *FLAGS, *root,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, ""
        self.troubles: list[str] = []
        self._loaded = 0
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a file at a window size and colour scheme, and wait until its script is done."""
        self.resize(width, height)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        before = self._loaded
        self("Page.navigate", url=path.resolve().as_uri())
        while self._loaded == before:
            self._note(self._read())
        self.wait("document.documentElement.dataset.ready === 'yes' || document.contentType !== 'text/html'")

    def resize(self, width: int, height: int) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + WAIT
        while not self.js(condition):
            assert time.monotonic() < end, f"never true: {condition}; {self.troubles}"
            time.sleep(0.02)

    def middle(self, element: str) -> tuple[float, float]:
        """Where the middle of an element (an expression) is in the window, after scrolling to it."""
        self.js(f"({element}).scrollIntoView({{block: 'center'}})")
        take = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        box = self.js(f"{take}(({element}).getBoundingClientRect())")
        return box[0], box[1]

    def move(self, x: float, y: float) -> None:
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        self("Input.dispatchKeyEvent", type="keyDown", key=name, code=name)
        self("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)

    def picture(self, path: Path, whole: bool = True) -> None:
        data = self(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **(self._whole() if whole else {})
        )
        path.write_bytes(base64.b64decode(data["data"]))

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _whole(self) -> dict[str, Any]:
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], WAIT)
            part = os.read(self._in, 1 << 20) if ready else b""
            assert part, "the browser says nothing"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, p = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Runtime.exceptionThrown":
            details = p["exceptionDetails"]
            self.troubles.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
            self.troubles.append(f"console {p['type']}: {p['args']}")
        elif method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
            self.troubles.append(p["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not p["request"]["url"].startswith(("file:", "data:")):
            self.troubles.append(f"request {p['request']['url']}")
