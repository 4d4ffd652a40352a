"""A model ready to run: from a checkpoint directory or a GGUF file, rounded on the way if asked, or with random weights of a known shape.

Memory is counted before anything is allocated: packed weights, and pages for keys and values.
"""

from __future__ import annotations

import logging
import math
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from qwenbox.errors import NotFoundError, NumericalError, UsageError, gigabytes
from qwenbox.kernels.native import Native, NativeProgram, isa_best, isa_missing, takes
from qwenbox.kernels.program import CancelFlag, Interrupted, SampleResult, SampleRow
from qwenbox.kernels.quants import DENSE_KINDS, round_tensor
from qwenbox.kernels.quants import ROUNDED_KINDS as WEIGHTS
from qwenbox.kernels.reference import ReferenceRunner, sample_row
from qwenbox.model.config import Experts, ModelConfig, Rope, from_gguf, from_hf
from qwenbox.model.costs import Costs, costs, page_bytes
from qwenbox.model.forms import Forms
from qwenbox.model.qwen import Prepare, Qwen, Role
from qwenbox.types import (
    PAGE_TOKENS,
    TENSOR_KINDS,
    AnyArray,
    Batch,
    ByteArray,
    FloatArray,
    PackedTensor,
    RoundedTensor,
    Tensor,
    tensor_nbytes,
)
from qwenbox.weights.files import location, read_ahead, release
from qwenbox.weights.gguf import read_gguf
from qwenbox.weights.packed import narrowed, unpack
from qwenbox.weights.safetensors import read_directory

_log = logging.getLogger("qwenbox.model")

Backend = Literal["native", "reference"]
Progress = Callable[[float], None]
Consumed = Callable[[AnyArray], None]
"""Told of stored bytes that are not needed any more."""

_KV_SHARE = 0.25
"""Of the memory left beside the weights, for pages, when nobody says how much."""
_KV_CONTEXTS = 4
"""Whole contexts of pages, at most, when nobody says how many."""
_AHEAD = 64 << 20
"""Bytes of a file that are on their way into memory beyond those in use."""
_SLICE_ROWS = 16
"""For so many rows reading a matrix is not what its product costs."""
_RESERVE = 512 << 20
"""Bytes that the rest of the program may need beside weights and pages."""


class Runner(Protocol):
    """What runs the network; the methods are those of `Model`."""

    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray: ...

    def run_beside(self, batch: Batch, cancel: CancelFlag | None = None) -> FloatArray: ...

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]: ...

    def copy_page(self, source: int, target: int, num_tokens: int) -> None: ...

    @property
    def spared_bytes(self) -> int: ...

    def close(self) -> None: ...


