"""Matrices of GPTQ checkpoints (AutoGPTQ, gptqmodel), and what such a checkpoint may say of itself.

A linear layer with K inputs and N outputs, b bits and groups of g inputs is stored as `qweight` int32 [K b / 32, N], whose words hold 32 / b
consecutive inputs of one output, lowest first; `qzeros` int32 [K / g, N b / 32], whose words hold consecutive outputs; `scales` [K / g, N];
`g_idx` int32 [K], the group of each input. w[n, k] = (q[k, n] - z[k / g, n]) * s[k / g, n]. Version 1 of the format (`gptq`) stores words of
zeros of which each was made one smaller, by one subtraction of whole words; version 2 (`gptq_v2`) stores them as they are (gptqmodel
`nn_modules/qlinear/__init__.py`, `utils/model.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import AnyArray, ByteArray, GptqTensor, Tensor
from .blocks import blocks, codes_of_words, fp16_scales
from .files import StoredArray
from .schemes import OTHERWISE, Rule, check, kind_of, nothing, shown

METHOD = "gptq"
_FORMS = ("gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""Of a module; the first tells that it is quantised."""
_BITS = (4, 8)
_ONES = {4: np.uint32(0x11111111), 8: np.uint32(0x01010101)}

_MADE = (
    "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "act_group_aware", "mse", "meta", "dataset", "tokenizer", "batch_size",
    "pad_token_id", "model_name_or_path", "model_file_base_name", "model_seqlen", "max_input_length", "block_name_to_quantize", "backend",
    "module_name_preceding_first_block", "cache_block_outputs", "use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config",
)  # fmt: skip
"""How it was made, or how other programs run it."""
_RULES: Mapping[str, Rule] = {
    "quant_method": (METHOD,),
    "method": (METHOD,),
    "bits": _BITS,
    "group_size": lambda value: type(value) is int and (value == -1 or value > 0),
    "checkpoint_format": _FORMS,
    "format": _FORMS,
    "is_marlin_format": (False, None),
    "pack_dtype": ("int32",),
    "rotation": (None,),
    "adapter": nothing,
    "activation": nothing,
    "dynamic": lambda value: nothing(value) or isinstance(value, dict),
    # What is stored shows it: the zeros, the order of the inputs, which modules have parts.
    **dict.fromkeys(("sym", "desc_act", "lm_head", "modules_in_block_to_quantize", "modules_to_not_convert")),
    **dict.fromkeys(_MADE),
}


def reader(quantization: Mapping[str, Any], where: str) -> Callable[[str, Mapping[str, StoredArray]], GptqTensor]:
    """What makes a tensor of the arrays of a module. Raises UnsupportedModelError that names the key which is not read."""
    check(quantization, _RULES, where, METHOD, needed=("bits", "group_size"))
    forms = {quantization[key] for key in ("checkpoint_format", "format") if key in quantization}
    if len(forms) > 1:
        raise ModelFormatError(f"{where} has checkpoint_format {shown(quantization['checkpoint_format'])} and format {shown(quantization['format'])}")
    uniform = nothing(quantization.get("dynamic"))
    return partial(_tensor, forms != {"gptq_v2"}, (quantization["bits"], quantization["group_size"]) if uniform else None)


def _tensor(less_one: bool, expected: tuple[int, int] | None, module: str, arrays: Mapping[str, StoredArray]) -> GptqTensor:
    parts = {}
    for part in ("qweight", "qzeros", "scales"):
        array = arrays.get(f"{module}.{part}")
        if array is None:
            raise ModelFormatError(f"tensor {module}.{part} is missing")
        if len(array.shape) != 2 or (array.dtype == "I32") != (part != "scales"):
            kind = "scales" if part == "scales" else "words of I32"
            raise ModelFormatError(f"tensor {module}.{part} is {array.dtype} of shape {array.shape}; it must be a matrix of {kind}")
        parts[part] = array
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    groups, rows = scales.shape
    bits, beyond = divmod(qzeros.shape[1] * 32, rows)
    if beyond or bits not in _BITS or qweight.shape[1] != rows or qzeros.shape[0] != groups:
        raise ModelFormatError(
            f"tensors {module}.qweight of shape {qweight.shape}, qzeros of {qzeros.shape} and scales of {scales.shape} are not of 4 or 8 bits"
        )
    columns = qweight.shape[0] * 32 // bits
    group, beyond = divmod(columns, groups)
    if beyond:
        raise ModelFormatError(f"tensor {module}.scales has {groups} groups for {columns} inputs")
    if expected is not None and (bits, group) != (expected[0], columns if expected[1] == -1 else expected[1]):
        raise ModelFormatError(
            f"tensors {module} have {bits} bits and groups of {group} inputs; quantization_config has bits {expected[0]} and group_size {expected[1]}"
        )
    _check_order(module, arrays.get(f"{module}.g_idx"), columns, group)
    words, zeros = (array.data.view("<u4").reshape(array.shape) for array in (qweight, qzeros))
    kind = kind_of(METHOD, module, bits, group, bits == 4 or not _all_128(zeros, less_one))
    return GptqTensor(f"{module}.weight", kind, (rows, columns), np.empty(0, np.uint8), words, zeros, scales.tensor(f"{module}.scales"), less_one)


def _check_order(module: str, g_idx: StoredArray | None, columns: int, group: int) -> None:
    if g_idx is None:
        return
    if (g_idx.dtype, g_idx.shape) != ("I32", (columns,)):
        raise ModelFormatError(f"tensor {module}.g_idx is {g_idx.dtype} of shape {g_idx.shape}; it must be I32 of ({columns},)")
    if not np.array_equal(g_idx.data.view("<i4"), np.arange(columns, dtype=np.int32) // group):
        raise UnsupportedModelError(
            f"tensor {module}.g_idx gives inputs to groups in another order (act-order, desc_act true): such checkpoints are not read. {OTHERWISE}"
        )


def _all_128(zeros: npt.NDArray[np.uint32], less_one: bool) -> bool:
    """Whether 8-bit codes are symmetric. Most that are not are found out by the first word."""
    middle = np.uint32(0x7F7F7F7F if less_one else 0x80808080)
    return bool(zeros.flat[0] == middle and (zeros == middle).all())


def unpack(tensor: GptqTensor) -> Tensor:
    """The same numbers in blocks of the tensor's kind. Raises UnsupportedModelError for scales that fp16 does not hold."""
    bits = 32 * len(tensor.qweight) // tensor.shape[1]
    zeros = tensor.qzeros + _ONES[bits] if tensor.zeros_less_one else tensor.qzeros
    data = blocks(tensor.kind, tensor.qweight.T, codes_of_words(zeros, bits).T, fp16_scales(tensor.scales).T)
    return Tensor(tensor.name, tensor.kind, tensor.shape, data)


def pack(codes: ByteArray, scales: npt.NDArray[np.float16]) -> dict[str, AnyArray]:
    """The parts of a symmetric matrix of 8 bits, in version 1, with codes [rows, columns] and scales [rows, groups]; both multiples of 4."""
    rows, columns = codes.shape
    groups = scales.shape[1]
    return {
        "qweight": np.ascontiguousarray(codes.view("<i4").T),
        "qzeros": np.full((groups, rows // 4), 0x7F7F7F7F, np.int32),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": np.arange(columns, dtype=np.int32) // (columns // groups),
    }
