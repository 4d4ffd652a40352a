"""Perplexity and divergence over a model whose distributions are known, and the walk over the text."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbox.chat import text
from qwenbox.chat.text import pieces, token_ids
from qwenbox.errors import UsageError
from qwenbox.evaluate.divergence import divergence, divergences
from qwenbox.evaluate.perplexity import perplexity
from qwenbox.evaluate.windows import windows
from qwenbox.types import Batch, FloatArray

VOCAB = 11


class ByteEncoder:
    def encode(self, text: str, *, control: bool = True) -> list[int]:
        assert not control
        return list(text.encode())


class TableModel:
    """Logits depend on the id and its position alone; remembers what it was asked, and that pages were written before they are read."""

    def __init__(self, seed: int = 0, *, max_batch_tokens: int = 16, max_logits: int = 4, vocab: int = VOCAB) -> None:
        self.vocab_limit, self.max_batch_tokens, self.max_logits, self.context_length = VOCAB, max_batch_tokens, max_logits, 2048
        self.table = np.random.default_rng(seed).normal(size=(VOCAB, vocab)).astype(np.float32) * 3
        self.written = 0

    def run(self, batch: Batch) -> FloatArray:
        (span,) = batch.spans
        assert span.start == 0
        assert span.length == len(batch.ids) <= self.max_batch_tokens
        assert len(batch.logits_rows) <= self.max_logits
        assert len(span.pages) * 32 >= span.position + span.length
        assert span.position == 0 or span.position == self.written
        self.written = span.position + span.length
        return self.table[batch.ids[batch.logits_rows]]


def expected_nll(model: TableModel, ids: list[int]) -> float:
    rows = model.table[:, :VOCAB].astype(np.float64)
    logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    return -sum(logs[a, b] for a, b in itertools.pairwise(ids)) / (len(ids) - 1)


@pytest.mark.parametrize(
    ("count", "size", "stride"), [(2, 8, 4), (7, 8, 4), (8, 8, 4), (9, 8, 4), (100, 8, 4), (100, 16, 15), (100, 200, 100), (65, 33, 1)]
)
def test_perplexity_scores_each_token_once_whatever_the_windows(count: int, size: int, stride: int) -> None:
    ids = list(np.random.default_rng(1).integers(0, VOCAB, count))
    model = TableModel()
    result = perplexity(model, ids, window=size, stride=stride)
    assert result.tokens == count - 1
    assert result.nll == pytest.approx(expected_nll(model, ids), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.nll))


def test_columns_past_the_vocabulary_have_no_mass() -> None:
    ids = [1, 2, 3, 4]
    wide = TableModel(vocab=VOCAB + 5)
    wide.table[:, VOCAB:] = 100.0
    assert perplexity(wide, ids, window=8, stride=4).nll == pytest.approx(expected_nll(wide, ids), rel=1e-6)


def test_max_tokens_stops_in_the_middle() -> None:
    ids = list(np.random.default_rng(1).integers(0, VOCAB, 100))
    assert perplexity(TableModel(), iter(ids), window=8, stride=4, max_tokens=31).tokens == 30


def test_a_text_of_one_token_has_no_perplexity() -> None:
    assert math.isnan(perplexity(TableModel(), [3], window=8, stride=4).perplexity)


def test_a_model_does_not_diverge_from_itself() -> None:
    ids = list(np.random.default_rng(1).integers(0, VOCAB, 150))
    result = divergence(TableModel(), TableModel(max_logits=7), ids, window=16, stride=8)
    assert (result.kl_mean, result.kl_max, result.top1_agreement) == (0.0, 0.0, 1.0)
    assert result.perplexity_ratio() == (1.0, 1.0, 1.0)
    assert result.tokens == 149


def test_divergence_is_the_formula() -> None:
    ids = list(np.random.default_rng(1).integers(0, VOCAB, 50))
    model, reference = TableModel(1), TableModel(2)
    p, q = (np.exp(m.table.astype(np.float64)) for m in (reference, model))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kl = (p * np.log(p / q)).sum(1)[ids[:-1]]
    result = divergence(model, reference, ids, window=16, stride=8)
    assert result.kl_mean == pytest.approx(kl.mean())
    assert result.kl_max == pytest.approx(kl.max())
    assert result.top1_agreement == pytest.approx((p.argmax(1) == q.argmax(1))[ids[:-1]].mean())


def test_models_that_are_compared_at_once_diverge_as_each_does_alone_and_have_the_perplexities_of_their_own() -> None:
    ids = list(np.random.default_rng(1).integers(0, VOCAB, 90))
    sizes = {"window": 16, "stride": 8}
    several = divergences([TableModel(1), TableModel(3, max_logits=7)], TableModel(2), ids, **sizes)
    for seed, result in zip((1, 3), several, strict=True):
        assert result.numbers() == divergence(TableModel(seed), TableModel(2), ids, **sizes).numbers()
        assert result.perplexity.nll == pytest.approx(perplexity(TableModel(seed), ids, **sizes).nll, rel=1e-12)
        assert result.reference_perplexity.nll == pytest.approx(perplexity(TableModel(2), ids, **sizes).nll, rel=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.floats(0, 30), st.floats(0, 2))
def test_sums_in_single_precision_are_as_exact_as_logits(seed: int, spread: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    a = (random.normal(size=5000) * spread).astype(np.float32)
    b = (a + random.normal(size=5000) * shift + 1).astype(np.float32)

    def model(logits: FloatArray) -> TableModel:
        one = TableModel()
        one.vocab_limit, one.table = len(logits), np.tile(logits, (VOCAB, 1))
        return one

    p, q = (row.astype(np.float64) - row.max() - np.log(np.exp(row.astype(np.float64) - row.max()).sum()) for row in (a, b))
    result = divergence(model(b), model(a), [1, 2], window=8, stride=4)
    assert result.kl_mean == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-5, abs=2e-6)
    assert result.perplexity.nll == pytest.approx(-q[2], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_a_stride_that_cannot_be_is_refused(stride: int) -> None:
    with pytest.raises(UsageError, match="stride"):
        list(windows([1, 2, 3], 8, stride))


@given(st.text(alphabet="ab \n\té中", max_size=400))
def test_pieces_join_to_the_text_and_are_cut_at_visible_line_starts(content: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_CHARACTERS", 32)
        cut = list(pieces(content[start : start + 23] for start in range(0, len(content), 23)))
    assert "".join(cut) == content
    for before, after in itertools.pairwise(cut):
        assert (before.endswith("\n") and not after[0].isspace()) or len(before) == 32


def test_token_ids_reads_a_file_much_larger_than_a_piece(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    line = "one line of text\n"
    path.write_text(line * 40_000, encoding="utf-8")
    assert sum(1 for _ in token_ids(path, ByteEncoder())) == len(line) * 40_000


def test_text_that_is_not_utf8_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"fine \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        list(token_ids(path, ByteEncoder()))


def test_a_missing_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.txt"):
        list(token_ids(tmp_path / "absent.txt", ByteEncoder()))
