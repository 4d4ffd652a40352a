"""Models that other programs have put on this disk: Ollama, LM Studio, and the caches of Hugging Face and ModelScope. Nothing is copied or changed.

Only what each program's layout says is looked at here; whether we can run a model is for who reads its header. A model that is not whole is
listed with the reason.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import Settings

_MAX_MANIFEST_BYTES, _MAX_ENTRIES = 1 << 20, 2000
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_OLLAMA_HOST, _OLLAMA_OWNER = "registry.ollama.ai", "library"
_OLLAMA_SYSTEM = (Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models"))
"""Where its Linux service keeps them."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model under the name that its program has for it. `path`: a directory or a GGUF file, whatever its suffix; `problem`: why it is not whole."""

    name: str
    origin: str
    path: Path
    problem: str | None = None


def look(settings: Settings) -> list[Found]:
    """Every model in the places of the settings, one of a name: the first. Reads no weights and takes milliseconds."""
    found: dict[str, Found] = {}
    for model in _everywhere(settings):
        if model.name not in found or (found[model.name].problem and not model.problem):
            found[model.name] = model
    return list(found.values())


def _everywhere(settings: Settings) -> Iterator[Found]:
    for folder in (settings.ollama_dir,) if settings.ollama_dir else (Path.home() / ".ollama" / "models", *_OLLAMA_SYSTEM):
        yield from ollama(folder)
    yield from hugging_face(settings.huggingface_dir)
    for folder in (settings.modelscope_dir / "hub" / "models", settings.modelscope_dir / "models", settings.modelscope_dir / "hub"):
        yield from two_levels(folder, "ModelScope")
    for folder in (settings.lmstudio_dir,) if settings.lmstudio_dir else (Path.home() / ".lmstudio/models", Path.home() / ".cache/lm-studio/models"):
        yield from two_levels(folder, "LM Studio")
    if settings.models_dir is not None:
        yield from two_levels(settings.models_dir, "folder")
        for owner in _listed(settings.models_dir):
            yield from _checkpoint(owner, owner.name, "folder")
        yield from _files(settings.models_dir, "folder")


# --- Ollama: manifests/HOST/OWNER/MODEL/TAG is JSON that names blobs/sha256-DIGEST ------------------------------------


def ollama(store: Path) -> Iterator[Found]:
    for host in _listed(store / "manifests"):
        for owner in _listed(host):
            for model in _listed(owner):
                for tag in _listed(model):
                    yield _ollama_model(store, tag, _ollama_name(host.name, owner.name, model.name, tag.name))


def _ollama_name(host: str, owner: str, model: str, tag: str) -> str:
    """As `ollama list` shows it."""
    if host != _OLLAMA_HOST:
        return f"{host}/{owner}/{model}:{tag}"
    return f"{model}:{tag}" if owner == _OLLAMA_OWNER else f"{owner}/{model}:{tag}"


def _ollama_model(store: Path, manifest: Path, name: str) -> Found:
    try:
        with manifest.open("rb") as file:
            text = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(text) > _MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {_MAX_MANIFEST_BYTES} bytes")
        layers: list[dict[str, Any]] = [layer for layer in json.loads(text)["layers"] if layer["mediaType"] == _MODEL_LAYER]
        if len(layers) != 1:
            raise ValueError(f"{len(layers)} layers with a model")
        digest = _DIGEST.fullmatch(layers[0]["digest"])
        if digest is None:
            raise ValueError("the model's digest is none")
        size = layers[0]["size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Found(name, "Ollama", manifest, f"its manifest is damaged: {str(error)[:200] or type(error).__name__}")
    blob = store / "blobs" / f"sha256-{digest[1]}"
    try:
        there = blob.stat().st_size
    except OSError as error:
        return Found(name, "Ollama", blob, f"its blob cannot be read: {error.strerror}")
    if there != size:
        return Found(name, "Ollama", blob, f"its blob has {there} bytes, the manifest says {str(size)[:20]}")
    return Found(name, "Ollama", blob)


# --- Hugging Face: models--OWNER--NAME/snapshots/REVISION, refs/main names the revision --------------------------------


def hugging_face(cache: Path) -> Iterator[Found]:
    for repository in _listed(cache):
        parts = repository.name.split("--")
        if parts[0] != "models" or len(parts) < 2:
            continue
        snapshot = _snapshot(repository)
        if snapshot is not None:
            yield from _checkpoint(snapshot, "/".join(parts[1:]), "Hugging Face")
            yield from _files(snapshot, "Hugging Face")


def _snapshot(repository: Path) -> Path | None:
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
        if re.fullmatch(r"[0-9a-f]{40}", revision) and (repository / "snapshots" / revision).is_dir():
            return repository / "snapshots" / revision
    except (OSError, ValueError):
        pass
    return next(iter(_listed(repository / "snapshots")), None)


# --- folders: OWNER/NAME/, a checkpoint or GGUF files ------------------------------------------------------------------


def two_levels(folder: Path, origin: str) -> Iterator[Found]:
    for owner in _listed(folder):
        for model in _listed(owner):
            yield from _checkpoint(model, f"{owner.name}/{model.name.replace('___', '.')}", origin)  # ModelScope's way to write a dot
            yield from _files(model, origin)


def _checkpoint(folder: Path, name: str, origin: str) -> Iterator[Found]:
    try:
        if not (folder / "config.json").is_file():
            return
        weights = any(path.suffix == ".safetensors" for path in _listed(folder))
    except OSError:
        return
    yield Found(name, origin, folder, None if weights else "its weights are not there")


def _files(folder: Path, origin: str) -> Iterator[Found]:
    for path in _listed(folder):
        if path.suffix == ".gguf" and not path.name.startswith("mmproj"):  # the eyes of a model that sees
            yield Found(path.name.removesuffix(".gguf"), origin, path, None if path.is_file() else "its file is not there")


def _listed(folder: Path) -> Sequence[Path]:
    """What is in a folder, hidden things left out; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry, _ in zip(entries, range(_MAX_ENTRIES), strict=False) if not entry.name.startswith("."))
    except OSError:
        return ()