class Model:
    """A network, its memory and its bounds. Used by one thread at a time; `close` gives the memory back."""

    def __init__(
        self,
        network: Qwen,
        runner: Runner,
        model_costs: Costs,
        *,
        num_pages: int,
        max_batch_tokens: int,
        max_sequences: int,
        isa: str,
        threads: int,
    ) -> None:
        self.config = network.config
        self.context_length = network.positions
        self.hidden_size = network.config.hidden_size
        self.vocab_size = network.config.vocab_size
        self.vocab_limit = network.config.vocab_size
        """Real token ids; whoever knows the tokenizer lowers it."""
        self.num_pages = num_pages
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.max_logits = _max_logits(max_batch_tokens, max_sequences)
        experts = network.config.experts
        self.slice_tokens = _SLICE_ROWS * (1 if experts is None else -(-experts.count // experts.top_k))
        self.isa = isa
        self.threads = threads
        self.weights_bytes = model_costs.weights_bytes
        self.costs: Mapping[str, float] = asdict(model_costs)
        """The fields of `costs.Costs`."""
        self._runner = runner

    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray:
        """Logits [len(batch.logits_rows), vocab_size], or the hidden states [len(batch.logits_rows), hidden_size] of a batch that wants them.

        Raises Interrupted at the next operation when `cancel` is set or `deadline` (of time.monotonic()) has passed. The same batch then goes on
        with `first_op=error.next_op` if no other ran in between, or from its beginning at any time: what it has written is written again.
        There are at most `max_logits` rows of logits, and as many of hidden states as a batch has tokens.
        """
        return self._runner.run(batch, cancel, deadline, first_op=first_op)

    def run_beside(self, batch: Batch, cancel: CancelFlag | None = None) -> FloatArray:
        """`run` of at most `max_logits` tokens while a batch of other sequences is interrupted, which goes on as if nothing had run."""
        return self._runner.run_beside(batch, cancel)

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        """One result a row; the id is -1 where the row holds NaN or has no finite maximum."""
        try:
            return self._runner.sample(logits, rows)
        except NumericalError:
            if len(rows) == 1:
                return [SampleResult(-1)]
            return [result for index, row in enumerate(rows) for result in self.sample(logits[index : index + 1], [row])]

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        """The first `num_tokens` keys and values of a page become those of another, as if its tokens had been run there."""
        self._runner.copy_page(source, target, num_tokens)

    @property
    def spared_bytes(self) -> int:
        """Bytes of the head that batches with `largest` did not read so far."""
        return self._runner.spared_bytes

    def close(self) -> None:
        self._runner.close()


def _max_logits(max_batch_tokens: int, max_sequences: int) -> int:
    """Rows of logits in one step: one a sequence, and some for prompts whose log-probabilities are asked for."""
    return min(max_batch_tokens, max(max_sequences, 64))


class _NativeRunner:
    """A compiled program and the runtime that it belongs to."""

    def __init__(self, network: Qwen, runtime: Native, *, max_tokens: int, max_logits: int, num_pages: int) -> None:
        self._runtime = runtime
        self._program: NativeProgram | None = None
        self._beside: NativeProgram | None = None
        self._headless: NativeProgram | None = None
        try:
            network.build(runtime)
            self._program = runtime.compile(max_tokens=max_tokens, max_logits=max_logits, num_pages=num_pages)
            self._beside = self._program.beside(max_tokens=max_logits, max_logits=max_logits)
            # Memory that nobody has written is not there: a model that is never asked for hidden states pays nothing.
            self._headless = self._program.headless(max_tokens=max_tokens)
        except BaseException:
            self.close()
            raise

    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray:
        program = self._headless if batch.hidden else self._program
        assert program is not None
        return program.run(batch, cancel, deadline, first_op=first_op)

    def run_beside(self, batch: Batch, cancel: CancelFlag | None = None) -> FloatArray:
        assert self._beside is not None
        return self._beside.run(batch, cancel)

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        return self._runtime.sample(logits, rows)

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        assert self._program is not None
        self._program.copy_page(source, target, num_tokens)

    @property
    def spared_bytes(self) -> int:
        assert self._program is not None
        return self._program.spared_bytes

    def close(self) -> None:
        for program in (self._headless, self._beside, self._program):
            if program is not None:
                program.close()
        self._runtime.close()


class _ReferenceRunner(ReferenceRunner):
    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray:
        # The oracle keeps no step half done: it is interrupted before its first operation or not at all.
        if (cancel is not None and cancel.is_set()) or (deadline is not None and time.monotonic() >= deadline):
            raise Interrupted(0)
        return super().run(batch)

    def run_beside(self, batch: Batch, cancel: CancelFlag | None = None) -> FloatArray:
        return self.run(batch, cancel)

    spared_bytes = 0

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        return [sample_row(line, row) for line, row in zip(logits, rows, strict=True)]

    def close(self) -> None:
        pass


def _by_tiles(isa: str | None) -> bool:
    """Whether the oracle's bf16 products are those of the amx variant: it follows the variant that would run here."""
    try:
        return (isa or isa_best()) == "amx"
    except UsageError:  # the library is not built
        return False


# --- files ---------------------------------------------------------------------------------------------------------


def load_model(
    path: Path,
    *,
    weights: str | None = None,
    head: str | None = None,
    embedding: str | None = None,
    backend: Backend = "native",
    threads: int | None = None,
    isa: str | None = None,
    context_length: int | None = None,
    kv_bytes: int | None = None,
    memory_util: float | None = None,
    memory_bytes: int | None = None,
    num_pages: int | None = None,
    max_batch_tokens: int = 512,
    max_sequences: int = 32,
    progress: Progress | None = None,
) -> Model:
    """The model of a checkpoint directory or a `.gguf` file.

    `memory_bytes`: of the free memory no more is counted as free, because the rest is promised to somebody.

    `weights`, `head` and `embedding` are what `Forms.of` takes: "stored" keeps tensors as they are stored, a kind of `WEIGHTS` rounds them
    (quantised ones a second time, with a second loss). Raises NotFoundError, ModelFormatError, UnsupportedModelError, and UsageError where
    something asked for cannot be had.
    """
    config, tensors = _read(Path(path))
    network, forms = _outlined(config, tensors, weights, head, embedding, _positions(config, context_length))
    _warn_of_loss(weights, head, Path(path), network, forms, tensors)
    return _open(
        network,
        forms.kind,
        lambda consumed: rounding(forms, backend, consumed),
        backend=backend,
        threads=threads,
        isa=isa,
        kv_bytes=kv_bytes,
        memory_util=memory_util,
        memory_bytes=memory_bytes,
        num_pages=num_pages,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        progress=progress,
    )


def open_network(path: Path, *, weights: str | None = None, head: str | None = None, embedding: str | None = None, positions: int) -> Qwen:
    """The network of a model with the weights that `load_model` would run, for whoever looks at them. Raises what it raises."""
    network, forms = _outlined(*_read(path), weights, head, embedding, positions)
    network.prepare = rounding(forms, "reference", lambda data: None)
    return network


class MemoryNeed(NamedTuple):
    """Bytes that a model takes at least: weights, keys and values of one whole context (or `kv_bytes`), and the rest of its program."""

    weights: int
    kv: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)


def memory_need(
    path: Path,
    *,
    weights: str | None = None,
    head: str | None = None,
    embedding: str | None = None,
    context_length: int | None = None,
    kv_bytes: int | None = None,
) -> MemoryNeed:
    """What `load_model` would need, from the headers of the files. Raises what it raises."""
    config, tensors = _read(path)
    positions = _positions(config, context_length)
    context = -(-positions // PAGE_TOKENS) * page_bytes(config)
    network, forms = _outlined(config, tensors, weights, head, embedding, 1)
    return MemoryNeed(costs(network, forms.kind).weights_bytes, context if kv_bytes is None else kv_bytes, _RESERVE)


def stored_costs(path: Path, weights: str | None = None, head: str | None = None, embedding: str | None = None) -> Costs:
    """What a token of the model costs, from the headers of the files. Raises what `load_model` raises."""
    network, forms = _outlined(*_read(path), weights, head, embedding, 1)
    return costs(network, forms.kind)


def program_need() -> int:
    """Bytes of a program beside weights and pages."""
    return _RESERVE


class ModelFacts(NamedTuple):
    """What the headers of a model's files say."""

    config: ModelConfig
    parameters: int
    kind: str
    """Of most of them."""


def model_facts(path: Path) -> ModelFacts:
    """Raises what `load_model` raises."""
    config, tensors = _read(path)
    kinds: Counter[str] = Counter()
    for tensor in tensors.values():
        kinds[tensor.kind] += math.prod(tensor.shape)
    return ModelFacts(config, kinds.total(), kinds.most_common(1)[0][0] if kinds else "")


def context_window(path: Path) -> int:
    """Tokens that the model was made for. Raises what `load_model` raises."""
    return _read(path)[0].context_length


def _read(path: Path) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    if path.is_dir():
        checkpoint = read_directory(path)
        return from_hf(checkpoint.config), checkpoint.tensors
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    file = read_gguf(path)
    return from_gguf(file.metadata), file.tensors


def _outlined(
    config: ModelConfig, tensors: Mapping[str, Tensor], weights: str | None, head: str | None, embedding: str | None, positions: int
) -> tuple[Qwen, Forms]:
    """The network as it will be, and the kinds of its matrices."""
    forms = Forms.of(weights, head, embedding, quantised=_is_quantised(tensors))
    network = Qwen(config, tensors, positions=positions)
    forms.apply(network)
    return network, forms


def _is_quantised(tensors: Mapping[str, Tensor]) -> bool:
    """By the program that wrote the directory."""
    return any(isinstance(tensor, PackedTensor) for tensor in tensors.values())


def _warn_of_loss(weights: str | None, head: str | None, path: Path, network: Qwen, forms: Forms, tensors: Mapping[str, Tensor]) -> None:
    """Says in the log what a user might not expect."""
    if weights is None and head is None and _is_quantised(tensors):
        _log.warning("%s: the head is rounded to int8; --head stored keeps it as it is", path.name)
    packed = (tensor.kind for tensor in tensors.values() if isinstance(tensor, PackedTensor))
    if weights in WEIGHTS and (not path.is_dir() or any(kind != weights for kind in packed)):
        _log.warning("%s is rounded to %s on top of its own quantisation: answers lose quality a second time", path.name, weights)
        return
    for part in network.parts():
        if part.role not in ("head", "embedding"):
            continue
        tensor, role, kind = part.tensor, part.role, forms.kind(part.tensor, part.role)
        if kind not in (tensor.kind, "bf16") and tensor.kind not in DENSE_KINDS:
            _log.warning("%s: the %s is rounded from %s to %s: answers lose quality a second time", path.name, role, tensor.kind, kind)


def rounding(forms: Forms, backend: Backend, consumed: Consumed) -> Prepare:
    """What `Qwen` asks for each tensor so that it has the kind that `forms` say; the native runtime rounds while it packs.

    `consumed` is told of what is not needed any more.
    """

    def prepare(tensor: Tensor, role: Role) -> Tensor:
        kind = forms.kind(tensor, role)
        if isinstance(tensor, PackedTensor):
            natively = backend == "native" and _packed_natively(tensor, kind)
            arrays, tensor = tensor.arrays, narrowed(tensor) if natively else unpack(tensor)
            kept = {id(array) for array in tensor.arrays}
            for array in arrays:
                if id(array) not in kept:
                    consumed(array)
        if kind == tensor.kind:
            return tensor
        return round_tensor(tensor, kind) if backend == "reference" else RoundedTensor(tensor.name, kind, tensor.shape, np.empty(0, np.uint8), tensor)

    return prepare


def _packed_natively(tensor: Tensor, kind: str) -> bool:
    """Whether the native runtime makes its panels of the other program's words itself."""
    return isinstance(tensor, PackedTensor) and kind == tensor.kind and takes(tensor)


# --- random weights ------------------------------------------------------------------------------------------------

# hidden, intermediate, layers, heads, key-value heads, tied head, experts (count, top k, intermediate); head_dim 128 in all of them
_SHAPES: Mapping[str, tuple[int, int, int, int, int, bool, tuple[int, int, int] | None]] = {
    "0.6b": (1024, 3072, 28, 16, 8, True, None),
    "1.7b": (2048, 6144, 28, 16, 8, True, None),
    "4b": (2560, 9728, 36, 32, 8, True, None),
    "8b": (4096, 12288, 36, 32, 8, False, None),
    "14b": (5120, 17408, 40, 40, 8, False, None),
    "30b-a3b": (2048, 6144, 48, 32, 4, False, (128, 8, 768)),
    "32b": (5120, 25600, 64, 64, 8, False, None),
}
"""Qwen3 as released, by the number of their weights."""

SHAPES = tuple(_SHAPES)


def random_config(shape: str) -> ModelConfig:
    """The configuration of a released Qwen3."""
    if shape not in _SHAPES:
        raise UsageError(f"shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}", param="random")
    hidden, intermediate, layers, heads, kv_heads, tied, experts = _SHAPES[shape]
    return ModelConfig(
        architecture="qwen3" if experts is None else "qwen3_moe",
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        rms_norm_eps=1e-6,
        context_length=40960,
        rope=Rope(1e6),
        qk_norm=True,
        qkv_bias=False,
        tied_head=tied,
        experts=None if experts is None else Experts(*experts, True, 0, tuple(range(layers))),
    )


def random_model(
    shape: str,
    weights: str = "int4",
    *,
    head: str | None = None,
    embedding: str | None = None,
    backend: Backend = "native",
    threads: int | None = None,
    isa: str | None = None,
    context_length: int | None = 4096,
    kv_bytes: int | None = None,
    memory_util: float | None = None,
    memory_bytes: int | None = None,
    num_pages: int | None = None,
    max_batch_tokens: int = 512,
    max_sequences: int = 32,
    progress: Progress | None = None,
) -> Model:
    """A network of a released shape with random weights of the kinds that `load_model` would give it if it were in bf16, made a tensor at a time."""
    config = random_config(shape)
    if weights not in WEIGHTS:
        raise UsageError(f"weights {weights!r} is unknown; choose one of {', '.join(WEIGHTS)}", param="weights")
    positions = _positions(config, 4096 if context_length is None else context_length)
    forms = Forms.of(weights, head, embedding)
    network = random_network(replace(config, tied_head=config.tied_head and not forms.separate("bf16")), forms.kind, positions)
    forms.apply(network)
    return _open(
        network,
        lambda tensor, role: tensor.kind,
        lambda consumed: network.prepare,
        backend=backend,
        threads=threads,
        isa=isa,
        kv_bytes=kv_bytes,
        memory_util=memory_util,
        memory_bytes=memory_bytes,
        num_pages=num_pages,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        progress=progress,
    )


def random_network(config: ModelConfig, kind_of: Callable[[Tensor, Role], str], positions: int) -> Qwen:
    """A network whose matrices come into being when it is built; until then each is a view of one byte. `kind_of` is asked for each in bf16."""

    def prepare(tensor: Tensor, role: Role) -> Tensor:
        seed = zlib.crc32(tensor.name.encode())
        return Tensor(tensor.name, tensor.kind, tensor.shape, _random_blocks(tensor.kind, tensor.shape, seed))

    return Qwen(config, _HollowTensors(kind_of, bool(config.tied_head)), positions=positions, prepare=prepare)


class _HollowTensors:
    """A `TensorSource` that has whatever is asked for: vectors of ones, and matrices of the right kind that take no memory."""

    def __init__(self, kind_of: Callable[[Tensor, Role], str], tied: bool) -> None:
        self._kind_of = kind_of
        self._roles: Mapping[str, Role] = {"embedding": "head" if tied else "embedding", "head": "head", "router": "router"}

    def has(self, name: str) -> bool:
        return False

    def __call__(self, name: str, *shape: int, i: int = 0, e: int = 0) -> Tensor:
        full = f"{name}.{i}.{e}"
        if len(shape) == 1:
            return Tensor(full, "f32", shape, np.ones(shape, np.float32).view(np.uint8))
        kind = self._kind_of(Tensor(full, "bf16", shape, np.zeros(0, np.uint8)), self._roles.get(name, "linear"))
        return Tensor(full, kind, shape, np.broadcast_to(np.uint8(0), (tensor_nbytes(kind, shape),)))

    def experts(self, name: str, count: int, rows: int, columns: int, *, i: int) -> list[Tensor]:
        return [self(name, rows, columns, i=i, e=e) for e in range(count)]

    def check_nothing_is_left(self) -> None:
        pass


def _random_blocks(kind: str, shape: tuple[int, ...], seed: int) -> ByteArray:
    """Raw blocks with uniform codes and one scale, so that weights have a standard deviation near 1 / sqrt(columns)."""
    size = tensor_nbytes(kind, shape)
    generator = np.random.Generator(np.random.SFC64(seed))
    data = generator.integers(0, 1 << 64, -(-size // 8), dtype=np.uint64).view(np.uint8)[:size]
    if kind == "bf16":
        exponent = 127 - round(0.5 * math.log2(shape[-1]) + 0.6)
        bits = data.view("<u2")
        bits &= 0x807F
        bits |= exponent << 7
        return data
    blocks = data.reshape(-1, TENSOR_KINDS[kind].block_bytes)
    deviation = {"int4": 4.6, "int8": 73.0}[kind]
    blocks[:, :2] = np.array([1 / (deviation * math.sqrt(shape[-1]))], "<f2").view(np.uint8)
    if kind == "int4":
        blocks[:, 2] = 8
    else:
        codes = blocks[:, 2:].view(np.int8)
        np.maximum(codes, -127, out=codes)
    return data


# --- memory --------------------------------------------------------------------------------------------------------


def _open(
    network: Qwen,
    kind: Callable[[Tensor, Role], str],
    prepare: Callable[[Consumed], Prepare],
    *,
    backend: Backend,
    threads: int | None,
    isa: str | None,
    kv_bytes: int | None,
    memory_util: float | None,
    memory_bytes: int | None,
    num_pages: int | None,
    max_batch_tokens: int,
    max_sequences: int,
    progress: Progress | None,
) -> Model:
    """Counts memory, then builds. `kind` is that of each tensor after `prepare`, which is given whom to tell of stored bytes it is done with."""
    model_costs = costs(network, kind)
    pages = plan_pages(
        network.config,
        network.positions,
        model_costs.weights_bytes,
        available_memory() if memory_bytes is None else min(available_memory(), memory_bytes),
        kv_bytes=kv_bytes,
        memory_util=memory_util,
        num_pages=num_pages,
    )
    runner: _NativeRunner | _ReferenceRunner
    if backend == "reference":
        network.prepare = _remembering(prepare(lambda data: None))
        runner, isa, threads = _ReferenceRunner(network, bf16_tiles=_by_tiles(isa)), "reference", 1
    else:
        intake = _Intake(network, kind, progress or (lambda fraction: None))
        network.prepare = prepare(intake.consumed)
        runtime = Native(threads=threads, isa=isa, intake=intake)
        isa, threads = runtime.isa, runtime.threads
        without = isa_missing("amx")
        _log.info("instruction set %s, %d threads%s", isa, threads, f"; not amx: {without}" if without else "")
        max_logits = _max_logits(max_batch_tokens, max_sequences)
        runner = _NativeRunner(network, runtime, max_tokens=max_batch_tokens, max_logits=max_logits, num_pages=pages)
    if progress is not None:
        progress(1.0)
    return Model(
        network, runner, model_costs, num_pages=pages, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences, isa=isa, threads=threads
    )


class _Intake:
    """Stored bytes on their way into the model: what comes next is read ahead, what was used leaves the process, and progress counts it."""

    def __init__(self, network: Qwen, kind: Callable[[Tensor, Role], str], progress: Progress) -> None:
        parts = [part for part in network.parts() if part.role != "vector"]
        self._progress = progress
        self._total = sum(array.nbytes for part in parts for array in part.tensor.arrays)
        # What is unpacked here passes twice.
        unpacked = (
            part for part in parts if isinstance(part.tensor, PackedTensor) and not _packed_natively(part.tensor, kind(part.tensor, part.role))
        )
        self._total += sum(part.tensor.nbytes for part in unpacked)
        self._done = self._used = self._ahead = 0
        self._coming = (piece for part in parts for array in part.tensor.arrays if array.flags.c_contiguous for piece in _pieces(array.reshape(-1)))
        self._fetch()

    def file(self, data: AnyArray) -> tuple[int, int] | None:
        return location(data)

    def consumed(self, data: AnyArray) -> None:
        self._done += data.nbytes
        if release(data):
            self._used += data.nbytes
            self._fetch()
        self._progress(min(self._done / self._total, 1.0))

    def _fetch(self) -> None:
        while self._ahead < self._used + _AHEAD and (piece := next(self._coming, None)) is not None:
            read_ahead(piece)
            self._ahead += piece.nbytes


def _pieces(array: AnyArray) -> Iterator[AnyArray]:
    step = (8 << 20) // array.itemsize
    return (array[start : start + step] for start in range(0, array.size, step))


def _remembering(prepare: Prepare) -> Prepare:
    """The oracle builds its network for every batch; each tensor is prepared once."""
    known: dict[tuple[str, Role], Tensor] = {}

    def remember(tensor: Tensor, role: Role) -> Tensor:
        if (tensor.name, role) not in known:
            known[tensor.name, role] = prepare(tensor, role)
        return known[tensor.name, role]

    return remember


def plan_pages(
    config: ModelConfig,
    context_length: int,
    weights_bytes: int,
    available: int,
    *,
    kv_bytes: int | None = None,
    memory_util: float | None = None,
    num_pages: int | None = None,
) -> int:
    """How many KV pages to have: `num_pages`, or what fits into `kv_bytes`, or with the weights into a share of what is available, or a choice.

    Raises UsageError, with the numbers and the way out, where weights and pages do not fit.
    """
    one = page_bytes(config)
    whole = -(-context_length // PAGE_TOKENS)
    left = available - weights_bytes - _RESERVE
    if num_pages is None and kv_bytes is not None:
        num_pages = kv_bytes // one
    if num_pages is None and memory_util is not None:
        num_pages = int(available * memory_util - weights_bytes - _RESERVE) // one
        if num_pages < 1:
            raise UsageError(
                f"{memory_util:.0%} of {gigabytes(available)} of free memory do not hold the weights, {gigabytes(weights_bytes)}, the program, "
                f"{gigabytes(_RESERVE)}, and a page of keys and values: use a larger memory_util, smaller weights (int8, int4) or a smaller model",
                param="memory_util",
            )
    if num_pages is None:
        num_pages = max(whole, min(whole * _KV_CONTEXTS, int(left * _KV_SHARE) // one))
    if num_pages < 1:
        raise UsageError(f"the KV cache needs at least one page, {one} bytes; {kv_bytes} bytes were given", param="kv_gb")
    if num_pages * one > left:
        reach = max(0, left // one) * PAGE_TOKENS
        way_out = (
            f"a context of {reach} tokens fits: use a smaller context_length or kv_gb"
            if reach >= PAGE_TOKENS
            else "the weights alone do not fit: use smaller weights (int8, int4) or a smaller model"
        )
        raise UsageError(
            f"the weights need {gigabytes(weights_bytes)}, {num_pages} pages of keys and values {gigabytes(num_pages * one)} and the program "
            f"{gigabytes(_RESERVE)}, but {gigabytes(available)} of memory are free; {way_out}",
            param="context_length",
        )
    return num_pages


def available_memory() -> int:
    """Bytes that can be allocated without swapping, on this machine and in this container."""
    return min(_machine_memory(), _container_memory())


def _machine_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What the limit of the control group (version 2) leaves; 2^63 where there is none."""
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return 2**63


def _positions(config: ModelConfig, context_length: int | None) -> int:
    if context_length is None:
        return config.context_length
    if not 1 <= context_length <= config.context_length:
        raise UsageError(
            f"context_length {context_length} is not between 1 and the {config.context_length} that the model was made for", param="context_length"
        )
    return context_length
