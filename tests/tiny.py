"""A tiny random Qwen3 in one GGUF file, with a tokenizer: it answers, and what it says means nothing."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from qwenbox.types import TENSOR_KINDS
from qwenbox.weights.safetensors import read_directory
from tests.chat.small import small_metadata
from tests.checkpoint import write_checkpoint
from tests.kernels.networks import matrix
from tests.weights.gguf_bytes import FLOAT32, INT32, STRING, UINT32, Raw, array, gguf, pair, string

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@functools.cache
def tiny_gguf(name: str = "tiny", template: str | None = None, pooling_type: int | None = None, embedding: str = "f32") -> bytes:
    """`name` makes the bytes differ from another one's, so that a store keeps both; `template` is that of its chats.

    With a `pooling_type` it is a model for vectors. `embedding`, which is the head too: its kind.
    """
    metadata = small_metadata() | ({"tokenizer.chat_template": template} if template else {})
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = read_directory(write_checkpoint(Path(folder), vocab=len(metadata["tokenizer.ggml.tokens"]), positions=2048))
        raw = []
        for full, tensor in checkpoint.tensors.items():
            if embedding != tensor.kind and full == "model.embed_tokens.weight":
                tensor = matrix(np.random.default_rng(0), embedding, *tensor.shape)
            for theirs, ours in _NAMES.items():
                full = full.replace(theirs, ours)
            raw.append(Raw(full, tuple(reversed(tensor.shape)), TENSOR_KINDS[tensor.kind].ggml_type or 0, tensor.data.tobytes()))
        config = json.loads((Path(folder) / "config.json").read_bytes())
    numbers = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
    }
    if pooling_type is not None:
        numbers["pooling_type"] = pooling_type
    pairs = [pair(f"qwen3.{key}", UINT32, struct.pack("<I", value)) for key, value in numbers.items()]
    pairs += [pair(f"qwen3.{key}", FLOAT32, struct.pack("<f", config[own])) for key, own in _FLOATS.items()]
    return gguf([*(_pair(key, value) for key, value in (metadata | {"general.name": name}).items()), *pairs], raw)


_FLOATS = {"rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps"}


def _pair(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return pair(key, STRING, string(value))
    if isinstance(value, int):
        return pair(key, UINT32, struct.pack("<I", value))
    if isinstance(value[0], str):
        return array(key, STRING, b"".join(map(string, value)), len(value))
    return array(key, INT32, struct.pack(f"<{len(value)}i", *value), len(value))
