"""The C++ runtime: records a model's operations into a `Program` and replays it for every batch, without the GIL.

The shared library `libqwenbox_native.so` lies beside this module, in an installed wheel as in a source tree after `make native`; its C functions
are declared in csrc/qwenbox.h. Results obey docs/numeric-contract.md bit for bit in every instruction-set variant.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import qwenbox.kernels
from qwenbox.errors import EngineError, ModelFormatError, NumericalError, UsageError
from qwenbox.kernels.program import CancelFlag, Interrupted, MoeWeights, Op, Program, SampleResult, SampleRow
from qwenbox.kernels.quants import not_finite, too_large
from qwenbox.types import (
    TENSOR_KINDS,
    AnyArray,
    AwqTensor,
    Batch,
    ByteArray,
    CompressedTensor,
    FloatArray,
    GptqTensor,
    PackedTensor,
    RoundedTensor,
    Tensor,
)


class Intake(Protocol):
    """What stands behind the bytes of weights while they are packed."""

    def file(self, data: AnyArray) -> tuple[int, int] | None:
        """The descriptor and the offset at which `data` can be read; None where it is only in memory."""

    def consumed(self, data: AnyArray) -> None:
        """`data` is not needed any more. What this raises ends the packing."""


class _Memory:
    def file(self, data: AnyArray) -> None:
        return None

    def consumed(self, data: AnyArray) -> None:
        pass


_LIBRARY = "libqwenbox_native.so"
_PANEL = 64
"""Rows that are packed together."""
_SLICE = 16 << 20
"""Bytes that one call packs, about: a few milliseconds, after which loading can report or stop."""
_GROUP = 128
"""Inputs that share a zero and a scale."""
_i32, _i64, _u64, _f32, _f64, _ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float, ctypes.c_double, ctypes.c_void_p

_OPCODES = {
    name: code
    for code, name in enumerate(
        ("embed", "linear", "rms_norm", "rope", "attention", "silu_mul", "add", "moe", "logits_rows", "output"),
    )
}


class _Stored(ctypes.Structure):
    _fields_ = [("data", _ptr), ("bytes", _u64), ("offset", _u64), ("file", _i32)]


class _WordNumbers(ctypes.Structure):
    _fields_ = [("zeros", _ptr), ("scales", _ptr), ("plus", ctypes.c_uint32), ("groups", _i32), ("by_rows", _i32)]


class _Op(ctypes.Structure):
    _fields_ = [("code", _i32), ("output", _i32), ("inputs", _i32 * 3), ("tables", _i32 * 8), ("ints", _i32 * 4), ("eps", _f32)]


class _Value(ctypes.Structure):
    _fields_ = [("width", _i32), ("narrow", _i32), ("buffer", _i32)]


class _Span(ctypes.Structure):
    _fields_ = [("start", _i32), ("length", _i32), ("position", _i32), ("num_pages", _i32), ("pages", _ptr)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("ids", _ptr),
        ("spans", _ptr),
        ("logits_rows", _ptr),
        ("num_tokens", _i32),
        ("num_spans", _i32),
        ("num_logits", _i32),
        ("largest", _i32),
    ]


class _SampleRow(ctypes.Structure):
    _fields_ = [
        *((name, _f64) for name in ("top_p", "min_p")),
        *((name, _u64) for name in ("seed", "choice", "position")),
        *((name, _f32) for name in ("temperature", "presence", "frequency", "repetition")),
        *((name, _i32) for name in ("top_k", "vocab_limit", "num_prompt", "num_output", "num_bias", "logprobs")),
        *((name, _ptr) for name in ("prompt", "output", "bias_ids", "bias", "allowed")),
    ]


_RESULT = np.dtype([("id", np.int32), ("logprob", np.float32)])

# name: (result, arguments)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "qw_error": (ctypes.c_char_p, ()),
    "qw_isa_available": (ctypes.c_char_p, ()),
    "qw_isa_missing": (ctypes.c_char_p, (ctypes.c_char_p,)),
    "qw_rounding_change": (_i32, (_ptr, _ptr, _u64, _i32, _i32, _i32, _f32, _ptr)),
    "qw_runtime_new": (_ptr, (_i32, ctypes.c_char_p)),
    "qw_runtime_free": (None, (_ptr,)),
    "qw_weight": (_i32, (_ptr, _i32, _i32, _i32, _i32)),
    "qw_weight_pack": (_i32, (_ptr, _i32, _i32, _i32, _i32, _i32, ctypes.POINTER(_Stored))),
    "qw_weight_pack_words": (_i32, (_ptr, _i32, _i32, _i32, _i32, ctypes.POINTER(_Stored), ctypes.POINTER(_WordNumbers))),
    "qw_weight_pack_awq": (_i32, (_ptr, _i32, _i32, _i32, _i32, ctypes.POINTER(_Stored), _ptr, _ptr)),
    "qw_vector": (_i32, (_ptr, _ptr, _i32)),
    "qw_rope_table": (_i32, (_ptr, _ptr, _ptr, _i32, _i32)),
    "qw_weights_bytes": (_u64, (_ptr,)),
    "qw_program_new": (_ptr, (_ptr, ctypes.POINTER(_Op), _i32, ctypes.POINTER(_Value), _i32, _i32, _i32, _i32, _ptr)),
    "qw_program_free": (None, (_ptr,)),
    "qw_program_kv_bytes": (_u64, (_ptr,)),
    "qw_program_buffer_bytes": (_u64, (_ptr,)),
    "qw_program_spared_bytes": (_i64, (_ptr,)),
    "qw_program_steps": (_i32, (_ptr,)),
    "qw_program_copy_page": (_i32, (_ptr, _i32, _i32, _i32)),
    "qw_program_run": (_i32, (_ptr, ctypes.POINTER(_Batch), _i32, _ptr, _f64, _ptr)),
    "qw_sample": (_i32, (_ptr, _ptr, _i32, ctypes.POINTER(_SampleRow), _i32, _i32, _ptr, _ptr, _ptr)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The shared library with its signatures. Raises UsageError where it was not built, or not of these sources."""
    path = next((file for folder in qwenbox.kernels.__path__ if (file := Path(folder) / _LIBRARY).is_file()), None)
    if path is None:
        raise UsageError(f"{_LIBRARY} is not beside qwenbox.kernels: run `make native` in the source tree, or install the wheel")
    return open_library(path)


