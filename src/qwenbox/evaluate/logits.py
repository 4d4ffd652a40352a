"""Logits at every position of a window, a few rows at a time, straight from a model: no engine and no sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from qwenbox.errors import NumericalError
from qwenbox.types import PAGE_TOKENS, Batch, FloatArray, Span

from .windows import Window


class Scorable(Protocol):
    """The part of a loaded model that scoring needs; `model.load.Model` is one."""

    vocab_limit: int
    context_length: int
    max_batch_tokens: int
    max_logits: int

    def run(self, batch: Batch) -> FloatArray: ...


def scored_logits(model: Scorable, window: Window, begin: int = 0) -> Iterator[tuple[int, FloatArray]]:
    """(position of the id that the first row predicts, logits [rows, vocab_limit]) for every scored id of the window, in order.

    The model's pages hold the first `begin` ids already, from a window with the same beginning.
    """
    ids = np.array(window.ids, np.int32)
    pages = np.arange(-(-len(ids) // PAGE_TOKENS), dtype=np.int32)
    end = len(ids) - 1  # the last id predicts nothing here
    while begin < end:
        wanted = begin >= window.first - 1
        room = min(model.max_batch_tokens, model.max_logits) if wanted else model.max_batch_tokens
        stop = min(begin + room, end if wanted else window.first - 1)
        rows = np.arange(stop - begin if wanted else 0, dtype=np.int32)
        span = Span(0, stop - begin, begin, pages[: -(-stop // PAGE_TOKENS)])
        logits = model.run(Batch(ids[begin:stop], [span], rows))
        if wanted:
            yield begin + 1, logits[:, : model.vocab_limit]
        begin = stop


def log_mass(row: FloatArray) -> float:
    """log of the sum of the exponentials of one row: what a logit lacks to be a log-probability."""
    top, powers = shifted_powers(row)
    return top + math.log(float(powers.sum()))


def shifted_powers(row: FloatArray) -> tuple[float, FloatArray]:
    """(the largest logit, e to the power of what each is above it), the powers in float32: 150,000 of them in a tenth of a millisecond.

    Their sum has a relative error of about 1e-7: a log-probability is as exact as its logit. Raises NumericalError.
    """
    top = row.max()
    if not np.isfinite(top):
        raise NumericalError("the model gives logits that are no numbers: its weights are damaged, or it cannot compute with them")
    powers = np.subtract(row, top)
    np.exp(powers, out=powers)
    return float(top), powers
