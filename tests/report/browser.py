"""Drives a headless Chromium by its DevTools protocol over a pipe: opens pages, presses keys, clicks, asks."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One Chromium with one tab: `problems` has what its console calls an error, `asked` the addresses it asked for."""

    def __init__(self, folder):
        (its_in, our_out), (our_in, its_out) = (
            [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe()] for _ in "ab"
        )
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--hide-scrollbars", "about:blank"]

        def connect():
            os.dup2(its_in, 3)
            os.dup2(its_out, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *flags],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in)
        os.close(its_out)
        self._in, self._out = os.fdopen(our_in, "rb"), os.fdopen(our_out, "wb")
        self._count, self._session, self.problems, self.asked, self._events = 0, None, [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self._session = None
        self.call("Browser.close")
        self.process.wait(20)
        self._in.close()
        self._out.close()

    def call(self, method, **params):
        """Calls a method of the protocol and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while (answer := self._next()).get("id") != self._count:
            pass
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self):
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            text += byte
        answer = json.loads(text)
        kind, values = answer.get("method"), answer.get("params", {})
        if kind:
            self._events.append(kind)
        if kind == "Runtime.exceptionThrown":
            self.problems.append(values["exceptionDetails"])
        elif kind == "Log.entryAdded" and values["entry"]["level"] in ("warning", "error"):
            self.problems.append(values["entry"]["text"])
        elif kind == "Runtime.consoleAPICalled":
            self.problems.append(values)
        elif kind == "Network.requestWillBeSent":
            self.asked.append(values["request"]["url"][:60])
        return answer

    def size(self, width, height, scheme="light", media=""):
        """Sets the size of the window in CSS pixels, the colour scheme and the medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def open(self, path):
        """Opens a file and waits until it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def ask(self, expression):
        """Returns the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector, across=0.5):
        """Clicks with the mouse on the first element of a selector, at that share of its width."""
        x, y = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            f"return [r.x + r.width * {across}, r.y + r.height / 2] }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key, code=None, shift=False):
        """Presses a key, such as "g", "ArrowLeft" or, by its place, Digit1."""
        values = {"key": key, "code": code or key, "modifiers": 8 if shift else 0}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **values)

    def picture(self, path, whole=True):
        """Writes what is seen, or all of the page, as a PNG file."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))
