"""Anthropic's dialect without a socket: its table, and events as blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_create_params

from qwenbox.errors import RequestError
from qwenbox.types import Event, OutputFormat, ToolCallPiece, Usage
from qwenbox.wire.anthropic_messages import FIELDS, MessagesRequest, MessagesWriter, read_request
from qwenbox.wire.dialects import MESSAGES

HELLO: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
EVENTS = [
    Event("reasoning", "h"),
    Event("reasoning", "m"),
    Event("content", "I "),
    Event("content", "call"),
    Event("tool_call", call=ToolCallPiece(0, "call_a", "f")),
    Event("tool_call", call=ToolCallPiece(0, arguments='{"x": ')),
    Event("tool_call", call=ToolCallPiece(0, arguments="1}")),
    Event("tool_call", call=ToolCallPiece(1, "call_b", "f", "{}")),
    Event("finish", finish_reason="tool_calls", usage=Usage(30, 12, 10, 4)),
]


def writer() -> MessagesWriter:
    return MessagesWriter(read_request(HELLO), id="1", model="m", created=0)


def test_the_table_knows_the_schema_and_every_field_of_the_client():
    assert {name for name, row in FIELDS.items() if row.treatment == "honoured"} <= set(MessagesRequest.model_fields)
    for params in (message_create_params, beta_create_params):
        assert set(params.MessageCreateParamsBase.__annotations__) - set(FIELDS) == set()
    assert all(row.note for row in FIELDS.values() if row.treatment == "refused")


def test_each_run_of_one_kind_and_each_call_is_a_block():
    body = writer().completion([(0, event) for event in EVENTS])
    thinking, text, first, second = body["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "hm")
    assert text == {"type": "text", "text": "I call"}
    assert first == {"type": "tool_use", "id": "call_a", "name": "f", "input": {"x": 1}}
    assert second == {"type": "tool_use", "id": "call_b", "name": "f", "input": {}}
    assert body["stop_reason"] == "tool_use"
    assert body["usage"]["input_tokens"] == 20
    assert body["usage"]["cache_read_input_tokens"] == 10
    assert body["usage"]["output_tokens_details"] == {"thinking_tokens": 4}


def test_the_events_of_a_stream_put_the_whole_answer_together():
    whole = writer().completion([(0, event) for event in EVENTS])
    streaming = writer()
    chunks = [*streaming.start(30), *(chunk for event in EVENTS for chunk in streaming.chunks(0, event)), *streaming.end()]
    blocks: list[dict[str, Any]] = []
    arguments: dict[int, str] = {}
    for chunk in chunks:
        if chunk["type"] == "content_block_start":
            assert chunk["index"] == len(blocks)
            blocks.append(dict(chunk["content_block"]))
        elif chunk["type"] == "content_block_delta":
            delta = {name: value for name, value in chunk["delta"].items() if name != "type"}
            if "partial_json" in delta:
                arguments[chunk["index"]] = arguments.get(chunk["index"], "") + delta["partial_json"]
            for name in set(delta) - {"partial_json"}:
                blocks[chunk["index"]][name] += delta[name]
    for index, text in arguments.items():
        blocks[index]["input"] = json.loads(text)
    assert blocks == whole["content"]
    assert [chunk["index"] for chunk in chunks if chunk["type"] == "content_block_stop"] == [0, 1, 2, 3]
    assert chunks[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    assert chunks[-2]["usage"] == whole["usage"]
    assert all(MESSAGES.frame(chunk).startswith(f"event: {chunk['type']}\ndata: ".encode()) for chunk in chunks)


def test_a_thought_that_shall_not_be_shown_is_an_empty_signed_block():
    def hiding() -> MessagesWriter:
        return MessagesWriter(read_request(HELLO | {"thinking": {"type": "adaptive", "display": "omitted"}}), id="1", model="m", created=0)

    first = hiding().completion([(0, event) for event in EVENTS])["content"][0]
    assert (first["type"], first["thinking"]) == ("thinking", "") and first["signature"]
    streaming = hiding()
    chunks = [chunk for event in EVENTS for chunk in streaming.chunks(0, event)]
    assert [chunk.get("delta", chunk)["type"] for chunk in chunks[:4]] == [
        "content_block_start",
        "signature_delta",
        "content_block_stop",
        "content_block_start",
    ]
    with pytest.raises(RequestError) as caught:
        read_request(HELLO | {"thinking": {"type": "adaptive", "display": "all"}})
    assert caught.value.param == "thinking.display"


def test_arguments_that_were_cut_off_are_no_object():
    cut = [EVENTS[4], EVENTS[5], Event("finish", finish_reason="length")]
    body = writer().completion([(0, event) for event in cut])
    assert (body["content"][0]["input"], body["stop_reason"]) == ({}, "max_tokens")


@pytest.mark.parametrize(
    ("choice", "ours"),
    [({"type": "auto"}, "auto"), ({"type": "any"}, "required"), ({"type": "tool", "name": "f"}, "=f"), ({"type": "none"}, "none")],
)
def test_tool_choices_become_ours(choice, ours):
    call = read_request(HELLO | {"tools": [TOOL], "tool_choice": choice | {"disable_parallel_tool_use": True}})
    assert (call.params.tool_choice, call.params.parallel_tool_calls) == (ours, False)
    assert len(call.tools) == (choice["type"] != "none")


def test_a_tool_keeps_its_description_schema_and_strictness():
    call = read_request(HELLO | {"tools": [TOOL | {"description": "d", "strict": True, "cache_control": {"type": "ephemeral"}}]})
    assert call.tools == ({"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}},)


def test_an_output_format_is_a_schema():
    call = read_request(HELLO | {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"}})
    assert call.params.output_format == OutputFormat("json_schema", {"type": "object"}, "output_config.format")
    assert read_request(HELLO | {"guided_regex": "a+"}).params.output_format == OutputFormat("regex", "a+", "guided_regex")
    with pytest.raises(RequestError, match=r"(?=.*output_config)(?=.*guided_regex).*: an answer has one form"):
        read_request(HELLO | {"guided_regex": "a+", "output_config": {"format": {"type": "json_schema", "schema": {}}}})
    with pytest.raises(RequestError) as caught:
        read_request(HELLO | {"output_config": {"format": {"type": "xml"}}})
    assert caught.value.param == "output_config.format.type"


def test_tool_results_and_texts_of_a_turn_keep_their_order():
    blocks = [
        {"type": "tool_result", "tool_use_id": "a", "content": "1"},
        {"type": "tool_result", "tool_use_id": "b"},
        {"type": "text", "text": "and"},
        {"type": "text", "text": "now?"},
    ]
    turns = [*HELLO["messages"], {"role": "user", "content": blocks}, {"role": "system", "content": "Be brief."}]
    messages = read_request(HELLO | {"messages": turns}).messages
    assert [(message.role, message.content, message.tool_call_id) for message in messages[1:]] == [
        ("tool", "1", "a"), ("tool", "", "b"), ("user", "and\n\nnow?", None), ("system", "Be brief.", None),
    ]  # fmt: skip
