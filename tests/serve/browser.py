"""A real browser without a window, driven over the Chrome DevTools Protocol."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp  # comes with tritonclient

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--no-default-browser-check", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--mute-audio"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves this machine
    "--remote-debugging-port=0",
]
WAIT_SECONDS = 20.0


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page, what it asked for and what it complained about."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop = loop
        self._socket = socket
        self._number = 0
        self.asked: list[str] = []
        """Addresses of all requests."""
        self.complaints: list[str] = []
        """Errors and warnings of the console, and uncaught exceptions."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; notes what happened meanwhile."""
        return self._loop.run_until_complete(
            asyncio.wait_for(self._call(method, parameters), WAIT_SECONDS)
        )

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        response = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in response, response["exceptionDetails"]
        return response["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Its value as soon as it is true."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} never came true"
            time.sleep(0.03)
        return value

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element, as a person would."""
        quoted = json.dumps(selector)
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({quoted});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key, by its name."""
        code = {"Enter": 13, "ArrowDown": 40, "/": 191}[key]
        text = {"Enter": "\r", "/": "/"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if kind == "keyDown" and text else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **extra,
            )

    def write(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, file: Path, width: int, height: int, scheme: str = "light") -> None:
        """The whole page, as wide as that."""
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        time.sleep(0.5)  # what slides has arrived
        response = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(response["data"]))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            said = await self._socket.receive_json()
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                result: dict[str, Any] = said["result"]
                return result
            self._note(said)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(parameters["entry"]))


@contextmanager
def open_tab(program: str, directory: Path) -> Iterator[Tab]:
    """A browser with one empty tab, its profile in `directory`; gone when the block ends."""
    process = subprocess.Popen(
        [program, *OPTIONS, f"--user-data-dir={directory}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    loop = asyncio.new_event_loop()
    http: aiohttp.ClientSession | None = None
    try:
        http = loop.run_until_complete(_session())
        address = loop.run_until_complete(_first_tab(http, directory / "DevToolsActivePort"))
        socket = loop.run_until_complete(http.ws_connect(address, max_msg_size=0))
        tab = Tab(loop, socket)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        if http is not None:
            loop.run_until_complete(http.close())
        loop.close()
        os.killpg(process.pid, signal.SIGKILL)  # its helpers too
        process.wait(WAIT_SECONDS)


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _first_tab(http: aiohttp.ClientSession, port_file: Path) -> str:
    """Where the first tab listens, once the browser has said its port."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        assert time.monotonic() < deadline, "the browser does not start"
        await asyncio.sleep(0.05)
        if not port_file.exists() or not (lines := port_file.read_text().splitlines()):
            continue
        async with http.get(f"http://127.0.0.1:{lines[0]}/json/list") as response:
            tabs = [tab for tab in await response.json() if tab["type"] == "page"]
        if tabs:
            return str(tabs[0]["webSocketDebuggerUrl"])
