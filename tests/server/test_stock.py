"""How the models of a service are opened with one set of settings."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event

import pytest

from qwenbox.errors import UsageError
from qwenbox.model.load import context_window, memory_need, stored_costs
from qwenbox.server.stock import Stock
from qwenbox.settings import Settings
from tests.engine.fakes import eventually

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_context_length_beyond_another_models_window_becomes_its_window(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    window = context_window(GOLDEN / "qwen3")
    stock = Stock(Settings(model=str(GOLDEN / "qwen2_tied"), context_length=window + 1))
    monkeypatch.setattr(Stock, "_known_path", lambda self, name: GOLDEN / ("qwen3" if name == "other" else "qwen2_tied"))
    with caplog.at_level(logging.WARNING):
        assert stock.need("other") == memory_need(GOLDEN / "qwen3", context_length=window)
    assert "context_length" in caplog.text
    with pytest.raises(UsageError, match="context_length"):
        Stock(Settings(model=str(GOLDEN / "qwen2_tied"), context_length=1 << 30)).need("qwen2_tied")


def test_what_a_stored_model_takes_and_reads_is_looked_up_beside_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = GOLDEN / "qwen3"
    stock = Stock(Settings(model=str(path), cache_dir=tmp_path))
    asked, known_path = Event(), stock._known_path
    monkeypatch.setattr(stock, "_known_path", lambda name: known_path(name) if asked.wait(60) else None)
    assert stock.outline("qwen3") is None
    asked.set()
    eventually(lambda: stock.outline("qwen3"))
    assert stock.outline("qwen3") == (memory_need(path).total, stored_costs(path).touched_bytes, context_window(path))
    assert stock.outline("nobody") is None
