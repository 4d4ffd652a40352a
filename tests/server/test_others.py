"""Which models of other programs can be served, and the reason where one cannot."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from qwenbox.errors import NotFoundError
from qwenbox.server.others import Others
from qwenbox.server.stock import Stock
from tests.hub.test_disk import places, put_into_ollama, write
from tests.weights.gguf_bytes import STRING, Raw, gguf, pair, small, string

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A checkpoint that we can run, a foreign architecture, a foreign quantisation, and something that is no model."""
    shutil.copytree(GOLDEN / "qwen3", tmp_path / "lmstudio" / "Qwen" / "Tiny")
    llama = gguf([pair("general.architecture", STRING, string("llama"))], [Raw("norm", (3,), 0, struct.pack("<3f", 1, 2, 3))])
    foreign = gguf([pair("general.architecture", STRING, string("qwen3"))], [Raw("x", (256, 1), 10, bytes(84))])
    put_into_ollama(tmp_path / "ollama", "registry.ollama.ai/library/llama3/8b", llama)
    put_into_ollama(tmp_path / "ollama", "registry.ollama.ai/library/qwen3/8b-q2_K", foreign)
    put_into_ollama(tmp_path / "ollama", "registry.ollama.ai/library/notes/latest", b"not a model")
    put_into_ollama(tmp_path / "ollama", "registry.ollama.ai/library/cut/latest", small()[:40])
    return tmp_path


def test_what_cannot_be_run_says_why(disk: Path) -> None:
    others = Others(places(disk))
    problems = {judged.found.name: judged.problem and judged.problem.message for judged in others.judge()}
    assert problems.pop("Qwen/Tiny") is None
    assert "llama" in (problems["llama3:8b"] or "")
    assert "Q2_K" in (problems["qwen3:8b-q2_K"] or "")
    assert "not a GGUF file" in (problems["notes:latest"] or "")
    assert "byte" in (problems["cut:latest"] or "")
    assert list(others.paths()) == ["Qwen/Tiny"]


def test_a_file_is_read_once_and_again_when_it_has_changed(disk: Path) -> None:
    others = Others(places(disk))
    first = {judged.found.name: judged.costs for judged in others.judge()}
    assert {judged.found.name: judged.costs for judged in others.judge()}["Qwen/Tiny"] is first["Qwen/Tiny"]
    write(disk / "lmstudio" / "Qwen" / "Tiny" / "config.json", "{}")
    others.look(places(disk))
    assert {judged.found.name: judged.problem for judged in others.judge()}["Qwen/Tiny"] is not None


def test_a_service_offers_them_under_their_names(disk: Path) -> None:
    stock = Stock(places(disk), undecided=True)
    stock.others.judge()
    assert list(stock.models()) == ["Qwen/Tiny"]
    assert stock.path("Qwen/Tiny") == disk / "lmstudio" / "Qwen" / "Tiny"
    assert stock.need("Qwen/Tiny").weights > 0
    with pytest.raises(NotFoundError):
        stock.need("Qwen/Other")
