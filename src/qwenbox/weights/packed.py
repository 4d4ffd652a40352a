"""Checkpoints that another program quantised: whose words they are, by `quant_method`, and the way into our blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import AwqTensor, CompressedTensor, GptqTensor, PackedTensor, Tensor
from . import awq, compressed, gptq
from .blocks import fp16_scales
from .files import StoredArray
from .schemes import OTHERWISE, SCHEMES, shown

_LAYOUTS = {layout.METHOD: layout for layout in (awq, gptq, compressed)}


def packed_tensors(quantization: Any, where: str, arrays: Mapping[str, StoredArray]) -> dict[str, Tensor]:
    """The tensors of a checkpoint with this `quantization_config`; quantised matrices are `PackedTensor`, the others as they are.

    `where` is the name of the file, for errors. Raises UnsupportedModelError and ModelFormatError that name what is not read, or wrong.
    """
    where = f"{where}: quantization_config"
    if not isinstance(quantization, Mapping):
        raise ModelFormatError(f"{where} is {shown(quantization)}; it must be an object")
    method = quantization.get("quant_method")
    if method not in _LAYOUTS:
        known = ", ".join(dict.fromkeys(scheme.method for scheme in SCHEMES))
        raise UnsupportedModelError(f"{where} has quant_method {shown(method)}; read are {known}. {OTHERWISE}")
    layout = _LAYOUTS[method]
    read, codes = layout.reader(quantization, where), layout.PARTS[0]
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        if part == codes:
            tensors[f"{module}.weight"] = read(module, arrays)
        elif part in layout.PARTS:
            if f"{module}.{codes}" not in arrays:
                raise ModelFormatError(f"tensor {name} is there without {module}.{codes}")
        elif part == "weight" and f"{module}.{codes}" in arrays:
            raise ModelFormatError(f"tensors {name} and {module}.{codes} are both there")
        else:
            tensors[name] = array.tensor(name)
    return tensors


def unpack(tensor: PackedTensor) -> Tensor:
    """The same numbers in blocks of the tensor's kind. Raises UnsupportedModelError where fp16 does not hold a scale."""
    match tensor:
        case AwqTensor():
            return awq.unpack(tensor)
        case GptqTensor():
            return gptq.unpack(tensor)
        case CompressedTensor():
            return compressed.unpack(tensor)
    raise TypeError(type(tensor).__name__)


def narrowed(tensor: PackedTensor) -> PackedTensor:
    """The same matrix with scales of fp16. Raises UnsupportedModelError where fp16 does not hold one."""
    if not isinstance(tensor, (GptqTensor, CompressedTensor)) or tensor.scales.kind == "f16":
        return tensor
    scales = tensor.scales
    return replace(tensor, scales=Tensor(scales.name, "f16", scales.shape, fp16_scales(scales).reshape(-1).view(np.uint8)))
