"""Rounding while packing in C++ against its twin in NumPy: the same numbers, and the same refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from qwenbox.errors import ModelFormatError
from qwenbox.kernels import native, quants
from qwenbox.types import TENSOR_KINDS, AwqTensor, FloatArray, RoundedTensor, Tensor, tensor_nbytes
from tests.kernels.networks import Steps, compiled, rows_batch

_SCALES = {"q4_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
"""Where fp16 numbers stand in a block; elsewhere at 0."""


def finite_blocks(kind: str, shape: tuple[int, int]) -> Tensor:
    """Random bytes with scales of either sign and any size, none infinite or NaN."""
    generator = np.random.default_rng(5)
    data = generator.integers(0, 256, tensor_nbytes(kind, shape), dtype=np.uint8)
    if kind == "f32":
        values = generator.standard_normal(shape, dtype=np.float32) * np.exp2(generator.integers(-30, 12, shape)).astype(np.float32)
        return Tensor("w", kind, shape, values.reshape(-1).view(np.uint8))
    blocks = data.reshape(-1, TENSOR_KINDS[kind].block_bytes)
    for at in _SCALES.get(kind, (0,)):
        blocks[:, at + 1] &= 0xBF  # exponents below 16
    if kind in ("int4_64", "int4_32"):
        blocks[:, 2] &= 15
    return Tensor("w", kind, shape, data)


def floats(rows: FloatArray) -> Tensor:
    return Tensor("w", "f32", rows.shape, np.ascontiguousarray(rows, np.float32).reshape(-1).view(np.uint8))


def numbers(tensor: Tensor, isa: str | None = None) -> FloatArray:
    """Of the packed tensor, each row read back."""
    return compiled(Steps(tensor, lambda ops, x: x), isa=isa, tokens=tensor.shape[0]).run(rows_batch(tensor.shape[0]))


def assert_rounds_as_the_twin(tensor: Tensor, to: str) -> None:
    want = quants.dequantize(quants.round_tensor(tensor, to))
    for isa in native.isa_available():
        np.testing.assert_array_equal(numbers(rounded(tensor, to), isa), want, err_msg=isa)


def rounded(tensor: Tensor, to: str) -> Tensor:
    return tensor if tensor.kind == to else RoundedTensor(tensor.name, to, tensor.shape, np.empty(0, np.uint8), tensor)


@pytest.mark.parametrize("to", quants.ROUNDED_KINDS)
@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_every_kind_rounds_as_the_twin_does(kind: str, to: str) -> None:
    for columns in (1, 32, 127, 128, 160, 256, 300, 1024):
        assert_rounds_as_the_twin(finite_blocks(kind, (67, columns)), to)


@pytest.mark.parametrize("to", quants.ROUNDED_KINDS)
def test_ties_zeros_subnormals_and_one_sign_round_as_the_twin_does(to: str) -> None:
    ties = np.arange(-64, 64, dtype=np.float32) + np.float32(0.5)
    steps = np.exp2(np.arange(-149, -21, dtype=np.float64)).astype(np.float32)
    largest = np.full(128, 65504 * 7, np.float32)
    rows = np.stack([ties, -ties, np.zeros(128, np.float32), steps, -steps, ties + 100, -100 - ties, largest, np.full(128, -1e-8, np.float32)])
    rows = np.concatenate([rows * np.float32(2.0**-shift) for shift in (0, 10, 20, 27, 31, 133)])
    assert_rounds_as_the_twin(floats(rows), to)


@pytest.mark.parametrize("rounding", [quants.round_tensor, lambda tensor, to: numbers(rounded(tensor, to))])
@pytest.mark.parametrize(
    ("value", "to", "named"), [(np.inf, "bf16", "infinity"), (np.nan, "int8", "NaN"), (1e30, "int8", "fp16"), (3e38, "int4", "fp16")]
)
def test_what_cannot_be_rounded_is_named(rounding: Callable[[Tensor, str], object], value: float, to: str, named: str) -> None:
    bad = np.zeros((2, 130), np.float32)
    bad[1, 129] = value
    bad[1, 128] = -value
    with pytest.raises(ModelFormatError, match=f"w .*{named}"):
        rounding(floats(bad), to)


NOT_FINITE = (0x7C00, 0xFC00, 0x7E00, 0x7C01)
"""Bits of fp16: the infinities, and numbers that are none."""


@pytest.mark.parametrize("kind", [kind for kind in TENSOR_KINDS if kind not in ("f32", "f16", "bf16")])
def test_a_stored_scale_that_is_not_finite_is_refused_by_the_name_of_its_tensor(kind: str) -> None:
    tensor = finite_blocks(kind, (67, 300))
    blocks = tensor.data.reshape(-1, TENSOR_KINDS[kind].block_bytes)
    for at in _SCALES.get(kind, (0,)):
        place = blocks[-1, at : at + 2]
        place[:] = np.array([0x7BFF], "<u2").view(np.uint8)
        numbers(tensor)
        for bits in NOT_FINITE:
            place[:] = np.array([bits], "<u2").view(np.uint8)
            with pytest.raises(ModelFormatError, match=rf"^w \({kind}\) holds a scale that is NaN or infinite"):
                numbers(tensor)
        place[:] = 0


@pytest.mark.parametrize("kind", quants.DENSE_KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_stored_number_that_is_not_finite_is_refused_by_the_name_of_its_tensor(kind: str, value: float) -> None:
    largest = np.full((67, 300), {"f16": 65504, "bf16": 3.38e38, "f32": 3.4e38}[kind], np.float32)

    def stored(rows: FloatArray) -> Tensor:
        data = {"f32": lambda: rows, "f16": lambda: rows.astype(np.float16), "bf16": lambda: quants.round_bf16(rows)}[kind]()
        return Tensor("w", kind, rows.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8))

    np.testing.assert_array_equal(numbers(stored(largest)), quants.dequantize(stored(largest)))
    for at in ((0, 0), (66, 299), (64, 33)):
        bad = largest.copy()
        bad[at] = value
        with pytest.raises(ModelFormatError, match=rf"^w \({kind}\) holds a number that is NaN or infinite"):
            numbers(stored(bad))
        with pytest.raises(ModelFormatError, match=rf"^w \({kind}\) holds a number that is NaN or infinite"):
            native.Native().vector(Tensor("w", kind, (67 * 300,), stored(bad).data))


@pytest.mark.parametrize("bits", NOT_FINITE)
def test_a_scale_of_awq_that_is_not_finite_is_refused_by_the_name_of_its_tensor(bits: int) -> None:
    scales = np.ones((2, 72), np.uint16)
    tensor = AwqTensor("w", "int4", (72, 256), np.empty(0, np.uint8), np.zeros((256, 9), np.uint32), np.zeros((2, 9), np.uint32), scales)
    numbers(tensor)
    scales[1, 71] = bits
    with pytest.raises(ModelFormatError, match=r"^w \(int4\) holds a scale that is NaN or infinite"):
        numbers(tensor)


@pytest.mark.parametrize("kind", ["int4", "int4_64", "int4_32"])
def test_words_of_autoawq_are_the_numbers_that_their_formula_gives(kind: str) -> None:
    generator = np.random.default_rng(6)
    rows, columns = 200, 384
    blocks = columns // TENSOR_KINDS[kind].block
    codes = generator.integers(0, 16, (columns, rows))
    zeros = generator.integers(0, 16, (blocks, rows))
    scales = generator.uniform(-1, 1, (blocks, rows)).astype(np.float16)
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])

    def words(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        nibbles = values.reshape(len(values), -1, 8)[..., order].astype(np.uint32)
        return np.asarray((nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=-1), np.uint32)

    tensor = AwqTensor("w", kind, (rows, columns), np.empty(0, np.uint8), words(codes), words(zeros), scales.view(np.uint16))
    spread = np.arange(columns) // TENSOR_KINDS[kind].block
    np.testing.assert_array_equal(numbers(tensor), ((codes - zeros[spread]).astype(np.float32) * scales[spread].astype(np.float32)).T)
