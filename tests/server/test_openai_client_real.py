"""The whole way: the unmodified `openai` client, the service, a worker process, the real 0.5B."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from qwenbox.engine.client import EngineOptions, WorkerEngine
from qwenbox.llm import LocalLLM, open_chat
from qwenbox.server.serve import Service
from qwenbox.settings import Settings

pytestmark = pytest.mark.weights

MODEL = "qwen2.5-coder-0.5b"
ASK: Any = [{"role": "user", "content": "Write a Python function `add(a, b)` that returns the sum. Answer with code only."}]
GREEDY: Any = {"model": MODEL, "temperature": 0}


@dataclass
class Real:
    service: Service
    llm: LocalLLM
    load_seconds: float

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.service.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 120} | options)

    @property
    def worker(self) -> int:
        assert isinstance(self.llm.engine, WorkerEngine)
        assert self.llm.engine.pid is not None
        return self.llm.engine.pid


@pytest.fixture(scope="module")
def real(real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    path = real_model(MODEL)
    chat = open_chat(path)
    go = threading.Event()

    def find(_: object) -> EngineOptions:
        assert go.wait(60)
        return EngineOptions(model=str(path), num_pages=512, tokens=chat.tokenizer.table())

    engine = WorkerEngine(find)
    with LocalLLM(engine, chat, MODEL) as llm, Service(llm, Settings(port=0, state_dir=tmp_path_factory.mktemp("state"))) as service:
        # The port answers at once, and says that the model is not there yet.
        assert httpx2.get(f"{service.url}/health", trust_env=False).status_code == 200
        assert httpx2.get(f"{service.url}/ready", trust_env=False).status_code == 503
        began = time.monotonic()
        go.set()
        llm.wait_ready(120)
        yield Real(service, llm, time.monotonic() - began)


def test_the_answer_makes_sense(real):
    with real.client() as client:
        answer = client.chat.completions.create(**GREEDY, messages=ASK, max_tokens=100)
    text = answer.choices[0].message.content
    assert re.search(r"def add\(a, b\)", text)
    assert "return a + b" in text
    assert answer.choices[0].finish_reason == "stop"


def test_a_chinese_question_gets_a_chinese_answer(real):
    with real.client() as client:
        answer = client.chat.completions.create(**GREEDY, messages=[{"role": "user", "content": "用中文回答：一年有几个季节？"}], max_tokens=60)
    assert re.search(r"[一-鿿]", answer.choices[0].message.content)


def test_streaming_says_the_same_as_plain_at_temperature_zero(real):
    options = GREEDY | {"messages": ASK, "max_tokens": 64, "logprobs": True, "top_logprobs": 3}
    with real.client() as client:
        plain = client.chat.completions.create(**options)
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == plain.choices[0].message.content
    assert [token for choice in deltas if choice.logprobs for token in choice.logprobs.content] == plain.choices[0].logprobs.content
    assert chunks[-1].usage == plain.usage


def test_a_seed_repeats_an_answer_and_alone_or_together_it_is_the_same(real):
    options: Any = {"model": MODEL, "messages": ASK, "temperature": 1.2, "max_tokens": 24, "seed": 11}
    with real.client() as client:
        first = client.chat.completions.create(**options, n=3)
        again = client.chat.completions.create(**options, n=3)
        alone = client.chat.completions.create(**options)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert alone.choices[0].message.content == texts[0]
    assert len(set(texts)) > 1


def test_a_bare_completion_without_a_model_is_answered(real):
    body = b'{"prompt": "def fibonacci(n):", "max_tokens": 48, "temperature": 0}'
    answer = httpx2.post(f"{real.service.url}/v1/completions", content=body, timeout=60, trust_env=False).json()
    assert "    return " in answer["choices"][0]["text"]


def test_a_gap_in_code_is_filled(real):
    with real.client() as client:
        filled = client.completions.create(**GREEDY, prompt="def add(a, b):\n    return ", suffix="\n\n\nprint(add(1, 2))\n", max_tokens=40)
    assert filled.choices[0].text.startswith("a + b\n")
    assert filled.choices[0].finish_reason == "stop"


FIM_STOPS = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_start|>"]


@pytest.mark.parametrize("raw", [False, True])
def test_what_continue_asks_of_ollama_while_one_types_fills_the_gap(real, raw):
    """As its autocompletion writes it: Ollama's name of the model, and either a suffix, or, in older ones, the tokens themselves in a raw prompt."""
    before, after = "def add(a, b):\n    return ", "\n\n\nprint(add(1, 2))\n"
    options = {"temperature": 0.01, "num_predict": 40, "num_ctx": 8096, "stop": [*FIM_STOPS, "/src/", "#- coding: utf-8", "```"]}
    body: Any = {"model": "qwen2.5-coder:0.5b", "options": options, "keep_alive": 1800, "stream": True}
    body |= {"prompt": f"<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>", "raw": True} if raw else {"prompt": before, "suffix": after}
    with httpx2.Client(base_url=real.service.url, timeout=120, trust_env=False) as http:
        shown = http.post("/api/show", json={"name": "qwen2.5-coder:0.5b"}).json()
        told = [json.loads(line) for line in http.post("/api/generate", json=body).text.splitlines()]
    assert ".Suffix" in shown["template"]  # by which it knows that it may ask
    assert all(re.fullmatch(r"(\S+)\s+((?:\".*\")|\S+)", line) for line in shown["parameters"].split("\n"))
    text = "".join(line["response"] for line in told)
    assert text.splitlines()[0] == "a + b"
    assert told[-1]["done_reason"] == "stop"
    assert told[-1]["eval_count"] < 40
    assert 0 < told[-1]["prompt_eval_duration"] + told[-1]["eval_duration"] <= told[-1]["total_duration"]


