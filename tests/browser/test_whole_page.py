"""The whole page, in both languages, dark and light, narrow and wide: for everybody, by keyboard alone, whatever a model writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from qwenbox.engine.client import EngineState
from qwenbox.server.serve import Service
from qwenbox.settings import load_settings
from qwenbox.types import Progress
from tests.browser.page import Page
from tests.browser.payloads import ALL, OUTSIDE
from tests.fakes import FakeSource, Script, byte_tokenizer_ids

pytestmark = pytest.mark.browser
AXE = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
RUN_AXE = """
const [done] = [...arguments].slice(-1);
axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => done(violations
  .filter(({impact}) => ["serious", "critical"].includes(impact))
  .map(({id, nodes}) => `${id}: ${nodes.map(({target, any}) => `${target} ${any.map(({message}) => message)}`).join("; ")}`)));
"""
ANSWER = (
    "<think>\nTwo heads.\n</think>\n\n## Merge\n\nTake the *smaller* **head**, [see](https://a.invalid/):\n\n"
    "```python\ndef merge(a, b):\n    return 1  # x\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> a\n\n1. b\n2. `c`\n"
)


@pytest.fixture(scope="module")
def whole(chromium: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A service with two models; its page stays open from test to test."""
    source = FakeSource({"qwen-one": 1, "qwen-two-with-a-long-name-instruct": 1}, memory=1.5)
    places = dict.fromkeys(("cache_dir", "state_dir"), tmp_path_factory.mktemp("whole"))
    with Service(source.open("qwen-one"), load_settings({"port": 0, **places}), source) as service:
        engine = source.engines["qwen-one"]
        engine.context_length = 32_768
        yield Page(chromium, service, engine)


def begin(page: Page, language: str, **settings: Any) -> None:
    """An empty page in this language."""
    page.engine.state_now = EngineState("ready", 1.0)
    page.open()
    page.script(f"localStorage.clear(); localStorage.setItem('qwenbox.settings', JSON.stringify({json.dumps({'language': language, **settings})}))")
    page.open()
    page.find("#new-chat").click()
    page.wait(lambda: page.find("#welcome").is_displayed())


def ask(page: Page, answer: str, question: str = "how do I merge?") -> None:
    page.engine.script = Script(reply=lambda plan: [*byte_tokenizer_ids(answer), *plan.stop_ids[:1]])
    page.say(question)
    page.wait(page.finished)


def findings(page: Page) -> list[str]:
    """What axe-core calls serious or critical, and what is wider than the window."""
    if not page.script("return Boolean(window.axe)"):
        page.script(AXE)
    found = page.chromium.execute_async_script(RUN_AXE)
    wide = page.script("return document.documentElement.scrollWidth > window.innerWidth")
    return [*found, *(["wider than the window"] if wide else [])]


@pytest.mark.parametrize(("language", "dark"), list(itertools.product(("en", "zh"), (False, True))))
def test_nobody_is_shut_out_of_any_part_of_the_page(whole: Page, look: Callable[..., None], language: str, dark: bool) -> None:
    page = whole
    found: dict[str, list[str]] = {}

    def check(name: str, width: int) -> None:
        if new := findings(page):
            found[f"{name} {width}"] = new

    look(320, dark=dark)
    begin(page, language, key="qk_a_key_for_the_snippets")
    for width in (320, 768, 1440):
        look(width, dark=dark)
        check("welcome", width)
    page.engine.pause()
    page.engine.script = Script(reply=lambda plan: [*byte_tokenizer_ids(ANSWER), *plan.stop_ids[:1]])
    page.say("how do I merge?")
    page.engine.wait_for(lambda engine: engine.num_running == 1)
    page.engine.tell(Progress(12_000, 32_000, 0, 31.0, 47.6))
    page.wait(lambda: page.find(".reading"))
    check("reading", 1440)
    page.engine.resume()
    page.wait(page.finished)
    page.find(".reasoning summary").click()
    for width in (320, 768, 1440):
        look(width, dark=dark)
        check("answer", width)
    for number, (opener, dialog) in enumerate((("#model", "#models"), ("#open-connect", "#connect"), ("#open-settings", "#settings"))):
        width = (320, 768, 1440)[(number + dark) % 3]
        look(width, dark=dark)
        page.find(opener).click()
        page.wait(page.find(f"{dialog} .primary").is_displayed)
        check(dialog, width)
        page.find(f"{dialog} .primary").click()
    page.engine.state_now = EngineState("fetching", 0.25, None, 280_000_000, 1_120_000_000, 39.5)
    page.open()
    page.wait(lambda: page.find("#arrival").is_displayed())
    look(320, dark=dark)
    check("arrival", 320)
    page.engine.state_now = EngineState("ready", 1.0)
    assert found == {}


