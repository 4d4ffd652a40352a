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

from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.kernels import native, quants
from qwenbox.kernels.reference import ReferenceRunner
from qwenbox.model.config import from_hf
from qwenbox.model.load import Backend, Model, load_model
from qwenbox.model.qwen import Qwen
from qwenbox.types import Batch, FloatArray, PackedTensor, Span, Tensor
from qwenbox.weights import read_directory
from qwenbox.weights.files import StoredArray
from qwenbox.weights.packed import packed_tensors, unpack
from qwenbox.weights.schemes import SCHEMES, Scheme, describe
from tests.kernels.networks import Steps, compiled, rows_batch

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "weights" / "data"
BACKENDS: tuple[Backend, ...] = ("native", "reference")
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


def test_the_document_shows_the_table_that_the_loader_goes_by() -> None:
    assert describe() in (ROOT / "docs" / "checkpoints.md").read_text()


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
    native, reference = (logits_of(DATA / name, backend) for backend in BACKENDS)
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


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2", "pack-quantized"])
@pytest.mark.parametrize(
    ("rows", "columns", "bits", "group", "zeros", "kind"),
    [*SHAPES, (3096, 256, 4, 128, True, "int4"), (3096, 256, 8, 128, True, "uint8"), (1032, 384, 8, 32, False, "q8_0")],
)
def test_the_runtime_packs_words_as_it_packs_their_blocks(
    rows: int, columns: int, bits: int, group: int, zeros: bool, kind: str, form: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_SLICE", 1 << 17)  # part of the largest: several calls
    drawn = Drawn(rows, columns, bits, group, zeros)
    if form == "pack-quantized":
        weights = WEIGHTS | {"num_bits": bits, "group_size": group}
        quantization, arrays = COMPRESSED | {"config_groups": {"group_0": GROUP_0 | {"weights": weights}}}, drawn.compressed()
    else:
        quantization, arrays = GPTQ | {"bits": bits, "group_size": group, "checkpoint_format": form}, drawn.gptq(form)
    tensor = packed_tensors(quantization, "config.json", arrays)["m.weight"]
    assert isinstance(tensor, PackedTensor)
    assert tensor.kind == kind
    words, blocks = (compiled(Steps(each, lambda ops, x: x), threads=threads, tokens=rows, pages=97) for each in (tensor, unpack(tensor)))
    np.testing.assert_array_equal(words.run(rows_batch(rows)), blocks.run(rows_batch(rows)))


@pytest.mark.parametrize("form", ["gptq", "pack-quantized"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_that_is_not_finite_is_refused_while_words_are_packed(form: str, bits: int) -> None:
    drawn = Drawn(200, 256, bits, 128, False)
    drawn.scales[199, 1] = np.inf
    if form == "gptq":
        tensor = packed_tensors(GPTQ | {"bits": bits}, "config.json", drawn.gptq())["m.weight"]
    else:
        weights = WEIGHTS | {"num_bits": bits}
        quantization = COMPRESSED | {"config_groups": {"group_0": GROUP_0 | {"weights": weights}}}
        tensor = packed_tensors(quantization, "config.json", drawn.compressed())["m.weight"]
    with pytest.raises(ModelFormatError, match=r"m\.weight"):
        compiled(Steps(tensor, lambda ops, x: x), threads=1, tokens=4, pages=2)


@pytest.mark.parametrize("scale", [2.0**-17 * 1.5, 2.0**-24, 448.0, 0.0, -0.001953125])
def test_a_scale_of_bf16_that_fp16_holds_is_kept(scale: float) -> None:
    drawn = Drawn(8, 128, 4, 128, True)
    bits = np.full((1, 8), scale, np.float32).view(np.uint32) >> 16
    arrays = drawn.gptq() | {"m.scales": stored(bits.astype(np.uint16))}
    expected = (drawn.codes - drawn.zeros).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(quants.dequantize(read(GPTQ, arrays)), expected)


@pytest.mark.parametrize("scale", [2.0**-25, 2.0**-20 * 1.0078125, 2.0**17])
def test_a_scale_of_bf16_that_fp16_does_not_hold_is_refused_with_its_number_and_place(scale: float) -> None:
    bits = np.full((1, 8), 0.5, np.float32)
    bits[0, 5] = scale
    arrays = Drawn(8, 128, 4, 128, True).gptq() | {"m.scales": stored((bits.view(np.uint32) >> 16).astype(np.uint16))}
    with pytest.raises(UnsupportedModelError, match=rf"m\.scales holds the scale {scale:.6g} at \[0, 5\].*fp16.*--weights int4"):
        read(GPTQ, arrays)


# --- what others say of themselves ---------------------------------------------------------------------------------

OF_OPTIMUM = dict.fromkeys(
    ("block_name_to_quantize", "dataset", "max_input_length", "model_seqlen", "module_name_preceding_first_block", "modules_in_block_to_quantize"),
) | {
    "batch_size": 1,
    "cache_block_outputs": True,
    "damp_percent": 0.01,
    "exllama_config": {"version": 1},
    "pad_token_id": None,
    "tokenizer": None,
    "true_sequential": True,
    "use_cuda_fp16": False,
    "use_exllama": True,
}
OF_AUTOGPTQ = {
    "damp_percent": 0.01,
    "static_groups": False,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "model",
    "is_marlin_format": False,
    "desc_act": True,
}
OF_EARLY_LLM_COMPRESSOR = {
    "quantization_status": "frozen",
    "global_compression_ratio": 1.8,
    "kv_cache_scheme": None,
    "sparsity_config": {"format": "dense", "global_sparsity": 0.1, "ignore": [], "targets": [], "sparsity_structure": "unstructured"},
}


@pytest.mark.parametrize("described", [OF_OPTIMUM, OF_AUTOGPTQ])
def test_how_a_gptq_checkpoint_was_made_changes_nothing(described: dict[str, Any]) -> None:
    """The order of the inputs is seen from g_idx, whatever desc_act says."""
    drawn = Drawn(16, 256, 4, 128, True)
    quantization = {key: value for key, value in GPTQ.items() if key != "checkpoint_format"} | described
    np.testing.assert_array_equal(quants.dequantize(read(quantization, drawn.gptq())), drawn.weights)


def test_how_a_compressed_checkpoint_was_made_changes_nothing() -> None:
    drawn = Drawn(16, 256, 4, 128, False)
    weights = WEIGHTS | {"actorder": "weight", "block_structure": None, "observer": "mse", "observer_kwargs": {}}
    quantization = COMPRESSED | OF_EARLY_LLM_COMPRESSOR | {"config_groups": {"group_0": GROUP_0 | {"weights": weights}}}
    np.testing.assert_array_equal(quants.dequantize(read(quantization, drawn.compressed())), drawn.weights)


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


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
def test_it_is_rounded_on_load_as_any_other(weights: str | None) -> None:
    """By both interpreters alike; where nothing is said, the 16-bit head is."""
    native, reference = (logits_of(DATA / "compressed_mixed", backend, weights) for backend in BACKENDS)
    np.testing.assert_array_equal(native, reference)
    assert (native != logits_of(DATA / "compressed_mixed", "native")).any()


def test_experts_of_a_layer_that_are_quantised_differently_are_named_with_the_way_out() -> None:
    checkpoint = read_directory(ROOT / "tests" / "golden" / "qwen3_moe")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors = {**checkpoint.tensors, name: quants.round_tensor(checkpoint.tensors[name], "int8")}
    batch = Batch(np.zeros(1, np.int32), [Span(0, 1, 0, np.zeros(1, np.int32))], np.zeros(1, np.int32))
    with pytest.raises(UnsupportedModelError, match=r"experts\.0\.up_proj.* as bf16, .*experts\.2\.up_proj.* as int8.*--weights int8"):
        ReferenceRunner(Qwen(from_hf(checkpoint.config), tensors, positions=64)).run(batch)


def with_arrays(name: str, out: Path, changes: dict[str, np.ndarray]) -> Path:
    """A copy of a witness with arrays added."""
    raw = (DATA / name / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:start]), raw[start:]
    for key, array in changes.items():
        header[key] = {"dtype": DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    written = json.dumps(header).encode()
    (out / "model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written + data)
    shutil.copy(DATA / name / "config.json", out)
    return out


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_bias_of_zeros_where_the_network_has_none_is_let_pass(value: float, tmp_path: Path) -> None:
    """AutoGPTQ stored one for every matrix."""
    directory = with_arrays("gptq_128", tmp_path, {"model.layers.0.self_attn.o_proj.bias": np.full(128, value, np.float16)})
    if value:
        with pytest.raises(ModelFormatError, match=r"no place for these tensors: model\.layers\.0\.self_attn\.o_proj\.bias"):
            load(directory, "native").close()
    else:
        np.testing.assert_array_equal(logits_of(directory, "native"), logits_of(DATA / "gptq_128", "native"))


# --- what is refused -----------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[dict[str, StoredArray]], dict[str, StoredArray]]:
    return lambda arrays: {key: array for key, array in arrays.items() if key != f"m.{name}"}


def replaced(name: str, array: np.ndarray) -> Callable[[dict[str, StoredArray]], dict[str, StoredArray]]:
    return lambda arrays: arrays | {f"m.{name}": stored(array)}


def zeros(dtype: type[np.generic], *shape: int) -> np.ndarray:
    return np.zeros(shape, dtype)


BACKWARDS = np.arange(256, dtype=np.int32)[::-1] // 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("qzeros"), r"m\.qzeros is missing"),
        (without("scales"), r"m\.scales is missing"),
        (without("qweight"), r"m\.qzeros is there without m\.qweight"),
        (replaced("qweight", zeros(np.float32, 32, 16)), r"m\.qweight is F32 of shape \(32, 16\); it must be a matrix of words of I32"),
        (replaced("qweight", zeros(np.int32, 32)), r"m\.qweight is I32 of shape \(32,\)"),
        (replaced("qweight", zeros(np.int32, 24, 16)), r"tensors m have 4 bits and groups of 96 inputs; .* bits 4 and group_size 128"),
        (replaced("scales", zeros(np.int32, 2, 16)), r"m\.scales is I32"),
        (replaced("scales", zeros(np.float16, 3, 16)), r"m\.qweight of shape \(32, 16\), qzeros of \(2, 2\) and scales of \(3, 16\)"),
        (replaced("qzeros", zeros(np.int32, 2, 3)), r"are not of 4 or 8 bits"),
        (replaced("g_idx", BACKWARDS), r"m\.g_idx gives inputs to groups in another order \(act-order, desc_act true\).*GGUF"),
        (replaced("g_idx", zeros(np.int32, 255)), r"m\.g_idx is I32 of shape \(255,\)"),
        (replaced("weight", zeros(np.float16, 16, 256)), r"m\.weight and m\.qweight are both there"),
        (replaced("more", zeros(np.int32, 4)), r"'m\.more' has the unsupported type I32"),
    ],
)
def test_an_array_of_gptq_that_does_not_fit_the_others_is_named(
    change: Callable[[dict[str, StoredArray]], dict[str, StoredArray]], message: str
) -> None:
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        packed_tensors(GPTQ, "config.json", change(Drawn(16, 256, 4, 128, True).gptq()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("weight_scale"), r"m\.weight_scale is missing"),
        (without("weight_shape"), r"m\.weight_shape is missing"),
        (without("weight_packed"), r"m\.weight_scale is there without m\.weight_packed"),
        (replaced("weight_shape", np.array([16, 128])), r"m have 8 bits and groups of 64 inputs; no entry of config_groups"),
        (replaced("weight_shape", np.array([16, 250])), r"m\.weight_packed is I32 of shape \(16, 32\); 16 x 250 weights need other words"),
        (replaced("weight_shape", np.array([15, 256])), r"m\.weight_packed"),
        (replaced("weight_shape", np.array([16, 0])), r"m\.weight_packed"),
        (replaced("weight_shape", np.array([16])), r"m\.weight_shape is I64 of shape \(1,\)"),
        (replaced("weight_scale", zeros(np.float16, 16, 3)), r"m\.weight_scale is F16 of shape \(16, 3\), no scales of 16 x 256"),
        (replaced("weight_scale", zeros(np.float16, 16, 4)), r"m have 4 bits and groups of 64 inputs; no entry of config_groups"),
        (replaced("weight_zero_point", zeros(np.int32, 3, 2)), r"m\.weight_zero_point is I32 of shape \(3, 2\).*needs I32 of \(2, 2\)"),
        (replaced("weight_g_idx", BACKWARDS), r"m\.weight_g_idx gives inputs to groups in another order \(actorder\).*GGUF"),
        (replaced("weight_g_idx", zeros(np.float16, 256)), r"m\.weight_g_idx is F16"),
        (replaced("weight", zeros(np.float16, 16, 256)), r"m\.weight and m\.weight_packed are both there"),
    ],
)
def test_an_array_of_compressed_tensors_that_does_not_fit_the_others_is_named(
    change: Callable[[dict[str, StoredArray]], dict[str, StoredArray]], message: str
) -> None:
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        packed_tensors(COMPRESSED, "config.json", change(Drawn(16, 256, 4, 128, True).compressed()))


def grouped(**changes: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": GROUP_0 | changes}}


def weighted(**changes: Any) -> dict[str, Any]:
    return grouped(weights=WEIGHTS | changes)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "fp8"}, r"quant_method 'fp8'; read are awq, gptq, compressed-tensors\. Take.*GGUF"),
        ({"bits": 4}, r"quant_method None"),
        (GPTQ | {"bits": 3}, r"bits 3; of gptq checkpoints these are read: gptq or gptq_v2; 4 bits symmetric in groups of 128 or a multiple, 64, 32"),
        (GPTQ | {"bits": None}, r"bits None"),
        (GPTQ | {"group_size": "128"}, r"group_size '128'"),
        (GPTQ | {"checkpoint_format": "marlin"}, r"checkpoint_format 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, r"is_marlin_format True"),
        (GPTQ | {"format": "gptq_p"}, r"format 'gptq_p'"),
        (GPTQ | {"pack_dtype": "int16"}, r"pack_dtype 'int16'"),
        (GPTQ | {"rotation": "hadamard"}, r"rotation 'hadamard'"),
        (GPTQ | {"adapter": {"name": "lora"}}, r"adapter"),
        (GPTQ | {"temperature": 1}, r"unknown key 'temperature'"),
        (COMPRESSED | {"format": "marlin-24"}, r"format 'marlin-24'; of compressed-tensors checkpoints these are read: pack-quantized"),
        (COMPRESSED | {"format": "float-quantized"}, r"format 'float-quantized'"),
        (COMPRESSED | {"config_groups": {}}, r"config_groups \{\}"),
        (COMPRESSED | {"transform_config": {"config_groups": {"R1": 1}}}, r"transform_config"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24"}}, r"sparsity_config"),
        (COMPRESSED | {"kv_cache_scheme": {"num_bits": 8}}, r"kv_cache_scheme"),
        (COMPRESSED | grouped(input_activations={"num_bits": 8}), r"config_groups 'group_0', has input_activations"),
        (COMPRESSED | grouped(weights=None), r"has weights None"),
        (COMPRESSED | weighted(num_bits=3), r"weights has num_bits 3"),
        (COMPRESSED | weighted(type="float"), r"weights has type 'float'"),
        (COMPRESSED | weighted(strategy="block"), r"weights has strategy 'block'"),
        (COMPRESSED | weighted(dynamic=True), r"weights has dynamic True"),
        (COMPRESSED | weighted(half=1), r"weights has the unknown key 'half'"),
    ],
)
def test_another_quantisation_is_named_with_what_is_read_and_the_way_out(quantization: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        packed_tensors(quantization, "config.json", {})


@pytest.mark.parametrize(("bits", "group", "zeros"), [(4, 16, True), (8, 64, True), (8, 16, False)])
def test_groups_that_no_kind_holds_are_refused_by_the_name_of_the_module(bits: int, group: int, zeros: bool) -> None:
    drawn = Drawn(16, 256, bits, group, zeros)
    with pytest.raises(
        UnsupportedModelError, match=rf"m is quantised to {bits} bits, .*in groups of {group} inputs; of gptq checkpoints these are read"
    ):
        packed_tensors(GPTQ | {"bits": bits, "group_size": group}, "config.json", drawn.gptq())


@pytest.mark.parametrize(
    "quantization",
    [
        GPTQ | {"format": "gptq_v2"},
        COMPRESSED | {"ignore": "lm_head"},
        COMPRESSED | {"config_groups": {"group_0": 1}},
        COMPRESSED | grouped(targets="Linear"),
    ],
)
def test_a_description_that_is_none_is_refused(quantization: dict[str, Any]) -> None:
    with pytest.raises(ModelFormatError, match="quantization_config"):
        packed_tensors(quantization, "config.json", {})
