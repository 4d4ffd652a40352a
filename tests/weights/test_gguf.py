from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf as oracle
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.types import TENSOR_KINDS
from qwenbox.weights import read_gguf
from tests.weights.gguf_bytes import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    Raw,
    array,
    gguf,
    pair,
    small,
    string,
)

F32, Q4_0 = 0, 2
ONE = Raw("w", (8,), F32, bytes(32))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def test_a_small_file_gives_its_values_and_the_bytes_of_its_tensors(write: Callable[[bytes], Path]) -> None:
    model = read_gguf(write(small()))
    assert model.version == 3
    assert model.metadata == {
        "general.architecture": "qwen2", "a.u8": 255, "a.i16": -2, "a.u32": 7, "a.f32": 0.5, "a.bool": True, "a.u64": 2**64 - 1, "a.f64": -0.25,
        "tokens": ["a", "水", ""], "types": [1, -1, 3],
    }  # fmt: skip
    assert {name: (t.kind, t.shape) for name, t in model.tensors.items()} == {
        "norm": ("f32", (3,)), "q8": ("q8_0", (2, 32)), "half": ("f16", (3, 2, 4)), "q6": ("q6_k", (1, 256)), "last": ("bf16", (4, 8)),
    }  # fmt: skip
    assert model.tensors["norm"].data.view("<f4").tolist() == [1, 2, 3]
    assert model.tensors["q8"].data.tobytes() == bytes(range(68))
    assert model.tensors["last"].data.tobytes() == bytes(range(64))
    assert not model.tensors["last"].data.flags.writeable


def test_version_2_is_read_alike(write: Callable[[bytes], Path]) -> None:
    assert read_gguf(write(gguf(tensors=[ONE], version=2))).version == 2


def test_the_last_tensor_may_end_with_or_without_padding(write: Callable[[bytes], Path]) -> None:
    for pad_end in (True, False):
        model = read_gguf(write(gguf(tensors=[Raw("w", (3,), F32, bytes(12))], pad_end=pad_end)))
        assert model.tensors["w"].nbytes == 12


def test_a_vocabulary_without_tensors_may_end_with_its_tables(write: Callable[[bytes], Path]) -> None:
    assert read_gguf(write(gguf([pair("k", UINT8, b"\x01")]))).tensors == {}


def test_another_alignment_is_honoured(write: Callable[[bytes], Path]) -> None:
    content = gguf(
        [pair("general.alignment", UINT32, struct.pack("<I", 64))], [Raw("a", (1,), F32, b"aaaa"), Raw("b", (1,), F32, b"bbbb")], alignment=64
    )
    tensors = read_gguf(write(content)).tensors
    assert (tensors["a"].data.tobytes(), tensors["b"].data.tobytes()) == (b"aaaa", b"bbbb")


