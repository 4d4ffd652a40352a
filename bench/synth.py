"""Writes a model for benchmarks: random weights of a released Qwen3 shape, or a real GGUF file in another form.

    python bench/synth.py 8b --as q4_k_m --out 8b.gguf [--layers 2] [--tokenizer MODEL] [--seed 0]
    python bench/synth.py 30b-a3b --as awq --out DIRECTORY
    python bench/synth.py --real qwen2.5-coder-1.5b --as awq --out DIRECTORY

Forms: `q4_0` and `q4_k_m` are GGUF files with the kinds of tensors that llama.cpp's quantiser chooses; `awq` (AutoAWQ gemm, 4 bits, groups of
128, the rest fp16) and `bf16` are directories as transformers writes them. `--real` rounds to the nearest (`awq`) or widens what the file
holds (`bf16`); it measures speed, and is not the quality of a calibrated AWQ model. Tokenizer and template are those of a cached model.
A tensor is made some rows at a time; only what AutoAWQ stores transposed is held whole.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from qwenbox import hub
from qwenbox.kernels import quants
from qwenbox.model.config import ModelConfig, from_gguf
from qwenbox.model.load import SHAPES, random_config
from qwenbox.model.qwen import _NAMES, Qwen, StoredTensors
from qwenbox.quantize.source import config_document, gguf_documents
from qwenbox.settings import load_settings
from qwenbox.types import TENSOR_KINDS, ByteArray, Tensor, tensor_nbytes
from qwenbox.weights.awq import GROUP, pack
from qwenbox.weights.gguf import read_gguf

GGUF_FORMS, DIRECTORY_FORMS = ("q4_0", "q4_k_m"), ("awq", "bf16")
"""That the command writes; `write_gguf` also writes bf16."""
CHUNK = 1 << 22
"""Elements that are made at one time."""
_ARCHITECTURES = {
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3_moe": ("qwen3moe", "Qwen3MoeForCausalLM"),
}
"""Ours: (in a GGUF file, in a config.json)."""

Advance = Callable[[int], None]


class Slot(NamedTuple):
    """A tensor that the network asks for, by the names of `model/qwen.py`."""

    name: str
    layer: int
    expert: int
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def linear(self) -> bool:
        """Whether quantisers touch it; they leave embedding, head and router to rules of their own."""
        return len(self.shape) > 1 and self.name not in ("embedding", "head", "router")

    def stored_name(self, column: int) -> str:
        return _NAMES[self.name][column].format(i=self.layer, e=self.expert)


class Layout:
    """A `TensorSource` that has nothing and remembers what was asked for; with `stacked` the experts of a layer are one tensor."""

    def __init__(self, config: ModelConfig, *, stacked: bool) -> None:
        self.slots: list[Slot] = []
        self._stacked = stacked
        Qwen(config, self)

    def has(self, name: str) -> bool:
        return False

    def __call__(self, name: str, *shape: int, i: int = 0, e: int = 0) -> Tensor:
        self.slots.append(Slot(name, i, e, shape))
        return Tensor(name, "f32", shape, np.empty(0, np.uint8))

    def experts(self, name: str, count: int, rows: int, columns: int, *, i: int) -> list[Tensor]:
        if not self._stacked:
            return [self(name, rows, columns, i=i, e=e) for e in range(count)]
        self.slots.append(Slot(name, i, 0, (count, rows, columns)))
        return [Tensor(name, "f32", (rows, columns), np.empty(0, np.uint8))] * count

    def check_nothing_is_left(self) -> None:
        pass


# --- what the tensors hold -----------------------------------------------------------------------------------------


class Weights(Protocol):
    def rows(self, slot: Slot, kind: str, start: int, stop: int) -> ByteArray:
        """Raw blocks of rows [start, stop); of a vector, all of it."""
        ...


class RandomWeights:
    """Uniform codes of a standard deviation near 1 / sqrt(columns), norms of one. The same seed gives the same bytes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def rows(self, slot: Slot, kind: str, start: int, stop: int) -> ByteArray:
        if len(slot.shape) == 1:
            return as_kind(np.ones((1, slot.columns), np.float32), kind)
        generator = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(slot.stored_name(0).encode()), start]))
        size = tensor_nbytes(kind, (stop - start, slot.columns))
        data = generator.integers(0, 1 << 64, -(-size // 8), dtype=np.uint64).view(np.uint8)[:size]
        deviation = 1 / math.sqrt(slot.columns)
        if kind in quants.DENSE_KINDS:
            return _dense(data, kind, deviation)
        blocks = data.reshape(-1, TENSOR_KINDS[kind].block_bytes)
        if kind == "q6_k":
            blocks[:, 192:208] = 4
            blocks[:, 208:] = _half(deviation / (4 * 18.5))
            return data
        if kind == "q4_k":
            # all sub-scales and sub-minima 8, so that the mean is zero
            blocks[:, :2], blocks[:, 2:4] = _half(deviation / (8 * 4.6)), _half(7.5 * deviation / (8 * 4.6))
            blocks[:, 4:12], blocks[:, 12:16] = 8, 0x88
            return data
        blocks[:, :2] = _half(deviation / 4.6)
        if kind == "int4":
            blocks[:, 2] = 7 + (blocks[:, 2] & 1)
        return data


def _dense(data: ByteArray, kind: str, deviation: float) -> ByteArray:
    """Random bits with one exponent: magnitudes from 2^e to 2^(e + 1)."""
    exponent = round(math.log2(deviation) - 0.6)
    mantissa, bias, dtype = {"f32": (23, 127, "<u4"), "f16": (10, 15, "<u2"), "bf16": (7, 127, "<u2")}[kind]
    bits = data.view(dtype)
    bits &= (1 << (8 * bits.itemsize - 1)) | ((1 << mantissa) - 1)
    bits |= (bias + exponent) << mantissa
    return data


def _half(value: float) -> ByteArray:
    return np.array([value], "<f2").view(np.uint8)


class RealWeights:
    """The numbers of a GGUF file."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        self._tensors: dict[tuple[str, int, int], Tensor] = {}
        take = StoredTensors(tensors)
        for slot in Layout(config, stacked=True).slots:
            if len(slot.shape) == 3:
                for e, tensor in enumerate(take.experts(slot.name, *slot.shape, i=slot.layer)):
                    self._tensors[slot.name, slot.layer, e] = tensor
            else:
                self._tensors[slot.name, slot.layer, 0] = take(slot.name, *slot.shape, i=slot.layer)
        take.check_nothing_is_left()

    def rows(self, slot: Slot, kind: str, start: int, stop: int) -> ByteArray:
        tensor = self._tensors[slot.name, slot.layer, slot.expert]
        return as_kind(quants.dequantize(tensor).reshape(1, -1) if len(slot.shape) == 1 else quants.dequantize(tensor, start, stop), kind)


def as_kind(rows: np.ndarray, kind: str) -> ByteArray:
    if kind == "bf16":
        return quants.round_bf16(rows)
    if kind == "int4":
        return quants.round_int4(rows)
    return np.ascontiguousarray(rows, {"f16": "<f2", "f32": "<f4"}[kind]).reshape(-1).view(np.uint8)


def chunks(weights: Weights, slot: Slot, kind: str) -> Iterator[tuple[int, ByteArray]]:
    """(first row, raw blocks) of the whole tensor."""
    step = max(1, CHUNK // slot.columns)
    for start in range(0, slot.rows, step):
        yield start, weights.rows(slot, kind, start, min(start + step, slot.rows))


# --- GGUF ----------------------------------------------------------------------------------------------------------


def gguf_kind(form: str, slot: Slot, config: ModelConfig) -> str:
    """As `llama_tensor_get_type_impl` of llama.cpp chooses for the Qwen family."""
    if form == "bf16":
        return "bf16" if len(slot.shape) > 1 and slot.name != "router" else "f32"
    if not slot.linear:
        if slot.name == "head" or (slot.name == "embedding" and config.tied_head):
            return "q6_k"
        return {"q4_0": "q4_0", "q4_k_m": "q4_k"}[form] if slot.name == "embedding" else "f32"
    if form == "q4_0":
        return "q4_0"
    layers, i = config.num_layers, slot.layer
    more_bits = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
    return "q6_k" if more_bits and slot.name in ("value", "down", "expert_down") else "q4_k"


class _Streamed:
    """What `GGUFWriter` needs of an array, without its data being there at one time."""

    def __init__(self, nbytes: int, parts: Iterator[ByteArray], advance: Advance) -> None:
        self.nbytes = nbytes
        self._parts, self._advance = parts, advance

    def tofile(self, file: IO[bytes]) -> None:
        for part in self._parts:
            file.write(part.data)
            self._advance(part.nbytes)


def write_gguf(path: Path, form: str, config: ModelConfig, weights: Weights, metadata: Mapping[str, Any]) -> None:
    """`metadata` is of the GGUF file that lends its tokenizer. The file appears under its name when it is whole."""
    import gguf

    slots = Layout(config, stacked=True).slots
    kinds = [gguf_kind(form, slot, config) for slot in slots]
    partial = path.with_name(path.name + ".partial")
    writer: Any = gguf.GGUFWriter(partial, _ARCHITECTURES[config.architecture][0])
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{form.upper()}"])
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.experts is not None:
        writer.add_expert_count(config.experts.count)
        writer.add_expert_used_count(config.experts.top_k)
        writer.add_expert_feed_forward_length(config.experts.intermediate_size)
    for key, value in metadata.items():
        if key.startswith("tokenizer."):
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[type(value)]
            add(key, value)
    for slot, kind in zip(slots, kinds, strict=True):
        if kind == "f32":
            writer.add_tensor_info(slot.stored_name(1), slot.shape, np.dtype(np.float32), tensor_nbytes(kind, slot.shape))
        else:
            nbytes = tensor_nbytes(kind, slot.shape)
            shape = (*slot.shape[:-1], nbytes // slot.rows)
            raw = gguf.GGMLQuantizationType(TENSOR_KINDS[kind].ggml_type)
            writer.add_tensor_info(slot.stored_name(1), shape, np.dtype(np.uint8), nbytes, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    sizes = [tensor_nbytes(kind, slot.shape) for slot, kind in zip(slots, kinds, strict=True)]
    with Bar(path, sum(sizes)) as advance:
        for slot, kind, size in zip(slots, kinds, sizes, strict=True):
            writer.write_tensor_data(_Streamed(size, (part for _, part in chunks(weights, slot, kind)), advance))
    writer.close()
    partial.rename(path)


# --- directories ---------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An array of a safetensors file that is still to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def awq_entries(slot: Slot) -> list[Entry]:
    rows, columns = slot.shape
    if columns % GROUP or rows % 8:
        raise SystemExit(f"{slot.stored_name(0)} has {rows} x {columns} weights; AWQ needs multiples of 8 x {GROUP}")
    module, groups = slot.stored_name(0).removesuffix(".weight"), columns // GROUP
    return [
        Entry(f"{module}.qweight", "I32", (columns, rows // 8), columns * rows // 2),
        Entry(f"{module}.qzeros", "I32", (groups, rows // 8), groups * rows // 2),
        Entry(f"{module}.scales", "F16", (groups, rows), groups * rows * 2),
    ]


def awq_arrays(weights: Weights, slot: Slot) -> list[ByteArray]:
    """`qweight`, `qzeros` and `scales` of one matrix."""
    rows, columns = slot.shape
    blocks = np.concatenate([part for _, part in chunks(weights, slot, "int4")]).reshape(rows, columns // GROUP, 67)
    low, high = blocks[..., 3:] & 15, blocks[..., 3:] >> 4
    codes = np.concatenate([low, high], axis=-1).reshape(rows, columns)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
    return [part.reshape(-1).view(np.uint8) for part in pack(codes, blocks[..., 2], scales).values()]


def write_directory(directory: Path, form: str, config: ModelConfig, weights: Weights, metadata: Mapping[str, Any]) -> None:
    """config.json, model.safetensors, tokenizer and template. `config.json` is written last: without it this is no checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    slots = Layout(config, stacked=False).slots
    dtype, kind = ("F16", "f16") if form == "awq" else ("BF16", "bf16")
    entries = [
        entry
        for slot in slots
        for entry in (
            awq_entries(slot) if form == "awq" and slot.linear else [Entry(slot.stored_name(0), dtype, slot.shape, tensor_nbytes(kind, slot.shape))]
        )
    ]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.nbytes]}
        end += entry.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with (directory / "model.safetensors").open("wb") as file, Bar(directory, end) as advance:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for slot in slots:
            parts = awq_arrays(weights, slot) if form == "awq" and slot.linear else (part for _, part in chunks(weights, slot, kind))
            for part in parts:
                file.write(part.data)
                advance(part.nbytes)
    for name, document in gguf_documents(config, metadata, tied=bool(config.tied_head)).items():
        if name != "config.json":
            (directory / name).write_text(str(document), encoding="utf-8")
    document = config_document(config, tied=bool(config.tied_head)) | {"eos_token_id": metadata["tokenizer.ggml.eos_token_id"]}
    if form == "awq":
        skipped = ["mlp.gate"] if config.experts is not None else None
        quantization = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
        document |= {"torch_dtype": "float16", "quantization_config": {**quantization, "modules_to_not_convert": skipped}}
    write_json(directory / "config.json", document)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


