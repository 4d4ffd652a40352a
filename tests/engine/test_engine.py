"""The engine over a fake model whose answer depends on every token in every page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from qwenbox.engine.engine import Engine
from qwenbox.errors import ContextLengthError, QwenboxError, RequestError
from qwenbox.kernels.program import Interrupted, SampleResult, SampleRow
from qwenbox.types import Batch, FloatArray, GenerationPlan, SamplingParams
from tests.engine.fakes import OPS, VOCAB, Answer, FakeModel, plan


def run(engine: Engine, plans: Iterable[GenerationPlan], *, after_step: Callable[[dict[str, Answer]], None] | None = None) -> dict[str, Answer]:
    """Adds all plans, steps until the engine is idle, checks the books after each step."""
    answers = {}
    for one in plans:
        engine.add(one)
        answers[one.request_id] = Answer()
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id].feed(output)
        engine.check_integrity()
        if after_step is not None:
            after_step(answers)
    assert engine.stats().used_pages == 0
    return answers


def alone(one: GenerationPlan, **options: int) -> Answer:
    return run(Engine(FakeModel(**options)), [one])[one.request_id]


def test_answers_equal_the_same_request_alone_under_batching_chunks_preemption_and_cancellation() -> None:
    """32 streams, each of which asks three times, over a pool of pages for about eight."""
    rng = np.random.default_rng(11)
    prompts = [1, 3000, 2000, *rng.integers(2, 60, 93).tolist()]
    rng.shuffle(prompts)
    plans = [
        plan(
            f"r{i}",
            prompt,
            int(rng.integers(200, 400)),
            rng=rng,
            temperature=float(rng.choice([0.0, 0.7, 1.3])),
            seed=i,
            logprobs=int(rng.integers(0, 4)),
            stop_ids=(int(rng.integers(0, VOCAB - 3)),),
            min_tokens=int(rng.integers(0, 400)),
        )
        for i, prompt in enumerate(prompts)
    ]
    engine = Engine(FakeModel(num_pages=8 * 13))
    answers: dict[str, Answer] = {}
    ahead = list(reversed(plans))
    while ahead or engine.has_work:
        alive = [name for name, answer in answers.items() if answer.last is None]
        for _ in range(min(32 - len(alive), len(ahead))):
            one = ahead.pop()
            engine.add(one)
            answers[one.request_id] = Answer()
        if alive and rng.random() < 0.01:
            engine.cancel(str(rng.choice(alive)))
        for output in engine.step():
            answers[output.request_id].feed(output)
        engine.check_integrity()
    stats = engine.stats()
    assert stats.preemptions >= 20
    assert stats.used_pages == 0
    assert stats.finished + stats.cancelled == len(plans)
    assert stats.cancelled >= 5
    for one in plans:
        expected, answer = alone(one), answers[one.request_id]
        if answer.reason == "cancelled":
            assert answer.ids == expected.ids[: len(answer.ids)]
            assert answer.logprobs == expected.logprobs[: len(answer.ids)]
        else:
            assert answer.same_as(expected)


def test_the_number_of_tokens_in_a_step_changes_no_answer() -> None:
    one = plan("a", 700, 12, logprobs=3, prompt_logprobs=2)
    answers = [alone(one, max_batch_tokens=size, max_logits=rows) for size, rows in ((512, 64), (1, 1), (33, 7), (1024, 1024))]
    assert all(answer.same_as(answers[0]) for answer in answers)


def test_decoding_streams_advance_in_every_step_while_a_long_prompt_runs() -> None:
    model = FakeModel(max_batch_tokens=64)
    engine = Engine(model)
    for i in range(8):
        engine.add(plan(f"s{i}", 4, 60))
    for _ in range(3):
        engine.step()
    engine.add(plan("long", 3000, 1))
    steps = 0
    while True:
        outputs = {output.request_id: output for output in engine.step()}
        steps += 1
        if "long" in outputs:
            break
        assert sorted(outputs) == [f"s{i}" for i in range(8)]
        assert all(len(output.ids) == 1 for output in outputs.values())
        assert model.batches[-1].num_tokens == 64
    assert steps == math.ceil(3000 / (64 - 8))


def test_a_prompt_that_finds_most_of_itself_when_a_slice_is_through_runs_once() -> None:
    model = FakeModel()
    model.slice_tokens = 512  # so that a slice is a whole prompt
    ticks = [0.0]  # that pass while answers run, so that a slice is always through before its step
    model.before_run = lambda batch: ticks.append(ticks[-1] + (1e-4 if batch.num_tokens < 8 else 0.0))
    engine = Engine(model, step_seconds=1e-3, clock=lambda: ticks[-1])
    first, answering = plan("first", 100, 4), plan("answering", 3, 40)
    second = plan("second", first.prompt_ids[:90], 4)
    answers = {one.request_id: Answer() for one in (answering, first, second)}
    engine.add(answering)
    engine.step()
    engine.add(first)
    engine.add(second)
    pauses = iter([True, *[False] * OPS, True])  # the slice of the first, which then is through, and that of the second
    model.pauses = lambda: next(pauses, False)
    engine.step()
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id].feed(output)
        engine.check_integrity()
    assert answers["second"].same_as(alone(second))


def test_prompts_run_in_order_of_arrival() -> None:
    engine = Engine(FakeModel(max_batch_tokens=32))
    order: list[str] = []

    def note(answers: dict[str, Answer]) -> None:
        order.extend(name for name, answer in answers.items() if answer.last and name not in order)

    run(engine, [plan(f"p{i}", 100, 1) for i in range(5)], after_step=note)
    assert order == [f"p{i}" for i in range(5)]


def test_a_preempted_sequence_comes_back_first_and_keeps_what_it_said() -> None:
    engine = Engine(FakeModel(num_pages=7))
    plans = [plan(f"r{i}", 60, 100, temperature=1.0, seed=i, stop_ids=()) for i in range(3)]
    finished: list[str] = []

    def note(answers: dict[str, Answer]) -> None:
        finished.extend(name for name, answer in answers.items() if answer.last and name not in finished)

    answers = run(engine, plans, after_step=note)
    assert engine.stats().preemptions >= 1
    assert finished == ["r0", "r1", "r2"]
    for one in plans:
        assert answers[one.request_id].same_as(alone(one))
        assert answers[one.request_id].last.usage.completion_tokens == 100


def test_prompt_logprobs_are_given_once_and_equal_those_of_the_answer() -> None:
    first = alone(plan("a", 50, 40, temperature=0.0, logprobs=2))
    prompt = plan("a", 50).prompt_ids
    second = alone(plan("b", (*prompt, *first.ids), 0, prompt_logprobs=2))
    assert second.reason == "length"
    assert second.ids == []
    assert second.prompt_logprobs[0] is None
    assert len(second.prompt_logprobs) == 90
    assert list(second.prompt_logprobs[50:]) == first.logprobs


def test_prompt_logprobs_survive_preemption_without_being_scored_twice() -> None:
    engine = Engine(FakeModel(num_pages=12, max_logits=16))
    plans = [plan(f"r{i}", 90, 90, prompt_logprobs=1, logprobs=0) for i in range(3)]
    answers = run(engine, plans)
    assert engine.stats().preemptions >= 1
    assert all(answers[one.request_id].same_as(alone(one)) for one in plans)


def test_only_rows_that_choose_a_token_get_logits() -> None:
    model = FakeModel(max_batch_tokens=32)
    run(Engine(model), [plan("a", 100, 3)])
    assert [len(batch.logits_rows) for batch in model.batches] == [0, 0, 0, 1, 1, 1]
    assert [batch.num_tokens for batch in model.batches] == [32, 32, 32, 4, 1, 1]


def test_only_greedy_choices_from_raw_logits_ask_for_nothing_but_the_largest() -> None:
    greedy = plan("a", 3, 2, temperature=0.0)
    same = [greedy, replace(greedy, stop_ids=(5,)), plan("a", 3, 2, temperature=0.0, top_k=1)]
    others = [
        plan("a", 3, 2),
        replace(greedy, stop_ids=(5,), min_tokens=2),
        replace(greedy, prompt_logprobs=0),
        *(
            replace(greedy, sampling=replace(greedy.sampling, **{name: 1.5}))
            for name in ("presence_penalty", "frequency_penalty", "repetition_penalty")
        ),
        *(replace(greedy, sampling=replace(greedy.sampling, **change)) for change in ({"logprobs": 0}, {"logit_bias": {3: 1.0}})),
    ]
    for one, asked in [(one, VOCAB - 3) for one in same] + [(one, 0) for one in others]:
        model = FakeModel()
        run(Engine(model), [one])
        assert model.batches[0].largest == asked, one
    model = FakeModel()
    run(Engine(model), [greedy, replace(others[0], request_id="b")])
    assert [batch.largest for batch in model.batches] == [0, 0]


def test_a_stop_id_ends_the_answer_and_is_part_of_it() -> None:
    free = alone(plan("a", 5, 50, temperature=0.0))
    stop = free.ids[10]
    stopped = alone(plan("a", 5, 50, temperature=0.0, stop_ids=(stop,)))
    assert stopped.reason == "stop"
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert stopped.last.usage.completion_tokens == len(stopped.ids)


def test_no_stop_id_is_chosen_before_min_tokens() -> None:
    every = tuple(range(0, VOCAB - 3, 2))
    answer = alone(plan("a", 5, 50, temperature=0.0, stop_ids=every, min_tokens=20))
    assert not set(answer.ids[:20]) & set(every)
    assert answer.reason == "stop"
    assert len(answer.ids) > 20


@pytest.mark.parametrize(("prompt", "max_tokens"), [(1, 1), (32, 1), (31, 2), (33, 32), (1, 4095), (4095, 1)])
def test_an_answer_has_max_tokens_where_nothing_stops_it(prompt: int, max_tokens: int) -> None:
    answer = alone(plan("a", prompt, max_tokens))
    assert answer.reason == "length"
    assert len(answer.ids) == max_tokens
    assert answer.last.usage.prompt_tokens == prompt


def test_a_request_that_just_fits_the_pool_runs() -> None:
    # 33 tokens, the last of which is never run: one page.
    assert len(alone(plan("a", 1, 32), num_pages=1).ids) == 32
    with pytest.raises(ContextLengthError, match=r"34 tokens need 2 pages .* has 1"):
        Engine(FakeModel(num_pages=1)).add(plan("a", 1, 33))


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (plan("x", 4000, 97), ContextLengthError, "4000 tokens and max_tokens is 97: 4097 tokens do not fit the context of 4096"),
        (plan("x", 5, 2**63), ContextLengthError, "do not fit the context of 4096"),
        (plan("x", 5, 0), RequestError, "max_tokens is 0"),
        (plan("x", 5, -1), RequestError, "max_tokens is -1"),
        (plan("x", (), 5), RequestError, "the prompt is empty"),
        (plan("x", (VOCAB,), 5), RequestError, "ids outside 0 to 93"),
        (plan("x", (-1,), 5), RequestError, "ids outside 0 to 93"),
        (plan("x", (2**70, 1), 5), RequestError, "ids outside 0 to 93"),
        (plan("x", (1.0, 2), 5), RequestError, "ids outside 0 to 93"),
        (plan("x", (True,), 5), RequestError, "ids outside 0 to 93"),
        (plan("x", (None, "a"), 5), RequestError, "ids outside 0 to 93"),
        (plan("x", ((1, 2), (3,)), 5), RequestError, "ids outside 0 to 93"),
        (plan("x", 5, temperature=math.nan), RequestError, "temperature is nan"),
        (plan("x", 5, temperature=-0.1), RequestError, "temperature is -0.1"),
        (plan("x", 5, top_p=1.5), RequestError, "top_p is 1.5"),
        (plan("x", 5, top_k=0.5), RequestError, "top_k is 0.5"),
        (plan("x", 5, logprobs=1000), RequestError, "logprobs is 1000"),
        (plan("x", 5, logit_bias={VOCAB: 1.0}), RequestError, "logit_bias holds ids outside"),
        (plan("x", 5, logit_bias={1: math.nan}), RequestError, "logit_bias holds nan"),
        (plan("x", 5, stop_ids=(-4,)), RequestError, "stop_ids is -4"),
        (plan("x", 5, min_tokens=-1), RequestError, "min_tokens is -1"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:20],
)
def test_a_plan_that_cannot_be_honoured_is_refused_by_name(bad: GenerationPlan, error: type[QwenboxError], words: str) -> None:
    engine = Engine(FakeModel())
    with pytest.raises(error) as caught:
        engine.add(bad)
    assert words in caught.value.message
    assert not engine.has_work


def test_a_request_id_can_run_once_at_a_time() -> None:
    engine = Engine(FakeModel())
    run(engine, [plan("a", 5)])
    run(engine, [plan("a", 5)])
    engine.add(plan("a", 5))
    with pytest.raises(RequestError, match="'a' runs already"):
        engine.add(plan("a", 5))


def test_cancelling_waiting_running_and_unknown_requests_is_safe() -> None:
    engine = Engine(FakeModel(max_sequences=1))
    engine.add(plan("running", 5, 50))
    engine.add(plan("waiting", 5, 50))
    engine.step()
    for request_id in ("running", "waiting", "nobody", "running"):
        engine.cancel(request_id)
    outputs = engine.step()
    assert [(output.request_id, output.finish_reason) for output in outputs] == [("running", "cancelled"), ("waiting", "cancelled")]
    assert outputs[0].usage.completion_tokens == 1
    assert not engine.has_work
    engine.check_integrity()


def test_a_step_that_everybody_left_is_interrupted_and_counts_for_nothing() -> None:
    model = FakeModel(max_sequences=2, max_batch_tokens=40)
    engine = Engine(model)
    for name in ("a", "b"):
        engine.add(plan(name, 33, 20, seed=1))
    engine.step()

    def leave(*names: str) -> Callable[[Batch], None]:
        return lambda batch: [engine.leave(name) for name in names] and None

    before = engine.stats()
    model.before_run = leave("a")
    assert not model.cancel.is_set()
    engine.step()
    assert engine.stats().steps == before.steps + 1, "somebody else was in this step"
    engine.check_integrity()
    before = engine.stats()
    model.before_run = leave("b")
    assert engine.step() == []
    assert model.cancel.is_set()
    assert engine.stats().computed_tokens == before.computed_tokens
    engine.check_integrity()
    model.before_run = None
    engine.cancel("a")
    engine.cancel("b")
    assert [output.finish_reason for output in engine.step()] == ["cancelled", "cancelled"]
    engine.check_integrity()
    assert run(engine, [plan("next", 33, 20, seed=1)])["next"].same_as(run(Engine(FakeModel()), [plan("next", 33, 20, seed=1)])["next"])
    assert engine.stats().used_pages == 0


def test_nothing_runs_after_an_interrupt() -> None:
    model = FakeModel()
    engine = Engine(model)
    engine.add(plan("a", 33))
    engine.interrupt()
    assert engine.step() == []
    assert engine.stats().computed_tokens == 0
    with pytest.raises(Interrupted):
        engine.logits([1, 2])
    engine.check_integrity()


def test_nan_fails_its_own_request_only() -> None:
    model = FakeModel()
    model.nan_after = {7}
    bias = {7: -math.inf}
    prompts = {"good": (1, 2, 3), "bad": (1, 2, 7), "fine": (3, 4)}
    answers = run(Engine(model), [plan(name, prompt, logit_bias=bias) for name, prompt in prompts.items()])
    assert answers["bad"].last.error["class"] == "NumericalError"
    assert answers["good"].reason == answers["fine"].reason == "length"


def test_a_failing_step_fails_its_batch_and_the_engine_goes_on() -> None:
    model = FakeModel()

    def fail(batch: Batch) -> None:
        if 66 in batch.ids:
            raise MemoryError("no memory for 66")

    model.before_run = fail
    engine = Engine(model)
    answers = run(engine, [plan("a", (1, 66)), plan("b", (1, 2))])
    assert {answer.last.error["class"] for answer in answers.values()} == {"EngineError"}
    assert "no memory for 66" in answers["b"].last.error["message"]
    assert run(engine, [plan("b", (1, 2), logit_bias={66: -100.0})])["b"].reason == "length"


def test_the_sampler_is_told_prompt_output_and_the_place_of_the_new_token() -> None:
    model = FakeModel(max_batch_tokens=16)
    rows: list[SampleRow] = []
    sample = model.sample

    def spy(logits: FloatArray, asked: Sequence[SampleRow]) -> list[SampleResult]:
        rows.extend(replace(row, output_ids=row.output_ids.copy()) for row in asked)
        return sample(logits, asked)

    model.sample = spy
    one = plan("a", 40, 4, seed=9, choice=2, top_p=0.0)
    answer = run(Engine(model), [one])["a"]
    assert [row.position for row in rows] == [40, 41, 42, 43]
    assert all(row.prompt_ids.tolist() == list(one.prompt_ids) for row in rows)
    assert [row.output_ids.tolist() for row in rows] == [answer.ids[:n] for n in range(4)]
    assert all((row.params.seed, row.params.choice, row.vocab_limit) == (9, 2, model.vocab_limit) for row in rows)
    assert all(0 < row.params.top_p < 1e-300 for row in rows)  # the kernels want it above 0


def test_timings_and_usage_come_with_the_last_output() -> None:
    now = [100.0]
    model = FakeModel(max_batch_tokens=32, max_sequences=1)

    def tick(batch: Batch) -> None:
        now[0] += 1.0

    model.before_run = tick
    answers = run(Engine(model, clock=lambda: now[0]), [plan("a", 64, 3), plan("b", 32, 2)])
    assert answers["a"].last.timings == {"queue": 0.0, "prefill": 2.0, "decode": 2.0}
    assert answers["b"].last.timings == {"queue": 4.0, "prefill": 1.0, "decode": 1.0}
    assert (answers["b"].last.usage.prompt_tokens, answers["b"].last.usage.completion_tokens) == (32, 2)


def test_logits_of_given_ids_leave_the_requests_alone() -> None:
    one = plan("a", 70, 20)
    engine = Engine(FakeModel())
    engine.add(one)
    answer = Answer()
    for output in engine.step():
        answer.feed(output)
    ids = plan("x", 200).prompt_ids
    logits = engine.logits(ids)
    assert logits.shape == (200, VOCAB)
    while engine.has_work:
        for output in engine.step():
            answer.feed(output)
        engine.check_integrity()
    assert answer.same_as(alone(one))
    assert np.array_equal(logits, Engine(FakeModel(max_batch_tokens=7)).logits(np.array(ids)))


def test_a_plan_crosses_a_border_unchanged() -> None:
    one = plan("a", 5, logit_bias={3: -math.inf}, stop_ids=(1, 2), prompt_logprobs=1)
    assert GenerationPlan.from_wire(one.to_wire()) == one
    assert isinstance(one.sampling, SamplingParams)
