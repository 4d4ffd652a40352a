"""The real 0.5B and 1.5B: every bit of the native engine is the oracle's, and perplexity is that of transformers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bench import synth
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.kernels.native import isa_available
from qwenbox.model.config import from_gguf
from qwenbox.model.load import Backend, Model, load_model
from qwenbox.types import Batch, FloatArray, IntArray, Span
from qwenbox.weights.gguf import read_gguf

pytestmark = pytest.mark.weights

DATA = Path(__file__).resolve().parent / "data"
NEW_TOKENS = 64
CONTEXT = 256
"""Positions of one prompt and its answer; each sequence has its own pages."""
PAGES = CONTEXT // 32
MODELS = ["qwen2.5-coder-0.5b", pytest.param("qwen2.5-coder-1.5b", marks=pytest.mark.long)]


@contextmanager
def opened(path: Path, isa: str | None = None, backend: Backend = "native", context: int = CONTEXT, weights: str | None = None) -> Iterator[Model]:
    with closing(
        load_model(
            path, isa=isa, backend=backend, weights=weights, context_length=context, num_pages=20 * PAGES, max_batch_tokens=512, max_sequences=512
        )
    ) as model:
        yield model


def prompts(path: Path) -> list[IntArray]:
    tokenizer = Tokenizer.from_gguf(read_gguf(path).metadata)
    texts = json.loads((DATA / "prompts.json").read_text())
    ids = [np.array(tokenizer.encode(entry["text"]), np.int32) for entry in texts]
    assert len(ids) == 20
    assert {entry["kind"] for entry in texts} == {"zh", "en", "code"}
    assert all(64 <= len(some) <= CONTEXT - NEW_TOKENS for some in ids)
    return ids


def pages_of(index: int) -> IntArray:
    return np.arange(index * PAGES, (index + 1) * PAGES, dtype=np.int32)


def greedy(model: Model, starts: Sequence[IntArray]) -> tuple[list[IntArray], list[list[int]]]:
    """Whole sequences after 64 greedy tokens each, all prompts in one batch a step, and a checksum of every row of logits on the way."""
    sequences = [list(start) for start in starts]
    sums: list[list[int]] = [[] for _ in starts]
    for index, start in enumerate(starts):
        span = Span(0, len(start), 0, pages_of(index)[: -(-len(start) // 32)])
        _take(model.run(Batch(start, [span], np.array([len(start) - 1], np.int32))), [sequences[index]], [sums[index]])
    for _ in range(NEW_TOKENS - 1):
        ids = np.array([sequence[-1] for sequence in sequences], np.int32)
        spans = [Span(i, 1, len(sequence) - 1, pages_of(i)[: -(-len(sequence) // 32)]) for i, sequence in enumerate(sequences)]
        _take(model.run(Batch(ids, spans, np.arange(len(ids), dtype=np.int32))), sequences, sums)
    return [np.array(sequence, np.int32) for sequence in sequences], sums


def _take(logits: FloatArray, sequences: Sequence[list[int]], sums: Sequence[list[int]]) -> None:
    for row, sequence, checks in zip(logits, sequences, sums, strict=True):
        sequence.append(int(row.argmax()))
        checks.append(checksum(row))


def checksum(row: FloatArray) -> int:
    return zlib.crc32((row + np.float32(0)).tobytes())  # -0 equals 0


@dataclass
class Forced:
    """A teacher-forced batch: all but the last token of each sequence, logits where the answers were chosen."""

    batch: Batch
    rows: list[slice]
    """Of the logits, for each sequence."""


def forced(sequences: Sequence[IntArray]) -> Forced:
    spans, wanted, rows = [], [], []
    start = 0
    for index, sequence in enumerate(sequences):
        length = len(sequence) - 1
        spans.append(Span(start, length, 0, pages_of(index)[: -(-length // 32)]))
        rows.append(slice(len(wanted), len(wanted) + NEW_TOKENS))
        wanted += range(start + length - NEW_TOKENS, start + length)
        start += length
    ids = np.concatenate([sequence[:-1] for sequence in sequences])
    return Forced(Batch(ids, spans, np.array(wanted, np.int32)), rows)


@pytest.mark.parametrize("name", MODELS)
def test_64_greedy_tokens_of_20_prompts_are_the_oracles_and_logits_are_equal_in_every_variant(name: str, real_model: Callable[[str], Path]) -> None:
    path = real_model(name)
    starts = prompts(path)
    with opened(path) as model:
        sequences, sums = greedy(model, starts)
    whole = forced(sequences)
    with opened(path, backend="reference") as oracle:
        expected = oracle.run(whole.batch)
    for sequence, rows, checks in zip(sequences, whole.rows, sums, strict=True):
        np.testing.assert_array_equal(expected[rows].argmax(axis=1), sequence[-NEW_TOKENS:])
        assert [checksum(row) for row in expected[rows]] == checks, "decoding a token at a time, 20 sequences in a batch"
    for isa in isa_available():
        with opened(path, isa) as model:
            for sequence, rows in zip(sequences, whole.rows, strict=True):
                np.testing.assert_array_equal(model.run(forced([sequence]).batch), expected[rows], err_msg=isa)


@pytest.mark.parametrize("name", MODELS)
def test_perplexity_of_10000_tokens_is_that_of_transformers_on_dequantised_weights(name: str, real_model: Callable[[str], Path]) -> None:
    """Within 0.5 %. tests/golden/perplexity.py made the numbers and the ids; the text is this repository's own."""
    with np.load(DATA / "perplexity.npz") as stored:
        golden = float(stored[name])
    with opened(real_model(name), context=512) as model:
        assert abs(np.exp(loss(model, 20)) / golden - 1) <= 0.005


def loss(model: Model, lines: int) -> float:
    """Mean negative log-probability of the text's first lines; its exponential is the perplexity."""
    with np.load(DATA / "perplexity.npz") as stored:
        ids = stored["ids"]
    assert ids.shape == (20, 512)
    total = 0.0
    for line in ids[:lines]:
        logits = model.run(Batch(line, [Span(0, 512, 0, np.arange(16, dtype=np.int32))], np.arange(512, dtype=np.int32)))
        top = logits[:-1].max(axis=1, keepdims=True)
        mass = np.exp(logits[:-1] - top).sum(axis=1, dtype=np.float64)
        total += float((top[:, 0] + np.log(mass) - logits[np.arange(511), line[1:]]).sum())
    return total / (lines * 511)


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
    with opened(directory) as model:
        sequences, _ = greedy(model, prompts(file.path)[:2])
    whole = forced(sequences)
    with opened(directory, backend="reference") as oracle:
        expected = oracle.run(whole.batch)
    for sequence, rows in zip(sequences, whole.rows, strict=True):
        np.testing.assert_array_equal(expected[rows].argmax(axis=1), sequence[-NEW_TOKENS:])
    with opened(directory, context=512) as model:
        np.testing.assert_array_equal(model.run(whole.batch), expected)
        rounded = loss(model, 4)
    with opened(file.path, context=512, weights="int4") as model:
        assert abs(rounded - loss(model, 4)) <= 0.002
    with opened(file.path, context=512) as model:
        assert rounded - loss(model, 4) <= 0.2, "plain rounding to 4 bits costs this much at most"
