"""Files on the page: dropped, counted, sent whole or not at all."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.page import Page
from tests.documents.files import pdf
from tests.fakes import byte_tokenizer

pytestmark = pytest.mark.browser

DROP = """
const data = new DataTransfer();
for (const [name, body] of arguments[0]) data.items.add(new File([Uint8Array.from(atob(body), (char) => char.charCodeAt(0))], name));
for (const type of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: data }));
"""


def drop(page: Page, **files: bytes) -> None:
    page.chromium.execute_script(DROP, [[name.replace("_", "."), base64.b64encode(data).decode()] for name, data in files.items()])
    page.wait(lambda: not page.all('.file[aria-busy="true"]'))


def test_a_dropped_file_is_counted_and_goes_before_the_question(page: Page) -> None:
    drop(page, report_pdf=pdf(["Profit fell."]), notes_md="# Über\n笔记".encode())
    assert [chip.text.splitlines()[:2] for chip in page.all(".file")] == [["report.pdf", "12 tokens"], ["notes.md", "14 tokens"]]
    page.say("What happened?")
    page.wait(lambda: "Hello" in page.answer())
    prompt = byte_tokenizer().decode(page.engine.plans[0].prompt_ids)
    sent = '<file name="report.pdf">\nProfit fell.\n</file>\n\n<file name="notes.md">\n# Über\n笔记\n</file>\n\nWhat happened?'
    assert sent in prompt
    # The message shows the question, and the files folded.
    assert page.find(".message.user .body").text == "What happened?"
    assert [file.text for file in page.all(".sent-file")] == ["report.pdf", "notes.md"]
    page.find(".sent-file summary").click()
    assert page.find(".sent-file pre").text == "Profit fell."
    assert not page.all(".file")
    # Asked in other words, it has the same files.
    page.find(".edit").click()
    assert page.find(".edited textarea").get_attribute("value") == "What happened?"
    page.find(".edited textarea").send_keys(" And why?" + Keys.ENTER)
    page.wait(lambda: len(page.engine.plans) == 2 and page.finished())
    assert f"{sent} And why?" in byte_tokenizer().decode(page.engine.plans[1].prompt_ids)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_does_not_fit_or_cannot_be_read_is_not_sent_and_says_why(page: Page, language: str) -> None:
    if language == "zh":
        page.find("#language").click()
    drop(page, book_pdf=pdf([f"Page {number}\n" + "It goes on.\n" * 30 for number in range(300)]))
    note = page.find("#files-note")
    page.wait(lambda: note.text)
    assert "110,888" in note.text and "4,096" in note.text
    page.say("Hi")
    page.wait(lambda: page.script("return document.activeElement.closest('.file') !== null"))
    assert not page.engine.plans
    page.find(".file button").click()
    assert not note.text
    drop(page, empty_txt=b"")
    assert page.find(".file.bad span").text == {"en": "is empty", "zh": "是空的"}[language]
    page.find(".file button").click()
    page.find("#send").click()
    page.wait(lambda: page.engine.plans)


def test_the_page_with_files_fits_the_smallest_window_and_shows_a_picture(page: Page, look, tmp_path: Path) -> None:
    drop(page, a_long_name_of_a_report_that_nobody_can_remember_pdf=pdf(["x"]), b_md=b"text", empty_txt=b"")
    for width in (320, 1100):
        for dark in (False, True):
            look(width, dark=dark)
            assert page.script("return document.documentElement.scrollWidth") <= width
            page.chromium.save_screenshot(str(tmp_path / f"files-{width}-{dark}.png"))
