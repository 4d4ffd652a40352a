"""The contract oracle: docs/numeric-contract.md in NumPy, every function exact, so that tests compare with `==`.

`ReferenceOps` executes a model's operations at once; `ReferenceRunner` keeps the pages of keys and values between batches.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from qwenbox.errors import EngineError, NumericalError, UsageError
from qwenbox.kernels import quants
from qwenbox.kernels.native import declare, library
from qwenbox.kernels.program import MoeWeights, Ops, SampleResult, SampleRow
from qwenbox.types import PAGE_TOKENS, TENSOR_KINDS, Batch, FloatArray, IntArray, Span, Tensor

GROUP = 128
"""Inputs that share one activation scale."""
BLOCK_TOKENS = 256
"""Context tokens of one attention block."""
_TILE_DEPTH = 32
"""bf16 inputs of one product of tiles."""
_QUERY_ROWS = 32
"""Query rows that `ReferenceOps` attends with at a time."""

_f = np.float32
DoubleArray = npt.NDArray[np.float64]

_T = TypeVar("_T")


def _in_threads(function: Callable[[_T], None], items: Iterable[_T]) -> None:
    """Calls it for every item, on all processors; NumPy and our fma let go of the interpreter's lock."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # NumPy's error state is a context variable: each call takes the caller's with it.
        for call in [pool.submit(contextvars.copy_context().run, function, item) for item in items]:
            call.result()


# --- arithmetic ----------------------------------------------------------------------------------------------------

_BLOCK = 1 << 15
"""Elements of one pass of `fma`: its float64 scratch stays in the second-level cache."""


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> FloatArray:
    """float32 a * b + c, rounded once: by the processor's instruction where the native library is built, else by `numpy_fma`."""
    function = _processor_fma()
    if function is None:
        return numpy_fma(a, b, c)
    arrays = [np.asarray(value, _f) for value in (a, b, c)]
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    whole = [np.ascontiguousarray(np.broadcast_to(array, shape)) for array in arrays]
    out = np.empty(shape, _f)
    function(*(array.ctypes.data for array in whole), out.size, out.ctypes.data)
    return out


@functools.cache
def _processor_fma() -> Callable[..., None] | None:
    try:
        functions = declare(library(), {"qw_fma": (None, [ctypes.c_void_p] * 3 + [ctypes.c_uint64, ctypes.c_void_p])})
    except UsageError:  # not built, or of other sources
        return None
    return cast("Callable[..., None]", functions.qw_fma)


