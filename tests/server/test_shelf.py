"""Several models behind one service: what is listed, loaded, displaced, kept, refused. Engines are scripted, memory is a number."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from qwenbox.engine.client import EngineState
from qwenbox.errors import ModelFormatError
from qwenbox.server import routes, shelf
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from qwenbox.wire import sse
from tests.fakes import GB, FakeSource

HELLO: Any = [{"role": "user", "content": "Hi"}]


class Running:
    def __init__(self, folder: Path, source: FakeSource, *, cannot_open: bool = False, **settings: Any) -> None:
        self.source = source
        self.llm = source.open(source.default)
        if cannot_open:
            source.default = "another"
        chosen = Settings(**{"port": 0, "state_dir": folder, "cache_dir": folder, "request_timeout": 30.0} | settings)
        self.service = Service(self.llm, chosen, source)
        self.service.start()
        self.http = httpx2.Client(base_url=self.service.url, trust_env=False, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.service.url}/v1", api_key="none", max_retries=0, timeout=60)

    def close(self) -> None:
        self.http.close()
        self.openai.close()
        self.service.stop()

    def say(self, model: str | None, **more: Any) -> str:
        body = {"messages": HELLO, **({} if model is None else {"model": model}), **more}
        response = self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def state(self, name: str) -> dict[str, Any]:
        return self.http.get(f"/v1/models/{name}").json()["qwenbox"]

    def until(self, name: str, condition: Callable[[dict[str, Any]], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition(self.state(name)):
            assert time.monotonic() < deadline, self.state(name)

    def later(self, model: str, **more: Any) -> Later:
        return Later(self, model, more)


class Later(threading.Thread):
    """A request in a thread: the answer, or the error."""

    def __init__(self, running: Running, model: str, more: dict[str, Any]) -> None:
        super().__init__()
        self.running, self.model, self.more = running, model, more
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            if self.more.get("stream"):
                chunks = self.running.openai.chat.completions.create(model=self.model, messages=HELLO, **self.more)
                self.answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                self.answer = self.running.openai.chat.completions.create(model=self.model, messages=HELLO, **self.more).choices[0].message.content
        except openai.APIError as error:
            self.answer = error

    def result(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self.answer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(sizes: Mapping[str, float] | None = None, memory: float = 10.0, **settings: Any) -> Running:
        running.append(Running(tmp_path, FakeSource(sizes or {"a": 1, "b": 1, "c": 1}, memory), **settings))
        return running[-1]

    yield start
    for one in running:
        one.close()
        assert one.source.loaded == []


def test_what_is_installed_is_listed_and_a_request_loads_it(start):
    running = start(alias=("gpt-4o=qwen2.5-coder-0.5b",), sizes={"a": 1, "b": 1, "qwen2.5-coder-0.5b": 1})
    listed = running.openai.models.list().data
    assert [model.id for model in listed] == ["a", "b", "qwen2.5-coder-0.5b"]
    assert [model.qwenbox["state"] for model in listed] == ["ready", "unloaded", "unloaded"]
    assert [model.qwenbox["default"] for model in listed] == [True, False, False]
    assert listed[2].qwenbox["aliases"] == ["gpt-4o"]
    assert listed[1].qwenbox["size_bytes"] == GB
    assert (running.say("b"), running.say(None), running.say("")) == ("I am b.", "I am a.", "I am a.")
    answer = running.openai.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (answer.model, answer.choices[0].message.content) == ("qwen2.5-coder-0.5b", "I am qwen2.5-coder-0.5b.")
    assert running.source.opened == ["a", "b", "qwen2.5-coder-0.5b"]
    assert running.say("b") == "I am b." and len(running.source.opened) == 3
    assert running.state("b")["memory_bytes"] == GB
    assert running.http.post("/tokenize", json={"model": "b", "prompt": "ab"}).json()["tokens"] == [97, 98]
    shown = running.http.get("/metrics").text
    assert 'qwenbox_num_requests_running{model_name="b"} 0.0' in shown
    assert 'qwenbox_request_success_total{finished_reason="stop",model_name="b"} 2.0' in shown


def test_an_unknown_model_is_a_404_that_lists_what_there_is(start):
    running = start(alias=("gpt-4o=a",))
    with pytest.raises(openai.NotFoundError) as caught:
        running.openai.chat.completions.create(model="gpt-5", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "there are a, b, c, gpt-4o" in str(caught.value)
    assert running.http.get("/v1/models/gpt-4o").json()["id"] == "a"


@pytest.mark.parametrize("pair", ["gpt-4o", "=a", "gpt-4o=", "a=b", "qwen3-8b=a", "gpt-4o=gpt-5"])
def test_an_alias_that_cannot_be_is_refused_at_the_start(start, pair):
    with pytest.raises(Exception, match="alias: "):
        start(alias=(pair,))


def test_the_idle_model_that_was_used_longest_ago_makes_room(start):
    running = start(memory=2.5)
    assert [running.say(name) for name in ("b", "a", "c")] == ["I am b.", "I am a.", "I am c."]
    assert running.source.loaded == ["a", "c"]
    assert running.say("b") == "I am b."
    assert running.source.loaded == ["b", "c"]
    assert running.http.get("/ready").status_code == 200
    assert running.http.get("/health").json()["state"] == "unloaded"
    assert 'num_requests_running{model_name="a"}' not in running.http.get("/metrics").text
    assert running.say(None) == "I am a."


def test_a_model_that_answers_is_not_displaced_and_those_who_wait_take_turns(start, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(routes, "FIRST_SECONDS", 0.05)
    running = start(memory=1.5)
    engine = running.source.engines["a"]
    engine.pause()
    first = running.later("a")
    engine.wait_for(lambda engine: engine.num_running == 1)
    with running.http.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "model": "b", "stream": True}) as stream:
        lines = stream.iter_lines()
        assert [next(lines) for _ in range(3)] == [": keep-alive", "", ": keep-alive"]
        assert running.state("a")["state"] == "draining"
        behind = running.later("a")
        running.until("a", lambda state: state["requests_waiting"] == 1)
        assert (running.source.opened, first.is_alive()) == (["a"], True)
        engine.resume()
        assert first.result() == "I am a."
        assert "I am b." in "".join(part.split('"content":"')[1].split('"')[0] for part in lines if '"content":"' in part)
    assert behind.result() == "I am a."
    assert running.source.opened == ["a", "b", "a"]


def test_another_model_answers_while_the_default_one_is_fetched(start):
    running = start()
    running.source.engines["a"].state_now = EngineState("fetching", 0.1)
    waiting = running.later("b")
    running.until("b", lambda state: state["requests_waiting"] == 1)
    assert running.source.opened == ["a"]  # how large the first one is nobody knows yet
    running.source.engines["a"].state_now = EngineState("fetching", 0.1, done_bytes=1, total_bytes=GB)
    assert waiting.result() == "I am b."
    assert running.state("a")["state"] == "fetching"


def test_who_no_longer_waits_displaces_nobody(start):
    running = start(memory=1.5)
    engine = running.source.engines["a"]
    engine.pause()
    first = running.later("a")
    engine.wait_for(lambda engine: engine.num_running == 1)
    with pytest.raises(httpx2.ReadTimeout):
        running.http.post("/v1/chat/completions", json={"messages": HELLO, "model": "b"}, timeout=0.3)
    running.until("a", lambda state: state["state"] == "ready")
    second = running.later("a")
    engine.wait_for(lambda engine: engine.num_running == 2)
    engine.resume()
    assert (first.result(), second.result()) == ("I am a.", "I am a.")
    assert running.source.opened == ["a"]


def test_two_models_that_displace_each_other_starve_nobody(start):
    running = start(memory=1.5)
    asked = [running.later("ab"[index % 2], stream=index % 3 == 0) for index in range(16)]
    assert [one.result() for one in asked] == [f"I am {'ab'[index % 2]}." for index in range(16)]
    assert len(running.source.opened) <= 17


def test_concurrent_requests_wait_for_one_load(start):
    running = start()
    running.source.first_state = EngineState("loading", 0.5)
    asked = [running.later("b", stream=index % 2 == 0) for index in range(8)]
    running.until("b", lambda state: state["state"] == "loading" and state["progress"] == 0.5)
    running.source.engines["b"].state_now = EngineState("ready", 1.0)
    assert [one.result() for one in asked] == ["I am b."] * 8
    assert running.source.opened == ["a", "b"]


def test_too_little_memory_is_a_503_with_the_numbers_and_nothing_is_unloaded(start):
    running = start({"a": 1, "big": 3}, memory=2.5)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            running.openai.chat.completions.create(model="big", messages=HELLO, stream=stream)
        assert (caught.value.status_code, caught.value.code) == (503, "insufficient_memory")
        assert "needs 3.00 GB" in str(caught.value) and "1.50 GB are free, 2.50 GB if no other model were loaded" in str(caught.value)
        assert int(caught.value.response.headers["retry-after"]) > 1
    assert running.source.opened == running.source.loaded == ["a"]


def test_only_so_many_wait_for_a_model(start):
    running = start(memory=1.5, max_queue=2)
    engine = running.source.engines["a"]
    engine.pause()
    first = running.later("a")
    engine.wait_for(lambda engine: engine.num_running == 1)
    asked = [running.later("b") for _ in range(2)]
    running.until("b", lambda state: state.get("requests_waiting") == 2)
    with pytest.raises(openai.RateLimitError) as caught:
        running.openai.chat.completions.create(model="b", messages=HELLO)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    engine.resume()
    assert [one.result() for one in (first, *asked)] == ["I am a.", "I am b.", "I am b."]


def test_a_plain_request_does_not_wait_for_ever(start, monkeypatch):
    monkeypatch.setattr(routes, "READY_SECONDS", 0.1)
    running = start(memory=1.5)
    running.source.engines["a"].pause()
    first = running.later("a")
    running.source.engines["a"].wait_for(lambda engine: engine.num_running == 1)
    with pytest.raises(openai.InternalServerError) as caught:
        running.openai.chat.completions.create(model="b", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (503, "model_loading")
    running.source.engines["a"].resume()
    assert first.result() == "I am a."


def test_a_model_leaves_when_nobody_has_asked_for_it_for_its_time(start):
    running = start(keep_alive=0.05)
    running.say("b")
    running.until("b", lambda state: state["state"] == "unloaded")
    assert running.source.loaded == ["a"]
    running.say("b", keep_alive="1h30m")
    told = running.state("b")
    assert told["keep_alive"] == 5400 and 5000 < told["unloads_in"] <= 5400
    running.say("b")
    assert running.state("b")["keep_alive"] == 5400
    running.say("b", keep_alive=-1)
    assert (running.state("b")["keep_alive"], running.state("b")["unloads_in"]) == (-1, None)
    running.say("b", keep_alive=0)
    running.until("b", lambda state: state["state"] == "unloaded")
    assert running.source.loaded == ["a"]
    for wrong in ("soon", "5 m", "", "1d", True):
        response = running.http.post("/v1/chat/completions", json={"messages": HELLO, "keep_alive": wrong})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "keep_alive")


def test_load_and_unload_on_request(start):
    running = start()
    assert running.http.post("/v1/models/b/load").json()["qwenbox"]["state"] == "ready"
    engine = running.source.engines["b"]
    engine.pause()
    asked = running.later("b")
    engine.wait_for(lambda engine: engine.num_running == 1)
    unloading = threading.Thread(target=running.http.post, args=("/v1/models/b/unload",))
    unloading.start()
    running.until("b", lambda state: state["state"] == "draining")
    engine.resume()
    assert asked.result() == "I am b."
    unloading.join(60)
    assert running.source.loaded == ["a"]
    assert running.http.post("/v1/models/b/unload").json()["qwenbox"]["state"] == "unloaded"
    assert running.http.post("/v1/models/a/unload").json()["qwenbox"]["loaded"] is False
    assert running.say(None) == "I am a."
    assert running.http.post("/v1/models/x/unload").status_code == 404


def test_nothing_of_an_unloaded_model_stays_in_the_front(start):
    running = start()
    running.say("b")
    assert running.later("b", stream=True).result() == "I am b."
    left = weakref.ref(running.service.shelf.known("b").llm)
    gc.disable()  # what only a collection frees, stays for minutes
    try:
        running.http.post("/v1/models/b/unload")
        deadline = time.monotonic() + 10
        while left() is not None:  # the thread that closed it may still be on its way out
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
    finally:
        gc.enable()


def test_a_model_that_was_told_to_go_goes_though_nobody_waits_for_it_any_more():
    source = FakeSource({"a": 1, "b": 1}, 10)
    busy = threading.Event()

    async def unload_and_turn_away() -> None:
        models, loop = shelf.Shelf(source, source.open("a")), asyncio.get_running_loop()
        with models.lease(models.place("b")) as lease:
            assert await lease.opened(10) is not None
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, busy.wait)
        going = asyncio.create_task(models.unload(models.place("b")))
        while not models.place("b").closing:
            await asyncio.sleep(0)
        going.cancel()
        await asyncio.wait([going])
        busy.set()

    asyncio.run(unload_and_turn_away())
    assert source.loaded == ["a"]


def test_answers_that_do_not_end_are_cut_off_when_their_model_goes(start, monkeypatch):
    monkeypatch.setattr(shelf, "DRAIN_SECONDS", 0.1)
    running = start()
    running.say("b")
    running.source.engines["b"].pause()
    asked = running.later("b")
    running.source.engines["b"].wait_for(lambda engine: engine.num_running == 1)
    assert running.http.post("/v1/models/b/unload").json()["qwenbox"]["loaded"] is False
    assert asked.result().code == "engine_closed"
    assert running.say("b") == "I am b."


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(start):
    running = start()
    running.source.first_state = EngineState("failed", error=ModelFormatError("b.gguf: not a model"))
    for _ in range(2):
        with pytest.raises(openai.APIStatusError, match="not a model"):
            running.openai.chat.completions.create(model="b", messages=HELLO)
    running.source.first_state = EngineState("ready", 1.0)
    assert running.say("b") == "I am b."
    assert running.source.opened == ["a", "b", "b", "b"]
    assert running.say(None) == "I am a."


def test_a_model_that_could_not_be_loaded_again_stays(start):
    running = start({"a": 1, "b": 1}, memory=1.5, cannot_open=True)
    response = running.http.post("/v1/models/a/unload")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_stays")
    with pytest.raises(openai.InternalServerError, match=r"needs 1\.00 GB"):
        running.openai.chat.completions.create(model="b", messages=HELLO)
    assert running.say(None) == "I am a."
    running.source.default = "a"
