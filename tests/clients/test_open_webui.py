"""What a real Open WebUI asked (see record_open_webui.py), asked again of the real service with the thinker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.types import GenerationPlan
from qwenbox.wire.openai_fields import MAX_PRIORITY
from tests.clients.test_clients import note
from tests.thinker import ENDLESS, serve

RECORDING = Path(__file__).parents[1] / "fixtures" / "open_webui.json"
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>")
JOB_TOKENS = 80
JOBS = ("title", "tags", "follow-ups")


class Running:
    """The service, and what reached its engine."""

    def __init__(self, service: Service, llm: LocalLLM) -> None:
        self.url, self.llm = service.url, llm
        self.plans: list[GenerationPlan] = []
        submit = llm.engine.submit

        def noted(plan: GenerationPlan, deliver: Any) -> None:
            self.plans.append(plan)
            submit(plan, deliver)

        llm.engine.submit = noted  # type: ignore[method-assign]

    def ask(self, request: dict[str, Any], body: Any = None) -> httpx2.Response:
        body = body or request["body"]
        if is_job(request):  # the thinker does not know how to end one
            body = body | {"max_tokens": JOB_TOKENS}
        return httpx2.request(
            request["method"], self.url + request["path"], headers=request["headers"], json=body, timeout=60, trust_env=False
        )  # fmt: skip

    def say(self, request: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole answer to other messages."""
        response = self.ask(request, {**request["body"], "messages": messages, "stream": False})
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("state")) as (service, llm):
        yield Running(service, llm)


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(RECORDING.read_text("utf-8"))
    return loaded


def is_job(request: dict[str, Any]) -> bool:
    return bool(request["body"]) and request["body"]["messages"][-1]["content"].startswith("### Task:")


def turns(recording: dict[str, Any]) -> list[dict[str, Any]]:
    return [request for request in recording["requests"] if request["body"] and not is_job(request)]


def test_every_request_is_answered_in_its_form(running, recording):
    worked = {"stream", "tools", "cancel"}
    results = 0
    for request in recording["requests"]:
        if request["body"] and request["body"].get("stream"):
            chunks = streamed(running, request)
            if request.get("left"):
                continue
            assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "tool_calls", "length")
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
            assert text or any(chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks)
            assert not any(mark in text for mark in MARKS)
            results = max(results, sum(message["role"] == "tool" for message in request["body"]["messages"]))
            continue
        response = running.ask(request)
        assert response.status_code == 200, response.text
        if request["path"] == "/v1/models":
            assert response.json()["data"][0]["id"] == "thinker"
        else:
            assert response.json()["choices"][0]["message"]["content"]
    assert results == 2, "both results of two calls came back"
    assert any(request.get("left") for request in recording["requests"])
    deadline = time.monotonic() + 10
    while running.llm.engine.stats().running:
        assert time.monotonic() < deadline, "an answer that was left goes on"
        time.sleep(0.02)
    note("open-webui", worked)


def streamed(running: Running, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of an answer; of one that was left, the first of them."""
    chunks: list[dict[str, Any]] = []
    url = running.url + request["path"]
    with httpx2.stream(request["method"], url, headers=request["headers"], json=request["body"], timeout=60, trust_env=False) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line[6:]))
                if request.get("left"):
                    return chunks
            elif line and not line.startswith(":"):
                assert line == "data: [DONE]"
    return chunks


def test_background_jobs_are_not_thought_about_and_go_behind_everybody(running, recording):
    seen = set()
    for request in filter(is_job, recording["requests"]):
        header = running.ask(request).headers["x-qwenbox-thinking"]
        assert header.startswith("off; source=background job: ")
        seen.add(header.partition("background job: ")[2].partition(";")[0])
        assert running.plans[-1].priority == MAX_PRIORITY
    assert seen == set(JOBS)
    for request in turns(recording):
        if ENDLESS not in str(request["body"]):
            running.ask(request)
            assert running.plans[-1].priority == 0


def test_no_thought_was_shown_twice(recording):
    for conversation in recording["conversations"]:
        for items in conversation["shown"]:
            thoughts = [text for kind, text in items if kind == "reasoning"]
            texts = [text for kind, text in items if kind == "message"]
            assert all(thoughts) and not any(mark in text for mark in MARKS for text in thoughts + texts)
            assert not any(len(thought) > 8 and thought.strip() in text for thought in thoughts for text in texts)
    first, calling, stopped = recording["conversations"]
    assert [[kind for kind, _ in items] for items in first["shown"]] == [["reasoning", "message"]] * 2
    assert [kind for kind, _ in calling["shown"][0]].count("function_call") == 2
    assert [kind for kind, _ in stopped["shown"][0]][:1] == ["reasoning"]


def test_a_thought_in_the_history_is_dropped_however_it_is_written(running, recording):
    request = next(request for request in turns(recording) if len(request["body"]["messages"]) == 3 and "tools" not in request["body"])
    question, answer, more = request["body"]["messages"]
    plain = running.say(request, [question, answer, more])["usage"]["prompt_tokens"]
    thought = "3+4=7\n7+5=12 > 11 & so on"
    for said in (
        {"content": f"<think>\n{thought}\n</think>\n\n{answer['content']}"},
        {"content": answer["content"], "reasoning_content": thought},
        {"content": answer["content"], "reasoning": thought},
        {"content": details(thought) + answer["content"]},
        {"content": [{"type": "text", "text": details(thought) + answer["content"]}]},
    ):
        assert running.say(request, [question, {"role": "assistant", **said}, more])["usage"]["prompt_tokens"] == plain
    # Within one turn it stays: the model goes on with what it thought.
    inside = [
        running.say(request, [question, {"role": "assistant", **said}])["usage"]["prompt_tokens"]
        for said in ({"content": "12", "reasoning_content": thought}, {"content": details(thought) + "12"}, {"content": "12"})
    ]
    assert inside[0] == inside[1] > inside[2]
    # What a person writes is theirs, and so is what only looks like a thought.
    for message in (more["content"] + details(thought), f"{answer['content']} {details(thought)}"):
        role = "user" if message.startswith(more["content"]) else "assistant"
        assert running.say(request, [question, {"role": role, "content": message}, more])["usage"]["prompt_tokens"] > plain + 20


def details(thought: str) -> str:
    """A thought as Open WebUI wrote it into the content before it had items, and as those who use its API still do."""
    quoted = "\n".join(f"&gt; {line.replace('&', '&amp;').replace('>', '&gt;')}" for line in thought.splitlines())
    return f'<details type="reasoning" done="true" duration="3">\n<summary>Thought for 3 seconds</summary>\n{quoted}\n</details>\n'
