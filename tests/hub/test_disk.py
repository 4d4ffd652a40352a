"""Models of other programs: stores made by hand, whole and damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from qwenbox import hub
from qwenbox.errors import NotFoundError
from qwenbox.hub.disk import Found, look
from qwenbox.settings import Settings
from tests.weights.gguf_bytes import small


def places(folder: Path) -> Settings:
    return Settings(
        cache_dir=folder / "own",
        ollama_dir=folder / "ollama",
        huggingface_dir=folder / "hf",
        modelscope_dir=folder / "modelscope",
        lmstudio_dir=folder / "lmstudio",
        models_dir=folder / "mine",
    )


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def put_into_ollama(store: Path, name: str, content: bytes) -> Path:
    """As `ollama pull` leaves it; `name` is HOST/OWNER/MODEL/TAG. Gives the manifest."""
    digest = hashlib.sha256(content).hexdigest()
    write(store / "blobs" / f"sha256-{digest}", content)
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(content)},
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 1},
    ]
    manifest: dict[str, Any] = {"schemaVersion": 2, "config": {}, "layers": layers}
    return write(store / "manifests" / name, json.dumps(manifest))


def found(folder: Path) -> dict[str, Found]:
    return {model.name: model for model in look(places(folder))}


def test_models_have_the_names_that_their_programs_show(tmp_path: Path) -> None:
    for name in ("registry.ollama.ai/library/qwen3/8b", "registry.ollama.ai/someone/own/latest", "hub.example/Qwen/Qwen3-4B-GGUF/Q4_K_M"):
        put_into_ollama(tmp_path / "ollama", name, small())
    revision = "a" * 40
    for repository in ("models--Qwen--Qwen3-0.6B", "datasets--Qwen--words"):
        write(tmp_path / "hf" / repository / "refs" / "main", revision)
        write(tmp_path / "hf" / repository / "snapshots" / revision / "config.json", "{}")
        write(tmp_path / "hf" / repository / "snapshots" / revision / "model.safetensors", b"x")
    write(tmp_path / "modelscope" / "hub" / "models" / "Qwen" / "Qwen3-1___7B" / "config.json", "{}")
    write(tmp_path / "modelscope" / "hub" / "models" / "Qwen" / "Qwen3-1___7B" / "model.safetensors", b"x")
    write(tmp_path / "lmstudio" / "someone" / "Qwen3-8B-GGUF" / "Qwen3-8B-Q4_K_M.gguf", small())
    write(tmp_path / "lmstudio" / "someone" / "Qwen3-8B-GGUF" / "mmproj-F16.gguf", small())
    write(tmp_path / "mine" / "own-name.gguf", small())
    models = found(tmp_path)
    assert {name: model.origin for name, model in models.items()} == {
        "qwen3:8b": "Ollama",
        "someone/own:latest": "Ollama",
        "hub.example/Qwen/Qwen3-4B-GGUF:Q4_K_M": "Ollama",
        "Qwen/Qwen3-0.6B": "Hugging Face",
        "Qwen/Qwen3-1.7B": "ModelScope",
        "Qwen3-8B-Q4_K_M": "LM Studio",
        "own-name": "folder",
    }
    assert not any(model.problem for model in models.values())
    assert models["qwen3:8b"].path.read_bytes() == small()
    assert models["Qwen/Qwen3-0.6B"].path.name == revision


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b'{"layers": []}', "0 layers"),
        (b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../etc/passwd", "size": 1}]}', "digest is none"),
        (b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:' + b"0" * 64 + b'", "size": 1}]}', "cannot be read"),
        (b" " * (2 << 20), "more than"),
    ],
)
def test_a_damaged_manifest_is_listed_with_the_reason(tmp_path: Path, text: bytes, reason: str) -> None:
    write(tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "8b", text)
    model = found(tmp_path)["qwen3:8b"]
    assert reason in (model.problem or "")


def test_a_blob_that_is_not_all_there_is_listed_with_the_reason(tmp_path: Path) -> None:
    put_into_ollama(tmp_path / "ollama", "registry.ollama.ai/library/qwen3/8b", small())
    blob = found(tmp_path)["qwen3:8b"].path
    blob.write_bytes(small()[:-1])
    assert "the manifest says" in (found(tmp_path)["qwen3:8b"].problem or "")


def test_a_command_finds_them_by_these_names(tmp_path: Path) -> None:
    put_into_ollama(tmp_path / "ollama", "registry.ollama.ai/library/qwen3/8b", small())
    write(tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "4b", b"{")
    assert hub.resolve("qwen3:8b", places(tmp_path)).read_bytes() == small()
    with pytest.raises(NotFoundError, match="Ollama is not whole: its manifest is damaged"):
        hub.resolve("qwen3:4b", places(tmp_path))


def test_a_whole_model_is_preferred_to_a_damaged_one_of_its_name(tmp_path: Path) -> None:
    write(tmp_path / "modelscope" / "hub" / "models" / "Qwen" / "Qwen3-0.6B" / "config.json", "{}")
    assert found(tmp_path)["Qwen/Qwen3-0.6B"].problem
    write(tmp_path / "modelscope" / "models" / "Qwen" / "Qwen3-0.6B" / "config.json", "{}")
    write(tmp_path / "modelscope" / "models" / "Qwen" / "Qwen3-0.6B" / "model.safetensors", b"x")
    assert found(tmp_path)["Qwen/Qwen3-0.6B"].problem is None


def test_places_that_are_not_there_or_are_files_hold_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) == {}
    for name in ("ollama", "hf", "modelscope", "lmstudio", "mine"):
        write(tmp_path / name, b"")
    assert found(tmp_path) == {}
