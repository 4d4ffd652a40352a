"""The worker as it is in production: its own launch line, the real loader, a tiny random checkpoint on disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from qwenbox.engine.client import EngineClient, EngineOptions, InProcessEngine, WorkerEngine
from qwenbox.types import GenerationPlan, SamplingParams
from tests.checkpoint import write_checkpoint
from tests.engine.fakes import Answer, Receiver, eventually
from tests.fakes import byte_tokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def options(checkpoint: Path, **others: int) -> EngineOptions:
    return EngineOptions(model=str(checkpoint), threads=1, num_pages=32, tokens=byte_tokens(150), **others)


def ask(engine: EngineClient, count: int, max_tokens: int = 40) -> list[Answer]:
    receivers = [Receiver() for _ in range(count)]
    for index, receiver in enumerate(receivers):
        prompt = tuple(np.random.default_rng(index).integers(0, 150, 1 + 9 * index).tolist())
        engine.submit(GenerationPlan(f"r{index}", prompt, max_tokens, SamplingParams(seed=index, logprobs=2)), receiver)
    return [receiver.wait() for receiver in receivers]


def test_worker_and_thread_give_the_same_bits_alone_and_together_also_after_a_crash(checkpoint: Path) -> None:
    local = InProcessEngine(options(checkpoint))
    eventually(lambda: local.state().name != "loading")
    expected = ask(local, 16)
    assert all(answer.reason == "length" for answer in expected)
    assert all(id < 150 for answer in expected for id in answer.ids)
    info = local.info()
    local.close()

    engine = WorkerEngine(options(checkpoint, max_batch_tokens=48, max_sequences=8))
    try:
        eventually(lambda: engine.state().name == "ready")
        assert all(answer.same_as(other) for answer, other in zip(ask(engine, 16), expected, strict=True))
        os.kill(engine.pid, signal.SIGKILL)
        eventually(lambda: engine.stats().restarts == 1)
        assert all(answer.same_as(other) for answer, other in zip(ask(engine, 16), expected, strict=True))
        assert engine.info().isa == info.isa
        assert engine.info().costs == info.costs
    finally:
        engine.close()


def test_what_is_wrong_with_a_checkpoint_reaches_the_front(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text().replace("qwen3", "llama"))
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    for engine in (WorkerEngine(options(tmp_path)), InProcessEngine(options(tmp_path))):
        eventually(lambda engine=engine: engine.state().name == "failed")
        assert "llama" in engine.state().error.message
        assert type(engine.state().error).__name__ == "UnsupportedModelError"
        engine.close()
