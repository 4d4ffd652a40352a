from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenbox.hub.catalogue import Entry, Repository
from qwenbox.settings import Settings
from tests.hub.fake_hub import REPOSITORY, Fake, serving

FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": bytes(range(256)) * 200,
    "tokenizer.json": b"{}",
    "empty.txt": b"",
    "README.md": b"not wanted",
    "modeling_qwen.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "manifest.json": b"not ours",
    ".gitattributes": b"",
    "figures/big.json": b"{}",
}
WANTED = ["config.json", "empty.txt", "manifest.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake(files=dict(FILES))) as fake:
        yield fake


@pytest.fixture
def settings(tmp_path: Path, fake: Fake) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", hub_endpoint=fake.url)


@pytest.fixture
def entry() -> Entry:
    return Entry("tiny", Repository(REPOSITORY), "a repository of the fake hub")
