"""Logits at every position of a window, a few rows at a time, straight from a model: no engine and no sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from qwenbox.types import PAGE_TOKENS, Batch, FloatArray, Span

from .text import Window


class Scorable(Protocol):
    """The part of a loaded model that scoring needs; `model.load.Model` is one."""

    vocab_limit: int
    max_batch_tokens: int
    max_logits: int

    def run(self, batch: Batch) -> FloatArray: ...


def scored_logits(model: Scorable, window: Window) -> Iterator[tuple[int, FloatArray]]:
    """(position of the id that the first row predicts, logits [rows, vocab_limit]) for every scored id of the window, in order."""
    ids = np.array(window.ids, np.int32)
    pages = np.arange(-(-len(ids) // PAGE_TOKENS), dtype=np.int32)
    begin, end = 0, len(ids) - 1  # the last id predicts nothing here
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


def log_softmax(row: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log-probabilities of one row, in float64."""
    shifted = row.astype(np.float64) - float(row.max())
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = shifted - np.log(np.exp(shifted).sum())
    return result
