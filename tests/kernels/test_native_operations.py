"""Every operation of the runtime gives the numbers of the contract oracle, in every instruction-set variant of this machine."""

from __future__ import annotations

from functools import cache
from itertools import groupby

import numpy as np
import pytest

from qwenbox.kernels import native
from qwenbox.kernels.program import MoeWeights, Ops, SharedExpert, Value
from qwenbox.types import TENSOR_KINDS, Batch, FloatArray, Span
from tests.kernels.networks import Steps, Tiny, assert_equal, compiled, matrix, reference, rotation, rows_batch, tensor

ISAS = native.isa_available()
QUANTISED = [kind for kind in TENSOR_KINDS if kind not in ("f32", "f16", "bf16")]

each_isa = pytest.mark.parametrize("isa", ISAS)


def check(network: object, *batches: Batch) -> None:
    """In every variant: the contract oracle is asked once for those that share its numbers."""
    for _, isas in groupby(ISAS, key=lambda isa: isa == "amx"):
        want: list[FloatArray] = []
        for isa in isas:
            want = want or reference(network, batches, isa)
            program = compiled(network, isa=isa, tokens=max(batch.num_tokens for batch in batches))
            for batch, numbers in zip(batches, want, strict=True):
                assert_equal(program.run(batch), numbers, isa)
            program.close()


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_a_product_with_any_kind_of_weight_is_that_of_the_contract(kind: str) -> None:
    rng = np.random.default_rng(1)
    k = 512 if kind.endswith("_k") else 288  # 288: the last group of 128 is partly padding
    for rows in (1, 5, 37):
        x = rng.standard_normal((rows, k)).astype(np.float32)
        x[0, :128] = 0
        weight, bias = matrix(rng, kind, 150, k), tensor(rng.standard_normal(150))
        check(Steps(tensor(x), lambda ops, x, w=weight, b=bias: ops.linear(x, ops.weight(w), ops.vector(b))), rows_batch(rows))


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_an_embedding_of_any_kind_is_dequantised_exactly(kind: str) -> None:
    table = matrix(np.random.default_rng(2), kind, 70, 256)
    check(Steps(table, lambda ops, x: x), rows_batch(70))


def test_norms_rotations_and_elementwise_operations_are_those_of_the_contract() -> None:
    rng = np.random.default_rng(3)
    for width, head_dim in ((80, 16), (192, 64), (144, 48), (1024, 128)):
        x = (rng.standard_normal((33, width)) * np.exp(rng.uniform(-80, 40, (33, 1)))).astype(np.float32)
        whole, part = tensor(rng.standard_normal(width)), tensor(rng.standard_normal(head_dim))
        table = rotation(64, head_dim)

        def body(ops: Ops, x: Value, whole=whole, part=part, table=table, head_dim=head_dim) -> Value:  # type: ignore[no-untyped-def]
            normed = ops.rms_norm(x, ops.vector(whole), 1e-6)
            turned = ops.rope(ops.rms_norm(normed, ops.vector(part), 1e-5), ops.rope_table(*table), head_dim)
            return ops.add(ops.silu_mul(x, turned), normed)

        if width % head_dim == 0:
            check(Steps(tensor(x), body), rows_batch(33))


@each_isa
def test_silu_keeps_denormals_infinities_and_nan(isa: str) -> None:
    values = np.array([0.0, -0.0, 1e-45, -1e-45, 87.0, -87.0, -88.0, 88.5, 1e38, -1e38, 3e38, -3e38, 3e-39, -100.0, 5.0, 1.0], np.float32)
    ones = np.ones_like(values)
    table = tensor(np.stack([values, ones]))
    networks = [
        Steps(table, lambda ops, x: ops.add(ops.silu_mul(x, x), x)),
        Steps(table, lambda ops, x: ops.silu_mul(ops.add(x, x), ops.add(x, x))),  # twice 3e38 is infinite
        Steps(table, lambda ops, x: ops.silu_mul(not_numbers(ops, x), x)),
    ]
    batch = rows_batch(2)
    for network in networks:
        with np.errstate(all="ignore"):
            (want,) = reference(network, [batch])
        program = compiled(network, isa=isa, threads=1)
        assert_equal(program.run(batch), want)
        if network is networks[0]:
            assert program.run(batch)[0, 2] == np.float32(1e-45) > 0
    assert np.isnan(want[0]).all()


