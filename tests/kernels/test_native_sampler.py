"""The native sampler chooses what the contract oracle chooses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbox.errors import EngineError, NumericalError
from qwenbox.kernels import reference
from qwenbox.kernels.native import Native, isa_available
from qwenbox.kernels.program import MaskArray, SampleResult, SampleRow
from qwenbox.types import FloatArray, SamplingParams

RUNTIME = Native(threads=2)
NONE = np.empty(0, np.int32)


def sample(logits: FloatArray, *rows: SampleRow) -> list[SampleResult]:
    return RUNTIME.sample(np.atleast_2d(logits), rows)


def row(vocab: int, *, prompt: object = (), output: object = (), position: int = 3, allowed: MaskArray | None = None, **params: object) -> SampleRow:
    return SampleRow(SamplingParams(**params), np.array(prompt, np.int32), np.array(output, np.int32), position, vocab, allowed)  # type: ignore[arg-type]


def mask(vocab: int, ids: object) -> MaskArray:
    """Allows these ids."""
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[ids] = 1  # type: ignore[call-overload]
    return np.packbits(bits, bitorder="little").view("<u4")


parameters = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.01, 0.6, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 2, 20, 500, 1500, 10_000]),
        "top_p": st.sampled_from([1e-9, 0.1, 0.8, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        "presence_penalty": st.sampled_from([0.0, 1.5, -1.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.3, -0.7]),
        "repetition_penalty": st.sampled_from([1.0, 1.05, 1.3, 0.8]),
        "logit_bias": st.dictionaries(st.integers(0, 2999), st.floats(-100, 100, width=32), max_size=5),
        "seed": st.integers(0, 2**64 - 1),
        "choice": st.integers(0, 10),
        "logprobs": st.sampled_from([None, 0, 1, 20]),
    },
)


@settings(max_examples=400, deadline=None)
@given(
    params=parameters,
    data=st.integers(0, 2**32),
    kind=st.sampled_from(["spread", "peaked", "ties", "flat"]),
    vocab=st.sampled_from([31, 1000, 2999]),
    position=st.integers(0, 100_000),
    allowed=st.sampled_from([None, 1, 40, 0.5, 1.0]),
)
def test_every_choice_is_that_of_the_contract(
    params: dict[str, object], data: int, kind: str, vocab: int, position: int, allowed: float | None
) -> None:
    rng = np.random.default_rng(data)
    logits = rng.standard_normal(3001).astype(np.float32)
    if kind == "peaked":
        logits *= 8
    elif kind == "ties":
        logits = np.round(logits * 2)
    elif kind == "flat":
        logits = np.zeros_like(logits)
    prompt, output = rng.integers(0, 3000, 20), rng.integers(0, 60, 30)
    some = None
    if allowed is not None:  # one, some, half or all of the ids
        some = mask(vocab, rng.choice(vocab, min(vocab, int(allowed if isinstance(allowed, int) else allowed * vocab)), replace=False))
    request = row(vocab, prompt=prompt, output=output, position=position, allowed=some, **params)
    if (params.get("logprobs") or 0) > vocab:
        return
    with np.errstate(under="ignore"):
        want = reference.sample_row(logits, request)
    assert sample(logits, request) == [want]


@pytest.mark.parametrize("isa", isa_available())
def test_every_variant_chooses_the_same(isa: str) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((20, 5000)) * 3).astype(np.float32)
    rows = [row(4990, seed=i, logprobs=5, top_p=0.9 if i % 2 else 1.0) for i in range(20)]
    runtime = Native(isa=isa, threads=3)
    assert runtime.sample(logits, rows) == [reference.sample_row(line, request) for line, request in zip(logits, rows, strict=True)]


def test_the_draws_follow_the_distribution() -> None:
    p = np.array([0.5, 0.25, 0.125, 0.125])
    logits = np.log(p).astype(np.float32)
    draws = 20_000
    results = RUNTIME.sample(np.tile(logits, (draws, 1)), [row(4, seed=7, position=i) for i in range(draws)])
    counts = np.bincount([result.id for result in results], minlength=4)
    chi2 = float((((counts - p * draws) ** 2) / (p * draws)).sum())
    assert chi2 < 16.3  # 3 degrees of freedom, 0.1 %


def test_a_draw_depends_on_seed_choice_and_position_only() -> None:
    logits = np.zeros(1000, np.float32)
    base = sample(logits, row(1000, seed=1, choice=0, position=5))
    assert sample(logits, row(1000, seed=1, choice=0, position=5, prompt=[1, 2])) == base
    others = [row(1000, seed=2, position=5), row(1000, seed=1, choice=1, position=5), row(1000, seed=1, position=6)]
    assert len({base[0].id} | {result.id for result in RUNTIME.sample(np.tile(logits, (3, 1)), others)}) == 4


def test_seeds_beyond_64_bits_wrap() -> None:
    logits = np.zeros(1000, np.float32)
    assert sample(logits, row(1000, seed=2**64 + 5)) == sample(logits, row(1000, seed=5))
    assert sample(logits, row(1000, seed=-1)) == sample(logits, row(1000, seed=2**64 - 1))


def test_ids_at_or_above_the_limit_are_never_chosen_and_have_no_mass() -> None:
    logits = np.array([0.0, 0.0, 99.0], np.float32)
    (result,) = sample(logits, row(2, temperature=0.0, logprobs=2))
    assert result.id == 0
    assert result.top == [(0, pytest.approx(math.log(0.5))), (1, pytest.approx(math.log(0.5)))]


def test_an_infinite_bias_forces_or_bans() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    assert sample(logits, row(3, temperature=0.0, logit_bias={0: math.inf}))[0].id == 0
    assert sample(logits, row(3, temperature=1.0, logit_bias={1: math.inf}))[0].id == 1
    for seed in range(20):
        assert sample(logits, row(3, seed=seed, logit_bias={2: -math.inf, 0: -math.inf}))[0].id == 1


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    for temperature in (1e-45, 1e-40, 1e-30, 1e-6):
        assert sample(logits, row(3, temperature=temperature))[0].id == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 99])
def test_a_row_with_a_number_that_is_none_is_an_error(bad: float, place: int) -> None:
    logits = np.zeros(100, np.float32)
    logits[place] = bad
    with pytest.raises(NumericalError):
        sample(logits, row(100))
    assert sample(logits[: place or 1] if place else np.zeros(5, np.float32), row(place or 5))[0].id >= 0


def test_a_row_of_minus_infinities_is_an_error() -> None:
    with pytest.raises(NumericalError):
        sample(np.full(100, -np.inf, np.float32), row(100))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"logprobs": 6}, "log-probabilities"),
    ],
)
def test_parameters_without_meaning_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        sample(np.zeros(5, np.float32), row(5, **params))


def test_a_limit_beyond_the_row_is_refused() -> None:
    with pytest.raises(EngineError, match="limit"):
        sample(np.zeros(5, np.float32), row(6))


def test_rows_of_very_different_requests_go_through_one_call() -> None:
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((6, 4000)) * 4).astype(np.float32)
    rows = [
        row(4000, temperature=0.0),
        row(4000, top_k=20, top_p=0.8, seed=4),
        row(3000, seed=5, logprobs=3),
        row(4000, top_p=0.5, logprobs=0),
        row(4000, min_p=0.1, frequency_penalty=1.0, output=[1, 1, 5000, -1]),
        row(4000, top_k=2000),
    ]
    assert RUNTIME.sample(logits, rows) == [reference.sample_row(line, request) for line, request in zip(logits, rows, strict=True)]


def test_a_mask_bans_whatever_the_bias_says_and_leaves_log_probabilities_alone() -> None:
    logits = np.arange(70, dtype=np.float32)
    (result,) = sample(logits, row(70, temperature=0.0, allowed=mask(70, [3, 64]), logit_bias={69: math.inf}, logprobs=1))
    (free,) = sample(logits, row(70, temperature=0.0, logprobs=1))
    assert result.id == 64
    assert result.top == free.top
    for seed in range(20):
        assert sample(logits, row(70, seed=seed, allowed=mask(70, [7])))[0].id == 7


def test_a_mask_that_allows_nothing_or_covers_too_few_ids_is_an_error() -> None:
    with pytest.raises(NumericalError, match="allowed"):
        sample(np.zeros(70, np.float32), row(70, allowed=mask(70, [])))
    with pytest.raises(NumericalError, match="allowed"):
        reference.sample_row(np.zeros(70, np.float32), row(70, allowed=mask(70, [])))
    with pytest.raises(ValueError, match="2 words"):
        sample(np.zeros(70, np.float32), row(70, allowed=mask(64, [1])))


def test_no_rows_are_no_work() -> None:
    assert RUNTIME.sample(np.empty((0, 10), np.float32), []) == []
