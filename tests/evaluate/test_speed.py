"""The workload of a measurement: what is run, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qwenbox.errors import NumericalError, UsageError
from qwenbox.evaluate.speed import Repetition, Workload, matrix_kind, measure, summary
from qwenbox.kernels.ceiling import Ceilings, ReadPattern
from qwenbox.kernels.program import SampleResult, SampleRow
from qwenbox.model.costs import Costs
from qwenbox.types import Batch, FloatArray

COSTS = Costs(weights_bytes=3000, touched_bytes=2000, kv_bytes=10, linear_operations=6000, head_operations=1000, attention_operations=4)


def ceilings(bandwidth: float = 100.0, int8: float = 50.0) -> Ceilings:
    return Ceilings(bandwidth, ReadPattern("none", 0, 1), 2 * int8, int8, "vnni", 7.0, 5.0, "fma")


class Recorder:
    """A model that checks every batch against the rules and remembers them."""

    vocab_limit = 50
    spared_bytes = 0

    def __init__(self, num_pages: int = 100, max_batch_tokens: int = 16, max_logits: int = 8, chosen: int = 7) -> None:
        self.num_pages, self.max_batch_tokens, self.max_logits, self.chosen = num_pages, max_batch_tokens, max_logits, chosen
        self.lengths: dict[int, int] = {}
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> FloatArray:
        assert 0 < batch.num_tokens <= self.max_batch_tokens
        assert (batch.ids < self.vocab_limit).all()
        row = 0
        for span in batch.spans:
            assert span.start == row
            row += span.length
            owner = int(span.pages[0])
            assert len(span.pages) == -(-(span.position + span.length) // 32)
            assert span.position in (0, self.lengths.get(owner))
            self.lengths[owner] = span.position + span.length
        assert row == batch.num_tokens
        if batch.largest:
            assert batch.largest == self.vocab_limit
            self.spared_bytes += 11
        self.batches.append(batch)
        return np.zeros((len(batch.logits_rows), 60), np.float32)

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        assert len(logits) == len(rows)
        assert all(row.params.temperature == 0 for row in rows)
        return [SampleResult(self.chosen)] * len(rows)


@pytest.mark.parametrize(("prompt", "new", "batch"), [(1, 1, 1), (40, 3, 1), (40, 3, 3), (16, 1, 8), (33, 64, 2)])
def test_every_stream_gets_its_whole_prompt_and_answer(prompt: int, new: int, batch: int) -> None:
    model = Recorder()
    repetitions = measure(model, Workload(prompt, new, batch), repeat=2, ceilings=ceilings)
    assert [repetition.spared_bytes for repetition in repetitions] == [11 * new] * 2
    assert len(model.lengths) >= batch
    assert sorted(model.lengths.values())[-batch:] == [prompt + new] * batch
    decoding = [b for b in model.batches if all(span.length == 1 for span in b.spans) and len(b.spans) == batch]
    assert len(decoding) >= 2 * new
    assert all((b.ids == 7).all() for b in decoding[-new:])


def test_ceilings_are_measured_around_every_repetition() -> None:
    moments = iter(range(1, 10))
    repetitions = measure(Recorder(), Workload(8, 2), repeat=3, ceilings=lambda: ceilings(bandwidth=float(next(moments))))
    assert [(r.before.bandwidth, r.after.bandwidth) for r in repetitions] == [(1, 2), (2, 3), (3, 4)]


def test_a_workload_without_room_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match="need 4 pages"):
        measure(Recorder(num_pages=3), Workload(100, 20), repeat=1, ceilings=ceilings)


def test_nan_is_an_error_and_not_a_speed() -> None:
    with pytest.raises(NumericalError):
        measure(Recorder(chosen=-1), Workload(4, 1), repeat=1, ceilings=ceilings)


def test_the_summary_is_the_formulas() -> None:
    work = Workload(prompt_tokens=3, new_tokens=2, batch=2)
    # Context of the two new tokens: 4 and 5 positions, and each also writes its own.
    assert work.bytes_per_token(COSTS) == 2000 / 2 + (4 * 10 + 5 * 10) / 2 + 10
    # Each of 3 positions runs the layers and sees 1, 2, 3 positions; the head runs once.
    # Products at 50 a second, attention at 5.
    assert work.least_prefill_seconds(COSTS, {"int8_l1": 50.0, "bf16_l1": 5.0}.__getitem__) == 2 * ((3 * 6000 + 1000) / 50 + 4 * (1 + 2 + 3) / 5)
    repetitions = [Repetition(seconds, 2 * seconds, 77, 20, ceilings(80.0, 40.0), ceilings(120.0, 60.0)) for seconds in (1.0, 2.0, 4.0)]
    numbers = summary(work, repetitions, COSTS)
    assert numbers["prefill_tok_s"] == 6 / 2.0
    assert numbers["decode_tok_s"] == 4 / 4.0
    # Of the head, 20 bytes were spared in four tokens.
    assert numbers["bytes_per_token"] == 1050
    assert numbers["bandwidth_gb_s"] == pytest.approx(1050 * 1.0 / 1e9)
    assert numbers["bandwidth_fraction"] == pytest.approx(1050 * 1.0 / 100)
    assert numbers["compute_fraction"] == pytest.approx(2 * (19_000 / 50 + 24 / 5) / 2.0)
    assert numbers["ceiling_method"] == "vnni"
    assert numbers["rss_bytes"] == 77


def test_sixteen_bit_weights_are_judged_by_the_bf16_ceiling() -> None:
    assert matrix_kind(COSTS) == "int8"
    assert matrix_kind(Costs(7000, 7000, 10, 6000, 1000, 4)) == "bf16"
