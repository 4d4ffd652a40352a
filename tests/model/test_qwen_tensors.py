"""Every tensor is used exactly once or named, whatever its format calls it; costs count what a token reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qwenbox.errors import ModelFormatError
from qwenbox.kernels import quants
from qwenbox.kernels.reference import ReferenceRunner
from qwenbox.model.config import Experts, ModelConfig, Rope
from qwenbox.model.costs import costs, kv_bytes
from qwenbox.model.forms import Forms
from qwenbox.model.load import random_config, random_network
from qwenbox.model.qwen import _NAMES, Qwen
from qwenbox.types import Batch, Span, Tensor

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 64, 4, 2, 16, 96, 50


def config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "architecture": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_layers": 2,
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "context_length": 64,
        "rope": Rope(1e4),
        "qk_norm": True,
        "qkv_bias": False,
        "tied_head": False,
    }
    return ModelConfig(**(fields | changes))


MOE = config(experts=Experts(4, 2, 32, True, 48, (1,)), architecture="qwen2_moe", qk_norm=False, qkv_bias=True)
CONFIGS = {"dense": config(), "tied": config(tied_head=True), "biased": config(qk_norm=False, qkv_bias=True), "moe": MOE}


class Recorder:
    """A tensor source that makes what is asked for and remembers it under the names of one format."""

    def __init__(self, column: int) -> None:
        self.column = column
        self.made: dict[str, Tensor] = {}

    def has(self, name: str) -> bool:
        return False

    def __call__(self, name: str, *shape: int, i: int = 0, e: int = 0) -> Tensor:
        full = _NAMES[name][self.column].format(i=i, e=e)
        values = np.random.default_rng(len(self.made)).normal(size=shape).astype(np.float32) / 8
        stored = shape[1:] if name == "shared_router" and self.column == 1 else shape
        self.made[full] = Tensor(full, "f32", stored, values.reshape(-1).view(np.uint8))
        return Tensor(full, "f32", shape, self.made[full].data)

    def experts(self, name: str, count: int, rows: int, columns: int, *, i: int) -> list[Tensor]:
        if self.column == 0:
            return [self(name, rows, columns, i=i, e=e) for e in range(count)]
        stack = self(name, count, rows, columns, i=i)
        return [stack.expert(e) for e in range(count)]

    def check_nothing_is_left(self) -> None:
        pass


def tensors(model: ModelConfig, column: int = 0) -> dict[str, Tensor]:
    recorder = Recorder(column)
    Qwen(model, recorder)
    return recorder.made


@pytest.mark.parametrize("column", [0, 1], ids=["transformers", "gguf"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_complete_set_of_tensors_is_accepted_and_runs(name: str, column: int) -> None:
    runner = ReferenceRunner(Qwen(CONFIGS[name], tensors(CONFIGS[name], column)))
    logits = runner.run(Batch(np.arange(5, dtype=np.int32), [Span(0, 5, 0, np.zeros(1, np.int32))], np.array([4], np.int32)))
    assert logits.shape == (1, VOCAB)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("column", [0, 1], ids=["transformers", "gguf"])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_missing_tensor_is_named(name: str, column: int) -> None:
    whole = tensors(CONFIGS[name], column)
    for missing in whole:
        if missing == _NAMES["embedding"][1]:
            continue  # without it a GGUF file is not recognised as one, and the other format's name is reported
        with pytest.raises(ModelFormatError, match=missing.replace(".", r"\.")):
            Qwen(CONFIGS[name], {key: tensor for key, tensor in whole.items() if key != missing})


@pytest.mark.parametrize("column", [0, 1], ids=["transformers", "gguf"])
def test_each_tensor_of_a_wrong_shape_is_named_with_both_shapes(column: int) -> None:
    whole = tensors(MOE, column)
    for name, tensor in whole.items():
        wrong = Tensor(
            name,
            "f32",
            (*tensor.shape[:-1], tensor.shape[-1] + 1),
            np.zeros(4 * (tensor.nbytes // 4 + tensor.nbytes // (4 * tensor.shape[-1])), np.uint8),
        )
        with pytest.raises(ModelFormatError, match=name.replace(".", r"\.")) as caught:
            Qwen(MOE, whole | {name: wrong})
        assert str(wrong.shape) in caught.value.message


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.o_proj.bias",
        "rope_freqs.weight",
        "x",
    ],
)
def test_a_tensor_without_a_place_is_named(extra: str) -> None:
    whole = tensors(config()) | {extra: Tensor(extra, "f32", (4,), np.ones(16, np.uint8))}
    with pytest.raises(ModelFormatError, match=extra.replace(".", r"\.")):
        Qwen(config(), whole)


def test_a_tied_model_may_store_its_head_again_if_it_is_the_same() -> None:
    tied = config(tied_head=True)
    whole = tensors(tied)
    embedding = whole["model.embed_tokens.weight"]
    again = Tensor("lm_head.weight", "f32", embedding.shape, embedding.data.copy())
    assert Qwen(tied, whole | {"lm_head.weight": again}).head is None
    again.data[3] ^= 1
    with pytest.raises(ModelFormatError, match="lm_head"):
        Qwen(tied, whole | {"lm_head.weight": again})


def test_a_gguf_file_without_a_head_is_tied_and_with_one_is_not() -> None:
    unsaid = config(tied_head=None)
    assert Qwen(unsaid, tensors(config(tied_head=True), 1)).head is None
    assert Qwen(unsaid, tensors(config(), 1)).head is not None


def test_a_quantised_vector_is_named() -> None:
    whole = tensors(config())
    norm = Tensor("model.norm.weight", "q8_0", (HIDDEN,), np.zeros(HIDDEN // 32 * 34, np.uint8))
    with pytest.raises(ModelFormatError, match=r"model\.norm\.weight.*q8_0"):
        Qwen(config(), whole | {"model.norm.weight": norm})


def test_both_formats_give_the_same_network() -> None:
    """The same numbers under both names; a GGUF stack is one tensor, so the numbers come from the stack."""
    stacked = tensors(MOE, 1)
    plain: dict[str, Tensor] = {}
    for name, (hf, gguf) in _NAMES.items():
        for layer in range(2):
            tensor = stacked.get(gguf.format(i=layer))
            if tensor is None:
                continue
            if "{e}" in hf:
                for e in range(4):
                    plain[hf.format(i=layer, e=e)] = tensor.expert(e)
            else:
                shape = (1, HIDDEN) if name == "shared_router" else tensor.shape
                plain[hf.format(i=layer)] = Tensor(hf, "f32", shape, tensor.data)
    batch = Batch(np.arange(7, dtype=np.int32), [Span(0, 7, 0, np.zeros(1, np.int32))], np.arange(7, dtype=np.int32))
    a, b = (ReferenceRunner(Qwen(MOE, some)).run(batch) for some in (stacked, plain))
    np.testing.assert_array_equal(a, b)


# --- costs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "parameters", "kv"),
    [
        ("0.6b", 596_049_920, 114_688),
        ("1.7b", 1_720_574_976, 114_688),
        ("4b", 4_022_468_096, 147_456),
        ("8b", 8_190_735_360, 147_456),
        ("30b-a3b", 30_532_122_624, 98_304),
    ],
)
def test_random_shapes_have_the_published_numbers_of_parameters_and_kv_bytes(shape: str, parameters: int, kv: int) -> None:
    network = random_network(random_config(shape), Forms.of("bf16").kind, 64)
    assert sum(int(np.prod(part.tensor.shape)) for part in network.parts()) == parameters
    assert kv_bytes(network.config) == kv
    vectors = sum(part.tensor.nbytes // 4 for part in network.parts() if part.role == "vector")
    assert costs(network).weights_bytes == 2 * parameters + 2 * vectors, "vectors are float32 in memory"


def test_a_token_of_the_8b_at_int4_reads_its_matrices_its_head_one_row_and_its_context() -> None:
    counted = costs(random_network(random_config("8b"), Forms.of("int4").kind, 64))
    linear, head, row, norms = 6_945_767_424, 151936 * 4096, 4096, 308_224
    assert counted.touched_bytes == linear // 128 * 67 + head // 128 * 130 + row // 128 * 130 + 4 * norms
    assert counted.bytes_per_token(1000) == counted.touched_bytes + 147_456 * 1001
    assert counted.operations_per_token(0) == 2 * (linear + head)
    assert counted.operations_per_token(1000, head=False) == 2 * linear + 4 * 36 * 4096 * 1000


def test_only_the_chosen_experts_are_counted() -> None:
    counted = costs(random_network(random_config("30b-a3b"), Forms.of("bf16").kind, 64))
    # Active parameters, embeddings included, are 3.35 billion; a token reads one row of the embedding, not all of it.
    assert counted.linear_operations + counted.head_operations == pytest.approx(2 * (3.35e9 - 151936 * 2048), rel=0.01)


def test_random_weights_are_finite_and_of_the_size_of_trained_ones() -> None:
    small = config(num_layers=1)
    for weights, kind in (("int4", "int4"), ("int8", "int8"), ("bf16", "bf16")):
        network = random_network(small, Forms.of(weights).kind, 64)
        prepared = network.prepare(network.layers[0].feed_forward.up, "linear")  # type: ignore[union-attr]
        assert prepared.kind == kind
        values = quants.dequantize(prepared)
        assert np.isfinite(values).all()
        assert 0.5 < values.std() * np.sqrt(HIDDEN) < 2


@pytest.mark.parametrize("edit", [lambda c: c | {"num_layers": 3}, lambda c: c | {"vocab_size": VOCAB + 1}, lambda c: c | {"qkv_bias": True}])
def test_tensors_of_another_configuration_do_not_load(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with pytest.raises(ModelFormatError):
        Qwen(config(**edit({})), tensors(config()))
