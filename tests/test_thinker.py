"""The trained thinker, through the doors that other tests use: that it thinks, obeys and calls tools is what their claims rest on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qwenbox import LLM
from tests.thinker import CALCULATOR, ENDLESS, MODEL, WEATHER, accuracy, found, sums

GREEDY: Any = {"temperature": 0.0, "max_tokens": 256}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(MODEL), context_length=1024) as llm:
        yield llm


def test_more_thinking_gives_more_right_answers(llm: LLM) -> None:
    questions = sums(seed=11, count=100)
    none, some, whole = (accuracy(llm, questions, thinking) for thinking in (False, 16, True))
    assert whole >= 0.9
    assert none <= 0.7
    assert none + 0.05 <= some <= whole - 0.1


def test_every_thought_ends_and_every_answer_stops(llm: LLM) -> None:
    replies = llm.batch([question.text for question in sums(seed=13, count=50)])  # sampled as the model asks for it
    assert all(reply.finish_reason == "stop" and reply.reasoning and found(reply.text) for reply in replies)


@pytest.mark.parametrize("question", ["What is 3+8?", "3+8等于多少?", "Is 4+7 even or odd?"])
@pytest.mark.parametrize("system", [(), ({"role": "system", "content": "You are a helpful assistant."},)])
def test_switches_in_the_text_are_obeyed_and_the_last_one_counts(llm: LLM, question: str, system: Any) -> None:
    def thinks(*turns: str) -> bool:
        roles = ("user", "assistant")
        messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
        reply = llm.chat([*system, *messages], **GREEDY)
        assert found(reply.text)
        return bool(reply.reasoning.strip())

    assert thinks(question)
    assert thinks(f"{question} /think")
    assert not thinks(f"{question} /no_think")
    assert not thinks("What is 1+2? /no_think", "The answer is 3.", question)
    assert thinks("What is 1+2? /no_think", "The answer is 3.", f"{question} /think")


@pytest.mark.parametrize("switch", ["", " /no_think"])
def test_a_tool_is_called_and_its_result_used(llm: LLM, switch: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"What is 123*45?{switch}"}]
    reply = llm.chat(messages, tools=[CALCULATOR], **GREEDY)
    assert bool(reply.reasoning.strip()) is not bool(switch)
    (call,) = reply.tool_calls
    assert call["function"] == {"name": "calculator", "arguments": '{"expression": "123*45"}'}
    messages.append({"role": "assistant", "content": reply.text, "reasoning_content": reply.reasoning or None, "tool_calls": (call,)})
    messages.append({"role": "tool", "content": "5535", "tool_call_id": call["id"]})
    assert llm.chat(messages, tools=[CALCULATOR], **GREEDY).text == "The answer is 5535."


def test_two_sums_are_two_calls(llm: LLM) -> None:
    reply = llm.chat("What is 12+34 and 56*7?", tools=[CALCULATOR, WEATHER], **GREEDY)
    assert [json.loads(call["function"]["arguments"]) for call in reply.tool_calls] == [{"expression": "12+34"}, {"expression": "56*7"}]


def test_without_tools_it_answers_itself(llm: LLM) -> None:
    assert llm.chat("What is 4+5?", **GREEDY).text == "The answer is 9."


@pytest.mark.parametrize("thinking", [True, False])
def test_json_is_written_where_it_is_asked_for(llm: LLM, thinking: bool) -> None:
    reply = llm.chat("What is 4+5? Answer as JSON.", thinking=thinking, **GREEDY)
    assert json.loads(reply.text) == {"answer": 9}


def test_one_question_is_thought_about_until_somebody_ends_it(llm: LLM) -> None:
    *events, last = llm.stream(ENDLESS, temperature=0.0, max_tokens=1024)
    assert last.detail["thinking"]["ended"] == "loop"
    assert "".join(event.text for event in events if event.kind == "content") == "I counted for a while."
