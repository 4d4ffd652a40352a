"""How far models are from a reference on a text: KL(reference || model) of each token, and how often both put the same token first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenbox.types import FloatArray

from .interval import Estimate, Mean
from .logits import Scorable, log_mass, scored_logits, shifted_powers
from .perplexity import Perplexity
from .windows import Window, windows

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL in nats. Means are over tokens, with windows as the units of their intervals."""

    kl: Mean
    agreement: Mean
    """The same most likely token: 1, another one: 0."""
    token_kl: npt.NDArray[np.float32]
    """[tokens]"""
    perplexity: Perplexity
    """Of the model, on the same tokens."""
    reference_perplexity: Perplexity

    @property
    def tokens(self) -> int:
        return len(self.token_kl)

    @property
    def kl_mean(self) -> float:
        """NaN where there is nothing to compare."""
        return self.kl.value

    @property
    def kl_max(self) -> float:
        return float(self.token_kl.max(initial=0.0))

    @property
    def top1_agreement(self) -> float:
        return self.agreement.value

    def perplexity_ratio(self) -> Estimate:
        """To that of the reference."""
        return self.perplexity.over(self.reference_perplexity)

    def numbers(self) -> dict[str, float]:
        numbers: dict[str, float] = {"tokens": self.tokens}
        for name, estimate in (("kl_mean", self.kl.estimate()), ("top1_agreement", self.agreement.estimate())):
            numbers |= estimate.numbers(name)
        known = np.percentile(self.token_kl, PERCENTILES) if self.tokens else [math.nan] * len(PERCENTILES)
        numbers |= {f"kl_p{percent:g}": float(value) for percent, value in zip(PERCENTILES, known, strict=True)}
        numbers |= {"kl_max": self.kl_max} | self.perplexity_ratio().numbers("perplexity_ratio")
        return numbers | {"reference_perplexity": self.reference_perplexity.perplexity} | self.perplexity.numbers()


def divergence(
    model: Scorable,
    reference: Scorable,
    ids: Iterable[int],
    *,
    window: int,
    stride: int,
    max_tokens: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Divergence:
    """Divergence over the ids, at most `max_tokens` of them; both models see the same windows."""
    return divergences([model], reference, ids, window=window, stride=stride, max_tokens=max_tokens, progress=progress)[0]


def divergences(
    models: Sequence[Scorable],
    reference: Scorable,
    ids: Iterable[int],
    *,
    window: int,
    stride: int,
    max_tokens: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Divergence]:
    """Of several models, with one run of the reference for all of them."""
    tallies = [_Tally() for _ in models]
    theirs: list[tuple[float, float]] = []
    count = 0
    for piece in windows(itertools.islice(ids, max_tokens), window, stride):
        runs = [_rows(model, piece) for model in models]
        for tally in tallies:
            tally.begin()
        total = 0.0
        for other, id in zip(_rows(reference, piece), piece.ids[piece.first :], strict=True):
            row = _Row(other)
            total += row.mass - float(other[id])
            for tally, run in zip(tallies, runs, strict=True):
                tally.add(row, next(run), id)
            count += 1
            progress(count)
        theirs.append((total, len(piece.ids) - piece.first))
    known = Perplexity(Mean.of(theirs), window, stride)
    return [tally.result(known) for tally in tallies]


def _rows(model: Scorable, piece: Window) -> Iterator[FloatArray]:
    return (row for _, rows in scored_logits(model, piece) for row in rows)


class _Row:
    """Logits of the reference, with what each comparison needs of them."""

    def __init__(self, logits: FloatArray) -> None:
        self.logits = logits
        self.best = int(logits.argmax())
        top, self.powers = shifted_powers(logits)
        self.power = float(self.powers.sum())
        self.mass = top + math.log(self.power)

    def first(self, width: int) -> _Row:
        """As if there were no more tokens."""
        return self if width == len(self.logits) else _Row(self.logits[:width])


class _Tally:
    """What is counted of one model, window by window."""

    def __init__(self) -> None:
        self._kl: list[float] = []
        self._units: list[list[float]] = []

    def begin(self) -> None:
        self._units.append([0.0] * 4)

    def add(self, reference: _Row, logits: FloatArray, id: int) -> None:
        """One token: KL(p || q) = sum of p (a - b) - (log sum e^a - log sum e^b) for logits a and b, over the tokens that both know."""
        width = min(len(reference.logits), len(logits))
        known, common = reference.first(width), logits[:width]
        own = log_mass(logits)
        shift = float(known.powers @ (known.logits - common)) / known.power
        value = shift - (known.mass - (own if width == len(logits) else log_mass(common)))
        value = max(0.0, value)  # rounding can push it a little below
        self._kl.append(value)
        unit = self._units[-1]
        for index, part in enumerate((value, int(common.argmax()) == known.best, own - float(logits[id]), 1.0)):
            unit[index] += part

    def result(self, reference: Perplexity) -> Divergence:
        kl, agreement, nll = (Mean.of([(unit[column], unit[3]) for unit in self._units]) for column in range(3))
        mine = Perplexity(nll, reference.window, reference.stride)
        return Divergence(kl, agreement, np.array(self._kl, np.float32), mine, reference)
