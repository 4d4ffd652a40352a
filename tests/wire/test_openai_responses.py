"""OpenAI's responses without a socket: the table, and events as items."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, response_create_params

from qwenbox.types import Event, OutputFormat, ToolCallPiece, Usage
from qwenbox.wire.openai_responses import FIELDS, ResponsesRequest, ResponsesWriter, read_request

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
EVENTS = [
    Event("reasoning", "hm"),
    Event("content", "I "),
    Event("content", "call"),
    Event("tool_call", call=ToolCallPiece(0, "call_a", "f")),
    Event("tool_call", call=ToolCallPiece(0, arguments='{"x": 1}')),
    Event("tool_call", call=ToolCallPiece(1, "call_b", "f", "{}")),
    Event("finish", finish_reason="tool_calls", usage=Usage(30, 12, 10, 4)),
]


def writer(**fields: Any) -> ResponsesWriter:
    return ResponsesWriter(read_request({"input": "Hi", **fields}), id="1", model="m", created=0)


def test_the_table_knows_the_schema_and_every_field_of_the_client():
    assert {name for name, row in FIELDS.items() if row.treatment == "honoured"} <= set(ResponsesRequest.model_fields)
    assert set(response_create_params.ResponseCreateParamsBase.__annotations__) - set(FIELDS) == set()
    assert all(row.note for row in FIELDS.values() if row.treatment == "refused")


def test_each_run_of_one_kind_and_each_call_is_an_item():
    body = writer(tools=[TOOL]).completion([(0, event) for event in EVENTS])
    response = Response.model_validate(body)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert response.output_text == "I call"
    calls: Any = response.output[2:]
    assert [(call.call_id, call.name, call.arguments) for call in calls] == [("call_a", "f", '{"x": 1}'), ("call_b", "f", "{}")]
    assert len({item.id for item in response.output}) == 4
    assert (body["usage"]["input_tokens_details"]["cached_tokens"], body["usage"]["output_tokens_details"]["reasoning_tokens"]) == (10, 4)


def test_arguments_stream_and_are_said_whole_at_their_end():
    streaming = writer(tools=[TOOL])
    chunks = [*streaming.start(30), *(chunk for event in EVENTS for chunk in streaming.chunks(0, event)), *streaming.end()]
    deltas = "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "response.function_call_arguments.delta" and chunk["output_index"] == 2)
    done = [chunk["arguments"] for chunk in chunks if chunk["type"] == "response.function_call_arguments.done"]
    assert done == [deltas, "{}"] == ['{"x": 1}', "{}"]
    assert chunks[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("form", "ours"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, OutputFormat("json_object", param="text.format")),
        (
            {"type": "json_schema", "name": "n", "strict": True, "schema": {"type": "object"}},
            OutputFormat("json_schema", {"type": "object"}, "text.format"),
        ),
    ],
)
def test_formats_become_ours(form, ours):
    call = read_request({"input": "Hi", "text": {"format": form}})
    assert call.params.output_format == ours
    assert call.echo["text"] == {"format": form}


@pytest.mark.parametrize(
    ("choice", "ours", "allowed"),
    [
        ("auto", "auto", ()),
        ("required", "required", ()),
        ({"type": "function", "name": "f"}, "=f", ()),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}, "required", ("f",)),
    ],
)
def test_tool_choices_become_ours(choice, ours, allowed):
    call = read_request({"input": "Hi", "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False})
    assert (call.params.tool_choice, call.params.allowed_tools, call.params.parallel_tool_calls) == (ours, allowed, False)
    assert call.tools == ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)
