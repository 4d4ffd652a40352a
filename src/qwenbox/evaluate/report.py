"""What an evaluation found, for people and for programs: report.md, results.json and plot.svg."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenbox.errors import UsageError

from . import picture
from .divergence import Divergence
from .interval import RESAMPLES, Estimate
from .layers import LayerError
from .perplexity import Perplexity
from .tasks import Score, retention

Outcome = Perplexity | Divergence | Score


@dataclass(frozen=True, slots=True)
class Result:
    """One model. `facts` are what is known of it beside: bytes, whether it thought."""

    name: str
    outcome: Outcome
    facts: Mapping[str, Any] = field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        return {"model": self.name, **self.facts, **self.outcome.numbers()}

    @property
    def main(self) -> Estimate:
        """The number that a plot shows."""
        return main_estimate(self.outcome)


def main_estimate(outcome: Outcome) -> Estimate:
    if isinstance(outcome, Perplexity):
        return outcome.estimate()
    return outcome.kl.estimate() if isinstance(outcome, Divergence) else outcome.share.estimate()


@dataclass(frozen=True, slots=True)
class Report:
    """`base`: the result that the others are compared with, unit by unit."""

    task: str
    data: str
    results: Sequence[Result]
    base: Result | None = None

    @property
    def title(self) -> str:
        return f"{_TITLES[self.task]} on {self.data}"

    def comparisons(self) -> list[dict[str, Any]]:
        return [_comparison(result, self.base) for result in self.results if self.base is not None and result is not self.base]

    def numbers(self) -> dict[str, Any]:
        """For programs, without the single problems."""
        numbers: dict[str, Any] = {"task": self.task, "data": self.data, "results": [_finite(result.numbers()) for result in self.results]}
        return numbers | ({"comparisons": [_finite(row) for row in compared]} if (compared := self.comparisons()) else {})

    def table(self) -> str:
        """Markdown."""
        return "\n\n".join(filter(None, [_table([_row(result) for result in self.results]), _table([_words(row) for row in self.comparisons()])]))

    def write(self, folder: Path) -> None:
        """Raises UsageError where the folder cannot be written."""
        numbers = self.numbers()
        for result, row in zip(self.results, numbers["results"], strict=True):
            if isinstance(result.outcome, Score):
                row["items"] = [{"id": item.id, "right": item.right, **_finite(item.said)} for item in result.outcome.items]
        explained = (
            f"Intervals hold the middle 95 % of {RESAMPLES:,} bootstrap means; their units are {_UNITS[self.task]}. "
            "Comparisons are paired: both models were measured on the same units, which were resampled alike."
        )
        if any("retention" in row for row in self.comparisons()):
            explained += " Retention: the share of the other's score; lost are problems that only the other one solved, gained those that it did not."
        plot = picture.bars(self.title, [(_label(result), result.main) for result in self.results])
        _write(folder, f"# {self.title}\n\n{self.table()}\n\n![plot](plot.svg)\n\n{explained}\n", numbers, plot)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Of `layers.layer_errors`."""

    name: str
    reference: str
    data: str
    tokens: int
    errors: Sequence[LayerError]

    @property
    def title(self) -> str:
        return f"Relative errors of {self.name}, compared with {self.reference}"

    def numbers(self) -> dict[str, Any]:
        facts = {"task": "layers", "model": self.name, "reference": self.reference, "data": self.data, "tokens": self.tokens}
        return facts | {"layers": [error.numbers() for error in self.errors]}

    def table(self) -> str:
        """Markdown."""
        return _table(
            [
                {"layer": str(error.layer), "own": f"{error.own:.4f}", "total": f"{error.total:.4f}"}
                | {name: f"{value:.4f}" for name, value in error.weights.items()}
                for error in self.errors
            ]
        )

    def write(self, folder: Path) -> None:
        series = {
            "what a layer adds, alone": [error.own for error in self.errors],
            "its output, in the model": [error.total for error in self.errors],
        }
        plot = picture.lines(self.title, "layer", series)
        explained = (
            f"Means over {self.tokens} tokens of {self.data}. own: of what a layer adds to its input, when it gets the reference's input. "
            "total: of its output in the model as it is. The other columns: of its matrices, without the factors that quantisation moves from one "
            "to the next."
        )
        _write(folder, f"# {self.title}\n\n{self.table()}\n\n![plot](plot.svg)\n\n{explained}\n", self.numbers(), plot)


