"""A service on a real socket over the fake engine, and the unmodified `openai` client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.fakes import FakeEngine, byte_chat

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings


@dataclass
class Running:
    service: Service
    engine: FakeEngine
    llm: LocalLLM

    @property
    def url(self) -> str:
        return self.service.url

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 20} | options)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a service: `start(engine, **settings)`."""
    running: list[Running] = []

    def start(engine: FakeEngine | None = None, **settings: Any) -> Running:
        engine = engine or FakeEngine()
        chosen = Settings(**{"port": 0, "state_dir": tmp_path, "request_timeout": 60.0} | settings)
        llm = LocalLLM(engine, byte_chat(), "tiny", request_timeout=chosen.request_timeout)
        service = Service(llm, chosen)
        service.start()
        running.append(Running(service, engine, llm))
        return running[-1]

    yield start
    for one in running:
        one.service.stop()
        one.llm.close()


@pytest.fixture
def served(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    with served.client() as client:
        yield client
