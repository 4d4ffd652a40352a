"""Ollama's API over the wire, with a scripted engine behind it. The unmodified client is in tests/clients."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qwenbox.errors import UsageError
from qwenbox.llm import LocalLLM
from qwenbox.server import ollama, serve
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from qwenbox.types import GenerationPlan
from tests.chat.small import small_document
from tests.fakes import FakeEngine, FakeSource, Script, byte_chat, byte_tokenizer, byte_tokenizer_ids
from tests.hub.fake_hub import Fake, serving

TEXT = Script().text
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
MESSAGES = [{"role": "user", "content": "Hi"}]
GOLDEN = Path(__file__).parents[1] / "golden" / "qwen3"


def reply(plan: GenerationPlan) -> list[int]:
    prompt = byte_tokenizer().decode(plan.prompt_ids)
    text = CALL if "warm" in prompt else '{"age": 3}' if plan.constraint else TEXT
    if not prompt.endswith("</think>\n\n") and "<|im_start|>" in prompt:
        text = f"<think>\nSo it is.\n</think>\n\n{text}"
    return [*byte_tokenizer_ids(text), *plan.stop_ids[:1]]


@pytest.fixture(scope="module")
def running(start_one: Callable[..., Any]) -> Iterator[Any]:
    one = start_one(FakeEngine(Script(reply=reply)))
    yield one
    one.close()


@pytest.fixture
def http(running: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=20, trust_env=False) as client:
        yield client


def lines(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": MESSAGES, "think": False}),
        ("/api/chat", {"messages": MESSAGES, "think": "high"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "How warm is it?"}], "tools": TOOLS, "think": True}),
        ("/api/chat", {"messages": MESSAGES, "format": SCHEMA, "logprobs": True, "top_logprobs": 2, "think": False}),
        ("/api/generate", {"prompt": "Hi", "system": "Be brief."}),
        ("/api/generate", {"prompt": "def f(", "raw": True, "options": {"num_predict": 5}}),
    ],
)
def test_the_lines_of_a_stream_come_to_the_whole_answer(http, path, body):
    """Lines are the default, the last one has the numbers, and nothing else differs but times."""
    streamed = lines(http.post(path, json={"model": "tiny"} | body))
    whole = http.post(path, json={"model": "tiny", "stream": False} | body).json()
    assert [line["done"] for line in streamed] == [False] * (len(streamed) - 1) + [True]

    def parts(line: dict[str, Any]) -> dict[str, Any]:
        return line["message"] if path == "/api/chat" else line

    text = "response" if path == "/api/generate" else "content"
    for name in (text, "thinking"):
        assert "".join(parts(line).get(name, "") for line in streamed) == parts(whole).get(name, ""), name
    calls = [call | {"id": ""} for line in streamed for call in parts(line).get("tool_calls", [])]
    assert calls == [call | {"id": ""} for call in parts(whole).get("tool_calls", [])]
    assert [one for line in streamed for one in line.get("logprobs", [])] == whole.get("logprobs", [])
    for name in ("done", "done_reason", "prompt_eval_count", "eval_count", "model"):
        assert streamed[-1][name] == whole[name]
    for name in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(whole[name], int)
    assert whole["load_duration"] + whole["prompt_eval_duration"] + whole["eval_duration"] <= whole["total_duration"]
    if path == "/api/chat":
        assert parts(whole).get("thinking", "") == ("" if body["think"] is False else "So it is.")
    if "tools" in body:
        assert calls[0]["function"] == {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}
    if "options" in body:
        assert (whole["response"], whole["done_reason"], whole["eval_count"]) == (TEXT[:5], "length", 5)


def test_options_reach_the_sampler_and_none_cuts_the_prompt(http, running):
    options = {"temperature": 0.3, "top_k": 7.0, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.2, "seed": 11, "num_predict": -1, "stop": ["x"]}
    long = "word " * 300
    messages = [{"role": "user", "content": long}]
    answer = http.post("/api/chat", json={"messages": messages, "stream": False, "options": options | {"num_ctx": 128, "num_gpu": 1}})
    plan = running.engine.plans[-1]
    sampling = plan.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty) == (0.3, 7, 0.5, 0.1, 1.2)
    assert sampling.seed == 11
    assert len(plan.prompt_ids) > len(long)
    assert plan.max_tokens == 4096 - len(plan.prompt_ids)
    assert answer.headers["x-qwenbox-ignored"] == "options.num_ctx, options.num_gpu"
    too_long = http.post("/api/chat", json={"messages": [{"role": "user", "content": "x" * 5000}], "options": {"num_ctx": 8192}})
    assert too_long.status_code == 400
    assert "4096" in too_long.json()["error"]
    assert "50" in too_long.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "What is it?", "images": ["aGk="]}]}, "messages.0: images"),
        ("/api/generate", {"prompt": "Hi", "images": ["aGk="]}, "images"),
        ("/api/generate", {"prompt": "Hi", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "Hi", "context": [1, 2]}, "/api/chat"),
        ("/api/generate", {"prompt": "Hi", "suffix": "there"}, "suffix"),
        ("/api/generate", {"prompt": "Hi", "raw": True, "suffix": "there"}, "raw"),
        ("/api/chat", {"messages": MESSAGES, "format": "yaml"}, "format"),
        ("/api/chat", {"messages": MESSAGES, "options": {"temperature": "hot"}}, "options.temperature"),
        ("/api/chat", {"messages": MESSAGES, "keep_alive": "soon"}, "keep_alive"),
        ("/api/show", {}, "model"),
    ],
)
def test_what_is_refused_is_named(http, path, body, said):
    response = http.post(path, json=body)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert said in response.json()["error"]


def test_a_model_that_is_not_there_is_a_404_that_says_which_are(http):
    for method, path in (("POST", "/api/chat"), ("POST", "/api/show"), ("DELETE", "/api/delete"), ("POST", "/api/pull")):
        response = http.request(method, path, json={"model": "llama3:8b", "messages": MESSAGES})
        assert response.status_code == 404
        assert "tiny" in response.json()["error"] or "qwen3" in response.json()["error"]


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3:8b", "qwen3-8b:latest", "Qwen3:8B", "library/qwen3:8b"])
def test_models_are_found_by_the_names_that_ollama_gives_them(tmp_path, name):
    source = FakeSource({"tiny": 1, "qwen3-8b": 2}, memory=16)
    with source.open("tiny") as llm, Service(llm, Settings(port=0, state_dir=tmp_path, cache_dir=tmp_path), source) as service:
        answer = httpx2.post(f"{service.url}/api/chat", json={"model": name, "messages": MESSAGES, "stream": False}, trust_env=False).json()
        assert (answer["model"], answer["message"]["content"]) == ("qwen3-8b", "I am qwen3-8b.")


def test_a_copy_is_another_name_that_can_be_listed_asked_and_deleted(http):
    def names() -> list[str]:
        return [model["name"] for model in http.get("/api/tags").json()["models"]]

    before = names()
    copied = http.post("/api/copy", json={"source": "tiny:latest", "destination": "gpt-4o:latest"})
    assert copied.status_code == 200 and "--alias gpt-4o=tiny" in copied.json()["qwenbox"]
    assert names() == before  # the scripted engine's model lies on no disk
    assert http.post("/api/chat", json={"model": "gpt-4o", "messages": MESSAGES, "stream": False}).json()["message"]["content"] == TEXT
    assert http.post("/api/show", json={"model": "gpt-4o:latest"}).status_code == 200
    for wrong, status in (
        ({"source": "llama3", "destination": "x"}, 404),
        ({"source": "tiny", "destination": "tiny"}, 409),
        ({"source": "tiny"}, 400),
    ):
        assert http.post("/api/copy", json=wrong).status_code == status
    assert http.request("DELETE", "/api/delete", json={"model": "gpt-4o"}).status_code == 200
    assert http.post("/api/show", json={"model": "gpt-4o"}).status_code == 404
    assert http.post("/api/show", json={"model": "tiny"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "way_out"),
    [
        ("POST", "/api/create", "/api/copy"),
        ("POST", "/api/blobs/sha256:0", "models_dir"),
        ("POST", "/api/push", "tool of the hub"),
    ],
)
def test_what_is_not_done_here_is_refused_with_the_reason_and_the_way_out(http, method, path, way_out):
    response = http.request(method, path, json={"model": "tiny", "input": "Hi"})
    assert response.status_code == 501
    assert way_out in response.json()["error"]


def test_requests_that_say_nothing_load_and_unload(tmp_path):
    source = FakeSource({"tiny": 1, "other": 2}, memory=16)
    with (
        source.open("tiny") as llm,
        Service(llm, Settings(port=0, state_dir=tmp_path, cache_dir=tmp_path), source) as service,
        httpx2.Client(base_url=service.url, timeout=20, trust_env=False) as http,
    ):

        def ask(path: str, **body: Any) -> dict[str, Any]:
            answer: dict[str, Any] = http.post(path, json={"model": "other"} | body).json()
            return answer

        assert ask("/api/generate", keep_alive=-1) | {"created_at": ""} == {
            "model": "other", "created_at": "", "response": "", "done": True, "done_reason": "load",
        }  # fmt: skip
        assert source.loaded == ["tiny", "other"]
        assert [model["name"] for model in http.get("/api/ps").json()["models"]] == ["tiny:latest", "other:latest"]
        assert ask("/api/chat", messages=[], keep_alive="0s")["done_reason"] == "unload"
        assert source.loaded == ["tiny"]
        ask("/api/chat", messages=MESSAGES, stream=False, keep_alive="10m")
        expires = http.get("/api/ps").json()["models"][1]["expires_at"]
        assert expires.endswith("Z")


def test_what_clients_ask_before_they_begin(http):
    assert http.get("/api/version").json()["version"] == ollama.API_VERSION
    shown = http.post("/api/show", json={"name": "tiny:latest"}).json()
    assert "num_ctx 4096" in shown["parameters"].splitlines()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert ".Suffix" not in shown["template"]


@pytest.fixture
def tiny_hub() -> Iterator[Fake]:
    files = {name: (GOLDEN / name).read_bytes() for name in ("config.json", "model.safetensors")}
    with serving(Fake(files={**files, "tokenizer.json": json.dumps(small_document()).encode()}, repository="Qwen/Qwen3-0.6B")) as fake:
        yield fake


def test_a_model_is_pulled_listed_shown_and_deleted_and_no_other_is_deleted(start, tiny_hub):
    running = start(hub_endpoint=tiny_hub.url)
    with httpx2.Client(base_url=running.url, timeout=30, trust_env=False) as http:
        told = lines(http.post("/api/pull", json={"model": "qwen3:0.6b"}))
        assert told[0] == {"status": "pulling manifest"}
        assert told[-1] == {"status": "success"}
        assert all(line["digest"] and line["completed"] <= line["total"] for line in told if "total" in line)
        assert http.post("/api/pull", json={"model": "qwen3:0.6b", "stream": False}).json() == {"status": "success"}
        (listed,) = http.get("/api/tags").json()["models"]
        assert listed["name"] == "qwen3-0.6b:latest"
        assert listed["details"]["family"] == "qwen3"
        assert listed["size"] > 0
        shown = http.post("/api/show", json={"model": "qwen3:0.6b"}).json()
        assert shown["model_info"]["general.architecture"] == "qwen3"
        assert "thinking" in shown["capabilities"]
        assert http.post("/api/copy", json={"source": "qwen3:0.6b", "destination": "mine"}).status_code == 200
        assert [model["name"] for model in http.get("/api/tags").json()["models"]] == ["qwen3-0.6b:latest", "mine:latest"]
        assert http.request("DELETE", "/api/delete", json={"model": "mine:latest"}).status_code == 200
        refused = http.request("DELETE", "/api/delete", json={"model": "tiny"})
        assert refused.status_code == 400
        assert "not pulled by qwenbox" in refused.json()["error"]
        assert http.request("DELETE", "/api/delete", json={"model": "qwen3:0.6b"}).status_code == 200
        assert http.get("/api/tags").json()["models"] == []


def test_a_pull_that_fails_says_why_in_its_last_line(start):
    with serving(Fake(files={"config.json": b"{}"}, repository="Qwen/Qwen3-0.6B", status=404)) as fake:
        running = start(hub_endpoint=fake.url)
        last = httpx2.post(f"{running.url}/api/pull", json={"model": "qwen3:0.6b"}, timeout=30, trust_env=False).text.splitlines()[-1]
    assert list(json.loads(last)) == ["error"]


def test_ollamas_port_is_listened_on_as_well_and_one_that_is_taken_is_named(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(serve, "OLLAMA_PORT", port)
        monkeypatch.setattr(ollama, "PORT", port)
        settings = Settings(port=0, ollama=True, state_dir=tmp_path, cache_dir=tmp_path)
        with LocalLLM(FakeEngine(), byte_chat(), "tiny") as llm:
            with pytest.raises(UsageError, match=f"Port {port} .*--ollama"):
                Service(llm, settings)
            taken.close()
            with Service(llm, settings) as service:
                assert service.port != port
                there = f"http://127.0.0.1:{port}"
                assert httpx2.get(there, trust_env=False).text == ollama.RUNNING
                assert httpx2.head(there, trust_env=False).status_code == 200
                page = httpx2.get(there, headers={"accept": "text/html,*/*"}, trust_env=False).text
                assert page == httpx2.get(service.url, trust_env=False).text
                assert "<!doctype html>" in page.lower()
                for url in (there, service.url):
                    assert httpx2.get(f"{url}/api/version", trust_env=False).status_code == 200
