"""Long prompts that pause between operations for the answers beside them, over small models of every architecture."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from qwenbox.engine.engine import Engine
from qwenbox.model.load import load_model
from qwenbox.types import GenerationPlan, SamplingParams
from tests.engine.fakes import Answer
from tests.engine.test_engine import run

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "qwen2_moe"])
def test_a_prompt_that_pauses_and_the_answers_meanwhile_have_the_bits_that_they_have_alone(name: str) -> None:
    rng = np.random.default_rng(1)

    def ask(request_id: str, num_prompt: int, max_tokens: int) -> GenerationPlan:
        prompt = tuple(rng.integers(0, model.vocab_limit, num_prompt).tolist())
        return GenerationPlan(request_id, prompt, max_tokens, SamplingParams(seed=num_prompt, logprobs=2))

    with closing(load_model(GOLDEN / name, threads=2, num_pages=64)) as model:
        context = model.context_length
        plans = [ask("a", 3, context - 4), ask("b", 20, context - 30), ask("long", context - 20, 10), ask("next", context - 40, 10)]
        alone = {plan.request_id: run(Engine(model), [plan])[plan.request_id] for plan in plans}
        engine = Engine(model, step_seconds=2e-4)
        answers = {plan.request_id: Answer() for plan in plans}
        pauses = 0
        for plan in plans:
            engine.add(plan)
        while engine.has_work:
            before = engine.stats()
            for output in engine.step():
                answers[output.request_id].feed(output)
            after = engine.stats()
            pauses += bool(answers["a"].ids) and not answers["long"].ids and after.computed_tokens - before.computed_tokens <= 2
            engine.check_integrity()
        assert pauses >= 3
        assert all(answers[name].same_as(alone[name]) for name in alone)
