"""Models that are not well any more: the faults that `qwenbox verify` has to find, planted in copies of models that are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from qwenbox.chat import template
from qwenbox.kernels.quants import dequantize
from qwenbox.types import Tensor
from qwenbox.weights.gguf import read_gguf
from qwenbox.weights.safetensors import read_directory

GROUP = 128
OWN_TEMPLATE = Path(template.__file__).parent / "templates" / "qwen3.jinja"
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of the eight outputs whose codes share a word of AutoAWQ's, from its lowest bits on."""
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}


# --- a model in AutoAWQ's form -------------------------------------------------------------------------------------------


def as_awq(source: Path, target: Path) -> Path:
    """A checkpoint in AutoAWQ's form, each group rounded by itself, of a directory or a GGUF file of Qwen2's; for measuring, not for quality."""
    target.mkdir(parents=True)
    if source.is_dir():
        tensors: Mapping[str, Tensor] = read_directory(source).tensors
        config = json.loads((source / "config.json").read_text())
        for file in source.iterdir():
            if file.suffix in (".json", ".jinja"):
                shutil.copy(file, target)
    else:
        file = read_gguf(source)
        tensors = {_hf_name(name): tensor for name, tensor in file.tensors.items()}
        config = _qwen2_config(file.metadata, len(file.metadata["tokenizer.ggml.tokens"]), "output.weight" not in file.tensors)
    arrays: dict[str, Any] = {}
    for name, tensor in tensors.items():
        values = dequantize(tensor)
        if name.endswith("proj.weight"):
            arrays |= {f"{name.removesuffix('weight')}{part}": array for part, array in _packed(values).items()}
        else:
            arrays[name] = values.astype(np.float16)
    save_file(arrays, target / "model.safetensors")
    config |= {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}}
    (target / "config.json").write_text(json.dumps(config))
    return target


def _hf_name(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    assert found is not None, name
    return f"model.layers.{found[1]}.{_PARTS[found[2]]}.{found[3]}"


def _qwen2_config(metadata: Mapping[str, Any], vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": metadata["qwen2.embedding_length"],
        "intermediate_size": metadata["qwen2.feed_forward_length"],
        "num_hidden_layers": metadata["qwen2.block_count"],
        "num_attention_heads": metadata["qwen2.attention.head_count"],
        "num_key_value_heads": metadata["qwen2.attention.head_count_kv"],
        "max_position_embeddings": metadata["qwen2.context_length"],
        "rms_norm_eps": metadata["qwen2.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["qwen2.rope.freq_base"],
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
    }


def _packed(values: np.ndarray) -> dict[str, np.ndarray]:
    rows, columns = values.shape
    groups = values.reshape(rows, columns // GROUP, GROUP)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scales = np.maximum((high - low) / 15, 1e-6).astype(np.float16)
    zeros = np.clip(np.round(-low / scales), 0, 15).astype(np.int64)
    codes = np.clip(np.round(groups / scales[..., None].astype(np.float32)) + zeros[..., None], 0, 15).astype(np.int64)
    return {"qweight": _words(codes.reshape(rows, columns).T), "qzeros": _words(zeros.T), "scales": np.ascontiguousarray(scales.T)}


def _words(codes: np.ndarray) -> np.ndarray:
    eights = codes.reshape(codes.shape[0], -1, 8)
    return sum(eights[..., output] << 4 * place for place, output in enumerate(_ORDER)).astype(np.uint32).view(np.int32)


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
