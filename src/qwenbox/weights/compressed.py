"""Matrices of compressed-tensors checkpoints in the form `pack-quantized` (llm-compressor), and what such a checkpoint may say of itself.

A linear layer with K inputs and N outputs, b bits and groups of g inputs is stored as `weight_packed` int32 [N, K b / 32], whose words hold
consecutive inputs, lowest first, each 2^(b - 1) larger than it is; `weight_scale` [N, K / g]; `weight_shape`, the numbers N and K; and unless it
is symmetric `weight_zero_point` int32 [N b / 32, K / g], whose words hold consecutive outputs, larger by the same 2^(b - 1).
w[n, k] = (q[n, k] - z[n, k / g]) * s[n, k / g] (compressed-tensors `compressors/pack_quantized`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import CompressedTensor, Tensor
from .blocks import blocks, codes_of_words, fp16_scales
from .files import StoredArray
from .schemes import OTHERWISE, Rule, check, kind_of, names, nothing, shown

METHOD = "compressed-tensors"
_FORM = "pack-quantized"
PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
"""Of a module; the first tells that it is quantised."""
_BITS = (4, 8)

_RULES: Mapping[str, Rule] = {
    "quant_method": (METHOD,),
    "format": (_FORM,),
    "config_groups": lambda value: isinstance(value, dict) and bool(value),
    "quantization_status": ("compressed", "frozen"),
    "kv_cache_scheme": nothing,
    "sparsity_config": lambda value: nothing(value) or (isinstance(value, dict) and value.get("format") == "dense"),
    "transform_config": nothing,
    # Which modules are quantised is seen from their tensors.
    **dict.fromkeys(("ignore", "global_compression_ratio", "version")),
}
_GROUP_RULES: Mapping[str, Rule] = {
    "format": (_FORM, None),
    "weights": lambda value: isinstance(value, dict),
    "input_activations": (None,),
    "output_activations": (None,),
    "targets": None,
}
_WEIGHT_RULES: Mapping[str, Rule] = {
    "num_bits": _BITS,
    "type": ("int",),
    "strategy": ("group", "channel"),
    "group_size": lambda value: value is None or type(value) is int,
    "dynamic": (False,),
    "block_structure": (None,),
    # What is stored shows it.
    **dict.fromkeys(("symmetric", "actorder", "scale_dtype", "zp_dtype")),
    # How it was made.
    **dict.fromkeys(("observer", "observer_kwargs")),
}


def reader(quantization: Mapping[str, Any], where: str) -> Callable[[str, Mapping[str, StoredArray]], CompressedTensor]:
    """What makes a tensor of the arrays of a module. Raises UnsupportedModelError that names the key which is not read."""
    check(quantization, _RULES, where, METHOD, needed=("format", "config_groups"))
    names(quantization.get("ignore"), "ignore", where)
    described = []
    for name, group in quantization["config_groups"].items():
        within = f"{where}, config_groups {shown(name)},"
        if not isinstance(group, dict):
            raise ModelFormatError(f"{within} is {shown(group)}; it must be an object")
        check(group, _GROUP_RULES, within, METHOD, needed=("weights",))
        names(group.get("targets"), "targets", within)
        weights = group["weights"]
        check(weights, _WEIGHT_RULES, f"{within} weights", METHOD, needed=("num_bits", "type", "strategy"))
        described.append((weights["num_bits"], weights.get("group_size") if weights["strategy"] == "group" else None))
    return partial(_tensor, described)


def _tensor(described: list[tuple[int, int | None]], module: str, arrays: Mapping[str, StoredArray]) -> CompressedTensor:
    parts = {part: arrays.get(f"{module}.{part}") for part in PARTS}
    packed, scale, shape, zero_point = (parts[part] for part in PARTS[:4])
    for part in PARTS[:3]:
        if parts[part] is None:
            raise ModelFormatError(f"tensor {module}.{part} is missing")
    assert packed is not None and scale is not None and shape is not None
    if shape.dtype not in ("I64", "I32") or shape.shape != (2,):
        raise ModelFormatError(f"tensor {module}.weight_shape is {shape.dtype} of shape {shape.shape}; it must be two whole numbers")
    rows, columns = (int(extent) for extent in shape.data.view("<i8" if shape.dtype == "I64" else "<i4"))
    if packed.dtype != "I32" or len(packed.shape) != 2 or packed.shape[0] != rows or columns <= 0 or packed.shape[1] * 32 % columns:
        raise ModelFormatError(
            f"tensor {module}.weight_packed is {packed.dtype} of shape {packed.shape}; {rows} x {columns} weights need other words"
        )
    bits = packed.shape[1] * 32 // columns
    if scale.dtype == "I32" or len(scale.shape) != 2 or scale.shape[0] != rows or columns % scale.shape[1]:
        raise ModelFormatError(f"tensor {module}.weight_scale is {scale.dtype} of shape {scale.shape}, no scales of {rows} x {columns} weights")
    groups = scale.shape[1]
    group = columns // groups
    if not any(bits == b and group == (columns if size is None else size) for b, size in described):
        raise ModelFormatError(f"tensors {module} have {bits} bits and groups of {group} inputs; no entry of config_groups describes that")
    if zero_point is not None and (zero_point.dtype, zero_point.shape) != ("I32", (-(-rows * bits // 32), groups)):
        raise ModelFormatError(
            f"tensor {module}.weight_zero_point is {zero_point.dtype} of shape {zero_point.shape}; "
            f"{module}.weight_scale needs I32 of ({-(-rows * bits // 32)}, {groups})"
        )
    order = parts["weight_g_idx"]
    if order is not None and (order.dtype, order.shape) != ("I32", (columns,)):
        raise ModelFormatError(f"tensor {module}.weight_g_idx is {order.dtype} of shape {order.shape}; it must be I32 of ({columns},)")
    if order is not None and not np.array_equal(order.data.view("<i4"), np.arange(columns) // group):
        raise UnsupportedModelError(
            f"tensor {module}.weight_g_idx gives inputs to groups in another order (actorder), which is not read. {OTHERWISE}"
        )
    zeros = None if zero_point is None else zero_point.data.view("<u4").reshape(zero_point.shape)
    words = packed.data.view("<u4").reshape(packed.shape)
    kind = kind_of(METHOD, module, bits, group, zeros is not None)
    return CompressedTensor(f"{module}.weight", kind, (rows, columns), np.empty(0, np.uint8), words, zeros, scale.tensor(f"{module}.weight_scale"))


def unpack(tensor: CompressedTensor) -> Tensor:
    """The same numbers in blocks of the tensor's kind. Raises UnsupportedModelError for scales that fp16 does not hold."""
    rows, columns = tensor.shape
    bits = 32 * tensor.packed.shape[1] // columns
    scales = fp16_scales(tensor.scales)
    zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    if tensor.zeros is not None:
        zeros = codes_of_words(np.ascontiguousarray(tensor.zeros.T), bits)[:, :rows].T
    return Tensor(tensor.name, tensor.kind, tensor.shape, blocks(tensor.kind, tensor.packed, zeros, scales))
