"""What programs for coding asked (see record_launched.py), asked again of the real service over a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from qwenbox.types import GenerationPlan
from tests.clients.lengths import filled
from tests.fakes import FakeEngine, Script, byte_chat, byte_tokenizer, byte_tokenizer_ids

FIXTURES = Path(__file__).parents[1] / "fixtures"
CALL = '<tool_call>\n{"name": "TOOL", "arguments": {"file_path": "note.txt"}}\n</tool_call>'
TOOLS = {"claude_code": "Read", "qwen_code": "read_file"}
ANSWER = "It says hello."


@pytest.fixture(scope="module", params=list(TOOLS))
def recorded(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def requests(recorded: str) -> list[dict[str, Any]]:
    recording = json.loads((FIXTURES / f"{recorded}.json").read_text("utf-8"))
    return [request | {"body": filled(request["body"])} for request in recording["requests"]]


@pytest.fixture(scope="module")
def running(recorded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeEngine]]:
    def reply(plan: GenerationPlan) -> list[int]:
        text = ANSWER if "<tool_response>" in byte_tokenizer().decode(plan.prompt_ids) else CALL.replace("TOOL", TOOLS[recorded])
        return [*byte_tokenizer_ids(text), *plan.stop_ids[:1]]

    folder = tmp_path_factory.mktemp("state")
    engine = FakeEngine(Script(reply=reply), context_length=400_000, num_pages=16384)
    settings = Settings(port=0, state_dir=folder, cache_dir=folder, data_dir=folder)
    with LocalLLM(engine, byte_chat(), "tiny") as llm, Service(llm, settings) as service:
        yield service.url, engine


def ask(url: str, request: dict[str, Any]) -> httpx2.Response:
    return httpx2.request(request["method"], url + request["path"], headers=request["headers"], json=request["body"], timeout=60, trust_env=False)


def events_of(response: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def said_by_claude(response: httpx2.Response) -> tuple[list[str], str]:
    """What kinds of blocks an answer has, and why it ended."""
    events = [event for event in events_of(response) if event["type"] != "ping"]
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
    (reason,) = [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"]
    return [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"], reason


def said_by_openai(response: httpx2.Response) -> tuple[list[str], str]:
    chunks = events_of(response)
    assert response.text.rstrip().endswith("data: [DONE]") and chunks[-1]["usage"]["completion_tokens"] > 0
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    kinds = [kind for choice in choices for kind in ("content", "tool_calls") if choice["delta"].get(kind)]
    calls = [call["function"]["name"] for choice in choices for call in choice["delta"].get("tool_calls", []) if call["function"].get("name")]
    assert calls in ([], ["read_file"])
    return list(dict.fromkeys(kinds)), choices[-1]["finish_reason"]


def test_every_request_is_answered_as_it_was(recorded: str, running: tuple[str, FakeEngine], requests: list[dict[str, Any]]) -> None:
    url, _ = running
    seen = []
    for request in requests:
        response = ask(url, request)
        assert response.status_code == 200, response.text
        if request["body"] is not None:
            seen.append((said_by_claude if recorded == "claude_code" else said_by_openai)(response))
            # What it says and we do not follow is named, and nothing of it changes what is asked.
            ignored = {"", "model", "context_management", "system.x-anthropic-billing-header"}
            assert set(response.headers.get("x-qwenbox-ignored", "").split(", ")) <= ignored
    assert (
        seen
        == {
            "claude_code": [(["tool_use"], "tool_use"), (["text"], "end_turn")],
            "qwen_code": [(["tool_calls"], "tool_calls"), (["content"], "stop")],
        }[recorded]
    )


def test_a_turn_goes_on_where_the_cache_is(running: tuple[str, FakeEngine], requests: list[dict[str, Any]]) -> None:
    """The second prompt begins with the whole first one, which the service then has read already."""
    url, engine = running
    engine.plans.clear()
    for request in requests:
        if request["body"] is not None:
            ask(url, request)
    first, second = (plan.prompt_ids for plan in engine.plans)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    assert len(first) > 30_000
    assert shared > len(first) - 40  # all but how an answer begins


def test_its_prompts_are_counted_as_they_are_read(recorded: str, running: tuple[str, FakeEngine], requests: list[dict[str, Any]]) -> None:
    if recorded != "claude_code":
        return  # only Anthropic's API counts
    url, engine = running
    for request in requests:
        if request["body"] is None:
            continue
        counted = {name: request["body"][name] for name in ("model", "messages", "system", "tools")}
        count = ask(url, request | {"path": "/v1/messages/count_tokens", "body": counted}).json()["input_tokens"]
        ask(url, request)
        assert count == len(engine.plans[-1].prompt_ids)
