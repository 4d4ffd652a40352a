"""An answer as a terminal shows it while it comes: its thought folded to a line, its Markdown formatted block by block.

A block of Markdown (a paragraph, a list, a piece of code) that another one follows is printed for good; only the last one is drawn again as it grows,
and of one that is taller than the terminal its last lines. So nothing flickers, and what has scrolled away is right.
"""

from __future__ import annotations

import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from qwenbox.errors import QwenboxError
from qwenbox.types import Event

from .session import printable
from .texts import Texts

REDRAW_SECONDS = 0.08
"""The last block is drawn at most this often, and at most a quarter of the time."""
SPARE_LINES = 2
"""Of the terminal's height, while a block is drawn."""

_parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def formatted(text: str) -> Markdown:
    """Markdown for the terminal. What looks like HTML is text, an address is shown beside its name, and nothing in it commands the terminal."""
    markdown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    markdown.parsed = _parser.parse(printable(text))
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":  # models mean the ends of their lines
                child.type = "hardbreak"
    return markdown


def settled(text: str) -> int:
    """How many characters of a text in Markdown belong to blocks that no more text can change: all but the last."""
    starts = [token.map[0] for token in _parser.parse(text) if token.level == 0 and token.map is not None and token.nesting >= 0]
    if len(starts) < 2:
        return 0
    return sum(len(line) for line in text.splitlines(keepends=True)[: starts[-1]])


class LiveAnswer:
    """Draws one answer. `text` and `reasoning` are what has come of it; `seconds` how long it thought."""

    def __init__(self, console: Console, texts: Texts) -> None:
        self._texts = texts
        self.text = ""
        self.reasoning = ""
        self.seconds = 0.0
        self._console = console
        self._printed = 0  # characters of the text
        self._began: float | None = None
        self._folded = False
        self._drawn = 0.0
        self._cost = 0.0
        self._num_lines = 0  # that stand on the terminal and will be drawn over

    def read(self, events: Iterator[Event]) -> Event:
        """The finish event. Raises the error that ended the answer; an interruption leaves what came before, shown."""
        with _without_echo():
            try:
                for event in events:
                    if event.kind == "error":
                        raise QwenboxError.from_wire(event.error or {})
                    if event.kind == "finish":
                        return event
                    self._take(event)
            finally:
                self._fold()
                rest, self._printed = self.text[self._printed :], len(self.text)
                self._write(_Block(formatted(rest)) if rest.strip() else None)
        raise AssertionError("a stream of events ends with finish or error")

    def _take(self, event: Event) -> None:
        if event.progress is not None:
            texts, progress = self._texts, event.progress
            known = "reading" if progress.seconds_left is None else "reading until"
            self._draw(_status(texts(known, read=progress.num_read, count=progress.num_tokens, seconds=progress.seconds_left)))
        elif event.kind == "reasoning":
            self._began = self._began or time.monotonic()
            self.reasoning += event.text
            self._draw(_Thought(self._texts("thinking", seconds=time.monotonic() - self._began), self.reasoning))
        elif event.kind == "content":
            self._fold()
            # Line ends that Python knows and Markdown does not would shift the lines of a block.
            self.text += event.text.replace("\r", "").translate(_OTHER_LINE_ENDS)
            tail = self.text[self._printed :]
            if (end := settled(tail)) > 0:
                self._printed += end
                self._write(_Block(formatted(tail[:end])), _Block(formatted(tail[end:])))
            elif tail.strip():
                self._draw(_Block(formatted(tail)))

    def _fold(self) -> None:
        """The thought is over, where there was one."""
        if self._began is None or self._folded:
            return
        self._folded = True
        self.seconds = time.monotonic() - self._began
        self._write(_status(self._texts("thought", seconds=self.seconds)))

    def _draw(self, what: RenderableType) -> None:
        """Something that will be drawn over, unless it is too early for that."""
        began = time.monotonic()
        if began - self._drawn < max(REDRAW_SECONDS, 3 * self._cost):
            return
        self._write(None, what)
        self._drawn = time.monotonic()
        self._cost = self._drawn - began

    def _write(self, lasting: RenderableType | None, passing: RenderableType | None = None) -> None:
        """In place of what was drawn: something that stays, and something below it that will be drawn over. One write, so that nothing flickers."""
        console = self._console
        lines: list[list[Segment]] = []
        if passing is not None:
            lines = console.render_lines(passing, console.options.update(height=None), pad=False)[-max(console.height - SPARE_LINES, 1) :]
        with console.capture() as captured:
            if lasting is not None:
                console.print(lasting)
            for line in lines:
                console.print(_Line(line))
        up = f"\x1b[{self._num_lines}A" if self._num_lines else ""
        console.file.write(f"{up}\r\x1b[J{captured.get()}")
        console.file.flush()
        self._num_lines = len(lines)


_OTHER_LINE_ENDS = dict.fromkeys(map(ord, "\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")


def _status(line: str) -> Text:
    return Text(line, style="dim", no_wrap=True, overflow="ellipsis")


@contextmanager
def _without_echo() -> Iterator[None]:
    """Keys that are pressed meanwhile are for the next prompt, and must not stand amid what is drawn."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Block:
    """A block between an empty line and nothing: rich puts more of them around some."""

    def __init__(self, what: RenderableType) -> None:
        self._what = what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        lines = [_trimmed(line) for line in console.render_lines(self._what, options, pad=False)]
        while lines and not lines[0]:
            del lines[0]
        while lines and not lines[-1]:
            del lines[-1]
        for line in [[], *lines]:
            yield from line
            yield Segment.line()


def _trimmed(line: list[Segment]) -> list[Segment]:
    """A line without blanks at its end, unless they are coloured."""
    while line and (line[-1].style is None or line[-1].style.bgcolor is None):
        last = line[-1]._replace(text=line[-1].text.rstrip())
        if last.text:
            return [*line[:-1], last]
        line = line[:-1]
    return line


class _Line:
    """A line that is laid out already."""

    def __init__(self, segments: list[Segment]) -> None:
        self._segments = segments

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        yield from self._segments
        yield Segment.line()


class _Thought:
    """One line: what it is, and the thought's last words as far as they fit."""

    def __init__(self, head: str, text: str) -> None:
        self._head = f"{head}  "
        self._text = " ".join(printable(text[-1000:]).split())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        head = self._head
        room, tail = options.max_width - cell_len(head) - 2, self._text
        if cell_len(tail) > room:
            start = len(tail)
            while start > 0 and cell_len(tail[start - 1 :]) < room:
                start -= 1
            tail = "…" + tail[start:]
        yield _status(head + tail)