FOCUSED = """
const node = document.activeElement;
const shown = [node, node.closest(".field"), ...[...node.labels ?? []].flatMap((label) => [label, label.querySelector("span")])].filter(Boolean);
const marked = shown.some((one) => getComputedStyle(one).outlineStyle !== "none" || one.matches(".field:focus-within"));
return [node.id || node.className || node.parentElement.className || node.tagName, marked && node.getBoundingClientRect().width > 0];
"""
"""What has the focus, and whether one sees that."""


def test_everything_can_be_done_by_keyboard_alone(whole: Page, look: Callable[..., None]) -> None:
    page, keys = whole, lambda *pressed: ActionChains(whole.chromium).send_keys(*pressed).perform()

    def focused() -> str:
        return str(page.script(FOCUSED)[0])  # type: ignore[index]

    def tab_to(name: str, *, back: bool = False) -> None:
        seen = []
        for _ in range(40):
            chain = ActionChains(page.chromium)
            (chain.key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT) if back else chain.send_keys(Keys.TAB)).perform()
            here, marked = page.script(FOCUSED)  # type: ignore[misc]
            seen.append(here)
            assert marked or here == "BODY", f"nobody sees that {here} has the focus"
            if here == name:
                return
        raise AssertionError(f"{name} is not reached: {seen}")

    look(768)
    begin(page, "en")
    assert focused() == "prompt"
    long = "word " * 300
    page.engine.script = Script(long)
    page.engine.step_seconds = 0.005
    keys("count", Keys.ENTER)
    page.wait(lambda: len(page.answer()) > 20)
    keys(Keys.ESCAPE)
    page.wait(page.finished)
    assert len(page.answer()) < len(long) - 50
    page.engine.step_seconds = 0.0
    page.engine.script = Script(reply=lambda plan: [*byte_tokenizer_ids(ANSWER), *plan.stop_ids[:1]])
    tab_to("again", back=True)
    keys(Keys.ENTER)
    page.wait(lambda: page.finished() and page.all(".message.assistant h2"))
    page.find("#prompt").send_keys("")
    tab_to("reasoning", back=True)
    keys(Keys.ENTER)
    page.wait(lambda: page.find(".thoughts").is_displayed())

    def inside(opener: str, dialog: str, act: Callable[[], None]) -> None:
        tab_to(opener, back=True)
        keys(Keys.ENTER)
        page.wait(lambda: page.script("return document.activeElement.closest('dialog')?.id") == dialog)
        act()
        keys(Keys.ESCAPE)
        page.wait(lambda: focused() == opener)

    def choose_model() -> None:
        tab_to("model-qwen-one")
        keys(Keys.DOWN)
        page.wait(lambda: str(page.find("#model-name").get_property("textContent")).startswith("qwen-two"))
        keys(Keys.UP)
        page.wait(lambda: page.find("#model-name").get_property("textContent") == "qwen-one")

    def unfold() -> None:
        tab_to("SUMMARY")
        keys(Keys.ENTER)

    inside("open-settings", "settings", lambda: tab_to("temperature"))
    inside("open-connect", "connect", unfold)
    inside("model", "models", choose_model)
    tab_to("theme")
    keys(Keys.ENTER)
    assert page.script("return document.documentElement.dataset.theme") == "light"
    tab_to("language")
    keys(Keys.ENTER)
    assert page.script("return document.documentElement.lang") == "zh-CN"
    for _ in range(60):
        keys(Keys.TAB)
        if page.script("return document.activeElement.name") == "depth":
            break
    keys(Keys.RIGHT)
    page.wait(lambda: page.find("#depth input[value=think]").is_selected())
    tab_to("new-chat", back=True)
    keys(Keys.ENTER)
    page.wait(lambda: page.find("#welcome").is_displayed() and focused() == "prompt")