def test_a_file_cut_at_any_byte_is_refused(write: Callable[[bytes], Path]) -> None:
    content = small()
    for length in range(len(content)):
        with pytest.raises(ModelFormatError):
            read_gguf(write(content[:length]))
    read_gguf(write(content))


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "magic": (gguf(magic=b"GGUM"), "not a GGUF file"),
    "version": (gguf(version=4), "GGUF version 4: versions 2 and 3 are supported"),
    "version 1": (gguf(version=1), "GGUF version 1"),
    "big-endian": (gguf(version=3 << 24), "it is big-endian"),
    "pairs counter": (gguf(num_pairs=2**63), "9223372036854775808 metadata pairs do not fit"),
    "tensors counter": (gguf(num_tensors=2**64 - 1), "tensors do not fit"),
    "one pair too many": (gguf([pair("k", UINT8, b"\x01")], num_pairs=2), "metadata pairs do not fit"),
    "key length": (gguf([string("k", 2**64 - 1) + bytes(40)]), "18446744073709551615 bytes are announced"),
    "empty key": (gguf([pair("", UINT8, b"\x01"), pair("key", UINT8, b"\x01")]), "a key has 1 to 65535 bytes"),
    "long key": (gguf([pair("k" * 65536, UINT8, b"\x01")]), "a key has 1 to 65535 bytes"),
    "duplicate key": (gguf([pair("k", UINT8, b"\x01"), pair("k", UINT8, b"\x02")]), "duplicate key 'k'"),
    "key encoding": (gguf([pair(b"\xff\xfe", UINT8, b"\x01")]), "not UTF-8"),
    "value type": (gguf([pair("k", 13, bytes(20))]), "metadata 'k'.*unknown value type 13"),
    "bool": (gguf([pair("k", BOOL, b"\x02")]), "a bool is 0 or 1"),
    "string length": (gguf([pair("k", STRING, string("v", 2**64 - 8)), bytes(40)], num_pairs=1), "bytes are announced, the file has"),
    "string encoding": (gguf([pair("k", STRING, string(b"ok\xc3("))]), "metadata 'k'.*a string is not UTF-8"),
    "surrogate": (gguf([pair("k", STRING, string(b"\xed\xa0\x80"))]), "not UTF-8"),
    "array type": (gguf([array("k", 99, bytes(20), 1)]), "unknown value type 99"),
    "array counter": (gguf([array("k", INT32, bytes(20), 2**62)]), "bytes are announced"),
    "array counter that wraps 64 bits": (gguf([array("k", UINT64, bytes(20), 2**61)]), "18446744073709551616|announced"),
    "strings counter": (gguf([array("k", STRING, bytes(20), 2**61)]), "strings do not fit"),
    "nested array": (gguf([array("k", ARRAY, bytes(40), 1)]), "nested arrays"),
    "alignment 0": (gguf([pair("general.alignment", UINT32, bytes(4))], [ONE]), "general.alignment is 0"),
    "alignment 48": (gguf([pair("general.alignment", UINT32, struct.pack("<I", 48))], [ONE]), "must be a power of two"),
    "alignment 2^31": (gguf([pair("general.alignment", UINT32, struct.pack("<I", 2**31))], [ONE]), "needs the bytes 2147483648"),
    "alignment type": (gguf([pair("general.alignment", FLOAT32, struct.pack("<f", 32))], [ONE]), "must be a uint32"),
    "name": (gguf(tensors=[Raw("", (8,), F32, bytes(32))]), "a tensor name has 1 to 63 bytes"),
    "long name": (gguf(tensors=[Raw("w" * 64, (8,), F32, bytes(32))]), "a tensor name has 1 to 63 bytes"),
    "duplicate tensor": (gguf(tensors=[ONE, ONE]), "duplicate tensor 'w'"),
    "no dimensions": (gguf(tensors=[Raw("w", (), F32, bytes(32))]), "0 dimensions"),
    "5 dimensions": (gguf(tensors=[Raw("w", (1, 1, 1, 1, 8), F32, bytes(32))]), "5 dimensions"),
    "2^32 dimensions": (gguf(tensors=[Raw("w", (8,), F32, bytes(32), num_dims=2**32 - 1)]), "4294967295 dimensions"),
    "dimension 0": (gguf(tensors=[Raw("w", (8, 0), F32, bytes(32))]), "is empty"),
    "product that wraps 64 bits": (gguf(tensors=[Raw("w", (2**62, 4), F32, bytes(32))]), "needs the bytes"),
    "product that wraps to the truth": (gguf(tensors=[Raw("w", (2**33 + 4, 2**31), F32, bytes(32))]), "needs the bytes"),
    "broken block": (gguf(tensors=[Raw("w", (33,), Q4_0, bytes(36))]), "33 columns are not whole q4_0 blocks of 32"),
    "tensor type": (gguf(tensors=[Raw("w", (8,), 99, bytes(32))]), "unknown tensor type 99"),
    "removed tensor type": (gguf(tensors=[Raw("w", (32,), 4, bytes(32))]), "unknown tensor type 4"),
    "offset beyond the file": (gguf(tensors=[Raw("w", (8,), F32, bytes(32), offset=2**63)]), "offset 9223372036854775808 leaves a gap"),
    "offset not aligned": (gguf(tensors=[Raw("w", (8,), F32, bytes(64), offset=4)]), "offset 4 is not aligned"),
    "overlap": (gguf(tensors=[ONE, Raw("v", (8,), F32, bytes(32), offset=0)]), "tensor 'v'.*overlaps the tensor before it"),
    "gap": (gguf(tensors=[ONE, Raw("v", (8,), F32, bytes(64), offset=64)]), "tensor 'v'.*leaves a gap; expected 32"),
    "data too short": (gguf(tensors=[Raw("w", (16,), F32, bytes(32))]), r"f32 \(16,\) needs the bytes"),
    "bytes after the end": (gguf(tensors=[ONE], tail=b"x"), "1 bytes follow the last tensor"),
    "bytes after the tables": (gguf([pair("k", UINT8, b"\x01")], tail=bytes(32)), "32 bytes follow"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name_without_allocating_what_it_announces(write: Callable[[bytes], Path], lie: str) -> None:
    content, message = LIES[lie]
    path = write(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=message) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("number", "name"), [(7, "Q5_1"), (9, "Q8_1"), (10, "Q2_K"), (11, "Q3_K"), (16, "IQ2_XXS"), (20, "IQ4_NL"), (26, "I32"), (39, "MXFP4")]
)
def test_a_quantisation_that_we_do_not_run_is_named_with_those_that_we_do(write: Callable[[bytes], Path], number: int, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"tensor 'w' has the unsupported type {name}; take a file of .*Q4_K, Q5_K, Q6_K"):
        read_gguf(write(gguf(tensors=[Raw("w", (256,), number, bytes(256))])))