def open_library(path: Path) -> ctypes.CDLL:
    """A build of the library, with the signatures of csrc/qwenbox.h. Raises UsageError where one of its functions is missing."""
    return declare(ctypes.CDLL(str(path)), _FUNCTIONS)


def declare(loaded: ctypes.CDLL, functions: Mapping[str, tuple[Any, Sequence[Any]]]) -> ctypes.CDLL:
    """The same library, whose functions have these results and arguments. Raises UsageError where it has not got one of them."""
    for name, (result, arguments) in functions.items():
        if not hasattr(loaded, name):
            raise UsageError(
                f"{loaded._name} has no {name}: it is older than the sources; run `make native` in the source tree, or install the wheel again"
            )
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def isa_available() -> list[str]:
    """The instruction-set variants that this machine runs, best first."""
    names: bytes = library().qw_isa_available()
    return names.decode().split()


def isa_missing(isa: str) -> str | None:
    """Why this machine does not run the variant; None if it does."""
    reason: bytes | None = library().qw_isa_missing(isa.encode())
    return None if reason is None else reason.decode()


def isa_best() -> str:
    return isa_available()[0]


def rounding_change(weights: FloatArray, scales: FloatArray | None, group: int, bits: int, share: float) -> FloatArray:
    """What rounding changes in weights [rows, columns] times scales [columns], on this share of the range of each group of 32, 64 or 128 inputs.

    Bit for bit what `quantize.grid` does in NumPy. Raises ModelFormatError where a number is not finite or a step does not fit fp16.
    """
    rows, columns = weights.shape
    assert weights.flags.c_contiguous and columns % group == 0 and group in (32, 64, 128) and bits in (4, 8)
    if scales is not None:
        scales = np.ascontiguousarray(scales, np.float32)
        assert scales.shape == (columns,)
    change = np.empty((rows, columns), np.float32)
    where = None if scales is None else _address(scales)
    if library().qw_rounding_change(_address(weights), where, rows, columns, group, bits, share, _address(change)):
        raise ModelFormatError("a scale does not fit fp16: the weights are too large to be quantised, or not finite")
    return change


