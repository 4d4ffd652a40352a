"""Errors layer by layer: what is damaged is found where it is, and what changes nothing is no error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from qwenbox.errors import UsageError
from qwenbox.evaluate.layers import layer_errors
from qwenbox.kernels.quants import dequantize, round_bf16
from qwenbox.model.load import load_model, open_network
from qwenbox.model.qwen import Qwen, Role
from qwenbox.types import PAGE_TOKENS, Batch, Span, Tensor
from tests import thinker
from tests.checkpoint import write_checkpoint

IDS = [int(id) for id in np.random.default_rng(0).integers(0, 160, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("layers"))


def network(folder: Path, weights: str | None = None, changed: Mapping[str, float] | None = None) -> Qwen:
    """With noise of a relative size in some matrices."""
    opened = open_network(folder, weights=weights, positions=len(IDS))
    prepare = opened.prepare

    def damaged(tensor: Tensor, role: Role) -> Tensor:
        tensor = prepare(tensor, role)
        size = next((size for name, size in (changed or {}).items() if name in tensor.name), 0.0)
        if not size:
            return tensor
        values = dequantize(tensor)
        noise = np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
        values += noise * (size * np.linalg.norm(values) / np.linalg.norm(noise))
        return Tensor(tensor.name, "bf16", tensor.shape, round_bf16(values))

    opened.prepare = damaged
    return opened


def test_a_model_has_no_errors_compared_with_itself(folder: Path) -> None:
    for error in layer_errors(network(folder), network(folder), IDS):
        assert error.own == error.total == 0
        assert set(error.weights) == {"query", "key", "value", "output", "gate", "up", "down"}
        assert max(error.weights.values()) < 1e-6


def test_a_damaged_matrix_is_found_in_its_layer_and_its_error_goes_on(folder: Path) -> None:
    first, second = layer_errors(network(folder, changed={"layers.0.mlp.down_proj": 0.3}), network(folder), IDS)
    assert first.weights["down"] == pytest.approx(0.3, rel=0.05)
    assert max(value for name, value in first.weights.items() if name != "down") < 1e-6
    assert first.own > 0.01 and first.total > 0.01
    assert second.own == 0 and max(second.weights.values()) < 1e-6
    assert second.total > 0.01


def test_coarser_weights_have_larger_errors(folder: Path) -> None:
    fine, coarse = (layer_errors(network(folder, weights), network(folder), IDS) for weights in ("int8", "int4"))
    for int8, int4 in zip(fine, coarse, strict=True):
        assert 0 < 4 * int8.own < int4.own
        assert all(0 < 4 * int8.weights[name] < int4.weights[name] for name in int4.weights)


def test_the_outputs_are_those_of_the_engine(folder: Path) -> None:
    """The last layer's output, carried on to the logits, gives what the native runtime computes."""
    from qwenbox.evaluate.layers import _outputs
    from qwenbox.kernels.reference import rms_norm

    for weights in ("bf16", "int8"):
        opened = network(folder, weights)
        last = _outputs(opened, IDS, lambda: None)[-1]
        hidden = rms_norm(last, dequantize(opened.final_norm), opened.config.rms_norm_eps)
        logits = hidden @ dequantize(opened.prepare(opened.head or opened.embedding, "head")).T
        model = load_model(folder, weights=weights, context_length=64, num_pages=2)
        pages = np.arange(-(-len(IDS) // PAGE_TOKENS), dtype=np.int32)
        exact = model.run(Batch(np.array(IDS, np.int32), [Span(0, len(IDS), 0, pages)], np.arange(len(IDS), dtype=np.int32)))
        model.close()
        assert np.linalg.norm(logits - exact) < 0.02 * np.linalg.norm(exact)


def test_factors_that_move_between_neighbours_are_no_errors_of_the_weights(folder: Path) -> None:
    """As AWQ moves them: from a norm into the matrices behind it, from the columns of `down` into the rows of `up`."""
    reference, scaled = network(folder), network(folder)
    random = np.random.default_rng(2)
    hidden, inner = reference.config.hidden_size, reference.config.intermediate_size
    before, between = 2.0 ** random.integers(-2, 3, hidden), 2.0 ** random.integers(-2, 3, inner)
    factors = {
        "layers.0.post_attention_layernorm": 1 / before, "layers.0.mlp.gate_proj": before, "layers.0.mlp.up_proj": before / between[:, None],
        "layers.0.mlp.down_proj": between,
    }  # fmt: skip
    prepare = scaled.prepare

    def moved(tensor: Tensor, role: Role) -> Tensor:
        tensor = prepare(tensor, role)
        factor = next((factor for name, factor in factors.items() if name in tensor.name), None)
        if factor is None:
            return tensor
        return Tensor(tensor.name, "f32", tensor.shape, (dequantize(tensor) * factor).astype(np.float32).view(np.uint8).reshape(-1))

    scaled.prepare = moved
    layer = scaled.layers[0]
    object.__setattr__(layer, "feed_forward_norm", moved(layer.feed_forward_norm, "vector"))
    error = layer_errors(scaled, reference, IDS)[0]
    assert error.own < 1e-5
    assert max(error.weights.values()) < 1e-5


def test_models_of_different_shapes_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="differ in their"):
        layer_errors(network(folder), network(thinker.MODEL), IDS)
