"""A real Chromium for tests that open pages, and the place where their screenshots are kept."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120.0  # seconds that something may take to appear, on a machine that does other things too
CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """A Chromium: what it was asked to fetch, what its console said, and pictures of what it shows.

    Attributes:
        driver: Selenium's, for all else.
    """

    def __init__(self, driver: Any, artefacts: Path) -> None:
        self.driver, self.artefacts = driver, artefacts

    def size(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Be a window (a phone, below 500 pixels) of that size, light or dark."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, address: str) -> None:
        """Go to an address; what was noted before is forgotten."""
        self.driver.get("about:blank")  # the page before asks for nothing any more
        self.requests()
        self.console()
        self.driver.get(address)
        self.wait(
            "return document.readyState == 'complete'"
        )  # `get` may come back before, in a fresh browser

    def wait(self, script: str) -> None:
        """Wait until a script returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, PATIENCE).until(lambda driver: driver.execute_script(script))

    def console(self) -> list[str]:
        """Warnings and errors since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were fetched since the last call; data URIs are none."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith("data:")]

    def sideways(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.js("return document.documentElement.scrollWidth - window.innerWidth"))

    def js(self, script: str) -> Any:
        """What a script returns; it runs from outside, whatever the page's policy."""
        return self.driver.execute_script(script)

    def screenshot(self, name: str, limit: int = 12_000) -> Path:
        """Keep a picture of the whole page, at most `limit` pixels high."""
        height = min(int(self.js("return document.documentElement.scrollHeight")), limit)
        clip = {"x": 0, "y": 0, "width": self.js("return window.innerWidth"), "height": height, "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        self.artefacts.mkdir(parents=True, exist_ok=True)
        path = self.artefacts / f"{name}.png"
        path.write_bytes(base64.b64decode(taken["data"]))
        return path


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium with a fresh profile; screenshots go to $VLLTR_ARTEFACTS, else to pytest's own folder."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("not run: there is no Chromium here (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    kept = os.environ.get("VLLTR_ARTEFACTS")
    try:
        yield Browser(driver, Path(kept) if kept else tmp_path_factory.mktemp("artefacts"))
    finally:
        driver.quit()


@contextmanager
def page_address(folder: Path, *options: str, kill: bool = False) -> Iterator[str]:
    """The address that `vlltr ui` prints for a workspace; Ctrl-C ends it in order, unless it is to be killed."""
    command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(folder), "ui", "--port", "0", *options]
    log = folder.parent / "log"
    with log.open("w") as errors:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert running.stdout is not None
        try:
            address = running.stdout.readline().strip()
            assert address.startswith("http://"), log.read_text()
            yield address
        finally:
            running.send_signal(signal.SIGKILL if kill else signal.SIGINT)
            code = running.wait(PATIENCE)
            running.stdout.close()
    assert code == (-signal.SIGKILL if kill else 0)
    assert "Traceback" not in log.read_text()
