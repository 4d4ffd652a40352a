"""The page's conversations in a real browser, over the real service: they outlive a reload, branch, are found, renamed, exported and deleted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from qwenbox.server.titles import Titles
from tests.browser.page import Page
from tests.chat.small import small_document
from tests.checkpoint import write_checkpoint
from tests.cli.command import Command
from tests.cli.test_cli_serve import ask as ask_service
from tests.cli.test_cli_serve import first_url, wait_ready
from tests.cli.test_serve_faults import worker_of
from tests.fakes import Script, byte_tokenizer_ids

pytestmark = pytest.mark.browser
LONG = "数到一百 counting " * 60
make_titles = Titles.ask


def titles(page: Page) -> list[str]:
    return page.texts("#history .name")


def said(page: Page) -> list[str]:
    return page.texts(".message > .body")


def ask(page: Page, question: str, answer: str) -> None:
    page.engine.script = Script(answer)
    page.say(question)
    page.wait(lambda: page.finished() and said(page)[-2:] == [question, answer])


def action(page: Page, title: str, name: str) -> None:
    page.wait(lambda: page.all("#history .menu")[titles(page).index(title)].click() or True)
    page.wait(lambda: page.all(f"#history .row:not([hidden]) .{name}"))
    page.click(f"#history .row:not([hidden]) .{name}")


def press(page: Page, number: int) -> None:
    """Opens the conversation in this place of the list, which may be drawn anew at the same moment."""
    page.wait(lambda: page.all("#history .open")[number].click() or True)


def test_a_reload_in_the_middle_of_an_answer_goes_on_live_and_stop_still_stops_it(page: Page) -> None:
    page.engine.script, page.engine.step_seconds = Script(reply=lambda plan: byte_tokenizer_ids(LONG)), 0.002
    page.say("count")
    page.wait(lambda: len(page.answer()) > 20)
    page.engine.pause()
    page.open()
    page.wait(lambda: page.all(".message.assistant") and len(page.answer()) > 20)
    seen = page.answer()
    assert not page.finished() and page.find("#stop").is_displayed()
    page.engine.resume()
    page.wait(lambda: len(page.answer()) > len(seen) + 20)
    page.find("#stop").click()
    page.wait(page.finished)
    assert len(page.engine.plans) == 1 and page.engine.cancelled == [page.engine.plans[0].request_id]
    assert "stopped" in page.find(".message.assistant .actions").text
    shown = page.answer()
    page.open()
    page.wait(lambda: page.all(".message.assistant") and page.finished())
    assert page.answer() == shown


def test_an_answer_goes_on_while_another_conversation_is_read(page: Page) -> None:
    ask(page, "first", "One.")
    page.engine.script, page.engine.step_seconds = Script(reply=lambda plan: byte_tokenizer_ids(LONG)), 0.002
    page.find("#new-chat").click()
    page.say("count")
    page.wait(lambda: len(page.all(".message.assistant")) == 1 and len(page.answer()) > 20)
    page.engine.pause()
    page.wait(lambda: titles(page) == ["count", "first"] and page.all("#history .dot"))
    press(page, 1)
    page.wait(lambda: said(page) == ["first", "One."])
    page.wait(lambda: page.find("#send").is_displayed())
    page.engine.resume()
    page.engine.wait_for(lambda engine: engine.num_running == 0)
    press(page, 0)
    page.wait(lambda: said(page) == ["count", LONG.strip()])
    assert page.engine.cancelled == []


def test_an_edited_question_and_an_answer_made_again_are_branches_between_which_arrows_lead(page: Page) -> None:
    ask(page, "two and two?", "Four.")
    ask(page, "sure?", "Yes.")
    page.engine.script = Script("Six.")
    page.all(".edit")[0].click()
    page.find(".edited textarea").clear()
    page.find(".edited textarea").send_keys("three and three?" + Keys.ENTER)
    page.wait(lambda: said(page) == ["three and three?", "Six."] and page.finished())
    page.engine.script = Script("Half a dozen.")
    page.find(".message.assistant .again").click()
    page.wait(lambda: said(page) == ["three and three?", "Half a dozen."] and page.finished())
    assert [node.text for node in page.all(".place")] == ["2 / 2", "2 / 2"]
    page.all(".earlier")[1].send_keys(Keys.ENTER)
    page.wait(lambda: said(page) == ["three and three?", "Six."])
    page.all(".earlier")[0].send_keys(Keys.ENTER)
    page.wait(lambda: said(page) == ["two and two?", "Four.", "sure?", "Yes."])
    page.open()
    page.wait(lambda: said(page) == ["two and two?", "Four.", "sure?", "Yes."])
    page.all(".later")[0].click()
    page.wait(lambda: said(page) == ["three and three?", "Half a dozen."])  # the newest of them
    prompt = bytes(id for id in page.engine.plans[-1].prompt_ids if id < 256).decode()
    assert "three and three?" in prompt and "two and two?" not in prompt


@pytest.mark.parametrize("language", ["en", "zh"])
def test_conversations_are_found_renamed_and_deleted(page: Page, language: str) -> None:
    if language == "zh":
        page.find("#language").click()
    found, nothing = {"en": ("1 found", "Nothing found"), "zh": ("找到 1 个", "没有找到")}[language]
    ask(page, "什么是递归？", "递归就是自己调用自己。")
    page.find("#new-chat").click()
    ask(page, "hello", "Hi.")
    page.wait(lambda: titles(page) == ["hello", "什么是递归？"])
    page.find("#find").send_keys("调用")
    page.wait(lambda: page.find("#find-status").text == found and titles(page) == ["什么是递归？"])
    assert "自己调用自己" in page.find("#history .snippet").text
    page.find("#find").send_keys("x")
    page.wait(lambda: page.find("#find-status").text == nothing and titles(page) == [])
    page.find("#find").clear()
    page.find("#find").send_keys(" ")
    page.wait(lambda: len(titles(page)) == 2)
    action(page, "hello", "rename")
    page.find("#history input").send_keys(Keys.CONTROL + "a" + Keys.NULL + "Grüße 你好" + Keys.ENTER)
    page.wait(lambda: titles(page)[0] == "Grüße 你好")
    action(page, "Grüße 你好", "remove")
    page.wait(lambda: page.find("#remove").is_displayed())
    assert "Grüße 你好" in page.find("#remove-text").text
    page.find("#remove [value=keep]").click()
    assert len(titles(page)) == 2
    page.click("#history .row:not([hidden]) .remove")
    page.find("#remove [value=remove]").click()
    page.wait(lambda: titles(page) == ["什么是递归？"])
    page.wait(lambda: page.find("#welcome").is_displayed())  # it was the one on the screen


def test_a_conversation_is_exported_and_taken_back(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    page.chromium.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    ask(page, "what is 2/3?", "Two thirds. 三分之二")
    page.wait(lambda: titles(page) == ["what is 2/3?"])
    action(page, "what is 2/3?", "as-markdown")
    page.click("#history .as-json")
    markdown, exported = folder / "what is 2 3.md", folder / "what is 2 3.json"
    page.wait(lambda: markdown.exists() and exported.exists())
    assert markdown.read_text(encoding="utf-8").startswith("# what is 2/3?") and "Two thirds. 三分之二" in markdown.read_text(encoding="utf-8")
    body = json.loads(exported.read_text(encoding="utf-8"))
    assert [message["content"] for message in body["messages"]] == ["what is 2/3?", "Two thirds. 三分之二"]
    page.find("#new-chat").click()
    page.wait(lambda: said(page) == [])
    page.find("#import-choice").send_keys(str(exported))
    page.wait(lambda: titles(page) == ["what is 2/3?"] * 2 and said(page) == ["what is 2/3?", "Two thirds. 三分之二"])
    assert page.all("#history .open")[0].get_attribute("aria-current") == "true"  # the copy
    page.find("#import-choice").send_keys(str(markdown))
    page.wait(lambda: page.find("#find-status").text == "0 imported\nwhat is 2 3.md: it is no JSON")
    assert len(titles(page)) == 2
    page.find("#language").click()
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps([{"title": "旅行"}, {**body, "version": 2, "title": "New"}, {**body, "messages": 5, "title": "Odd"}]))
    page.find("#import-choice").send_keys(str(foreign))
    told = "已导入 0 个\n旅行：不是 qwenbox、ChatGPT 或 Open WebUI 导出的\nNew：由更新版本的 qwenbox 导出，请先升级\nOdd：messages 与导出的格式不符"
    page.wait(lambda: page.find("#find-status").text == told)


def test_a_second_window_shows_what_the_first_one_does(page: Page) -> None:
    ask(page, "first", "One.")
    here = page.chromium.current_window_handle
    page.chromium.switch_to.new_window("window")
    try:
        there = page.chromium.current_window_handle
        page.open()
        page.wait(lambda: said(page) == ["first", "One."] and titles(page) == ["first"])
        page.engine.script, page.engine.step_seconds = Script(reply=lambda plan: byte_tokenizer_ids(LONG)), 0.002
        page.say("count")
        page.wait(lambda: len(page.answer()) > 20)
        page.engine.pause()
        page.chromium.switch_to.window(here)
        page.wait(lambda: said(page)[:3] == ["first", "One.", "count"] and len(page.answer()) > 20)
        assert page.find("#stop").is_displayed()
        page.engine.resume()
        page.wait(lambda: page.finished() and said(page)[-1] == LONG.strip())
        page.engine.script = Script("Other.")
        page.find("#new-chat").click()
        ask(page, "another", "Other.")
        action(page, "first", "rename")
        page.find("#history input").send_keys(Keys.CONTROL + "a" + Keys.NULL + "renamed" + Keys.ENTER)
        page.chromium.switch_to.window(there)
        page.wait(lambda: sorted(titles(page)) == ["another", "renamed"])
        assert said(page)[-1] == LONG.strip()  # each stays where it is
    finally:
        for handle in page.chromium.window_handles:
            if handle != here:
                page.chromium.switch_to.window(handle)
                page.chromium.close()
        page.chromium.switch_to.window(here)


def test_what_this_browser_kept_before_is_taken_over_once(page: Page) -> None:
    kept = [
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "times", "reasoning": "hm", "why": "It was short.", "state": "running"},
    ]
    page.script(f"localStorage.setItem('qwenbox.messages', {json.dumps(json.dumps(kept))})")
    page.open()
    page.wait(lambda: said(page) == ["old", "times"] and titles(page) == ["old"])
    assert "interrupted" in page.find(".message.assistant .actions").text
    page.open()
    page.wait(lambda: said(page) == ["old", "times"])
    page.wait(lambda: titles(page) == ["old"])
    assert page.script("return localStorage.getItem('qwenbox.messages')") is None


def test_a_question_that_could_not_be_kept_says_so_stays_and_can_be_asked_again(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(str(page.service.archive.path)).parent
    page.service.archive._thread.submit(page.service.archive._shut).result()
    folder.rename(folder.with_name("away"))
    folder.write_text("in the way")
    page.say("precious")
    page.wait(lambda: page.all(".problem"))
    assert "--no-archive" in page.find(".problem").text and said(page) == ["precious"]
    folder.unlink()
    folder.with_name("away").rename(folder)
    page.engine.script = Script("Kept.")
    page.find(".problem .again").click()
    page.wait(lambda: said(page) == ["precious", "Kept."] and page.finished())


def test_a_title_comes_after_the_answer(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Titles, "ask", make_titles)
    page.engine.script = Script(reply=lambda plan: [*byte_tokenizer_ids("Short Title" if plan.priority == 1000 else "Sure."), *plan.stop_ids[:1]])
    page.say("a long question about nothing at all, in many words, so that it is cut somewhere")
    page.wait(page.finished)
    page.wait(lambda: titles(page) == ["Short Title"])


def test_on_a_narrow_screen_the_list_is_a_drawer_for_keyboard_and_finger(page: Page, look: Callable[..., None]) -> None:
    ask(page, "hello", "Hi.")
    look(320)
    page.open()
    page.wait(lambda: said(page) == ["hello", "Hi."])
    sidebar: Any = page.find("#sidebar")
    assert not page.find("#find").is_displayed() and sidebar.get_property("inert")
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    opener = page.find("#open-sidebar")
    assert opener.accessible_name == "Conversations" and opener.get_attribute("aria-expanded") == "false"
    opener.send_keys(Keys.ENTER)
    page.wait(lambda: page.find("#find").is_displayed() and page.script("return document.activeElement.id") == "find")
    page.script("document.activeElement.blur()")
    page.find("body").send_keys(Keys.ESCAPE)
    page.wait(lambda: not page.find("#find").is_displayed() and page.script("return document.activeElement.id") == "open-sidebar")
    opener.click()
    page.wait(lambda: page.find("#close-sidebar").is_displayed() and page.find("#composer").get_property("inert"))
    page.find("#close-sidebar").click()
    page.wait(lambda: not page.find("#find").is_displayed() and not page.find("#composer").get_property("inert"))
    opener.click()
    page.wait(lambda: page.find("#history .open").is_displayed())
    assert page.find("#history .open").get_attribute("aria-current") == "true"
    page.find("#history .open").click()
    page.wait(lambda: not page.find("#find").is_displayed())


def test_a_page_whose_service_was_killed_finds_its_answer_again_as_far_as_it_was_kept(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    command, folder = Command(tmp_path), tmp_path / "tiny"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(small_document()), encoding="utf-8")
    model = write_checkpoint(folder, vocab=300, positions=2048)
    try:
        process = command.start("serve", model, "--port", 0)
        url = first_url(process)
        wait_ready(url)
        chromium.get(url + "/")
        WebDriverWait(chromium, 60).until(lambda window: window.find_element("css selector", "#prompt").is_displayed())
        os.kill(worker_of(process), signal.SIGSTOP)  # so that the answer is under way when the service is killed
        chromium.find_element("css selector", "#prompt").send_keys("abc" + Keys.ENTER)

        def last() -> Any:
            listed = ask_service(url, "/conversations")[1]["conversations"]
            return ([{}] + [one for it in listed for one in ask_service(url, f"/conversations/{it['id']}")[1]["messages"]])[-1]

        WebDriverWait(chromium, 60).until(lambda _: last().get("request_id"))
        process.kill()
        process.wait()
        again = command.start("serve", model, "--port", urlsplit(url).port or 0)
        first_url(again)
        WebDriverWait(chromium, 60).until(lambda window: "interrupted" in window.find_element("css selector", "#conversation").text)
        assert chromium.find_element("css selector", ".message.user .body").text == "abc"
        assert last()["state"] == "interrupted"
    finally:
        command.end()
