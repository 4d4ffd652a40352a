"""AutoAWQ's layout against a slow twin and against AutoAWQ's own packing; what differs from the one form that is read is named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.kernels import native, quants
from qwenbox.types import TENSOR_KINDS, AwqTensor, Tensor, tensor_nbytes
from qwenbox.weights import read_directory
from qwenbox.weights.awq import unpack
from qwenbox.weights.files import StoredArray
from qwenbox.weights.packed import packed_tensors
from tests.kernels.networks import Steps, compiled, rows_batch

AUTOAWQ = Path(__file__).parent / "data" / "autoawq.npz"
CONFIG: dict[str, Any] = {"bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm", "zero_point": True}
DTYPES = {"int32": "I32", "float16": "F16", "float32": "F32"}


def stored(array: np.ndarray) -> StoredArray:
    return StoredArray(DTYPES[array.dtype.name], array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def awq_tensors(arrays: dict[str, StoredArray], group: int = 128) -> dict[str, Tensor]:
    return packed_tensors(CONFIG | {"group_size": group}, "config.json", arrays)


def parts(rows: int, columns: int, seed: int = 0, group: int = 128) -> dict[str, StoredArray]:
    random = np.random.default_rng(seed)
    arrays = {
        "qweight": random.integers(-(2**31), 2**31, (columns, rows // 8)).astype(np.int32),
        "qzeros": random.integers(-(2**31), 2**31, (columns // group, rows // 8)).astype(np.int32),
        "scales": random.uniform(-1, 1, (columns // group, rows)).astype(np.float16),
    }
    return {f"m.{name}": stored(array) for name, array in arrays.items()}


def unpacked_slowly(arrays: dict[str, StoredArray], block: int = 128) -> bytes:
    """An element at a time, as the layouts are written down."""
    qweight, qzeros = (arrays[f"m.{name}"].data.view("<i4").reshape(arrays[f"m.{name}"].shape) for name in ("qweight", "qzeros"))
    scales = arrays["m.scales"].data.view("<u2").reshape(arrays["m.scales"].shape)

    def nibble(words: np.ndarray, row: int, output: int) -> int:
        place = [0, 2, 4, 6, 1, 3, 5, 7].index(output % 8)
        return int(words[row, output // 8]) >> 4 * place & 15

    out = bytearray()
    for n in range(scales.shape[1]):
        for group in range(scales.shape[0]):
            out += struct.pack("<HB", scales[group, n], nibble(qzeros, group, n))
            first, half = block * group, block // 2
            out += bytes(nibble(qweight, first + j, n) | nibble(qweight, first + j + half, n) << 4 for j in range(half))
    return bytes(out)


@pytest.mark.parametrize(("group", "kind"), [(128, "int4"), (64, "int4_64"), (32, "int4_32")])
@pytest.mark.parametrize(("rows", "columns"), [(8, 128), (16, 256), (24, 384), (176, 128)])
def test_unpacking_gives_the_blocks_of_the_slow_twin(rows: int, columns: int, group: int, kind: str) -> None:
    arrays = parts(rows, columns, group=group)
    tensor = awq_tensors(arrays, group)["m.weight"]
    assert isinstance(tensor, AwqTensor)
    whole = unpack(tensor)
    assert (whole.name, whole.kind, whole.shape) == ("m.weight", kind, (rows, columns))
    assert whole.data.nbytes == tensor_nbytes(kind, (rows, columns))
    assert whole.data.tobytes() == unpacked_slowly(arrays, group)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("group", [128, 64, 32])
@pytest.mark.parametrize(("rows", "columns"), [(8, 128), (24, 384), (40, 256), (176, 128), (3096, 256)])
def test_words_are_packed_as_their_blocks_are(rows: int, columns: int, group: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_SLICE", 1 << 18)  # a group of the largest: several calls
    tensor = awq_tensors(parts(rows, columns, group=group), group)["m.weight"]
    assert isinstance(tensor, AwqTensor)
    words, blocks = (compiled(Steps(each, lambda ops, x: x), threads=threads, tokens=rows, pages=97) for each in (tensor, unpack(tensor)))
    np.testing.assert_array_equal(words.run(rows_batch(rows)), blocks.run(rows_batch(rows)))


def test_what_autoawq_packs_is_read_as_autoawq_reads_it() -> None:
    """tests/golden/autoawq.py made the file with AutoAWQ's own code."""
    with np.load(AUTOAWQ) as file:
        arrays = dict(file)
    tensor = awq_tensors({f"m.{name}": stored(arrays[name]) for name in ("qweight", "qzeros", "scales")})["m.weight"]
    assert isinstance(tensor, AwqTensor)
    whole = unpack(tensor)
    centred = arrays["codes"].astype(np.int16) - arrays["zeros"].repeat(128, axis=0)
    np.testing.assert_array_equal(quants.codes(whole).codes, centred.T)
    np.testing.assert_array_equal(quants.dequantize(whole), (centred * arrays["scales"].repeat(128, axis=0).astype(np.float32)).T)


