"""The real 0.5B and 1.5B: every bit of the native engine is the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from qwenbox.kernels.native import isa_available
from qwenbox.llm import LLM
from qwenbox.model.load import load_model
from qwenbox.types import Batch, Span
from tests.model.greedy import decode, golden, judge, opened, prompts

pytestmark = pytest.mark.weights

MODELS = ["qwen2.5-coder-0.5b", pytest.param("qwen2.5-coder-1.5b", marks=pytest.mark.long)]


@pytest.mark.parametrize("name", MODELS)
def test_64_greedy_tokens_of_20_prompts_are_the_oracles_and_logits_are_equal_in_every_variant(name: str, real_model: Callable[[str], Path]) -> None:
    path = real_model(name)
    starts, oracle = prompts(path), golden(name)
    with opened(path) as model:
        made = decode(model, starts)
    np.testing.assert_array_equal(made.ids, oracle.ids)
    np.testing.assert_array_equal(made.sums, oracle.sums, err_msg="decoding a token at a time, 20 sequences in a batch")
    for isa in isa_available():
        count = 1 if isa == "generic" else 20  # plain vectors take as long for one prompt as the others for all
        with opened(path, isa) as model:
            np.testing.assert_array_equal(judge(model, starts[:count], oracle.ids[:count]).sums, oracle.sums[:count], err_msg=isa)


def test_greedy_answers_are_the_same_where_most_of_the_head_is_not_read(real_model: Callable[[str], Path]) -> None:
    path = real_model("qwen2.5-coder-0.5b")
    pages = np.arange(4, dtype=np.int32)
    with closing(load_model(path, weights="int4", context_length=128, num_pages=4)) as model:
        for start in prompts(path)[:4]:
            answers = []
            for largest in (0, model.vocab_size):
                ids, position, said = start[:64], 0, []
                for _ in range(32):
                    span = Span(0, len(ids), position, pages)
                    (logits,) = model.run(Batch(ids, [span], np.array([len(ids) - 1], np.int32), largest))
                    ids, position = np.array([logits.argmax()], np.int32), position + len(ids)
                    said.append((int(ids[0]), float(logits.max())))
                answers.append(said)
            assert answers[0] == answers[1]
        assert model.spared_bytes > 4 * 32 * 20e6


@pytest.mark.long
@pytest.mark.parametrize(("name", "some"), [("qwen2.5-coder-0.5b", slice(0, 20, 16)), ("qwen2.5-coder-1.5b", slice(11, 12))])
def test_the_oracle_still_says_what_is_stored(name: str, some: slice, real_model: Callable[[str], Path]) -> None:
    """Of a few prompts: it is slow. tests/golden/greedy.py asked it for all of them."""
    path, stored = real_model(name), golden(name)
    with opened(path, backend="reference") as oracle:
        said = judge(oracle, prompts(path)[some], stored.ids[some])
    np.testing.assert_array_equal(said.ids, stored.ids[some])
    np.testing.assert_array_equal(said.sums, stored.sums[some])


def test_vectors_have_the_same_bits_alone_in_company_and_in_slices_beside_an_answer(real_model: Callable[[str], Path]) -> None:
    code = "def add(a, b):\n    return a + b\n"
    texts = [code * 20, "How do I add two numbers in Python?", "Wie wird das Wetter morgen?", code]
    path = str(real_model("qwen2.5-coder-0.5b"))
    with LLM(path, context_length=1024, num_pages=256) as llm:
        together = llm.embed(texts)
        alone = np.concatenate([llm.embed([text]) for text in texts])
    with LLM(path, context_length=1024, num_pages=256, max_batch_tokens=48, step_ms=20) as llm:
        stream = llm.stream("Count to a hundred.", max_tokens=200)
        assert next(iter(stream)).kind == "content"
        beside = llm.embed(texts)
        stream.close()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(beside, together)
    likeness = together @ together[3]
    assert likeness[0] > likeness[1] > likeness[2]
