"""Thinking through the highest door: the unmodified `openai` client, the service, a worker process, a small model that was trained to think."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from qwenbox.server.serve import Service
from tests.thinker import CALCULATOR, ENDLESS, serve

SUM: Any = [{"role": "user", "content": "What is 3 + 4 + 5?"}]
ENDLESS_CHAT: Any = [{"role": "user", "content": ENDLESS}]
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>")

SPELLINGS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "on", "model"),
    ({"enable_thinking": False}, "off", "enable_thinking"),
    ({"enable_thinking": True}, "on", "enable_thinking"),
    ({"thinking_budget": 0}, "off", "thinking_budget"),
    ({"thinking_token_budget": 5}, "on", "thinking_token_budget"),
    ({"custom_params": {"thinking_budget": 0}}, "off", "custom_params.thinking_budget"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "off", "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"thinking": False}}, "off", "chat_template_kwargs.thinking"),
    ({"thinking": {"type": "disabled"}}, "off", "thinking"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "on", "thinking"),
    ({"think": False}, "off", "think"),
    ({"think": "low"}, "on", "think"),
    ({"reasoning_effort": "none"}, "off", "reasoning_effort"),
    ({"reasoning_effort": "low"}, "on", "reasoning_effort"),
    ({"reasoning": {"enabled": False}}, "off", "reasoning.enabled"),
    ({"reasoning": {"effort": "high"}}, "on", "reasoning.effort"),
    ({"enable_thinking": False, "reasoning_effort": "high", "think": True}, "off", "enable_thinking"),
    ({"enable_thinking": True, "thinking_budget": 0, "chat_template_kwargs": {"enable_thinking": False}}, "on", "enable_thinking"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(tmp_path_factory.mktemp("state")) as (service, _):
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


class Answer:
    """What a client has of an answer, whole or put together of its pieces."""

    def __init__(self) -> None:
        self.header = ""
        self.reasoning = self.content = ""
        self.calls: list[dict[str, str]] = []
        self.reason: str | None = None
        self.qwenbox: dict[str, Any] = {}
        self.usage: Any = None


def ask(client: openai.OpenAI, messages: Any, *, stream: bool, body: dict[str, Any] | None = None, **fields: Any) -> Answer:
    asked = {"model": "thinker", "messages": messages, "temperature": 0, "max_tokens": 400, "extra_body": body or {}} | fields
    answer = Answer()
    if not stream:
        raw = client.chat.completions.with_raw_response.create(**asked)
        answer.header = raw.headers.get("x-qwenbox-thinking", "")
        done = raw.parse()
        choice = done.choices[0]
        answer.reasoning = getattr(choice.message, "reasoning_content", None) or ""
        answer.content = choice.message.content or ""
        answer.calls = [{"name": call.function.name, "arguments": call.function.arguments} for call in choice.message.tool_calls or ()]
        answer.reason, answer.usage, answer.qwenbox = choice.finish_reason, done.usage, getattr(done, "qwenbox", {})
        return answer
    raw = client.chat.completions.with_raw_response.create(**asked, stream=True, stream_options={"include_usage": True})
    answer.header = raw.headers.get("x-qwenbox-thinking", "")
    for chunk in raw.parse():
        answer.usage = chunk.usage or answer.usage
        for choice in chunk.choices:
            answer.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            answer.content += choice.delta.content or ""
            for piece in choice.delta.tool_calls or ():
                if piece.index == len(answer.calls):
                    answer.calls.append({"name": piece.function.name, "arguments": ""})
                answer.calls[piece.index]["arguments"] += piece.function.arguments or ""
            if choice.finish_reason is not None:
                answer.reason, answer.qwenbox = choice.finish_reason, getattr(chunk, "qwenbox", {})
    return answer


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize(("body", "mode", "source"), SPELLINGS, ids=lambda value: repr(value)[:50] if isinstance(value, dict) else None)
def test_every_spelling_gives_the_documented_decision_streamed_or_not(client, body, mode, source, tools):
    fields = {"tools": [CALCULATOR]} if tools else {}
    whole = ask(client, SUM, stream=False, body=body, **fields)
    streamed = ask(client, SUM, stream=True, body=body, **fields)
    for answer in (whole, streamed):
        assert answer.header.startswith(f"{mode}; source={source}")
        assert (answer.qwenbox["thinking"]["mode"], answer.qwenbox["thinking"]["source"]) == (mode, source)
        assert bool(answer.reasoning) == (mode == "on")
        assert bool(answer.usage.completion_tokens_details.reasoning_tokens) == (mode == "on")
        assert not any(mark in answer.content + answer.reasoning for mark in MARKS)
        assert answer.content or answer.calls
    names = ("header", "reasoning", "content", "calls", "reason", "qwenbox")
    assert [getattr(whole, name) for name in names] == [getattr(streamed, name) for name in names]
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens


@pytest.mark.parametrize(
    ("text", "mode"), [("What is 3 + 4 + 5? /no_think", "off"), ("/no_think What is 3 + 4 + 5?", "off"), ("What is 3 + 4? /think", "on")]
)
def test_a_person_switches_in_words(client, text, mode):
    answer = ask(client, [{"role": "user", "content": text}], stream=False)
    assert answer.qwenbox["thinking"]["mode"] == mode
    assert bool(answer.reasoning) == (mode == "on")


@pytest.mark.parametrize("budget", [1, 5, 9])
def test_a_budget_ends_the_thought_in_qwens_words_and_an_answer_follows(client, budget):
    for stream in (False, True):
        answer = ask(client, ENDLESS_CHAT, stream=stream, body={"thinking_budget": budget})
        assert answer.qwenbox["thinking"]["ended"] == "budget"
        assert answer.reasoning.endswith("I have to give the solution based on the thinking directly now.")
        assert answer.content and answer.reason == "stop"
        closing = answer.usage.completion_tokens_details.reasoning_tokens - budget
        assert closing == ask(client, ENDLESS_CHAT, stream=stream, body={"thinking_budget": 2}).usage.completion_tokens_details.reasoning_tokens - 2


@pytest.mark.parametrize("max_tokens", [64, 100, 200])
def test_an_endless_thought_leaves_the_answer_its_tokens(client, max_tokens):
    answer = ask(client, ENDLESS_CHAT, stream=False, max_tokens=max_tokens)
    assert answer.qwenbox["thinking"]["ended"] in ("length", "loop")
    assert answer.content
    assert answer.usage.completion_tokens <= max_tokens


def test_few_tokens_are_the_answers(client):
    answer = ask(client, SUM, stream=False, max_tokens=20)
    assert (answer.qwenbox["thinking"]["source"], answer.reasoning) == ("max_tokens", "")
    assert answer.content


def test_time_ends_a_thought(client):
    answer = ask(client, ENDLESS_CHAT, stream=True, max_tokens=1500, body={"thinking_seconds": 0.02})
    assert answer.qwenbox["thinking"]["ended"] == "time"
    assert answer.content


def test_a_client_that_waits_for_a_whole_answer_gets_it_before_it_gives_up(client):
    answer = ask(client, ENDLESS_CHAT, stream=False, max_tokens=1500, extra_headers={"x-stainless-read-timeout": "0.05"})
    assert answer.qwenbox["thinking"]["ended"] == "time"
    assert answer.content


def test_the_answer_now(client, service):
    """While the thought streams, its reader asks for the answer. A fast machine may be through before the second request is there."""
    for _ in range(10):
        raw = client.chat.completions.with_raw_response.create(
            model="thinker", messages=ENDLESS_CHAT, stream=True, temperature=0, max_tokens=1800, extra_body={"thinking": "on"}
        )
        url = f"{service.url}/v1/requests/{raw.headers['x-request-id']}/answer"
        asked: list[httpx2.Response] = []
        content, ended = "", None
        for chunk in raw.parse():
            for choice in chunk.choices:
                if getattr(choice.delta, "reasoning_content", None) and not asked:
                    asked.append(httpx2.post(url, trust_env=False))
                content += choice.delta.content or ""
                ended = getattr(chunk, "qwenbox", {}).get("thinking", {}).get("ended", ended)
        assert content
        assert httpx2.post(url, trust_env=False).status_code == 404
        if ended == "answer_now":
            assert asked[0].status_code == 200
            return
    pytest.fail("no thought was ended by its reader")


def test_a_loop_in_a_thought_is_ended_and_the_answer_follows(client):
    answer = ask(client, ENDLESS_CHAT, stream=True, max_tokens=1800)
    assert answer.qwenbox["thinking"]["ended"] == "loop"
    assert answer.content and answer.reason == ("length" if "stop_detail" in answer.qwenbox else "stop")


def test_eight_thoughts_at_once_are_each_what_they_are_alone(client):
    def question(index: int) -> tuple[Any, dict[str, Any]]:
        return [{"role": "user", "content": f"What is {index} + {index + 1} + 3?"}], {"thinking_budget": index}

    alone = [ask(client, messages, stream=False, body=body) for messages, body in map(question, range(1, 9))]
    together: list[Answer | None] = [None] * 8

    def run(index: int) -> None:
        messages, body = question(index + 1)
        together[index] = ask(client, messages, stream=index % 2 == 1, body=body)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert other is not None
        assert (one.reasoning, one.content, one.qwenbox) == (other.reasoning, other.content, other.qwenbox)


@pytest.mark.parametrize("thinks", [True, False], ids=["thinking", "fast"])
def test_a_tool_is_called_and_an_answer_follows_with_the_thought_kept_on_the_way(client, service, thinks):
    body = {"enable_thinking": thinks}
    question: Any = [{"role": "user", "content": "What is 3 + 4 + 5?"}]
    first = client.chat.completions.create(model="thinker", messages=question, tools=[CALCULATOR], temperature=0, max_tokens=400, extra_body=body)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in message.tool_calls] == ["calculator"]
    back = message.model_dump(exclude_none=True)
    history = [*question, back, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "14"}]
    second = client.chat.completions.create(model="thinker", messages=history, tools=[CALCULATOR], temperature=0, max_tokens=400, extra_body=body)
    assert second.choices[0].finish_reason == "stop"
    assert "14" in second.choices[0].message.content
    tokens = [
        httpx2.post(f"{service.url}/tokenize", json={"messages": messages}, trust_env=False).json()["count"]
        for messages in (history, [*history, {"role": "assistant", "content": "14"}, {"role": "user", "content": "thanks"}])
    ]
    if thinks:  # a new turn of the user drops the thought of the old one
        assert tokens[1] < tokens[0] + len(message.reasoning_content) + 40


def test_anthropics_client_reads_the_same_thoughts(service):
    with anthropic.Anthropic(base_url=service.url, api_key="none", max_retries=0, timeout=60) as client:
        fields: Any = {"model": "claude-any", "max_tokens": 2000, "messages": SUM, "extra_body": {"temperature": 0}}
        on = client.messages.create(**fields, thinking={"type": "enabled", "budget_tokens": 1024})
        off = client.messages.create(**fields, thinking={"type": "disabled"})
    assert [block.type for block in on.content] == ["thinking", "text"]
    assert [block.type for block in off.content] == ["text"]
    assert not any(mark in block.text for block in (*on.content, *off.content) if block.type == "text" for mark in MARKS)
