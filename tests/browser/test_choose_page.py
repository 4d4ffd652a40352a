"""The first minute on the page: what the service asks, offers and takes, in both languages. The models are tiny and pose as Qwen3's sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from qwenbox.hub import FIRST
from qwenbox.kernels.native import isa_best
from qwenbox.model import choice as planner
from tests.browser.page import Window
from tests.hub.fake_hub import Fake
from tests.hub.test_disk import write
from tests.server.minute import BEST, FREE_BYTES, MACHINE, Minute, catalogue_hub
from tests.tiny import tiny_gguf

pytestmark = pytest.mark.browser


class ChoicePage(Window):
    """The page of a service that chooses its model."""

    def __init__(self, chromium: webdriver.Chrome, minute: Minute, language: str) -> None:
        super().__init__(chromium, minute.service)
        self.open()
        self.chromium.execute_script("localStorage.clear(); localStorage.setItem('qwenbox.settings', arguments[0])", f'{{"language": "{language}"}}')
        chromium.get_log("browser")
        self.open()

    def told(self, *words: str) -> None:
        self.wait(lambda: all(word in self.find("#choice-text").text for word in words))

    def press(self, text: str) -> None:
        def pressed() -> bool:
            for button in self.all("#choice-actions button"):
                if button.text == text:
                    button.click()
                    return True
            return False

        self.wait(pressed)

    def check_quiet(self) -> None:
        assert [entry for entry in self.chromium.get_log("browser") if entry["level"] == "SEVERE" and "400" not in entry["message"]] == []
        assert self.script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "measure", lambda threads: MACHINE)
    monkeypatch.setattr(planner, "FREE_BYTES", FREE_BYTES)


@pytest.fixture
def hub() -> Iterator[Fake]:
    with catalogue_hub() as fake:
        yield fake


def test_a_person_says_yes_and_the_better_model_answers(chromium: webdriver.Chrome, look: Callable[..., None], tmp_path: Path, hub: Fake) -> None:
    look(1100)
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        page = ChoicePage(chromium, minute, "en")
        page.say("Hello")  # waits for the model and is answered
        page.told(BEST, "suits this machine best", "0.0 GB")
        page.wait(page.finished)
        page.press("Fetch it")
        page.told(BEST, "answers from now on", FIRST)
        page.wait(lambda: page.find("#model-name").text == BEST)
        page.press("Understood")
        page.wait(lambda: not page.find("#choice").is_displayed())
        page.check_quiet()


@pytest.mark.parametrize(("language", "speed"), [("en", "at most 38 tokens/s"), ("zh", "最快每秒 38 个 token")])
def test_while_the_first_model_arrives_the_page_says_what_runs_it_and_how_fast_it_may_be(
    chromium: webdriver.Chrome, look: Callable[..., None], tmp_path: Path, hub: Fake, language: str, speed: str
) -> None:
    look(320)
    hub.stall_after = 1000
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        page = ChoicePage(chromium, minute, language)
        page.wait(lambda: all(word in page.find("#arrival-text").text for word in (FIRST, isa_best(), speed, "0.00")))
        page.check_quiet()
        hub.go_on(None)
        page.wait(lambda: not page.find("#arrival").is_displayed())


def test_with_nothing_the_page_takes_a_folder_and_a_file_by_keyboard(chromium: webdriver.Chrome, look: Callable[..., None], tmp_path: Path) -> None:
    look(320, dark=True)
    file = write(tmp_path / "elsewhere" / "own.gguf", tiny_gguf())
    write(tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "8b", b"{")
    with Minute(tmp_path, offline=True) as minute:
        page = ChoicePage(chromium, minute, "zh")
        page.told("还没有模型。设置了离线")
        page.check_quiet()
        page.press("其他模型")
        page.wait(lambda: page.find("#choose-path").is_displayed())
        assert page.chromium.switch_to.active_element.get_attribute("id") == "choose-path"
        assert "qwen3:8b (Ollama): 模型不完整：" in page.find("#troubles").text
        page.find("#choose-path").send_keys("/nowhere.gguf" + Keys.ENTER)
        page.wait(lambda: "/nowhere.gguf" in page.find("#choose-error").text)
        page.find("#choose-path").clear()
        page.find("#choose-path").send_keys(str(file) + Keys.ENTER)
        page.wait(lambda: page.find("#model-name").text == "own")
        page.check_quiet()
        assert minute.answer() == "own"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_why_a_model_cannot_be_had_is_said_in_the_language_of_the_page(
    chromium: webdriver.Chrome, look: Callable[..., None], tmp_path: Path, hub: Fake, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    index, repository, other = {
        "en": ("There is no model yet. pip could not fetch", "has no repository Qwen/Qwen3-4B-GGUF", "模型站没有这个模型"),
        "zh": ("还没有模型。连不上软件包索引", "模型站没有这个模型", "has no repository Qwen/Qwen3-4B-GGUF"),
    }[language]
    look(320)
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("PIP_INDEX_URL", nowhere)
    del hub.more["Qwen/Qwen3-4B-GGUF"]
    with Minute(tmp_path, hub_endpoint=nowhere) as minute:
        page = ChoicePage(chromium, minute, language)
        page.told(index)
        assert minute.decide(endpoint=hub.url).status_code == 200
        minute.until(lambda now: now["switched"])
        assert minute.decide(model=BEST).status_code == 200
        minute.until(lambda now: now["problem"])
        page.open()
        page.told(repository)
        page.wait(lambda: repository in str(page.find(f'[data-offer="{BEST}"]').get_property("textContent")))
        page.check_quiet()
        page.find("#language").click()
        page.told(other)
        assert other in str(page.find(f'[data-offer="{BEST}"]').get_property("textContent"))


def test_every_offer_says_what_it_costs_and_whether_it_suits(
    chromium: webdriver.Chrome, look: Callable[..., None], tmp_path: Path, hub: Fake
) -> None:
    look(1100)
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        page = ChoicePage(chromium, minute, "en")
        page.told("suits this machine best")
        page.press("Other models")
        page.wait(lambda: page.find('[data-offer="qwen3-8b-awq"]').is_displayed())
        offers = {item.get_attribute("data-offer"): item.text for item in page.all("[data-offer]")}
        assert "tokens/s" in offers["qwen3-8b-awq"]
        assert "slow here" in offers["qwen3-14b-q4_k_m"]
        assert "does not fit" in offers["qwen3-32b-q4_k_m"]
        assert "suits this machine" in offers[BEST]
        assert "≈" not in offers[BEST]  # the hub has said it
        assert "≈ 1.8 GB" in offers["qwen3-1.7b-q8_0"]
        page.find('[data-offer="qwen3-1.7b-q8_0"] button').click()
        page.wait(lambda: page.find("#model-name").text == "qwen3-1.7b-q8_0")
        assert minute.kept["model"] == "qwen3-1.7b-q8_0"
        page.check_quiet()
