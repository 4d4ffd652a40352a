"""What reaches a linear layer during calibration, as the few numbers that the searches need.

Tokens are seen once and not kept. A search asks how far the outputs of a changed matrix are from those of the original, d x for all tokens x:
the mean of |d x|^2 is |d f^T|^2 for any f with f^T f = mean of x x^T. `factor` is such an f with fewer rows than there are tokens: rows of
random signs times the tokens. Its f^T f is right in the mean and every token has a part in it, where a sample of tokens would leave most out.
"""

from __future__ import annotations

import numpy as np

from qwenbox.types import FloatArray

from .parallel import in_order, pieces

ROWS = 512
"""Of a factor."""
_COLUMNS = 512
"""That are seen at one time."""


class Inputs:
    """Statistics of the inputs, `width` wide, of one or more linear layers. `gram`: whether the whole matrix of products is kept."""

    def __init__(self, width: int, group: int, *, rows: int = ROWS, gram: bool = False) -> None:
        self.count = 0
        self._group = group
        self._magnitude = np.zeros(width, np.float64)
        self._blocks = np.zeros((width // group, group, group), np.float32)
        self._factor = np.zeros((rows, width), np.float32)
        # Pieces of rows, each from its own diagonal on: half of the matrix, which is as large as the layer where inputs are wide.
        self._gram = [np.zeros((min(_COLUMNS, width - start), width - start), np.float32) for start in range(0, width, _COLUMNS)] if gram else None
        self._random = np.random.Generator(np.random.SFC64(7))
        self._divisor = np.ones(width, np.float32)

    def add(self, x: FloatArray) -> None:
        """Tokens [n, width]."""
        if not len(x):
            return
        self.count += len(x)
        signs = self._random.integers(0, 2, (len(self._factor), len(x)), dtype=np.int8).astype(np.float32) * 2 - 1

        def add_columns(columns: slice) -> None:
            own = np.ascontiguousarray(x[:, columns])
            self._magnitude[columns] += np.abs(own).sum(0, dtype=np.float64)
            grouped = np.ascontiguousarray(own.reshape(len(own), -1, self._group).transpose(1, 0, 2))
            self._blocks[columns.start // self._group : columns.stop // self._group] += grouped.transpose(0, 2, 1) @ grouped
            self._factor[:, columns] += signs @ own
            if self._gram is not None:
                self._gram[columns.start // _COLUMNS] += own.T @ x[:, columns.start :]

        list(in_order(add_columns, pieces(x.shape[1], _COLUMNS)))

    def divide(self, scales: FloatArray) -> None:
        """From now on as if every input had been divided by its scale."""
        self._divisor *= scales

    @property
    def magnitude(self) -> FloatArray:
        """Mean size of each input, [width]."""
        return (self._magnitude / self.count / self._divisor).astype(np.float32)

    @property
    def factor(self) -> FloatArray:
        """[rows, width]"""
        return np.asarray(self._factor * (np.float32(1 / np.sqrt(self.count * len(self._factor))) / self._divisor))

    @property
    def blocks(self) -> FloatArray:
        """Means of the products of the inputs of each group, [groups, group, group]."""
        divisor = self._divisor.reshape(-1, self._group)
        return np.asarray(self._blocks / (np.float32(self.count) * divisor[:, :, None] * divisor[:, None, :]))

    def take_gram(self) -> FloatArray:
        """Means of the products of all inputs, [width, width], right of the diagonal and on it; only where it is kept, and once: it is large."""
        assert self._gram is not None
        panels, self._gram = self._gram, None
        gram = np.empty((len(self._divisor), len(self._divisor)), np.float32)
        start = 0
        while panels:
            panel, divisors = panels.pop(0), self._divisor[start:]
            for row, divisor in zip(panel, divisors[: len(panel)], strict=True):
                row /= np.float32(self.count) * divisor * divisors
            gram[start : start + len(panel), start:] = panel
            start += len(panel)
        return gram
