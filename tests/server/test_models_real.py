"""Two real models behind one service, and tiny ones that die: real workers, real memory, the unmodified `openai` client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from qwenbox.engine.client import WorkerEngine
from qwenbox.hub.manifest import FileDigest, Manifest, write_manifest
from qwenbox.server.serve import Service
from qwenbox.server.stock import Held, Stock
from qwenbox.settings import Settings
from tests.chat.small import small_document

SMALL, LARGE = "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"
ASK: Any = [{"role": "user", "content": "Write a Python function `add(a, b)` that returns the sum. Answer with code only."}]
GOLDEN = Path(__file__).parents[1] / "golden" / "qwen3"


class TightStock(Stock):
    """Counts memory as a machine would that has room for so much: every promise is kept from the start on."""

    room: int | None = None

    def free(self) -> int:
        return super().free() if self.room is None else self.room

    def held(self, llm: Any) -> Held:
        held = super().held(llm)
        return held if self.room is None else Held(held.promised, 0)


class Real:
    def __init__(self, settings: Settings) -> None:
        self.stock = TightStock(settings)
        self.default = self.stock.open(self.stock.default)
        self.service = Service(self.default, settings, self.stock)

    def __enter__(self) -> Real:
        self.service.start()
        self.default.wait_ready(120)
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop()
        self.default.close()

    def worker(self, name: str) -> psutil.Process | None:
        place = self.service.shelf.known(name)
        engine = place and place.llm and place.llm.engine
        return psutil.Process(engine.pid) if isinstance(engine, WorkerEngine) and engine.pid is not None else None

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.service.url}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture
def real(real_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Real]:
    cache = real_model(LARGE).parents[2]
    real_model(SMALL)
    settings = Settings(model=SMALL, port=0, state_dir=tmp_path, cache_dir=cache, offline=True, kv_gb=0.1, context_length=1024)
    with Real(settings) as running:
        yield running


async def answer(client: openai.AsyncOpenAI, model: str, seed: int) -> Any:
    made = await client.chat.completions.create(model=model, messages=ASK, max_tokens=8, seed=seed, temperature=1.2, logprobs=True, top_logprobs=2)
    assert made.model == model
    return made.choices[0].logprobs


@pytest.mark.weights
def test_answers_are_the_same_bits_while_models_come_go_and_run_beside_each_other(real):
    async def ask_all() -> None:
        async with real.client() as client:
            alone = {(name, seed): await answer(client, name, seed) for name in (SMALL, LARGE) for seed in (1, 2)}
            assert alone[SMALL, 1] != alone[LARGE, 1]
            workers = [real.worker(name) for name in (SMALL, LARGE)]
            assert None not in workers, "both fit"
            together = await asyncio.gather(*(answer(client, name, seed) for name, seed in alone))
            assert together == list(alone.values())
            # From now on there is room for one of them.
            real.stock.room = real.stock.need(LARGE).total + real.stock.held(real.service.shelf.known(SMALL).llm).promised // 2
            await client.post(f"/models/{LARGE}/unload", cast_to=object)
            assert not workers[1].is_running(), "its memory is the system's again"
            for name in (LARGE, SMALL):
                assert await answer(client, name, 2) == alone[name, 2]
                other = SMALL if name == LARGE else LARGE
                assert real.worker(other) is None
            assert not workers[0].is_running()
            turns = await asyncio.gather(*(answer(client, name, 1) for name in (SMALL, LARGE)))
            assert turns == [alone[SMALL, 1], alone[LARGE, 1]]

    asyncio.run(ask_all())


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Real]:
    """A tiny model by its path, and the same weights in the cache under a name of the catalogue."""
    names = ("config.json", "model.safetensors")
    files = {name: (GOLDEN / name).read_bytes() for name in names} | {"tokenizer.json": json.dumps(small_document()).encode()}
    cached = tmp_path / "models" / "qwen3-0.6b"
    for folder in (tmp_path / "tiny", cached):
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    write_manifest(cached, Manifest("qwen3-0.6b", "a hub", "1", {name: FileDigest(len(content), "unread") for name, content in files.items()}))
    with Real(Settings(model=str(tmp_path / "tiny"), port=0, state_dir=tmp_path, cache_dir=tmp_path, offline=True, threads=1)) as running:
        yield running


def test_a_worker_that_is_killed_while_it_loads_is_started_again_and_who_waits_gets_an_answer(tiny):
    async def kill() -> Any:
        async with tiny.client() as client:
            asked = [asyncio.create_task(client.completions.create(model="qwen3-0.6b", prompt="abc", max_tokens=4, temperature=0)) for _ in range(4)]
            while (worker := tiny.worker("qwen3-0.6b")) is None:
                await asyncio.sleep(0.001)
            os.kill(worker.pid, signal.SIGKILL)
            assert tiny.service.shelf.known("qwen3-0.6b").loading
            answers = await asyncio.gather(*asked)
            own = await client.completions.create(model="tiny", prompt="abc", max_tokens=4, temperature=0)
            return [one.choices[0].text for one in (*answers, own)]

    assert len(set(asyncio.run(kill()))) == 1
    assert tiny.service.shelf.known("qwen3-0.6b").llm.engine.stats().restarts == 1


def test_a_model_that_is_not_loaded_counts_tokens_as_one_that_is(tiny):
    def count(model: str) -> Any:
        response = httpx2.post(f"{tiny.service.url}/tokenize", json={"model": model, "prompt": "abc"}, timeout=60, trust_env=False)
        assert response.status_code == 200, response.text
        return response.json()["tokens"]

    assert count("qwen3-0.6b") == count("tiny")


def test_a_model_whose_files_are_gone_is_no_model_any_more_but_who_is_loaded_answers(tiny, tmp_path):
    async def ask() -> None:
        async with tiny.client() as client:
            (tmp_path / "models" / "qwen3-0.6b" / "model.safetensors").unlink()
            with pytest.raises(openai.NotFoundError, match="there is tiny"):
                await client.completions.create(model="qwen3-0.6b", prompt="abc")
            assert (await client.completions.create(model="tiny", prompt="abc", max_tokens=2)).usage.completion_tokens == 2

    asyncio.run(ask())
