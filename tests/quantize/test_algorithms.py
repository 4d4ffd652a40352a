"""The searches and roundings beside slow ones that say the same in the plainest way, and the forward pass beside our engine."""

from __future__ import annotations

import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import synth
from qwenbox.errors import ModelFormatError
from qwenbox.kernels.quants import dequantize, round_int4, round_int8
from qwenbox.model.config import from_hf
from qwenbox.model.load import load_model
from qwenbox.model.qwen import Qwen
from qwenbox.quantize.clip import SHARES, cut, search_steps
from qwenbox.quantize.gptq import DAMPING, inverse_of, round_columns
from qwenbox.quantize.grid import GROUPS, Grid, Steps
from qwenbox.quantize.inputs import Inputs
from qwenbox.quantize.layer import FloatLayer, Gated, Linear, float_layer, rms_norm
from qwenbox.quantize.method import METHODS, observe, quantize_layer, scale_layer
from qwenbox.quantize.parallel import one_thread_each
from qwenbox.quantize.scales import Consumer, scales_at, search_scales, weight_magnitude
from qwenbox.types import Batch, FloatArray, Span, Tensor
from qwenbox.weights.awq import pack, unpack
from qwenbox.weights.safetensors import read_directory, read_safetensors, write_safetensors
from tests.bench.test_synth import CONFIGS, METADATA

NAMES = sorted(CONFIGS)


