"""The model that is quantised: its network, and the documents of a checkpoint that describe it, from a directory or from a GGUF file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwenbox.chat.chat import GENERATION_FIELDS
from qwenbox.chat.pooling import documents_of_metadata
from qwenbox.chat.tokenizer import END_OF_TURN, SPLIT
from qwenbox.errors import ModelFormatError, NotFoundError, UnsupportedModelError
from qwenbox.kernels.quants import dequantize, raw_rows
from qwenbox.model.config import ModelConfig, from_gguf, from_hf
from qwenbox.model.qwen import Qwen
from qwenbox.types import FloatArray, IntArray, Tensor
from qwenbox.weights.gguf import read_gguf
from qwenbox.weights.safetensors import read_directory

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "LICENSE",
)
"""Of a directory, where they are there."""
_CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
_TOKENIZER = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
_PIECE = 1 << 22
"""Elements of a large tensor that are float32 at one time."""


@dataclass(frozen=True, slots=True)
class Source:
    path: Path
    network: Qwen
    documents: Mapping[str, str | Path]
    """Files beside the weights, by name: texts, or files to copy. `config.json` says nothing of quantisation."""
    digest: str
    """SHA-256 over configuration, names, kinds, shapes, and the first and last 4,096 bytes of every tensor: another model has another one."""
    num_bytes: int
    """Of all tensors as they are stored."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> ModelConfig:
        return self.network.config


def read_source(path: Path) -> Source:
    """Raises ModelFormatError, NotFoundError, and UnsupportedModelError for a directory that is quantised already."""
    documents: dict[str, str | Path]
    if path.is_dir():
        checkpoint = read_directory(path)
        given = checkpoint.config.get("quantization_config")
        if given is not None:
            scheme = given.get("quant_method", "?") if isinstance(given, dict) else "?"
            raise UnsupportedModelError(f"{path} is quantised already ({scheme}): take the model that it was made from, in bf16, fp16, fp32 or GGUF")
        config, tensors = from_hf(checkpoint.config), checkpoint.tensors
        documents = {name: path / name for name in COPIED if (path / name).is_file()}
    elif path.exists():
        file = read_gguf(path)
        config, tensors = from_gguf(file.metadata), file.tensors
        documents = {}
    else:
        raise NotFoundError(f"{path} does not exist")
    network = Qwen(config, tensors)
    if path.is_dir():
        # A model of vectors has no head and may not say so; it is written with the names of one that has.
        tied = {"tie_word_embeddings": True} if network.head is None else {}
        documents["config.json"] = json.dumps({**checkpoint.config, **tied}, indent=1)
    else:
        documents = gguf_documents(config, file.metadata, tied=network.head is None)
    digest = hashlib.sha256(repr(config).encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.kind} {tensor.shape}".encode())
        digest.update(tensor.data[:4096].tobytes() + tensor.data[-4096:].tobytes())
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return Source(path, network, documents, digest.hexdigest(), num_bytes)


def embedded(table: Tensor, ids: IntArray) -> FloatArray:
    """The rows of an embedding that the ids name, [*ids.shape, hidden]."""
    rows = np.ascontiguousarray(raw_rows(table)[ids.reshape(-1)])
    picked = Tensor(table.name, table.kind, (ids.size, table.shape[1]), rows.reshape(-1))
    return dequantize(picked).reshape(*ids.shape, -1)


def pieces(table: Tensor) -> Iterator[FloatArray]:
    """All rows of a large tensor in order, some at a time."""
    step = max(1, _PIECE // table.shape[-1])
    for start in range(0, table.shape[0], step):
        yield dequantize(table, start, min(start + step, table.shape[0]))


# --- documents of a GGUF file --------------------------------------------------------------------------------------


def gguf_documents(config: ModelConfig, metadata: Mapping[str, Any], *, tied: bool) -> dict[str, str | Path]:
    """config.json, generation_config.json, tokenizer.json and tokenizer_config.json as a checkpoint would have them, and for a model of vectors what
    sentence-transformers reads. Raises ModelFormatError."""
    if missing := [key for key in _TOKENIZER if key not in metadata]:
        raise ModelFormatError(f"the file has no {', '.join(missing)}: its tokenizer cannot be written for a checkpoint")
    names = metadata["tokenizer.ggml.tokens"]
    end_of_turn = metadata.get("tokenizer.ggml.eos_token_id", names.index(END_OF_TURN) if END_OF_TURN in names else None)
    if type(end_of_turn) is not int or not 0 <= end_of_turn < len(names):
        raise ModelFormatError(f"tokenizer.ggml.eos_token_id is {end_of_turn!r}; it must be one of {len(names)} tokens")
    template = metadata.get("tokenizer.chat_template")
    name = metadata.get("general.name")  # tells whether a model always thinks
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": names[end_of_turn],
        "pad_token": "<|endoftext|>",
        "model_max_length": config.context_length,
        **({"chat_template": template} if template else {}),
    }
    documents = {
        "config.json": config_document(config, tied=tied) | {"eos_token_id": end_of_turn} | ({"_name_or_path": name} if name else {}),
        "generation_config.json": {"eos_token_id": end_of_turn}
        | {name: metadata[key] for name, key in GENERATION_FIELDS.values() if key in metadata},
        "tokenizer.json": tokenizer_document(metadata),
        "tokenizer_config.json": tokenizer_config,
        **documents_of_metadata(metadata, config.hidden_size),
    }
    return {name: json.dumps(value, ensure_ascii=False, indent=1) for name, value in documents.items()}


def config_document(config: ModelConfig, *, tied: bool) -> dict[str, Any]:
    """Raises UnsupportedModelError for stretched positions, which GGUF and transformers do not say in the same way."""
    if config.rope.kind != "default":
        raise UnsupportedModelError("a GGUF file with stretched rotary positions (YaRN) is not turned into a checkpoint: take the original one")
    document: dict[str, Any] = {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    if config.architecture in ("qwen3", "qwen3_moe"):
        document["attention_bias"] = False
    if config.experts is not None:
        document |= {
            "num_experts": config.experts.count,
            "num_experts_per_tok": config.experts.top_k,
            "moe_intermediate_size": config.experts.intermediate_size,
            "norm_topk_prob": config.experts.normalise,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        if config.experts.shared_intermediate_size:
            document["shared_expert_intermediate_size"] = config.experts.shared_intermediate_size
    return document


def tokenizer_document(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizer.json` of a GGUF file's tokenizer."""
    entries = list(enumerate(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # of GGUF's types 1 is a normal token, 3 a control token, 4 one that the makers defined, 5 padding
        "added_tokens": [{"id": id, "content": text, "special": kind == 3, **flags} for id, (text, kind) in entries if kind in (3, 4)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            **model,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: id for id, (text, kind) in entries if kind == 1},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
