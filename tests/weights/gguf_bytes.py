"""A writer of GGUF bytes that can lie: every count, type and offset may be given instead of the true one."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(key: str, kind: int, values: bytes, count: int) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + values)


@dataclass(frozen=True)
class Raw:
    """A tensor: dimensions as in the file (contiguous first), type number, bytes; `offset` lies if given."""

    name: str | bytes
    dims: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None
    num_dims: int | None = None


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[Raw] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
    alignment: int = 32,
    tail: bytes = b"",
    pad_end: bool = True,
) -> bytes:
    head = magic + struct.pack("<IQQ", version, len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    head += b"".join(pairs)
    data = b""
    for tensor in tensors:
        data += bytes(-len(data) % alignment)
        offset = len(data) if tensor.offset is None else tensor.offset
        head += string(tensor.name) + struct.pack("<I", len(tensor.dims) if tensor.num_dims is None else tensor.num_dims)
        head += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims) + struct.pack("<IQ", tensor.kind, offset)
        data += tensor.data
    if tensors:
        head += bytes(-len(head) % alignment)
        data += bytes(-len(data) % alignment) if pad_end else b""
    return head + data + tail


def small() -> bytes:
    """A valid file with every kind of value and tensors of several types; its last tensor ends on the alignment."""
    return gguf(
        [
            pair("general.architecture", STRING, string("qwen2")),
            pair("a.u8", UINT8, b"\xff"),
            pair("a.i16", INT16, struct.pack("<h", -2)),
            pair("a.u32", UINT32, struct.pack("<I", 7)),
            pair("a.f32", FLOAT32, struct.pack("<f", 0.5)),
            pair("a.bool", BOOL, b"\x01"),
            pair("a.u64", UINT64, struct.pack("<Q", 2**64 - 1)),
            pair("a.f64", FLOAT64, struct.pack("<d", -0.25)),
            array("tokens", STRING, string("a") + string("水") + string(""), 3),
            array("types", INT32, struct.pack("<3i", 1, -1, 3), 3),
        ],
        [
            Raw("norm", (3,), 0, struct.pack("<3f", 1, 2, 3)),
            Raw("q8", (32, 2), 8, bytes(range(68))),
            Raw("half", (4, 2, 3), 1, bytes(range(48))),
            Raw("q6", (256, 1), 14, bytes(210)),
            Raw("last", (8, 4), 30, bytes(range(64))),
        ],
    )
