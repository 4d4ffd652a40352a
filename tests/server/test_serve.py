"""`serve`: from settings to a running service and back to an exit code."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from qwenbox.engine.client import EngineOptions, EngineState
from qwenbox.errors import EngineError
from qwenbox.server import serve as module
from qwenbox.server import stock
from qwenbox.server.middleware import LogLines
from qwenbox.server.serve import Service, serve, set_up_logging
from qwenbox.settings import Settings
from tests.fakes import FakeEngine, byte_chat, byte_tokens


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """`serve` with an engine without a model, and the loggers as they were afterwards."""
    engine = FakeEngine(state_now=EngineState("loading"))
    monkeypatch.setattr(stock, "local", lambda model: Path("tiny.gguf"))
    monkeypatch.setattr(stock, "open_chat", lambda path: byte_chat())
    monkeypatch.setattr(stock, "WorkerEngine", lambda find: find(lambda *_: None) and engine)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(module, "FAILED_SECONDS", 0.01)
    loggers = [logging.getLogger(name) for name in ("qwenbox", "uvicorn")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield engine
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_the_port_is_open_before_the_model_is_loaded_and_a_stop_is_no_failure(engine, capsys):
    seen = []

    def started(service: Service) -> None:
        seen.append(service.url)
        assert service.key.text is None
        engine.state_now = EngineState("ready", 1.0)
        service.stop()

    assert serve(Settings(port=0, model="tiny"), started=started) == 0
    assert seen[0].startswith("http://127.0.0.1:")


def test_a_model_that_cannot_be_loaded_ends_the_service_with_its_error(engine):
    def started(service: Service) -> None:
        engine.state_now = EngineState("failed", error=EngineError("the file is damaged"))

    with pytest.raises(EngineError, match="the file is damaged"):
        serve(Settings(port=0, model="tiny"), started=started)


def test_every_setting_of_the_engine_reaches_it():
    settings = Settings(weights="int8", threads=3, isa="avx2", context_length=99, kv_gb=0.5, max_sequences=7, max_batch_tokens=64, max_queue=11)
    options = EngineOptions.from_settings(settings, model="model.gguf", tokens=byte_tokens(1000))
    assert (options.model, options.weights, options.threads, options.isa) == ("model.gguf", "int8", 3, "avx2")
    assert (options.context_length, options.kv_gb, options.max_sequences, options.max_batch_tokens) == (99, 0.5, 7, 64)
    assert (options.max_waiting, options.tokens) == (11, byte_tokens(1000))


def test_requests_are_logged_on_stderr_in_lines_that_nobody_can_break(engine, capsys):
    def ask(service: Service) -> None:
        with httpx2.Client(base_url=service.url, trust_env=False) as http:
            http.get("/v1/nothing%0Aevil=1", headers={"x-request-id": "one"})
            http.get("/health")
        service.stop()

    def started(service: Service) -> None:
        engine.state_now = EngineState("ready", 1.0)
        threading.Thread(target=ask, args=(service,)).start()

    serve(Settings(port=0, model="tiny", log_level="info"), started=started)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert any(" info request request_id=one method=GET route=other status=404 " in line for line in lines)
    assert not any("/health" in line for line in lines)
    assert not any(line.startswith("evil") for line in lines)


def test_a_log_line_quotes_what_could_be_misread():
    record = logging.LogRecord("qwenbox", logging.INFO, "", 0, "a\nb", None, None)
    record.fields = {"plain": "x/y", "odd": 'a "b"\nc'}
    assert LogLines().format(record).endswith(' info a\\nb plain=x/y odd="a \\"b\\"\\nc"')


def test_logging_is_set_up_for_our_loggers_alone(engine):
    before = logging.getLogger().handlers[:]
    set_up_logging("debug")
    assert logging.getLogger().handlers == before
    assert logging.getLogger("qwenbox").level == logging.DEBUG
