"""Perplexity of a model on a text: exp of the mean negative log-likelihood of its tokens, over sliding windows (see `text.windows`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .interval import Estimate, Mean
from .logits import Scorable, log_mass, scored_logits
from .windows import windows


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The negative log-likelihood, in nats, summed in each window over the tokens that are scored there."""

    likelihood: Mean
    window: int
    stride: int

    @property
    def tokens(self) -> int:
        """How many were scored."""
        return int(self.likelihood.weights.sum())

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of a token, NaN where there are fewer than two."""
        return self.likelihood.value

    @property
    def perplexity(self) -> float:
        return _exp(self.nll)

    def estimate(self) -> Estimate:
        return exp_estimate(self.likelihood.estimate())

    def over(self, other: Perplexity) -> Estimate:
        """This perplexity divided by that of another model on the same text."""
        return exp_estimate(self.likelihood.minus(other.likelihood))

    def numbers(self) -> dict[str, float]:
        sizes = {"window": self.window, "stride": self.stride, "windows": len(self.likelihood.sums)}
        return {"tokens": self.tokens, "nll": self.nll, **self.estimate().numbers("perplexity"), **sizes}


def exp_estimate(estimate: Estimate) -> Estimate:
    """Of a logarithm. The bootstrap's percentiles keep their order."""
    return Estimate(*map(_exp, estimate))


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def perplexity(
    model: Scorable,
    ids: Iterable[int],
    *,
    window: int,
    stride: int,
    max_tokens: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Perplexity over the ids, at most `max_tokens` of them."""
    units: list[tuple[float, float]] = []
    count = 0
    for piece in windows(itertools.islice(ids, max_tokens), window, stride):
        total = 0.0
        for position, logits in scored_logits(model, piece):
            for row, id in zip(logits, piece.ids[position:], strict=False):
                total += log_mass(row) - float(row[id])
            count += len(logits)
            progress(count)
        units.append((total, len(piece.ids) - piece.first))
    return Perplexity(Mean.of(units), window, stride)
