"""`qwenbox eval MODEL --task ppl|kl --data FILE`: how good a model is on a text, and how far from a reference."""

from __future__ import annotations

import dataclasses
import json as json_module
from contextlib import ExitStack, closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbox.errors import UsageError

from .options import Isa, Json, Model, Threads, Weights
from .session import load_with_bar, progress_bar, resolve

if TYPE_CHECKING:
    from qwenbox.chat.tokenizer import Tokenizer


class Task(StrEnum):
    ppl = "ppl"
    kl = "kl"


def evaluate(
    model: Model,
    task: Annotated[Task, typer.Option(help="ppl: perplexity. kl: divergence from --reference.", show_default=False)],
    data: Annotated[Path, typer.Option(help="UTF-8 text to measure on.", show_default=False)],
    reference: Annotated[str | None, typer.Option(help="The model to compare with, for --task kl.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Read no more tokens of the text than this.")] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens that the model sees at once.")] = 2048,
    stride: Annotated[int | None, typer.Option(min=1, help="How far the window moves; otherwise half of it.")] = None,
    json: Json = False,
    weights: Weights = None,
    reference_weights: Annotated[str | None, typer.Option(help="--weights for the reference.")] = None,
    threads: Threads = None,
    isa: Isa = None,
) -> None:
    """Measure a model on a text.

    Windows of --window tokens move by --stride; each token but the first is scored once, with at least window - stride tokens before it.
    """
    from qwenbox.evaluate.divergence import divergence
    from qwenbox.evaluate.perplexity import perplexity
    from qwenbox.evaluate.text import token_ids
    from qwenbox.settings import load_settings

    if (task is Task.kl) != (reference is not None):
        raise UsageError("--task kl needs --reference MODEL" if reference is None else "--reference is only for --task kl")
    if not data.is_file():
        raise UsageError(f"there is no file {data}")
    sizes: dict[str, Any] = {"window": window, "stride": stride or max(1, window // 2), "max_tokens": max_tokens}
    overrides = {"threads": threads, "isa": isa, "context_length": window, "max_sequences": 128}
    with ExitStack() as stack:
        tokenizer, scored = _open(model, load_settings({**overrides, "weights": weights}), stack)
        if reference is not None:
            other, compared = _open(reference, load_settings({**overrides, "weights": reference_weights}), stack)
            _check_same_vocabulary(tokenizer, other)
        with progress_bar() as bar:
            line = bar.add_task("scoring", total=None if max_tokens is None else max_tokens - 1)
            ids = token_ids(data, tokenizer)
            result: Any
            if reference is None:
                result = perplexity(scored, ids, progress=lambda tokens: bar.update(line, completed=tokens), **sizes)
            else:
                result = divergence(scored, compared, ids, progress=lambda tokens: bar.update(line, completed=tokens), **sizes)
    numbers = {"task": task.value, "model": model, **({"reference": reference} if reference else {}), **dataclasses.asdict(result)}
    if json:
        typer.echo(json_module.dumps(numbers))
    else:
        for name, value in numbers.items():
            typer.echo(f"{name:15} {value:.6g}" if isinstance(value, float) else f"{name:15} {value}")


def _open(model: str, settings: Any, stack: ExitStack) -> tuple[Tokenizer, Any]:
    """The tokenizer and the loaded model, with pages for one window."""
    from qwenbox.engine.options import EngineOptions, open_model
    from qwenbox.llm import model_name, open_chat
    from qwenbox.types import PAGE_TOKENS

    path = resolve(model, settings)
    tokenizer = open_chat(path).tokenizer
    pages = -(-settings.context_length // PAGE_TOKENS)
    options = EngineOptions.from_settings(settings, model=str(path), num_pages=pages, tokens=tokenizer.table())
    return tokenizer, stack.enter_context(closing(load_with_bar(lambda progress: open_model(options, progress), model_name(model))))


def _check_same_vocabulary(tokenizer: Tokenizer, other: Tokenizer) -> None:
    probe = "Vocabulary 词表 def f(x):\n    return x**2  # ภาษาไทย 🙂"
    if tokenizer.encode(probe) != other.encode(probe):
        raise UsageError("the two models have different vocabularies, so their distributions cannot be compared")
