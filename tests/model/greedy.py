"""20 prompts with 64 greedy tokens after each: how they are made a token at a time, and judged all at once."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.model.load import Backend, Model, load_model
from qwenbox.types import Batch, FloatArray, IntArray, Span
from qwenbox.weights.gguf import read_gguf

DATA = Path(__file__).resolve().parent / "data"
NEW_TOKENS = 64
CONTEXT = 256
"""Positions of one prompt and its answer; each sequence has its own pages."""
PAGES = CONTEXT // 32


@contextmanager
def opened(
    path: Path,
    isa: str | None = None,
    backend: Backend = "native",
    *,
    context: int = CONTEXT,
    threads: int | None = None,
    weights: str | None = None,
) -> Iterator[Model]:
    with closing(
        load_model(
            path,
            isa=isa,
            backend=backend,
            threads=threads,
            weights=weights,
            context_length=context,
            num_pages=20 * PAGES,
            max_batch_tokens=512,
            max_sequences=512,
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


@dataclass(frozen=True)
class Golden:
    """What the NumPy oracle says of one model: the greedy ids [20, 64], and the checksum of every row of logits they were chosen from."""

    ids: IntArray
    sums: npt.NDArray[np.uint32]


def golden(name: str) -> Golden:
    """tests/golden/greedy.py made the numbers."""
    with np.load(DATA / "greedy.npz") as stored:
        return Golden(stored[f"{name}.ids"], stored[f"{name}.sums"])


def pages_of(index: int) -> IntArray:
    return np.arange(index * PAGES, (index + 1) * PAGES, dtype=np.int32)


def decode(model: Model, starts: Sequence[IntArray]) -> Golden:
    """The 64 greedy tokens of each prompt, all prompts in one batch a step."""
    sequences = [list(start) for start in starts]
    sums: list[list[int]] = [[] for _ in starts]
    for index, start in enumerate(starts):
        span = Span(0, len(start), 0, pages_of(index)[: -(-len(start) // 32)])
        _take(model.run(Batch(start, [span], np.array([len(start) - 1], np.int32))), [sequences[index]], [sums[index]])
    for _ in range(NEW_TOKENS - 1):
        ids = np.array([sequence[-1] for sequence in sequences], np.int32)
        spans = [Span(i, 1, len(sequence) - 1, pages_of(i)[: -(-len(sequence) // 32)]) for i, sequence in enumerate(sequences)]
        _take(model.run(Batch(ids, spans, np.arange(len(ids), dtype=np.int32))), sequences, sums)
    return Golden(np.array([sequence[-NEW_TOKENS:] for sequence in sequences], np.int32), np.array(sums, np.uint32))


def _take(logits: FloatArray, sequences: Sequence[list[int]], sums: Sequence[list[int]]) -> None:
    for row, sequence, checks in zip(logits, sequences, sums, strict=True):
        sequence.append(int(row.argmax()))
        checks.append(checksum(row))


def checksum(row: FloatArray) -> int:
    return zlib.crc32((row + np.float32(0)).tobytes())  # -0 equals 0


def judge(model: Model, starts: Sequence[IntArray], answers: IntArray) -> Golden:
    """What the model would have chosen at each place of the given answers: one teacher-forced batch a sequence."""
    ids, sums = [], []
    for start, answer in zip(starts, answers, strict=True):
        tokens = np.concatenate([start, answer[:-1]]).astype(np.int32)
        rows = np.arange(len(start) - 1, len(tokens), dtype=np.int32)
        logits = model.run(Batch(tokens, [Span(0, len(tokens), 0, pages_of(0)[: -(-len(tokens) // 32)])], rows))
        ids.append(logits.argmax(axis=1))
        sums.append([checksum(row) for row in logits])
    return Golden(np.array(ids, np.int32), np.array(sums, np.uint32))