def test_the_same_question_in_every_dialect_has_the_same_answer(real):
    with real.client() as client, anthropic.Anthropic(base_url=real.service.url, api_key="none", max_retries=0, timeout=120) as other:
        chat = client.chat.completions.create(**GREEDY, messages=ASK, max_tokens=64).choices[0].message.content
        response = client.responses.create(**GREEDY, input=ASK, max_output_tokens=64).output_text
        message = other.messages.create(model="claude-any", max_tokens=64, messages=ASK, extra_body={"temperature": 0}).content[0].text
        with other.messages.stream(model=MODEL, max_tokens=64, messages=ASK, extra_body={"temperature": 0}) as stream:
            streamed = stream.get_final_text()
    assert chat == response == message == streamed


def test_echo_scores_a_prompt_as_the_answer_scored_it(real):
    with real.client() as client:
        made = client.completions.create(**GREEDY, prompt="The capital of France is", max_tokens=6, logprobs=0)
        text = "The capital of France is" + made.choices[0].text
        scored = client.completions.create(**GREEDY, prompt=text, max_tokens=1, echo=True, logprobs=0)
    count = len(made.choices[0].logprobs.tokens)
    prompt = scored.choices[0].logprobs
    assert prompt.token_logprobs[0] is None
    # The last token is the one that was generated after the text.
    assert prompt.tokens[-1 - count : -1] == made.choices[0].logprobs.tokens
    assert prompt.token_logprobs[-1 - count : -1] == made.choices[0].logprobs.token_logprobs


def test_a_scripted_load_moves_each_metric_to_the_clients_own_count(real):
    def read() -> dict[str, float]:
        text = httpx2.get(f"{real.service.url}/metrics", trust_env=False).text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line and not line.startswith("#")}

    async def load() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{real.service.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            calls = [client.chat.completions.create(**GREEDY, messages=ASK, max_tokens=5 + index, n=1 + index % 2) for index in range(6)] + [
                client.chat.completions.create(**GREEDY, messages=ASK, max_tokens=64, stop=["add"])
            ]
            return list(await asyncio.gather(*calls))  # fmt: skip

    before = read()
    answers = asyncio.run(load())
    after = read()

    def moved(name: str, labels: str = f'{{model_name="{MODEL}"}}') -> float:
        return after.get(f"qwenbox_{name}{labels}", 0) - before.get(f"qwenbox_{name}{labels}", 0)

    choices = [choice for answer in answers for choice in answer.choices]
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    assert moved("prompt_tokens_total") == sum(answer.usage.prompt_tokens for answer in answers)
    assert moved("generation_tokens_total") == tokens
    assert moved("time_to_first_token_seconds_count") == len(choices)
    assert moved("e2e_request_latency_seconds_count") == len(choices)
    assert moved("request_queue_time_seconds_count") == len(choices)
    assert moved("inter_token_latency_seconds_count") == tokens - len(choices)
    for reason in ("stop", "length"):
        labels = f'{{finished_reason="{reason}",model_name="{MODEL}"}}'
        assert moved("request_success_total", labels) == sum(choice.finish_reason == reason for choice in choices)
    assert moved("http_responses_total", '{route="/v1/chat/completions",status="200"}') == len(answers)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total", "worker_restarts_total"):
        assert after[f'qwenbox_{name}{{model_name="{MODEL}"}}'] == 0


def test_a_worker_that_is_killed_during_eight_streams_ends_each_with_an_error_and_the_service_answers_again(real):
    async def stream(client: openai.AsyncOpenAI, begun: asyncio.Semaphore) -> str:
        text = ""
        try:
            answer = await client.chat.completions.create(**GREEDY, messages=ASK, max_tokens=2000, extra_body={"ignore_eos": True}, stream=True)
            async for chunk in answer:
                if not text and chunk.choices[0].delta.content:
                    begun.release()
                text += chunk.choices[0].delta.content or ""
        except openai.APIError as error:
            return str(error.code)
        return "ended"

    async def kill_during_streams() -> tuple[list[str], float]:
        begun = asyncio.Semaphore(0)
        async with openai.AsyncOpenAI(base_url=f"{real.service.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            streams = [asyncio.create_task(stream(client, begun)) for _ in range(8)]
            async with asyncio.timeout(60):
                for _ in streams:
                    await begun.acquire()
            os.kill(real.worker, signal.SIGKILL)
            killed = time.monotonic()
            async with asyncio.timeout(60):
                return list(await asyncio.gather(*streams)), killed

    ends, killed = asyncio.run(kill_during_streams())
    assert ends == ["worker_died"] * 8
    with real.client() as client:
        answer = client.chat.completions.create(**GREEDY, messages=ASK, max_tokens=5)
    seconds = time.monotonic() - killed
    assert answer.usage.completion_tokens == 5
    assert seconds < 5 + real.load_seconds, f"{seconds:.1f} s, loading takes {real.load_seconds:.1f} s"
    assert real.llm.engine.stats().restarts == 1
