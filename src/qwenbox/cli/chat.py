"""`qwenbox chat [MODEL]`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenbox.errors import ContextLengthError, QwenboxError

from .options import ContextLength, Embedding, Head, Isa, MaxTokens, OptionalModel, Seed, System, Temperature, Thinking, Threads, TopK, TopP, Weights
from .run import Answer
from .session import note, open_llm, printable, thinking_votes
from .texts import Texts

if TYPE_CHECKING:
    from qwenbox.llm import LocalLLM
    from qwenbox.types import Event

COMMANDS = ("/help", "/new", "/model", "/think", "/fast", "/auto", "/show", "/system", "/file", "/copy", "/retry", "/undo", "/save", "/exit")
KEYS = ("Ctrl-C", "Alt-Enter")
DEPTHS = {"/think": "on", "/fast": "off", "/auto": "auto"}
MAX_COPY_BYTES = 72_000
"""Terminals take about 100,000 characters of an escape sequence, and base64 makes four of three bytes."""


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
    head: Head = None,
    embedding: Embedding = None,
    context_length: ContextLength = None,
    threads: Threads = None,
    isa: Isa = None,
) -> None:
    """Talk with a model. /help shows the commands; piped input is one message a line."""
    asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    asked["thinking"] = thinking_votes(thinking)
    overrides: dict[str, Any] = {
        "weights": weights,
        "head": head,
        "embedding": embedding,
        "context_length": context_length,
        "threads": threads,
        "isa": isa,
    }
    from qwenbox.settings import load_settings

    texts = Texts(load_settings().language)
    with closing(Models(model, overrides)) as models:
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        conversation = Conversation(models, system, asked, texts, interactive=interactive)
        if interactive:
            note(texts("begin", model=models.llm.name, window=models.llm.context_length))
        for line in _typed_lines(texts) if interactive else sys.stdin:
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

    def __init__(self, models: Models, system: str | None, asked: dict[str, Any], texts: Texts, *, interactive: bool = False) -> None:
        self._models = models
        self._texts = texts
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
            note("\n".join(f"{name:<10} {self._texts(f'help {name}')}" for name in (*COMMANDS, *KEYS)))
        elif command in ("/new", "/clear"):
            self._begin(self._system)
            note(self._texts("forgotten"))
        elif command == "/system":
            self._begin(rest.strip() or None)
            note(self._texts("system" if self._system else "no system"))
        elif command in DEPTHS and not rest:
            self._asked["thinking"] = thinking_votes(DEPTHS[command])
            note(self._texts(DEPTHS[command]))
        elif command in _ACTIONS:
            try:
                _ACTIONS[command](self, rest.strip())
            except QwenboxError as error:
                note(error.message)
        elif command.startswith("/") and command[1:].isalpha():
            note(self._texts("unknown", command=command))
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
            note("\n" + self._texts("stopped"))
        except ContextLengthError as error:
            note(f"{error.message} {self._texts('forget')}")
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
        return Answer(show=True) if console.is_dumb_terminal else LiveAnswer(console, self._texts)

    def _end(self, end: Event) -> None:
        """Under an answer: its numbers, and how full the context is."""
        if not self._interactive or end.usage is None:
            return
        texts, usage, seconds = self._texts, end.usage, (end.timings or {}).get("decode", 0.0)
        parts = [texts("tokens", count=usage.completion_tokens)]
        if usage.completion_tokens > 1 and seconds > 0:
            parts[0] += texts("rate", rate=(usage.completion_tokens - 1) / seconds)
        if end.finish_reason == "length":
            parts.append(texts("circles" if end.detail.get("stop_detail") == "loop" else "cut"))
        parts.append(texts("filled", used=usage.prompt_tokens + usage.completion_tokens, window=self._models.llm.context_length))
        note(f"\x1b[2m{texts('comma').join(parts)}\x1b[0m")

    def _model(self, name: str) -> None:
        if not name:
            note("\n".join([self._texts("models", model=self._models.llm.name), *installed_models()]))
            return
        self._models.switch(name)
        note(self._texts("context", model=self._models.llm.name, window=self._models.llm.context_length))

    def _show(self, _: str) -> None:
        note(printable(self._thought.strip()) or self._texts("no thought"))

    def _copy(self, what: str) -> None:
        """By the escape sequence with which a terminal is asked to fill the clipboard, over ssh too. Whether it did nobody tells."""
        from markdown_it import MarkdownIt

        from qwenbox.settings import takes_copies

        text = next((message["content"] for message in reversed(self._messages) if message["role"] == "assistant"), None)
        if text is None:
            note(self._texts("no answer"))
            return
        if what == "code":
            text = next((token.content for token in reversed(MarkdownIt("commonmark").parse(text)) if token.type in ("fence", "code_block")), "")
        data = text.encode("utf-8", "replace")
        if not data:
            note(self._texts("no code"))
        elif not (self._interactive and takes_copies()):
            note(self._texts("no clipboard"))
        elif len(data) > MAX_COPY_BYTES:
            note(self._texts("copy too long", count=len(text)))
        else:
            print(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07", end="", flush=True)
            note(self._texts("copied", count=len(text)))

    def _file(self, name: str) -> None:
        from qwenbox.documents import MAX_DOCUMENT_BYTES, read_document
        from qwenbox.errors import RequestError

        path = Path(name.strip("'\"")).expanduser()
        try:
            with path.open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            note(f"{printable(str(path))}: {error.strerror}.")
            return
        try:
            document = read_document(path.name, data)
        except RequestError as error:
            if not self._texts.has(known := (error.error_code or "").replace("_", " ")):
                raise
            note(self._texts(known, name=printable(path.name)))
            return
        fence = "```"
        while fence in document.text:
            fence += "`"
        text = f"{path.name}:\n{fence}\n{document.text}\n{fence}"
        count, window = len(self._models.llm.tokenizer.encode(text, control=False)), self._models.llm.context_length
        if count >= window:
            note(self._texts("file too long", name=printable(path.name), count=count, window=window))
            return
        self._files.append(text)
        note(self._texts("file taken", name=printable(path.name), count=count, window=window))

    def _retry(self, _: str) -> None:
        before = self._messages
        if (text := self._taken_back()) is not None:
            self._answer(text)
            self._messages = self._messages if len(self._messages) == len(before) else before

    def _undo(self, _: str) -> None:
        if (text := self._taken_back()) is not None:
            first = text.strip().splitlines()[0] if text.strip() else ""
            note(self._texts("taken back", text=printable(first[:60])))

    def _taken_back(self) -> str | None:
        """The last message, which is no longer part of the conversation."""
        if len(self._messages) < 2 or self._messages[-1]["role"] != "assistant":
            note(self._texts("no message"))
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
        note(self._texts("saved", path=printable(str(path))))


_ACTIONS = {
    "/model": Conversation._model,
    "/show": Conversation._show,
    "/copy": Conversation._copy,
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


def _typed_lines(texts: Texts) -> Iterator[str]:
    """Messages typed at the prompt."""
    from qwenbox.settings import load_settings

    from .prompt import Commands, Prompt

    commands = Commands({name: texts(f"help {name}") for name in COMMANDS}, installed_models)
    return Prompt(load_settings().state_dir / "chat_history", commands, texts).lines()
