"""Models that are not well any more: the faults that `qwenbox verify` has to find, planted in copies of models that are.

Directories are those of `as_awq`, GGUF files those of `tests.tiny.tiny_gguf` with OWN_TEMPLATE.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from qwenbox.chat import template
from qwenbox.quantize.quantize import Options, quantize
from qwenbox.quantize.source import read_source

OWN_TEMPLATE = Path(template.__file__).parent / "templates" / "qwen3.jinja"


def as_awq(source: Path, target: Path) -> Path:
    """A directory in AutoAWQ's form, rounded to nearest, of a directory or a GGUF file; in one file of weights, so that a fault is one change."""
    quantize(read_source(source), target, Options("rtn"), None)
    shards = sorted(target.glob("*.safetensors"))
    arrays = {name: array for shard in shards for name, array in load_file(shard).items()}
    for file in (*shards, target / "model.safetensors.index.json"):
        file.unlink()
    save_file(arrays, _file(target))
    return target


# --- faults --------------------------------------------------------------------------------------------------------------


def _file(model: Path) -> Path:
    return model / "model.safetensors"


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), size + 8


def _arrays(model: Path, suffix: str, change: Callable[[np.ndarray], None]) -> None:
    """Changes the arrays whose names end so, in place."""
    header, begin = _header(_file(model))
    kinds = {"I32": np.uint32, "F16": np.float16, "BF16": np.uint16}
    for name, entry in header.items():
        if name.endswith(suffix):
            place = begin + entry["data_offsets"][0]
            array = np.memmap(_file(model), kinds[entry["dtype"]], "r+", place, tuple(entry["shape"]))
            change(array)
            array.flush()


def flipped_byte(model: Path) -> None:
    """One bit of one byte in the middle of the weights."""
    path = model if model.is_file() else _file(model)
    with path.open("r+b") as file:
        place = path.stat().st_size // 2
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def swapped_layers(model: Path) -> None:
    """Layers 1 and 2 have changed places."""
    path = _file(model)
    header, begin = _header(path)
    other = {"1": "2", "2": "1"}
    swapped = {re.sub(r"layers\.([12])\.", lambda m: f"layers.{other[m[1]]}.", name): entry for name, entry in header.items()}
    raw = json.dumps(swapped, separators=(",", ":")).encode()
    with path.open("r+b") as file:
        file.seek(8)
        file.write(raw.ljust(begin - 8))


def wrong_group_size(model: Path) -> None:
    """Each scale is used for twice as many weights as it belongs to."""

    def change(scales: np.ndarray) -> None:
        scales[:] = scales[np.arange(len(scales)) // 2].copy()

    _arrays(model, ".scales", change)


def zeros_off_by_one(model: Path) -> None:
    """As where the zeros of one version of GPTQ's form are read as those of the other."""

    def change(words: np.ndarray) -> None:
        nibbles = [(words >> np.uint32(4 * place) & 15) for place in range(8)]
        words[:] = sum((np.maximum(nibble, 1) - 1) << np.uint32(4 * place) for place, nibble in enumerate(nibbles))

    _arrays(model, ".qzeros", change)


def wrong_rope(model: Path) -> None:
    """The base of the rope is four times what it was."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": config["rope_theta"] * 4}))


def stale_template(model: Path) -> None:
    """The template of an older release, which speaks otherwise of tools."""
    (model / "chat_template.jinja").write_text(OWN_TEMPLATE.read_text().replace("# Tools", "## Functions"))


FAULTS: dict[str, Callable[[Path], None]] = {
    "flipped byte": flipped_byte,
    "swapped layers": swapped_layers,
    "wrong group size": wrong_group_size,
    "zeros off by one": zeros_off_by_one,
    "wrong rope": wrong_rope,
    "stale template": stale_template,
}


def _bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes a GGUF file, which keeps its size and the places of all tensors."""
    before = path.read_bytes()
    after = change(before)
    assert len(after) == len(before) and after != before
    path.write_bytes(after)


def swapped_blocks(model: Path) -> None:
    """Layers 0 and 1 of a GGUF file have changed places."""
    other = {b"0": b"1", b"1": b"0"}
    _bytes(model, lambda raw: re.sub(rb"blk\.([01])\.", lambda m: b"blk.%s." % other[m[1]], raw))


def wrong_base(model: Path) -> None:
    """The base of the rope in a GGUF file is four times what it was."""
    key = b"rope.freq_base" + struct.pack("<I", 6)
    _bytes(model, lambda raw: re.sub(key + b"(....)", lambda m: key + struct.pack("<f", 4 * struct.unpack("<f", m[1])[0]), raw, flags=re.DOTALL))


def foreign_template(model: Path) -> None:
    """The template in a GGUF file speaks otherwise of tools."""
    _bytes(model, lambda raw: raw.replace(b"# Tools", b"# Calls"))


GGUF_FAULTS: dict[str, Callable[[Path], None]] = {
    "flipped byte": flipped_byte,
    "swapped layers": swapped_blocks,
    "wrong rope": wrong_base,
    "foreign template": foreign_template,
}
