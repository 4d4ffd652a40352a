"""The real 0.5B and 1.5B: every bit of the native engine is the oracle's, and perplexity is that of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import synth
from qwenbox.kernels.native import isa_available
from qwenbox.kernels.program import SampleRow
from qwenbox.model.config import from_gguf
from qwenbox.model.load import Model, load_model
from qwenbox.types import Batch, FloatArray, IntArray, SamplingParams, Span
from qwenbox.weights.gguf import read_gguf
from tests.model.greedy import DATA, decode, golden, judge, opened, prompts

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
        some = slice(0, 20, 10) if isa == "generic" else slice(20)  # plain vectors take as long for one prompt as the others for all
        with opened(path, isa) as model:
            np.testing.assert_array_equal(judge(model, starts[some], oracle.ids[some]).sums, oracle.sums[some], err_msg=isa)


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


def log_probabilities(model: Model, lines: IntArray, chunk: int = 512) -> FloatArray:
    """Of every token but the first of each line, given those before it; [lines, tokens - 1]. `chunk`: tokens a step."""
    count, length = lines.shape
    nothing = np.zeros(0, np.int32)
    scored = np.empty((count, length - 1), np.float32)
    for line, out in zip(lines, scored, strict=True):
        for start in range(0, length - 1, chunk):
            end = min(start + chunk, length - 1)
            span = Span(0, end - start, start, np.arange(-(-end // 32), dtype=np.int32))
            logits = model.run(Batch(line[start:end], [span], np.arange(end - start, dtype=np.int32)))
            rows = [
                SampleRow(SamplingParams(temperature=0.0, logit_bias={int(id): math.inf}, logprobs=0), nothing, nothing, 0, model.vocab_limit)
                for id in line[start + 1 : end + 1]
            ]
            out[start:end] = [result.logprob for result in model.sample(logits, rows)]
    return scored


@pytest.mark.parametrize("name", MODELS)
def test_perplexity_of_10000_tokens_is_that_of_transformers_on_dequantised_weights(name: str, real_model: Callable[[str], Path]) -> None:
    """Within 0.5 %. tests/golden/perplexity.py made the numbers and the ids; the text is this repository's own."""
    with np.load(DATA / "perplexity.npz") as stored:
        ids, expected = stored["ids"], float(stored[name])
    assert ids.shape == (20, 512)
    with opened(real_model(name), context=512) as model:
        perplexity = np.exp(-log_probabilities(model, ids).mean(dtype=np.float64))
    assert abs(perplexity / expected - 1) <= 0.005


@pytest.mark.long
def test_log_probabilities_of_10000_tokens_are_the_same_bits_however_the_work_is_cut(real_model: Callable[[str], Path]) -> None:
    """Each of them in two ways, a third of them in each of the three others."""
    path = real_model("qwen2.5-coder-0.5b")
    with np.load(DATA / "perplexity.npz") as stored:
        ids = stored["ids"]
    with opened(path, context=512) as model:
        expected = log_probabilities(model, ids)
    for third, (threads, chunk) in enumerate(((1, 511), (3, 77), (2, 16))):
        with opened(path, context=512, threads=threads) as model:
            again = log_probabilities(model, ids[third::3], chunk)
        np.testing.assert_array_equal(again, expected[third::3], err_msg=f"{threads} threads, {chunk} tokens a step")


@pytest.mark.long
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_a_model_written_as_awq_answers_as_the_oracle_and_reads_text_as_after_rounding_on_load(
    name: str, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """bench/synth.py rounds the file's matrices into AutoAWQ's layout; `--weights int4` makes the same numbers without it, but for fp16 biases."""
    file = read_gguf(real_model(name))
    config = replace(from_gguf(file.metadata), tied_head="output.weight" not in file.tensors)
    directory = tmp_path / name
    synth.write(directory, "awq", config, synth.RealWeights(config, file.tensors), file.metadata)
    starts = prompts(file.path)[:1]
    with opened(directory) as model:
        made = decode(model, starts)
    with opened(directory, backend="reference") as oracle:
        said = judge(oracle, starts, made.ids)
    np.testing.assert_array_equal(made.ids, said.ids)
    np.testing.assert_array_equal(made.sums, said.sums)

    def loss(path: Path, weights: str | None = None) -> float:
        with np.load(DATA / "perplexity.npz") as stored, opened(path, context=512, weights=weights) as model:
            return -float(log_probabilities(model, stored["ids"][:4]).mean(dtype=np.float64))

    rounded = loss(directory)
    assert abs(rounded - loss(file.path, "int4")) <= 0.002
    assert rounded - loss(file.path) <= 0.2, "plain rounding to 4 bits costs this much at most"
