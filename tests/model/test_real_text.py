"""The real 0.5B and 1.5B on a text: perplexity is that of transformers, however the work is cut, and near it after rounding to 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import synth
from qwenbox.model.config import from_gguf
from qwenbox.model.load import Model
from qwenbox.types import Batch, FloatArray, IntArray, Span
from qwenbox.weights.gguf import read_gguf
from tests.model.greedy import DATA, decode, judge, opened, prompts

pytestmark = pytest.mark.weights

MODELS = ["qwen2.5-coder-0.5b", pytest.param("qwen2.5-coder-1.5b", marks=pytest.mark.long)]


def log_probabilities(model: Model, lines: IntArray, chunk: int = 512) -> FloatArray:
    """Of every token but the first of each line, given those before it; [lines, tokens - 1]. `chunk`: tokens a step."""
    count, length = lines.shape
    scored = np.empty((count, length - 1), np.float32)
    for line, out in zip(lines, scored, strict=True):
        for start in range(0, length - 1, chunk):
            end = min(start + chunk, length - 1)
            span = Span(0, end - start, start, np.arange(-(-end // 32), dtype=np.int32))
            logits = model.run(Batch(line[start:end], [span], np.arange(end - start, dtype=np.int32)))
            for place, row in enumerate(logits, start):
                relative = row[: model.vocab_limit] - row[: model.vocab_limit].max()
                out[place] = relative[line[place + 1]] - np.log(np.exp(relative).sum(dtype=np.float64))
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
def test_a_model_written_as_awq_answers_as_the_oracle_and_reads_text_as_after_rounding_on_load(
    real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """bench/synth.py rounds the file's matrices into AutoAWQ's layout; `--weights int4` makes the same numbers without it, but for fp16 biases."""
    file = read_gguf(real_model("qwen2.5-coder-0.5b"))
    config = replace(from_gguf(file.metadata), tied_head="output.weight" not in file.tensors)
    directory = tmp_path / "awq"
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
