"""A tokenizer small enough to read, with all control tokens of Qwen3, in the two forms that files have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qwenbox.chat.tokenizer import BYTE_OF, SPLIT
from qwenbox.types import Message

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
PLAIN = [
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    *("<tool_response>", "</tool_response>", "<think>", "</think>"),
]
CONTROL_TOKENS = [*SPECIAL, *PLAIN]


def small_metadata() -> dict[str, Any]:
    """Metadata of a GGUF file: id = byte for the first 256, ten merged tokens, the control tokens from id 266 on, two padding ids."""
    char_of = {byte: char for char, byte in BYTE_OF.items()}
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ċ Ċ", "i n", "Ġ t", "ä ½", "Ġt h"]
    tokens = [char_of[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    return {
        "general.architecture": "qwen3",
        "general.name": "Small",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*tokens, *CONTROL_TOKENS, "[PAD292]", "[PAD293]"],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(SPECIAL) + [4] * len(PLAIN) + [5, 5],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 268,
    }


def small_document() -> dict[str, Any]:
    """The `tokenizer.json` of the same tokenizer."""
    metadata = small_metadata()
    entries = list(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": text, "special": kind == 3, **flags} for id, (text, kind) in enumerate(entries) if kind in (3, 4)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: id for id, (text, kind) in enumerate(entries) if kind == 1},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def messages_of(entries: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages of a fixture file; a null content is an empty one."""
    return [
        Message(
            entry["role"],
            entry.get("content") or "",
            reasoning_content=entry.get("reasoning_content"),
            tool_calls=tuple(entry.get("tool_calls") or ()),
            tool_call_id=entry.get("tool_call_id"),
        )
        for entry in entries
    ]
