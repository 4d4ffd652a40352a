"""A headless Chromium, and the service on a socket for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.server.titles import Titles
from qwenbox.settings import load_settings
from tests.browser.page import Page
from tests.fakes import FakeEngine, byte_chat

QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    with open_chromium() as window:
        yield window


@contextmanager
def open_chromium() -> Iterator[webdriver.Chrome]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        message = "chromium and chromedriver are not on PATH; `apt-get install chromium chromium-driver`"
        if os.environ.get("QWENBOX_TEST_REQUIRE") == "1":
            pytest.fail(message)
        pytest.skip(message)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*QUIET, "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Driver(driver))
    try:
        yield window
    finally:
        window.quit()


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.close()


@pytest.fixture
def page(chromium: webdriver.Chrome, engine: FakeEngine, tmp_path: Path, own_data: None) -> Iterator[Page]:
    """The open page of a service whose engine is scripted; nothing is left in the browser from another test."""
    settings = load_settings({"port": 0, "cache_dir": tmp_path})
    with LocalLLM(engine, byte_chat(), "fake-model") as llm, Service(llm, settings) as service:
        page = Page(chromium, service, engine)
        page.open()
        page.script("localStorage.clear(); sessionStorage.clear()")
        page.open()
        yield page


@pytest.fixture(autouse=True)
def own_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test's conversations are its own, and only a test of titles has the engine asked for them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(Titles, "ask", lambda *_: None)


@pytest.fixture
def look(chromium: webdriver.Chrome) -> Iterator[Callable[..., None]]:
    """`look(width, dark)`: the size of the window and the colour scheme that the system asks for."""

    def set_look(width: int = 1100, *, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    yield set_look
    set_look()
