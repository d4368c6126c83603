"""A real browser without a window, for pages that are made here: Debian's chromium, over the pipes
of its own protocol (Chrome DevTools), so that no driver and no package is needed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_ANSWER_SECONDS = 60.0
# Messages of the console that are no errors.
_HARMLESS = ("log", "info", "debug", "verbose")


def find_browser() -> str | None:
    """Returns the path of a browser on this machine; `None`: there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Browser:
    """A running browser with one page.

    Attributes:
      complaints: errors and warnings of the console, exceptions, and requests that failed, of the
        page that was opened last.
      requested: the addresses that it asked for.
    """

    process: subprocess.Popen[bytes]
    commands: int
    answers: int
    complaints: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    _buffer: bytes = b""
    _number: int = 0
    _session: str | None = None

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result; raises `RuntimeError` where it is refused."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def start_page(self) -> None:
        """Makes the page, and has it say what goes wrong on it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, path: Path, *, width: int, height: int = 800, is_dark: bool = False) -> None:
        """Shows a file in a window of this size, and waits until it is loaded."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.complaints.clear()
        self.requested.clear()
        self.send("Page.navigate", url=path.absolute().as_uri())
        while self.evaluate("document.readyState") != "complete" or not str(
            self.evaluate("location.href")
        ).startswith("file:"):
            pass

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression on the page."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def screenshot(self, *, is_whole: bool = False) -> bytes:
        """Returns a PNG of what the window shows, or of the whole page."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=is_whole)["data"]
        return base64.b64decode(data)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.answers], [], [], _ANSWER_SECONDS)
            piece = os.read(self.answers, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError("the browser does not answer")
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] not in _HARMLESS:
                self.complaints.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] not in _HARMLESS:
                self.complaints.append(params["entry"]["text"])
            case "Network.loadingFailed":
                self.complaints.append(f"not loaded: {params.get('errorText')}")
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])


@contextlib.contextmanager
def running_browser(path: str) -> Iterator[Browser]:
    """Starts a browser with one page, and ends it and its processes."""
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    with tempfile.TemporaryDirectory(
        prefix="lerobot-grain-browser-", ignore_cleanup_errors=True
    ) as profile:
        # The browser reads its commands from descriptor 3 and writes answers to 4.
        script = f'exec 5<&{command_read} 6>&{answer_write}; exec 3<&5 4>&6; exec "$@"'
        process = subprocess.Popen(
            [
                *("bash", "-c", script, "bash", path),
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
            ],
            pass_fds=(command_read, answer_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(command_read)
        os.close(answer_write)
        browser = Browser(process, command_write, answer_read)
        try:
            browser.start_page()
            yield browser
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(command_write)
            os.close(answer_read)
