"""A model opened for a command: found, fetched if need be, loaded, with progress on standard error; and closed whatever happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenbox.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from qwenbox.llm import LocalLLM
    from qwenbox.settings import Settings
    from qwenbox.types import ThinkingVote

POLL_SECONDS = 0.05
LINE_SECONDS = 60.0
"""So often a line says how far it is, where standard error is no terminal."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Bars with the time that is left, on standard error where that is a terminal; they vanish when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


def resolve(model: str, settings: Settings) -> Path:
    """The verified file or directory of a model, fetched if it is not here. Raises NotFoundError, DownloadError."""
    from qwenbox import hub

    with progress_bar() as bar:
        task = bar.add_task("", total=None, visible=False)

        def report(phase: str, done: int, total: int) -> None:
            bar.update(task, description=f"{phase} {model}", completed=done, total=total, visible=True)

        return hub.resolve(model, settings, report)


@contextmanager
def open_llm(model: str | None, **overrides: Any) -> Iterator[LocalLLM]:
    """A loaded model that chats, in this process. `overrides` are settings. Raises what keeps the model from loading."""
    from qwenbox.engine.client import EngineOptions, InProcessEngine
    from qwenbox.llm import LocalLLM, default_thinking, model_name, open_chat
    from qwenbox.settings import load_settings

    settings = load_settings({"model": model, **overrides})
    path = resolve(settings.model, settings)
    chat = open_chat(path)
    engine = InProcessEngine(EngineOptions.from_settings(settings, model=str(path), tokens=chat.tokenizer.table()))
    try:
        llm = LocalLLM(engine, chat, model_name(settings.model), thinking=default_thinking(settings), loop_guard=settings.loop_guard)
        with progress_bar() as bar:
            task = bar.add_task(f"loading {llm.name}", total=1.0)
            while not llm.check_ready():
                bar.update(task, completed=engine.state().progress)
                time.sleep(POLL_SECONDS)
        yield llm
    finally:
        engine.close()


@contextmanager
def bar_of(name: str, total: float = 1.0) -> Iterator[Callable[[float], None]]:
    """A progress bar for so much work; what is given is called with how much of it is done. Without a terminal, a line now and then."""
    with progress_bar() as bar:
        line = bar.add_task(name, total=total)
        told = time.monotonic()

        def update(done: float) -> None:
            nonlocal told
            bar.update(line, completed=done)
            if bar.disable and (now := time.monotonic()) - told >= LINE_SECONDS:
                told = now
                note(f"{name}: {done / total:.0%}")

        yield update


def load_with_bar(load: Callable[[Callable[[float], None]], Any], name: str) -> Any:
    """What `load(progress)` returns, behind a progress bar."""
    with bar_of(f"loading {name}") as progress:
        return load(progress)


AUTO_SECONDS = 20.0
"""So long a person at a terminal waits for a thought that nobody asked for."""


def thinking_votes(wanted: str | None) -> tuple[ThinkingVote, ...]:
    """The option `--thinking`; without it automatic, or what the setting says. Raises UsageError."""
    from qwenbox.chat.thinking import vote_of
    from qwenbox.settings import load_settings
    from qwenbox.types import ThinkingVote

    if wanted is None and load_settings().thinking != "model":
        return ()
    if wanted in (None, "auto"):
        return (ThinkingVote("terminal", "auto", seconds=AUTO_SECONDS),)
    if wanted in ("on", "off"):
        return (vote_of("--thinking", wanted == "on"),)
    if wanted.isascii() and wanted.isdecimal() and int(wanted[:10]) > 0:
        return (vote_of("--thinking", int(wanted[:10])),)
    raise UsageError(f"--thinking is {wanted!r}: on, off, auto or a number of tokens is needed", param="thinking")


def note(text: str) -> None:
    """A line for the person, away from the answer."""
    print(text, file=sys.stderr, flush=True)


_TURNS = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that turn the direction of writing, and so could show a text as another."""
_CONTROLS = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0), *_TURNS) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text without control characters: what a model writes must not command the terminal."""
    return text.translate(_CONTROLS)
