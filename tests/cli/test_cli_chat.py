"""`qwenbox chat` on a terminal, with a small model that thinks."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

import pytest

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
    assert terminal.process.wait(30) == 0 and "Traceback" not in terminal.raw


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


def test_lines_are_remembered_by_the_next_chat_and_nobody_else_reads_them(terminal, qwenbox):
    terminal.ask("/system 你好，世界")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0
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