def weights(rows: int = 16, columns: int = 256, seed: int = 0) -> FloatArray:
    random = np.random.default_rng(seed)
    return (random.standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


def tokens(count: int = 400, columns: int = 256, seed: int = 1) -> FloatArray:
    """Some inputs are ten times the others, and neighbours are alike."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, columns)) + random.normal(size=(count, 1))
    x[:, ::37] *= 10
    return x.astype(np.float32)


def output_error(weight: FloatArray, other: FloatArray, x: FloatArray) -> float:
    return float(np.mean(np.sum((x.astype(np.float64) @ (other - weight).T.astype(np.float64)) ** 2, axis=-1)))


# --- the grid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_plain_rounding_is_that_of_our_own_kinds(bits: int) -> None:
    rows = weights()
    rows[3, 128:] = 0
    rows[4, :128] = np.abs(rows[4, :128])
    kind, raw = ("int4", round_int4(rows)) if bits == 4 else ("int8", round_int8(rows))
    np.testing.assert_array_equal(Grid(bits, 128).round(rows).floats(), dequantize(Tensor("w", kind, rows.shape, raw)))
    np.testing.assert_array_equal(Grid(bits, 128).nearest(rows), Grid(bits, 128).round(rows).floats())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [4, 8])
def test_what_rounding_changes_is_the_same_natively_and_in_numpy(bits: int, group: int) -> None:
    rows, grid = weights(), Grid(bits, group)
    rows[3, 128:] = 0
    rows[4, :128] = np.abs(rows[4, :128])
    rows[5:7] *= np.array([[1e-7], [1e4]], np.float32)
    for scales in (None, np.exp(np.random.default_rng(2).normal(size=256)).astype(np.float32)):
        scaled = rows if scales is None else rows * scales
        for share in SHARES:
            nearest = grid.nearest(scaled, grid.steps(*cut(*grid.bounds(scaled), share)))
            np.testing.assert_array_equal(grid.change(rows, scales, share), (nearest if scales is None else nearest / scales) - rows)
    for bad in (np.nan, np.inf, 3e38):
        rows[2, 40] = bad
        with pytest.raises(ModelFormatError, match="does not fit fp16"):
            grid.change(rows)


def test_packed_matrices_are_read_as_they_were(tmp_path: Path) -> None:
    rounded = Grid(4, 128).round(weights())
    parts = pack(rounded.codes, rounded.steps.zeros.astype(np.uint8), rounded.steps.scales.astype(np.float16))
    write_safetensors(tmp_path / "model.safetensors", {f"model.layers.0.mlp.up_proj.{name}": part for name, part in parts.items()})
    (tmp_path / "config.json").write_text(
        '{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true}}'
    )
    (tensor,) = read_directory(tmp_path).tensors.values()
    np.testing.assert_array_equal(dequantize(unpack(tensor)), rounded.floats())  # type: ignore[arg-type]


def test_a_file_that_could_not_be_written_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_safetensors(tmp_path / "absent" / "x.safetensors", {"a": np.ones(3, np.float32)})
    write_safetensors(tmp_path / "x.safetensors", {"a": np.arange(3, dtype=np.float16)})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    np.testing.assert_array_equal(dequantize(read_safetensors(tmp_path / "x.safetensors")["a"]), np.arange(3))


# --- the searches --------------------------------------------------------------------------------------------------


def test_inputs_are_the_means_over_all_tokens() -> None:
    x = tokens()
    inputs = Inputs(256, 128, rows=4096, gram=True)
    inputs.add(x[:150])
    inputs.add(x[150:])
    divisor = np.linspace(0.5, 2, 256).astype(np.float32)
    inputs.divide(divisor)
    x = x / divisor
    gram = x.T @ x / len(x)
    np.testing.assert_allclose(inputs.magnitude, np.abs(x).mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.triu(inputs.take_gram()), np.triu(gram), atol=1e-4 * gram.max())
    for group, block in enumerate(inputs.blocks):
        np.testing.assert_allclose(block, gram[group * 128 :, group * 128 :][:128, :128], atol=1e-4 * gram.max())
    change = weights(64, seed=3)
    assert np.sum((change @ inputs.factor.T) ** 2) == pytest.approx(np.sum((change @ x.T) ** 2) / len(x), rel=0.05)


@pytest.mark.parametrize("variant", ["paper", "duo"])
def test_the_scales_that_are_found_are_nearly_the_best_of_all_ratios(variant: str) -> None:
    weight, x, grid = weights(64), tokens(), Grid(4, 128)
    inputs = Inputs(256, 128, rows=2048)
    inputs.add(x)
    found = search_scales([Consumer(weight, inputs)], inputs.magnitude, grid, variants=[variant])
    sizes = weight_magnitude([weight], grid)
    groups = np.abs(weight.reshape(64, 2, 128))
    np.testing.assert_allclose(sizes, (groups / (groups.max(-1, keepdims=True) + 1e-6)).mean(0).reshape(-1), rtol=1e-5)

    def error(scales: FloatArray) -> float:
        return output_error(weight, grid.nearest(weight * scales) / scales, x)

    every = [error(scales_at(inputs.magnitude, sizes, variant, step / 20)) for step in range(20)]
    assert error(found) < 1.05 * min(every)
    assert error(found) < 0.8 * error(np.ones(256, np.float32))


def test_the_ranges_that_are_found_are_the_best_of_each_group() -> None:
    weight, x, grid = weights(), tokens(), Grid(4, 128)
    inputs = Inputs(256, 128)
    inputs.add(x)
    found = grid.nearest(weight, search_steps(weight, inputs.blocks, grid)).reshape(16, 2, 128)
    groups = weight.reshape(16, 2, 128)
    for row in range(16):
        for group in range(2):
            seen, own = x[:, group * 128 :][:, :128], groups[row, group][None]
            largest, errors = np.abs(own).max(), []
            for share in SHARES:
                cut = np.clip(own, -largest * np.float32(share), largest * np.float32(share))
                errors.append(output_error(own, grid.nearest(own, grid.steps(*grid.bounds(cut))), seen))
            assert output_error(own, found[row, group][None], seen) == pytest.approx(min(errors), rel=1e-3)


def test_gptq_rounds_as_the_plainest_form_of_it_does() -> None:
    weight, x, grid = weights(8, 256), tokens(), Grid(4, 128)
    gram = (x.T @ x / len(x)).astype(np.float32)
    plain = grid.round(weight)
    rounded = round_columns(weight, inverse_of(gram.copy()), plain.steps, grid)

    # After each column the others take what minimises the error of the outputs: -error * H^-1[i, rest] / H^-1[i, i], over the columns left.
    h = gram.astype(np.float64) + DAMPING * float(np.mean(np.diag(gram))) * np.eye(256)
    left, out = weight.astype(np.float64), np.empty((8, 256))
    scales, zeros = (np.repeat(part, 128, axis=1).astype(np.float64) for part in plain.steps)
    order = sorted(range(256), key=lambda column: -gram[column, column])
    for place, column in enumerate(order):
        rest = order[place:]
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        code = np.clip(np.rint(left[:, column] / scales[:, column]) + zeros[:, column], 0, 15)
        out[:, column] = (code - zeros[:, column]) * scales[:, column]
        left[:, rest] -= np.outer((left[:, column] - out[:, column]) / inverse[0, 0], inverse[0])
    agree = rounded.floats() == out.astype(np.float32)
    assert agree.mean() > 0.99  # a weight half way between two codes can go either way, and takes those behind it along
    assert output_error(weight, rounded.floats(), x) < 0.5 * output_error(weight, plain.floats(), x)


def test_an_input_that_is_always_zero_disturbs_nothing() -> None:
    x = tokens()
    x[:, 5] = 0
    inverse = inverse_of((x.T @ x / len(x)).astype(np.float32))
    assert np.isfinite(inverse.factor).all()
    assert np.isfinite(round_columns(weights(), inverse, Steps(*Grid(4, 128).round(weights()).steps), Grid(4, 128)).floats()).all()


# --- the forward pass ----------------------------------------------------------------------------------------------


def layers(name: str, folder: Path) -> tuple[Qwen, list[FloatLayer]]:
    synth.write(folder, "bf16", replace(CONFIGS[name], context_length=128), synth.RandomWeights(0), METADATA)
    checkpoint = read_directory(folder)
    network = Qwen(from_hf(checkpoint.config), checkpoint.tensors)
    return network, [float_layer(network.config, layer, index) for index, layer in enumerate(network.layers)]


def logits(network: Qwen, parts: list[FloatLayer], ids: FloatArray) -> FloatArray:
    x = dequantize(network.embedding)[ids]
    rotation = tuple(table[: len(ids)] for table in network.rope)
    for layer in parts:
        x = x + layer.output(layer.mixed(x, rotation))  # type: ignore[arg-type]
        x = x + layer.fed_forward(layer.feed_forward_input(x))
    head = network.embedding if network.head is None else network.head
    return np.asarray(rms_norm(x, dequantize(network.final_norm), network.config.rms_norm_eps) @ dequantize(head).T)


@pytest.mark.parametrize("name", NAMES)
def test_the_forward_pass_is_the_engines_and_scales_do_not_change_it(name: str, tmp_path: Path) -> None:
    network, parts = layers(name, tmp_path)
    ids = np.random.default_rng(0).integers(0, 200, 48)
    ours = logits(network, parts, ids)
    with closing(load_model(tmp_path, context_length=64, num_pages=4, threads=1, max_batch_tokens=64)) as model:
        pages = np.arange(2, dtype=np.int32)
        theirs = model.run(Batch(ids.astype(np.int32), [Span(0, 48, 0, pages)], np.arange(48, dtype=np.int32)))
    assert np.abs(ours - theirs).max() < 0.03 * theirs.std()

    x = dequantize(network.embedding)[ids].reshape(2, 24, -1)
    grid, rotation = Grid(4, 64), tuple(table[:24] for table in network.rope)
    for layer in parts:
        sites, after = observe(layer, x, rotation, grid)  # type: ignore[arg-type]
        before = layer.attention_norm.copy()
        scale_layer(layer, sites, grid)
        again, same = observe(layer, x, rotation, grid)  # type: ignore[arg-type]
        np.testing.assert_allclose(same, after, atol=2e-3 * after.std())
        np.testing.assert_allclose(again.attention.magnitude, sites.attention.magnitude, rtol=1e-3)
        assert not np.array_equal(layer.attention_norm, before)
        x = after


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_a_layer_is_quantised_within_twice_its_size_and_what_enters_it(method: str) -> None:
    """A quarter as wide as one of Qwen3-8B, which leaves its memory in the same proportions but for pieces of fixed sizes."""
    hidden, inner, length = 1024, 3072, 128
    random = np.random.default_rng(0)

    def linear(rows: int, columns: int) -> Linear:
        return Linear(f"{rows} {columns} {random.random()}", random.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5))

    config = replace(CONFIGS["dense"], num_heads=8, num_kv_heads=2, head_dim=128)
    ones = np.ones(hidden, np.float32)
    angles = np.outer(np.arange(length), 10000.0 ** -(np.arange(64) / 64)).astype(np.float32)
    tracemalloc.start()
    try:
        attention = [linear(hidden, hidden), linear(256, hidden), linear(256, hidden)]
        gated = Gated(linear(inner, hidden), linear(inner, hidden), linear(hidden, inner))
        layer = FloatLayer(config, ones.copy(), *attention, None, None, linear(hidden, hidden), ones.copy(), gated)
        x = random.standard_normal((16, length, hidden), np.float32)
        size = sum(linear.weight.nbytes for linear in layer.linears)
        with one_thread_each():
            quantize_layer(layer, x, (np.cos(angles), np.sin(angles)), METHODS[method], Grid(4, 128))
        assert tracemalloc.get_traced_memory()[1] < 2 * size + x.nbytes + (16 << 20)
    finally:
        tracemalloc.stop()
