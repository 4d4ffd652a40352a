"""Matrices of AutoAWQ's "gemm" checkpoints, and what such a checkpoint may say of itself.

A linear layer with K inputs and N outputs is stored as `qweight` int32 [K, N/8], `qzeros` int32 [K/128, N/8] and `scales` fp16 [K/128, N];
w[n, k] = (q[k, n] - z[k/128, n]) * s[k/128, n]. Nibble i of word c belongs to output 8 c + ORDER[i], in both (AutoAWQ `modules/linear/gemm.py`,
`utils/packing_utils.py`). This is our kind `int4` in another order: nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import AwqTensor, Tensor
from .files import StoredArray

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GROUP = 128

_EXACTLY: Mapping[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
_ACCEPTED = "only AutoAWQ checkpoints with quant_method awq, bits 4, group_size 128, version gemm and zero_point true are read; or take a GGUF file"
_OF_OTHER_PROGRAMS = ("do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse")
"""How transformers runs the layers; nothing about what is stored."""
_PARTS = ("qweight", "qzeros", "scales")


def unpack(tensor: AwqTensor) -> Tensor:
    """The same numbers in blocks of `types.TENSOR_KINDS["int4"]`."""
    rows, columns = tensor.shape
    words, groups = rows // 8, columns // GROUP
    qweight = tensor.qweight
    if words % 2:  # words are moved in pairs
        qweight = np.pad(qweight, ((0, 0), (0, 1)))
    blocks = np.empty((qweight.shape[1] * 8, groups, 67), np.uint8)
    blocks[:rows, :, :2] = tensor.scales.T[..., None].view(np.uint8)
    shifts = np.array([4 * ORDER.index(output) for output in range(8)], np.uint32)
    zeros = tensor.qzeros[:, :, None] >> shifts & np.uint32(15)
    blocks[:rows, :, 2] = zeros.reshape(groups, rows).T
    for group in range(groups):
        _unpack_group(qweight[GROUP * group : GROUP * (group + 1)], blocks[:, group, 3:])
    return Tensor(tensor.name, tensor.kind, tensor.shape, blocks[:rows].reshape(-1))


def _unpack_group(words: npt.NDArray[np.uint32], codes: npt.NDArray[np.uint8]) -> None:
    """[128, words] to the 64 bytes of each of 8 * words rows: byte j holds input j and, in its high nibble, input j + 64.

    Inputs j and j + 64 are joined first, so that bytes and not nibbles remain to be transposed; 8 x 8 of them at a time, in whole words.
    """
    first, second = words[:64], words[64:]
    low = np.uint32(0x0F0F0F0F)
    joined = np.empty((2, *first.shape), np.uint32)
    joined[0] = (first & low) | (second & low) << np.uint32(4)
    joined[1] = (first >> np.uint32(4) & low) | (second & ~low)
    pairs = first.shape[1] // 2
    # [8 inputs, low or high nibble, 8 runs of inputs, pairs of words], each 8 bytes of as many rows
    squares = np.ascontiguousarray(joined.view("<u8").reshape(2, 8, 8, pairs).transpose(2, 0, 1, 3))
    _transpose_bytes(squares)
    by_word = codes.reshape(pairs, 2, 8, 64)
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


def check_quantization(quantization: Any, where: object) -> None:
    """Raises UnsupportedModelError, naming what differs from the one form that is read."""
    if not isinstance(quantization, Mapping):
        raise ModelFormatError(f"{where}: quantization_config is {_shown(quantization)}; it must be an object")
    for key, expected in _EXACTLY.items():
        given = quantization.get(key)
        if key == "version" and isinstance(given, str):
            given = given.lower()
        if type(given) is not type(expected) or given != expected:
            raise UnsupportedModelError(f"{where}: quantization_config has {key} {_shown(quantization.get(key))}; {_ACCEPTED}")
    if quantization.get("backend") not in (None, "auto", "autoawq"):
        raise UnsupportedModelError(f"{where}: quantization_config has backend {_shown(quantization['backend'])}; {_ACCEPTED}")
    # Whether a module was converted is seen from its tensors: libraries do not agree on what an entry of this list matches.
    skipped = quantization.get("modules_to_not_convert")
    if skipped is not None and not (isinstance(skipped, list) and all(isinstance(name, str) for name in skipped)):
        raise ModelFormatError(f"{where}: quantization_config has modules_to_not_convert {_shown(skipped)}; it must be a list of names")
    for key in quantization:
        if key not in (*_EXACTLY, *_OF_OTHER_PROGRAMS, "backend", "modules_to_not_convert"):
            raise UnsupportedModelError(f"{where}: quantization_config has the unknown key {_shown(key)}; {_ACCEPTED}")


def awq_tensors(arrays: Mapping[str, StoredArray]) -> dict[str, Tensor]:
    """The tensors of a checkpoint; each three parts `x.qweight`, `x.qzeros`, `x.scales` become one `AwqTensor` `x.weight`.

    Raises ModelFormatError that names the array which is missing, superfluous, or of a wrong shape or type.
    """
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            tensors[f"{module}.weight"] = _awq_tensor(module, arrays)
        elif part in _PARTS:
            if f"{module}.qweight" not in arrays:
                raise ModelFormatError(f"tensor {name} is there without {module}.qweight")
        elif f"{module}.qweight" in arrays and part == "weight":
            raise ModelFormatError(f"tensors {name} and {module}.qweight are both there")
        else:
            tensors[name] = array.tensor(name)
    return tensors


def _awq_tensor(module: str, arrays: Mapping[str, StoredArray]) -> AwqTensor:
    qweight = arrays[f"{module}.qweight"]
    if len(qweight.shape) != 2 or qweight.shape[0] % GROUP:
        raise ModelFormatError(f"tensor {module}.qweight has shape {qweight.shape}; it must be a matrix with a multiple of {GROUP} rows")
    columns, words = qweight.shape
    groups = columns // GROUP
    expected = {"qweight": ("I32", qweight.shape), "qzeros": ("I32", (groups, words)), "scales": ("F16", (groups, 8 * words))}
    for part, (dtype, shape) in expected.items():
        array = arrays.get(f"{module}.{part}")
        if array is None:
            raise ModelFormatError(f"tensor {module}.{part} is missing")
        if (array.dtype, array.shape) != (dtype, shape):
            raise ModelFormatError(f"tensor {module}.{part} is {array.dtype} of shape {array.shape}; {module}.qweight needs {dtype} of {shape}")
    shape = (8 * words, columns)
    codes, zeros, scales = (arrays[f"{module}.{part}"] for part in _PARTS)
    return AwqTensor(
        f"{module}.weight",
        "int4",
        shape,
        np.empty(0, np.uint8),
        codes.data.view("<u4").reshape(codes.shape),
        zeros.data.view("<u4").reshape(zeros.shape),
        scales.data.view("<u2").reshape(scales.shape),
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
