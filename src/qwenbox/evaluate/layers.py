"""Where a model departs from a reference: the error of each layer's output, and of each matrix that both hold.

The network runs in NumPy with float32 products. Inputs of quantised matrices are rounded as the engine rounds them, so what is compared is what the
engine computes, but for the order of its sums.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qwenbox.errors import NumericalError, UsageError
from qwenbox.kernels.quants import DENSE_KINDS, dequantize
from qwenbox.kernels.reference import Pages, ReferenceOps, quantize_rows
from qwenbox.model.qwen import FeedForward, Layer, Qwen
from qwenbox.types import PAGE_TOKENS, Batch, FloatArray, Span, Tensor

_ROWS = 4096
"""Of a matrix that are float32 at one time."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """Relative errors of one layer, as lengths of vectors; those of outputs are means over the tokens.

    `own`: of what the layer adds to its input, when it gets the reference's. `total`: of its output in the model as it is, with the errors of all
    layers before it. `weights`: of its matrices, by name, experts together.
    """

    layer: int
    own: float
    total: float
    weights: Mapping[str, float]

    def numbers(self) -> dict[str, Any]:
        return {"layer": self.layer, "own": self.own, "total": self.total, "weights": dict(self.weights)}


def layer_errors(model: Qwen, reference: Qwen, ids: Sequence[int], progress: Callable[[float], None] = lambda part: None) -> list[LayerError]:
    """Errors on a text of so many ids, which all attend to those before them. Raises UsageError for networks of different shapes,
    NumericalError where one of them computes no numbers."""
    for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "experts"):
        if getattr(model.config, name) != getattr(reference.config, name):
            raise UsageError(f"the two models differ in their {name}, so their layers cannot be compared")
    if not ids:
        raise UsageError("the text is empty", param="data")
    count = len(reference.layers)
    step = iter(range(1, 4 * count + 1))

    def count_step() -> None:
        progress(next(step) / (4 * count))

    known = _outputs(reference, ids, count_step)
    forced = _outputs(model, ids, count_step, known)
    free = _outputs(model, ids, count_step)
    errors = []
    for layer in range(count):
        before, after = known[layer], known[layer + 1]
        own, total = _distance(forced[layer + 1], after, after - before), _distance(free[layer + 1], after, after)
        errors.append(LayerError(layer, own, total, _weight_errors(model, reference, layer)))
        if not all(map(math.isfinite, (own, total, *errors[-1].weights.values()))):
            raise NumericalError(f"layer {layer} of one of the models computes NaN or infinity: its errors cannot be told")
        count_step()
    return errors


def _distance(values: FloatArray, wanted: FloatArray, scale: FloatArray) -> float:
    """Mean over the rows of |values - wanted| / |scale|."""
    return float((np.linalg.norm(values - wanted, axis=1) / np.maximum(np.linalg.norm(scale, axis=1), np.finfo(np.float32).tiny)).mean())


# --- outputs ---------------------------------------------------------------------------------------------------------


def _outputs(network: Qwen, ids: Sequence[int], layer_done: Callable[[], None], forced: Sequence[FloatArray] | None = None) -> list[FloatArray]:
    """The input of the first layer and the output of each. `forced`: each layer gets these in place of what the one before it made."""
    pages = np.arange(-(-len(ids) // PAGE_TOKENS), dtype=np.int32)
    batch = Batch(np.array(ids, np.int32), [Span(0, len(ids), 0, pages)], np.zeros(0, np.int32))
    watch = _Watch(batch, layer_done, forced)
    with contextlib.suppress(_LayersDone):
        network.build(watch)
    return watch.outputs


class _LayersDone(Exception):
    """Nobody wants the logits."""


class _Watch(ReferenceOps):
    """Runs a network with fast products, and keeps what its layers make: the sum that is stated second in each of them is its output."""

    def __init__(self, batch: Batch, layer_done: Callable[[], None], forced: Sequence[FloatArray] | None) -> None:
        super().__init__(batch, Pages())
        self._linear = _linear  # type: ignore[assignment]
        self._layer_done, self._forced = layer_done, forced
        self._sums = 0
        self.outputs: list[FloatArray] = []

    def embed(self, table: Tensor) -> FloatArray:
        self.outputs.append(super().embed(table))
        return self.outputs[0] if self._forced is None else self._forced[0]

    def add(self, a: FloatArray, b: FloatArray) -> FloatArray:
        self._sums += 1
        if self._sums % 2:
            return a + b
        self.outputs.append(a + b)
        self._layer_done()
        return self.outputs[-1] if self._forced is None else self._forced[self._sums // 2]

    def logits_rows(self, x: FloatArray) -> FloatArray:
        raise _LayersDone


def _linear(x: FloatArray, w: Tensor, bias: FloatArray | None = None) -> FloatArray:
    """`reference.linear` by the BLAS, without its exact order."""
    y = np.empty((len(x), w.shape[0]), np.float32)
    if w.kind not in DENSE_KINDS:
        codes, scales = quantize_rows(x)
        x = (codes.reshape(*scales.shape, -1) * scales[..., None]).reshape(len(x), -1)[:, : x.shape[1]]
    for start in range(0, w.shape[0], _ROWS):
        y[:, start : start + _ROWS] = x @ dequantize(w, start, min(start + _ROWS, w.shape[0])).T
    return y if bias is None else y + bias


# --- weights ---------------------------------------------------------------------------------------------------------


class _Matrix(NamedTuple):
    """A matrix of a layer; `norm` are the factors of its inputs, `free` is the axis along which each line may have a factor of its own.

    Quantisation moves factors between neighbours without any effect on what they compute: from a norm to the matrices behind it, and from the columns
    of `output` and `down` to the rows of `value` and `up`.
    """

    name: str
    tensor: Tensor
    norm: Tensor | None = None
    free: int | None = None


def _matrices(layer: Layer) -> Iterator[_Matrix]:
    for name, tensor, free in (("query", layer.query, None), ("key", layer.key, None), ("value", layer.value, 0)):
        yield _Matrix(name, tensor, layer.attention_norm, free)
    yield _Matrix("output", layer.output, free=1)
    feed_forward = layer.feed_forward
    if isinstance(feed_forward, FeedForward):
        parts = [feed_forward]
    else:
        parts = [*feed_forward.experts, *([feed_forward.shared] if feed_forward.shared is not None else [])]
    for part in parts:
        yield _Matrix("gate", part.gate, layer.feed_forward_norm)
        yield _Matrix("up", part.up, layer.feed_forward_norm, 0)
        yield _Matrix("down", part.down, free=1)


def _weight_errors(model: Qwen, reference: Qwen, layer: int) -> dict[str, float]:
    squares: dict[str, list[float]] = {}
    for mine, other in zip(_matrices(model.layers[layer]), _matrices(reference.layers[layer]), strict=True):
        values, wanted = _floats(model, mine), _floats(reference, other)
        if mine.free is not None:
            axis = 1 - mine.free
            own = np.einsum("ij,ij->" + "ij"[mine.free], values, values)
            values *= np.expand_dims(np.einsum("ij,ij->" + "ij"[mine.free], values, wanted) / np.where(own == 0, np.float32(1), own), axis)
        total = squares.setdefault(mine.name, [0.0, 0.0])
        values -= wanted
        for index, part in enumerate((values, wanted)):
            total[index] += float(np.vdot(part, part))
    return {name: (error / whole) ** 0.5 if whole else 0.0 for name, (error, whole) in squares.items()}


def _floats(network: Qwen, matrix: _Matrix) -> FloatArray:
    values = dequantize(network.prepare(matrix.tensor, "linear"))
    return values if matrix.norm is None else values * dequantize(matrix.norm)
