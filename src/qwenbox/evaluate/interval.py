"""How sure a measured mean is: bootstrap over the units that were measured, which are windows of a text or items of a task.

Tokens of one window depend on each other, so they are not units. The interval holds the middle 95 % of the means of `RESAMPLES` samples of as many
units, drawn with replacement (Efron's percentile method); a handful of units says too little for that, so it has no interval. Draws depend on the
number of units alone: two models that were measured on the same units are resampled alike, which makes the interval of their difference a paired
one. It says nothing about texts or tasks that differ from these, and where all units agree it has no width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 5000
MIN_UNITS = 10
"""With fewer there is no interval."""
SEED = 2026
_ELEMENTS = 1 << 22
"""Drawn numbers that are in memory at one time."""

Doubles = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A number with the bounds of its 95 % interval, which are NaN where there are too few units."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]")

    def numbers(self, name: str) -> dict[str, float]:
        """For programs."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True, eq=False)
class Mean:
    """sum(sums) / sum(weights) over units: the sum of something in each unit, and how many tokens (or items: 1) it was taken over."""

    sums: Doubles
    weights: Doubles

    @classmethod
    def of(cls, units: list[tuple[float, float]]) -> Mean:
        """(sum, weight) of each unit."""
        table = np.array(units, np.float64).reshape(-1, 2)
        return cls(table[:, 0], table[:, 1])

    @property
    def value(self) -> float:
        """NaN where nothing was measured."""
        return float(self.sums.sum() / self.weights.sum()) if len(self.sums) else math.nan

    def estimate(self) -> Estimate:
        return _estimate(self.value, self._resampled())

    def minus(self, other: Mean) -> Estimate:
        """The difference of two means over the same units."""
        return _estimate(self.value - other.value, self._resampled() - self._paired(other))

    def over(self, other: Mean) -> Estimate:
        """The ratio of two means over the same units; NaN where the other is 0."""
        with np.errstate(all="ignore"):
            return _estimate(float(np.divide(self.value, other.value)), self._resampled() / self._paired(other))

    def _paired(self, other: Mean) -> Doubles:
        if len(other.sums) != len(self.sums):
            raise ValueError(f"{len(self.sums)} units cannot be paired with {len(other.sums)}")
        return other._resampled()

    def _resampled(self) -> Doubles:
        """The mean of each resample."""
        if len(self.sums) < MIN_UNITS:
            return np.full(1, np.nan)
        return np.concatenate([self.sums[drawn].sum(1) / self.weights[drawn].sum(1) for drawn in _draws(len(self.sums))])


def _draws(count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Units of all resamples, some resamples at a time."""
    random = np.random.default_rng(SEED)
    rows = max(1, min(RESAMPLES, _ELEMENTS // count))
    return (random.integers(0, count, (min(rows, RESAMPLES - first), count)) for first in range(0, RESAMPLES, rows))


def _estimate(value: float, resampled: Doubles) -> Estimate:
    known = resampled[~np.isnan(resampled)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high))
