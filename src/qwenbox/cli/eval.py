"""`qwenbox eval MODEL... --task ppl|kl|choice|generate|code|layers --data FILE`: how good models are, and how far from a reference."""

from __future__ import annotations

import itertools
import json as json_module
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbox.errors import UsageError

from .options import Embedding, Head, Isa, Json, Threads, Weights
from .session import bar_of, load_with_bar, open_llm, resolve

if TYPE_CHECKING:
    from qwenbox.chat.chat import ChatFormat
    from qwenbox.chat.tokenizer import Tokenizer
    from qwenbox.evaluate.report import LayerReport, Report, Result


class Task(StrEnum):
    ppl = "ppl"
    kl = "kl"
    choice = "choice"
    generate = "generate"
    code = "code"
    layers = "layers"


class Thinking(StrEnum):
    off = "off"
    on = "on"
    both = "both"


ON_TEXT = (Task.ppl, Task.kl, Task.layers)
LAYER_TOKENS = 256


def evaluate(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(help="Names of the catalogue, directories, or .gguf files.", metavar="MODEL...", show_default=False)],
    task: Annotated[
        Task,
        typer.Option(
            help="ppl: perplexity. kl: divergence from --reference. choice, generate: right answers. code: code that passes its tests. "
            "layers: errors layer by layer, compared with --reference.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Option(help="UTF-8 text for ppl, kl and layers, otherwise problems in JSON lines.", show_default=False)],
    reference: Annotated[str | None, typer.Option(help="The model that the others are compared with; otherwise the first.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Read no more tokens of the text than this.")] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens that the model sees at once.")] = 2048,
    stride: Annotated[int | None, typer.Option(min=1, help="How far the window moves; otherwise half of it.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="No more than the first so many problems.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; otherwise 1024 tokens, 4096 with a thought.")] = None,
    thinking: Annotated[Thinking, typer.Option(help="Think before answers, where the model can; both: one result each.")] = Thinking.off,
    report: Annotated[Path | None, typer.Option(help="Write report.md, results.json and plot.svg into this folder.", show_default=False)] = None,
    json: Json = False,
    weights: Weights = None,
    head: Head = None,
    embedding: Embedding = None,
    reference_weights: Annotated[str | None, typer.Option(help="--weights for the reference.")] = None,
    threads: Threads = None,
    isa: Isa = None,
) -> None:
    """Measure models on a text or on problems, with intervals of 95 %.

    On a text, windows of --window tokens move by --stride; each token but the first is scored once, with at least window - stride tokens before it.
    Code is executed in processes that can open nothing and have 1 GB and 10 seconds.
    """
    if task in (Task.kl, Task.layers) and reference is None:
        raise UsageError(f"--task {task} needs --reference MODEL")
    if task is Task.layers and len(models) > 1:
        raise UsageError("--task layers looks at one model")
    _check_options(task, context)
    if not data.is_file():
        raise UsageError(f"there is no file {data}")
    if report is not None:
        from qwenbox.evaluate.report import make_folder

        make_folder(report)
    from qwenbox.llm import model_name

    overrides = {"threads": threads, "isa": isa}
    everybody = {*models, *([reference] if reference is not None else [])}
    alike = len({model_name(model) for model in everybody}) < len(everybody)
    subjects = [_Subject(model, {**overrides, "weights": weights, "head": head, "embedding": embedding}, alike) for model in models]
    other = None if reference is None else _Subject(reference, {**overrides, "weights": reference_weights, "head": None, "embedding": None}, alike)
    found: Report | LayerReport
    if task is Task.layers:
        assert other is not None
        found = _layers(subjects[0], other, data, max_tokens or LAYER_TOKENS)
    elif task in ON_TEXT:
        found = _on_text(task, subjects, other, data, {"window": window, "stride": stride or max(1, window // 2), "max_tokens": max_tokens})
    else:
        found = _on_problems(task, subjects, other, data, problems, answer_tokens, thinking, window)
    typer.echo(json_module.dumps(found.numbers(), allow_nan=False) if json else found.table())
    if report is not None:
        found.write(report)


_READ_BY: Mapping[str, Sequence[Task]] = {
    "max_tokens": ON_TEXT,
    "stride": (Task.ppl, Task.kl),
    "window": (Task.ppl, Task.kl, Task.choice),
    "problems": (Task.choice, Task.generate, Task.code),
    "answer_tokens": (Task.generate, Task.code),
    "thinking": (Task.generate, Task.code),
}
"""Options that not every task reads."""


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_options(task: Task, context: typer.Context) -> None:
    """Raises UsageError for an option that would change nothing."""
    for name, tasks in _READ_BY.items():
        if task not in tasks and _is_given(context, name):
            raise UsageError(f"--{name.replace('_', '-')} is for --task {' or '.join(tasks)}, not for {task}", param=name)
    if context.params["reference"] is None and context.params["reference_weights"] is not None:
        raise UsageError("--reference-weights needs --reference MODEL", param="reference_weights")


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model that is measured. `overrides` are settings; `in_full`: another one has the same name."""

    model: str
    overrides: dict[str, Any]
    in_full: bool = False

    @property
    def name(self) -> str:
        from qwenbox.llm import model_name

        told = [form if name == "weights" else f"{name} {form}" for name, form in self.forms.items() if form]
        return (self.model if self.in_full else model_name(self.model)) + (f" ({', '.join(told)})" if told else "")

    @property
    def forms(self) -> dict[str, Any]:
        return {name: self.overrides[name] for name in ("weights", "head", "embedding")}

    @property
    def path(self) -> Path:
        from qwenbox.settings import load_settings

        return resolve(self.model, load_settings(self.overrides))

    def facts(self) -> dict[str, Any]:
        from qwenbox.model.load import stored_costs

        return {"weights_bytes": stored_costs(self.path, **self.forms).weights_bytes}

    def open(self, stack: ExitStack, window: int) -> tuple[ChatFormat, Any]:
        """The chat format and the loaded model, with pages for one window; closed with the stack."""
        from qwenbox.engine.options import EngineOptions, open_model
        from qwenbox.llm import open_chat
        from qwenbox.settings import load_settings
        from qwenbox.types import PAGE_TOKENS

        settings = load_settings({**self.overrides, "context_length": window, "max_sequences": 128})
        path = self.path
        chat = open_chat(path)
        stack.callback(chat.close)
        options = EngineOptions.from_settings(settings, model=str(path), num_pages=-(-window // PAGE_TOKENS), tokens=chat.tokenizer.table())
        return chat, stack.enter_context(closing(load_with_bar(lambda progress: open_model(options, progress), self.name)))


# --- on a text -------------------------------------------------------------------------------------------------------


def _on_text(task: Task, subjects: Sequence[_Subject], reference: _Subject | None, data: Path, sizes: dict[str, Any]) -> Report:
    from qwenbox.chat.text import token_ids
    from qwenbox.evaluate.divergence import divergences
    from qwenbox.evaluate.perplexity import perplexity
    from qwenbox.evaluate.report import Report, Result
    from qwenbox.llm import open_chat

    everybody = [*([reference] if reference is not None else []), *subjects]
    tokenizer = open_chat(everybody[0].path).tokenizer
    for subject in everybody[1:]:
        _check_same_vocabulary(tokenizer, open_chat(subject.path).tokenizer)
    total = sum(1 for _ in itertools.islice(token_ids(data, tokenizer), sizes["max_tokens"])) - 1
    _check_some(data, total)
    results = []
    if task is Task.kl:
        assert reference is not None
        with ExitStack() as stack:
            opened = [subject.open(stack, sizes["window"])[1] for subject in everybody]
            with bar_of("comparing", total) as progress:
                measured = divergences(opened[1:], opened[0], token_ids(data, tokenizer), progress=progress, **sizes)
        results = [Result(subject.name, one, subject.facts()) for subject, one in zip(subjects, measured, strict=True)]
    else:
        for subject in everybody:
            with ExitStack() as stack:
                model = subject.open(stack, sizes["window"])[1]
                with bar_of(subject.name, total) as progress:
                    results.append(Result(subject.name, perplexity(model, token_ids(data, tokenizer), progress=progress, **sizes), subject.facts()))
    return Report(task.value, data.name, results, results[0] if len(results) > 1 else None)


def _check_some(data: Path, predicted: int) -> None:
    if predicted < 1:
        raise UsageError(f"{data} has {predicted + 1} tokens of this model: a text of two or more is needed", param="data")


def _check_same_vocabulary(tokenizer: Tokenizer, other: Tokenizer) -> None:
    probe = "Vocabulary 词表 def f(x):\n    return x**2  # ภาษาไทย 🙂"
    if tokenizer.encode(probe) != other.encode(probe):
        raise UsageError("the models have different vocabularies, so their distributions cannot be compared")


def _layers(subject: _Subject, reference: _Subject, data: Path, max_tokens: int) -> LayerReport:
    from qwenbox.chat.text import token_ids
    from qwenbox.evaluate.layers import layer_errors
    from qwenbox.evaluate.report import LayerReport
    from qwenbox.llm import open_chat
    from qwenbox.model.load import open_network

    tokenizer = open_chat(subject.path).tokenizer
    _check_same_vocabulary(tokenizer, open_chat(reference.path).tokenizer)
    ids = list(itertools.islice(token_ids(data, tokenizer), max_tokens))
    _check_some(data, len(ids) - 1)
    mine, other = (open_network(one.path, **one.forms, positions=max_tokens) for one in (subject, reference))
    with bar_of("comparing layers") as progress:
        errors = layer_errors(mine, other, ids, progress)
    return LayerReport(subject.name, reference.name, data.name, len(ids), errors)


# --- on problems -----------------------------------------------------------------------------------------------------


def _on_problems(
    task: Task,
    subjects: Sequence[_Subject],
    reference: _Subject | None,
    data: Path,
    most: int | None,
    answer_tokens: int | None,
    thinking: Thinking,
    window: int,
) -> Report:
    from qwenbox.evaluate import problems, tasks
    from qwenbox.evaluate.execution import check_confinement
    from qwenbox.evaluate.report import Report, Result

    if task is Task.code:
        check_confinement()  # before a model is loaded for nothing
    read: Callable[[Path], Any] = {Task.choice: problems.choices, Task.generate: problems.questions, Task.code: problems.code_problems}[task]
    asked = read(data)[:most]
    results: list[Result] = []
    for subject in [*([reference] if reference is not None else []), *subjects]:
        if task is Task.choice:
            with ExitStack() as stack:
                chat, model = subject.open(stack, window)
                with bar_of(subject.name, len(asked)) as progress:
                    results.append(Result(subject.name, tasks.choose(model, chat, asked, progress), subject.facts()))
            continue
        ask: Callable[..., tasks.Score] = tasks.generate if task is Task.generate else tasks.write_code
        with open_llm(subject.model, **subject.overrides) as llm:
            for thinks in _ways(thinking, llm.nature):
                with bar_of(subject.name, len(asked)) as progress:
                    score = ask(llm, asked, thinking=thinks, max_tokens=answer_tokens, progress=progress)
                facts = {"thinking": thinks} if llm.nature != "never" else {}
                results.append(Result(subject.name, score, {**subject.facts(), **facts}))
    return Report(task.value, data.name, results, results[0] if len(results) > 1 else None)


def _ways(thinking: Thinking, nature: str | None) -> list[bool]:
    """Whether to think: a model that cannot is asked without."""
    if nature == "never":
        return [False]
    return {Thinking.off: [False], Thinking.on: [True], Thinking.both: [False, True]}[thinking]
