"""What a token costs: bytes that must come from memory and operations that must be done. Ceilings are judged by these numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwenbox.model.config import ModelConfig
from qwenbox.model.qwen import Part, Qwen, Role
from qwenbox.types import PAGE_TOKENS, Tensor, tensor_nbytes

SKETCH_ROWS = 16_384
"""An int8 head of so many rows is kept a second time as a sketch (kernels/csrc/sketch.h), 72 bytes for each group of 128 inputs."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one token of one stream. Bytes count codes, scales and the keys and values of the context; no padding of packed layouts."""

    weights_bytes: int
    """Of the whole network in memory."""
    touched_bytes: int
    """Of the weights that one token reads: one row of the embedding, the chosen experts."""
    kv_bytes: int
    """Of the keys and values of one position, all layers."""
    linear_operations: int
    """Multiplications and additions of the matrices before the head."""
    head_operations: int
    attention_operations: int
    """For each position of the context."""

    def bytes_per_token(self, context: int) -> int:
        """Bytes read and written for a token that sees `context` positions, itself among them."""
        return self.touched_bytes + self.kv_bytes * (context + 1)

    def operations_per_token(self, context: int, *, head: bool = True) -> int:
        """Operations for a token at that context; a prompt token needs no head."""
        return self.linear_operations + self.attention_operations * context + (self.head_operations if head else 0)


def costs(model: Qwen, kind_of: Callable[[Tensor, Role], str] | None = None) -> Costs:
    """Costs of a network whose tensors become the kinds that `kind_of` says (as stored, without it)."""
    weights = touched = 0.0
    operations = {"linear": 0.0, "router": 0.0, "head": 0.0}
    for part in model.parts():
        kind = kind_of(part.tensor, part.role) if kind_of is not None else part.tensor.kind
        size = tensor_nbytes("f32" if part.role == "vector" else kind, part.tensor.shape)
        weights += size
        if part.role == "head" and kind == "int8" and model.sketch and part.tensor.shape[0] >= SKETCH_ROWS:
            weights += part.tensor.shape[0] * -(-part.tensor.shape[1] // 128) * 72
        touched += size * part.share
        if part.role in operations:
            operations[part.role] += 2 * _elements(part) * part.share
    config = model.config
    return Costs(
        weights_bytes=round(weights),
        touched_bytes=round(touched),
        kv_bytes=kv_bytes(config),
        linear_operations=round(operations["linear"] + operations["router"]),
        head_operations=round(operations["head"]),
        attention_operations=4 * config.num_layers * config.num_heads * config.head_dim,
    )


def _elements(part: Part) -> int:
    rows, columns = part.tensor.shape
    return rows * columns


def kv_bytes(config: ModelConfig) -> int:
    """Keys and values of one position in all layers, bf16."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2


def page_bytes(config: ModelConfig) -> int:
    return kv_bytes(config) * PAGE_TOKENS
