"""What a terminal shows of an answer in Markdown while it comes, and in the end; and how far a long piece of work is."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import pyte
import pytest
from rich.console import Console

from qwenbox.cli import display, session
from qwenbox.cli.display import LiveAnswer, formatted, settled
from qwenbox.cli.texts import Texts
from qwenbox.types import Event

TEXT = """# Numbers

Some *text* with `code`, <div> and [a link](http://x.y/z)
and another line.

1. 第一行非常长的文字第一行非常长的文字第一行非常长的文字
2. second
   - inner

```python
def f(x):

    return x  # comment
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

the end
"""


def screen_of(text: str, sizes: Iterator[int], *, width: int, height: int = 12) -> tuple[list[str], str]:
    """All lines that a terminal of this size shows, and everything that was written to it."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, highlight=False, _environ={"TERM": "xterm-256color"})

    def events() -> Iterator[Event]:
        at = 0
        while at < len(text):
            size = next(sizes)
            yield Event("content", text[at : at + size])
            at += size
        yield Event("finish", finish_reason="stop")

    LiveAnswer(console, Texts("en")).read(events())
    screen = pyte.HistoryScreen(width, height, history=10_000)
    pyte.Stream(screen).feed(out.getvalue().replace("\n", "\r\n"))
    before = ["".join(line[column].data for column in range(width)) for line in screen.history.top]
    return [line.rstrip() for line in (*before, *screen.display)], out.getvalue()


@pytest.fixture(autouse=True)
def every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "REDRAW_SECONDS", -1e9)


@pytest.mark.parametrize("width", [20, 40, 100])
def test_however_it_comes_the_same_stands_there_in_the_end(width: int) -> None:
    whole = [line for line in screen_of(TEXT, iter([len(TEXT)]), width=width)[0] if line]
    for seed in range(5):
        rng = random.Random(seed)
        lines, _ = screen_of(TEXT, iter(lambda rng=rng: rng.randint(1, 9), 0), width=width)
        assert [line for line in lines if line] == whole
    assert "<div>" in " ".join(whole) and "def f(x):" in " ".join(whole) and all(len(line) <= width for line in whole)


def test_a_block_taller_than_the_terminal_ends_up_whole() -> None:
    text = "```\n" + "\n".join(f"line {number}" for number in range(100)) + "\n```\n"
    lines, _ = screen_of(text, iter(lambda: 7, 0), width=40, height=10)
    assert [line.strip() for line in lines if line.strip()] == [f"line {number}" for number in range(100)]


def test_only_the_last_block_is_drawn_again() -> None:
    text = "\n\n".join(f"paragraph {number}" for number in range(50))
    _, written = screen_of(text, iter(lambda: 3, 0), width=40)
    assert written.count("paragraph 7\r\n") + written.count("paragraph 7\n") <= 6
    assert settled("one\n\ntwo") == 5 and settled("- a\n- b\n") == 0 and settled("```\n\na\n\n\nb") == 0


def test_nothing_in_an_answer_commands_the_terminal() -> None:
    evil = "a \x1b]52;c;aGk=\x07 \x1b[2J \x9b31m \u202e [x](javascript:alert(1)) ![i](http://x/y.png)\n\n```\n\x1b]0;title\x07\n```"
    console = Console(file=(out := io.StringIO()), force_terminal=True, width=60, highlight=False)
    console.print(formatted(evil))
    assert not any(mark in out.getvalue() for mark in ("\x1b]", "\x07", "\x9b", "\x1b[2J", "\u202e"))


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with session.bar_of("problems", 8) as progress:
        progress(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(session, "LINE_SECONDS", 0.0)
    with session.bar_of("problems", 8) as progress:
        progress(2)
        progress(8)
    assert capsys.readouterr().err == "problems: 25%\nproblems: 100%\n"