def make_folder(folder: Path) -> None:
    """For a report, before anything is measured. Raises UsageError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write a report to {folder}: {error.strerror}", param="report") from None
    existing = next((name for name in _FILES if (folder / name).is_dir()), None)
    if existing is not None:
        raise UsageError(f"cannot write a report to {folder}: {existing} is a folder there", param="report")


def _write(folder: Path, text: str, numbers: Mapping[str, Any], plot: str) -> None:
    make_folder(folder)
    try:
        told = json.dumps(numbers, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        for name, content in zip(_FILES, (text, told, plot), strict=True):
            # What an answer says may hold halves of characters: they are written as JSON writes them.
            (folder / name).write_bytes(content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"cannot write a report to {folder}: {error.strerror}", param="report") from None


_FILES = ("report.md", "results.json", "plot.svg")
_TITLES = {"ppl": "Perplexity", "kl": "KL divergence in nats", "choice": "Right choices", "generate": "Right answers", "code": "Code that passes"}
_UNITS = {"ppl": "windows", "kl": "windows", **dict.fromkeys(("choice", "generate", "code"), "problems")}


def _label(result: Result) -> str:
    thinking = result.facts.get("thinking")
    return result.name if thinking is None else f"{result.name}, thinking {'on' if thinking else 'off'}"


def _row(result: Result) -> dict[str, str]:
    outcome, row = result.outcome, {"model": _label(result)}
    if "weights_bytes" in result.facts:
        megabytes = result.facts["weights_bytes"] / 1e6
        row["MB"] = f"{megabytes:,.0f}" if megabytes >= 100 else f"{megabytes:.1f}"
    if isinstance(outcome, Score):
        numbers = outcome.numbers()
        row |= {"score": str(result.main), "right": f"{numbers['right']} of {numbers['problems']}"}
        if outcome.new_tokens:
            row |= {"tokens": f"{outcome.new_tokens:,}", "cut": str(outcome.cut)}
        return row | {"seconds": f"{outcome.seconds:.0f}"}
    if isinstance(outcome, Divergence):
        numbers = outcome.numbers()
        row |= {"KL": str(result.main), **{f"p{name}": f"{numbers[f'kl_p{name}']:.3g}" for name in ("50", "90", "99", "99.9")}}
        row |= {"max": f"{outcome.kl_max:.3g}", "same top token": str(outcome.agreement.estimate())}
        return row | {"perplexity": str(outcome.perplexity.estimate()), "to the reference's": str(outcome.perplexity_ratio())}
    return row | {"perplexity": str(result.main), "tokens": f"{outcome.tokens:,}", "windows": str(len(outcome.likelihood.sums))}


def _comparison(result: Result, base: Result) -> dict[str, Any]:
    mine, other = result.outcome, base.outcome
    names = {"model": _label(result), "with": _label(base)}
    if isinstance(mine, Perplexity) and isinstance(other, Perplexity):
        return names | mine.over(other).numbers("ratio")
    if isinstance(mine, Divergence) and isinstance(other, Divergence):
        return names | mine.kl.minus(other.kl).numbers("difference") | mine.kl.over(other.kl).numbers("ratio")
    if isinstance(mine, Score) and isinstance(other, Score):
        return names | retention([item.right for item in mine.items], [item.right for item in other.items])
    raise TypeError("only results of one task can be compared")


def _words(row: Mapping[str, Any]) -> dict[str, str]:
    words = {name: row[name] for name in ("model", "with")}
    for name in ("difference", "ratio", "retention"):
        if name in row:
            words[name] = str(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]))
    return words | {name: str(row[name]) for name in ("lost", "gained") if name in row}


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([row.get(name, "").replace("|", "\\|") for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has neither NaN nor infinity."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in numbers.items()}
