from __future__ import annotations

import ctypes
import ctypes.util
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbox.kernels import reference

FMAS = [reference.numpy_fma, reference.fma]
"""The one in NumPy, and the processor's where the native library is built."""

f32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded(value: Fraction) -> np.float32:
    """The float32 nearest to an exact value, ties to even."""
    if value == 0:
        return np.float32(0)
    magnitude = abs(value)
    exponent = max(magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 1, -126)
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    ulp = Fraction(2) ** (exponent - 23)
    units = round(magnitude / ulp)  # Python rounds a Fraction half to even
    result = math.copysign(float(units * ulp), value) if units * ulp < Fraction(2) ** 128 else math.copysign(math.inf, value)
    return np.float32(result)


@settings(max_examples=500, deadline=None)
@given(f32, f32, f32)
def test_fma_rounds_the_exact_value_once(a: float, b: float, c: float) -> None:
    for fma in FMAS:
        assert fma(a, b, c) == rounded(Fraction(a) * Fraction(b) + Fraction(c))


@settings(max_examples=500, deadline=None)
@given(f32.filter(lambda x: 1e-18 < abs(x) < 1e18), f32.filter(lambda x: 1e-18 < abs(x) < 1e18), st.integers(-8, 8), st.integers(20, 60))
def test_fma_is_right_where_the_double_sum_falls_on_a_midpoint(a: float, b: float, units: int, shift: int) -> None:
    """The product plus an addend that puts the sum on, or within a hair of, the middle of two float32."""
    product = np.float64(np.float32(a)) * np.float64(np.float32(b))
    c = np.float32(product * 2.0**-shift * units)
    middle = np.float32(product)
    near = np.float32(np.float64(np.spacing(np.abs(middle))) * 0.5 * units)
    for addend in (c, near, middle):
        want = rounded(Fraction(float(np.float32(a))) * Fraction(float(np.float32(b))) + Fraction(float(addend)))
        for fma in FMAS:
            assert fma(a, b, addend) == want


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-38, 1e18])
def test_fma_of_many_random_numbers_is_the_fma_of_the_c_library(scale: float) -> None:
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    library.fmaf.restype = ctypes.c_float
    library.fmaf.argtypes = [ctypes.c_float] * 3
    rng = np.random.default_rng(5)
    # Few significant bits make ties and exact midpoints common.
    a, b, c = ((rng.integers(-(2**bits), 2**bits, 70_000) * scale).astype(np.float32) for bits in (12, 13, 20))
    c = (c * np.float32(2.0) ** rng.integers(-30, 30, len(c)).astype(np.float32)).astype(np.float32)
    with np.errstate(over="ignore"):
        want = np.array([library.fmaf(x, y, z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)], np.float32)
    for fma in FMAS:
        np.testing.assert_array_equal(fma(a, b, c), want)


def test_fma_broadcasts_and_keeps_infinity_and_nan() -> None:
    for fma in FMAS:
        got = fma(np.array([[1.0], [np.inf], [np.nan]], np.float32), np.array([1.0, -1.0], np.float32), np.float32(3e38))
        np.testing.assert_array_equal(got, np.array([[3e38, 3e38], [np.inf, -np.inf], [np.nan, np.nan]], np.float32))
        assert fma(3e38, 2, -3e38) == np.float32(3e38)


def test_sum16_adds_in_sixteen_lanes_and_halves() -> None:
    values = np.random.default_rng(6).normal(size=(3, 37)).astype(np.float32)
    for row, got, squares in zip(values, reference.sum16(values), reference.sumsq16(values), strict=True):
        lanes, square_lanes = [np.float32(0)] * 16, [np.float32(0)] * 16
        for i in range(48):
            v = row[i] if i < 37 else np.float32(0)
            lanes[i % 16] = lanes[i % 16] + v
            square_lanes[i % 16] = reference.fma(v, v, square_lanes[i % 16])
        for some in (lanes, square_lanes):
            for width in (8, 4, 2, 1):
                for j in range(width):
                    some[j] = some[j] + some[j + width]
        assert got == lanes[0]
        assert squares == square_lanes[0]


def test_exp_is_within_two_units_in_the_last_place_and_exact_at_its_ends() -> None:
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    truth = np.exp(x.astype(np.float64))
    got = reference.exp(x)
    assert (np.abs(got - truth) <= 2 * np.spacing(truth.astype(np.float32))).all()
    ends = reference.exp(np.array([0, -87.00001, -1e30, -np.inf, 100, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(ends[:4], [1, 0, 0, 0])
    assert ends[4] == ends[5] == reference.exp(np.array([88], np.float32))[0]
    assert np.isnan(ends[6])


def test_rms_norm_works_on_segments_of_the_width_of_its_weight() -> None:
    rng = np.random.default_rng(7)
    x, w = rng.normal(size=(4, 96)).astype(np.float32), rng.normal(size=32).astype(np.float32)
    whole = reference.rms_norm(x, w, 1e-6)
    for i in range(3):
        np.testing.assert_array_equal(whole[:, 32 * i : 32 * i + 32], reference.rms_norm(x[:, 32 * i : 32 * i + 32], w, 1e-6))
    truth = x[:, :32] / np.sqrt((x[:, :32].astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(whole[:, :32], truth, rtol=1e-6, atol=1e-7)


def test_rope_turns_each_pair_by_its_angle() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(5, 64)).astype(np.float32)
    angle = rng.uniform(0, 7, (5, 16))
    y = reference.rope(x, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32), 32)
    for head in range(2):
        z = x[:, head * 32 : head * 32 + 16] + 1j * x[:, head * 32 + 16 : head * 32 + 32]
        turned = z * np.exp(1j * angle)
        np.testing.assert_allclose(y[:, head * 32 : head * 32 + 16], turned.real, atol=1e-6)
        np.testing.assert_allclose(y[:, head * 32 + 16 : head * 32 + 32], turned.imag, atol=1e-6)
