"""How a quantised matrix is written: 4 bits in AutoAWQ's words, 8 bits in GPTQ's, whatever the method. Both are published layouts that other
programs know; AutoAWQ's has no 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwenbox.model.config import ModelConfig
from qwenbox.types import AnyArray
from qwenbox.weights import awq, gptq

from .grid import Rounded

BITS = (4, 8)


def parts(rounded: Rounded, bits: int) -> dict[str, AnyArray]:
    """The arrays of a module, by the last part of their names."""
    scales = rounded.steps.scales.astype(np.float16)
    if bits == 8:
        return gptq.pack(rounded.codes, scales)
    return awq.pack(rounded.codes, rounded.steps.zeros.astype(np.uint8), scales)


def parts_bytes(shape: tuple[int, ...], bits: int, group: int) -> int:
    """Of what `parts` makes of a matrix."""
    rows, columns = shape
    weights = (bits * rows * columns + (16 + bits) * rows * columns // group) // 8
    return weights + (4 * columns if bits == 8 else 0)


def outputs_of_word(bits: int) -> int:
    """The number that a matrix must have a multiple of."""
    return 32 // bits


def description(bits: int, group: int, config: ModelConfig) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    experts = config.experts is not None
    if bits == 8:
        # As regular expressions over the names of modules; these have no quantised parts.
        routers: dict[str, Any] = {r"-:.*\.mlp\.(gate|shared_expert_gate)$": {}}
        return {
            "quant_method": gptq.METHOD,
            "checkpoint_format": "gptq",
            "bits": bits,
            "group_size": group,
            "sym": True,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            **({"dynamic": routers} if experts else {}),
        }
    return {
        "quant_method": awq.METHOD,
        "bits": bits,
        "group_size": group,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": _routers(config) if experts else None,
    }


def _routers(config: ModelConfig) -> list[str]:
    """Libraries look for these within the names of modules; in a layer without experts they would find "mlp.gate_proj"."""
    sparse = config.experts.sparse_layers if config.experts is not None else ()
    if len(sparse) == config.num_layers:
        return ["mlp.gate", "mlp.shared_expert_gate"]
    return [f"layers.{layer}.mlp.{router}" for layer in sparse for router in ("gate", "shared_expert_gate")]