HOOKS = """
window.calls = [];
for (const name of ["alert", "confirm", "prompt", "open", "eval"]) window[name] = (...given) => { window.calls.push(`${name} ${given}`); };
addEventListener("securitypolicyviolation", (event) => window.calls.push(`policy ${event.violatedDirective} ${event.blockedURI}`));
addEventListener("error", (event) => window.calls.push(`error ${event.message}`));
addEventListener("unhandledrejection", (event) => window.calls.push(`rejection ${event.reason}`));
"""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_that_a_model_or_a_person_writes_runs_or_fetches_anything(whole: Page, language: str) -> None:
    page = whole
    begin(page, language)
    for kind in ("performance", "browser"):
        page.chromium.get_log(kind)
    page.script(HOOKS)
    page.engine.tokens_per_step = 97
    try:
        ask(page, f"<think>\n{ALL}\n</think>\n\n{ALL}", "merge?")
        page.find("#prompt").send_keys("x")
        page.script(f"document.querySelector('#prompt').value = {json.dumps(ALL)}; document.querySelector('#composer').requestSubmit()")
        page.wait(lambda: len(page.all(".message.user")) == 2 and page.finished() and page.find("#send").is_displayed())
    finally:
        page.engine.tokens_per_step = 1
    page.find(".reasoning summary").click()
    page.script("for (const link of document.querySelectorAll('.message a')) link.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    assert page.script("return window.calls") == [] and page.script("return window.broken ?? null") is None
    assert page.all(".message :is(img, script, style, link, iframe, object, embed, form, svg, math, video, audio, input, base, meta)") == []
    names = page.script("return [...document.querySelectorAll('*')].flatMap((node) => [...node.attributes].map(({name}) => name))")
    assert not any(name.startswith("on") for name in names)  # type: ignore[union-attr]
    schemes = page.script("return [...new Set([...document.querySelectorAll('.message a')].map((link) => link.protocol))]")
    assert set(schemes) <= {"http:", "https:", "mailto:"}  # type: ignore[arg-type]
    assert page.script(
        "return [...document.querySelectorAll('.message a')].every((link) => link.rel.includes('noopener') && link.target === '_blank')"
    )
    requests = [json.loads(entry["message"])["message"] for entry in page.chromium.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in requests if one["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith((page.service.url, "data:")) for url in urls) and not any(OUTSIDE in url for url in urls)
    assert [entry for entry in page.chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_policy_of_the_page_allows_no_code_but_its_own(whole: Page) -> None:
    assert not any("onclick" in file.read_text("utf-8") and file.suffix == ".html" for file in Path("src/qwenbox/server/web").iterdir())
    page = whole
    begin(page, "en")
    page.script(HOOKS)
    page.script("const node = document.createElement('script'); node.textContent = 'window.broken = 1'; document.body.append(node)")
    page.script("document.body.setAttribute('onclick', 'window.broken = 1'); document.body.click()")
    page.wait(lambda: page.script("return window.calls.filter((call) => call.startsWith('policy')).length >= 2"))
    assert page.script("return window.broken ?? null") is None
