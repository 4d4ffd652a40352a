"""Checkpoints that independent programs quantised, against what those programs and transformers say of them; layouts against slow twins; what is
refused. tests/weights/record_quantised.py made the folders of tests/weights/data."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.kernels import quants
from qwenbox.model.load import Backend, Model, load_model
from qwenbox.types import Batch, FloatArray, PackedTensor, Span, Tensor
from qwenbox.weights import read_directory
from qwenbox.weights.files import StoredArray
from qwenbox.weights.packed import packed_tensors, unpack
from qwenbox.weights.schemes import SCHEMES, Scheme

DATA = Path(__file__).parent / "data"
WITNESSES = sorted(path.name for path in DATA.iterdir() if path.is_dir())


def packed(name: str) -> dict[str, PackedTensor]:
    return {key: tensor for key, tensor in read_directory(DATA / name).tensors.items() if isinstance(tensor, PackedTensor)}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.method} {scheme.bits} bits{' with zeros' * scheme.zeros}")
def test_what_the_table_says_is_read_was_written_by_an_independent_program(scheme: Scheme) -> None:
    kinds = {tensor.kind for name in scheme.witnesses for tensor in packed(name).values()}
    assert set(scheme.kinds.values()) <= kinds
    described = [json.loads((DATA / name / "config.json").read_text())["quantization_config"] for name in scheme.witnesses]
    assert {each["quant_method"] for each in described} == {scheme.method}
    key = {"awq": "version", "gptq": "checkpoint_format", "compressed-tensors": "format"}[scheme.method]
    assert {each[key] for each in described} == set(scheme.forms)


@pytest.mark.parametrize("name", WITNESSES)
def test_weights_are_those_that_the_program_itself_dequantises(name: str) -> None:
    digests = json.loads((DATA / name / "witness.json").read_text())["weights"]
    found = {key: hashlib.sha256(quants.dequantize(unpack(tensor)).tobytes()).hexdigest() for key, tensor in packed(name).items()}
    assert found == digests


def load(path: Path, backend: Backend, weights: str | None = "stored") -> Model:
    return load_model(path, weights=weights, backend=backend, context_length=64, num_pages=2, max_batch_tokens=64, threads=1)


def logits_of(path: Path, backend: Backend, weights: str | None = "stored") -> FloatArray:
    with np.load(DATA / "gptq_128" / "logits.npz") as stored:
        ids = stored["ids"]
    with closing(load(path, backend, weights)) as model:
        return model.run(Batch(ids, [Span(0, len(ids), 0, np.zeros(1, np.int32))], np.arange(len(ids), dtype=np.int32)))


@pytest.mark.parametrize("name", WITNESSES)
def test_logits_are_those_of_transformers_within_the_derived_bound(name: str) -> None:
    with np.load(DATA / name / "logits.npz") as stored:
        expected, bounds = stored["logits"], stored["bounds"]
    native, reference = (logits_of(DATA / name, backend) for backend in ("native", "reference"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(native, reference)
    share = np.abs(native - expected) / bounds
    assert 0.02 < share.max() <= 1


# --- layouts -------------------------------------------------------------------------------------------------------

DTYPES = {"int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32", "uint16": "BF16"}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True, "dynamic": False}
GROUP_0: dict[str, Any] = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None, "output_activations": None}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": GROUP_0},
    "ignore": ["lm_head"],
}


def stored(array: np.ndarray) -> StoredArray:
    return StoredArray(DTYPES[array.dtype.name], array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def words(codes: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Codes along an axis, a number at a time, into words of 32 bits."""
    per = 32 // bits
    moved = np.moveaxis(codes, axis, 0)
    out = np.zeros((len(moved) // per, *moved.shape[1:]), np.uint32)
    for index, values in enumerate(moved):
        out[index // per] |= values.astype(np.uint32) << np.uint32(index % per * bits)
    return np.moveaxis(out, 0, axis).view(np.int32)


class Drawn:
    """A random matrix: `weights` is what its formula gives, a group at a time."""

    def __init__(self, rows: int, columns: int, bits: int, group: int, zeros: bool) -> None:
        random = np.random.default_rng(rows + columns + bits + group)
        self.bits, self.group, groups = bits, group, columns // group
        self.codes = random.integers(0, 1 << bits, (rows, columns))
        self.zeros = random.integers(0, 1 << bits, (rows, groups)) if zeros else np.full((rows, groups), 1 << (bits - 1))
        self.scales = random.uniform(-1, 1, (rows, groups)).astype(np.float16)
        self.symmetric = not zeros
        self.weights = np.empty((rows, columns), np.float32)
        for k in range(columns):
            self.weights[:, k] = (self.codes[:, k] - self.zeros[:, k // group]).astype(np.float32) * self.scales[:, k // group].astype(np.float32)

    def gptq(self, form: str = "gptq") -> dict[str, StoredArray]:
        zeros = words(self.zeros.T, self.bits, 1).view(np.uint32)
        if form == "gptq":
            zeros = zeros - np.uint32(sum(1 << shift for shift in range(0, 32, self.bits)))
        arrays = {
            "qweight": words(self.codes.T, self.bits, 0),
            "qzeros": zeros.view(np.int32),
            "scales": self.scales.T,
            "g_idx": np.arange(self.codes.shape[1], dtype=np.int32) // self.group,
        }
        return {f"m.{name}": stored(array) for name, array in arrays.items()}

    def compressed(self) -> dict[str, StoredArray]:
        arrays = {
            "weight_packed": words(self.codes, self.bits, 1),
            "weight_scale": self.scales,
            "weight_shape": np.array(self.codes.shape, np.int64),
        }
        if not self.symmetric:
            arrays["weight_zero_point"] = words(np.pad(self.zeros, ((0, -len(self.zeros) % 8), (0, 0))), self.bits, 0)[
                : -(-len(self.zeros) * self.bits // 32)
            ]
        return {f"m.{name}": stored(array) for name, array in arrays.items()}


def read(quantization: dict[str, Any], arrays: dict[str, StoredArray]) -> Tensor:
    tensor = packed_tensors(quantization, "config.json", arrays)["m.weight"]
    assert isinstance(tensor, PackedTensor)
    return unpack(tensor)


SHAPES = [
    (rows, columns, bits, group, zeros, kind)
    for rows, columns in ((8, 256), (200, 768))
    for bits, group, zeros, kind in (
        (4, 128, True, "int4"),
        (4, 128, False, "int4"),
        (4, 256, True, "int4"),
        (4, 64, True, "int4_64"),
        (4, 32, False, "int4_32"),
        (8, 128, False, "int8"),
        (8, 128, True, "uint8"),
        (8, 256, True, "uint8"),
        (8, 64, False, "q8_0"),
        (8, 32, False, "q8_0"),
    )
]


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(("rows", "columns", "bits", "group", "zeros", "kind"), SHAPES)
def test_words_of_gptq_are_the_numbers_of_their_formula(rows: int, columns: int, bits: int, group: int, zeros: bool, kind: str, form: str) -> None:
    drawn = Drawn(rows, columns, bits, group, zeros)
    tensor = read(GPTQ | {"bits": bits, "group_size": group, "checkpoint_format": form}, drawn.gptq(form))
    assert (tensor.name, tensor.kind, tensor.shape) == ("m.weight", kind, (rows, columns))
    np.testing.assert_array_equal(quants.dequantize(tensor), drawn.weights)
    np.testing.assert_array_equal(quants.codes(tensor).codes, drawn.codes - drawn.zeros.repeat(group, axis=1))


@pytest.mark.parametrize(("rows", "columns", "bits", "group", "zeros", "kind"), [*SHAPES, (12, 128, 4, 128, True, "int4")])
def test_words_of_compressed_tensors_are_the_numbers_of_their_formula(rows: int, columns: int, bits: int, group: int, zeros: bool, kind: str) -> None:
    drawn = Drawn(rows, columns, bits, group, zeros)
    weights = WEIGHTS | {"num_bits": bits, "group_size": group}
    tensor = read(COMPRESSED | {"config_groups": {"group_0": GROUP_0 | {"weights": weights}}}, drawn.compressed())
    assert (tensor.name, tensor.kind, tensor.shape) == ("m.weight", kind, (rows, columns))
    np.testing.assert_array_equal(quants.dequantize(tensor), drawn.weights)
    np.testing.assert_array_equal(quants.codes(tensor).codes, drawn.codes - drawn.zeros.repeat(group, axis=1))


@pytest.mark.parametrize("scale", [2.0**-17 * 1.5, 2.0**-24, 448.0, 0.0, -0.001953125])
def test_a_scale_of_bf16_that_fp16_holds_is_kept(scale: float) -> None:
    drawn = Drawn(8, 128, 4, 128, True)
    bits = np.full((1, 8), scale, np.float32).view(np.uint32) >> 16
    arrays = drawn.gptq() | {"m.scales": stored(bits.astype(np.uint16))}
    expected = (drawn.codes - drawn.zeros).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(quants.dequantize(read(GPTQ, arrays)), expected)


@pytest.mark.parametrize("scale", [2.0**-25, 2.0**-20 * 1.0078125, 1e5])
def test_a_scale_of_bf16_that_fp16_does_not_hold_is_refused_with_its_number_and_place(scale: float) -> None:
    bits = np.full((1, 8), 0.5, np.float32)
    bits[0, 5] = scale
    arrays = Drawn(8, 128, 4, 128, True).gptq() | {"m.scales": stored((bits.view(np.uint32) >> 16).astype(np.uint16))}
    with pytest.raises(UnsupportedModelError, match=rf"m\.scales holds the scale {scale:.6g} at \[0, 5\].*fp16.*--weights int4"):
        read(GPTQ, arrays)


# --- mixed directories ---------------------------------------------------------------------------------------------


def test_a_directory_may_hold_every_kind_and_matrices_that_were_left_alone() -> None:
    kinds = {name.split(".")[-2]: tensor.kind for name, tensor in read_directory(DATA / "gptq_mixed").tensors.items() if name.endswith("proj.weight")}
    assert kinds == {
        "q_proj": "int4_64",
        "k_proj": "int4_32",
        "v_proj": "int8",
        "o_proj": "bf16",
        "gate_proj": "uint8",
        "up_proj": "q8_0",
        "down_proj": "int4",
    }


@pytest.mark.parametrize(("weights", "head"), [(None, "int8"), ("int8", "int8"), ("bf16", "bf16")])
def test_it_is_rounded_on_load_as_any_other(weights: str | None, head: str) -> None:
    """With the same bits in both interpreters; without `weights` only the 16-bit head is."""
    native, reference = (logits_of(DATA / "compressed_mixed", backend, weights) for backend in ("native", "reference"))  # type: ignore[arg-type]
    if weights != "bf16" or np.abs(native - reference).max() == 0:
        np.testing.assert_array_equal(native, reference)
    assert np.abs(native - logits_of(DATA / "compressed_mixed", "native")).max() > 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_bias_of_zeros_where_the_network_has_none_is_let_pass(value: float, tmp_path: Path) -> None:
    """AutoGPTQ stored one for every matrix."""
    tensors = load_file(DATA / "gptq_mixed" / "model.safetensors") if False else None
    assert tensors is None
    directory = with_arrays("gptq_128", tmp_path, {"model.layers.0.self_attn.o_proj.bias": np.full(128, value, np.float16)})
    if value:
        with pytest.raises(ModelFormatError, match=r"no place for these tensors: model\.layers\.0\.self_attn\.o_proj\.bias"):
            load(directory, "native").close()
    else:
        np.testing.assert_array_equal(logits_of(directory, "native"), logits_of(DATA / "gptq_128", "native"))
