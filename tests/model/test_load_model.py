from __future__ import annotations

import os
import shutil
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenbox.errors import ModelFormatError, NotFoundError, UsageError
from qwenbox.kernels import native, reference
from qwenbox.kernels.program import SampleRow
from qwenbox.model.costs import Costs
from qwenbox.model.load import load_model, memory_need, plan_pages, random_config, random_model
from qwenbox.types import Batch, SamplingParams, Span
from tests.checkpoint import write_checkpoint
from tests.engine.fakes import eventually

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL: dict[str, Any] = {"context_length": 64, "num_pages": 4, "threads": 1, "max_batch_tokens": 64}


def batch(length: int = 5) -> Batch:
    return Batch(np.arange(length, dtype=np.int32), [Span(0, length, 0, np.zeros(1, np.int32))], np.array([length - 1], np.int32))


def test_a_model_tells_what_it_is_and_how_far_it_has_loaded() -> None:
    seen: list[float] = []
    with closing(load_model(GOLDEN / "qwen3_moe", progress=seen.append, **SMALL)) as model:
        assert (model.context_length, model.vocab_size, model.vocab_limit, model.num_pages, model.max_batch_tokens) == (64, 256, 256, 4, 64)
        assert model.threads == 1
        assert Costs(**model.costs).weights_bytes == model.weights_bytes  # type: ignore[arg-type]
        assert model.run(batch()).shape == (1, 256)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 10


@pytest.mark.parametrize("weights", [None, "int4"])
def test_progress_counts_every_byte_slice_by_slice(monkeypatch: pytest.MonkeyPatch, weights: str | None) -> None:
    seen: list[float] = []
    load_model(GOLDEN / "qwen3", weights=weights, progress=seen.append, **SMALL).close()
    assert seen[-2] == 1.0  # before the last word: the bytes came out even
    coarse = len(seen)
    monkeypatch.setattr(native, "_SLICE", 4096)
    seen.clear()
    load_model(GOLDEN / "qwen3", weights=weights, progress=seen.append, **SMALL).close()
    assert len(seen) > 1.5 * coarse
    assert seen == sorted(seen)
    assert max(after - before for before, after in pairwise(seen)) < 0.3


class Stopped(Exception):
    pass


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("after", [0.0, 0.5])
def test_loading_stops_where_progress_raises_and_leaves_no_threads(weights: str | None, after: float) -> None:
    def stop(fraction: float) -> None:
        if fraction > after:
            raise Stopped

    before = len(os.listdir("/proc/self/task"))
    with pytest.raises(Stopped):
        load_model(GOLDEN / "qwen3", weights=weights, progress=stop, **(SMALL | {"threads": 3}))
    eventually(lambda: len(os.listdir("/proc/self/task")) <= before)  # a joined thread may be listed for a moment


