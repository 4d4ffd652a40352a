"""Raw blocks of every tensor kind as NumPy arrays, and rounding of float rows to our own kinds.

Block layouts: `types.TENSOR_KINDS` for the sizes, docs/numeric-contract.md for the meaning. GGUF kinds dequantise to the bits that the
`gguf` package gives; that fixes the order of the float32 products below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenbox.errors import ModelFormatError, UsageError
from qwenbox.types import TENSOR_KINDS, ByteArray, FloatArray, Tensor

ShortArray = npt.NDArray[np.int16]

DENSE_KINDS = ("f32", "f16", "bf16")
"""Kinds that are numbers, not codes: neither they nor their inputs are rounded."""

_CHUNK = 1 << 22
"""Elements that are float32 at one time while a tensor is rounded, for each thread."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows of a quantised matrix as integers; `columns` are padded to whole blocks.

    An element is `code * sub_scale * scale - sub_min * min` (kinds without a part leave it out), except that q4_1 *adds* its min.
    """

    codes: ShortArray
    """[n, columns], the zero point already subtracted."""
    scales: FloatArray
    """[n, blocks]: d of GGUF, s of ours, widened from fp16."""
    mins: FloatArray | None = None
    """[n, blocks]: m of q4_1, dmin of q4_k and q5_k."""
    sub_scales: ShortArray | None = None
    """[n, sub-blocks]: 6-bit (q4_k, q5_k, 32 inputs each) or signed 8-bit (q6_k, 16 inputs each)."""
    sub_mins: ShortArray | None = None
    """[n, sub-blocks]: 6-bit (q4_k, q5_k)."""

    def multipliers(self) -> ShortArray:
        """[n, columns]: codes times sub-scales, what an int8 activation is multiplied by. At most 128 * 32 in size."""
        if self.sub_scales is None:
            return self.codes
        return _scaled(self.codes, self.sub_scales)


def codes(tensor: Tensor, start: int = 0, stop: int | None = None) -> Codes:
    """Rows [start, stop) of a quantised matrix (n, k). Raises UsageError for a kind that has no codes."""
    decode = _DECODERS.get(tensor.kind)
    if decode is None:
        raise UsageError(f"a tensor of kind {tensor.kind} has no codes ({tensor.name})")
    info = TENSOR_KINDS[tensor.kind]
    rows = raw_rows(tensor)[start:stop]
    return decode(rows.reshape(len(rows), -1, info.block_bytes))


def dequantize(tensor: Tensor, start: int = 0, stop: int | None = None) -> FloatArray:
    """Rows [start, stop) of the matrix as float32; the whole tensor, in its own shape, when no bounds are given.

    "Rows" of a tensor with more than two axes are those of all its experts, one after the other.
    """
    rows = raw_rows(tensor)[start:stop]
    shape = (len(rows), tensor.shape[-1]) if start or stop is not None else tensor.shape
    if tensor.kind in DENSE_KINDS:
        return _DENSE[tensor.kind](np.ascontiguousarray(rows)).reshape(shape)
    matrix = Tensor(tensor.name, tensor.kind, (len(rows), tensor.shape[-1]), rows.reshape(-1))
    return _floats(tensor.kind, codes(matrix))[:, : tensor.shape[-1]].reshape(shape)


def round_bf16(rows: FloatArray) -> ByteArray:
    """float32 rows to bf16, round to nearest even, as raw bytes. NaN stays NaN."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    rounded = np.where(np.isnan(rows), np.uint16(0x7FC0), rounded)
    return rounded.astype("<u2").reshape(-1).view(np.uint8)


def round_int8(rows: FloatArray) -> ByteArray:
    """float32 rows [n, k] to raw `int8` blocks: s = fp16(amax / 127), q = round(w / s) in [-127, 127], for each 128 inputs."""
    groups = _groups(rows)
    scales = _fp16(np.abs(groups).max(axis=-1) / np.float32(127))
    steps = np.where(scales == 0, np.float32(1), scales.astype(np.float32))[..., None]
    blocks = np.empty((*groups.shape[:2], 130), np.uint8)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2:] = np.clip(np.rint(groups / steps), -127, 127).astype(np.int8).view(np.uint8)
    return blocks.reshape(-1)


