"""`qwenbox run MODEL "prompt"`: one answer, and nothing but the answer, on standard output."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbox.errors import QwenboxError, UsageError

from .options import ContextLength, Embedding, Head, Isa, Json, MaxTokens, Model, Seed, System, Temperature, Thinking, Threads, TopK, TopP, Weights
from .session import note, open_llm, printable, thinking_votes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwenbox.types import Event


def run(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.", show_default=False)] = "-",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    thinking: Thinking = None,
    system: System = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which the answer ends; may be given several times.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No statistics on standard error.")] = False,
    json: Json = False,
    weights: Weights = None,
    head: Head = None,
    embedding: Embedding = None,
    context_length: ContextLength = None,
    threads: Threads = None,
    isa: Isa = None,
) -> None:
    """Answer one prompt. Standard output gets the answer alone; progress and statistics go to standard error."""
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt:
        raise UsageError("the prompt is empty: give it as an argument or on standard input")
    asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed, "stop": stop or ()}
    asked["thinking"] = thinking_votes(thinking)
    messages = [{"role": role, "content": text} for role, text in (("system", system), ("user", prompt)) if text is not None]
    with open_llm(model, weights=weights, head=head, embedding=embedding, context_length=context_length, threads=threads, isa=isa) as llm:
        answer = Answer(show=not json)
        end = answer.read(llm.stream(messages, **asked))
        statistics = _statistics(end)
        if json:
            typer.echo(
                json_module.dumps(
                    {
                        "model": llm.name,
                        "text": answer.text,
                        "reasoning": answer.reasoning,
                        "finish_reason": end.finish_reason,
                        **end.detail,
                        "usage": dataclasses.asdict(end.usage) if end.usage else None,
                        "timings": dict(end.timings or {}),
                    },
                    ensure_ascii=False,
                )
            )
        elif not quiet:
            note(statistics)


class Answer:
    """Text of an answer as it comes; `show` writes it to standard output piece by piece."""

    def __init__(self, *, show: bool) -> None:
        self.text = ""
        self.reasoning = ""
        self._show = show

    def read(self, events: Iterator[Event]) -> Event:
        """The finish event. Raises the error that ended the answer; an interruption leaves what came before in `text`."""
        terminal = sys.stdout.isatty()
        for event in events:
            if event.kind == "error":
                raise QwenboxError.from_wire(event.error or {})
            if event.kind == "finish":
                if self._show and not self.text.endswith("\n"):
                    print(flush=True)
                return event
            if event.kind == "content":
                if self.reasoning and not self.text and self._show and sys.stderr.isatty():
                    print("\n", file=sys.stderr, flush=True)
                self.text += event.text
                if self._show:
                    print(printable(event.text) if terminal else event.text, end="", flush=True)
            else:
                self.reasoning += event.text
                if self._show and sys.stderr.isatty():
                    print(f"\x1b[2m{printable(event.text)}\x1b[0m", end="", file=sys.stderr, flush=True)
        raise AssertionError("a stream of events ends with finish or error")


def _statistics(end: Event) -> str:
    usage, timings = end.usage, end.timings or {}
    parts = []
    if usage:
        parts.append(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens")
        for name, count in (("prefill", usage.prompt_tokens), ("decode", usage.completion_tokens - 1)):
            if count > 0 and timings.get(name, 0) > 0:
                parts.append(f"{name} {count / timings[name]:.1f} tok/s")
    if end.detail.get("stop_detail") == "loop":
        parts.append("ended because it went in circles")
    elif end.finish_reason == "length":
        parts.append("cut at the limit of tokens")
    return ", ".join(parts)
