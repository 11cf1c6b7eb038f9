"""A headless Chromium, steered through its own debugging protocol.

with chromium(tmp_path) as browser:
    browser.open(url)
    browser.run("document.title")
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import servers

ANSWER_SECONDS = 30.0


class Browser:
    """One tab.

    Attributes:
      complaints: what the page complained about since it was made: errors and warnings on the console,
        exceptions, blocked or failed requests.
      requests: every address that was asked for.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        end = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)
        raise AssertionError(f"no answer to {method} in {ANSWER_SECONDS} s")

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def open(self, url: str, seconds: float = 20.0) -> None:
        """Goes to an address and waits until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})", seconds)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; of its promise, if it is one."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> Any:
        """What the expression gives once that is true; one that raises is not true yet."""

        def value() -> Any:
            try:
                return self.run(expression)
            except AssertionError:
                return None

        return servers.wait_until(value, seconds, expression)

    def scheme(self, name: str) -> None:
        """Has the page think that the system is "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width: int, height: int, scale: float = 1.0) -> None:
        """Sets the size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def picture(self, path: Path) -> Path:
        """Saves what the window shows as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def spoken(self) -> list[tuple[str, str]]:
        """(role, name) of all that a screen reader finds, in its order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
        ]


@contextmanager
def chromium(directory: Path, *flags: str) -> Iterator[Browser]:
    """Chromium with an empty profile in `directory`, ended with the block."""
    websocket = pytest.importorskip("websocket")
    directory.mkdir(parents=True, exist_ok=True)
    command: Sequence[str] = [
        servers.installed("chromium"),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        # nothing but this host can be found: the page has to do without the internet
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        "--remote-debugging-port=0",
        f"--user-data-dir={directory / 'profile'}",
        *flags,
        "about:blank",
    ]
    with (directory / "chromium.txt").open("wb") as log:
        environment = {**os.environ, "HOME": str(directory)}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        port_file = directory / "profile" / "DevToolsActivePort"

        def tab() -> Any:
            if process.poll() is not None:
                pytest.fail(
                    f"chromium ended with {process.returncode}: {(directory / 'chromium.txt').read_text()[-2000:]}"
                )
            if not port_file.exists() or not port_file.read_text().strip():
                return None
            port = port_file.read_text().splitlines()[0]
            try:
                listed = servers.get(f"http://127.0.0.1:{port}/json/list")
            except OSError:  # the file is there a moment before the port
                return None
            pages = [page for page in listed if page["type"] == "page"]
            return pages[0]["webSocketDebuggerUrl"] if pages else None

        address = servers.wait_until(tab, 60, "chromium's debugging port")
        socket = websocket.create_connection(address, timeout=ANSWER_SECONDS, suppress_origin=True)
        try:
            yield Browser(socket)
        finally:
            socket.close()
    finally:
        servers.stop(process)
