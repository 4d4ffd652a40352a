"""Tiny Qwen3, Qwen2 and their mixtures of experts against transformers: logits and hidden states.

How the bounds are derived stands in tests/golden/make.py.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenbox.kernels import quants
from qwenbox.kernels.native import isa_available
from qwenbox.model.config import from_hf
from qwenbox.model.load import Backend, Model, load_model
from qwenbox.model.qwen import Qwen
from qwenbox.types import Batch, FloatArray, Span, Tensor
from qwenbox.weights.safetensors import read_directory

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MODELS = ("qwen3", "qwen3_yarn", "qwen2_tied", "qwen3_moe", "qwen2_moe")
VARIANTS = ("stored", "int8", "int4")


def batch_of(ids: np.ndarray) -> Batch:
    return Batch(ids, [Span(0, len(ids), 0, np.arange(-(-len(ids) // 32), dtype=np.int32))], np.arange(len(ids), dtype=np.int32))


@contextmanager
def directory_of(name: str, tmp_path: Path) -> Iterator[Path]:
    """The checkpoint; one that shares its weights gets a copy of them."""
    directory = GOLDEN / name
    if not (directory / "model.safetensors").exists():
        for file in (directory / "config.json", GOLDEN / name.partition("_")[0] / "model.safetensors"):
            shutil.copy(file, tmp_path)
        directory = tmp_path
    yield directory


def load(name: str, tmp_path: Path, variant: str, backend: Backend) -> Model:
    with directory_of(name, tmp_path) as directory:
        return load_model(
            directory,
            weights=None if variant == "stored" else variant,
            backend=backend,
            # The stored bounds are those of float32 inputs, which bf16 weights do not have in the amx variant.
            isa=next(isa for isa in isa_available() if isa != "amx" or variant != "stored"),
            context_length=64,
            num_pages=2,
            max_batch_tokens=64,
            threads=1,
        )


def arrays(name: str, output: str = "logits") -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / f"{output}.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_hidden_states_are_those_of_transformers_within_the_derived_bound(
    name: str, variant: str, backend: Backend, tmp_path: Path
) -> None:
    with closing(load(name, tmp_path, variant, backend)) as model:
        for output in ("logits", "hidden"):
            stored = arrays(name, output)
            values = model.run(replace(batch_of(stored["ids"]), hidden=output == "hidden"))
            share = np.abs(values - stored[f"{variant}_{output}"]) / stored[f"{variant}_bounds"]
            assert share.max() <= 1
            # A bound that nothing comes near would hide mistakes: rounding alone must use a visible part of it.
            assert share.max() > 0.02


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_have_the_bits_of_the_slow_twin_in_one_piece_and_in_several(name: str, variant: str, tmp_path: Path) -> None:
    with closing(load(name, tmp_path, variant, "reference")) as slow, closing(load(name, tmp_path, variant, "native")) as fast:
        whole = replace(batch_of(arrays(name)["ids"]), hidden=True)
        expected = slow.run(whole)
        np.testing.assert_array_equal(fast.run(whole), expected)
        (span,) = whole.spans
        for first, end in ((0, 2), (2, 3), (3, len(whole.ids))):
            # Nothing but keys and values of the tokens before: a batch may want no row at all, which both take.
            part = Batch(whole.ids[first:end], [Span(0, end - first, first, span.pages)], np.arange(end - first, dtype=np.int32), hidden=True)
            np.testing.assert_array_equal(fast.run(part), expected[first:end])
            for model in (fast, slow):
                assert model.run(replace(part, hidden=False, logits_rows=np.empty(0, np.int32))).shape == (0, 256)


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_tight_enough_to_see_a_wrong_network(name: str, tmp_path: Path) -> None:
    """The same weights with plain rotation, one more position, one expert swapped or unnormalised queries are outside the bound."""
    stored = arrays(name)
    with closing(load(name, tmp_path, "stored", "reference")) as model:
        shifted = model.run(
            Batch(stored["ids"][1:], [Span(0, len(stored["ids"]) - 1, 0, np.zeros(1, np.int32))], np.arange(len(stored["ids"]) - 1, dtype=np.int32))
        )
    assert (np.abs(shifted - stored["stored_logits"][1:]) > stored["stored_bounds"][1:]).mean() > 0.3


def test_yarn_is_not_plain_rotation() -> None:
    plain, yarn = arrays("qwen3"), arrays("qwen3_yarn")
    np.testing.assert_array_equal(plain["ids"], yarn["ids"])
    assert (np.abs(plain["stored_logits"] - yarn["stored_logits"]) > yarn["stored_bounds"]).any()


def widened(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, "f32", tensor.shape, quants.dequantize(tensor).reshape(-1).view(np.uint8))


@pytest.mark.parametrize("name", ["qwen3", "qwen2_moe"])
def test_a_float32_copy_of_a_bf16_checkpoint_gives_the_same_bits(name: str) -> None:
    from qwenbox.kernels.reference import ReferenceRunner

    checkpoint = read_directory(GOLDEN / name)
    config = from_hf(checkpoint.config)
    batch = batch_of(arrays(name)["ids"])
    results: list[FloatArray] = []
    for tensors in (checkpoint.tensors, {key: widened(tensor) for key, tensor in checkpoint.tensors.items()}):
        results.append(ReferenceRunner(Qwen(config, tensors, positions=64)).run(batch))
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_transformers_still_says_what_is_stored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(GOLDEN))
    make: Any = importlib.import_module("make")
    for output in ("logits", "hidden"):
        stored = arrays(name, output)
        for variant in VARIANTS:
            ids, values, bounds = make.golden(name, variant, output)
            np.testing.assert_array_equal(ids, stored["ids"])
            np.testing.assert_allclose(values, stored[f"{variant}_{output}"], rtol=0, atol=1e-5 * np.abs(values).max())
            np.testing.assert_allclose(bounds, stored[f"{variant}_bounds"], rtol=1e-3)
