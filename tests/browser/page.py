"""The page as a person has it before them: what is on it, what one types, what one waits for."""

from __future__ import annotations

from collections.abc import Callable

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from qwenbox.server.serve import Service
from tests.fakes import FakeEngine


class Window:
    """What a person sees and does."""

    patience = 60.0
    """Seconds that something may take."""

    def __init__(self, chromium: webdriver.Chrome, service: Service) -> None:
        self.chromium, self.service = chromium, service

    def open(self, fragment: str = "") -> None:
        self.chromium.get("about:blank")
        self.chromium.get(self.service.url + "/" + fragment)

    def find(self, selector: str) -> WebElement:
        return self.chromium.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.chromium.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.chromium, self.patience, poll_frequency=0.02, ignored_exceptions=[StaleElementReferenceException]).until(
            lambda _: condition()
        )

    def click(self, selector: str) -> None:
        """Of what may be drawn anew at the same moment."""
        self.wait(lambda: self.find(selector).click() or True)

    def texts(self, selector: str) -> list[str]:
        """What is shown of each, at one moment."""
        found = self.chromium.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((node) => (node.checkVisibility() ? node.innerText.trim() : ''))", selector
        )
        return [str(text) for text in found]

    def say(self, text: str) -> None:
        self.find("#prompt").send_keys(text + Keys.ENTER)

    def answer(self) -> str:
        return self.all(".message.assistant .body")[-1].text

    def finished(self) -> bool:
        return bool(self.all(".message.assistant:last-child .again"))

    def script(self, source: str) -> object:
        return self.chromium.execute_script(source)


class Page(Window):
    """The page of a service whose engine is scripted."""

    def __init__(self, chromium: webdriver.Chrome, service: Service, engine: FakeEngine) -> None:
        super().__init__(chromium, service)
        self.engine = engine

    def open(self, fragment: str = "") -> None:
        super().open(fragment)
        self.wait(lambda: self.find(".dot").get_attribute("data-state") != "loading")
