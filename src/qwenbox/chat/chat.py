"""What makes a model a chat partner: its tokenizer, its template, and how it likes to be sampled."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenbox.chat.pooling import NO_VECTORS, Vectors, vectors_of_directory, vectors_of_metadata
from qwenbox.chat.stream import starts_in_reasoning
from qwenbox.chat.structured import writes_tags
from qwenbox.chat.template import ChatTemplate, encode_chat, template_for
from qwenbox.chat.thinking import NO_THOUGHT, Nature, nature_of
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.errors import ModelFormatError, RequestError, UnsupportedModelError
from qwenbox.types import Message, SamplingParams

MAX_CONFIG_BYTES = 4 * 1024 * 1024

FAMILY_OF_ARCHITECTURE: Mapping[str, str] = {
    "qwen2": "qwen2.5",
    "qwen2moe": "qwen2.5",
    "qwen2_moe": "qwen2.5",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3",
    "qwen3_moe": "qwen3",
}
"""`general.architecture` of GGUF and `model_type` of config.json -> family of `templates/`."""

FAMILY_DEFAULTS: Mapping[str, SamplingParams] = {
    # The published numbers of Qwen2.5-Coder-32B-Instruct. Small sizes are said to have a repetition penalty of 1.1: the milder one for all.
    "qwen2.5": SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05),
    "qwen3": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    "qwen3-thinking-2507": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
}
"""For models that bring no numbers of their own. The presence penalty is 0 unless a request asks for one."""

NOT_THINKING: Mapping[str, SamplingParams] = {"qwen3": SamplingParams(temperature=0.7, top_k=20, top_p=0.8)}
"""For answers without a thought of families whose own numbers are those for thinking (Qwen3 model cards, best practices)."""

# generation_config.json and GGUF name the same numbers differently.
GENERATION_FIELDS: Mapping[str, tuple[str, str]] = {
    "temperature": ("temperature", "general.sampling.temp"),
    "top_k": ("top_k", "general.sampling.top_k"),
    "top_p": ("top_p", "general.sampling.top_p"),
    "min_p": ("min_p", "general.sampling.min_p"),
    "repetition_penalty": ("repetition_penalty", "general.sampling.penalty_repeat"),
}


@dataclass(frozen=True)
class ChatFormat:
    """How to talk with one model. `defaults` are its generation defaults; `eos_ids` end an answer."""

    family: str
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams
    eos_ids: tuple[int, ...]
    nature: Nature
    vectors: Vectors = NO_VECTORS

    def encode(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, /, **options: Any) -> list[int]:
        """Prompt ids of a conversation: see `encode_chat`."""
        return encode_chat(self.tokenizer, self.template, messages, tools, **options)

    def encode_for(self, thinks: bool, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, /, **options: Any) -> list[int]:
        """`encode` for an answer with or without a thought: tells a hybrid model which, and ends at once the thought of one that always thinks."""
        switch = {"enable_thinking": thinks} if self.nature == "hybrid" else {}
        ids = self.encode(messages, tools, **{**options, **switch})
        if not thinks and self.nature == "always" and self.starts_in_reasoning(ids):
            ids += self.tokenizer.encode(NO_THOUGHT)
        return ids

    def starts_in_reasoning(self, prompt_ids: Sequence[int]) -> bool:
        """`EventStream(start_reasoning=...)` for an answer to this prompt."""
        return starts_in_reasoning(self.tokenizer, prompt_ids)

    def defaults_for(self, thinks: bool) -> SamplingParams:
        """The generation defaults of an answer with or without a thought."""
        if self.nature == "hybrid" and not thinks and self.defaults == FAMILY_DEFAULTS[self.family]:
            return NOT_THINKING.get(self.family, self.defaults)
        return self.defaults

    @property
    def calls_in_tags(self) -> bool:
        """The model writes tool calls in the tags of Qwen3-Coder, not as JSON."""
        return writes_tags(self.template.source)

    @property
    def calls_in_fences(self) -> bool:
        """The model may write a call as a block of JSON: Qwen2.5-Coder does, whatever its template asks for."""
        return self.family == "qwen2.5"

    def close(self) -> None:
        self.template.close()


def load_chat(*, directory: Path | None = None, metadata: Mapping[str, Any] | None = None) -> ChatFormat:
    """The chat format of a model directory (Hugging Face layout) or of a GGUF file's metadata; exactly one of the two.

    UnsupportedModelError for a family or tokenizer that is not Qwen's, ModelFormatError for damaged files and templates.
    """
    if (directory is None) == (metadata is None):
        raise TypeError("load_chat takes either directory or metadata")
    return _from_metadata(metadata) if metadata is not None else _from_directory(Path(str(directory)))


def _from_metadata(metadata: Mapping[str, Any]) -> ChatFormat:
    name = " ".join(str(metadata.get(f"general.{key}", "")) for key in ("name", "basename", "finetune"))
    family = _family(metadata.get("general.architecture"), name)
    tokenizer = Tokenizer.from_gguf(metadata)
    shipped = metadata.get("tokenizer.chat_template")
    given = {field: metadata[key] for field, (_, key) in GENERATION_FIELDS.items() if key in metadata}
    return _format(family, tokenizer, shipped, given, metadata.get("tokenizer.ggml.eos_token_id"), vectors_of_metadata(metadata, tokenizer))


def _from_directory(directory: Path) -> ChatFormat:
    config = _json(directory / "config.json")
    family = _family(config.get("model_type"), f"{config.get('_name_or_path', '')} {directory.resolve().name}")
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelFormatError(f"{directory.name}: no tokenizer.json")
    generation = _json(directory / "generation_config.json")
    given = {field: generation[key] for field, (key, _) in GENERATION_FIELDS.items() if generation.get(key) is not None}
    if generation.get("do_sample") is False:
        given["temperature"] = 0.0
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    tokenizer = Tokenizer.from_file(path)
    return _format(family, tokenizer, _shipped_template(directory), given, eos, vectors_of_directory(directory, tokenizer, _json_value))


def _format(family: str, tokenizer: Tokenizer, shipped: Any, given: Mapping[str, Any], eos: Any, vectors: Vectors) -> ChatFormat:
    if shipped is not None and not isinstance(shipped, str):
        raise ModelFormatError("the chat template is not a text")
    template = template_for(family, shipped)
    with contextlib.suppress(RequestError):  # it has to compile; which conversations it wants is its own business
        template.render([Message("user", "Hi")])
    defaults = FAMILY_DEFAULTS[family] if not given else _sampling(given)
    own = eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos]
    if any(type(id) is not int or not 0 <= id < tokenizer.vocab_limit for id in own):
        raise ModelFormatError(f"eos_token_id {eos!r}: not ids of this tokenizer")
    eos_ids = tuple(dict.fromkeys((*own, *tokenizer.eos_ids)))
    return ChatFormat(family, tokenizer, template, defaults, eos_ids, nature_of(tokenizer, template), vectors)


def _family(architecture: Any, name: str) -> str:
    family = FAMILY_OF_ARCHITECTURE.get(str(architecture))
    if family is None:
        raise UnsupportedModelError(f"architecture {architecture!r}: chat knows {', '.join(FAMILY_OF_ARCHITECTURE)}")
    words = name.lower()
    return "qwen3-thinking-2507" if family == "qwen3" and "thinking" in words and "2507" in words else family


def _shipped_template(directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _text(path)
    template = _json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((entry.get("template") for entry in template if isinstance(entry, dict) and entry.get("name") == "default"), None)
    if template is None:
        template = _json(directory / "chat_template.json").get("chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelFormatError(f"{directory.name}: chat_template is not a text")
    return template


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    limits = {"temperature": (0.0, 100.0), "top_k": (0, 1 << 20), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repetition_penalty": (1e-3, 100.0)}
    values: dict[str, Any] = {}
    for field, value in given.items():
        low, high = limits[field]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
            raise ModelFormatError(f"generation defaults: {field} is {value!r}, must be a number from {low} to {high}")
        values[field] = int(value) if field == "top_k" else float(value)
    return SamplingParams(**values)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is no file."""
    value = _json_value(path)
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path.name}: not a JSON object")
    return value


def _json_value(path: Path) -> Any:
    """The JSON of a file, an empty object where there is no file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path.name}: not JSON ({error})") from error


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ModelFormatError(f"{path.name}: {size} bytes, at most {MAX_CONFIG_BYTES} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path.name}: not UTF-8") from error
