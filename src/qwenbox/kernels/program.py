"""The operations a model is stated in, the recorded program, and what goes into and comes out of the sampler.

A model definition calls the methods of `Ops`. `reference.ReferenceOps` executes each call at once; `native.Native` records them into a
`Program`, which the C++ runtime replays for every batch. The meaning of each operation stands in docs/numeric-contract.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from qwenbox.types import FloatArray, IntArray, SamplingParams, Tensor

MaskArray: TypeAlias = npt.NDArray[np.uint32]

# Handles that mean something only to the `Ops` that made them (reference: arrays; native: numbers of slots and tables).
Value: TypeAlias = Any
"""Rows of float32, [rows of the batch, width]."""
Weight: TypeAlias = Any
Vector: TypeAlias = Any
RopeTable: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """The expert that every token passes through (Qwen2-MoE); `router` is its gate, one output channel."""

    gate: Weight
    up: Weight
    down: Weight
    router: Weight


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """One mixture-of-experts layer; `gate`, `up` and `down` come from `Ops.experts`."""

    router: Weight
    gate: Weight
    up: Weight
    down: Weight
    top_k: int
    normalise: bool
    shared: SharedExpert | None = None


class Ops(Protocol):
    """What a model definition may call. Values have one row a token, after `logits_rows` one row a wanted logit row."""

    def weight(self, tensor: Tensor) -> Weight:
        """A matrix (n, k) of any kind, for `linear` and `embed`."""
        ...

    def experts(self, tensors: Sequence[Tensor]) -> Weight:
        """A stack of matrices of one kind and shape, for `moe`."""
        ...

    def vector(self, tensor: Tensor) -> Vector:
        """A one-dimensional f32, f16 or bf16 tensor, widened to float32."""
        ...

    def rope_table(self, cos: FloatArray, sin: FloatArray) -> RopeTable:
        """Rotations by position, each [positions, head_dim / 2]."""
        ...

    def embed(self, table: Weight) -> Value:
        """The rows of `table` that the batch's ids name, dequantised exactly."""
        ...

    def linear(self, x: Value, w: Weight, bias: Vector | None = None) -> Value:
        """x w^T + bias, [rows, n]."""
        ...

    def rms_norm(self, x: Value, w: Vector, eps: float) -> Value:
        """Over the width, or over each segment of len(w) where the width is a multiple of it."""
        ...

    def rope(self, x: Value, table: RopeTable, head_dim: int) -> Value:
        """Rotates every head by the position of its row."""
        ...

    def attention(self, q: Value, k: Value, v: Value, *, layer: int, heads: int, kv_heads: int, head_dim: int) -> Value:
        """Stores k and v in the pages of `layer`, then attends causally; [rows, heads * head_dim]."""
        ...

    def silu_mul(self, gate: Value, up: Value) -> Value: ...

    def add(self, a: Value, b: Value) -> Value: ...

    def moe(self, x: Value, moe: MoeWeights) -> Value: ...

    def logits_rows(self, x: Value) -> Value:
        """Only the rows that the batch wants logits of."""
        ...

    def output(self, x: Value, *, sketch: bool = True) -> None:
        """These are the logits, the product of a head; a batch that wants hidden states gets what that head reads instead.

        `sketch`: a large int8 head is kept a second time, so that the largest of them costs less.
        """
        ...


@dataclass(frozen=True, slots=True)
class Op:
    """One recorded call. `inputs` and `output` are values; `tables` are handles of weights, vectors and rope tables."""

    name: str
    inputs: tuple[int, ...]
    output: int
    tables: tuple[int, ...] = ()
    ints: tuple[int, ...] = ()
    eps: float = 0.0


@dataclass(slots=True)
class Program:
    """Operations in order, over values of a known width and an unknown number of rows."""

    ops: list[Op] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    narrow: list[bool] = field(default_factory=list)
    """True for values that have one row a logit row, not one a token."""

    def value(self, width: int, *, narrow: bool = False) -> int:
        self.widths.append(width)
        self.narrow.append(narrow)
        return len(self.widths) - 1

    def without_head(self) -> Program:
        """The same operations up to what the head reads, which is the output. ValueError where the last product is no head."""
        head = self.ops[-2] if len(self.ops) > 1 else None
        if head is None or head.name != "linear" or self.ops[-1].inputs != (head.output,):
            raise ValueError("the program does not end in a head")
        (x,) = head.inputs
        return Program([*self.ops[:-2], Op("output", (x,), x)], self.widths, self.narrow)

    def buffers(self) -> list[int]:
        """A buffer number for each value, so that values of one size that are never alive together share memory."""
        last = {value: index for index, op in enumerate(self.ops) for value in (*op.inputs, op.output)}
        free: dict[tuple[int, bool], list[int]] = {}
        assigned: dict[int, int] = {}
        count = 0
        for index, op in enumerate(self.ops):
            for value in (op.output, *op.inputs):
                shape = (self.widths[value], self.narrow[value])
                if value not in assigned:
                    spare = free.setdefault(shape, [])
                    assigned[value] = spare.pop() if spare else count
                    count += assigned[value] == count
            for value in {*op.inputs, op.output}:
                if last[value] == index:
                    free[self.widths[value], self.narrow[value]].append(assigned[value])
        return [assigned.get(value, -1) for value in range(len(self.widths))]


class CancelFlag:
    """Set from any thread, read by a running step between operations."""

    def __init__(self) -> None:
        self.word = np.zeros(1, np.int32)

    def set(self) -> None:
        self.word[0] = 1

    def clear(self) -> None:
        self.word[0] = 0

    def is_set(self) -> bool:
        return bool(self.word[0])


class Interrupted(Exception):
    """A step stopped before operation `next_op`, by its cancel flag or its deadline; running the same batch from there finishes it."""

    def __init__(self, next_op: int) -> None:
        super().__init__(f"the step was interrupted before operation {next_op}")
        self.next_op = next_op


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What the sampler has to know of one row of logits. `position` is the index of the new token in the whole sequence."""

    params: SamplingParams
    prompt_ids: IntArray
    output_ids: IntArray
    position: int
    vocab_limit: int
    allowed: MaskArray | None = None
    """Which ids may be chosen: bit i % 32 of word i / 32, [ceil(vocab_limit / 32)] uint32; None: all."""


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The chosen id; `logprob` and `top` (id, logprob; best first) where the parameters asked for them."""

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
