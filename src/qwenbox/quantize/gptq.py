"""GPTQ (arXiv:2210.17323): columns are rounded one after the other, and what each loses is made good by those that are left.

Groups are static: their steps are known beforehand, so that columns are taken in any order and stored in their own; those of the largest inputs
come first, while many are left to make good what they lose. A block of columns hears at once what all before it lost: one product, where telling
all others after each block would write the whole matrix again and again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qwenbox.types import FloatArray, IntArray

from .grid import Grid, Rounded, Steps
from .parallel import in_order, pieces

DAMPING = 0.1
"""Of the mean of the diagonal, added to it: with a hundredth, words that the calibration lacks lose more than the others gain (docs/log.md)."""
BLOCK = 128
"""Columns that hear at once what those before them lost."""
_ROWS = 1024
"""That are rounded together."""
_PANEL = 512
"""Rows and columns of a piece of a triangle."""


def inverse_factor(gram: FloatArray, damping: float = DAMPING) -> FloatArray:
    """The upper triangular u with u^T u = (gram + damping)^-1, written over gram [width, width], which is read only right of the diagonal.

    What is left of the diagonal stays as it was. Inputs that are always 0 count as independent of all others.
    """
    diagonal = np.einsum("ii->i", gram)
    diagonal[diagonal == 0] = 1
    diagonal += np.float32(damping * float(diagonal.mean()))
    panels = pieces(len(gram), _PANEL)
    # From the last panel to the first, the upper r with r r^T; on the diagonal its inverse at once.
    for panel in reversed(panels):
        corner = np.ascontiguousarray(gram[panel, panel][::-1, ::-1])
        inverse: FloatArray = np.triu(np.linalg.inv(np.linalg.cholesky(corner)[::-1, ::-1]))
        gram[panel, panel] = inverse
        above = pieces(panel.start, _PANEL)

        def solve(rows: slice, panel: slice = panel, inverse: FloatArray = inverse) -> None:
            gram[rows, panel] = gram[rows, panel] @ inverse.T

        def take_away(rows: slice, panel: slice = panel) -> None:
            gram[rows, rows.start : panel.start] -= gram[rows, panel] @ gram[rows.start : panel.start, panel].T

        for function in (solve, take_away):
            list(in_order(function, above))
    # From the first panel to the last, the inverse of r: each needs those before it, and of itself what is further down.
    for panel in panels:

        def inverted(rows: slice, panel: slice = panel) -> FloatArray:
            return np.asarray(gram[rows, rows.start : panel.start] @ gram[rows.start : panel.start, panel] @ -gram[panel, panel])

        above = pieces(panel.start, _PANEL)
        for rows, part in zip(above, in_order(inverted, above), strict=True):
            gram[rows, panel] = part
    return gram


class Inverse(NamedTuple):
    """Of the products of a matrix's inputs: `inverse_factor` of them in `order`."""

    factor: FloatArray
    order: IntArray


def inverse_of(gram: FloatArray, damping: float = DAMPING) -> Inverse:
    """Of products [width, width] that are read right of the diagonal and on it; they are written over."""
    order = np.argsort(-np.einsum("ii->i", gram), kind="stable").astype(np.int32)
    for panel in pieces(len(gram), _PANEL):
        corner = gram[panel, panel]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        gram[panel.stop :, panel] = gram[panel, panel.stop :].T
    # Into that order where it lies: of a wide matrix a second one is as large as half a layer.
    for panel in pieces(len(gram), _PANEL):
        gram[:, panel] = gram[order, panel]
    for panel in pieces(len(gram), _PANEL):
        gram[panel] = gram[panel][:, order]
    return Inverse(inverse_factor(gram, damping), order)


def round_columns(weight: FloatArray, inverse: Inverse, steps: Steps, grid: Grid) -> Rounded:
    """A matrix [rows, columns] whose inputs have this inverse, rounded on these steps."""
    factor, order = inverse
    codes = np.empty(weight.shape, np.uint8)
    columns = weight.shape[1]
    lowest = np.float32(1 if grid.bits == 8 else 0)

    def round_part(rows: slice) -> None:
        left = np.ascontiguousarray(weight[rows][:, order].T)  # what is finished becomes what it lost
        scales, zeros = (np.ascontiguousarray(part[rows].T) for part in steps)
        divisors = np.where(scales == 0, np.float32(1), scales)
        for start in range(0, columns, BLOCK):
            end = min(start + BLOCK, columns)
            left[start:end] -= factor[:start, start:end].T @ left[:start]
            own = np.ascontiguousarray(factor[start:end, start:end].T)
            for column in range(start, end):
                row, group = left[column], order[column] // grid.group
                row -= own[column - start, : column - start] @ left[start:column]
                code = row / divisors[group]
                np.rint(code, out=code)
                code += zeros[group]
                np.clip(code, lowest, grid.top, out=code)
                codes[rows, order[column]] = code
                code -= zeros[group]
                code *= scales[group]
                row -= code
                row /= own[column - start, column - start]

    list(in_order(round_part, pieces(len(weight), _ROWS)))
    return Rounded(codes, steps)
