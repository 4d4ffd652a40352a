"""Perplexity of a model on a text: exp of the mean negative log-likelihood of its tokens, over sliding windows (see `text.windows`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .logits import Scorable, log_softmax, scored_logits
from .text import windows


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`tokens` is how many were scored; `nll` is their mean negative log-likelihood in nats, `perplexity` its exponential."""

    tokens: int
    nll: float
    perplexity: float
    window: int
    stride: int


def perplexity(
    model: Scorable,
    ids: Iterable[int],
    *,
    window: int,
    stride: int,
    max_tokens: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Perplexity over the ids, at most `max_tokens` of them. NaN where there are fewer than two."""
    count, total = 0, 0.0
    for piece in windows(itertools.islice(ids, max_tokens), window, stride):
        for position, logits in scored_logits(model, piece):
            for row, id in zip(logits, piece.ids[position:], strict=False):
                total -= float(log_softmax(row)[id])
                count += 1
            progress(count)
    nll = total / count if count else math.nan
    return Perplexity(count, nll, math.exp(nll) if nll < 700 else math.inf if count else math.nan, window, stride)
