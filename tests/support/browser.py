"""A headless Chromium for one test, driven over WebDriver's HTTP interface: standard library only."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.support.pyworker import free_port
from tests.support.wait import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "chromium and chromedriver are needed (Debian: chromium chromium-driver)"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window. `script` runs JavaScript in the page and returns its value."""

    def __init__(self, port: int, folder: str, width: int, height: int) -> None:
        self._port = port
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
            f"--user-data-dir={folder}", f"--window-size={width},{height}", "--force-device-scale-factor=1",
        ]  # fmt: skip
        options = {"binary": CHROMIUM, "args": arguments}
        capabilities = {
            "alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}, "browserName": "chrome"}
        }
        self._session = ""
        answer = self._ask("POST", "/session", {"capabilities": capabilities})
        self._session = f"/session/{answer['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, self._session + path, json.dumps(body or {}) if method == "POST" else None)
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{path}: {value['error']}: {value['message'][:500]}")
        return value

    def open(self, address: str) -> None:
        self._ask("POST", "/url", {"url": address})

    def script(self, code: str, *arguments: Any) -> Any:
        return self._ask("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def wait(self, expression: str, what: str = "", deadline: float = 30.0) -> Any:
        """Wait until a JavaScript expression is true and return its value."""
        return wait_until(lambda: self.script(f"return {expression}"), deadline, what or expression)

    def text(self, css: str) -> str:
        return str(self.script("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def click(self, css: str) -> None:
        self._ask("POST", f"/element/{self._find(css)}/click")

    def type(self, css: str, keys: str) -> None:
        self._ask("POST", f"/element/{self._find(css)}/value", {"text": keys})

    def press(self, keys: str) -> None:
        """Press keys where the focus is."""
        element = self._ask("GET", "/element/active")[_ELEMENT]
        self._ask("POST", f"/element/{element}/value", {"text": keys})

    def _find(self, css: str) -> str:
        return str(self._ask("POST", "/element", {"using": "css selector", "value": css})[_ELEMENT])

    def emulate(self, *, width: int, height: int, dark: bool = False, media: str = "") -> None:
        self._cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = "dark" if dark else "light"
        self._cdp("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def _cdp(self, method: str, **parameters: Any) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": method, "params": parameters})

    def accessibility(self) -> list[dict[str, Any]]:
        """The tree that a screen reader gets, as a flat list of {role, name}."""
        self._cdp("Accessibility.enable")
        nodes = self._cdp("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": node.get("role", {}).get("value"), "name": node.get("name", {}).get("value", "")}
            for node in nodes if not node.get("ignored")
        ]  # fmt: skip

    def picture(self, path: str) -> None:
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._ask("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """What the page has put on the browser's console, errors of its policy too."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def quit(self) -> None:
        self._ask("DELETE", "")


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser with a profile of its own, gone at the end."""
    assert DRIVER is not None
    port = free_port()
    folder = tempfile.mkdtemp(prefix="pw-chromium-")
    environ = {**os.environ, "HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder}
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: _answers(port), 30, "chromedriver")
        window = Browser(port, os.path.join(folder, "profile"), width, height)
        try:
            yield window
        finally:
            window.quit()
    finally:
        driver.terminate()
        driver.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/status")
            return bool(json.loads(connection.getresponse().read())["value"]["ready"])
        finally:
            connection.close()
    except (OSError, ValueError):
        return False
