from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.weights import read_directory, read_safetensors


def file_of(header: dict[str, Any] | str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = json.dumps(header) if isinstance(header, dict) else header
    raw = raw.encode() if isinstance(raw, str) else raw
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SMALL = file_of(
    {"__metadata__": {"format": "pt"}, "b": entry([2, 3], 8, 32), "a": entry([4], 0, 8, "BF16"), "c": entry([1, 2, 1], 32, 36, "F16")},
    bytes(range(36)),
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return path

    return write


def test_a_small_file_gives_the_bytes_of_its_tensors_in_any_order(write: Callable[[bytes], Path]) -> None:
    tensors = read_safetensors(write(SMALL))
    assert {name: (t.kind, t.shape, t.data.tobytes()) for name, t in tensors.items()} == {
        "b": ("f32", (2, 3), bytes(range(8, 32))),
        "a": ("bf16", (4,), bytes(range(8))),
        "c": ("f16", (1, 2, 1), bytes(range(32, 36))),
    }


def test_a_file_cut_at_any_byte_is_refused(write: Callable[[bytes], Path]) -> None:
    for length in range(len(SMALL)):
        with pytest.raises(ModelFormatError):
            read_safetensors(write(SMALL[:length]))
    read_safetensors(write(SMALL))


LIES: dict[str, tuple[bytes, str]] = {
    "header beyond the file": (file_of({}, length=2**63), "a header of 9223372036854775808 bytes is announced"),
    "header over the limit": (file_of({}, length=100_000_001), "the limit is 100000000"),
    "no brace": (file_of(b" {}"), "does not begin with a brace"),
    "header cut": (file_of('{"a": {'), "not JSON"),
    "header not UTF-8": (file_of(b'{"\xff": 1}'), "not UTF-8"),
    "deep header": (file_of('{"a": ' + "[" * 100_000), "not JSON"),
    "list": (file_of("{}" + "[]"), "not JSON"),
    "huge number": (file_of('{"a": ' + "9" * 5000 + "}"), "not JSON"),
    "NaN": (file_of('{"a": NaN}'), "NaN is not a JSON number"),
    "duplicate name": (file_of('{"a": 1, "a": 2}'), "duplicate name 'a'"),
    "duplicate name inside": (
        file_of('{"a": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        "duplicate name 'dtype'",
    ),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__ must map texts to texts"),
    "entry": (file_of({"a": 3}), "must have exactly dtype, shape and data_offsets"),
    "extra field": (file_of({"a": entry([1], 0, 4) | {"auto_map": "x"}}, bytes(4)), "must have exactly"),
    "dtype": (file_of({"a": entry([1], 0, 4, 7)}, bytes(4)), "a dtype that is no text"),
    "no dimensions": (file_of({"a": entry([], 0, 4)}, bytes(4)), "has the shape"),
    "dimension 0": (file_of({"a": entry([0], 0, 0)}), "has the shape"),
    "negative dimension": (file_of({"a": entry([-1], 0, 4)}, bytes(4)), "has the shape"),
    "two negative dimensions": (file_of({"a": entry([-1, -1], 0, 4)}, bytes(4)), "has the shape"),
    "true as dimension": (file_of({"a": entry([True], 0, 4)}, bytes(4)), "has the shape"),
    "float dimension": (file_of({"a": entry([1.0], 0, 4)}, bytes(4)), "has the shape"),
    "dimension 2^64": (file_of({"a": entry([2**64], 0, 4)}, bytes(4)), "has the shape"),
    "product that wraps 64 bits": (file_of({"a": entry([2**62, 2**62, 4], 0, 4)}, bytes(4)), "needs .* bytes, its data_offsets hold 4"),
    "offsets": (file_of({"a": entry([1], 0, "4")}, bytes(4)), "has the data_offsets"),
    "negative offset": (file_of({"a": entry([1], -4, 0)}, bytes(4)), "has the data_offsets"),
    "offsets reversed": (file_of({"a": entry([1], 4, 0)}, bytes(4)), "its data_offsets hold -4"),
    "beyond the file": (file_of({"a": entry([2], 0, 8)}, bytes(4)), "the tensors end at data byte 8, the file has 4"),
    "shape and extent differ": (file_of({"a": entry([2], 0, 4)}, bytes(4)), "needs 8 bytes, its data_offsets hold 4"),
    "overlap": (file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "'b' begins at data byte 4 and overlaps"),
    "same bytes twice": (file_of({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)), "overlaps"),
    "gap": (file_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)), "'b' begins at data byte 8 and leaves a gap"),
    "gap at the beginning": (file_of({"a": entry([1], 4, 8)}, bytes(8)), "leaves a gap"),
    "bytes after the end": (file_of({"a": entry([1], 0, 4)}, bytes(5)), "the file has 5 bytes of data"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name_without_allocating_what_it_announces(write: Callable[[bytes], Path], lie: str) -> None:
    content, message = LIES[lie]
    path = write(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=message) as caught:
            read_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("dtype", ["I32", "I64", "F64", "F8_E4M3", "U8", "BOOL"])
def test_an_element_type_that_we_do_not_run_is_named_with_those_that_we_do(write: Callable[[bytes], Path], dtype: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"unsupported type {dtype}; supported are BF16, F16, F32"):
        read_safetensors(write(file_of({"a": entry([1], 0, 4, dtype)}, bytes(4))))


def test_files_of_the_safetensors_package_are_read_as_that_package_reads_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        f"t{n}": random.standard_normal(shape).astype(kind) for n, (shape, kind) in enumerate([((3, 5), "f4"), ((7,), "f2"), ((2, 3, 4), "f4")])
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    ours = read_safetensors(path)
    assert ours.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(ours[name].data.view(array.dtype).reshape(ours[name].shape), array)


EDITS = st.lists(
    st.tuples(
        st.integers(0, len(SMALL) - 1), st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"0", b"9", b"]", b"}", b'"', b"-", b"1e9"]))
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_a_mutated_file_is_refused_whenever_the_package_refuses_it(tmp_path: Path, edits: list[tuple[int, bytes]]) -> None:
    content = bytearray(SMALL)
    for position, replacement in edits:
        content[position : position + len(replacement)] = replacement
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_safetensors(path)
    except ModelFormatError:
        return
    theirs = dict(safetensors.deserialize(bytes(content)))
    assert {name: (t.shape, t.data.tobytes()) for name, t in tensors.items()} == {
        name: (tuple(info["shape"]), bytes(info["data"])) for name, info in theirs.items()
    }


# --- directories ---


def checkpoint(directory: Path, shards: dict[str, dict[str, list[int]]], weight_map: dict[str, Any] | None = None) -> Path:
    """A directory with shards of zeros of the given shapes, and the index that is true for them or the given one."""
    (directory / "config.json").write_text('{"model_type": "qwen3"}')
    for shard, shapes in shards.items():
        header, end = {}, 0
        for name, shape in shapes.items():
            size = 4 * int(np.prod(shape))
            header[name] = entry(list(shape), end, end + size)
            end += size
        (directory / shard).write_bytes(file_of(header, bytes(end)))
    true = {name: shard for shard, shapes in shards.items() for name in shapes}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": true if weight_map is None else weight_map}))
    return directory


TWO = {"model-00001-of-00002.safetensors": {"a": [2, 2], "b": [3]}, "model-00002-of-00002.safetensors": {"c": [1]}}
FIRST, SECOND = TWO


def test_a_directory_gives_config_defaults_template_tokenizer_and_the_tensors_of_all_shards(tmp_path: Path) -> None:
    checkpoint(tmp_path, TWO)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    loaded = read_directory(tmp_path)
    assert loaded.config == {"model_type": "qwen3"}
    assert loaded.generation_config == {"temperature": 0.6}
    assert {name: t.shape for name, t in loaded.tensors.items()} == {"a": (2, 2), "b": (3,), "c": (1,)}
    assert loaded.tokenizer_path == tmp_path / "tokenizer.json"
    assert loaded.chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert read_directory(tmp_path).chat_template == "new"


def test_a_directory_with_one_file_needs_no_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(SMALL)
    loaded = read_directory(tmp_path)
    assert loaded.tensors.keys() == {"a", "b", "c"}
    assert (loaded.chat_template, loaded.tokenizer_path, loaded.generation_config) == (None, None, {})


def test_of_several_named_templates_the_default_one_is_taken(tmp_path: Path) -> None:
    checkpoint(tmp_path, TWO)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}')
    assert read_directory(tmp_path).chat_template == "d"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": FIRST, "b": FIRST, "c": FIRST}, "tensors are not in their file, first 'c'"),
        ({"a": FIRST, "b": SECOND, "c": SECOND}, "holds the tensor 'b', which the index places in"),
        ({"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}, "1 tensors are not in their file, first 'd'"),
        ({"a": FIRST, "b": FIRST, "c": "absent.safetensors"}, "the file absent.safetensors is missing"),
        ({"a": "../model.safetensors"}, "not the plain name of a .safetensors file"),
        ({"a": "/etc/passwd"}, "not the plain name"),
        ({"a": "x/../model.safetensors"}, "not the plain name"),
        ({"a": "x\\model.safetensors"}, "not the plain name"),
        ({"a": "x\x00.safetensors"}, "not the plain name"),
        ({"a": "model.bin"}, "not the plain name"),
        ({"a": 5}, "weight_map must map"),
        ({}, "weight_map must map"),
        ([], "weight_map must map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    checkpoint(tmp_path, TWO, weight_map)
    with pytest.raises(ModelFormatError, match=message):
        read_directory(tmp_path)


def test_a_shard_that_the_index_does_not_name_is_not_read(tmp_path: Path) -> None:
    checkpoint(tmp_path, TWO, {"a": FIRST, "b": FIRST})
    assert read_directory(tmp_path).tensors.keys() == {"a", "b"}


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, {FIRST: {"a": [1], "b": [1]}, SECOND: {"a": [1], "c": [1]}})
    with pytest.raises(ModelFormatError, match="holds the tensor 'a', which the index places in"):
        read_directory(tmp_path)


def test_a_directory_that_is_no_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"no config\.json"):
        read_directory(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFormatError, match=r"neither model\.safetensors nor"):
        read_directory(tmp_path)
    checkpoint(tmp_path, TWO)
    (tmp_path / "model.safetensors").write_bytes(SMALL)
    with pytest.raises(ModelFormatError, match="remove the one that is stale"):
        read_directory(tmp_path)


def test_a_config_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, TWO)
    (tmp_path / "config.json").write_text('{"a": "' + "x" * (1 << 20) + '"}')
    with pytest.raises(ModelFormatError, match="at most 1048576 are read"):
        read_directory(tmp_path)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (tmp_path / "model").mkdir()
    checkpoint(tmp_path / "model", TWO)
    for name in ("generation_config.json", "tokenizer.json", FIRST):
        (tmp_path / "model" / name).unlink(missing_ok=True)
        (tmp_path / "model" / name).symlink_to(secret)
        with pytest.raises(ModelFormatError, match="a link out of the model's directory"):
            read_directory(tmp_path / "model")
        (tmp_path / "model" / name).unlink()
        checkpoint(tmp_path / "model", TWO)
    (tmp_path / "model" / "tokenizer.json").symlink_to(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(ModelFormatError, match="cannot be read"):
        read_directory(tmp_path / "model")


def test_the_links_of_a_hub_cache_are_followed_within_that_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--Qwen--Tiny" / "snapshots" / "abc"
    blobs = tmp_path / "hub" / "models--Qwen--Tiny" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    checkpoint(snapshot, TWO)
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("..", "..", "blobs", path.name))
    assert read_directory(snapshot).tensors.keys() == {"a", "b", "c"}
    (tmp_path / "outside.json").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ModelFormatError, match="a link out of the model's directory"):
        read_directory(snapshot)
