"""`qwenbox chat [MODEL]`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qwenbox.errors import ContextLengthError

from .options import ContextLength, Isa, MaxTokens, OptionalModel, Seed, System, Temperature, Thinking, Threads, TopK, TopP, Weights
from .run import Answer
from .session import note, open_llm, thinking_votes

if TYPE_CHECKING:
    from qwenbox.llm import LocalLLM

HELP = """\
/help           this text
/clear          forget the conversation
/system TEXT    set the system message and begin anew; without TEXT remove it
/think          think before each answer; /fast never, /auto as the question needs it
/exit           leave (Ctrl-D does too)
Ctrl-C          stop the answer; at the prompt, leave
Alt-Enter       a new line in the message"""

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
    with open_llm(model, weights=weights, context_length=context_length, threads=threads, isa=isa) as llm:
        conversation = Conversation(llm, system, asked)
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            note(f"{llm.name}: {llm.context_length:,} tokens of context. /help shows the commands.")
        for line in _typed_lines() if interactive else sys.stdin:
            if not conversation.take(line.strip()):
                break


class Conversation:
    """Messages so far, and what a line that the person typed does to them."""

    def __init__(self, llm: LocalLLM, system: str | None, asked: dict[str, Any]) -> None:
        self._llm = llm
        self._asked = asked
        self._begin(system)

    def take(self, line: str) -> bool:
        """Answers a message or obeys a command; False when the person wants to leave."""
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if command == "/help":
            note(HELP)
        elif command == "/clear":
            self._begin(self._system)
            note("The conversation is forgotten.")
        elif command == "/system":
            self._begin(rest.strip() or None)
            note("The system message is set." if self._system else "There is no system message.")
        elif command in DEPTHS and not rest:
            mode, said = DEPTHS[command]
            self._asked["thinking"] = thinking_votes(mode)
            note(said)
        elif command.startswith("/") and command[1:].isalpha():
            note(f"There is no command {command}; /help shows them all.")
        elif line:
            self._answer(line)
        return True

    def _begin(self, system: str | None) -> None:
        self._system = system
        self._messages = [{"role": "system", "content": system}] if system else []

    def _answer(self, text: str) -> None:
        answer = Answer(show=True)
        messages = [*self._messages, {"role": "user", "content": text}]
        events = self._llm.stream(messages, **self._asked)
        try:
            answer.read(events)
        except KeyboardInterrupt:
            note("\n(stopped)")
        except ContextLengthError as error:
            note(f"{error.message} /clear forgets the conversation.")
            return
        finally:
            _close(events)
        self._messages = [*messages, {"role": "assistant", "content": answer.text}]


def _close(events: Iterator[object]) -> None:
    """Ends the request behind a stream that was left early."""
    close = getattr(events, "close", None)
    if close is not None:
        close()


def _typed_lines() -> Iterator[str]:
    """Messages typed at the prompt, until Ctrl-D or Ctrl-C."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(key_bindings=keys)
    while True:
        try:
            yield session.prompt("> ")
        except (EOFError, KeyboardInterrupt):
            return
