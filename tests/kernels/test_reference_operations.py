"""The oracle against float64 formulas and against slow, literal readings of the contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from qwenbox.errors import EngineError, NumericalError
from qwenbox.kernels import quants, reference
from qwenbox.kernels.program import MoeWeights, SampleRow, SharedExpert
from qwenbox.kernels.reference import fma
from qwenbox.types import TENSOR_KINDS, FloatArray, SamplingParams, Span, Tensor, tensor_nbytes

f = np.float32
NO_IDS = np.empty(0, np.int32)


def matrix(kind: str, n: int, k: int, seed: int = 0) -> Tensor:
    """Random codes with scales of about 1 / sqrt(k), of either sign."""
    generator = np.random.default_rng(seed)
    if kind in quants.DENSE_KINDS:
        values = (generator.normal(size=(n, k)) / math.sqrt(k)).astype(f)
        whole = Tensor("w", "f32", (n, k), values.reshape(-1).view(np.uint8))
        return {
            "f32": lambda: whole,
            "bf16": lambda: quants.round_tensor(whole, "bf16"),
            "f16": lambda: Tensor("w", "f16", (n, k), values.astype("<f2").reshape(-1).view(np.uint8)),
        }[kind]()
    info = TENSOR_KINDS[kind]
    data = generator.integers(0, 256, tensor_nbytes(kind, (n, k)), dtype=np.uint8)
    blocks = data.reshape(-1, info.block_bytes)
    for at in {"q6_k": [208], "q4_1": [0, 2], "q4_k": [0, 2], "q5_k": [0, 2]}.get(kind, [0]):
        blocks[:, at : at + 2] = (generator.normal(size=(len(blocks), 1)) / 100).astype("<f2").view(np.uint8)
    return Tensor("w", kind, (n, k), data)


def literal_linear(x: FloatArray, w: Tensor) -> FloatArray:
    """The table of the contract, one scalar at a time, from dequantised integers."""
    if w.kind in quants.DENSE_KINDS:
        rows = quants.dequantize(w)
        out = np.zeros((len(x), len(rows)), f)
        for m in range(len(x)):
            for n in range(len(rows)):
                acc = f(0)
                for k in range(x.shape[1]):
                    acc = fma(rows[n, k], x[m, k], acc)
                out[m, n] = acc
        return out
    a, sa = reference.quantize_rows(x)
    codes = quants.codes(w)
    block = TENSOR_KINDS[w.kind].block
    step = min(block, 128)
    columns = codes.codes.shape[1]
    out = np.zeros((len(x), len(codes.codes)), f)
    for m in range(len(x)):
        for n in range(len(out[0])):
            acc = f(0)
            for start in range(0, columns, step):
                at, group = start // block, start // 128
                products = [int(codes.codes[n, k]) * int(a[m, k]) for k in range(start, start + step)]
                d = codes.scales[n, at]
                if codes.sub_scales is None:
                    acc = fma(f(sum(products)) * d, sa[m, group], acc)
                    if codes.mins is not None:
                        acc = fma(f(sum(int(v) for v in a[m, start : start + step])) * codes.mins[n, at], sa[m, group], acc)
                    continue
                sub = block // (codes.sub_scales.shape[1] // codes.scales.shape[1])
                total = minimum = 0
                for j in range(start // sub, (start + step) // sub):
                    run = slice(j * sub - start, (j + 1) * sub - start)
                    total += int(codes.sub_scales[n, j]) * sum(products[run])
                    if codes.sub_mins is not None:
                        minimum += int(codes.sub_mins[n, j]) * int(a[m, j * sub : (j + 1) * sub].astype(int).sum())
                acc = fma(f(total) * d, sa[m, group], acc)
                if codes.mins is not None:
                    acc = fma(f(minimum) * -codes.mins[n, at], sa[m, group], acc)
            out[m, n] = acc
    return out


@pytest.mark.parametrize("kind", list(TENSOR_KINDS))
@pytest.mark.parametrize("k", [256, 160])
def test_linear_is_the_literal_reading_of_the_contract(kind: str, k: int) -> None:
    if k % TENSOR_KINDS[kind].block and TENSOR_KINDS[kind].ggml_type is not None:
        k = 512
    x = np.random.default_rng(1).normal(size=(3, k)).astype(f)
    w = matrix(kind, 5, k)
    np.testing.assert_array_equal(reference.linear(x, w), literal_linear(x, w))


@pytest.mark.parametrize("kind", ["q5_k", "q6_k"])
def test_the_largest_integers_are_summed_exactly(kind: str) -> None:
    """All codes, sub-scales and activations at their ends: the sums pass 2^24, where float32 would lose bits."""
    w = matrix(kind, 4, 512)
    blocks = w.data.reshape(-1, TENSOR_KINDS[kind].block_bytes)
    if kind == "q5_k":
        blocks[:, 4:] = 255
    else:
        blocks[:, :192] = 0
        blocks[:, 192:208] = 128
    x = np.where(np.arange(512) % 5 == 0, f(0.996), f(1))[None].astype(f)
    np.testing.assert_array_equal(reference.linear(x, w), literal_linear(x, w))


def test_any_slice_of_rows_and_many_tiles_give_the_same_bits() -> None:
    x = np.random.default_rng(2).normal(size=(600, 256)).astype(f)
    w = matrix("q4_k", 300, 256)
    whole = reference.linear(x, w)
    np.testing.assert_array_equal(reference.linear(x[511:513], w), whole[511:513])
    bias = np.random.default_rng(3).normal(size=300).astype(f)
    np.testing.assert_array_equal(reference.linear(x, w, bias), whole + bias)


def literal_tiles(x: FloatArray, w: Tensor) -> FloatArray:
    """One output at a time, by loops."""
    tiny = f(2.0**-126)

    def flush(value: np.float32) -> np.float32:
        return np.copysign(f(0), value) if abs(value) < tiny else f(value)

    rounded = (reference.round_bf16(x).astype(np.uint32) << 16).view(f)
    dense = quants.dequantize(w)
    out = np.zeros((len(x), len(dense)), f)
    for m, row in enumerate(rounded):
        for n, channel in enumerate(dense):
            acc = f(0)
            for start in range(0, x.shape[1], 32):
                chains = [f(0), f(0)]
                for k in range(start, min(start + 32, x.shape[1])):
                    chains[k % 2] = flush(fma(flush(channel[k]), flush(row[k]), chains[k % 2]))
                acc = flush(acc + flush(chains[0] + chains[1]))
            out[m, n] = acc
    return out


def test_bf16_by_tiles_is_the_literal_reading_of_the_contract() -> None:
    rng = np.random.default_rng(6)
    for k, scale in ((96, 1), (75, 1), (75, 2.0**-124)):  # a whole number of runs; not; denormals everywhere
        x = (rng.normal(size=(3, k)) * scale).astype(f)
        w = matrix("bf16", 5, k)
        np.testing.assert_array_equal(reference.linear(x, w, bf16_tiles=True), literal_tiles(x, w))


def test_bf16_by_tiles_differs_from_float32_inputs_by_no_more_than_their_rounding() -> None:
    k = 1500
    x = np.random.default_rng(7).normal(size=(40, k)).astype(f)
    w = matrix("bf16", 30, k)
    size = np.abs(x).astype(np.float64) @ np.abs(quants.dequantize(w)).astype(np.float64).T
    bound = (2.0**-8 + 2 * (k + 32) * 2.0**-24 * (1 + 2.0**-8)) * size
    difference = np.abs(reference.linear(x, w, bf16_tiles=True).astype(np.float64) - reference.linear(x, w))
    assert (difference <= bound).all()
    assert (difference > 0).any()


@pytest.mark.parametrize("kind", [kind for kind in TENSOR_KINDS if kind not in quants.DENSE_KINDS])
def test_linear_is_close_to_the_product_with_the_dequantised_matrix(kind: str) -> None:
    x = np.random.default_rng(4).normal(size=(8, 512)).astype(f)
    w = matrix(kind, 32, 512)
    dense = quants.dequantize(w).astype(np.float64)
    a, sa = reference.quantize_rows(x)
    rounded = (a.reshape(8, 4, 128) * sa[..., None].astype(np.float64)).reshape(8, 512)
    size = np.abs(rounded) @ np.abs(dense).T
    # The integers are exact; what is left are roundings of scales and sums, at most 8 in a group of 128, each of half a unit, and cancellation
    # between codes and minimum, whose parts `size` does not see.
    tolerance = 1e-4 if quants.codes(w).mins is not None else 64 * 2.0**-24
    assert (np.abs(reference.linear(x, w) - rounded @ dense.T) <= tolerance * size).all()


def test_rounding_of_activations_is_half_a_step_at_most_and_poison_stays_in_its_row() -> None:
    x = np.random.default_rng(5).normal(size=(6, 300)).astype(f)
    x[1, 128:256] = 0
    x[2, 5] = np.nan
    x[3, 299] = np.inf
    x[4, 256:] = 1e-38
    a, sa = reference.quantize_rows(x)
    assert (a.shape, sa.shape) == ((6, 384), (6, 3))
    back = (a.reshape(6, 3, 128) * sa[..., None]).reshape(6, 384)[:, :300]
    assert (np.abs(back[0] - x[0]) <= np.repeat(sa[0], 128)[:300] * 0.5001).all()
    assert sa[1, 1] == 0
    assert np.isnan(sa[2, 0])
    assert np.isnan(sa[3, 2])
    assert sa[4, 2] == 0, "127 / amax overflows: the group counts as zero"
    y = reference.linear(x, matrix("int8", 7, 300))
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), [False, False, True, True, False, False])
    assert not np.isnan(y[[0, 1, 4, 5]]).any()


def test_embed_gives_dequantised_rows_and_refuses_ids_outside() -> None:
    table = matrix("q5_0", 50, 64)
    ids = np.array([3, 49, 3], np.int32)
    np.testing.assert_array_equal(reference.embed(table, ids), quants.dequantize(table)[ids])
    for bad in (-1, 50):
        with pytest.raises(EngineError, match="50 rows"):
            reference.embed(table, np.array([bad], np.int32))


# --- attention -----------------------------------------------------------------------------------------------------


def literal_attention(q: FloatArray, k: FloatArray, v: FloatArray, position: int) -> FloatArray:
    """One query row of one head at a time, block by block, as the contract reads."""
    m, heads, d = q.shape
    out = np.zeros_like(q)
    scale = f(1 / math.sqrt(d))
    for row in range(m):
        p = position + row
        for head in range(heads):
            kv = head * k.shape[1] // heads
            best, mass, o = f(-np.inf), f(0), np.zeros(d, f)
            for begin in range(0, p + 1, 256):
                tokens = range(begin, min(begin + 256, p + 1))
                s = np.full(256, -np.inf, f)
                acc = np.zeros(len(tokens), f)
                for i in range(d):
                    acc = fma(q[row, head, i], k[tokens.start : tokens.stop, kv, i], acc)
                s[: len(tokens)] = acc * scale
                block_best = s.max()
                e = np.where(s > -np.inf, reference.exp(s - block_best), f(0))
                o_c = np.zeros(d, f)
                for t in tokens:
                    o_c = fma(e[t - begin], v[t, kv], o_c)
                joint = max(best, block_best)
                a, b = reference.exp(np.array([best - joint, block_best - joint], f))
                mass = fma(mass, a, reference.sum16(e) * b)
                o = fma(o, a, o_c * b)
                best = joint
            out[row, head] = o / mass
    return out


@pytest.mark.parametrize(("position", "rows"), [(0, 3), (254, 4), (510, 3)])
def test_attention_is_the_literal_reading_of_the_contract(position: int, rows: int) -> None:
    generator = np.random.default_rng(6)
    q, k, v = (generator.normal(size=shape).astype(f) for shape in ((rows, 4, 16), (position + rows, 2, 16), (position + rows, 2, 16)))
    np.testing.assert_array_equal(reference.attention(q, k, v, position), literal_attention(q, k, v, position))


def test_attention_in_chunks_is_attention_at_once_and_later_nan_does_not_reach_back() -> None:
    generator = np.random.default_rng(7)
    q, k, v = (generator.normal(size=shape).astype(f) for shape in ((300, 4, 16), (300, 2, 16), (300, 2, 16)))
    whole = reference.attention(q, k, v, 0)
    np.testing.assert_array_equal(reference.attention(q[290:], k, v, 290), whole[290:])
    k[299], v[299] = np.nan, np.nan
    with np.errstate(invalid="ignore"):
        poisoned = reference.attention(q, k, v, 0)
    np.testing.assert_array_equal(poisoned[:299], whole[:299])
    assert np.isnan(poisoned[299]).all()


def test_attention_is_softmax_attention() -> None:
    generator = np.random.default_rng(8)
    q, k, v = (generator.normal(size=(40, 1, 32)).astype(f) for _ in range(3))
    s = (q[:, 0].astype(np.float64) @ k[:, 0].T) / math.sqrt(32)
    s[np.triu_indices(40, 1)] = -np.inf
    p = np.exp(s - s.max(1, keepdims=True))
    np.testing.assert_allclose(reference.attention(q, k, v, 0)[:, 0], (p / p.sum(1, keepdims=True)) @ v[:, 0], atol=2e-6)


def test_pages_keep_bf16_rows_wherever_their_span_says_and_other_rows_zero() -> None:
    generator = np.random.default_rng(9)
    pages = reference.Pages()
    rows = generator.normal(size=(40, 2, 16)).astype(f)
    span = Span(0, 40, 0, np.array([7, 2], np.int32))
    pages.store(0, span, rows, -rows)
    keys, values = pages.load(0, span)
    bf16 = (reference.round_bf16(rows).astype(np.uint32) << 16).view(f)
    np.testing.assert_array_equal(keys, bf16)
    np.testing.assert_array_equal(values, -bf16)
    more, _ = pages.load(0, Span(0, 64, 0, np.array([7, 2], np.int32)))
    assert (more[40:] == 0).all()
    pages.store(0, Span(0, 1, 40, np.array([7, 2, 11], np.int32)), rows[:1], rows[:1])
    again, _ = pages.load(0, Span(0, 1, 40, np.array([7, 2, 11], np.int32)))
    np.testing.assert_array_equal(again[:40], bf16)


# --- experts -------------------------------------------------------------------------------------------------------


def moe_weights(top_k: int, *, normalise: bool, shared: bool) -> MoeWeights:
    stacks = {
        name: [matrix("int8", n, k, seed=10 * e + i) for e in range(4)]
        for i, (name, n, k) in enumerate((("gate", 24, 32), ("up", 24, 32), ("down", 32, 24)))
    }
    extra = (
        SharedExpert(matrix("f32", 16, 32, 90), matrix("f32", 16, 32, 91), matrix("f32", 32, 16, 92), matrix("f32", 1, 32, 93)) if shared else None
    )
    return MoeWeights(matrix("f32", 4, 32, 94), stacks["gate"], stacks["up"], stacks["down"], top_k, normalise, extra)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_experts_of_a_token_add_up_in_ascending_order(normalise: bool, shared: bool) -> None:
    moe = moe_weights(2, normalise=normalise, shared=shared)
    x = np.random.default_rng(11).normal(size=(6, 32)).astype(f)
    got = reference.mixture(x, moe)
    for row in range(6):
        one = x[row : row + 1]
        p = reference.softmax(reference.linear(one, moe.router))[0]
        order = sorted(range(4), key=lambda e: (-p[e], e))[:2]
        total = p[order[0]] + p[order[1]] if normalise else f(1)
        out = np.zeros((1, 32), f)
        for e in sorted(order):
            y = reference.linear(reference.silu_mul(reference.linear(one, moe.gate[e]), reference.linear(one, moe.up[e])), moe.down[e])
            out = fma(p[e] / total, y, out)
        if moe.shared is not None:
            y = reference.linear(reference.silu_mul(reference.linear(one, moe.shared.gate), reference.linear(one, moe.shared.up)), moe.shared.down)
            out = fma(reference.sigmoid(reference.linear(one, moe.shared.router)), y, out)
        np.testing.assert_array_equal(got[row], out[0])


def test_a_tie_between_experts_goes_to_the_lower_id() -> None:
    router = Tensor("router", "f32", (4, 32), np.zeros(4 * 32, f).view(np.uint8))
    moe = moe_weights(2, normalise=True, shared=False)
    tied = MoeWeights(router, moe.gate, moe.up, moe.down, 2, True)
    x = np.random.default_rng(12).normal(size=(1, 32)).astype(f)
    out = np.zeros((1, 32), f)
    for e in (0, 1):
        y = reference.linear(reference.silu_mul(reference.linear(x, moe.gate[e]), reference.linear(x, moe.up[e])), moe.down[e])
        out = fma(f(0.5), y, out)
    np.testing.assert_array_equal(reference.mixture(x, tied), out)


# --- sampling ------------------------------------------------------------------------------------------------------


def row(position: int = 0, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), limit: int = 100, **params: object) -> SampleRow:
    return SampleRow(SamplingParams(**params), np.array(prompt, np.int32), np.array(output, np.int32), position, limit)  # type: ignore[arg-type]


@pytest.fixture
def logits() -> FloatArray:
    return np.random.default_rng(13).normal(size=120).astype(f) * f(3)


def chosen(logits: FloatArray, count: int = 200, **params: object) -> set[int]:
    return {reference.sample_row(logits, row(position, **params)).id for position in range(count)}  # type: ignore[arg-type]


def test_temperature_zero_takes_the_largest_below_the_limit_and_ties_to_the_lowest_id(logits: FloatArray) -> None:
    logits[110] = 99
    logits[[7, 60]] = 50
    assert reference.sample_row(logits, row(temperature=0.0)).id == 7


def test_top_k_top_p_and_min_p_keep_the_right_candidates(logits: FloatArray) -> None:
    order = np.argsort(-logits[:100], kind="stable")
    p = np.exp(logits[:100][order].astype(np.float64))
    p /= p.sum()
    assert chosen(logits, top_k=3) == set(order[:3].tolist())
    kept = int(np.searchsorted(np.cumsum(p), 0.6)) + 1
    assert chosen(logits, top_p=0.6) == set(order[:kept].tolist())
    assert chosen(logits, top_p=1e-9) == {order[0]}
    assert chosen(logits, min_p=0.3) == set(order[p >= 0.3 * p[0]].tolist())


def test_draws_follow_the_probabilities(logits: FloatArray) -> None:
    small = logits[:6]
    counts = np.bincount([reference.sample_row(small, row(position, limit=6)).id for position in range(2000)], minlength=6) / 2000
    p = np.exp(small.astype(np.float64))
    p /= p.sum()
    # Five standard deviations of a binomial share.
    assert (np.abs(counts - p) <= 5 * np.sqrt(p * (1 - p) / 2000)).all()


def test_the_draw_depends_on_seed_choice_and_position_only() -> None:
    draws = {reference.uniform(seed, choice, position) for seed in range(5) for choice in range(5) for position in range(5)}
    assert len(draws) == 125
    assert all(0 <= u < 1 for u in draws)
    assert reference.uniform(2**64 - 1, 3, 4) == reference.uniform(-1, 3, 4)


def test_penalties_and_bias_change_the_logits_they_name(logits: FloatArray) -> None:
    best, second = np.argsort(-logits[:100], kind="stable")[:2].tolist()

    def greedy(**params: object) -> int:
        return reference.sample_row(logits, row(temperature=0.0, **params)).id  # type: ignore[arg-type]

    assert greedy() == best
    assert greedy(logit_bias={best: -100.0}) == second
    assert greedy(logit_bias={5: 100.0, 119: 1000.0}) == 5
    assert greedy(output=(best,), presence_penalty=50.0) == second
    assert greedy(prompt=(best,), presence_penalty=50.0) == best
    assert greedy(output=(best, best), frequency_penalty=30.0) == second
    assert greedy(prompt=(best,), repetition_penalty=100.0) == second
    assert greedy(prompt=(119,), output=(119,), repetition_penalty=2.0, presence_penalty=1.0) == best


def test_log_probabilities_come_from_the_raw_logits(logits: FloatArray) -> None:
    result = reference.sample_row(logits, row(temperature=0.0, logit_bias={3: 100.0}, logprobs=2))
    truth = logits[:100].astype(np.float64)
    truth = truth - truth.max() - np.log(np.exp(truth - truth.max()).sum())
    assert result.id == 3
    assert result.logprob == pytest.approx(truth[3], abs=2e-6)
    assert result.top is not None
    assert [token for token, _ in result.top] == np.argsort(-truth, kind="stable")[:2].tolist()
    assert [value for _, value in result.top] == pytest.approx(np.sort(truth)[::-1][:2].tolist(), abs=2e-6)


@pytest.mark.parametrize("poison", [lambda x: x.__setitem__(4, np.nan), lambda x: x.__setitem__(4, np.inf), lambda x: x.fill(-np.inf)])
def test_logits_that_are_not_numbers_are_an_error(logits: FloatArray, poison: Callable[[FloatArray], None]) -> None:
    poison(logits)
    with pytest.raises(NumericalError):
        reference.sample_row(logits, row())
