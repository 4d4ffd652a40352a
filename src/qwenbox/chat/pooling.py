"""How a model makes one vector of a text: what its files say, or the mean of its tokens where they say nothing.

A directory says it as sentence-transformers does: `modules.json` lists what stands behind the network, and the folder of the pooling module
has a `config.json`. A GGUF file says it by `pooling_type`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenbox.chat.tokenizer import END_OF_TEXT, Tokenizer
from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.types import Pooling

_MODES: Mapping[str, Pooling] = {"mean": "mean", "lasttoken": "last"}
_GGUF: Mapping[int, Pooling] = {1: "mean", 3: "last"}
"""By llama.cpp's numbers."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Which hidden states make a vector, and the ids that are put behind a text before."""

    pooling: Pooling = "mean"
    end_ids: tuple[int, ...] = ()
    stated: bool = False
    """Its files say so: the model was made for vectors, not for answers."""


NO_VECTORS = Vectors()
"""Of a model whose files say nothing of vectors."""


def vectors_of_directory(directory: Path, tokenizer: Tokenizer, read: Callable[[Path], Any]) -> Vectors:
    """`read` gives the JSON of a file, or nothing where there is none. UnsupportedModelError for another way, ModelFormatError for damaged files."""
    modules = read(directory / "modules.json")
    if not modules:
        return NO_VECTORS
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelFormatError("modules.json: not a list of modules")
    found: list[Pooling] = []
    for module in modules:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling":
            name = module.get("path")
            if not isinstance(name, str) or Path(name).name != name or name in ("", "..", "."):
                raise ModelFormatError("modules.json: the path of Pooling is not the name of a folder")
            found.append(_pooling(read(directory / name / "config.json")))
        elif kind not in ("Transformer", "Normalize"):
            raise UnsupportedModelError(f"modules.json: a module {kind[:64]!r} is not supported; there are Transformer, Pooling and Normalize")
    if len(found) != 1:
        raise ModelFormatError(f"modules.json: {len(found)} modules of pooling instead of one")
    return _stated(found[0], tokenizer)


def vectors_of_metadata(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> Vectors:
    """Of a GGUF file. UnsupportedModelError for a pooling that is neither the mean nor the last token's."""
    kind = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    if kind == 0:
        return NO_VECTORS
    if kind not in _GGUF:
        raise UnsupportedModelError(f"pooling_type {kind!r}: there is 1, the mean, and 3, the last token")
    return _stated(_GGUF[kind], tokenizer)


def documents_of_metadata(metadata: Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    """What a directory has to say what a GGUF file says, by name; nothing where that says nothing."""
    pooling = _GGUF.get(metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0))
    if pooling is None:
        return {}
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    kinds = {path: f"sentence_transformers.models.{kind}" for path, kind in modules.items()}
    listed = [{"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(kinds.items())]
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_lasttoken": pooling == "last"}
    return {"modules.json": listed, "1_Pooling/config.json": {"word_embedding_dimension": hidden_size, **modes}}


def _stated(pooling: Pooling, tokenizer: Tokenizer) -> Vectors:
    # Qwen3-Embedding reads a text off its end: https://huggingface.co/Qwen/Qwen3-Embedding-0.6B, its tokenizer's template.
    end = tokenizer.id_of(END_OF_TEXT) if pooling == "last" else None
    return Vectors(pooling, () if end is None else (end,), stated=True)


def _pooling(config: Any) -> Pooling:
    if not isinstance(config, dict):
        raise ModelFormatError("the configuration of the pooling is not a JSON object")
    flags = [
        name.removeprefix("pooling_mode_").removesuffix("_tokens") for name, on in config.items() if name.startswith("pooling_mode_") and on is True
    ]
    asked = [str(config["pooling_mode"])] if "pooling_mode" in config else flags
    if len(asked) != 1 or asked[0] not in _MODES:
        raise UnsupportedModelError(f"pooling by {' and '.join(asked)[:200] or 'nothing'}: there is the mean and the last token")
    return _MODES[asked[0]]
