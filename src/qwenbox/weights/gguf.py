"""Reader of GGUF files, version 2 and 3, little-endian (the format: `docs/gguf.md` of the ggml project).

The file is not trusted. Every count, length and offset is compared with the size of the file, in Python's unbounded integers, before
anything of that size is read, allocated or viewed. We are stricter than the format where nothing real needs the freedom: tensors lie in
the order of the table with no more than alignment between them, as ggml itself demands, and nothing follows the last one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import TENSOR_KINDS, Tensor, tensor_nbytes
from .files import map_file

MAX_HEADER_BYTES = 256 << 20
"""Metadata and tensor table together; real files need 6 MB. Bounds the Python objects that a hostile table can make us build."""

_KINDS = {info.ggml_type: kind for kind, info in TENSOR_KINDS.items() if info.ggml_type is not None}
_OTHER_TYPES = {
    7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_STRING, _ARRAY, _BOOL, _UINT32 = 8, 9, 7, 4
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
_MAX_KEY, _MAX_NAME, _MAX_DIMS = 65535, 63, 4
# The least that one entry takes: length, one character, type, one byte of value; length, character, count, one extent, type, offset.
_MIN_PAIR, _MIN_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class GGUF:
    """What a file holds. `metadata` values are int, float, bool, str or a list of one of these; `tensors` stand in the order of the file.

    A tensor's shape is the reverse of the file's dimensions: the last axis is the contiguous one.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_gguf(path: str | Path) -> GGUF:
    """Read the tables and map the data. Raises ModelFormatError (what is wrong, and at which byte), UnsupportedModelError (a quantisation)."""
    return _Reader(Path(path)).read()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = map_file(path)
        self.size = len(self.file)
        self.header = self.file.data[:MAX_HEADER_BYTES]
        self.position = 0
        self.what = "file header"

    def read(self) -> GGUF:
        if self.size < 4 or bytes(self.header[:4]) != b"GGUF":
            raise ModelFormatError(f"{self.path}: not a GGUF file: it does not begin with the bytes GGUF")
        self.position = 4
        version = self.uint(4)
        if version not in (2, 3):
            hint = "it is big-endian" if version in (2 << 24, 3 << 24) else "versions 2 and 3 are supported"
            raise self.error(f"GGUF version {version}: {hint}", 4)
        num_tensors, num_pairs = self.uint(8), self.uint(8)
        self.check_count(num_pairs, _MIN_PAIR, "metadata pairs")
        self.check_count(num_tensors, _MIN_TENSOR, "tensors")
        metadata = self.metadata(num_pairs)
        parts = metadata.get("split.count", 0)
        if parts not in (0, 1):
            raise UnsupportedModelError(f"{self.path}: one part of a model split into {parts} files; join them with llama-gguf-split --merge")
        return GGUF(self.path, version, metadata, self.tensors(num_tensors, self.alignment(metadata)))

    # --- tables ---

    def metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            self.what = f"metadata pair {index}"
            start = self.position
            key = self.string()
            if not key or len(key.encode()) > _MAX_KEY:
                raise self.error(f"a key has 1 to {_MAX_KEY} bytes", start)
            if key in metadata:
                raise self.error(f"duplicate key {key!r}", start)
            self.what = f"metadata {_shown(key)}"
            kind = self.uint(4)
            metadata[key] = self.array() if kind == _ARRAY else self.scalar(kind)
            if key == "general.alignment" and kind != _UINT32:
                raise self.error("must be a uint32", start)
        return metadata

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = int(metadata.get("general.alignment", 32))
        if alignment < 8 or alignment & (alignment - 1):
            raise ModelFormatError(f"{self.path}: general.alignment is {alignment}; it must be a power of two, at least 8")
        return alignment

    def tensors(self, count: int, alignment: int) -> dict[str, Tensor]:
        infos: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for index in range(count):
            self.what = f"tensor {index}"
            start = self.position
            name = self.string()
            if not name or len(name.encode()) > _MAX_NAME:
                raise self.error(f"a tensor name has 1 to {_MAX_NAME} bytes", start)
            if name in infos:
                raise self.error(f"duplicate tensor {name!r}", start)
            self.what = f"tensor {_shown(name)}"
            num_dims = self.uint(4)
            if not 1 <= num_dims <= _MAX_DIMS:
                raise self.error(f"{num_dims} dimensions; 1 to {_MAX_DIMS} are possible", self.position - 4)
            shape = tuple(reversed([self.uint(8) for _ in range(num_dims)]))
            kind = self.kind(self.uint(4))
            if math.prod(shape) == 0:
                raise self.error(f"shape {shape} is empty", start)
            if shape[-1] % TENSOR_KINDS[kind].block:
                raise self.error(f"{shape[-1]} columns are not whole {kind} blocks of {TENSOR_KINDS[kind].block}", start)
            infos[name] = (kind, shape, self.uint(8), start)

        # A file without tensors (a vocabulary) may end with its tables.
        base = -(-self.position // alignment) * alignment if infos else self.position
        end = base
        tensors: dict[str, Tensor] = {}
        for name, (kind, shape, offset, at) in infos.items():
            self.what = f"tensor {_shown(name)}"
            expected = -(-end // alignment) * alignment - base if tensors else 0
            if offset != expected:
                problem = "is not aligned" if offset % alignment else "overlaps the tensor before it" if offset < expected else "leaves a gap"
                raise self.error(f"offset {offset} {problem}; expected {expected} (alignment {alignment})", at)
            start, nbytes = base + offset, tensor_nbytes(kind, shape)
            end = start + nbytes
            if end > self.size:
                raise self.error(f"{kind} {shape} needs the bytes {start} to {end}, the file has {self.size}", at)
            tensors[name] = Tensor(name, kind, shape, self.file[start:end])
        if self.size not in (end, -(-end // alignment) * alignment):
            raise ModelFormatError(f"{self.path}: {self.size - end} bytes follow the last tensor, which ends at byte {end}")
        return tensors

    def kind(self, number: int) -> str:
        if number in _KINDS:
            return _KINDS[number]
        supported = ", ".join(kind.upper() for kind in _KINDS.values())
        if number in _OTHER_TYPES:
            raise UnsupportedModelError(f"{self.path}: {self.what} has the unsupported type {_OTHER_TYPES[number]}; take a file of {supported}")
        raise self.error(f"unknown tensor type {number}; supported are {supported}", self.position - 4)

    # --- values ---

    def scalar(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        return self.numbers(kind, 1)[0]

    def array(self) -> list[Any]:
        kind, count = self.uint(4), self.uint(8)
        if kind == _ARRAY:
            raise self.error("nested arrays are not supported", self.position - 12)
        return self.strings(count) if kind == _STRING else self.numbers(kind, count)

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise self.error(f"unknown value type {kind}", self.position)
        start = self.position
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == _BOOL:
            if values.size and values.max() > 1:
                raise self.error("a bool is 0 or 1", start)
            values = values.astype(np.bool_)
        listed: list[Any] = values.tolist()
        return listed

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """The one hot loop: 300,000 strings of a vocabulary in a tenth of a second."""
        self.check_count(count, 8, "strings")
        header, limit, position = self.header, len(self.header), self.position
        length_at: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            if limit - position < 8:
                self.position = position
                self.take(8)
            (length,) = length_at(header, position)
            position += 8
            if length > limit - position:
                self.position = position
                self.take(length)
            try:
                values.append(str(header[position : position + length], "utf-8"))
            except UnicodeDecodeError as error:
                raise self.error(f"a string is not UTF-8: {error.reason}", position) from None
            position += length
        self.position = position
        return values

    # --- bytes ---

    def uint(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def take(self, nbytes: int) -> memoryview:
        """The next `nbytes` of the tables, or the error that they are not there."""
        start = self.position
        if nbytes > len(self.header) - start:
            if self.size > len(self.header):
                raise self.error(f"{nbytes} bytes exceed the {MAX_HEADER_BYTES} bytes that the tables of a file may take", start)
            raise self.error(f"{nbytes} bytes are announced, the file has {self.size - start} left", start)
        self.position = start + nbytes
        return self.header[start : self.position]

    def check_count(self, count: int, least: int, noun: str) -> None:
        if count * least > len(self.header) - self.position:
            raise self.error(f"{count} {noun} do not fit the {len(self.header) - self.position} bytes that are left", self.position)

    def error(self, problem: str, position: int) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: {self.what}, byte {position}: {problem}")


def _shown(name: str) -> str:
    """A name from a hostile file, fit for one line of an error."""
    return repr(name if len(name) <= 80 else name[:77] + "...")
