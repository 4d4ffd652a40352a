"""Tables of rotary positions, plain and YaRN (arXiv:2309.00071, as transformers computes it)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qwenbox.model.config import ModelConfig, Rope
from qwenbox.types import FloatArray


def inverse_frequencies(rope: Rope, head_dim: int) -> FloatArray:
    """[head_dim / 2], computed in float64 and rounded once to float32, the type in which every implementation keeps them."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    plain: npt.NDArray[np.float64] = 1.0 / rope.theta**exponent
    if rope.kind == "default":
        return plain.astype(np.float32)
    low, high = _ramp_bounds(rope, head_dim)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    return np.asarray(plain / rope.factor * ramp + plain * (1.0 - ramp), np.float32)


def _ramp_bounds(rope: Rope, head_dim: int) -> tuple[float, float]:
    """Dimensions below the first keep their frequency, those above the second are slowed by the whole factor."""

    def dimension(rotations: float) -> float:
        return head_dim * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high


def rope_tables(config: ModelConfig, positions: int) -> tuple[FloatArray, FloatArray]:
    """cos and sin, each float32 [positions, head_dim / 2], the attention factor multiplied in.

    Angles, cosines and sines are computed in float64 from the float32 frequencies and rounded once, so the tables are the same on every
    machine; implementations that keep angles in float32 differ from them by position * 2^-24 at most.
    """
    frequencies = inverse_frequencies(config.rope, config.head_dim).astype(np.float64)
    cos = np.empty((positions, len(frequencies)), np.float32)
    sin = np.empty_like(cos)
    for start in range(0, positions, 4096):
        angles = np.arange(start, min(start + 4096, positions), dtype=np.float64)[:, None] * frequencies
        cos[start : start + 4096] = np.cos(angles) * config.rope.attention_factor
        sin[start : start + 4096] = np.sin(angles) * config.rope.attention_factor
    return cos, sin
