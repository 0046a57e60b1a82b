"""A headless Chromium for the tests of what people look at."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["asked_schemes", "emulate", "open_browser"]


def open_browser(profile: Path) -> Iterator[Any]:
    """The browser, until it is no longer needed. Without one tests fail, unless CLPDD_NO_BROWSER=1 excuses them."""
    if os.environ.get("CLPDD_NO_BROWSER") == "1":
        pytest.skip("CLPDD_NO_BROWSER=1")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail("pages are tested in a browser: install chromium and chromedriver, or set CLPDD_NO_BROWSER=1")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless=new no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
    for switch in (*switches.split(), "no-first-run", f"user-data-dir={profile}"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


def emulate(browser: Any, width: int, **features: str) -> None:
    """A window of ``width`` CSS pixels whose reader has preferences, such as ``prefers_color_scheme``."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


def asked_schemes(browser: Any) -> set[str]:
    """Kinds of address (``file``, ``https``) that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    return {url.split(":")[0] for url in asked}
