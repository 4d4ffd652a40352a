"""AWQ's search for the range of each group: cutting off the largest weights makes the steps of all others finer.

For each output and group, shares of the range are tried from the whole down to a half; the one of least mean squared error of the group's
part of the output, over all tokens of the calibration, is taken.
"""

from __future__ import annotations

import numpy as np

from qwenbox.types import FloatArray

from .grid import Grid, Steps
from .parallel import by_rows

SHARES = tuple(1 - step / 20 for step in range(10))


def search_steps(weight: FloatArray, blocks: FloatArray, grid: Grid, shares: tuple[float, ...] = SHARES) -> Steps:
    """The steps of a matrix [rows, columns] whose inputs have these products (`Inputs.blocks`)."""

    def part(rows: slice) -> Steps:
        original = weight[rows]
        low, high = grid.bounds(original)
        least = np.full(low.shape, np.inf, np.float32)
        best = np.ones_like(low)
        for share in shares:
            error = group_errors(grid.grouped(grid.change(original, None, share)), blocks)
            better = error < least
            least[better] = error[better]
            best[better] = share
        return grid.steps(*cut(low, high, best))

    parts = by_rows(part, weight.shape)
    return Steps(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def cut(low: FloatArray, high: FloatArray, share: float | FloatArray) -> tuple[FloatArray, FloatArray]:
    """The range without what lies further from 0 than this share of its further end."""
    furthest = np.maximum(-low, high) * np.asarray(share, np.float32)
    return np.maximum(low, -furthest), np.minimum(high, furthest)


def group_errors(change: FloatArray, blocks: FloatArray) -> FloatArray:
    """[rows, groups] of a change [rows, groups, group]."""
    by_group = change.transpose(1, 0, 2)
    return np.asarray(np.einsum("grk,grk->rg", by_group @ blocks, by_group))