# --- command line --------------------------------------------------------------------------------------------------


@dataclass
class Bar:
    """A progress bar in bytes on standard error."""

    path: Path
    total: int

    def __enter__(self) -> Advance:
        self._progress = Progress(console=Console(stderr=True))
        self._progress.start()
        task = self._progress.add_task(f"{self.path.name}, {self.total / 1e9:.2f} GB", total=self.total)
        return lambda count: self._progress.advance(task, count)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def write(path: Path, form: str, config: ModelConfig, weights: Weights, metadata: Mapping[str, Any]) -> None:
    (write_gguf if form in GGUF_FORMS else write_directory)(path, form, config, weights, metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", choices=SHAPES)
    parser.add_argument("--real", metavar="MODEL", help="catalogue name or .gguf file to take the numbers from, in place of a shape")
    parser.add_argument("--as", dest="form", required=True, choices=(*GGUF_FORMS, *DIRECTORY_FORMS))
    parser.add_argument("--out", type=Path, required=True, help="the .gguf file or the directory to write")
    parser.add_argument("--layers", type=int, help="only so many layers of the shape")
    parser.add_argument("--tokenizer", default="qwen2.5-coder-0.5b", metavar="MODEL", help="GGUF model that lends its tokenizer to a shape")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.shape is None) == (arguments.real is None):
        parser.error("give a shape or --real MODEL")
    if arguments.layers is not None and arguments.layers < 1:
        parser.error("at least one layer is needed")
    if arguments.out.is_file() or (arguments.out / "config.json").exists():  # a directory without one was not finished
        parser.error(f"{arguments.out} is there already")
    file = read_gguf(hub.resolve(arguments.real or arguments.tokenizer, load_settings()))
    weights: Weights
    if arguments.real is None:
        config = random_config(arguments.shape)
        if arguments.layers is not None:
            config = shortened(config, arguments.layers)
        weights = RandomWeights(arguments.seed)
    else:
        if arguments.form in GGUF_FORMS or arguments.layers is not None:
            parser.error("--real is written whole, as awq or bf16; for GGUF there is llama-quantize")
        config = replace(from_gguf(file.metadata), tied_head=_NAMES["head"][1] not in file.tensors)
        weights = RealWeights(config, file.tensors)
    write(arguments.out, arguments.form, config, weights, file.metadata)


def shortened(config: ModelConfig, layers: int) -> ModelConfig:
    experts = None if config.experts is None else replace(config.experts, sparse_layers=tuple(range(layers)))
    return replace(config, num_layers=layers, experts=experts)


if __name__ == "__main__":
    main()
