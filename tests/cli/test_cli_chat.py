"""`qwenbox chat` on a terminal, with a small model that thinks."""

from __future__ import annotations

import base64
import re
import stat
import string
from collections.abc import Iterator

import pytest

from qwenbox.cli.chat import COMMANDS, DEPTHS, KEYS
from qwenbox.cli.texts import TEXTS
from tests.cli.command import Command
from tests.cli.terminal import Terminal
from tests.thinker import ENDLESS, MODEL

SUM = "What is 3 + 4 + 5?"


@pytest.fixture
def terminal(qwenbox: Command) -> Iterator[Terminal]:
    terminal = Terminal(qwenbox, "chat", MODEL, "--temperature", 0, "--max-tokens", 1500, "--thinking", "on")
    terminal.wait_for("\x1b[?2004h")
    yield terminal
    terminal.close()


def test_a_thought_is_a_line_with_its_seconds_and_unfolds_when_asked(terminal):
    terminal.ask(SUM)
    text = "\n".join(terminal.lines)
    assert re.search(r"Thought for \d+\.\d s; /show unfolds it\.", text) and "3+4=7" not in text
    assert re.search(r"\d tokens at [\d.]+ tok/s, context \d+ of 4,096", text)
    terminal.ask("/show")
    assert "3+4=7" in "\n".join(terminal.lines)
    terminal.ask("/fast")
    terminal.ask("/new")
    terminal.ask(SUM)
    assert "\n".join(terminal.lines).count("Thought for") == 1


