"""OpenAI's responses, by the unmodified `openai` client over a real socket."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from qwenbox.errors import WorkerDiedError
from tests.fakes import Script

TEXT = "Hello, world! 你好，世界 👩‍👩‍👧."
TOOL: Any = {"type": "function", "name": "weather", "description": "The weather.", "parameters": {"type": "object"}, "strict": True}


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "input": "Hi"} | fields)


def prompt_of(served: Any, number: int = -1) -> str:
    return served.llm.tokenizer.decode(served.engine.plans[number].prompt_ids)


def test_a_response_has_its_text_and_its_tokens(served, client):
    response = create(client, instructions="Be brief.", max_output_tokens=300, metadata={"lesson": "7"}, user="ada", store=True)
    assert (response.output_text, response.status, response.model, response.error) == (TEXT, "completed", "tiny", None)
    plan = served.engine.plans[0]
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len(plan.prompt_ids), len(TEXT.encode()) + 1)
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert (response.instructions, response.max_output_tokens, response.metadata) == ("Be brief.", 300, {"lesson": "7"})
    assert (plan.user, plan.max_tokens) == ("ada", 300)
    assert "Be brief." in prompt_of(served)


def test_a_stream_says_the_same_as_the_whole_response(served, client):
    served.engine.script = Script(f"<think>\nlet me see\n</think>\n\n{TEXT}")
    fields: dict[str, Any] = {"temperature": 0, "reasoning": {"effort": "low"}, "top_logprobs": 1}
    whole = create(client, **fields)
    with client.responses.stream(model="tiny", input="Hi", **fields) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for number, kind in enumerate(kinds) if number == 0 or kinds[number - 1] != kind] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert final.output_text == whole.output_text == TEXT
    for response in (whole, final):
        reasoning, message = response.output
        assert [part.text for part in reasoning.content] == ["let me see"]
        assert (reasoning.status, message.status) == ("completed", "completed")
        assert len(message.content[0].logprobs) > 10
        assert response.reasoning.effort == "low"
    assert final.usage == whole.usage


def test_a_response_that_is_cut_off_is_incomplete(client):
    response = create(client, max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert list(create(client, max_output_tokens=3, stream=True))[-1].type == "response.incomplete"


def test_items_of_a_tool_round_trip_reach_the_template(served, client):
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "I should look."}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "Looking.", "annotations": []}]},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "北京"}'},
        {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": '{"city": "Rom"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "26"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "31"}]},
    ]
    response = create(client, input=items, tools=[TOOL])
    prompt = prompt_of(served)
    assert '"strict": true' in prompt
    assert prompt.count("<|im_start|>assistant") == 2
    assert '{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n<tool_call>\n{"name": "weather"' in prompt
    assert "<tool_response>\n26\n</tool_response>\n<tool_response>\n31\n</tool_response>" in prompt
    assert "I should look." in prompt
    assert response.tools[0].name == "weather"
    create(client, input=items, tools=[TOOL], tool_choice="none")
    assert '"strict"' not in prompt_of(served)


def test_hosted_tools_are_dropped_with_a_notice(client):
    raw = client.responses.with_raw_response.create(model="tiny", input="Hi", tools=[TOOL, {"type": "web_search"}], extra_body={"nobody": 1})
    assert raw.headers["x-qwenbox-ignored"] == "nobody, tools.web_search"
    assert [tool.type for tool in raw.parse().tools] == ["function"]


def test_only_efforts_that_clients_know_are_repeated(client):
    assert create(client, reasoning={"effort": "xhigh"}).reasoning.effort is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "computer_call"}]}, "input.0"),
        ({"input": []}, "input"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **fields)
    assert caught.value.param == param


def test_a_prompt_that_does_not_fit_is_a_status_and_a_dead_worker_an_event(served, client):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, input="x" * 5000, stream=True)
    assert caught.value.code == "context_length_exceeded"
    served.engine.script = Script("abc" * 500)
    served.engine.step_seconds = 0.01
    stream = create(client, stream=True)
    assert next(iter(stream)).type == "response.created"
    served.engine.fail(WorkerDiedError("the worker died"))
    last = list(stream)[-1]
    assert (last.type, last.response.status, last.response.error.message) == ("response.failed", "failed", "the worker died")
