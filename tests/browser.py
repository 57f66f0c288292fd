"""A headless Chromium that is driven through a pipe, by the DevTools protocol.

python tests/browser.py runs/mnist/explorer.html    # size, start and speed of a page of `pyro-ssvae explore`
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_PATIENCE = 120  # seconds


class Browser:
    """One page in Chromium.

    Attributes:
        messages: Errors and warnings of the console, exceptions, and what the page tried to load.
    """

    def __init__(self, page: Path, folder: Path, *, width: int = 1440, height: int = 1100, dark: bool = False) -> None:
        assert CHROMIUM is not None, "Chromium is not installed: apt-get install chromium"
        requests, self._write = os.pipe()
        self._read, answers = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars"]
        flags += [f"--user-data-dir={folder}", "--disable-background-networking", "--no-first-run"]
        # The protocol is spoken on descriptors 3 and 4.
        shell = f'exec "$@" 3<&{requests} 4>&{answers}'
        command = ["bash", "-c", shell, "bash", CHROMIUM, *flags, "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(requests, answers), stderr=subprocess.DEVNULL)
        os.close(requests)
        os.close(answers)
        self._buffer, self._number, self._session = b"", 0, ""
        self.messages: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        if dark:
            self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        self._call("Page.navigate", url=page.resolve().as_uri())
        self.run(
            """new Promise((done, failed) => { const wait = () => document.documentElement?.dataset.ready ? done(true)
            : document.getElementById("loading")?.textContent.includes("could not") ?
            failed(Error(document.getElementById("loading").textContent)) : setTimeout(wait, 50); wait(); })"""
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        self._call("Browser.close")
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)

    def run(self, script: str) -> Any:
        """Return the value of an expression, or what its promise resolves to, as JSON allows it."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, *, buttons: int = 0, modifiers: int = 0) -> None:
        """Send a mouse event (``Moved``, ``Pressed``, ``Released``) at a place in the window; modifier 8 is Shift."""
        button = "none" if kind == "Moved" and not buttons else "left"
        options = {"button": button, "buttons": buttons, "modifiers": modifiers, "clickCount": int(kind != "Moved")}
        self._call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **options)

    def click(self, x: float, y: float, *, modifiers: int = 0) -> None:
        """Move the mouse to a place in the window and click."""
        self.mouse("Moved", x, y)
        self.mouse("Pressed", x, y, buttons=1, modifiers=modifiers)
        self.mouse("Released", x, y, modifiers=modifiers)

    def key(self, key: str) -> None:
        """Press a key, named as in JavaScript."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": params}
        request |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(request).encode() + b"\0")
        while (message := self._receive()).get("id") != self._number:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _PATIENCE)
            part = os.read(self._read, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"Chromium has ended, or did not answer within {_PATIENCE} s.")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, message: dict[str, Any]) -> None:
        """Keep what a correct page does not cause."""
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.messages.append(str([part.get("value", part.get("description")) for part in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
        elif method == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                self.messages.append(f"loads {url}")


def measure(page: Path) -> None:
    """Print the size, start and speed of a page of the explorer."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Browser(page, Path(folder)) as browser:
        print(f"{page.stat().st_size / 1e6:.1f} MB")
        print(f"{time.perf_counter() - start:.1f} s until the page answers, the start of Chromium included")
        print(f"{browser.run('explorer.measureDecodes(200)'):.0f} decodes and pictures a second")
        timed = "(async () => { const start = performance.now(); for (let n = 0; n < 10; n++) await %s;"
        timed += " return (performance.now() - start) / 10; })()"
        print(f"{browser.run(timed % 'explorer.drawMap()'):.1f} ms to draw the map")
        print(f"{browser.run(timed % 'explorer.assess(explorer.rowValues(n))'):.0f} ms to answer for an example")


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
