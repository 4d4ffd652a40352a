"""The page in a real browser, over the real service; the engine is scripted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver

from qwenbox.engine.client import EngineState
from qwenbox.errors import DownloadError, WorkerDiedError
from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import load_settings
from qwenbox.types import Progress
from tests.browser.page import Page
from tests.fakes import FakeEngine, FakeSource, Script, byte_chat, byte_tokenizer_ids

pytestmark = pytest.mark.browser

HOSTILE = """# Title <img src=x onerror=alert(1)>

<script>window.broken = 1</script> [x](javascript:window.broken=1) [d](data:text/html,hi) ![pixel](http://tracker.invalid/p.png) <https://a.invalid>

```html
<img src=x onerror="window.broken = 1">
```
"""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_person_sends_sees_it_stream_and_stops_it(page: Page, language: str) -> None:
    if language == "zh":
        page.find("#language").click()
    send, stop, again = {"en": ("Send", "Stop", "Try again"), "zh": ("发送", "停止", "重试")}[language]
    assert page.find("#send").text == send
    assert page.script("return document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]
    long = "数到一百 counting " * 200
    page.engine.script = Script(reply=lambda plan: byte_tokenizer_ids(long))
    page.engine.step_seconds = 0.002
    page.say("go on for ever")
    page.wait(lambda: len(page.answer()) > 20)
    page.engine.pause()
    seen = page.answer()
    assert long.startswith(seen.strip()) and len(seen) < len(long)
    assert page.find("#stop").text == stop
    page.engine.resume()
    page.wait(lambda: len(page.answer()) > len(seen) + 10)
    page.find("#stop").click()
    page.wait(page.finished)
    page.engine.wait_for(lambda engine: len(engine.cancelled) == 1 and engine.num_running == 0)
    assert page.find(".message.assistant .again").text == again
    assert len(page.answer()) < len(long) - 100


def test_why_it_was_thought_is_said_in_the_language_of_the_page(page: Page) -> None:
    page.engine.script = Script("<think>\nhm\n</think>\n\nyes")
    page.say("Prove that 2024 divides 4048.")
    page.wait(page.finished)
    for why in ("asks for a proof or a derivation; has figures", "要求证明或推导；有数字"):
        page.find(".reasoning summary").click()
        page.wait(lambda why=why: page.find(".why").text == why)
        page.find("#language").click()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_person_chooses_how_much_to_think_and_asks_for_the_answer_now(page: Page, look: Callable[..., None], language: str) -> None:
    look(320)
    if language == "zh":
        page.find("#language").click()
    fast, now, asked = {"en": ("Fast", "Answer now", "You asked for the answer."), "zh": ("快速", "立即回答", "你要求立即回答。")}[language]
    page.engine.script = Script(reply=lambda plan: byte_tokenizer_ids("<think>\nHm. " + "let me see " * 300 + "</think>\n\nSeven."))
    page.engine.step_seconds = 0.005
    page.say("Prove that the sum of two odd numbers is even, and find all cases where it is divisible by 4.")
    page.wait(lambda: page.all(".hurry"))
    assert page.find(".hurry").text == now
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    plan = page.engine.plans[0].thinking
    assert plan is not None and plan.max_seconds == 20  # automatic, unless somebody chooses
    page.find(".hurry").click()
    page.wait(page.finished)
    assert page.answer() == "Seven."
    assert page.engine.hurried == [page.engine.plans[0].request_id]
    assert not page.all(".hurry")
    page.find(".reasoning summary").click()
    page.wait(lambda: asked in page.find(".why").text)
    assert re.search(r"\d+\.\d", page.find(".reasoning summary").text)  # seconds
    page.find("#new-chat").click()
    page.wait(lambda: page.find("#depth label").text == fast)
    page.find("#depth label").click()
    page.engine.script = Script("Seven.")
    page.say("three and four?")
    page.wait(page.finished)
    end = byte_tokenizer_ids("<think>\n\n</think>\n\n")
    assert list(page.engine.plans[1].prompt_ids[-len(end) :]) == end
    page.open()
    page.wait(lambda: page.find("#depth input[value=fast]").is_selected())


def test_a_model_that_never_thinks_greys_the_choice_and_says_why(chromium: webdriver.Chrome, engine: FakeEngine, tmp_path: Path) -> None:
    settings = load_settings({"port": 0, "cache_dir": tmp_path})
    with LocalLLM(engine, replace(byte_chat(), nature="never"), "fake-model") as llm, Service(llm, settings) as service:
        page = Page(chromium, service, engine)
        page.open()
        page.script("localStorage.clear()")
        page.open()
        page.wait(lambda: page.find("#depth-why").text == "This model does not think.")
        assert page.find("#depth-why").is_displayed()
        assert all(not choice.is_enabled() for choice in page.all("#depth input"))
        page.say("hello")
        page.wait(page.finished)
        assert not page.all(".reasoning")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_person_sees_how_far_the_model_is_and_may_write_before_it_is_there(page: Page, look: Callable[..., None], language: str) -> None:
    look(320)
    if language == "zh":
        page.find("#language").click()
    fetching, verifying, again = {
        "en": ("being fetched, 0.28 of 1.12 GB, about 40 s left. You can write", "being verified", "repeated: the hub is ill"),
        "zh": ("正在下载模型，0.28 / 1.12 GB，大约还需 40 秒。现在就可以提问", "正在校验模型", "正在重试：下载中断了"),
    }[language]
    assert not page.find("#arrival").is_displayed()
    page.engine.state_now = EngineState("fetching", 0.25, None, 280_000_000, 1_120_000_000, 39.5)
    page.open()
    page.wait(lambda: fetching in page.find("#arrival-text").text)
    assert page.find("#arrival-part").get_property("value") == 0.25
    assert "25 %" in str(page.find("#model-state").get_property("textContent"))
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    page.say("early")
    page.engine.state_now = EngineState("fetching", 0.25, DownloadError("the hub is ill", code="download_interrupted"))
    page.wait(lambda: again in page.find("#arrival-text").text)
    page.engine.state_now = EngineState("verifying", 0.5)
    page.wait(lambda: verifying in page.find("#arrival-text").text)
    page.engine.state_now = EngineState("ready", 1.0)
    page.wait(page.finished)
    page.wait(lambda: not page.find("#arrival").is_displayed())


def test_a_page_whose_service_ended_still_says_why(page: Page) -> None:
    page.engine.state_now = EngineState("failed", error=DownloadError("the digest is wrong"))
    page.open()
    page.wait(lambda: "the digest is wrong" in page.find("#arrival-text").text)
    page.service.stop()
    page.wait(lambda: "not reachable" in page.find("#model-state").text)
    assert "the digest is wrong" in page.find("#arrival-text").text


def test_an_answer_is_drawn_as_markdown_and_the_history_is_sent_with_the_next_question(page: Page) -> None:
    page.engine.script = Script("## Sum\n\n1. one\n2. **two**\n\n```python\ndef f():\n    return 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    page.say("first")
    page.wait(page.finished)
    assert page.find(".message.assistant h2").text == "Sum"
    assert [item.text for item in page.all(".message.assistant li")] == ["one", "two"]
    assert page.find(".message.assistant pre code").text == "def f():\n    return 1"
    assert page.find(".message.assistant .hl-key").text == "def"
    assert [cell.text for cell in page.all(".message.assistant td")] == ["1", "2"]
    page.say("second")
    page.wait(lambda: len(page.engine.plans) == 2 and page.finished())
    prompt = bytes(id for id in page.engine.plans[1].prompt_ids if id < 256).decode()
    assert "first" in prompt and "**two**" in prompt and prompt.index("second") > prompt.index("**two**")


def test_hostile_text_stays_text_and_nothing_is_asked_of_other_hosts(page: Page) -> None:
    for kind in ("performance", "browser"):
        page.chromium.get_log(kind)  # of the tests before
    page.engine.script = Script(HOSTILE)
    page.say(HOSTILE)
    page.wait(page.finished)
    assert page.script("return window.broken") is None
    assert page.all(".message img, .message script, .message iframe") == []
    assert {link.get_attribute("href") for link in page.all(".message.assistant a")} <= {"http://tracker.invalid/p.png", "https://a.invalid/"}
    urls = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in page.chromium.get_log("performance")
        if json.loads(entry["message"])["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(url.startswith((page.service.url, "data:")) for url in urls)
    assert [entry for entry in page.chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_conversation_survives_a_reload_and_a_new_chat_forgets_it(page: Page) -> None:
    page.say("remember me")
    page.wait(page.finished)
    said = page.answer()
    page.open()
    page.wait(lambda: page.all(".message.assistant") and page.finished())
    assert page.answer() == said and page.find(".message.user .body").text == "remember me"
    page.find("#new-chat").click()
    assert page.all(".message") == [] and page.find("#welcome").is_displayed()


def test_a_lost_answer_says_so_and_can_be_tried_again(page: Page) -> None:
    page.engine.script = Script("slow " * 500)
    page.engine.step_seconds = 0.002
    page.say("hello")
    page.wait(lambda: len(page.answer()) > 5)
    page.engine.pause()
    page.engine.fail(WorkerDiedError("The worker ended while it answered."))
    page.wait(lambda: page.all(".problem"))
    assert "worker" in page.find(".problem").text
    page.engine.script = Script("All good.")
    page.engine.resume()
    page.find(".problem .again").click()
    page.wait(page.finished)
    assert page.answer() == "All good." and page.all(".problem") == []


def test_settings_reach_the_request_and_wrong_ones_are_told(page: Page) -> None:
    page.find("#open-settings").click()
    page.find("#system").send_keys("Speak like a pirate.")
    page.find("#temperature").send_keys("9")
    page.find("#settings .primary").click()
    assert page.find("#settings-error").text == "Temperature must be a number from 0 to 2."
    page.find("#temperature").clear()
    page.find("#temperature").send_keys("0.5")
    page.find("#max-tokens").send_keys("5")
    page.find("#settings .primary").click()
    page.say("hi")
    page.wait(page.finished)
    plan = page.engine.plans[-1]
    assert plan.max_tokens == 5 and plan.sampling.temperature == 0.5
    assert b"Speak like a pirate." in bytes(id for id in plan.prompt_ids if id < 256)
    assert "longest length" in page.find(".message.assistant .actions").text


def test_copy_gives_the_source_of_the_answer(page: Page) -> None:
    page.chromium.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.service.url}
    )
    page.engine.script = Script("a **b** `c`")
    page.say("hi")
    page.wait(page.finished)
    page.find(".message.assistant .copy").click()
    page.wait(lambda: page.find(".message.assistant .copy").text == "Copied")
    assert page.chromium.execute_async_script("navigator.clipboard.readText().then(arguments[0])") == "a **b** `c`"


def test_both_languages_have_every_sentence(page: Page) -> None:
    keys = page.chromium.execute_async_script(
        "import('/i18n.js').then((m) => arguments[arguments.length - 1](Object.values(m.texts).map((table) => Object.keys(table))))"
    )
    assert keys[0] == keys[1] and len(keys[0]) > 40


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 1100])
def test_nothing_is_wider_than_the_window_and_ink_is_readable(page: Page, look: Callable[..., None], width: int, dark: bool) -> None:
    look(width, dark=dark)
    page.engine.script = Script("word " * 60 + "\n\n```\n" + "x" * 400 + "\n```\n\n" + "y" * 300)
    page.say("z" * 300)
    page.wait(page.finished)
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.script("const m = document.querySelector('main'); return m.scrollWidth <= m.clientWidth")
    ink, paper = (
        sum(int(part) for part in str(page.script(f"return getComputedStyle(document.body).{name}")).strip("rgb()").split(",")[:3])
        for name in ("color", "backgroundColor")
    )
    assert (ink - paper > 450) if dark else (paper - ink > 450)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_person_chooses_among_the_models_and_sees_the_chosen_one_load(
    chromium: webdriver.Chrome, look: Callable[..., None], tmp_path: Path, language: str
) -> None:
    look(320)
    source = FakeSource({"qwen-one": 1, "qwen-two-with-a-long-name-instruct": 1}, memory=1.5)
    asleep, loading, strip, takes = {
        "en": ("loads when you write", "loading 40 %", "The model is being loaded", "needs 1.00 GB of memory"),
        "zh": ("提问时加载", "加载中 40 %", "正在加载模型", "需要内存 1.00 GB"),
    }[language]
    first, second = source.sizes
    with Service(source.open(first), load_settings({"port": 0, "cache_dir": tmp_path}), source) as service:
        page = Page(chromium, service, source.engines[first])
        page.open()
        page.script("localStorage.clear()")
        page.open()
        if language == "zh":
            page.find("#language").click()
        page.say("who?")
        page.wait(page.finished)
        assert page.answer() == f"I am {first}."
        source.engines[first].note_step(0.02, 0, 1)
        page.find("#model").click()
        page.wait(lambda: [card.get_attribute("data-model") for card in page.all("#model-list .card")] == [first, second])
        page.wait(lambda: {"en": "(predicted)", "zh": "（估计）"}[language] in page.find(f'[data-model="{second}"] .facts').text)
        assert takes in page.find(f'[data-model="{second}"] .facts').text
        assert page.script("return document.querySelector('#models').scrollWidth <= window.innerWidth")
        page.find(f'[data-model="{second}"] label').click()
        page.wait(lambda: page.find("#model-state").get_property("textContent") == asleep)
        page.find("#models .primary").click()
        assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
        source.first_state = EngineState("loading", 0.4)
        page.find("#new-chat").click()
        page.say("and you?")
        page.wait(lambda: page.find("#model-state").get_property("textContent") == loading and strip in page.find("#arrival-text").text)
        source.engines[second].state_now = EngineState("ready", 1.0)
        page.wait(page.finished)
        assert page.answer() == f"I am {second}."
        page.wait(lambda: page.find(".dot").get_attribute("data-state") == "ready" and not page.find("#arrival").is_displayed())
        page.open()
        page.wait(lambda: page.find("#model-name").text == second)
        page.script("localStorage.clear()")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_person_sees_what_a_model_takes_and_how_fast_it_is(page: Page, language: str) -> None:
    if language == "zh":
        page.find("#language").click()
    speed, window, kernels = {
        "en": ("writes 50 tokens/s (measured)", "window of 4,096 tokens", "Kernels: generic, 1 threads"),
        "zh": ("生成 50 token/秒（实测）", "窗口 4,096 token", "计算内核：generic，1 个线程"),
    }[language]
    page.engine.note_step(0.02, 0, 1)
    page.find("#model").click()
    page.wait(lambda: speed in page.find(".card .facts").text)
    assert window in page.find(".card .facts").text and page.find("#models-machine").text == kernels
    assert page.find("#model-name").text == "fake-model"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_how_far_a_long_prompt_is_and_what_of_the_window_is_taken_stands_on_the_page(page: Page, look: Callable[..., None], language: str) -> None:
    look(320)
    if language == "zh":
        page.find("#language").click()
    reading, known, context, speed = {
        "en": ("12,000 of 32,000 tokens read, about 48 s left", "read", " of 4,096 tokens", "tokens, "),
        "zh": ("已读 12,000 / 32,000 个 token，大约还需 48 秒", "token", " / 4,096 token", "个 token，"),
    }[language]
    assert not page.find("#context").is_displayed()
    page.engine.pause()
    page.engine.script = Script("word " * 100)
    page.engine.step_seconds = 0.002
    page.say("a long book")
    page.engine.wait_for(lambda engine: engine.num_running == 1)
    page.engine.tell(Progress(12_000, 32_000, 0, 31.0, None))
    page.wait(lambda: page.all(".reading") and reading.startswith(page.find(".reading").text) and page.find(".reading").text.endswith(known))
    page.engine.tell(Progress(12_000, 32_000, 0, 31.0, 47.6))
    page.wait(lambda: page.find(".reading").text == reading)
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.find(".reading progress").get_property("value") == 12_000
    page.engine.resume()
    page.wait(page.finished)
    assert not page.all(".reading")
    plan = page.engine.plans[0]
    total = len(plan.prompt_ids) + 501
    page.wait(lambda: page.find("#context").text == f"{total}{context}")
    assert speed in page.find(".message.assistant .rate").text and "501" in page.find(".rate").text
    assert page.find("#speed").text == ""  # it is said once
    page.script("localStorage.setItem('qwenbox.messages', JSON.stringify([{role: 'user', content: 'counted by the service'}]))")
    page.open()
    page.wait(lambda: page.find("#context").is_displayed() and page.find("#context").text != f"{total}{context}")


def test_other_programs_are_told_how_to_connect_and_the_key_is_shown_only_on_demand(page: Page) -> None:
    page.script("localStorage.setItem('qwenbox.settings', JSON.stringify({key: 'qk_a_secret_for_the_test'}))")
    page.open()
    grants = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.service.url}
    page.chromium.execute_cdp_cmd("Browser.grantPermissions", grants)
    page.find("#open-connect").click()
    programs = [item.get_attribute("data-program") for item in page.all("#connect-list details")]
    assert len(programs) == 9 and {"curl", "Claude Code", "Codex", "Dify", "Continue", "Open WebUI"} < set(programs)
    for program in programs:
        if not page.all(f'details[data-program="{program}"][open]'):
            page.find(f'details[data-program="{program}"] summary').click()
        shown = page.find(f'details[data-program="{program}"] code').text
        assert page.service.url in shown and "secret" not in shown
        page.find(f'details[data-program="{program}"] .copy').click()
        page.wait(lambda: page.find("details[open] .copy").text == "Copied")
        copied = str(page.chromium.execute_async_script("navigator.clipboard.readText().then(arguments[0])"))
        assert "qk_a_secret_for_the_test" in copied and copied.splitlines()[0] in (shown.splitlines()[0], copied.splitlines()[0])
    page.find("#connect-key").click()
    assert "qk_a_secret_for_the_test" in page.find("details[open] code").text
    page.script("localStorage.clear()")


def test_a_key_signs_in_through_the_fragment_and_leaves_the_address(chromium: webdriver.Chrome, engine: FakeEngine, tmp_path: Path) -> None:
    settings = load_settings({"port": 0, "api_key": "qk_secret_for_the_test", "cache_dir": tmp_path})
    with LocalLLM(engine, byte_chat(), "fake-model") as llm, Service(llm, settings) as service:
        page = Page(chromium, service, engine)
        page.open()
        page.script("localStorage.clear()")
        page.open()
        page.say("without a key")
        page.wait(lambda: page.all(".problem"))
        assert "API key" in page.find(".problem").text
        chromium.get("about:blank")
        chromium.get(service.sign_in_url)
        page.wait(lambda: page.find(".dot").get_attribute("data-state") == "ready")
        assert "secret" not in chromium.current_url
        page.find("#new-chat").click()
        page.say("with a key")
        page.wait(page.finished)
        assert page.answer()
        page.script("localStorage.clear()")


def test_no_outside_address_stands_in_the_files_of_the_page() -> None:
    web = Path(__file__).parents[2] / "src" / "qwenbox" / "server" / "web"
    for file in web.iterdir():
        text = (
            file.read_text(encoding="utf-8")
            .replace("http://www.w3.org/2000/svg", "")
            .replace("https?:", "")
            .replace('"https:"', "")
            .replace('"http:"', "")
        )
        assert "http:" not in text and "https:" not in text, file.name
        assert "innerHTML" not in text and "eval(" not in text, file.name
