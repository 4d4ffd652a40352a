"""Blocks of our kinds from rows whose codes lie one after the other in words of 32 bits, and scales as fp16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedModelError
from ..types import TENSOR_KINDS, ByteArray, Tensor

_AT_ONCE = 1 << 16
"""Words that pass together, so that what is made of them stays in the cache."""
_SIGNED = ("int8", "q8_0")
"""Kinds without a zero; the words hold codes from 0, in the middle of which it is."""


def blocks(kind: str, words: npt.NDArray[np.uint32], zeros: ByteArray, scales: npt.NDArray[np.uint16]) -> ByteArray:
    """The bytes of a matrix of `kind`.

    words [rows, columns * bits / 32]; zeros [rows, groups], not looked at for a kind without; scales [rows, groups], the bits of fp16. Groups
    are a multiple of the kind's block long, and each block gets what belongs to its group.
    """
    info = TENSOR_KINDS[kind]
    signed = kind in _SIGNED
    head = 2 if signed else 3
    rows, width = words.shape
    count = width * 4 // (info.block_bytes - head)
    out = np.empty((rows, count, info.block_bytes), np.uint8)
    repeats = count // scales.shape[1]
    out[..., :2] = np.repeat(scales, repeats, axis=1)[..., None].view(np.uint8)
    if not signed:
        out[..., 2] = np.repeat(zeros, repeats, axis=1)
    step = max(1, _AT_ONCE // width)
    for start in range(0, rows, step):
        part = np.ascontiguousarray(words[start : start + step])
        if signed:
            codes = part.view(np.uint8) ^ np.uint8(0x80)
        elif kind == "uint8":
            codes = part.view(np.uint8)
        else:
            codes = _halves(part.reshape(-1, 2, info.block // 16))
        out[start : start + step, :, head:] = codes.reshape(len(part), count, -1)
    return out.reshape(-1)


def _halves(words: npt.NDArray[np.uint32]) -> ByteArray:
    """[blocks, 2, words of half a block]: byte j gets code j in its low nibble and code j + half a block in the high one."""
    pairs = words[:, 0].astype(np.uint64)
    pairs |= words[:, 1].astype(np.uint64) << np.uint64(32)
    # a word and its partner, nibble by nibble: the inner quarters change places, then those of each half, then of each quarter
    for shift, mask in ((16, 0x00000000FFFF0000), (8, 0x0000FF000000FF00), (4, 0x00F000F000F000F0)):
        swapped = pairs >> np.uint64(shift)
        swapped ^= pairs
        swapped &= np.uint64(mask)
        pairs ^= swapped
        swapped <<= np.uint64(shift)
        pairs ^= swapped
    return pairs.view(np.uint8)


def codes_of_words(words: npt.NDArray[np.uint32], bits: int) -> ByteArray:
    """[..., words] to [..., words * 32 / bits], the lowest bits first."""
    if bits == 8:
        return np.ascontiguousarray(words).view(np.uint8)
    spread = words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & np.uint32((1 << bits) - 1)
    return spread.astype(np.uint8).reshape(*words.shape[:-1], -1)


def fp16_scales(scales: Tensor) -> npt.NDArray[np.uint16]:
    """The bits of fp16, in the tensor's shape. Raises UnsupportedModelError for one that fp16 does not hold, with its name, number and place."""
    if scales.kind == "f16":
        return scales.data.view("<u2").reshape(scales.shape)
    if scales.kind == "bf16":
        wide = (scales.data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        wide = scales.data.view("<f4").astype(np.float32)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    lost = np.flatnonzero((narrow != wide) & ~np.isnan(wide))
    if len(lost):
        first = lost[0]
        place = [int(index) for index in np.unravel_index(first, scales.shape)]
        raise UnsupportedModelError(
            f"tensor {scales.name} holds the scale {wide[first]:.6g} at {place}, which fp16, as scales are kept here, cannot hold "
            f"without loss ({len(lost)} such scales): save the checkpoint with scales of fp16, or take the model in bf16 with --weights int4"
        )
    return narrow.view(np.uint16).reshape(scales.shape)
