"""A service on a real socket over the fake engine, and the unmodified `openai` client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from tests.fakes import FakeEngine, byte_chat


@dataclass
class Running:
    service: Service
    engine: FakeEngine
    llm: LocalLLM

    @property
    def url(self) -> str:
        return self.service.url

    def close(self) -> None:
        self.service.stop()
        self.llm.close()

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 120} | options)


@pytest.fixture(scope="module")
def start_one(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Running]:
    def start_one(engine: FakeEngine | None = None, *, family: str = "qwen3", **settings: Any) -> Running:
        engine = engine or FakeEngine()
        chosen = Settings(
            **{"port": 0, **dict.fromkeys(("state_dir", "cache_dir"), tmp_path_factory.mktemp("state")), "request_timeout": 60.0} | settings
        )
        llm = LocalLLM(engine, byte_chat(family), "tiny", request_timeout=chosen.request_timeout)
        service = Service(llm, chosen)
        service.start()
        return Running(service, engine, llm)

    return start_one


@pytest.fixture
def start(start_one: Callable[..., Running]) -> Iterator[Callable[..., Running]]:
    """Starts a service for one test: `start(engine, **settings)`."""
    running: list[Running] = []

    def start(engine: FakeEngine | None = None, **settings: Any) -> Running:
        running.append(start_one(engine, **settings))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def served(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture(scope="module")
def shared(start_one: Callable[..., Running]) -> Iterator[Running]:
    """One service for all tests of a file."""
    running = start_one()
    yield running
    running.close()


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    with served.client() as client:
        yield client