@pytest.mark.parametrize("weights", [None, "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["qwen3", "qwen2_tied", "qwen3_moe", "qwen2_moe"])
def test_native_and_oracle_give_the_same_bits_for_every_kind_of_weights(name: str, weights: str | None) -> None:
    results = []
    for backend in ("native", "reference"):
        with closing(load_model(GOLDEN / name, weights=weights, backend=backend, **SMALL)) as model:  # type: ignore[arg-type]
            results.append(model.run(batch(30)))
    np.testing.assert_array_equal(results[0], results[1])


def test_the_oracle_gives_the_same_bits_without_the_native_fma(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(load_model(GOLDEN / "qwen2_moe", weights="int4", backend="reference", **SMALL)) as model:
        quick = model.run(batch())
        monkeypatch.setattr(reference, "_processor_fma", lambda: None)
        np.testing.assert_array_equal(model.run(batch()), quick)


def test_smaller_weights_cost_fewer_bytes_a_token() -> None:
    sizes = []
    for weights in ("bf16", "int8", "int4"):
        with closing(load_model(GOLDEN / "qwen3", weights=weights, **SMALL)) as model:
            sizes.append(model.costs["touched_bytes"])
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


def test_a_row_without_numbers_is_sampled_as_minus_one_and_the_others_are_not_disturbed() -> None:
    logits = np.zeros((3, 256), np.float32)
    logits[0, 5], logits[1, 7], logits[2, 9] = 1, np.nan, 1
    no_ids = np.empty(0, np.int32)
    rows = [SampleRow(SamplingParams(temperature=0.0), no_ids, no_ids, 0, 256)] * 3
    for backend in ("native", "reference"):
        with closing(load_model(GOLDEN / "qwen3", backend=backend, **SMALL)) as model:  # type: ignore[arg-type]
            assert [result.id for result in model.sample(logits, rows)] == [5, -1, 9]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"weights": "int3"}, "int3.*stored, bf16, int8, int4"),
        ({"isa": "neon512"}, "neon512"),
        ({"context_length": 0}, "context_length 0"),
        ({"context_length": 513}, "513.*512"),
        ({"num_pages": None, "kv_bytes": 100}, "at least one page"),
        ({"num_pages": 1 << 40}, "memory are free.*a context of .* tokens fits"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_named_with_the_way_out(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_model(GOLDEN / "qwen3", **(SMALL | options))


def test_paths_that_are_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        load_model(tmp_path / "nothing")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelFormatError, match=r"model\.bin"):
        load_model(tmp_path / "model.bin")
    shutil.copy(GOLDEN / "qwen3" / "model.safetensors", tmp_path)
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        load_model(tmp_path)


GIB = 1 << 30


def pages(available: int, **options: Any) -> int:
    config = random_config("8b")
    return plan_pages(config, **({"context_length": 32768, "weights_bytes": 5 * GIB, "available": available} | options))


def test_pages_are_a_quarter_of_what_is_free_within_one_and_four_contexts() -> None:
    whole = 32768 // 32
    assert pages(11 * GIB) == whole, "one whole context, though it is more than a quarter"
    assert pages(1000 * GIB) == 4 * whole
    page = 147_456 * 32
    assert pages(30 * GIB) == int((30 - 5 - 0.5) * GIB * 0.25) // page
    assert pages(30 * GIB, kv_bytes=GIB) == GIB // page
    assert pages(30 * GIB, num_pages=7) == 7


def test_a_share_of_the_free_memory_holds_weights_and_pages() -> None:
    page = 147_456 * 32
    assert pages(20 * GIB, memory_util=0.5) == int((10 - 5 - 0.5) * GIB) // page
    assert pages(20 * GIB, memory_util=0.5, kv_bytes=GIB) == GIB // page
    with pytest.raises(UsageError, match=r"25% of 21\.47 GB of free memory do not hold the weights, 5\.37 GB.*larger memory_util"):
        pages(20 * GIB, memory_util=0.25)


def test_what_a_model_needs_at_least_is_what_it_can_be_loaded_with_and_not_a_byte_less(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    for form, kv_bytes, pages in ((None, None, 16), ("int8", None, 16), (None, 70_000, 4)):
        need = memory_need(path, weights=form, kv_bytes=kv_bytes)
        with closing(load_model(path, weights=form, kv_bytes=kv_bytes, memory_bytes=need.total, threads=1)) as model:
            assert (model.weights_bytes, model.num_pages) == (need.weights, pages)
        if kv_bytes is None:
            with pytest.raises(UsageError, match="of memory are free"):
                load_model(path, weights=form, memory_bytes=need.total - 1, threads=1)


def test_too_little_memory_is_said_before_anything_is_allocated() -> None:
    with pytest.raises(UsageError, match=r"weights need 5\.37 GB.*1024 pages.*4\.83 GB.*9\.66 GB of memory are free; a context of \d+ tokens fits"):
        pages(9 * GIB)
    with pytest.raises(UsageError, match=r"weights alone do not fit.*int8, int4"):
        pages(5 * GIB)


@pytest.mark.parametrize(("shape", "weights", "named"), [("7b", "int4", "7b.*30b-a3b"), ("8b", "f32", "f32.*bf16")])
def test_an_unknown_random_shape_or_kind_is_named(shape: str, weights: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        random_model(shape, weights)


@pytest.mark.long
def test_a_random_model_of_a_released_shape_runs() -> None:
    with closing(random_model("0.6b", "int4", context_length=64, max_sequences=1)) as model:
        logits = model.run(batch())
    assert np.isfinite(logits).all()
    assert logits.std() > 0