def not_numbers(ops: Ops, x: Value) -> Value:
    """Of a row with twice 3e38 and twice -3e38 in it: the sum of both infinities."""
    ones = tensor(np.ones((16, 16)))
    return ops.linear(ops.add(x, x), ops.weight(ones))


def attention_network(rng: np.random.Generator, rows: int, heads: int, kv_heads: int, head_dim: int) -> Steps:
    width, kv = heads * head_dim, kv_heads * head_dim
    x = rng.standard_normal((rows, 32)).astype(np.float32)
    q, k, v = (matrix(rng, "f32", n, 32) for n in (width, kv, kv))

    def body(ops: Ops, x: Value) -> Value:
        projected = (ops.linear(x, ops.weight(w)) for w in (q, k, v))
        return ops.attention(*projected, layer=0, heads=heads, kv_heads=kv_heads, head_dim=head_dim)

    return Steps(tensor(x), body)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 4, 16), (2, 1, 48), (3, 1, 64), (8, 2, 128), (5, 1, 32), (6, 1, 16), (14, 2, 64), (8, 1, 16)]
)
def test_attention_over_several_blocks_is_that_of_the_contract(heads: int, kv_heads: int, head_dim: int) -> None:
    rows = 300
    network = attention_network(np.random.default_rng(4), rows, heads, kv_heads, head_dim)
    check(network, rows_batch(rows))


