"""The tables of the dialects, and the conversions that no socket is needed for."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest

from qwenbox.errors import RequestError
from qwenbox.types import Event, TextLogprob, Usage
from qwenbox.wire import openai_chat, openai_completions, sse
from qwenbox.wire.errors import error_body, error_headers, read_json
from qwenbox.wire.openai_fields import NO_EFFECT

HELLO = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(("dialect", "schema"), [(openai_chat, openai_chat.ChatRequest), (openai_completions, openai_completions.CompletionRequest)])
def test_the_table_honours_exactly_the_fields_of_the_schema(dialect, schema):
    honoured = {name for name, row in dialect.FIELDS.items() if row.treatment == "honoured"}
    assert honoured == set(schema.model_fields)
    assert all(row.note for row in dialect.FIELDS.values() if row.treatment == "refused")


@pytest.mark.parametrize(
    ("dialect", "params"),
    [(openai_chat, chat_params.CompletionCreateParamsBase), (openai_completions, completion_params.CompletionCreateParamsBase)],
)
def test_the_table_knows_every_field_of_the_openai_client(dialect, params):
    assert set(params.__annotations__) - set(dialect.FIELDS) == set()


def test_unknown_fields_are_listed_and_null_is_absent():
    call = openai_chat.read_request(
        HELLO
        | {"nobody": 1, "nothing": None, "metadata": {"a": "b"}, "stream_options": {"continuous_usage_stats": True, "include_obfuscation": True}}
    )
    assert call.ignored == ("nobody", "metadata", "stream_options.include_obfuscation")
    assert NO_EFFECT.treatment == "no effect"


def test_values_that_change_nothing_are_let_through():
    fields = {
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "functions": [],
        "function_call": "none",
        "reasoning": None,
        "guided_json": None,
    }
    assert openai_chat.read_request(HELLO | fields).ignored == ()
    assert openai_completions.read_request({"prompt": "x", "suffix": "", "best_of": 1, "response_format": {"type": "text"}}).ignored == ()


def test_messages_become_ours():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    read = openai_chat.read_request(
        {
            "messages": [
                {"role": "developer", "content": "rules"},
                {"role": "user", "content": parts, "name": "me"},
                {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
                {"role": "tool", "tool_call_id": "1", "content": "42"},
            ]
        }
    ).messages
    assert [(message.role, message.content) for message in read] == [("system", "rules"), ("user", "ab"), ("assistant", ""), ("tool", "42")]
    assert (read[1].name, read[2].reasoning_content, read[2].tool_calls, read[3].tool_call_id) == ("me", "hm", (call,), "1")


@pytest.mark.parametrize(
    ("written", "thought", "said"),
    [
        ("<think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("<think>\n\n</think>\n\nyes", "", "yes"),
        ("\n<think>hm</think>`</think>` ends it", "hm", "`</think>` ends it"),
        ('<details type="reasoning" done="true">\n<summary>Thought</summary>\n&gt; 1 &lt; 2\n&gt; so\n</details>\nyes', "1 < 2\nso", "yes"),
        ("<think>hm", None, "<think>hm"),
        ("As in <think>hm</think>", None, "As in <think>hm</think>"),
        ("<details>\nx</details>", None, "<details>\nx</details>"),
    ],
)
def test_a_thought_at_the_beginning_of_an_answer_in_the_history_is_a_thought(written, thought, said):
    def read(role: str, **more: str) -> Any:
        return openai_chat.read_request({"messages": [{"role": role, "content": written, **more}]}).messages[0]

    answer = read("assistant")
    assert (answer.reasoning_content, answer.content) == (thought, said)
    assert read("user").content == written
    assert read("assistant", reasoning_content="own").reasoning_content == "own"


def test_a_request_has_a_bounded_number_of_answers():
    assert len(openai_completions.read_request({"prompt": ["x"] * 64, "n": 2}).prompts) == 64
    with pytest.raises(RequestError) as caught:
        openai_completions.read_request({"prompt": ["x"] * 64, "n": 3})
    assert caught.value.param == "n"


def test_both_names_of_the_limit_are_honoured_and_the_newer_one_wins():
    assert openai_chat.read_request(HELLO | {"max_tokens": 5}).params.max_tokens == 5
    assert openai_chat.read_request(HELLO | {"max_completion_tokens": 6, "max_tokens": 5}).params.max_tokens == 6


def test_a_location_in_a_list_is_said():
    with pytest.raises(RequestError) as caught:
        openai_chat.read_request({"messages": [*HELLO["messages"], {"role": "user", "content": [{"type": "image_url"}]}]})
    assert caught.value.param == "messages.1.content.0"
    assert "images" in caught.value.message


def token(text: str, logprob: float) -> TextLogprob:
    return TextLogprob(1, text, text.encode(), logprob)


def finish(reason: str = "stop") -> Event:
    return Event("finish", finish_reason=reason, usage=Usage(3, 4, 1, 2))


def test_reasoning_without_an_answer_leaves_the_content_null():
    call = openai_chat.read_request(HELLO)
    events = [(0, Event("reasoning", "I think")), (0, finish("length"))]
    message = openai_chat.ChatWriter(call, id="1", model="m", created=0).completion(events)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "I think", "reasoning": "I think"}


def test_chunks_and_the_whole_answer_hold_the_same_whatever_the_events_are():
    call = openai_chat.read_request(HELLO | {"n": 2, "logprobs": True, "stream_options": {"include_usage": True}})
    pieces = [
        Event("reasoning", "r"),
        Event("content", "a", logprobs=(token("a", -1.0),)),
        Event("content", "b", logprobs=(token("b", -math.inf),)),
        finish(),
    ]
    for order in set(itertools.permutations([0, 0, 0, 0, 1, 1, 1, 1])):
        counts = [0, 0]
        events = []
        for index in order:
            events.append((index, pieces[counts[index]]))
            counts[index] += 1
        whole = openai_chat.ChatWriter(call, id="1", model="m", created=0).completion(events)
        writer = openai_chat.ChatWriter(call, id="1", model="m", created=0)
        chunks = [*writer.start(), *(chunk for event in events for chunk in writer.chunks(*event)), *writer.end()]
        assert chunks[-1]["usage"] == whole["usage"]
        assert whole["usage"]["completion_tokens"] == 8
        assert whole["usage"]["prompt_tokens"] == 3
        for choice in whole["choices"]:
            own = [chunk["choices"][0] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == choice["index"]]
            for name in ("content", "reasoning", "reasoning_content"):
                assert "".join(part["delta"].get(name) or "" for part in own) == choice["message"][name]
            assert [entry for part in own if part["logprobs"] for entry in part["logprobs"]["content"]] == choice["logprobs"]["content"]
            assert own[-1]["finish_reason"] == choice["finish_reason"] == "stop"


def test_frames_are_one_line_and_hold_everything():
    value = {"text": "a\nb\u2028c\r\n\x00é👩‍👩‍👧", "number": -9999.0}
    frame = sse.frame(value)
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2
    assert json.loads(frame[6:]) == value


def test_nesting_is_bounded():
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * depth + b"]" * depth + b"}"

    assert read_json(nested(90))
    with pytest.raises(RequestError, match="nests deeper"):
        read_json(nested(101))


def test_an_error_has_the_four_fields_of_openai():
    error = RequestError("no", param="n", code="c")
    assert error_body(error.to_wire()) == {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "c"}}
    assert error_headers(error) == {}