def round_int4(rows: FloatArray) -> ByteArray:
    """float32 rows [n, k] to raw `int4` blocks as AWQ's pseudo-quantisation does (shared formula: s, z and q per 128 inputs).

    s = fp16(max(max - min, 1e-5) / 15), z = clamp(-round(min / s), 0, 15), q = clamp(round(w / s) + z, 0, 15). The range always holds 0, so
    that groups of one sign and the padding of the last block, which is 0, are not cut off.
    """
    groups = _groups(rows)
    low = np.minimum(groups.min(axis=-1), np.float32(0))
    high = np.maximum(groups.max(axis=-1), np.float32(0))
    scales = _fp16(np.maximum(high - low, np.float32(1e-5)) / np.float32(15))
    steps = scales.astype(np.float32)
    zeros = np.clip(-np.rint(low / steps), 0, 15)
    levels = np.clip(np.rint(groups / steps[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    blocks = np.empty((*groups.shape[:2], 67), np.uint8)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2] = zeros.astype(np.uint8)
    blocks[..., 3:] = levels[..., :64] | levels[..., 64:] << 4
    return blocks.reshape(-1)


ROUNDED_KINDS = ("bf16", "int8", "int4")
"""Kinds that `round_tensor` makes."""


def _round_rows(tensor: Tensor, kind: str, start: int, stop: int) -> ByteArray:
    floats = dequantize(tensor, start, stop)
    if not np.isfinite(floats).all():
        raise not_finite(tensor, kind)
    try:
        with np.errstate(over="ignore"):  # a range of infinite length is refused below
            return {"bf16": round_bf16, "int8": round_int8, "int4": round_int4}[kind](floats)
    except OverflowError:
        raise too_large(tensor, kind) from None


def not_finite(tensor: Tensor, kind: str) -> ModelFormatError:
    if tensor.kind == kind:
        what = "a number" if kind in DENSE_KINDS else "a scale"
        return ModelFormatError(f"{tensor.name} ({kind}) holds {what} that is NaN or infinite: the file is damaged, fetch it again")
    return ModelFormatError(f"{tensor.name} holds NaN or infinity and cannot be rounded to {kind}")


def too_large(tensor: Tensor, kind: str) -> ModelFormatError:
    return ModelFormatError(f"the weights of {tensor.name} are too large to be rounded to {kind}: a scale does not fit fp16")


def round_tensor(tensor: Tensor, kind: str) -> Tensor:
    """The tensor rounded to `bf16`, `int8` or `int4`, some rows at a time. Rounding a tensor that is already rounded loses again.

    Raises ModelFormatError for NaN, infinity and too large scales.
    """
    if kind not in ROUNDED_KINDS:
        raise UsageError(f"weights cannot be rounded to {kind}; choose one of {', '.join(ROUNDED_KINDS)}")
    if tensor.kind == kind:
        return tensor
    columns = tensor.shape[-1]
    count = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    step = max(1, _CHUNK // columns)
    chunks = [_round_rows(tensor, kind, start, min(start + step, count)) for start in range(0, count, step)]
    return Tensor(tensor.name, kind, tensor.shape, np.concatenate(chunks))


def _groups(rows: FloatArray) -> FloatArray:
    """[n, k] -> [n, ceil(k / 128), 128], padded with 0."""
    n, k = rows.shape
    padded = np.zeros((n, -(-k // 128) * 128), np.float32)
    padded[:, :k] = rows
    return padded.reshape(n, -1, 128)


def _fp16(values: FloatArray) -> npt.NDArray[np.float16]:
    if not (values <= 65504).all():
        raise OverflowError("a scale does not fit fp16")
    return values.astype("<f2")


def raw_rows(tensor: Tensor) -> ByteArray:
    """[rows, bytes of a row]"""
    info = TENSOR_KINDS[tensor.kind]
    return tensor.data.reshape(-1, -(-tensor.shape[-1] // info.block) * info.block_bytes)


_DENSE: dict[str, Callable[[ByteArray], FloatArray]] = {
    "f32": lambda raw: raw.view("<f4").astype(np.float32),
    "f16": lambda raw: raw.view("<f2").astype(np.float32),
    "bf16": lambda raw: (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32),
}


def _scaled(values: ShortArray, factors: ShortArray) -> ShortArray:
    """Each run of values times its factor."""
    n, count = factors.shape
    return (values.reshape(n, count, -1) * factors[:, :, None]).reshape(n, -1)


def _floats(kind: str, block: Codes) -> FloatArray:
    """float32 of whole blocks, in the order of operations of the `gguf` package."""
    n, blocks = block.scales.shape
    if block.sub_scales is None:
        out = block.codes.reshape(n, blocks, -1).astype(np.float32) * block.scales[:, :, None]
        if block.mins is not None:
            out += block.mins[:, :, None]
        return out.reshape(n, -1)
    per_block = block.sub_scales.shape[1] // blocks
    scales = np.repeat(block.scales, per_block, axis=1) * block.sub_scales.astype(np.float32)
    out = block.codes.reshape(n, scales.shape[1], -1).astype(np.float32) * scales[:, :, None]
    if block.mins is not None and block.sub_mins is not None:
        out -= (np.repeat(block.mins, per_block, axis=1) * block.sub_mins.astype(np.float32))[:, :, None]
    return out.reshape(n, -1)


# --- decoders: raw blocks [n, blocks, block_bytes] -> Codes ------------------------------------------------------------


def _half(raw: ByteArray, at: int) -> FloatArray:
    return np.ascontiguousarray(raw[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _short(values: npt.NDArray[np.generic], rows: int) -> ShortArray:
    return values.reshape(rows, -1).astype(np.int16)


def _nibbles(raw: ByteArray) -> ByteArray:
    """The low nibbles of a run of bytes, then the high ones: [..., b] -> [..., 2 b]."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _q4_0(raw: ByteArray) -> Codes:
    return Codes(_short(_nibbles(raw[..., 2:]), len(raw)) - np.int16(8), _half(raw, 0))


def _q4_1(raw: ByteArray) -> Codes:
    return Codes(_short(_nibbles(raw[..., 4:]), len(raw)), _half(raw, 0), _half(raw, 2))


def _q5_0(raw: ByteArray) -> Codes:
    fifth = np.unpackbits(np.ascontiguousarray(raw[..., 2:6]), axis=-1, bitorder="little")
    return Codes(_short(_nibbles(raw[..., 6:]) | fifth << 4, len(raw)) - np.int16(16), _half(raw, 0))


def _q8_0(raw: ByteArray) -> Codes:
    return Codes(_short(np.ascontiguousarray(raw[..., 2:]).view(np.int8), len(raw)), _half(raw, 0))


def _six_bits(raw: ByteArray) -> tuple[ShortArray, ShortArray]:
    """The 12 bytes of eight 6-bit scales and eight 6-bit mins of q4_k and q5_k."""
    first, second, third = raw[..., 0:4], raw[..., 4:8], raw[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=-1)
    mins = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=-1)
    return _short(scales, len(raw)), _short(mins, len(raw))


def _pairs(raw: ByteArray) -> ByteArray:
    """128 bytes of nibbles: each 32 bytes hold two runs of 32 elements."""
    return _nibbles(raw.reshape(*raw.shape[:2], 4, 32)).reshape(*raw.shape[:2], 256)


def _q4_k(raw: ByteArray) -> Codes:
    return Codes(_short(_pairs(raw[..., 16:]), len(raw)), _half(raw, 0), _half(raw, 2), *_six_bits(raw[..., 4:16]))


def _q5_k(raw: ByteArray) -> Codes:
    fifth = (raw[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(*raw.shape[:2], 256)
    return Codes(_short(_pairs(raw[..., 48:]) | fifth << 4, len(raw)), _half(raw, 0), _half(raw, 2), *_six_bits(raw[..., 4:16]))


def _q6_k(raw: ByteArray) -> Codes:
    low = _nibbles(raw[..., :128].reshape(*raw.shape[:2], 2, 64))
    high = raw[..., 128:192].reshape(*raw.shape[:2], 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    levels = low | high.reshape(low.shape) << 4
    sub_scales = _short(np.ascontiguousarray(raw[..., 192:208]).view(np.int8), len(raw))
    return Codes(_short(levels, len(raw)) - np.int16(32), _half(raw, 208), sub_scales=sub_scales)


def _int4(raw: ByteArray) -> Codes:
    return _less_zero(_nibbles(raw[..., 3:]), raw)


def _uint8(raw: ByteArray) -> Codes:
    return _less_zero(raw[..., 3:], raw)


def _less_zero(levels: ByteArray, raw: ByteArray) -> Codes:
    return Codes(_short(levels.astype(np.int16) - raw[..., 2:3].astype(np.int16), len(raw)), _half(raw, 0))


_DECODERS: dict[str, Callable[[ByteArray], Codes]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "int4": _int4,
    "int8": _q8_0,
    "int4_64": _int4,
    "int4_32": _int4,
    "uint8": _uint8,
}
