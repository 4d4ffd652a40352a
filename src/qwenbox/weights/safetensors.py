"""Reader and writer of safetensors files, and reader of checkpoint directories (config.json, shards, tokenizer) as transformers writes them.

The files are not trusted: the header is parsed within bounds and every extent compared with the file before a view is made. As in the
format's own library the tensors cover the data without overlap or gap; unlike there, duplicate names and empty tensors are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import AnyArray, Tensor
from .files import StoredArray, map_file
from .packed import packed_tensors

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own library."""
MAX_CONFIG_BYTES, MAX_INDEX_BYTES, MAX_TOKENIZER_CONFIG_BYTES = 1 << 20, 64 << 20, 32 << 20

_SIZES = {"BF16": 2, "F16": 2, "F32": 4}
_PACKED_SIZES = _SIZES | {"I32": 4, "I64": 8}
"""Element types that are read, and their bytes."""
_MAX_DIMS = 8
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory that a model was saved to."""

    path: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    """Empty where there is no such file."""
    tensors: Mapping[str, Tensor]
    """Of all shards, in the order of the shards' names; the matrices that another program quantised are `PackedTensor`."""
    chat_template: str | None
    """From chat_template.jinja, else from tokenizer_config.json."""
    tokenizer_path: Path | None
    """tokenizer.json, where there is one."""


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Map one file. Raises ModelFormatError (what is wrong, and where), UnsupportedModelError (an element type other than BF16, F16, F32)."""
    return {name: array.tensor(name) for name, array in _read_file(Path(path), _SIZES).items()}


def _read_file(path: Path, sizes: Mapping[str, int]) -> dict[str, StoredArray]:
    file = map_file(path)
    if len(file) < 8:
        raise ModelFormatError(f"{path}: {len(file)} bytes are too short for a safetensors file")
    length = int.from_bytes(file[:8].tobytes(), "little")
    start = 8 + length
    if length > MAX_HEADER_BYTES or start > len(file):
        raise ModelFormatError(f"{path}: a header of {length} bytes is announced; the file has {len(file) - 8} more, the limit is {MAX_HEADER_BYTES}")
    raw = file[8:start].tobytes()
    if not raw.startswith(b"{"):
        raise ModelFormatError(f"{path}: not a safetensors file: its header does not begin with a brace")
    header = _parse_json(path, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFormatError(f"{path}: __metadata__ must map texts to texts")

    entries = {name: _entry(path, name, entry, sizes) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2]):
        if begin != end:
            problem = "overlaps the tensor before it" if begin < end else "leaves a gap before it"
            raise ModelFormatError(f"{path}: tensor {name!r} begins at data byte {begin} and {problem}; expected {end}")
        end = stop
    if end != len(file) - start:
        raise ModelFormatError(f"{path}: the tensors end at data byte {end}, the file has {len(file) - start} bytes of data")
    return {name: StoredArray(dtype, shape, file[start + begin : start + stop]) for name, (dtype, shape, begin, stop) in entries.items()}


def _entry(path: Path, name: str, entry: Any, sizes: Mapping[str, int]) -> tuple[str, tuple[int, ...], int, int]:
    """(type, shape, first byte, byte after the last) of one line of the header; the extent fits the shape, not yet the file."""

    def wrong(problem: str) -> ModelFormatError:
        return ModelFormatError(f"{path}: tensor {name!r} {problem}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise wrong("has a dtype that is no text")
    if dtype not in sizes:
        raise UnsupportedModelError(f"{path}: tensor {name!r} has the unsupported type {dtype[:40]}; supported are {', '.join(sizes)}")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMS or not all(type(extent) is int and 0 < extent < 1 << 63 for extent in shape):
        raise wrong(f"has the shape {_shown(shape)}; 1 to {_MAX_DIMS} positive extents are possible")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int and 0 <= offset < 1 << 63 for offset in offsets):
        raise wrong(f"has the data_offsets {_shown(offsets)}; expected two whole numbers")
    size, (begin, stop) = math.prod(shape) * sizes[dtype], offsets
    if stop - begin != size:
        raise wrong(f"of {dtype} {shape} needs {size} bytes, its data_offsets hold {stop - begin}")
    return dtype, tuple(shape), begin, stop


class ArrayParts(NamedTuple):
    """An array that is made while it is written: rows after rows."""

    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[AnyArray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _PACKED_SIZES[self.dtype]


def write_safetensors(path: Path, arrays: Mapping[str, AnyArray | ArrayParts]) -> str:
    """Writes float16, float32 and int32 arrays under a name that is there when all of it is on the disk; the SHA-256 of the file. Raises OSError."""
    entries = {name: array if isinstance(array, ArrayParts) else ArrayParts(_dtype(array), array.shape, [array]) for name, array in arrays.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.nbytes]}
        end += entry.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    digest, partial = hashlib.sha256(), path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:

            def write(data: bytes | memoryview) -> None:
                digest.update(data)
                file.write(data)

            write(len(raw).to_bytes(8, "little") + raw)
            for entry in entries.values():
                for part in entry.parts:
                    write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            if file.tell() != 8 + len(raw) + end:
                raise ValueError(f"{path}: the parts of an array are not its size")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def _dtype(array: AnyArray) -> str:
    return {"<f2": "F16", "<f4": "F32", "<i4": "I32"}[array.dtype.str]


def read_directory(directory: str | Path) -> Checkpoint:
    """Read a checkpoint: every tensor of the index exactly once, no file outside the directory. Raises ModelFormatError, UnsupportedModelError."""
    directory = Path(directory)
    config = _read_json(directory, "config.json", MAX_CONFIG_BYTES)
    if config is None:
        raise ModelFormatError(f"{directory}: no config.json; a model is a directory with config.json and *.safetensors, or a .gguf file")
    quantization = config.get("quantization_config")
    if quantization is None:
        tensors = {name: array.tensor(name) for name, array in _read_shards(directory, _SIZES).items()}
    else:
        tensors = packed_tensors(quantization, str(directory / "config.json"), _read_shards(directory, _PACKED_SIZES))
    return Checkpoint(
        path=directory,
        config=config,
        generation_config=_read_json(directory, "generation_config.json", MAX_CONFIG_BYTES) or {},
        tensors=tensors,
        chat_template=_chat_template(directory),
        tokenizer_path=_member(directory, "tokenizer.json"),
    )


def _read_shards(directory: Path, sizes: Mapping[str, int]) -> dict[str, StoredArray]:
    single, index_name = _member(directory, "model.safetensors"), INDEX
    index = _read_json(directory, index_name, MAX_INDEX_BYTES)
    if single is not None and index is not None:
        raise ModelFormatError(f"{directory}: both model.safetensors and {index_name} are there; remove the one that is stale")
    if single is not None:
        return _read_file(single, sizes)
    if index is None:
        raise ModelFormatError(f"{directory}: neither model.safetensors nor {index_name} is there")
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(shard, str) for shard in placed.values()):
        raise ModelFormatError(f"{directory / index_name}: weight_map must map names of tensors to names of files")
    tensors: dict[str, StoredArray] = {}
    for shard in sorted(set(placed.values())):
        if not _SHARD.fullmatch(shard):
            raise ModelFormatError(f"{directory / index_name}: {shard[:200]!r} is not the plain name of a .safetensors file")
        path = _member(directory, shard)
        if path is None:
            raise ModelFormatError(f"{directory / index_name}: the file {shard} is missing")
        for name, tensor in _read_file(path, sizes).items():
            if placed.get(name) != shard:
                raise ModelFormatError(f"{path}: holds the tensor {name!r}, which the index places in {placed.get(name, 'no file')}")
            tensors[name] = tensor
    missing = placed.keys() - tensors.keys()
    if missing:
        raise ModelFormatError(f"{directory / index_name}: {len(missing)} tensors are not in their file, first {min(missing)!r}")
    return tensors


def _chat_template(directory: Path) -> str | None:
    path = _member(directory, "chat_template.jinja")
    if path is not None:
        return _decoded(path, _read_bytes(path, MAX_CONFIG_BYTES))
    template = (_read_json(directory, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES) or {}).get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ModelFormatError(f"{directory / 'tokenizer_config.json'}: chat_template is no text")
    return template


def _member(directory: Path, name: str) -> Path | None:
    """A file of the directory, None if absent. A link must stay inside, or inside the hub cache that a snapshot directory belongs to."""
    path = directory / name
    if not path.is_symlink() and not path.exists():
        return None
    try:
        target, root = path.resolve(strict=True), directory.resolve()
    except (OSError, RuntimeError) as error:
        raise ModelFormatError(f"{path}: cannot be read: {error}") from error
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        root = root.parents[2]
    if not target.is_relative_to(root):
        raise ModelFormatError(f"{path}: is a link out of the model's directory, to {target}")
    return path


def _read_json(directory: Path, name: str, limit: int) -> dict[str, Any] | None:
    path = _member(directory, name)
    return None if path is None else _parse_json(path, _read_bytes(path, limit))


def _read_bytes(path: Path, limit: int) -> bytes:
    file = map_file(path)
    if len(file) > limit:
        raise ModelFormatError(f"{path}: {len(file)} bytes; at most {limit} are read")
    return file.tobytes()


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """A JSON object without duplicate names and without NaN or Infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        object_: dict[str, Any] = {}
        for name, value in pairs:
            if name in object_:
                raise ModelFormatError(f"{path}: duplicate name {name[:200]!r}")
            object_[name] = value
        return object_

    def constant(name: str) -> Any:
        raise ModelFormatError(f"{path}: {name} is not a JSON number")

    try:
        value = json.loads(_decoded(path, raw), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: a JSON object is expected")
    return value


def _shown(value: Any) -> str:
    """A value of a hostile header, fit for one line of an error."""
    return json.dumps(value)[:80]
