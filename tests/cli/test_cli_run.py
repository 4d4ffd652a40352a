"""`qwenbox run` and `qwenbox chat` on the small real model."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.cli.terminal import Terminal

pytestmark = pytest.mark.weights

CAPITAL = "What is the capital of France? Answer with one word."
LONG = "Explain in ten long paragraphs how a computer works."


def test_run_prints_only_the_answer(qwenbox: Command, small: Path) -> None:
    done = qwenbox("run", small, CAPITAL, "--temperature", 0)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Paris\.?\n", done.stdout)
    assert "tok/s" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_reads_the_prompt_from_standard_input(qwenbox: Command, small: Path) -> None:
    done = qwenbox("run", small, "-", "--temperature", 0, "--quiet", input=CAPITAL)
    assert "Paris" in done.stdout
    assert done.stderr == ""


def test_run_as_json_is_one_line_with_the_counts(qwenbox: Command, small: Path) -> None:
    done = qwenbox("run", small, LONG, "--max-tokens", 5, "--temperature", 0.7, "--seed", 1, "--json")
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert result["finish_reason"] == "length"
    assert result["usage"]["completion_tokens"] == 5
    assert result["text"]


def test_the_same_seed_gives_the_same_answer(qwenbox: Command, small: Path) -> None:
    words = ("run", small, "Invent a name for a dog.", "--max-tokens", 12, "--temperature", 1.5, "--quiet")
    first, second, other = (qwenbox(*words, "--seed", seed).stdout for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_stop_and_system_reach_the_model(qwenbox: Command, small: Path) -> None:
    done = qwenbox("run", small, "Count from 1 to 9.", "--system", "You answer with digits and commas only.", "--stop", "5", "--temperature", 0, "-q")
    assert "4" in done.stdout
    assert "5" not in done.stdout


def test_a_prompt_that_does_not_fit_names_both_numbers(qwenbox: Command, small: Path) -> None:
    done = qwenbox("run", small, "word " * 100, "--context-length", 64)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(r"\b1\d\d tokens\b.*\b64\b", done.stderr)


@pytest.mark.parametrize(
    ("option", "value", "code"), [("--temperature", "nan", 2), ("--isa", "sse9", 2), ("--weights", "int3", 2), ("--context-length", 10**9, 2)]
)
def test_what_cannot_be_honoured_is_named(qwenbox: Command, small: Path, option: str, value: object, code: int) -> None:
    done = qwenbox("run", small, "hello", option, value)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert option.strip("-").replace("-", "_") in done.stderr or str(value) in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_run_with_130_and_without_a_traceback(qwenbox: Command, small: Path) -> None:
    process = qwenbox.start("run", small, LONG, "--max-tokens", 4000)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in qwenbox.errors


def test_a_reader_that_goes_away_ends_run_quietly(qwenbox: Command, small: Path) -> None:
    process = qwenbox.start("run", small, LONG, "--max-tokens", 4000)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in qwenbox.errors


def test_chat_through_a_pipe_remembers_and_forgets(qwenbox: Command, small: Path) -> None:
    lines = ["/system You are terse.", "My name is Wilhelmina.", "What is my name?", "/clear", "/nonsense", "What is my name?", "/exit", "never read"]
    done = qwenbox("chat", small, "--temperature", 0, "--max-tokens", 40, input="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.rsplit("Wilhelmina", 1)
    assert before
    assert after
    assert "no command /nonsense" in done.stderr
    assert "forgotten" in done.stderr


def test_in_a_terminal_ctrl_c_stops_the_answer_and_then_leaves(qwenbox: Command, small: Path) -> None:
    terminal = Terminal(qwenbox, "chat", small, "--max-tokens", 4000)
    try:
        terminal.wait_for("/help")
        terminal.wait_for(">")
        terminal.type(LONG + "\r")
        terminal.wait_for("\x1b[?2004l")  # the prompt gives the terminal back
        terminal.wait_for("computer")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("(stopped)")
        terminal.wait_for(">")
        terminal.type("\x03")
        assert terminal.process.wait(60) == 0
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()