def _failure() -> EngineError:
    return EngineError(library().qw_error().decode())


def _freed(owner: object, free: Callable[[int], None], handle: int) -> weakref.finalize[..., Any]:
    """Frees the handle when it is called, at the latest when nobody holds its owner; what lives until the program ends is left to the system."""
    finalizer = weakref.finalize(owner, free, handle)
    finalizer.atexit = False
    return finalizer


def _address(array: np.ndarray[Any, Any]) -> int:
    return array.ctypes.data


@dataclass(frozen=True, slots=True)
class _Weight:
    """A packed matrix, or a stack of them."""

    handle: int
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class _Vector:
    handle: int
    n: int


def takes(tensor: PackedTensor) -> bool:
    """Whether `Native.weight` makes panels of these words itself, given fp16 scales: whole groups of 128 inputs."""
    return tensor.shape[1] % _GROUP == 0


class Native:
    """One runtime: its threads and its packed weights. Implements `Ops` by recording; values are numbers of `Program` values."""

    def __init__(self, *, threads: int | None = None, isa: str | None = None, intake: Intake | None = None) -> None:
        available = isa_available()
        if isa is not None and isa not in available:
            raise UsageError(f"instruction set {isa!r} is not available: {isa_missing(isa)}; this machine has {', '.join(available)}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        self.isa = isa or available[0]
        self.threads = threads or len(os.sched_getaffinity(0))
        self._intake: Intake = intake or _Memory()
        self._program = Program()
        self._packed: dict[tuple[Any, ...], tuple[_Weight, list[weakref.ref[ByteArray]]]] = {}
        self._handle: int | None = library().qw_runtime_new(self.threads, self.isa.encode())
        if not self._handle:
            raise _failure()
        self._free = _freed(self, library().qw_runtime_free, self._handle)

    # Weights.

    def weight(self, tensor: Tensor) -> _Weight:
        return self.experts([tensor])

    def experts(self, tensors: Sequence[Tensor]) -> _Weight:
        first = tensors[0]
        if len(first.shape) != 2 or any((t.kind, t.shape) != (first.kind, first.shape) for t in tensors):
            raise ValueError(f"{first.name}: experts must be matrices of one kind and shape")
        n, k = first.shape
        stored = [t.stored if isinstance(t, RoundedTensor) else t for t in tensors]
        arrays = [[np.require(array, requirements=["C", "A"]) for array in t.arrays] for t in stored]
        key = (first.kind, first.shape, *(_address(array) for parts in arrays for array in parts))
        known, owners = self._packed.get(key, (None, []))
        if known is not None and all(owner() is not None for owner in owners):  # the addresses still belong to the same bytes
            return known
        handle = library().qw_weight(self._alive(), TENSOR_KINDS[first.kind].code, len(tensors), n, k)
        if handle < 0:
            raise _failure()
        for index, (tensor, parts) in enumerate(zip(stored, arrays, strict=True)):
            if isinstance(tensor, AwqTensor):
                self._pack_awq(handle, index, tensor, *parts)
            elif isinstance(tensor, (GptqTensor, CompressedTensor)):
                self._pack_words(handle, index, tensor)
            else:
                self._pack(handle, index, tensor, first.kind, parts[0])
        weight = _Weight(handle, n, k)
        self._packed[key] = (weight, [weakref.ref(array) for t in stored for array in t.arrays])
        return weight

    def _pack(self, handle: int, index: int, tensor: Tensor, kind: str, data: AnyArray) -> None:
        """All rows of one matrix to `kind`, a slice at a time."""
        if data.dtype != np.uint8 or data.size != tensor.nbytes:
            raise ValueError(f"{tensor.name}: the data must be {tensor.nbytes} bytes")
        rows = data.reshape(tensor.shape[0], -1)
        step = max(1, _SLICE // (_PANEL * rows.shape[1]))
        for first in range(0, -(-len(rows) // _PANEL), step):
            part = rows[first * _PANEL : (first + step) * _PANEL]
            last = first - (-len(part) // _PANEL)
            code = TENSOR_KINDS[tensor.kind].code
            problem = library().qw_weight_pack(self._alive(), handle, index, first, last, code, self._stored(part))
            if problem:
                raise (_failure() if problem < 0 else (not_finite, too_large)[problem - 1](tensor, kind))
            self._intake.consumed(part)

    def _pack_awq(self, handle: int, index: int, tensor: AwqTensor, qweight: AnyArray, qzeros: AnyArray, scales: AnyArray) -> None:
        """All inputs of one matrix, some groups of 128 at a time."""
        blocks, rows = scales.shape
        inputs = blocks * TENSOR_KINDS[tensor.kind].block
        if qweight.shape != (inputs, rows // 8) or qzeros.shape != (blocks, rows // 8):
            raise ValueError(f"{tensor.name}: words of {qweight.shape}, zeros of {qzeros.shape} and scales of {scales.shape} do not fit each other")
        step = max(1, _SLICE // (_GROUP * qweight.shape[1] * 4))
        for first in range(0, inputs // _GROUP, step):
            last = min(first + step, inputs // _GROUP)
            part = qweight[first * _GROUP : last * _GROUP]
            stored, others = self._stored(part), (_address(qzeros), _address(scales))
            problem = library().qw_weight_pack_awq(self._alive(), handle, index, first, last, stored, *others)
            if problem:
                raise (_failure() if problem < 0 else not_finite(tensor, tensor.kind))
            self._intake.consumed(part)
        self._intake.consumed(qzeros)
        self._intake.consumed(scales)

    def _pack_words(self, handle: int, index: int, tensor: GptqTensor | CompressedTensor) -> None:
        """All of one matrix, some groups of 128 inputs or panels of rows at a time; its scales are fp16."""
        rows, columns = tensor.shape
        by_rows = isinstance(tensor, CompressedTensor)
        words, zeros = (tensor.packed, tensor.zeros) if isinstance(tensor, CompressedTensor) else (tensor.qweight, tensor.qzeros)
        bits = words.size * 32 // (rows * columns)
        shape, per = tensor.scales.shape, 32 // bits
        groups = shape[1 if by_rows else 0]
        if by_rows:
            wanted = (rows, columns // per), (rows, groups), (-(-rows // per), groups)
        else:
            wanted = (columns // per, rows), (groups, rows), (groups, rows // per)
        if (words.shape, shape, wanted[2] if zeros is None else zeros.shape) != wanted or tensor.scales.kind != "f16":
            raise ValueError(f"{tensor.name}: words of {words.shape} and scales of {tensor.scales.kind} {shape} do not fit each other")
        words, scales = np.require(words, requirements=["C", "A"]), np.require(tensor.scales.data.view("<u2"), requirements=["C", "A"])
        zeros = None if zeros is None else np.require(zeros, requirements=["C", "A"])
        plus = {4: 0x11111111, 8: 0x01010101}[bits] if isinstance(tensor, GptqTensor) and tensor.zeros_less_one else 0
        numbers = _WordNumbers(None if zeros is None else _address(zeros), _address(scales), plus, groups, by_rows)
        together = _PANEL if by_rows else _GROUP // per
        step = max(1, _SLICE // (together * words.shape[1] * 4))
        for first in range(0, -(-len(words) // together), step):
            part = words[first * together : (first + step) * together]
            last = first - (-len(part) // together)
            problem = library().qw_weight_pack_words(self._alive(), handle, index, first, last, self._stored(part), numbers)
            if problem:
                raise (_failure() if problem < 0 else not_finite(tensor, tensor.kind))
            self._intake.consumed(part)
        for array in (zeros, tensor.scales.data):
            if array is not None:
                self._intake.consumed(array)

    def _stored(self, part: AnyArray) -> _Stored:
        at = self._intake.file(part)
        return _Stored(_address(part), part.nbytes) if at is None else _Stored(None, part.nbytes, at[1], at[0])

    def vector(self, tensor: Tensor) -> _Vector:
        if tensor.kind == "bf16":
            values = (tensor.data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif tensor.kind in ("f16", "f32"):
            values = tensor.data.view("<f2" if tensor.kind == "f16" else "<f4").astype(np.float32)
        else:
            raise ValueError(f"{tensor.name}: a vector must be f32, f16 or bf16, not {tensor.kind}")
        values = np.ascontiguousarray(values)
        if not np.isfinite(values).all():
            raise not_finite(tensor, tensor.kind)
        handle = library().qw_vector(self._alive(), _address(values), values.size)
        if handle < 0:
            raise _failure()
        return _Vector(handle, values.size)

    def rope_table(self, cos: FloatArray, sin: FloatArray) -> int:
        cos, sin = np.ascontiguousarray(cos, np.float32), np.ascontiguousarray(sin, np.float32)
        if cos.shape != sin.shape or cos.ndim != 2:
            raise ValueError("cos and sin must both be [positions, head_dim / 2]")
        handle: int = library().qw_rope_table(self._alive(), _address(cos), _address(sin), *cos.shape)
        if handle < 0:
            raise _failure()
        return handle

    # Recorded operations.

    def embed(self, table: _Weight) -> int:
        return self._record("embed", (), table.k, tables=(table.handle,), narrow=False)

    def linear(self, x: int, w: _Weight, bias: _Vector | None = None) -> int:
        return self._record("linear", (x,), w.n, tables=(w.handle, bias.handle if bias else -1))

    def rms_norm(self, x: int, w: _Vector, eps: float) -> int:
        return self._record("rms_norm", (x,), self._program.widths[x], tables=(w.handle,), eps=eps)

    def rope(self, x: int, table: int, head_dim: int) -> int:
        return self._record("rope", (x,), self._program.widths[x], tables=(table,), ints=(head_dim,))

    def attention(self, q: int, k: int, v: int, *, layer: int, heads: int, kv_heads: int, head_dim: int) -> int:
        return self._record("attention", (q, k, v), heads * head_dim, ints=(layer, heads, kv_heads, head_dim))

    def silu_mul(self, gate: int, up: int) -> int:
        return self._record("silu_mul", (gate, up), self._program.widths[gate])

    def add(self, a: int, b: int) -> int:
        return self._record("add", (a, b), self._program.widths[a])

    def moe(self, x: int, moe: MoeWeights) -> int:
        shared = moe.shared
        tables = (moe.router, moe.gate, moe.up, moe.down)
        extra = (shared.gate, shared.up, shared.down, shared.router) if shared else ()
        handles = tuple(w.handle for w in (*tables, *extra)) + (-1,) * (4 - len(extra))
        return self._record("moe", (x,), self._program.widths[x], tables=handles, ints=(moe.top_k, int(moe.normalise)))

    def logits_rows(self, x: int) -> int:
        return self._record("logits_rows", (x,), self._program.widths[x], narrow=True)

    def output(self, x: int, *, sketch: bool = True) -> None:
        self._program.ops.append(Op("output", (x,), x, ints=(int(sketch),)))

    def _record(
        self,
        name: str,
        inputs: tuple[int, ...],
        width: int,
        *,
        tables: tuple[int, ...] = (),
        ints: tuple[int, ...] = (),
        eps: float = 0.0,
        narrow: bool | None = None,
    ) -> int:
        program = self._program
        output = program.value(width, narrow=program.narrow[inputs[0]] if narrow is None else narrow)
        program.ops.append(Op(name, inputs, output, tables, ints, eps))
        return output

    # The end of recording.

    def compile(self, *, max_tokens: int, max_logits: int, num_pages: int) -> NativeProgram:
        """What was recorded since the last `compile`, with room for these bounds. Raises EngineError where it does not fit together or in memory."""
        program, self._program = self._program, Program()
        self._packed.clear()
        return NativeProgram(self, program, max_tokens=max_tokens, max_logits=max_logits, num_pages=num_pages)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all packed weights, vectors and tables."""
        return int(library().qw_weights_bytes(self._alive()))

    def close(self) -> None:
        """Frees threads and weights; programs of this runtime must be closed before."""
        if self._handle:
            self._free()
            self._handle = None

    def _alive(self) -> int:
        if not self._handle:
            raise EngineError("the runtime is closed")
        return self._handle

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        """One token a row of `logits` [rows, vocabulary]. Raises NumericalError where a row holds NaN, has no finite maximum, or allows nothing."""
        logits = np.ascontiguousarray(logits, np.float32)
        if logits.ndim != 2 or len(logits) != len(rows):
            raise ValueError(f"{len(rows)} rows to sample, logits of shape {logits.shape}")
        table = (_SampleRow * len(rows))()
        keep = [_fill(table[index], row) for index, row in enumerate(rows)]
        max_top = max((row.params.logprobs or 0 for row in rows), default=0)
        results = np.empty(len(rows), _RESULT)
        ids, logprobs = np.empty((len(rows), max_top), np.int32), np.empty((len(rows), max_top), np.float32)
        code = library().qw_sample(
            self._alive(), _address(logits), logits.shape[1], table, len(rows), max_top, _address(results), _address(ids), _address(logprobs)
        )
        del keep
        if code < 0:
            raise _failure()
        return [_result(row, results[index], ids[index], logprobs[index]) for index, row in enumerate(rows)]


class NativeProgram:
    """A compiled model: activations, KV pages, and the operations to run over them. Used by one thread at a time."""

    def __init__(
        self, runtime: Native, program: Program, *, max_tokens: int, max_logits: int, num_pages: int, pages_of: NativeProgram | None = None
    ) -> None:
        self.program = program
        self.vocab_size = program.widths[program.ops[-1].output] if program.ops else 0
        self._runtime = runtime
        self._num_pages = num_pages
        buffers = program.buffers()
        ops = (_Op * len(program.ops))(*(_op(op) for op in program.ops))
        values = (_Value * len(buffers))(*(_Value(*value) for value in zip(program.widths, program.narrow, buffers, strict=True)))
        owner = None if pages_of is None else pages_of._alive()
        handle = library().qw_program_new(runtime._alive(), ops, len(ops), values, len(values), max_tokens, max_logits, num_pages, owner)
        self._handle: int | None = handle
        if not handle:
            raise _failure()
        self._free = _freed(self, library().qw_program_free, handle)

    def beside(self, *, max_tokens: int, max_logits: int) -> NativeProgram:
        """The same operations over the same pages with activations of their own: what runs there leaves an interrupted batch here as it is.

        It is closed before this program.
        """
        bounds = {"max_tokens": max_tokens, "max_logits": max_logits, "num_pages": self._num_pages}
        return NativeProgram(self._runtime, self.program, **bounds, pages_of=self)

    def headless(self, *, max_tokens: int) -> NativeProgram:
        """`beside`, for batches that want hidden states: what `run` returns then has as many columns as the head has inputs."""
        bounds = {"max_tokens": max_tokens, "max_logits": max_tokens, "num_pages": self._num_pages}
        return NativeProgram(self._runtime, self.program.without_head(), **bounds, pages_of=self)

    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray:
        """Logits [len(batch.logits_rows), vocab_size].

        Raises Interrupted when `cancel` is set or `deadline` (of time.monotonic()) has passed; the same batch then goes on with
        `first_op=error.next_op`, if no other batch ran in between. Raises EngineError for a batch that does not fit.
        """
        ids = np.ascontiguousarray(batch.ids, np.int32)
        rows = np.ascontiguousarray(batch.logits_rows, np.int32)
        pages = [np.ascontiguousarray(span.pages, np.int32) for span in batch.spans]
        spans = (_Span * len(pages))(
            *(_Span(s.start, s.length, s.position, len(p), _address(p)) for s, p in zip(batch.spans, pages, strict=True)),
        )
        native = _Batch(_address(ids), ctypes.addressof(spans), _address(rows), len(ids), len(spans), len(rows), batch.largest)
        logits = np.empty((len(rows), self.vocab_size), np.float32)
        word = _address(cancel.word) if cancel is not None else None
        end = library().qw_program_run(self._alive(), ctypes.byref(native), first_op, word, deadline or 0.0, _address(logits))
        if end < 0:
            raise _failure()
        if end < self.steps:
            raise Interrupted(end)
        return logits

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        """The first `num_tokens` keys and values of a page become those of another, as if its tokens had been run there."""
        if library().qw_program_copy_page(self._alive(), source, target, num_tokens) < 0:
            raise _failure()

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        return self._runtime.sample(logits, rows)

    @property
    def steps(self) -> int:
        """How many operations a run executes; `Interrupted.next_op` is below."""
        return int(library().qw_program_steps(self._alive()))

    @property
    def kv_bytes(self) -> int:
        return int(library().qw_program_kv_bytes(self._alive()))

    @property
    def buffer_bytes(self) -> int:
        """Bytes of activations, scratch and the sketch of a large int8 head."""
        return int(library().qw_program_buffer_bytes(self._alive()))

    @property
    def spared_bytes(self) -> int:
        """Bytes of the head that batches with `largest` did not read so far."""
        return int(library().qw_program_spared_bytes(self._alive()))

    @property
    def weights_bytes(self) -> int:
        return self._runtime.weights_bytes

    def close(self) -> None:
        """Frees the pages and activations of this program; the runtime stays."""
        if self._handle:
            self._free()
            self._handle = None

    def _alive(self) -> int:
        if not self._handle:
            raise EngineError("the program is closed")
        return self._handle


def _op(op: Op) -> _Op:
    def padded(values: Sequence[int], length: int) -> Any:
        return (_i32 * length)(*values, *[-1] * (length - len(values)))

    return _Op(_OPCODES[op.name], op.output, padded(op.inputs, 3), padded(op.tables, 8), padded(op.ints, 4), op.eps)


def _fill(native: _SampleRow, row: SampleRow) -> list[np.ndarray[Any, Any]]:
    """Writes `row` into the C structure; returns the arrays that it points into."""
    params = row.params
    prompt, output = np.ascontiguousarray(row.prompt_ids, np.int32), np.ascontiguousarray(row.output_ids, np.int32)
    bias_ids = np.fromiter(params.logit_bias.keys(), np.int32, len(params.logit_bias))
    bias = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
    native.top_p, native.min_p = params.top_p, params.min_p
    native.seed, native.choice, native.position = params.seed, params.choice, row.position  # ctypes takes them modulo 2^64
    native.temperature, native.repetition = params.temperature, params.repetition_penalty
    native.presence, native.frequency = params.presence_penalty, params.frequency_penalty
    native.top_k, native.vocab_limit = params.top_k, row.vocab_limit
    native.num_prompt, native.num_output, native.num_bias = len(prompt), len(output), len(bias)
    native.logprobs = -1 if params.logprobs is None else params.logprobs
    native.prompt, native.output, native.bias_ids, native.bias = _address(prompt), _address(output), _address(bias_ids), _address(bias)
    kept = [prompt, output, bias_ids, bias]
    if row.allowed is not None:
        allowed = np.ascontiguousarray(row.allowed, np.uint32)
        if len(allowed) * 32 < row.vocab_limit:
            raise ValueError(f"a mask of {len(allowed)} words does not cover {row.vocab_limit} ids")
        native.allowed = _address(allowed)
        kept.append(allowed)
    return kept


def _result(row: SampleRow, result: Any, ids: np.ndarray[Any, Any], logprobs: np.ndarray[Any, Any]) -> SampleResult:
    if result["id"] < 0:
        raise NumericalError("the model produced logits that are not numbers, or no token is allowed")
    wanted = row.params.logprobs
    if wanted is None:
        return SampleResult(int(result["id"]))
    top = list(zip(ids[:wanted].tolist(), logprobs[:wanted].tolist(), strict=True))
    return SampleResult(int(result["id"]), float(result["logprob"]), top)
