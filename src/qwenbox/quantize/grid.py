"""The numbers that a quantised weight can be: 4 bits with a scale and a zero a group, as AutoAWQ stores them, or 8 bits with a scale.

At groups of 128 these are `kernels.quants.round_int4` and `round_int8`, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qwenbox.errors import ModelFormatError
from qwenbox.kernels.native import rounding_change
from qwenbox.types import ByteArray, FloatArray

from .parallel import by_rows

GROUPS = (32, 64, 128)


class Steps(NamedTuple):
    """Of each group of inputs of each output, float32 [rows, groups]: a weight is (code - zero) * scale. Scales are exact in fp16."""

    scales: FloatArray
    zeros: FloatArray


class Rounded(NamedTuple):
    """A quantised matrix: codes [rows, columns], 0 to 2^bits - 1."""

    codes: ByteArray
    steps: Steps

    def floats(self, rows: slice = slice(None)) -> FloatArray:
        """float32 [rows, columns]"""
        scales, zeros = (part[rows, :, None] for part in self.steps)
        groups = self.codes[rows].reshape(*scales.shape[:2], -1).astype(np.float32)
        groups -= zeros
        groups *= scales
        floats: FloatArray = groups.reshape(len(groups), -1)
        return floats


@dataclass(frozen=True, slots=True)
class Grid:
    bits: int
    group: int

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def grouped(self, rows: FloatArray) -> FloatArray:
        """A view [rows, groups, group]."""
        return rows.reshape(len(rows), -1, self.group)

    def bounds(self, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The least and the largest weight of each group, [rows, groups]; 0 always lies between them."""
        groups = self.grouped(rows)
        return np.minimum(groups.min(-1), np.float32(0)), np.maximum(groups.max(-1), np.float32(0))

    def steps(self, low: FloatArray, high: FloatArray) -> Steps:
        """The scales and zeros that cover [low, high]. Raises ModelFormatError where a scale does not fit fp16."""
        if self.bits == 8:
            widest = np.maximum(-low, high)
            return Steps(_half(np.asarray(widest / np.float32(127), np.float32)), np.full_like(low, 128))
        scales = _half(np.asarray(np.maximum(high - low, np.float32(1e-5)) / np.float32(15), np.float32))
        return Steps(scales, np.clip(-np.rint(low / scales), 0, 15).astype(np.float32))

    def levels(self, rows: FloatArray, steps: Steps) -> FloatArray:
        """The nearest codes without their zeros, as floats [rows, groups, group]; weights beyond the range get the code at its end."""
        scales = np.where(steps.scales == 0, np.float32(1), steps.scales)
        levels: FloatArray = np.divide(self.grouped(rows), scales[:, :, None], dtype=np.float32)
        np.rint(levels, out=levels)
        least = np.float32(1 if self.bits == 8 else 0)
        return np.clip(levels, (least - steps.zeros)[:, :, None], (self.top - steps.zeros)[:, :, None], out=levels)

    def round(self, rows: FloatArray, steps: Steps | None = None) -> Rounded:
        """Round to nearest, on the plain range of each group where no other is given."""
        codes = np.empty(rows.shape, np.uint8)

        def round_part(part: slice) -> Steps:
            own = self.steps(*self.bounds(rows[part])) if steps is None else Steps(*(column[part] for column in steps))
            codes[part] = (self.levels(rows[part], own) + own.zeros[:, :, None]).reshape(-1, rows.shape[1])
            return own

        parts = by_rows(round_part, rows.shape)
        return Rounded(codes, Steps(*map(np.concatenate, zip(*parts, strict=True))) if steps is None else steps)

    def nearest(self, rows: FloatArray, steps: Steps | None = None) -> FloatArray:
        """What `round` makes of the rows, as weights."""
        if steps is None:
            steps = self.steps(*self.bounds(rows))
        levels = self.levels(rows, steps)
        levels *= steps.scales[:, :, None]
        return levels.reshape(rows.shape)

    def change(self, rows: FloatArray, scales: FloatArray | None = None, share: float = 1) -> FloatArray:
        """`nearest` of the rows times the scales of their columns, on this share of each range (`clip.cut`), without the scales, minus the rows."""
        return rounding_change(rows, scales, self.group, self.bits, share)


def _half(values: FloatArray) -> FloatArray:
    """float32 rounded to what fp16 holds."""
    if not (values <= 65504).all():
        raise ModelFormatError("a scale does not fit fp16: the weights are too large to be quantised, or not finite")
    return values.astype(np.float16).astype(np.float32)
