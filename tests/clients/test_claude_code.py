"""What a real Claude Code asked (see record_claude_code.py), asked again of the real service over a scripted engine."""

from __future__ import annotations

import json
import re
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
from tests.fakes import FakeEngine, Script, byte_chat, byte_tokenizer, byte_tokenizer_ids

RECORDING = Path(__file__).parents[1] / "fixtures" / "claude_code.json"
CALL = '<tool_call>\n{"name": "Read", "arguments": {"file_path": "note.txt"}}\n</tool_call>'
ANSWER = "It says hello."
_LENGTH = re.compile(r"<(\d+): (\d+) characters>")


def filled(value: Any) -> Any:
    """As much text of our own as there was, the same where it was the same."""
    if isinstance(value, dict):
        return {key: filled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one) for one in value]
    if isinstance(value, str) and (found := _LENGTH.fullmatch(value)):
        number, length = int(found[1]), int(found[2])
        return (f"{number} " + f"some words of text {number}, " * (length // 16 + 1))[:length]
    return value


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    recording = json.loads(RECORDING.read_text("utf-8"))
    return [request | {"body": filled(request["body"])} for request in recording["requests"]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeEngine]]:
    def reply(plan: GenerationPlan) -> list[int]:
        text = ANSWER if "<tool_response>" in byte_tokenizer().decode(plan.prompt_ids) else CALL
        return [*byte_tokenizer_ids(text), *plan.stop_ids[:1]]

    folder = tmp_path_factory.mktemp("state")
    engine = FakeEngine(Script(reply=reply), context_length=400_000, num_pages=16384)
    settings = Settings(port=0, state_dir=folder, cache_dir=folder, data_dir=folder)
    with LocalLLM(engine, byte_chat(), "tiny") as llm, Service(llm, settings) as service:
        yield service.url, engine


def ask(url: str, request: dict[str, Any]) -> httpx2.Response:
    return httpx2.request(request["method"], url + request["path"], headers=request["headers"], json=request["body"], timeout=60, trust_env=False)


def events_of(response: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


def test_every_request_is_answered_as_it_was(running: tuple[str, FakeEngine], requests: list[dict[str, Any]]) -> None:
    url, _ = running
    seen = []
    for request in requests:
        response = ask(url, request)
        assert response.status_code == 200, response.text
        if request["body"] is None:
            continue
        events = events_of(response)
        assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
        blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
        (reason,) = [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"]
        seen.append((blocks, reason))
        # What it says and we do not follow is named, and nothing of it changes what is asked.
        assert set(response.headers["x-qwenbox-ignored"].split(", ")) <= {"model", "context_management", "system.x-anthropic-billing-header"}
    assert seen == [(["tool_use"], "tool_use"), (["text"], "end_turn")]


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


def test_its_prompts_are_counted_as_they_are_read(running: tuple[str, FakeEngine], requests: list[dict[str, Any]]) -> None:
    url, engine = running
    for request in requests:
        if request["body"] is None:
            continue
        counted = {name: request["body"][name] for name in ("model", "messages", "system", "tools")}
        count = ask(url, request | {"path": "/v1/messages/count_tokens", "body": counted}).json()["input_tokens"]
        ask(url, request)
        assert count == len(engine.plans[-1].prompt_ids)
