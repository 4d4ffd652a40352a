"""AWQ's search for the scales of a layer's inputs (arXiv:2306.00978): weights times s, inputs divided by s; large inputs get finer weights.

Two families of scales are tried, r going from 0 to 0.95 by a twentieth: x^r of the paper, and x^r / w^(1 - r) of AutoAWQ, x being the mean size
of an input over the calibration and w the mean size of its weights, each relative to the largest of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from qwenbox.types import FloatArray

from .grid import Grid
from .inputs import Inputs
from .parallel import PRODUCT, by_rows

STEPS = 20
"""Ratios that are tried."""


class Consumer(NamedTuple):
    """A matrix [rows, columns] and what reaches it."""

    weight: FloatArray
    inputs: Inputs


def search_scales(
    consumers: Sequence[Consumer],
    magnitude: FloatArray,
    grid: Grid,
    *,
    variants: Sequence[str] = ("paper", "duo"),
    tie: Callable[[FloatArray], FloatArray] | None = None,
) -> FloatArray:
    """The scales of least error, [columns], for matrices that read the same inputs, of this mean size; `tie` makes those equal, [columns], that can
    only have the same."""
    factors = {id(consumer.inputs): consumer.inputs.factor for consumer in consumers if consumer.inputs.count}
    seen = [(consumer.weight, factors[id(consumer.inputs)]) for consumer in consumers if consumer.inputs.count]
    best, least = np.ones_like(magnitude), sum(rounding_error(weight, factor, grid, None) for weight, factor in seen)
    weights = weight_magnitude([consumer.weight for consumer in consumers], grid)
    if tie is not None:
        magnitude, weights = tie(magnitude), tie(weights)
    for variant in variants:
        errors: dict[int, float] = {}

        def error_of(step: int, variant: str = variant, errors: dict[int, float] = errors) -> float:
            nonlocal best, least
            scales = scales_at(magnitude, weights, variant, step / STEPS)
            errors[step] = sum(rounding_error(weight, factor, grid, scales) for weight, factor in seen)
            if errors[step] < least:
                best, least = scales, errors[step]
            return errors[step]

        # Every second ratio, then the two beside the best: the error has one valley.
        middle = min(range(0, STEPS, 2), key=error_of)
        for step in (middle - 1, middle + 1):
            if 0 <= step < STEPS:
                error_of(step)
    return best


def scales_at(magnitude: FloatArray, weights: FloatArray, variant: str, ratio: float) -> FloatArray:
    scales = magnitude ** np.float32(ratio)
    if variant == "duo":
        scales = scales / (weights ** np.float32(1 - ratio) + np.float32(1e-4))
    return normalised(np.asarray(scales, np.float32))


def normalised(scales: FloatArray) -> FloatArray:
    """Around one: divided by the geometric mean of the largest and the least."""
    scales = np.maximum(scales, np.float32(1e-4))
    scales /= np.sqrt(scales.max() * scales.min())
    scales[~np.isfinite(scales)] = 1
    return scales


def weight_magnitude(weights: Sequence[FloatArray], grid: Grid) -> FloatArray:
    """Mean over all rows of each column's size relative to the largest of its group, [columns]."""

    def relative(rows: FloatArray) -> FloatArray:
        sizes = np.abs(grid.grouped(rows))
        sizes /= sizes.max(-1, keepdims=True) + np.float32(1e-6)
        return np.asarray(sizes.sum(0).reshape(-1), np.float32)

    total = np.zeros(weights[0].shape[1], np.float64)
    for weight in weights:
        for part in by_rows(lambda rows, weight=weight: relative(weight[rows]), weight.shape):  # type: ignore[misc]
            total += part
    return (total / sum(map(len, weights))).astype(np.float32)


def rounding_error(weight: FloatArray, factor: FloatArray, grid: Grid, scales: FloatArray | None) -> float:
    """Mean over tokens of the squared distance of outputs, the weights being rounded under these scales."""

    def part(rows: slice) -> float:
        return squared(grid.change(weight[rows], scales) @ factor.T)

    return sum(by_rows(part, weight.shape, PRODUCT))


def squared(values: FloatArray) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))
