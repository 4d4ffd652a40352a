from __future__ import annotations

import gguf
import numpy as np
import pytest

from qwenbox.errors import ModelFormatError, UsageError
from qwenbox.kernels import quants
from qwenbox.types import TENSOR_KINDS, Tensor, tensor_nbytes

GGUF_KINDS = [kind for kind, info in TENSOR_KINDS.items() if info.ggml_type is not None]


def random_blocks(kind: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bytes are blocks: scales of either sign, subnormal, infinite and NaN among them."""
    data = np.random.default_rng(seed).integers(0, 256, tensor_nbytes(kind, shape), dtype=np.uint8)
    return Tensor("t", kind, shape, data)


def as_gguf_reads_it(tensor: Tensor) -> np.ndarray:
    rows = tensor.data.reshape(*tensor.shape[:-1], -1)
    with np.errstate(all="ignore"):
        return gguf.dequantize(rows, gguf.GGMLQuantizationType(TENSOR_KINDS[tensor.kind].ggml_type))


@pytest.mark.parametrize("kind", GGUF_KINDS)
@pytest.mark.parametrize("shape", [(16, 256), (3, 5, 512), (768,)])
def test_random_blocks_dequantise_to_the_bits_of_the_gguf_package(kind: str, shape: tuple[int, ...]) -> None:
    tensor = random_blocks(kind, shape)
    with np.errstate(all="ignore"):
        ours = quants.dequantize(tensor)
    assert ours.shape == shape
    np.testing.assert_array_equal(ours, as_gguf_reads_it(tensor))


@pytest.mark.parametrize("kind", [kind for kind in GGUF_KINDS if kind not in quants.DENSE_KINDS])
@pytest.mark.parametrize("scale", [0x0000, 0x8000, 0x0001, 0x83FF, 0xBC00, 0x7BFF])
def test_zero_subnormal_negative_and_largest_scales_dequantise_as_gguf_does(kind: str, scale: int) -> None:
    tensor = random_blocks(kind, (4, 512))
    blocks = tensor.data.reshape(-1, TENSOR_KINDS[kind].block_bytes)
    places = {"q6_k": [208], "q4_1": [0, 2], "q4_k": [0, 2], "q5_k": [0, 2]}.get(kind, [0])
    for at in places:
        blocks[:, at : at + 2] = np.frombuffer(scale.to_bytes(2, "little"), np.uint8)
    np.testing.assert_array_equal(quants.dequantize(tensor), as_gguf_reads_it(tensor))


def test_a_slice_of_rows_is_the_slice_of_the_whole() -> None:
    tensor = random_blocks("q6_k", (9, 512))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(quants.dequantize(tensor, 2, 7), quants.dequantize(tensor)[2:7])


@pytest.mark.parametrize(("kind", "half_step"), [("int8", 0.5 / 127), ("int4", 0.5 / 15)])
@pytest.mark.parametrize("columns", [128, 200, 31, 1])
def test_rounding_stays_within_half_a_step_of_the_range_of_its_group(kind: str, half_step: float, columns: int) -> None:
    rows = np.random.default_rng(1).normal(size=(20, columns)).astype(np.float32)
    rounded = quants.round_tensor(Tensor("w", "f32", rows.shape, rows.reshape(-1).view(np.uint8)), kind)
    error = np.abs(quants.dequantize(rounded) - rows)
    for start in range(0, columns, 128):
        group = rows[:, start : start + 128]
        extent = np.abs(group).max(1) if kind == "int8" else np.maximum(group.max(1), 0) - np.minimum(group.min(1), 0)
        # Half a step; the scale itself is fp16, 2^-11 relative over at most 127 or 15 steps; int4 also rounds its zero point.
        slack = extent * 2.0**-11 + (extent * half_step if kind == "int4" else 0)
        assert (error[:, start : start + 128] <= (extent * half_step + slack)[:, None] * 1.0001).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_padding_of_the_last_block_dequantises_to_zero(kind: str) -> None:
    rows = np.random.default_rng(2).normal(2.0, 0.1, (6, 130)).astype(np.float32)
    data = quants.round_int8(rows) if kind == "int8" else quants.round_int4(rows)
    whole = quants.dequantize(Tensor("w", kind, (6, 256), data))
    assert (whole[:, 130:] == 0).all()
    assert np.abs(whole[:, :130] - rows).max() < 0.2


def test_int4_blocks_follow_the_formula_of_awq() -> None:
    rows = np.random.default_rng(3).normal(size=(8, 128)).astype(np.float32)
    scale = (np.maximum(rows.max(1) - rows.min(1), 1e-5) / np.float32(15)).astype(np.float16).astype(np.float32)
    zero = np.clip(-np.rint(rows.min(1) / scale), 0, 15)
    level = np.clip(np.rint(rows / scale[:, None]) + zero[:, None], 0, 15)
    got = quants.codes(Tensor("w", "int4", (8, 128), quants.round_int4(rows)))
    np.testing.assert_array_equal(got.scales[:, 0], scale)
    np.testing.assert_array_equal(got.codes, level - zero[:, None])


def test_rounding_in_chunks_gives_the_bytes_of_rounding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_blocks("q5_0", (64, 256), seed=4)
    tensor.data.reshape(-1, 22)[:, 1] = 0x20
    whole = {kind: quants.round_tensor(tensor, kind).data for kind in quants.ROUNDED_KINDS}
    monkeypatch.setattr(quants, "_CHUNK", 300)
    for kind, data in whole.items():
        np.testing.assert_array_equal(quants.round_tensor(tensor, kind).data, data)


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -1.003907, np.inf, np.nan, 3.4e38], np.float32)
    got = quants.dequantize(Tensor("w", "bf16", (7,), quants.round_bf16(values)))
    np.testing.assert_array_equal(got, np.array([1.0, 1.0, 1.015625, -1.0078125, np.inf, np.nan, np.inf], np.float32))


def test_weights_that_cannot_be_rounded_are_named() -> None:
    bad = np.array([[np.nan, 1.0]], np.float32)
    with pytest.raises(ModelFormatError, match=r"blk\.7"):
        quants.round_tensor(Tensor("blk.7", "f32", (1, 2), bad.reshape(-1).view(np.uint8)), "int8")
    huge = np.full((1, 2), 3e38, np.float32)
    with pytest.raises(ModelFormatError, match="fp16"):
        quants.round_tensor(Tensor("w", "f32", (1, 2), huge.reshape(-1).view(np.uint8)), "int4")
    with pytest.raises(UsageError, match="q4_0"):
        quants.round_tensor(random_blocks("f32", (1, 32)), "q4_0")
    with pytest.raises(UsageError, match="no codes"):
        quants.codes(random_blocks("f32", (1, 32)))
