"""The pictures of the README, taken of a service that runs: `python -m tests.browser.pictures http://127.0.0.1:8080`."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.conftest import QUIET

DOCS = Path(__file__).parents[2] / "docs"
WIDTH, HEIGHT = 1100, 780
ANSWER_SECONDS = 300
PICTURES = (
    ("page.png", "en", "light", "Write a Python function that merges two sorted lists, then explain it in two sentences."),
    ("page.zh.png", "zh", "dark", "写一个 Python 函数，合并两个有序列表，并用两句话解释。"),
)


def take(window: webdriver.Chrome, url: str, language: str, theme: str, question: str) -> bytes:
    """The page with an answer, as PNG."""
    window.get(url)
    settings = {"language": language, "theme": theme, "temperature": "0", "maxTokens": "400"}
    window.execute_script("localStorage.clear(); localStorage.setItem('qwenbox.settings', arguments[0])", json.dumps(settings))
    window.get(url)
    wait = WebDriverWait(window, ANSWER_SECONDS)
    wait.until(lambda _: window.find_element(By.CSS_SELECTOR, ".dot").get_attribute("data-state") == "ready")
    window.execute_script("document.querySelector('#new-chat').click()")  # no pointer that hovers
    window.find_element(By.ID, "prompt").send_keys(question + Keys.ENTER)
    wait.until(lambda _: window.find_elements(By.CSS_SELECTOR, ".message.assistant:last-child .again"))
    wait.until(lambda _: window.find_element(By.ID, "context").is_displayed())
    window.execute_script("document.querySelector('#scroller').scrollTop = 0")
    return bytes(window.get_screenshot_as_png())


def main(url: str) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in QUIET:
        options.add_argument(argument)
    window = webdriver.Chrome(options=options, service=Driver(shutil.which("chromedriver")))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for name, *look in PICTURES:
            picture = Image.open(io.BytesIO(take(window, url, *look))).convert("RGB")
            picture.save(DOCS / name, optimize=True)
    finally:
        window.quit()


if __name__ == "__main__":
    main(sys.argv[1])
