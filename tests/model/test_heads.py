"""Kinds of head and embedding: what is asked for is what is in memory and what is counted, in one matrix or in two."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenbox.errors import UsageError
from qwenbox.hub.catalogue import CATALOGUE
from qwenbox.kernels.native import isa_available
from qwenbox.kernels.program import SampleRow
from qwenbox.model.choice import Machine, entry_costs, offers
from qwenbox.model.load import Model, load_model, memory_need, open_network, random_model, stored_costs
from qwenbox.types import Batch, FloatArray, IntArray, SamplingParams, Span
from tests.checkpoint import write_checkpoint
from tests.tiny import tiny_gguf

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL: dict[str, Any] = {"context_length": 64, "num_pages": 2, "threads": 1, "max_batch_tokens": 64}
LARGE = 16_400
"""Rows of a head that is worth a sketch."""
SKETCH = LARGE * 72
GROUP = {"f32": 256, "bf16": 128, "int8": 130, "int4": 67}
"""Bytes of a row of the checkpoint, whose 64 inputs are a whole group where they are rounded to one."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that is the embedding, in f32."""
    return write_checkpoint(tmp_path_factory.mktemp("large"), vocab=LARGE)


def run(model: Model, ids: IntArray, position: int = 0, largest: int = 0) -> FloatArray:
    return model.run(Batch(ids, [Span(0, len(ids), position, np.zeros(1, np.int32))], np.array([len(ids) - 1], np.int32), largest))


def greedy(model: Model, tokens: int) -> list[tuple[int, float]]:
    """Ids with their logits, asked for as the engine does for a greedy answer."""
    ids, none = np.array([1, 2, 3], np.int32), np.empty(0, np.int32)
    position, found = 0, []
    for _ in range(tokens):
        logits = run(model, ids, position, model.vocab_size)
        position += len(ids)
        chosen = model.sample(logits, [SampleRow(SamplingParams(temperature=0.0), none, none, position, model.vocab_size)])[0].id
        found.append((chosen, float(logits[0, chosen])))
        ids = np.array([chosen], np.int32)
    return found


@pytest.mark.parametrize("name", ["qwen3", "qwen2_tied"])
@pytest.mark.parametrize(
    ("head", "embedding"), [("int8", None), ("int4", None), ("int4", "bf16"), ("int4", "int8"), ("int8", "int4"), (None, "stored"), ("int4", "int4")]
)
def test_every_variant_and_the_oracle_give_the_same_bits_with_each_kind(name: str, head: str | None, embedding: str | None) -> None:
    ids = np.arange(30, dtype=np.int32)
    forms: dict[str, Any] = {"weights": "int8", "head": head, "embedding": embedding}
    with closing(load_model(GOLDEN / name, **forms, backend="reference", **SMALL)) as model:
        expected = run(model, ids)
    for isa in isa_available():
        with closing(load_model(GOLDEN / name, **forms, isa=isa, **SMALL)) as model:
            np.testing.assert_array_equal(run(model, ids), expected)


def test_what_an_embedding_of_its_own_says_is_not_what_the_head_says() -> None:
    """One matrix for both becomes two, and only then."""
    one = open_network(GOLDEN / "qwen2_tied", head="int4", positions=8)
    assert one.head is None
    two = open_network(GOLDEN / "qwen2_tied", head="int4", embedding="stored", positions=8)
    assert two.head is two.embedding
    assert [two.prepare(two.embedding, role).kind for role in ("embedding", "head")] == ["bf16", "int4"]  # type: ignore[arg-type]
    assert open_network(GOLDEN / "qwen2_tied", head="int4", embedding="int4", positions=8).head is None
    assert open_network(GOLDEN / "qwen2_tied", embedding="bf16", positions=8).head is None, "as it is stored"


@pytest.mark.parametrize(
    ("head", "embedding", "matrices", "read"),
    [
        (None, None, GROUP["f32"], "f32"),
        ("bf16", None, GROUP["bf16"], "bf16"),
        ("int8", None, GROUP["int8"], "int8"),
        ("two-stage", None, GROUP["int8"] + 72, "int8"),
        ("int4", None, GROUP["int4"], "int4"),
        ("int4", "bf16", GROUP["int4"] + GROUP["bf16"], "int4"),
        (None, "int8", GROUP["f32"] + GROUP["int8"], "f32"),
    ],
)
def test_bytes_are_promised_counted_and_held_as_the_kinds_say(head: str | None, embedding: str | None, matrices: int, read: str, large: Path) -> None:
    forms = {"head": head, "embedding": embedding}
    rest = stored_costs(large).weights_bytes - LARGE * GROUP["f32"]
    own = stored_costs(large, **forms)
    assert own.weights_bytes - rest == LARGE * matrices
    row = GROUP[embedding] if embedding else 0
    assert own.touched_bytes - rest == LARGE * GROUP[read] + row
    assert memory_need(large, head=head, embedding=embedding).weights == own.weights_bytes
    with closing(load_model(large, head=head, embedding=embedding, **SMALL)) as model:
        assert model.weights_bytes == own.weights_bytes
        assert model.costs["touched_bytes"] == own.touched_bytes


