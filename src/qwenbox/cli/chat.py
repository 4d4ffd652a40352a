"""`qwenbox chat [MODEL]`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenbox.errors import ContextLengthError, QwenboxError

from .options import ContextLength, Isa, MaxTokens, OptionalModel, Seed, System, Temperature, Thinking, Threads, TopK, TopP, Weights
from .run import Answer
from .session import note, open_llm, printable, thinking_votes

if TYPE_CHECKING:
    from qwenbox.llm import LocalLLM
    from qwenbox.types import Event

COMMANDS = {
    "/help": "this text",
    "/new": "forget the conversation and begin anew; /clear does too",
    "/model": "NAME talks to another model, without NAME shows which there are",
    "/think": "think before each answer",
    "/fast": "never think",
    "/auto": "think as the question needs it",
    "/show": "unfold the last thought",
    "/system": "TEXT sets the system message and begins anew; without TEXT removes it",
    "/file": "PATH puts the text of a file (txt, md, code, pdf, docx) into the next message",
    "/retry": "answer the last message once more",
    "/undo": "take the last message and its answer back",
    "/save": "PATH writes the conversation as Markdown",
    "/exit": "leave; Ctrl-D does too",
}
KEYS = {
    "Ctrl-C": "stop the answer and keep what there is of it; at an empty prompt, leave",
    "Alt-Enter": "a new line in the message; pasted lines stay one message",
}

DEPTHS = {
    "/think": ("on", "Every answer is thought about."),
    "/fast": ("off", "No answer is thought about."),
    "/auto": ("auto", "Whether to think is up to the question."),
}


def chat(
    model: OptionalModel = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    thinking: Thinking = None,
    weights: Weights = None,
    context_length: ContextLength = None,
    threads: Threads = None,
    isa: Isa = None,
) -> None:
    """Talk with a model. /help shows the commands; piped input is one message a line."""
    asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    asked["thinking"] = thinking_votes(thinking)
    overrides: dict[str, Any] = {"weights": weights, "context_length": context_length, "threads": threads, "isa": isa}
    with closing(Models(model, overrides)) as models:
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        conversation = Conversation(models, system, asked, interactive=interactive)
        if interactive:
            note(f"{models.llm.name}: {models.llm.context_length:,} tokens of context. /help shows the commands.")
        for line in _typed_lines() if interactive else sys.stdin:
            if not conversation.take(line.strip()):
                break


class Models:
    """The one model that is loaded, and the way to another."""

    def __init__(self, model: str | None, overrides: dict[str, Any]) -> None:
        self._overrides = overrides
        self._loaded = ExitStack()
        self._model = model
        self.llm: LocalLLM = self._loaded.enter_context(open_llm(model, **overrides))

    def switch(self, model: str) -> None:
        """Raises what keeps the model from loading; the one before is loaded again then."""
        from qwenbox import hub
        from qwenbox.settings import load_settings

        hub.resolve(model, load_settings({"model": model}))  # a name that is none costs nothing
        self._loaded.close()
        try:
            self.llm = self._loaded.enter_context(open_llm(model, **self._overrides))
        except BaseException:
            self.llm = self._loaded.enter_context(open_llm(self._model, **self._overrides))
            raise
        self._model = model

    def close(self) -> None:
        self._loaded.close()


def installed_models() -> list[str]:
    from qwenbox import hub
    from qwenbox.settings import load_settings

    return sorted(hub.installed(load_settings()))


class Conversation:
    """Messages so far, and what a line that the person typed does to them."""

    def __init__(self, models: Models, system: str | None, asked: dict[str, Any], *, interactive: bool = False) -> None:
        self._models = models
        self._asked = asked
        self._interactive = interactive
        self._thought = ""
        self._begin(system)

    def take(self, line: str) -> bool:
        """Answers a message or obeys a command; False when the person wants to leave."""
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if command == "/help":
            note("\n".join(f"{name:<10} {meaning}" for name, meaning in {**COMMANDS, **KEYS}.items()))
        elif command in ("/new", "/clear"):
            self._begin(self._system)
            note("The conversation is forgotten.")
        elif command == "/system":
            self._begin(rest.strip() or None)
            note("The system message is set." if self._system else "There is no system message.")
        elif command in DEPTHS and not rest:
            mode, said = DEPTHS[command]
            self._asked["thinking"] = thinking_votes(mode)
            note(said)
        elif command in _ACTIONS:
            try:
                _ACTIONS[command](self, rest.strip())
            except QwenboxError as error:
                note(error.message)
        elif command.startswith("/") and command[1:].isalpha():
            note(f"There is no command {command}; /help shows them all.")
        elif line:
            self._answer("\n\n".join([*self._files, line]))
        return True

    def _begin(self, system: str | None) -> None:
        self._system = system
        self._messages = [{"role": "system", "content": system}] if system else []
        self._files: list[str] = []

    def _answer(self, text: str) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        answer = self._shown()
        events = self._models.llm.stream(messages, **self._asked, progress=self._interactive)
        try:
            self._end(answer.read(events))
        except KeyboardInterrupt:
            note("\n(stopped)")
        except ContextLengthError as error:
            note(f"{error.message} /new forgets the conversation.")
            return
        except QwenboxError as error:
            if not self._interactive:
                raise
            note(error.message)
            return
        finally:
            _close(events)
        self._files = []
        self._thought = answer.reasoning
        self._messages = [*messages, {"role": "assistant", "content": answer.text}]

    def _shown(self) -> Any:
        if not self._interactive:
            return Answer(show=True)
        from rich.console import Console

        from .display import LiveAnswer

        console = Console(highlight=False)
        return Answer(show=True) if console.is_dumb_terminal else LiveAnswer(console)

    def _end(self, end: Event) -> None:
        """Under an answer: its numbers, and how full the context is."""
        if not self._interactive or end.usage is None:
            return
        usage, seconds, window = end.usage, (end.timings or {}).get("decode", 0.0), self._models.llm.context_length
        parts = [f"{usage.completion_tokens:,} tokens"]
        if usage.completion_tokens > 1 and seconds > 0:
            parts[0] += f" at {(usage.completion_tokens - 1) / seconds:.1f} tok/s"
        if end.finish_reason == "length":
            parts.append("ended: it went in circles" if end.detail.get("stop_detail") == "loop" else "cut at the limit of tokens")
        parts.append(f"context {usage.prompt_tokens + usage.completion_tokens:,} of {window:,}")
        note(f"\x1b[2m{', '.join(parts)}\x1b[0m")

    def _model(self, name: str) -> None:
        if not name:
            note("\n".join([f"{self._models.llm.name} answers. On this disk:", *installed_models()]))
            return
        self._models.switch(name)
        note(f"{self._models.llm.name}: {self._models.llm.context_length:,} tokens of context.")

    def _show(self, _: str) -> None:
        note(printable(self._thought.strip()) or "There was no thought.")

    def _file(self, name: str) -> None:
        from qwenbox.documents import MAX_DOCUMENT_BYTES, read_document

        path = Path(name.strip("'\"")).expanduser()
        try:
            with path.open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            note(f"{printable(str(path))}: {error.strerror}.")
            return
        document = read_document(path.name, data)
        fence = "```"
        while fence in document.text:
            fence += "`"
        text = f"{path.name}:\n{fence}\n{document.text}\n{fence}"
        count, window = len(self._models.llm.tokenizer.encode(text, control=False)), self._models.llm.context_length
        if count >= window:
            note(f"{path.name} has {count:,} tokens; {window:,} are the whole context.")
            return
        self._files.append(text)
        note(f"{path.name}: {count:,} of {window:,} tokens, for the next message.")

    def _retry(self, _: str) -> None:
        before = self._messages
        if (text := self._taken_back()) is not None:
            self._answer(text)
            self._messages = self._messages if len(self._messages) == len(before) else before

    def _undo(self, _: str) -> None:
        if (text := self._taken_back()) is not None:
            first = text.strip().splitlines()[0] if text.strip() else ""
            note(f"Taken back: {printable(first[:60])}")

    def _taken_back(self) -> str | None:
        """The last message, which is no longer part of the conversation."""
        if len(self._messages) < 2 or self._messages[-1]["role"] != "assistant":
            note("There is no message yet.")
            return None
        *self._messages, message, _ = self._messages
        return message["content"]

    def _save(self, name: str) -> None:
        path = Path(name.strip("'\"") or time.strftime("qwenbox-chat-%Y-%m-%d-%H%M%S.md")).expanduser()
        text = "\n\n".join(f"## {message['role'].capitalize()}\n\n{message['content'].strip()}" for message in self._messages)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            note(f"{printable(str(path))}: {error.strerror}.")
            return
        note(f"Saved as {printable(str(path))}.")


_ACTIONS = {
    "/model": Conversation._model,
    "/show": Conversation._show,
    "/file": Conversation._file,
    "/retry": Conversation._retry,
    "/undo": Conversation._undo,
    "/save": Conversation._save,
}


def _close(events: Iterator[object]) -> None:
    """Ends the request behind a stream that was left early."""
    close = getattr(events, "close", None)
    if close is not None:
        close()


def _typed_lines() -> Iterator[str]:
    """Messages typed at the prompt."""
    from qwenbox.settings import load_settings

    from .prompt import Commands, Prompt

    return Prompt(load_settings().state_dir / "chat_history", Commands(COMMANDS, installed_models)).lines()
