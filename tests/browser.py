"""A real headless Chromium, driven over its debugging pipe with nothing but Python.

No port is opened and nothing is waited for by sleeping: every command has an answer,
and the page is asked, with a promise, when it has drawn.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser():
    return next(filter(None, map(shutil.which, NAMES)), None)


# The browser reads commands from descriptor 3 and answers on 4.
LAUNCH = """
import fcntl, os, sys
commands, answers, *command = sys.argv[1:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 20) for fd in (commands, answers)]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.closerange(20, max(high) + 1)
os.execv(command[0], command)
"""


class Browser:
    """One browser with one page."""

    def __init__(self, folder: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser)),
                find_browser(),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
                "--no-first-run",
                "--disable-background-networking",
                f"--user-data-dir={folder / 'profile'}",
                "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder), "TMPDIR": str(folder)},
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.messages: list[str] = []
        targets = self.command("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        self._session = self.command(
            "Target.attachToTarget", targetId=page["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def _read(self):
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def command(self, method, **params):
        """Send a command and return its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        """Remember complaints of the page, and requests to anywhere but files."""
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.messages.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:")):
                self.messages.append(f"request to {url}")

    def open(self, path, width=1280, height=1600, scheme="light"):
        """Show a file, and return when it has been drawn."""
        self.messages.clear()
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", features=media)
        self.command("Page.navigate", url=Path(path).resolve().as_uri())
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done() : "
            "addEventListener('load', done))"
        )

    def run(self, script):
        """Run a script in the page and return its value, awaited."""
        while True:
            try:
                answer = self.command(
                    "Runtime.evaluate",
                    expression=script,
                    awaitPromise=True,
                    returnByValue=True,
                )
            except RuntimeError as error:
                # The page that was asked has just been replaced by the next one.
                if "navigated" in str(error) or "context" in str(error):
                    continue
                raise
            break
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def drawn(self):
        """Return when the page has drawn what was asked of it last."""
        self.run(
            "new Promise(done => requestAnimationFrame(() => "
            "requestAnimationFrame(() => done())))"
        )

    def press(self, key, modifiers=0):
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.command(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                modifiers=modifiers,
                **text,
            )
        self.drawn()

    def mouse(self, kind, x, y, **more):
        """Send one event of the mouse."""
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.drawn()

    def picture(self, path):
        """Write a PNG of the page."""
        data = self.command("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        self._session = None
        try:
            self.command("Browser.close")
            while True:  # until it has closed its end
                self._read()
        except (RuntimeError, OSError):
            self._process.wait()
        finally:
            os.close(self._out)
            os.close(self._in)