def test_a_head_in_two_stages_says_what_int8_says_and_reads_less(large: Path) -> None:
    answers, spared = [], []
    for head in ("int8", "two-stage", None):
        with closing(load_model(large, weights="int8", head=head, **SMALL)) as model:
            answers.append(greedy(model, 12))
            spared.append(model.spared_bytes)
    assert answers[0] == answers[1] == answers[2]
    assert spared[0] == 0 and spared[1] == spared[2] != 0


@pytest.mark.parametrize(
    ("forms", "told"),
    [
        ({}, []),
        ({"head": "int8"}, ["the head is rounded from q8_0 to int8"]),
        ({"head": "int8", "embedding": "int8"}, ["the head is rounded from q8_0 to int8"]),
        ({"head": "int8", "embedding": "int4"}, ["the embedding is rounded from q8_0 to int4", "the head is rounded from q8_0 to int8"]),
        ({"embedding": "int4"}, ["the embedding is rounded from q8_0 to int4"]),
    ],
)
def test_each_matrix_that_is_rounded_again_is_told_once(
    forms: dict[str, Any], told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tied.gguf"
    path.write_bytes(tiny_gguf(embedding="q8_0"))
    load_model(path, **forms, **SMALL).close()
    lost = [record.getMessage() for record in caplog.records if "a second time" in record.getMessage()]
    assert lost == [f"tied.gguf: {one}: answers lose quality a second time" for one in told]


@pytest.mark.parametrize(
    ("forms", "named"),
    [
        ({"head": "two-stage"}, "256 rows is not read in two stages.*16384.*use int8"),
        ({"head": "q6_k"}, "head 'q6_k' is unknown; choose one of stored, bf16, int8, int4, two-stage"),
        ({"embedding": "two-stage"}, "embedding 'two-stage' is unknown; choose one of stored, bf16, int8, int4$"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_way_out(forms: dict[str, Any], named: str) -> None:
    for ask in (memory_need, stored_costs, load_model):
        with pytest.raises(UsageError, match=named) as raised:
            ask(GOLDEN / "qwen3", **forms)  # type: ignore[operator]
        assert raised.value.param == next(iter(forms))


def test_offered_models_are_predicted_with_the_kinds_of_the_settings() -> None:
    entry, machine = CATALOGUE["qwen3-8b-awq"], Machine(64 * 10**9, 24e9)
    rows, columns = 151_936, 4096
    whole, small = entry_costs(entry, head="stored"), entry_costs(entry, head="int4")
    assert whole.touched_bytes - small.touched_bytes == rows * columns // 128 * (256 - 67)
    assert entry_costs(entry).touched_bytes - small.touched_bytes == rows * columns // 128 * (130 - 67)
    assert entry_costs(entry, head="int8").weights_bytes + rows * columns // 128 * 72 == entry_costs(entry).weights_bytes
    fast, slow = ({offer.name: offer for offer in offers(machine, head=head)}[entry.name] for head in ("int4", "bf16"))
    assert fast.speed / slow.speed == pytest.approx(whole.touched_bytes / small.touched_bytes)
    assert (fast.memory < slow.memory, fast.download) == (True, slow.download)
    tied = CATALOGUE["qwen3-4b-q4_k_m"]
    apart = entry_costs(tied, embedding="int8").weights_bytes - entry_costs(tied).weights_bytes
    assert apart == 151_936 * math.ceil(2560 / 128) * 130, "beside its head in six bits"


@pytest.mark.long
def test_random_weights_have_the_kinds_that_are_asked_for() -> None:
    with closing(random_model("0.6b", "int4", head="int4", embedding="int8", context_length=64, max_sequences=1, num_pages=2)) as model:
        one = random_model("0.6b", "int4", head="int4", context_length=64, max_sequences=1, num_pages=2)
        one.close()
        assert model.weights_bytes - one.weights_bytes == 151_936 * 1024 // 128 * 130
        assert np.isfinite(run(model, np.arange(5, dtype=np.int32))).all()