def split_batches(rng: np.random.Generator, rows: int) -> list[Batch]:
    """The rows of one sequence in runs of random length, on pages in random order."""
    pages = rng.permutation(40)[: -(-rows // 32)].astype(np.int32)
    batches, start = [], 0
    while start < rows:
        length = min(int(rng.choice([1, 1, 2, 3, 17, 40, 64])), rows - start)
        ids = np.arange(start, start + length, dtype=np.int32)
        batches.append(Batch(ids, [Span(0, length, start, pages[: -(-(start + length) // 32)])], np.arange(length, dtype=np.int32)))
        start += length
    return batches


@each_isa
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_are_the_same_however_a_sequence_is_cut_and_wherever_its_pages_lie(isa: str, threads: int) -> None:
    rows = 330
    network = Tiny(kinds=("q4_k", "q6_k", "q8_0", "int4"), vocab=rows)
    whole = compiled(network, isa=isa, threads=threads, tokens=rows).run(rows_batch(rows))
    for seed in range(3):
        program = compiled(network, isa=isa, threads=threads)
        parts = [program.run(batch) for batch in split_batches(np.random.default_rng(seed), rows)]
        assert_equal(np.concatenate(parts), whole)


@cache
def long_context() -> tuple[Steps, FloatArray]:
    """Attention over 1,100 tokens, and its rows when one thread makes them in one step."""
    network = attention_network(np.random.default_rng(5), 1100, 6, 2, 48)
    return network, compiled(network, threads=1, tokens=1100, pages=80).run(rows_batch(1100))


@each_isa
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_long_context_that_threads_share_gives_the_bits_of_one_that_they_do_not(isa: str, threads: int) -> None:
    network, whole = long_context()
    program = compiled(network, isa=isa, threads=threads, tokens=len(whole), pages=80)
    first, second = np.arange(40)[::-1].astype(np.int32), np.arange(40, 80).astype(np.int32)

    def run(*parts: tuple[np.ndarray, int, int]) -> None:
        """(pages, begin, end) of each span; every row is compared."""
        ids = np.concatenate([np.arange(begin, end, dtype=np.int32) for _, begin, end in parts])
        starts = np.cumsum([0] + [end - begin for _, begin, end in parts])
        spans = [Span(int(start), end - begin, begin, pages) for start, (pages, begin, end) in zip(starts, parts, strict=False)]
        assert_equal(program.run(Batch(ids, spans, np.arange(len(ids), dtype=np.int32))), whole[ids])

    run((first, 0, 254))
    for begin in (254, 255, 256, 257):  # contexts of 255, 256, 257 and 258 tokens
        run((first, begin, begin + 1))
    run((first, 258, 1000))
    run((first, 1000, 1001))
    run((first, 1001, 1017), (second, 0, 1))
    run((second, 1, 700), (first, 1017, 1018))
    run((second, 700, 701), (first, 1018, 1020))
    run((first, 1020, 1036), (second, 701, 714))  # rows on both sides of 1024 write what they read


@pytest.mark.parametrize("experts", [0, 6])
def test_all_variants_and_thread_counts_give_the_same_bits(experts: int) -> None:
    network = Tiny(kinds=("q5_0", "q4_1", "f16", "q5_k"), experts=experts, shared=bool(experts))
    batch = rows_batch(90)
    results = [compiled(network, isa=isa, threads=threads, tokens=90).run(batch) for isa in ISAS for threads in (1, 2, 3)]
    assert all(np.array_equal(result.view(np.uint32), results[0].view(np.uint32)) for result in results)


@each_isa
def test_bf16_weights_give_the_same_bits_for_any_thread_count_and_slice_within_a_variant(isa: str) -> None:
    network = Tiny(kinds=("bf16", "int8"), experts=4, shared=True)
    whole = compiled(network, isa=isa, threads=1, tokens=90).run(rows_batch(90))
    program = compiled(network, isa=isa, threads=3, tokens=90)
    pages = np.arange(3, dtype=np.int32)
    for start, stop in ((0, 1), (1, 40), (40, 90)):
        ids = np.arange(start, stop, dtype=np.int32)
        part = program.run(Batch(ids, [Span(0, stop - start, start, pages)], ids - start))
        assert np.array_equal(part.view(np.uint32), whole[start:stop].view(np.uint32))


@each_isa
def test_sequences_of_one_batch_do_not_touch_each_other(isa: str) -> None:
    network = Tiny(kinds=("q8_0",))
    alone = []
    for sequence in range(4):
        program = compiled(network, isa=isa)
        first = Batch(np.arange(sequence, sequence + 40, dtype=np.int32), [Span(0, 40, 0, np.array([3, 1], np.int32))], np.array([39], np.int32))
        second = Batch(np.array([5], np.int32), [Span(0, 1, 40, np.array([3, 1], np.int32))], np.array([0], np.int32))
        alone.append([program.run(first), program.run(second)])
    program = compiled(network, isa=isa, tokens=160)
    pages = [np.array([2 * i + 1, 2 * i], np.int32) for i in range(4)]
    ids = np.concatenate([np.arange(s, s + 40) for s in range(4)]).astype(np.int32)
    together = program.run(Batch(ids, [Span(40 * i, 40, 0, pages[i]) for i in range(4)], np.array([39, 79, 119, 159], np.int32)))
    after = program.run(Batch(np.full(4, 5, np.int32), [Span(i, 1, 40, pages[i]) for i in range(4)], np.arange(4, dtype=np.int32)))
    for i in range(4):
        assert_equal(together[i : i + 1], alone[i][0])
        assert_equal(after[i : i + 1], alone[i][1])


def mixture(rng: np.random.Generator, kind: str, rows: int, experts: int, top_k: int, *, normalise: bool, shared: bool) -> Steps:
    hidden, inner = 256, 256
    x = rng.standard_normal((rows, hidden)).astype(np.float32)
    router = matrix(rng, "f32", experts, hidden)
    stacks = [matrix(rng, kind, experts, *shape) for shape in ((inner, hidden), (inner, hidden), (hidden, inner))]
    common = [matrix(rng, kind, *shape) for shape in ((inner, hidden), (inner, hidden), (hidden, inner))] + [matrix(rng, "f32", 1, hidden)]

    def body(ops: Ops, x: Value) -> Value:
        extra = SharedExpert(*(ops.weight(w) for w in common)) if shared else None
        parts = [ops.experts([stack.expert(e) for e in range(experts)]) for stack in stacks]
        return ops.moe(x, MoeWeights(ops.weight(router), *parts, top_k, normalise, extra))

    return Steps(tensor(x), body)


@pytest.mark.parametrize("kind", ["f32", "q4_k", "int4"])
@pytest.mark.parametrize(
    ("experts", "top_k", "normalise", "shared"), [(8, 3, True, False), (5, 5, False, True), (40, 2, False, False), (1, 1, True, True)]
)
def test_a_mixture_of_experts_is_that_of_the_contract(kind: str, experts: int, top_k: int, normalise: bool, shared: bool) -> None:
    network = mixture(np.random.default_rng(6), kind, 19, experts, top_k, normalise=normalise, shared=shared)
    for rows in (1, 19):
        check(network, rows_batch(rows))


@each_isa
def test_experts_that_do_not_fit_the_gathered_rows_at_once_give_the_same_numbers(isa: str) -> None:
    rows = 700  # 2100 places, more than pass through the experts at a time
    network = mixture(np.random.default_rng(7), "int8", rows, 7, 3, normalise=True, shared=True)
    whole = compiled(network, isa=isa, tokens=rows).run(rows_batch(rows))
    alone = compiled(network, isa=isa, tokens=1)
    for row in range(0, rows, 23):
        one = Batch(np.array([row], np.int32), [Span(0, 1, 0, np.zeros(1, np.int32))], np.zeros(1, np.int32))
        assert_equal(alone.run(one), whole[row : row + 1])


def test_equal_probabilities_choose_the_lower_expert() -> None:
    rng = np.random.default_rng(8)
    network = mixture(rng, "f32", 4, 6, 2, normalise=False, shared=False)
    same = Steps(tensor(np.zeros((4, 256), np.float32)), network.body)
    check(same, rows_batch(4))


@pytest.mark.parametrize("kinds", [("f32",), ("f16", "bf16"), ("q4_k", "q6_k"), ("q4_0", "q5_0", "q8_0", "q4_1"), ("q5_k", "int8", "int4")])
@pytest.mark.parametrize("experts", [0, 5])
def test_a_whole_network_is_that_of_the_contract(kinds: tuple[str, ...], experts: int) -> None:
    network = Tiny(kinds=kinds, experts=experts, shared=experts > 0)
    pages = np.array([4, 2], np.int32)
    batches = [
        Batch(np.arange(33, dtype=np.int32), [Span(0, 33, 0, pages)], np.array([0, 31, 32], np.int32)),
        Batch(np.array([7], np.int32), [Span(0, 1, 33, pages)], np.array([0], np.int32)),
        Batch(np.array([9, 8, 3], np.int32), [Span(0, 1, 34, pages), Span(1, 2, 0, np.array([0], np.int32))], np.array([0, 2], np.int32)),
    ]
    check(network, *batches)


@pytest.mark.parametrize("kind", QUANTISED)
def test_nan_in_one_row_stays_in_that_row(kind: str) -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((6, 256)).astype(np.float32)
    clean, dirty = x.copy(), x.copy()
    dirty[2, 200], dirty[4, 3] = -3e38, 3e38  # twice that is infinite
    weight = matrix(rng, kind, 70, 256)

    def run(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return compiled(Steps(tensor(values), lambda ops, x: ops.linear(ops.add(x, x), ops.weight(weight)))).run(rows_batch(6))

    got, want = run(dirty), run(clean)
    assert np.isnan(got[[2, 4]]).all()
    assert_equal(got[[0, 1, 3, 5]], want[[0, 1, 3, 5]])
