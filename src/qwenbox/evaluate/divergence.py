"""How far a model is from a reference on a text: per token KL(reference || model), and how often both put the same token first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from qwenbox.types import FloatArray

from .logits import Scorable, log_softmax, scored_logits
from .text import windows


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL in nats, mean and maximum over `tokens` positions; `top1_agreement` is the share of positions with the same most likely token."""

    tokens: int
    kl_mean: float
    kl_max: float
    top1_agreement: float
    window: int
    stride: int


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
    """Divergence over the ids, at most `max_tokens` of them; both models see the same windows. NaN where there are fewer than two ids."""
    count, total, largest, agreed = 0, 0.0, 0.0, 0
    for piece in windows(itertools.islice(ids, max_tokens), window, stride):
        ours = (row for _, rows in scored_logits(model, piece) for row in rows)
        theirs = (row for _, rows in scored_logits(reference, piece) for row in rows)
        for mine, other in zip(ours, theirs, strict=True):
            value, same = _compare(other, mine)
            total += value
            largest = max(largest, value)
            agreed += same
            count += 1
        progress(count)
    mean, agreement = (total / count, agreed / count) if count else (math.nan, math.nan)
    return Divergence(count, mean, largest, agreement, window, stride)


def _compare(reference: FloatArray, model: FloatArray) -> tuple[float, bool]:
    """(KL of the two distributions, whether their first places are equal), over the tokens that both know."""
    width = min(len(reference), len(model))
    p, q = log_softmax(reference[:width]), log_softmax(model[:width])
    # Rounding can push a sum of zero a little below it.
    return max(0.0, float(np.sum(np.exp(p) * (p - q)))), int(np.argmax(p)) == int(np.argmax(q))