def numpy_fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> FloatArray:
    """float32 a * b + c, rounded once, in NumPy, which has no such operation.

    The product of two float32 has at most 48 bits and is exact in float64; the float64 sum s rounds the exact value x once. Rounding s to
    float32 gives the rounding of x unless s sits on a midpoint of two float32 that x does not sit on: rounding is monotonic, so x and s lie on
    the same side of every other midpoint. Only there s is rounded to odd (moved by the error of the sum, which TwoSum finds exactly) first.
    """
    x, y, z = (np.asarray(value, _f) for value in (a, b, c))
    shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
    out = np.empty(shape, _f)
    if out.size <= _BLOCK:
        _fma(np.atleast_1d(x), np.atleast_1d(y), np.atleast_1d(z), np.atleast_1d(out))
        return out
    x, y, z = (np.broadcast_to(value, shape) for value in (x, y, z))
    rows = max(1, _BLOCK * shape[0] // out.size)
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        _fma(x[part], y[part], z[part], out[part])
    return out


def _fma(a: FloatArray, b: FloatArray, c: FloatArray, out: FloatArray) -> None:
    with np.errstate(all="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        total = np.add(product, c, dtype=np.float64)
        np.copyto(out, total, casting="same_kind")
        midpoint = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        # Below 2^-126 the midpoints of float32 lie elsewhere; every such sum takes the careful way.
        tiny = np.abs(out) <= _f(2.0**-126)
        if tiny.any():
            midpoint |= tiny & (total != 0)
        if midpoint.any():
            at = np.nonzero(midpoint)
            p, t = product[at], total[at]
            addend = np.broadcast_to(c, out.shape)[at].astype(np.float64)
            other = t - p
            error = (p - (t - other)) + (addend - other)
            even = (t.view(np.int64) & 1) == 0
            nudged = np.nextafter(t, np.where(error > 0, np.inf, -np.inf))
            out[at] = np.where((error != 0) & np.isfinite(error) & even, nudged, t)


def sum16(values: FloatArray) -> FloatArray:
    """Sum over the last axis in 16 lanes."""
    return _halve(_fold16(values, square=False))


def sumsq16(values: FloatArray) -> FloatArray:
    """Sum of squares over the last axis in 16 lanes, squares added by fma."""
    return _halve(_fold16(values, square=True))


def _fold16(values: FloatArray, *, square: bool) -> FloatArray:
    n = values.shape[-1]
    padded = np.zeros((*values.shape[:-1], -(-n // 16) * 16), _f)
    padded[..., :n] = values
    lanes = np.zeros((*values.shape[:-1], 16), _f)
    for start in range(0, padded.shape[-1], 16):
        v = padded[..., start : start + 16]
        lanes = fma(v, v, lanes) if square else lanes + v
    return lanes


def _halve(lanes: FloatArray) -> FloatArray:
    for width in (8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]


def exp(values: FloatArray) -> FloatArray:
    """e^x by the polynomial of the contract; exactly 0 below -87, NaN stays NaN."""
    values = np.ascontiguousarray(values, _f)
    out = np.empty(values.shape, _f)
    for start in range(0, values.size, _BLOCK):
        out.reshape(-1)[start : start + _BLOCK] = _exp(values.reshape(-1)[start : start + _BLOCK])
    return out


def _exp(values: FloatArray) -> FloatArray:
    x = np.minimum(np.maximum(values, _f(-87)), _f(88))
    n = np.rint(x * _f(1.44269502))
    f = fma(n, _f(-0.693359375), x)
    f = fma(n, _f(2.12194440e-4), f)
    p: FloatArray = np.full_like(f, _f(1.9875691500e-4))
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(p, f, _f(coefficient))
    y = fma(p, f * f, f) + _f(1)
    power = ((np.nan_to_num(n).astype(np.int32) + 127) << 23).view(_f)
    return np.asarray(np.where(values < _f(-87), _f(0), y * power), _f)


def sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(_f(1) / (_f(1) + exp(-x)))


def silu_mul(gate: FloatArray, up: FloatArray) -> FloatArray:
    out = np.empty_like(gate)

    def rows(start: int) -> None:
        part = slice(start, start + _ROWS)
        out[part] = gate[part] / (_f(1) + exp(-gate[part])) * up[part]

    _in_threads(rows, range(0, len(gate), _ROWS))
    return out


def softmax(x: FloatArray) -> FloatArray:
    """exp(x - max) / sum16 over the last axis."""
    e = exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / sum16(e)[..., None])


def rms_norm(x: FloatArray, w: FloatArray, eps: float) -> FloatArray:
    """Over the last axis, in segments of len(w)."""
    segments = x.reshape(*x.shape[:-1], x.shape[-1] // len(w), len(w))
    scale = _f(1) / np.sqrt(sumsq16(segments) / _f(len(w)) + _f(eps))
    return np.asarray((segments * scale[..., None] * w).reshape(x.shape))


def rope(x: FloatArray, cos: FloatArray, sin: FloatArray, head_dim: int) -> FloatArray:
    """Half-split rotation of each head of x [rows, heads * head_dim]; cos and sin [rows, head_dim / 2]."""
    heads = x.reshape(len(x), -1, 2, head_dim // 2)
    a, b = heads[:, :, 0], heads[:, :, 1]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.stack([fma(a, c, -(b * s)), fma(b, c, a * s)], axis=2).reshape(x.shape)


# --- linear --------------------------------------------------------------------------------------------------------


def quantize_rows(x: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Rows [m, k] to codes int8 [m, ceil(k / 128) * 128] and scales `sa` [m, ceil(k / 128)]."""
    m, k = x.shape
    padded = np.zeros((m, -(-k // GROUP) * GROUP), _f)
    padded[:, :k] = x
    groups = padded.reshape(m, -(-k // GROUP), GROUP)
    amax = np.abs(groups).max(axis=-1)
    with np.errstate(all="ignore"):
        r = _f(127) / amax
        finite = np.isfinite(amax)
        nothing = finite & ~np.isfinite(r)
        sa = np.where(nothing, _f(0), np.where(finite, amax / _f(127), _f(np.nan)))
        usable = (finite & ~nothing)[..., None]
        a = np.clip(np.rint(np.where(usable, groups, _f(0)) * np.where(usable, r[..., None], _f(0))), -127, 127)
    return a.astype(np.int8).reshape(padded.shape), sa.astype(_f)


_EXACT = 1 << 24
_ROWS, _CHANNELS = 256, 128
"""Rows and channels of one tile of `linear`."""
_BLAS_ALONE = 1 << 18
"""Multiplications up to which OpenBLAS works in the calling thread."""


def linear(x: FloatArray, w: Tensor, bias: FloatArray | None = None, *, bf16_tiles: bool = False) -> FloatArray:
    """x [m, k] times the matrix w (n, k) transposed, [m, n]. `bf16_tiles`: bf16 weights as the amx variant multiplies them."""
    m, n = len(x), w.shape[0]
    y = np.empty((m, n), _f)
    dense = w.kind in quants.DENSE_KINDS
    a, sa = (x, x) if dense else quantize_rows(x)
    a = a.astype(_f)
    make_panel: Callable[[Tensor, int, int], _Panel | _DensePanel | _TilePanel] = _Panel
    if dense:
        make_panel = _TilePanel if bf16_tiles and w.kind == "bf16" else _DensePanel

    def channels(start: int) -> None:
        stop = min(start + _CHANNELS, n)
        panel = make_panel(w, start, stop)
        for top in range(0, m, _ROWS):
            y[top : top + _ROWS, start:stop] = panel.times(a[top : top + _ROWS], sa[top : top + _ROWS])

    _in_threads(channels, range(0, n, _CHANNELS))
    return y if bias is None else y + bias


class _DensePanel:
    """Some channels of a matrix of numbers."""

    def __init__(self, w: Tensor, start: int, stop: int) -> None:
        self.columns = np.ascontiguousarray(quants.dequantize(w, start, stop).T)

    def times(self, x: FloatArray, _: FloatArray) -> FloatArray:
        acc = np.zeros((len(x), self.columns.shape[1]), _f)
        inputs = np.ascontiguousarray(x.T)
        for k in range(len(inputs)):
            acc = fma(inputs[k][:, None], self.columns[k], acc)
        return acc


class _TilePanel:
    """Some channels of a bf16 matrix, times inputs rounded to bf16: TDPBF16PS, which knows no denormals."""

    def __init__(self, w: Tensor, start: int, stop: int) -> None:
        self.columns = _flush(np.ascontiguousarray(quants.dequantize(w, start, stop).T))

    def times(self, x: FloatArray, _: FloatArray) -> FloatArray:
        inputs = _flush((round_bf16(x).astype(np.uint32) << np.uint32(16)).view(_f).T)
        acc = np.zeros((len(x), self.columns.shape[1]), _f)
        for start in range(0, len(inputs), _TILE_DEPTH):
            chains = [np.zeros_like(acc), np.zeros_like(acc)]
            for k in range(start, min(start + _TILE_DEPTH, len(inputs))):
                chains[k % 2] = _flush(fma(inputs[k][:, None], self.columns[k], chains[k % 2]))
            acc = _flush(acc + _flush(chains[0] + chains[1]))
        return acc


def _flush(values: FloatArray) -> FloatArray:
    """Denormals become zeros of their sign."""
    return np.where(np.abs(values) < _f(2.0**-126), np.copysign(_f(0), values), values).astype(_f)


class _Panel:
    """Some channels of a quantised matrix, as integers ready to be multiplied."""

    def __init__(self, w: Tensor, start: int, stop: int) -> None:
        codes = quants.codes(w, start, stop)
        block = TENSOR_KINDS[w.kind].block
        self.codes = codes
        self.step = min(block, GROUP)
        self.steps_per_scale = block // self.step
        integers = codes.multipliers()
        # A float32 product of integers is exact, whatever the order of its sum, while every partial sum stays below 2^24: each is at most
        # 127 times the sum of |integers| of one step. Where weights are so large that this could fail, float64 (2^53) takes over.
        n = len(integers)
        steps = integers.reshape(n, -1, self.step)
        largest = np.abs(steps.astype(np.int32)).sum(axis=-1).max(initial=0)
        self.dtype = _f if 127 * int(largest) < _EXACT else np.float64
        self.matrices = np.ascontiguousarray(steps.transpose(1, 2, 0), self.dtype)
        """[steps, inputs of a step, channels]"""
        # In tiles so small that the BLAS starts no threads: `linear` has its own.
        self.tile = max(1, _BLAS_ALONE // (n * self.step))

    def times(self, a: FloatArray, sa: FloatArray) -> FloatArray:
        """a: integers as float32 [m, k padded to 128]; sa [m, groups]."""
        m, n = len(a), self.matrices.shape[2]
        count = len(self.matrices)
        padded = np.zeros((-(-m // self.tile) * self.tile, count, self.step), self.dtype)
        padded[:m] = a[:, : count * self.step].reshape(m, count, self.step)
        tiles = np.ascontiguousarray(padded.transpose(1, 0, 2)).reshape(count, -1, self.tile, self.step)
        acc = np.zeros((m, n), _f)
        for step, matrix in enumerate(self.matrices):
            scale = sa[:, step * self.step // GROUP, None]
            block = step // self.steps_per_scale
            total = np.matmul(tiles[step], matrix).reshape(-1, n)[:m].astype(_f, copy=False)
            with np.errstate(all="ignore"):
                total *= self.codes.scales[:, block]
                acc = fma(total, scale, acc)
                if self.codes.mins is not None:
                    acc = fma(self._minimum(a[:, step * self.step : (step + 1) * self.step], step) * self._mins(block), scale, acc)
        return acc

    def _minimum(self, a: FloatArray, step: int) -> FloatArray:
        """q4_1: the sum of the activations; K-quants: each sub-block's sum times its integer min. Below 63 * 127 * 128 < 2^24."""
        sub_mins = self.codes.sub_mins
        if sub_mins is None:
            return np.asarray(a.sum(axis=1, dtype=_f)[:, None])
        per_step = self.step // 32
        sums = a.reshape(len(a), per_step, 32).sum(axis=-1, dtype=_f)
        return np.asarray(sums @ sub_mins[:, step * per_step : (step + 1) * per_step].T.astype(_f))

    def _mins(self, block: int) -> FloatArray:
        assert self.codes.mins is not None
        mins = self.codes.mins[:, block]
        return mins if self.codes.sub_mins is None else -mins


def embed(table: Tensor, ids: IntArray) -> FloatArray:
    """The rows of (n, k) that the ids name."""
    if len(ids) and (ids.min() < 0 or ids.max() >= table.shape[0]):
        raise EngineError(f"a token id is outside the {table.shape[0]} rows of {table.name}")
    rows = table.data.reshape(table.shape[0], -1)[ids]
    return quants.dequantize(Tensor(table.name, table.kind, (len(ids), table.shape[1]), np.ascontiguousarray(rows).reshape(-1)))


# --- attention -----------------------------------------------------------------------------------------------------


def round_bf16(x: FloatArray) -> npt.NDArray[np.uint16]:
    """float32 to the upper 16 bits, round to nearest even."""
    return quants.round_bf16(x).view("<u2").reshape(x.shape)


def _widen(bits: npt.NDArray[np.uint16]) -> FloatArray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(_f)


def attention(q: FloatArray, k: FloatArray, v: FloatArray, position: int) -> FloatArray:
    """Causal attention of rows at positions [position, position + m).

    q [m, heads, d]; k and v [position + m, kv_heads, d], already rounded to bf16 and widened. Returns [m, heads, d]. Query head h reads
    key-value head h // (heads / kv_heads).
    """
    m, heads, d = q.shape
    kv_heads = k.shape[1]
    queries = q.reshape(m, kv_heads, heads // kv_heads, d)
    scale = _f(1 / math.sqrt(d))
    shape = queries.shape[:3]
    best = np.full(shape, -np.inf, _f)
    mass = np.zeros(shape, _f)
    out = np.zeros(queries.shape, _f)
    for begin in range(0, position + m, BLOCK_TOKENS):
        end = min(begin + BLOCK_TOKENS, position + m)
        first = max(0, begin - position)  # earlier rows see nothing of this block
        rows = np.arange(position + first, position + m)
        seen = (np.arange(begin, end) <= rows[:, None])[:, None, None, :]
        scores = np.zeros((len(rows), *shape[1:], end - begin), _f)
        keys = np.ascontiguousarray(k[begin:end].transpose(2, 1, 0))[:, None, :, None, :]  # [d, 1, kv_heads, 1, tokens]
        for i in range(d):
            scores = fma(queries[first:, :, :, i, None], keys[i], scores)
        scores = np.where(seen, scores * scale, _f(-np.inf))
        with np.errstate(invalid="ignore"):
            block_best = scores.max(axis=-1)
            e = np.where(seen, exp(scores - block_best[..., None]), _f(0))
        block_mass = sum16(e)
        block_out = np.zeros((len(rows), *queries.shape[1:]), _f)
        for t in range(begin, end):
            sees = max(0, t - position - first)  # rows from here on see token t; a masked value must not even be multiplied by 0
            block_out[sees:] = fma(e[sees:, :, :, t - begin, None], v[t][:, None, :], block_out[sees:])
        _merge(best[first:], mass[first:], out[first:], block_best, block_mass, block_out)
    return np.asarray((out / mass[..., None]).reshape(m, heads, d))


def _merge(best: FloatArray, mass: FloatArray, out: FloatArray, block_best: FloatArray, block_mass: FloatArray, block_out: FloatArray) -> None:
    """Adds a block to the running maximum, mass and output, in place."""
    joint = np.maximum(best, block_best)
    a, b = exp(best - joint), exp(block_best - joint)
    mass[...] = fma(mass, a, block_mass * b)
    out[...] = fma(out, a[..., None], block_out * b[..., None])
    best[...] = joint


class Pages:
    """Keys and values of every layer in pages of 32 tokens, bf16, zero where nothing was written; grows with the page ids it sees."""

    def __init__(self) -> None:
        self._layers: dict[tuple[int, str], npt.NDArray[np.uint16]] = {}

    def store(self, layer: int, span: Span, k: FloatArray, v: FloatArray) -> None:
        """k, v [length, kv_heads, d] of the span's tokens."""
        tokens = np.arange(span.position, span.position + span.length)
        for part, rows in (("k", k), ("v", v)):
            array = self._array(layer, part, int(span.pages.max(initial=0)) + 1, rows.shape[1:])
            array[span.pages[tokens // PAGE_TOKENS], tokens % PAGE_TOKENS] = round_bf16(rows)

    def load(self, layer: int, span: Span) -> tuple[FloatArray, FloatArray]:
        """Keys and values [position + length, kv_heads, d] of the span's context."""
        tokens = np.arange(span.position + span.length)
        where = span.pages[tokens // PAGE_TOKENS], tokens % PAGE_TOKENS
        return _widen(self._layers[layer, "k"][where]), _widen(self._layers[layer, "v"][where])

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """The first `num_tokens` keys and values of a page become those of another, whose other slots are zeros."""
        for layer, part in list(self._layers):
            array = self._array(layer, part, max(source, target) + 1, self._layers[layer, part].shape[2:])
            array[target] = 0
            array[target, :num_tokens] = array[source, :num_tokens]

    def _array(self, layer: int, part: str, pages: int, head_shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
        array = self._layers.get((layer, part))
        if array is None or len(array) < pages:
            grown = np.zeros((max(pages, 2 * len(array) if array is not None else 0), PAGE_TOKENS, *head_shape), np.uint16)
            if array is not None:
                grown[: len(array)] = array
            array = self._layers[layer, part] = grown
        return array


# --- operations ----------------------------------------------------------------------------------------------------


class ReferenceOps:
    """`program.Ops` that executes each call for one batch. Weights are the tensors themselves."""

    def __init__(self, batch: Batch, pages: Pages, *, bf16_tiles: bool = False) -> None:
        self._batch = batch
        self._pages = pages
        self._linear = functools.partial(linear, bf16_tiles=bf16_tiles)
        self.output_rows: FloatArray | None = None
        self._read: FloatArray | None = None
        """By the last product."""
        self._positions = np.concatenate([np.arange(span.position, span.position + span.length) for span in batch.spans] or [np.zeros(0, np.int64)])

    def weight(self, tensor: Tensor) -> Tensor:
        return tensor

    def experts(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors

    def vector(self, tensor: Tensor) -> FloatArray:
        return quants.dequantize(tensor)

    def rope_table(self, cos: FloatArray, sin: FloatArray) -> tuple[FloatArray, FloatArray]:
        return cos, sin

    def embed(self, table: Tensor) -> FloatArray:
        return embed(table, self._batch.ids)

    def linear(self, x: FloatArray, w: Tensor, bias: FloatArray | None = None) -> FloatArray:
        self._read = x
        return self._linear(x, w, bias)

    def rms_norm(self, x: FloatArray, w: FloatArray, eps: float) -> FloatArray:
        return rms_norm(x, w, eps)

    def rope(self, x: FloatArray, table: tuple[FloatArray, FloatArray], head_dim: int) -> FloatArray:
        cos, sin = table
        return rope(x, cos[self._positions], sin[self._positions], head_dim)

    def attention(self, q: FloatArray, k: FloatArray, v: FloatArray, *, layer: int, heads: int, kv_heads: int, head_dim: int) -> FloatArray:
        out = np.zeros_like(q)
        for span in self._batch.spans:
            rows = slice(span.start, span.start + span.length)
            self._pages.store(layer, span, k[rows].reshape(-1, kv_heads, head_dim), v[rows].reshape(-1, kv_heads, head_dim))

        def attend(tile: tuple[Span, int, int]) -> None:
            span, top, end = tile
            keys, values = self._pages.load(layer, replace(span, length=end))
            rows = slice(span.start + top, span.start + end)
            out[rows] = attention(q[rows].reshape(-1, heads, head_dim), keys, values, span.position + top).reshape(end - top, -1)

        # Each tile of rows sees no more of the context than it must.
        tiles = [(span, top, min(top + _QUERY_ROWS, span.length)) for span in self._batch.spans for top in range(0, span.length, _QUERY_ROWS)]
        _in_threads(attend, tiles)
        return out

    def silu_mul(self, gate: FloatArray, up: FloatArray) -> FloatArray:
        return silu_mul(gate, up)

    def add(self, a: FloatArray, b: FloatArray) -> FloatArray:
        return a + b

    def moe(self, x: FloatArray, moe: MoeWeights) -> FloatArray:
        return mixture(x, moe, self._linear)

    def logits_rows(self, x: FloatArray) -> FloatArray:
        return x[self._batch.logits_rows]

    def output(self, x: FloatArray, *, sketch: bool = True) -> None:
        self.output_rows = self._read if self._batch.hidden else x


Linear = Callable[[FloatArray, Tensor], FloatArray]


def mixture(x: FloatArray, moe: MoeWeights, linear: Linear = linear) -> FloatArray:
    """The mixture of experts of x [rows, hidden]; the weights are tensors."""

    def gated(x: FloatArray, gate: Tensor, up: Tensor, down: Tensor) -> FloatArray:
        return linear(silu_mul(linear(x, gate), linear(x, up)), down)

    p = softmax(linear(x, moe.router))
    chosen = np.argsort(-p, axis=-1, kind="stable")[:, : moe.top_k]
    weights = np.take_along_axis(p, chosen, axis=-1)
    if moe.normalise:
        total = weights[:, 0]
        for slot in range(1, moe.top_k):
            total = total + weights[:, slot]
        weights = weights / total[:, None]
    out = np.zeros((len(x), moe.down[0].shape[0]), _f)
    for expert in range(len(moe.gate)):
        rows, slots = np.nonzero(chosen == expert)
        if len(rows):
            y = gated(x[rows], moe.gate[expert], moe.up[expert], moe.down[expert])
            out[rows] = fma(weights[rows, slots, None], y, out[rows])
    if moe.shared is not None:
        shared = moe.shared
        out = fma(sigmoid(linear(x, shared.router)), gated(x, shared.gate, shared.up, shared.down), out)
    return out


class Buildable(Protocol):
    """Anything stated over `Ops`, such as `model.qwen.Qwen`."""

    def build(self, ops: Ops) -> None: ...


class ReferenceRunner:
    """Runs batches of a model, with its own pages of keys and values. `bf16_tiles`: as the amx variant does."""

    def __init__(self, model: Buildable, *, bf16_tiles: bool = False) -> None:
        self._model = model
        self._bf16_tiles = bf16_tiles
        self._pages = Pages()

    def run(self, batch: Batch) -> FloatArray:
        """Logits [len(batch.logits_rows), vocabulary], or hidden states [len(batch.logits_rows), hidden]."""
        ops = ReferenceOps(batch, self._pages, bf16_tiles=self._bf16_tiles)
        self._model.build(ops)
        if ops.output_rows is None:
            raise EngineError("the model gave no output")
        return ops.output_rows

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        self._pages.copy(source, target, num_tokens)


# --- sampling ------------------------------------------------------------------------------------------------------

_MASK = (1 << 64) - 1


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that draws the token at this position."""
    return (_mix(_mix(_mix(seed) ^ choice) ^ position) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    """SplitMix64's finaliser after adding its constant."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def sample_row(logits: FloatArray, row: SampleRow) -> SampleResult:
    """Chooses one token from a row of logits. Raises NumericalError where there is no finite largest logit."""
    raw = np.asarray(logits[: row.vocab_limit], _f)
    if np.isnan(raw).any() or not np.isfinite(raw.max()):
        raise NumericalError("the model produced logits that are not numbers")
    params = row.params
    values = _penalised(raw, row)
    if row.allowed is not None and values.max() == -np.inf:
        raise NumericalError("no token is allowed")
    chosen = _choose(values, row)
    if params.logprobs is None:
        return SampleResult(chosen)
    logprobs = log_probabilities(raw)
    order = np.argsort(-raw, kind="stable")[: params.logprobs]
    return SampleResult(chosen, float(logprobs[chosen]), [(int(i), float(logprobs[i])) for i in order])


def log_probabilities(raw: FloatArray) -> FloatArray:
    """log softmax of one row of raw logits."""
    top = raw.max()
    e = exp(raw - top).astype(np.float64)
    lanes = np.zeros(-(-len(e) // 16) * 16)
    lanes[: len(e)] = e
    total = np.zeros(16)
    for part in lanes.reshape(-1, 16):
        total += part
    for width in (8, 4, 2, 1):
        total = total[:width] + total[width : 2 * width]
    return np.asarray((raw.astype(np.float64) - np.float64(top)) - math.log(total[0]), _f)


def _penalised(raw: FloatArray, row: SampleRow) -> FloatArray:
    params = row.params
    out = raw.copy()
    for token, bias in params.logit_bias.items():
        if 0 <= token < len(out):
            out[token] += _f(bias)
    if params.repetition_penalty != 1.0:
        seen = _below(np.unique(np.concatenate([row.prompt_ids, row.output_ids])), len(out))
        penalty = _f(params.repetition_penalty)
        out[seen] = np.where(out[seen] > 0, out[seen] / penalty, out[seen] * penalty)
    if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
        ids, counts = np.unique(row.output_ids, return_counts=True)
        inside = ids < len(out)
        out[ids[inside]] -= _f(params.presence_penalty) + _f(params.frequency_penalty) * counts[inside].astype(_f)
    if row.allowed is not None:
        every = np.arange(len(out), dtype=np.uint32)
        out[row.allowed[every // 32] >> every % 32 & 1 == 0] = -np.inf
    return out


def _below(ids: IntArray, limit: int) -> IntArray:
    return ids[ids < limit]


def _choose(values: FloatArray, row: SampleRow) -> int:
    params = row.params
    if params.temperature == 0:
        return int(values.argmax())
    scaled = values / _f(params.temperature)
    cut = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    order = np.argsort(-scaled, kind="stable") if cut else np.arange(len(scaled))
    if params.top_k > 0:
        order = order[: params.top_k]
    e = exp(scaled[order] - scaled.max()).astype(np.float64)
    mass = np.cumsum(e)
    if params.top_p < 1:
        keep = int(np.searchsorted(mass, params.top_p * mass[-1], side="left")) + 1
        order, e, mass = order[:keep], e[:keep], mass[:keep]
    if params.min_p > 0:
        kept = e >= params.min_p
        order, mass = order[kept], np.cumsum(e[kept])
    target = uniform(params.seed, params.choice, row.position) * mass[-1]
    at = int(np.searchsorted(mass, target, side="right"))
    return int(order[min(at, len(order) - 1)])