def test_one_part_of_a_split_model_says_how_to_join_it(write: Callable[[bytes], Path]) -> None:
    with pytest.raises(UnsupportedModelError, match="split into 3 files; join them"):
        read_gguf(write(gguf([pair("split.count", UINT32, struct.pack("<I", 3))])))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name, message in [("pipe", "not a regular file"), ("directory", "not a regular file"), ("absent", "No such file")]:
        with pytest.raises(ModelFormatError, match=message):
            read_gguf(tmp_path / name)


NUMBERS = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
EDITS = st.lists(
    st.tuples(st.integers(0, len(small()) - 1), st.one_of(st.binary(min_size=1, max_size=3), NUMBERS.map(lambda n: struct.pack("<Q", n)))),
    min_size=1,
    max_size=6,
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
@example(edits=[(8, struct.pack("<Q", 2**63))])
def test_a_mutated_file_is_read_within_its_bounds_or_refused(tmp_path: Path, edits: list[tuple[int, bytes]]) -> None:
    content = bytearray(small())
    for position, replacement in edits:
        content[position : position + len(replacement)] = replacement
    path = tmp_path / "mutated.gguf"
    path.write_bytes(content)
    try:
        model = read_gguf(path)
    except ModelFormatError:
        return
    begins = {name: int(t.data.__array_interface__["data"][0]) for name, t in model.tensors.items()}
    first = min(begins.values(), default=0)
    for name, tensor in model.tensors.items():
        assert tensor.data.nbytes == tensor.nbytes
        assert begins[name] - first + tensor.nbytes <= len(content)


def test_files_of_the_gguf_package_are_read_as_that_package_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "oracle.gguf"
    writer = oracle.GGUFWriter(path, "qwen3")
    writer.add_uint32("qwen3.block_count", 36)
    writer.add_float32("qwen3.rope.freq_base", 1e6)
    writer.add_array("tokenizer.ggml.tokens", ["a", "Ġb", "水"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    random = np.random.default_rng(0)
    values = random.standard_normal((6, 512)).astype(np.float32)
    writer.add_tensor("f32", values)
    writer.add_tensor("f16", values.astype(np.float16))
    for name in ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"):
        kind = oracle.GGMLQuantizationType[name]
        writer.add_tensor(name.lower(), oracle.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("Q4_K", "Q5_K", "Q6_K"):
        row_bytes = 2 * TENSOR_KINDS[name.lower()].block_bytes
        writer.add_tensor(name.lower(), random.integers(0, 256, (6, row_bytes), np.uint8), raw_dtype=oracle.GGMLQuantizationType[name])
    writer.add_tensor("experts", random.standard_normal((3, 2, 32)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours, theirs = read_gguf(path), oracle.GGUFReader(path)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.kind == tensor.tensor_type.name.lower()
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert mine.data.tobytes() == tensor.data.tobytes()
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields


@pytest.mark.weights
def test_the_real_half_billion_file_is_read_whole_in_half_a_second(real_model: Callable[[str], Path]) -> None:
    path = real_model("qwen2.5-coder-0.5b")
    started = time.process_time()  # not wall time: the machine may be busy
    model = read_gguf(path)
    assert time.process_time() - started < 0.5
    assert len(model.tensors) == 291
    assert len(model.metadata["tokenizer.ggml.tokens"]) == len(model.metadata["tokenizer.ggml.token_type"]) == 151936
    assert len(model.metadata["tokenizer.ggml.merges"]) == 151387
    assert {tensor.kind for tensor in model.tensors.values()} == {"f32", "q4_k", "q5_0", "q6_k", "q8_0"}
    tables = path.stat().st_size - sum(tensor.nbytes for tensor in model.tensors.values())
    assert 5_000_000 < tables < 7_000_000