def test_an_answer_is_stopped_and_kept_and_taken_back_and_asked_again(terminal, qwenbox):
    terminal.type(ENDLESS + "\r")
    terminal.wait_for("Thinking")
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("\x1b[?2004h")
    terminal.ask("/undo")
    assert f"Taken back: {ENDLESS}" in terminal.lines
    terminal.ask("/retry")
    assert "There is no message yet." in terminal.lines
    terminal.ask(SUM)
    terminal.ask("/retry")
    assert "\n".join(terminal.lines).count("Thought for") >= 2
    terminal.ask("/save talk.md")
    saved = (qwenbox.folder / "talk.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"## User\n\nWhat is 3 \+ 4 \+ 5\?\n\n## Assistant\n\n[^#]+\n", saved)
    terminal.ask("/save talk.md")
    assert "talk.md: File exists." in terminal.lines
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0 and "Traceback" not in terminal.raw


def test_pasted_lines_are_one_message_and_many_are_a_mark(terminal, qwenbox):
    terminal.paste("first line\r\nWhat is 3 + 4?")
    terminal.ask("")
    long = "\n".join(f"line {number}" for number in range(300))
    terminal.paste(long)
    terminal.wait_for("[pasted text 1: 300 lines")
    terminal.type("\x03")  # clears the line
    terminal.ask("/save talk.md")
    saved = (qwenbox.folder / "talk.md").read_text(encoding="utf-8")
    assert saved.startswith("## User\n\nfirst line\nWhat is 3 + 4?\n\n## Assistant")
    assert saved.count("## User") == 1


def test_a_file_goes_into_the_next_message_and_one_that_does_not_fit_says_both_numbers(terminal, qwenbox):
    (qwenbox.folder / "small.txt").write_text("3 + 4 + 5", encoding="utf-8")
    (qwenbox.folder / "huge.txt").write_text("word " * 20_000, encoding="utf-8")
    terminal.ask("/file small.txt")
    terminal.ask("/file huge.txt")
    terminal.ask("/file none.txt")
    text = "\n".join(terminal.lines)
    assert re.search(r"small.txt: \d+ of [\d,]+ tokens, for the next message\.", text)
    assert re.search(r"huge.txt has [\d,]+ tokens; [\d,]+ are the whole context\.", text)
    assert "none.txt: No such file or directory." in text
    terminal.ask("What is it?")
    terminal.ask("/save talk.md")
    assert "small.txt:\n```\n3 + 4 + 5\n```\n\nWhat is it?" in (qwenbox.folder / "talk.md").read_text(encoding="utf-8")


def test_an_answer_is_copied_by_way_of_the_terminal_and_where_it_takes_none_that_is_said(terminal, qwenbox):
    terminal.ask("/copy")
    assert "There is no answer yet." in terminal.lines
    terminal.ask(SUM)
    terminal.ask("/copy code")
    assert "The last answer has no piece of code." in terminal.lines
    terminal.ask("/copy")
    (sequence,) = re.findall(r"\x1b\]52;c;([A-Za-z0-9+/=]+)\x07", terminal.raw)
    terminal.ask("/save talk.md")
    answer = (qwenbox.folder / "talk.md").read_text(encoding="utf-8").partition("## Assistant\n\n")[2]
    assert base64.b64decode(sequence).decode().strip() == answer.strip() != ""
    piped = qwenbox("chat", MODEL, "--temperature", 0, input=f"{SUM}\n/copy\n")
    assert "This terminal has no clipboard" in piped.stderr and "\x1b" not in piped.stdout


def test_the_chat_speaks_the_language_of_the_locale_or_of_the_setting(qwenbox):
    qwenbox.env |= {"LC_ALL": "zh_CN.UTF-8"}
    terminal = Terminal(qwenbox, "chat", MODEL, "--temperature", 0, "--thinking", "on")
    try:
        terminal.wait_for("显示所有命令。")
        terminal.wait_for("\x1b[?2004h")
        terminal.ask(SUM)
        terminal.ask("/help")
        text = "\n".join(terminal.lines).replace(" ", "")
        assert re.search(r"思考了[\d.]+秒；/show可以展开。", text) and re.search(r"\d个token，[\d.]+token/秒，上下文\d+/4,096", text)
        assert "/undo撤回最近一条消息和它的回答" in text
        (qwenbox.folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
        terminal.ask("/file broken.pdf")
        terminal.ask("/撤回")
        assert "broken.pdf已损坏。" in "\n".join(terminal.lines).replace(" ", "")
    finally:
        terminal.close()
    assert "There is no command /x" in qwenbox("chat", MODEL, input="/x\n", env={"QWENBOX_LANGUAGE": "en"}).stderr
    assert "没有 /x 这个命令" in qwenbox("chat", MODEL, input="/x\n").stderr


def test_both_languages_have_the_same_sentences():
    english, chinese = TEXTS["en"], TEXTS["zh"]
    assert list(english) == list(chinese)
    for name, text in english.items():
        assert fields_of(text) == fields_of(chinese[name]), name
    assert {f"help {name}" for name in (*COMMANDS, *KEYS)} == {name for name in english if name.startswith("help ")}
    assert set(DEPTHS.values()) <= set(english)


def fields_of(text: str) -> set[tuple[str, str]]:
    return {(field, form or "") for _, field, form, _ in string.Formatter().parse(text) if field}


def test_lines_are_remembered_by_the_next_chat_and_nobody_else_reads_them(terminal, qwenbox):
    terminal.ask("/system 你好，世界")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    file = qwenbox.folder / "state" / "qwenbox" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = Terminal(qwenbox, "chat", MODEL, columns=24)
    try:
        again.wait_for("\x1b[?2004h")
        again.type("\x1b[A")
        again.wait_for("世界")
        assert "> /system 你好，世界" in again.lines
    finally:
        again.close()


def test_commands_are_completed_and_listed_in_a_narrow_terminal(qwenbox):
    terminal = Terminal(qwenbox, "chat", MODEL, "--temperature", 0, columns=30)
    try:
        terminal.wait_for("\x1b[?2004h")
        terminal.type("/unk")
        terminal.type("\x03")
        terminal.type("/und")
        terminal.wait_for("/undo")
        terminal.type("\x03")
        terminal.ask("/help")
        assert any(line.startswith("/retry") for line in terminal.lines)
        terminal.ask("/nonsense")
        assert "There is no command /nonse" in "".join(terminal.lines)
        terminal.ask("/model nonsense")
        terminal.ask(SUM)
        assert any("Thought for" in line for line in terminal.lines) or any("tok/s" in line for line in terminal.lines)
    finally:
        terminal.close()
