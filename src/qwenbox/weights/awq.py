"""Matrices of AutoAWQ's "gemm" checkpoints, and what such a checkpoint may say of itself.

A linear layer with K inputs, N outputs and groups of g inputs is stored as `qweight` int32 [K, N/8], `qzeros` int32 [K/g, N/8] and `scales`
[K/g, N]; w[n, k] = (q[k, n] - z[k/g, n]) * s[k/g, n]. Nibble i of word c belongs to output 8 c + ORDER[i], in both (AutoAWQ
`modules/linear/gemm.py`, `utils/packing_utils.py`). This is our kind `int4` (`int4_64`, `int4_32`) in another order: nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFormatError
from ..types import TENSOR_KINDS, AnyArray, AwqTensor, Tensor
from .files import StoredArray
from .schemes import Rule, check, kind_of, names, nothing

METHOD = "awq"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GROUP = 128
"""As published checkpoints have it."""

PARTS = ("qweight", "qzeros", "scales")
"""Of a module; the first tells that it is quantised."""
_RULES: Mapping[str, Rule] = {
    "quant_method": (METHOD,),
    "method": (METHOD,),
    "bits": (4,),
    "group_size": (128, 64, 32),
    "version": ("gemm", "GEMM"),
    "checkpoint_format": ("gemm",),
    "format": ("gemm",),
    "backend": ("auto", "autoawq", None),
    "pack_dtype": ("int32",),
    "rotation": (None,),
    "adapter": nothing,
    "activation": nothing,
    "dynamic": nothing,
    "desc_act": (False, None),
    "zero_point": (True,),
    "sym": (False, None),
    # What is stored shows it.
    **dict.fromkeys(("modules_to_not_convert", "lm_head")),
    # How it was made, or how other programs run it.
    **dict.fromkeys(("meta", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse")),
}


def unpack(tensor: AwqTensor) -> Tensor:
    """The same numbers in blocks of the tensor's kind."""
    rows, columns = tensor.shape
    kind = TENSOR_KINDS[tensor.kind]
    words, groups = rows // 8, columns // kind.block
    qweight = tensor.qweight
    if words % 2:  # words are moved in pairs
        qweight = np.pad(qweight, ((0, 0), (0, 1)))
    blocks = np.empty((qweight.shape[1] * 8, groups, kind.block_bytes), np.uint8)
    blocks[:rows, :, :2] = tensor.scales.T[..., None].view(np.uint8)
    shifts = np.array([4 * ORDER.index(output) for output in range(8)], np.uint32)
    zeros = tensor.qzeros[:, :, None] >> shifts & np.uint32(15)
    blocks[:rows, :, 2] = zeros.reshape(groups, rows).T
    for group in range(groups):
        _unpack_group(qweight[kind.block * group : kind.block * (group + 1)], blocks[:, group, 3:])
    return Tensor(tensor.name, tensor.kind, tensor.shape, blocks[:rows].reshape(-1))


def _unpack_group(words: npt.NDArray[np.uint32], codes: npt.NDArray[np.uint8]) -> None:
    """[inputs, words] to half as many bytes of each of 8 * words rows: byte j holds input j and, in its high nibble, input j + half.

    Inputs j and j + half are joined first, so that bytes and not nibbles remain to be transposed; 8 x 8 of them at a time, in whole words.
    """
    half = len(words) // 2
    first, second = words[:half], words[half:]
    low = np.uint32(0x0F0F0F0F)
    joined = np.empty((2, *first.shape), np.uint32)
    joined[0] = (first & low) | (second & low) << np.uint32(4)
    joined[1] = (first >> np.uint32(4) & low) | (second & ~low)
    pairs = first.shape[1] // 2
    # [8 inputs, low or high nibble, runs of inputs, pairs of words], each 8 bytes of as many rows
    squares = np.ascontiguousarray(joined.view("<u8").reshape(2, half // 8, 8, pairs).transpose(2, 0, 1, 3))
    _transpose_bytes(squares)
    by_word = codes.reshape(pairs, 2, 8, half)
    for byte in range(8):
        for nibble in range(2):
            by_word[:, byte // 4, ORDER[byte % 4 * 2 + nibble]] = np.ascontiguousarray(squares[byte, nibble].T).view(np.uint8)


def _transpose_bytes(squares: npt.NDArray[np.uint64]) -> None:
    """In place: [8, ...] rows of 8 bytes become columns; halves are swapped, then quarters, then bytes."""
    for half, mask in ((4, 0x00000000FFFFFFFF), (2, 0x0000FFFF0000FFFF), (1, 0x00FF00FF00FF00FF)):
        shift = np.uint64(8 * half)
        quarters = squares.reshape(4 // half, 2, half, *squares.shape[1:])
        upper, lower = quarters[:, 0], quarters[:, 1]
        swapped = (upper >> shift ^ lower) & np.uint64(mask)
        lower ^= swapped
        upper ^= swapped << shift


def reader(quantization: Mapping[str, Any], where: str) -> Callable[[str, Mapping[str, StoredArray]], AwqTensor]:
    """What makes a tensor of the arrays of a module. Raises UnsupportedModelError that names the key which is not read."""
    check(quantization, _RULES, where, METHOD, needed=("bits", "group_size", "version", "zero_point"))
    names(quantization.get("modules_to_not_convert"), "modules_to_not_convert", where)
    return partial(_tensor, quantization["group_size"])


def _tensor(group: int, module: str, arrays: Mapping[str, StoredArray]) -> AwqTensor:
    qweight = arrays[f"{module}.qweight"]
    if len(qweight.shape) != 2 or qweight.shape[0] % group:
        raise ModelFormatError(f"tensor {module}.qweight has shape {qweight.shape}; it must be a matrix with a multiple of {group} rows")
    columns, words = qweight.shape
    groups = columns // group
    expected = {"qweight": ("I32", qweight.shape), "qzeros": ("I32", (groups, words)), "scales": ("F16", (groups, 8 * words))}
    for part, (dtype, shape) in expected.items():
        array = arrays.get(f"{module}.{part}")
        if array is None:
            raise ModelFormatError(f"tensor {module}.{part} is missing")
        if (array.dtype, array.shape) != (dtype, shape):
            raise ModelFormatError(
                f"tensor {module}.{part} is {array.dtype} of shape {array.shape}; {module}.qweight in groups of {group} needs {dtype} of {shape}"
            )
    codes, zeros, scales = (arrays[f"{module}.{part}"] for part in PARTS)
    return AwqTensor(
        f"{module}.weight",
        kind_of(METHOD, module, 4, group, True),
        (8 * words, columns),
        np.empty(0, np.uint8),
        codes.data.view("<u4").reshape(codes.shape),
        zeros.data.view("<u4").reshape(zeros.shape),
        scales.data.view("<u2").reshape(scales.shape),
    )


def pack(codes: npt.NDArray[np.uint8], zeros: npt.NDArray[np.uint8], scales: npt.NDArray[np.float16]) -> dict[str, AnyArray]:
    """The three parts of a matrix with codes [rows, columns], zeros and scales [rows, groups]; `rows` is a multiple of 8."""
    return {"qweight": _words(codes), "qzeros": _words(zeros), "scales": np.ascontiguousarray(scales.T)}


def _words(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """[rows, n] of 0 to 15 to [n, rows / 8]."""
    words = np.zeros((len(levels) // 8, levels.shape[1]), np.uint32)
    for place, output in enumerate(ORDER):
        words |= levels[output::8].astype(np.uint32) << np.uint32(4 * place)
    return np.ascontiguousarray(words.T).view(np.int32)
