"""GPTQ (arXiv:2210.17323): columns are rounded one after the other, and what each loses is made good by those that are left.

Groups are static: their steps are known beforehand. Columns keep their order.
"""

from __future__ import annotations

import numpy as np

from qwenbox.types import FloatArray

from .grid import Grid, Rounded, Steps

DAMPING = 0.01
"""Of the mean of the diagonal, added to it."""
BLOCK = 128
"""Columns that are finished before the others hear of it."""


def inverse_factor(gram: FloatArray, damping: float = DAMPING) -> FloatArray:
    """The upper triangular u with u^T u = (gram + damping)^-1, [width, width]. Inputs that are always 0 count as independent of all others."""
    damped = gram.astype(np.float32)
    diagonal = np.einsum("ii->i", damped)
    dead = diagonal == 0
    diagonal[dead] = 1
    mean = float(diagonal.mean())
    diagonal += np.float32(damping * mean)
    # Of the matrix turned around, the lower factor l with l l^T; its inverse, turned around again, is u.
    turned = np.linalg.cholesky(damped[::-1, ::-1])
    return np.ascontiguousarray(np.linalg.inv(turned)[::-1, ::-1])


def round_columns(weight: FloatArray, factor: FloatArray, steps: Steps, grid: Grid) -> Rounded:
    """A matrix [rows, columns] whose inputs have this `inverse_factor`, rounded on these steps."""
    left = np.ascontiguousarray(weight.T)
    codes = np.empty(left.shape, np.uint8)
    columns = len(left)
    scales, zeros = (np.ascontiguousarray(part.T) for part in steps)
    divisors = np.where(scales == 0, np.float32(1), scales)
    lowest = 1 if grid.bits == 8 else 0
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for column in range(start, end):
            group = column // grid.group
            row = left[column]
            code = np.clip(np.rint(row / divisors[group]) + zeros[group], lowest, grid.top)
            codes[column] = code
            error = errors[column - start]
            np.subtract(row, (code - zeros[group]) * scales[group], out=error)
            error /= factor[column, column]
            left[column + 1 : end] -= factor[column, column + 1 : end, None] * error
        left[end:] -= factor[start:end, end:].T @ errors
    return Rounded(np.ascontiguousarray(codes.T), steps)
