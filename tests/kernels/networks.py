"""Small programs over `Ops`, random tensors of every kind, and batches, for the tests of the native runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qwenbox.kernels.native import Native, NativeProgram, isa_best
from qwenbox.kernels.program import MoeWeights, Ops, SharedExpert, Value
from qwenbox.kernels.reference import ReferenceRunner
from qwenbox.types import PAGE_TOKENS, TENSOR_KINDS, Batch, FloatArray, Span, Tensor, tensor_nbytes

HALVES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q8_0": (0,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "int4": (0,),
    "int8": (0,),
    "int4_64": (0,),
    "int4_32": (0,),
    "uint8": (0,),
}
"""Where the fp16 numbers of a block stand."""


def matrix(rng: np.random.Generator, kind: str, *shape: int, name: str = "w") -> Tensor:
    """Random blocks; the stored scales are small and of both signs where a file may have both."""
    count = int(np.prod(shape[:-1]))
    if kind == "f32":
        data = (rng.standard_normal((count, shape[-1])) / 8).astype(np.float32).view(np.uint8)
    elif kind == "f16":
        data = (rng.standard_normal((count, shape[-1])) / 8).astype(np.float16).view(np.uint8)
    elif kind == "bf16":
        data = ((rng.standard_normal((count, shape[-1])) / 8).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        info = TENSOR_KINDS[kind]
        blocks = rng.integers(0, 256, (count * -(-shape[-1] // info.block), info.block_bytes), dtype=np.uint8)
        for at in HALVES[kind]:
            blocks[:, at : at + 2] = (rng.standard_normal((len(blocks), 1)) / 256).astype("<f2").view(np.uint8)
        if kind.startswith("int4"):
            blocks[:, 2] &= 15
        data = blocks
    flat = np.ascontiguousarray(data).reshape(-1)
    assert flat.size == tensor_nbytes(kind, shape)
    return Tensor(name, kind, shape, flat)


def tensor(values: FloatArray, name: str = "t") -> Tensor:
    values = np.ascontiguousarray(values, np.float32)
    return Tensor(name, "f32", values.shape, values.view(np.uint8).reshape(-1))


def rotation(positions: int, head_dim: int) -> tuple[FloatArray, FloatArray]:
    half = head_dim // 2
    angles = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass
class Steps:
    """Something to build: the rows of `table` by id, then whatever `body` makes of them."""

    table: Tensor
    body: Callable[[Ops, Value], Value]

    def build(self, ops: Ops) -> None:
        x = ops.embed(ops.weight(self.table))
        ops.output(ops.logits_rows(self.body(ops, x)))


def rows_batch(count: int) -> Batch:
    """Row i is id i, and every row is wanted; one sequence that starts at position 0."""
    ids = np.arange(count, dtype=np.int32)
    return Batch(ids, [Span(0, count, 0, np.arange(-(-count // PAGE_TOKENS), dtype=np.int32))], ids)


def compiled(
    network: object, *, isa: str | None = None, threads: int = 2, tokens: int = 64, pages: int = 64, logits: int | None = None
) -> NativeProgram:
    runtime = Native(isa=isa, threads=threads)
    network.build(runtime)  # type: ignore[attr-defined]
    return runtime.compile(max_tokens=tokens, max_logits=tokens if logits is None else logits, num_pages=pages)


def reference(network: object, batches: Sequence[Batch], isa: str | None = None) -> list[FloatArray]:
    """What the contract demands of a variant, or of the one that `compiled` takes by itself."""
    runner = ReferenceRunner(network, bf16_tiles=(isa or isa_best()) == "amx")  # type: ignore[arg-type]
    return [runner.run(batch) for batch in batches]


def assert_equal(got: FloatArray, want: FloatArray, isa: str = "") -> None:
    """Bit for bit, but any NaN is a NaN and the two zeros are one."""
    assert got.shape == want.shape
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    assert same.all(), f"{isa} {np.count_nonzero(~same)} of {same.size} numbers differ, the first at {np.argwhere(~same)[0]}"


@dataclass
class Tiny:
    """A transformer of two layers with everything in it that Qwen2, Qwen3 and their mixtures use."""

    kinds: Sequence[str] = ("f32",)
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    inner: int = 256
    vocab: int = 90
    experts: int = 0
    top_k: int = 2
    shared: bool = False
    normalise: bool = True
    qk_norm: bool = True
    bias: bool = True
    positions: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        count = 0

        def next_matrix(n: int, k: int) -> Tensor:
            nonlocal count
            count += 1
            return matrix(rng, self.kinds[count % len(self.kinds)], n, k, name=f"w{count}")

        def next_vector(n: int) -> Tensor:
            return tensor(1 + rng.standard_normal(n) / 8)

        width, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.embedding = next_matrix(self.vocab, self.hidden)
        self.layers = []
        for _ in range(2):
            layer = {
                "norm": next_vector(self.hidden),
                "q": next_matrix(width, self.hidden),
                "k": next_matrix(kv, self.hidden),
                "v": next_matrix(kv, self.hidden),
                "bq": next_vector(width),
                "bk": next_vector(kv),
                "bv": next_vector(kv),
                "nq": next_vector(self.head_dim),
                "nk": next_vector(self.head_dim),
                "o": next_matrix(self.hidden, width),
                "norm2": next_vector(self.hidden),
            }
            layer["router"] = matrix(rng, "f32", max(self.experts, 1), self.hidden)
            layer["shared_router"] = matrix(rng, "f32", 1, self.hidden)
            kind_gate, kind_down = self.kinds[0], self.kinds[-1]
            many = max(self.experts, 1)
            for name, kind, n, k in (
                ("gate", kind_gate, self.inner, self.hidden),
                ("up", kind_gate, self.inner, self.hidden),
                ("down", kind_down, self.hidden, self.inner),
            ):
                layer[name] = matrix(rng, kind, many, n, k)
                layer["shared_" + name] = matrix(rng, kind, n, k)
            self.layers.append(layer)
        self.final = next_vector(self.hidden)
        self.rope = rotation(self.positions, self.head_dim)

    def build(self, ops: Ops) -> None:
        table = ops.weight(self.embedding)
        x = ops.embed(table)
        rope = ops.rope_table(*self.rope)
        for index, layer in enumerate(self.layers):
            h = ops.rms_norm(x, ops.vector(layer["norm"]), 1e-6)

            def project(name: str, h: Value = h, layer: dict[str, Tensor] = layer) -> Value:
                return ops.linear(h, ops.weight(layer[name]), ops.vector(layer["b" + name]) if self.bias else None)

            q, k, v = project("q"), project("k"), project("v")
            if self.qk_norm:
                q, k = ops.rms_norm(q, ops.vector(layer["nq"]), 1e-6), ops.rms_norm(k, ops.vector(layer["nk"]), 1e-6)
            q, k = ops.rope(q, rope, self.head_dim), ops.rope(k, rope, self.head_dim)
            mixed = ops.attention(q, k, v, layer=index, heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim)
            x = ops.add(x, ops.linear(mixed, ops.weight(layer["o"])))
            h = ops.rms_norm(x, ops.vector(layer["norm2"]), 1e-6)
            x = ops.add(x, self._feed_forward(ops, layer, h))
        ops.output(ops.linear(ops.rms_norm(ops.logits_rows(x), ops.vector(self.final), 1e-6), table))

    def _feed_forward(self, ops: Ops, layer: dict[str, Tensor], h: Value) -> Value:
        names = ("gate", "up", "down")
        if not self.experts:
            gate, up, down = (ops.weight(layer[name].expert(0)) for name in names)
            return ops.linear(ops.silu_mul(ops.linear(h, gate), ops.linear(h, up)), down)
        stacks = [ops.experts([layer[name].expert(e) for e in range(self.experts)]) for name in names]
        shared = SharedExpert(*(ops.weight(layer["shared_" + name]) for name in (*names, "router"))) if self.shared else None
        return ops.moe(h, MoeWeights(ops.weight(layer["router"]), *stacks, self.top_k, self.normalise, shared))