# --- what is refused -----------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[dict[str, StoredArray]], dict[str, StoredArray]]:
    return lambda arrays: {key: array for key, array in arrays.items() if key != f"m.{name}"}


def replaced(name: str, dtype: str, *shape: int) -> Callable[[dict[str, StoredArray]], dict[str, StoredArray]]:
    size = int(np.prod(shape)) * (2 if dtype in ("F16", "BF16") else 4)
    return lambda arrays: arrays | {f"m.{name}": StoredArray(dtype, shape, np.zeros(size, np.uint8))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("qzeros"), r"m\.qzeros is missing"),
        (without("scales"), r"m\.scales is missing"),
        (without("qweight"), r"m\.qzeros is there without m\.qweight"),
        (replaced("qzeros", "I32", 2, 3), r"m\.qzeros is I32 of shape \(2, 3\); m\.qweight in groups of 128 needs I32 of \(2, 2\)"),
        (replaced("qzeros", "F32", 2, 2), r"m\.qzeros is F32"),
        (replaced("scales", "BF16", 2, 16), r"m\.scales is BF16.*needs F16"),
        (replaced("scales", "F16", 4, 16), r"m\.scales is F16 of shape \(4, 16\)"),  # groups of 64
        (replaced("qweight", "I32", 200, 2), r"m\.qweight.*multiple of 128"),
        (replaced("qweight", "I32", 256), r"m\.qweight.*must be a matrix"),
        (replaced("qweight", "F32", 256, 2), r"m\.qweight is F32"),
        (replaced("weight", "F16", 16, 256), r"m\.weight and m\.qweight are both there"),
        (replaced("g_idx", "I32", 256), r"'m\.g_idx' has the unsupported type I32"),
    ],
)
def test_an_array_that_does_not_fit_the_others_is_named(change: Callable[[dict[str, StoredArray]], dict[str, StoredArray]], message: str) -> None:
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        awq_tensors(change(parts(16, 256)))


def write(directory: Path, quantization: Any) -> Path:
    header, data = {}, b""
    for name, array in parts(16, 256).items():
        header[name] = {"dtype": array.dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + array.data.nbytes]}
        data += array.data.tobytes()
    raw = json.dumps(header).encode()
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3", "quantization_config": quantization}))
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return directory


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": "GEMM", "modules_to_not_convert": ["lm_head"]},
        {"backend": "autoawq", "do_fuse": False, "exllama_config": None, "fuse_max_seq_len": None, "modules_to_fuse": None},
    ],
)
def test_a_directory_of_autoawq_gives_int4_matrices(tmp_path: Path, changes: dict[str, Any]) -> None:
    tensors = read_directory(write(tmp_path, CONFIG | changes)).tensors
    assert {name: (tensor.kind, tensor.shape) for name, tensor in tensors.items()} == {"m.weight": ("int4", (16, 256))}
    assert TENSOR_KINDS["int4"].block == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits 3"),
        ({"bits": 4.0}, "bits 4.0"),
        ({"group_size": 16}, "group_size 16"),
        ({"group_size": -1}, "group_size -1"),
        ({"version": "gemv"}, "version 'gemv'"),
        ({"version": "gemv_fast"}, "version 'gemv_fast'"),
        ({"version": None}, "version None"),
        ({"zero_point": False}, "zero_point False"),
        ({"sym": True}, "sym True"),
        ({"backend": "llm-awq"}, "backend 'llm-awq'"),
        ({"desc_act": True}, "desc_act True"),
        ({"temperature": 1}, "unknown key 'temperature'"),
    ],
)
def test_another_form_of_quantisation_is_named_with_what_is_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"{message}; of awq checkpoints these are read: gemm; 4 bits with zeros in groups of 128, 64, 32"
    ):
        read_directory(write(tmp_path, CONFIG | changes))


@pytest.mark.parametrize("quantization", ["awq", [], CONFIG | {"modules_to_not_convert": "lm_head"}, CONFIG | {"modules_to_not_convert": [1]}])
def test_a_quantisation_that_is_no_description_is_refused(tmp_path: Path, quantization: Any) -> None:
    with pytest.raises(ModelFormatError, match="quantization_config"):
        read_directory(write(tmp_path, quantization))
