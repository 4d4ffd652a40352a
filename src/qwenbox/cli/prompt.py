"""The line that a person types in `qwenbox chat`: history on the disk, completion of commands, pastes that stay one message."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from .texts import Texts

MAX_HISTORY_BYTES = 1 << 20
LONG_PASTE = 2000
"""Characters, or 20 lines, from which on a paste is shown as one mark."""


class Commands(Completer):
    """Completes commands with what they do, and what stands behind them."""

    def __init__(self, described: Mapping[str, str], models: Callable[[], Sequence[str]]) -> None:
        self._described = described
        self._models = models
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            return
        if not space:
            for name, meaning in self._described.items():
                if name.startswith(command):
                    yield Completion(name, -len(command), display_meta=meaning)
        elif command in ("/file", "/save"):
            yield from self._paths.get_completions(Document(rest), complete_event)
        elif command == "/model":
            yield from (Completion(name, -len(rest)) for name in self._models() if name.startswith(rest))


class Prompt:
    """Asks for messages. `pasted` long texts stand as marks in the line and are put back when it is sent."""

    def __init__(self, history: Path, completer: Completer, texts: Texts) -> None:
        self._texts = texts
        self._pasted: dict[str, str] = {}
        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(self._mark(event.data.replace("\r\n", "\n").replace("\r", "\n")))

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                event.app.exit(exception=EOFError)

        self._session: PromptSession[str] = PromptSession(
            key_bindings=keys, history=_history(history), completer=completer, complete_while_typing=True, reserve_space_for_menu=4
        )

    def lines(self) -> Iterator[str]:
        """Messages, until Ctrl-D, or Ctrl-C in an empty line."""
        while True:
            try:
                line = self._session.prompt("> ")
            except (EOFError, KeyboardInterrupt):
                return
            for mark, text in self._pasted.items():
                line = line.replace(mark, text)
            yield line

    def _mark(self, text: str) -> str:
        """What a paste looks like in the line."""
        lines = text.count("\n") + 1
        if len(text) < LONG_PASTE and lines < LONG_PASTE // 100:
            return text
        mark = self._texts("pasted", number=len(self._pasted) + 1, lines=lines, count=len(text))
        self._pasted[mark] = text
        return mark


def _history(path: Path) -> FileHistory | None:
    """Earlier lines, nobody else's to read; half of them where they have become too many. None where the disk takes none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        if path.stat().st_size > MAX_HISTORY_BYTES:
            late = path.read_bytes()[-MAX_HISTORY_BYTES // 2 :]
            path.write_bytes(late[max(late.find(b"\n# "), 0) :])
    except OSError:
        return None
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    return FileHistory(str(path))
