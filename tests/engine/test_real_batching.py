"""The real 0.5B under everything at once, against the same requests alone: ids and bits of log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwenbox.engine.engine import Engine
from qwenbox.engine.pages import pages_for
from qwenbox.engine.sampler import token_logprob
from qwenbox.kernels.program import SampleRow
from qwenbox.model.load import Model, load_model
from qwenbox.types import Batch, FloatArray, GenerationPlan, SamplingParams, Span, TokenLogprob
from tests.engine.fakes import Answer

NUM_PAGES = 8 * 12
"""For eight streams of 384 tokens, or the longest prompt."""
LONG = {3: (1, 300), 10: (200, 300), 30: (700, 16), 31: (3000, 16)}
"""Number of the stream: tokens of its prompt, tokens of its answer. The other prompts are short and their answers long, which fills the pool."""
CANCELLED_AT = {40: 5, 90: 29, 200: 28, 300: 27, 400: 25}
"""Step: stream."""

pytestmark = [pytest.mark.weights, pytest.mark.long]


@pytest.fixture(scope="module")
def model(real_model: Callable[[str], Path]) -> Iterator[Model]:
    model = load_model(real_model("qwen2.5-coder-0.5b"), context_length=4096, num_pages=NUM_PAGES)
    yield model
    model.close()


def make_plans(model: Model) -> list[GenerationPlan]:
    """Every third prompt begins as the one before it does, so that pages are shared, whole ones and parts."""
    rng = np.random.default_rng(3)
    plans: list[GenerationPlan] = []
    for i in range(32):
        num_prompt, max_tokens = LONG.get(i, (int(rng.integers(20, 60)), int(rng.integers(300, 330))))
        prompt = tuple(rng.integers(0, 150_000, num_prompt).tolist())
        if i % 3 == 2:
            begin = plans[-1].prompt_ids[: num_prompt - int(rng.integers(1, 20))]
            prompt = begin + prompt[len(begin) :]
        temperature = float(rng.choice([0.0, 0.7, 1.2]))
        penalties = {"presence_penalty": 0.5, "repetition_penalty": 1.1} if i % 4 == 1 else {}
        top = {"top_k": 20, "top_p": 0.9} if i % 3 == 1 else {}
        sampling = SamplingParams(temperature=temperature, seed=i, logprobs=i % 3, **penalties, **top)
        plans.append(GenerationPlan(f"r{i}", prompt, max_tokens, sampling))
    return plans


def teacher_forced(model: Model, plan: GenerationPlan, answer: list[int]) -> list[tuple[int, TokenLogprob | None]]:
    """What the sampler chooses after the prompt and each token of `answer` but the last, in pages of their own and nobody else in the batch."""
    ids = np.array([*plan.prompt_ids, *answer[:-1]], np.int32)
    num_prompt = len(plan.prompt_ids)
    pages = np.arange(pages_for(len(ids)), dtype=np.int32)

    def run(first: int, end: int, rows: Sequence[int]) -> FloatArray:
        span = Span(0, end - first, first, pages[: pages_for(end)])
        return model.run(Batch(ids[first:end], [span], np.array(rows, np.int32)))

    for first in range(0, num_prompt - 1, model.max_batch_tokens):
        run(first, min(first + model.max_batch_tokens, num_prompt - 1), ())
    chosen: list[tuple[int, TokenLogprob | None]] = []
    for first in range(num_prompt - 1, len(ids), model.max_logits):
        end = min(first + model.max_logits, len(ids))
        rows = [SampleRow(plan.sampling, ids[:num_prompt], ids[num_prompt:seen], seen, model.vocab_limit) for seen in range(first + 1, end + 1)]
        chosen += [(result.id, token_logprob(result)) for result in model.sample(run(first, end, range(end - first)), rows)]
    return chosen


def run(engine: Engine, plans: list[GenerationPlan], cancelled_at: dict[int, int]) -> dict[str, Answer]:
    answers = {plan.request_id: Answer() for plan in plans}
    for plan in plans:
        engine.add(plan)
    steps = 0
    while engine.has_work:
        if (victim := cancelled_at.get(steps)) is not None:
            engine.cancel(f"r{victim}")
        for output in engine.step():
            answers[output.request_id].feed(output)
        engine.check_integrity()
        steps += 1
    return answers


def test_answers_under_batching_preemption_and_cancellation_are_those_of_the_request_alone(model: Model) -> None:
    plans = make_plans(model)
    engine = Engine(model)
    answers = run(engine, plans, CANCELLED_AT)
    stats = engine.stats()
    assert stats.preemptions >= 20
    assert stats.used_pages == 0
    assert stats.failed == 0
    assert stats.cached_tokens >= 100
    assert stats.cancelled >= 3
    for plan in plans:
        answer = answers[plan.request_id]
        if answer.reason == "length":
            assert len(answer.ids) == plan.max_tokens
        if answer.ids:
            expected = teacher_forced(model, plan, answer.ids)
            assert [id for id, _ in expected] == answer.ids, plan.request_id
            assert [logprob for _, logprob in expected] == answer.logprobs, plan.request_id


def test_an_answer_made_token_by_token_alone_begins_as_the_one_made_in_company(model: Model) -> None:
    plans = [replace(plan, max_tokens=min(24, plan.max_tokens)) for plan in make_plans(model) if len(plan.prompt_ids) < 300]
    together = run(Engine(model), plans, {})
    for plan in plans[::6]:
        alone = run(Engine(model), [plan], {})
        assert alone[plan.request_id].same_as(together[plan.request_id])


def test_a_prompt_asked_again_takes_its_pages_from_the_tree_and_gives_the_same_bits(model: Model) -> None:
    engine = Engine(model)
    plan = GenerationPlan("first", tuple(range(1000, 1900)), 40, SamplingParams(temperature=0.8, seed=5, logprobs=3))
    first = run(engine, [plan], {})["first"]
    again = run(engine, [replace(plan, request_id="again")], {})["again"]
    assert again.same_as(first)
    assert again.last is not None and again.last.usage is not None
    assert again.last.usage.cached_tokens == 899
