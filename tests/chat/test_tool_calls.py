"""Tool calls come out of an answer's tokens, however these are cut."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenbox.chat.stream import EventStream
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.chat.toolcall import ToolScanner
from qwenbox.types import Event, FinishReason, SequenceOutput, TokenLogprob


def tool(name: str, *, required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("weather", city={"type": "string"}, days={"type": "integer"}),
    tool("run", code={"type": "string"}, options={"type": "object"}, verbose={"type": "boolean"}, ratio={"type": "number"}, any={}),
    tool(
        "forecast",
        required=["city"],
        city={"type": "string"},
        days={"type": "integer"},
        unit={"enum": ["C", "F"]},
        hours={"type": "array", "items": {"type": "integer"}},
    ),
]


class Answer:
    """Events put together, as a client does."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.content = "".join(event.text for event in events if event.kind == "content")
        self.reasoning = "".join(event.text for event in events if event.kind == "reasoning")
        self.reason, self.detail, self.usage = events[-1].finish_reason, events[-1].detail, events[-1].usage
        self.ids = [id for event in events for id in event.ids]
        self.logprobs = [logprob.id for event in events for logprob in event.logprobs]
        calls: dict[int, list[str]] = {}
        for event in events:
            if event.call is not None:
                call = calls.setdefault(event.call.number, [event.call.id, event.call.name, ""])
                assert event.call.number == len(calls) - 1
                assert (event.call.id == "" and event.call.name == "") or call[2] == ""
                call[2] += event.call.arguments
        self.calls = [(name, arguments) for _, name, arguments in calls.values()]
        self.call_ids = [id for id, _, _ in calls.values()]
        self.order = [kind for kind, _ in itertools.groupby(event.kind for event in events)]

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)


def read(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    sizes: Iterator[int] | None = None,
    *,
    parallel: bool = True,
    fenced: bool = False,
    reason: FinishReason = "stop",
    eos: bool = False,
    **options: Any,
) -> Answer:
    counter = itertools.count()
    tools = ToolScanner(TOOLS, parallel=parallel, fenced=fenced, new_id=lambda: f"call_{next(counter)}")
    stream = EventStream(tokenizer, tools=tools, **options)
    events: list[Event] = []
    start = 0
    while start < len(ids) and not stream.stopped:
        size = next(sizes) if sizes else 1
        piece = tuple(ids[start : start + size])
        events += stream.feed(SequenceOutput("r", piece, tuple(TokenLogprob(id, -1.0) for id in piece)))
        start += size
    events += stream.feed(SequenceOutput("r", (), finish_reason="cancelled" if stream.stopped else reason))
    return Answer(events)


def text_of(tokenizer: Tokenizer, text: str, **options: Any) -> Answer:
    """Of one output a token, after a look at a few other ways to cut it."""
    ids = tokenizer.encode(text)
    answer = read(tokenizer, ids, **options)
    for size in (2, 3, 7, max(len(ids), 1)):
        assert read(tokenizer, ids, itertools.repeat(size), **options) == answer
    for byte_ids in (list(text.encode()),):  # the same text without control tokens
        plain = read(tokenizer, byte_ids, **options)
        assert (plain.content, plain.calls, plain.reason) == (answer.content, answer.calls, answer.reason)
    return answer


def test_a_call_becomes_its_name_and_its_arguments(small: Tokenizer) -> None:
    answer = text_of(small, 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京 \\u00e9", "days": 3}}\n</tool_call>')
    assert answer.content == "Let me see."
    assert answer.calls == [("weather", '{"city": "北京 \\u00e9", "days": 3}')]
    assert answer.reason == "tool_calls" and answer.detail == {}
    assert answer.order == ["content", "tool_call", "finish"]


def test_calls_stand_side_by_side_and_between_text(small: Tokenizer) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
    answer = text_of(small, f'{call % "Paris"}\n{call % "Oslo"} \n and so on <tool_call>{{"arguments": {{}}, "name": "run", "id": [1, {{}}]}}')
    assert answer.calls == [("weather", '{"city": "Paris"}'), ("weather", '{"city": "Oslo"}'), ("run", "{}")]
    assert answer.content == "and so on" and answer.call_ids == ["call_0", "call_1", "call_2"]


def test_a_piece_comes_with_each_token(small: Tokenizer) -> None:
    stream = EventStream(small, tools=ToolScanner(TOOLS))
    pieces = []
    for id in small.encode('<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}'):
        pieces += [event.call for event in stream.feed(SequenceOutput("r", (id,))) if event.call is not None]
    assert [piece.name for piece in pieces] == ["weather"] + [""] * (len(pieces) - 1)
    assert pieces[0].arguments == "" and len(pieces) > 10 and all(len(piece.arguments) <= 3 for piece in pieces)


@pytest.mark.parametrize("inside", ["</tool_call>", "<tool_call>", "<think>", '\\"}}</tool_call>', "}}", "<|im_end|>", "\\\\", "{ [ , :"])
def test_what_stands_in_a_string_ends_no_call(inside: str, small: Tokenizer) -> None:
    arguments = f'{{"code": "a {inside} b"}}'
    answer = text_of(small, f'<tool_call>{{"name": "run", "arguments": {arguments}}}</tool_call>ok', skip_special=False)
    assert answer.calls == [("run", arguments)] and answer.content == "ok"


@pytest.mark.parametrize("inside", ["</tool_call>", "<tool_call>", "<think>", "</function>", "<parameter=b>", '"quoted" \\ and\ttab', "</parameter"])
def test_tags_of_the_other_form_carry_text_as_it_is(inside: str, small: Tokenizer) -> None:
    text = f"<tool_call>\n<function=run>\n<parameter=code>\nline one\n{inside}\n</parameter>\n</function>\n</tool_call>"
    (call,) = text_of(small, text).calls
    assert call[0] == "run" and json.loads(call[1]) == {"code": f"line one\n{inside}"}


def test_values_between_tags_become_what_the_tool_declares(small: Tokenizer) -> None:
    values = {
        "code": "3", "options": '{"a": [1, 2]}', "verbose": "True", "ratio": "0.5", "any": "null", "other": "12",
    }  # fmt: skip
    tags = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    answer = text_of(small, f"<tool_call>\n<function=run>\n{tags}</function>\n</tool_call>\n<tool_call><function=run></function></tool_call>")
    first, second = (json.loads(arguments) for _, arguments in answer.calls)
    assert first == {"code": "3", "options": {"a": [1, 2]}, "verbose": True, "ratio": 0.5, "any": None, "other": "12"} and second == {}
    for key, value in (("verbose", "maybe"), ("ratio", "NaN"), ("options", "[1]"), ("ratio", "1e5 apples")):
        (call,) = text_of(small, f"<tool_call><function=run><parameter={key}>{value}</parameter></function>").calls
        assert json.loads(call[1]) == {key: value}


BROKEN = [
    '{"name": "nobody", "arguments": {}}',
    '{"name": "weather", "arguments": {"city": Paris}}',
    '{"name": "weather", "arguments": "{}"}',
    '{"name": "weather", "arguments": {"city": "a\nb"}}',
    '{"name": "weather", "arguments": {"city": "\\x"}}',
    '{"name": "weather", "arguments": {}, "name": "run"}',
    '{"name": ["weather"], "arguments": {}}',
    '{"name": "weather", "arguments": {"days": 01}}',
    '{"name": "weather", "arguments": {"days": ' + "1" * 600 + "}}",
    '{"name": "weather", "arguments": {"a": ' + "[" * 200,
    '{"arguments": {}}',
    '["weather"]',
    "weather(Paris)",
    '{"name": "weather", "arguments": {"city": "Par',
    '{"name": "wea',
    "",
    "<function=nobody></function>",
    "<function=run><parameter=code>a</parameter><parameter=code>b</parameter></function>",
    "<function=run>code</function>",
    f"<function={'x' * 300}></function>",
    "<function=run><parameter=code>never ends",
    "<functional>",
]


@pytest.mark.parametrize("inside", BROKEN)
def test_a_broken_call_is_text(inside: str, small: Tokenizer) -> None:
    good = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    answer = text_of(small, f"<tool_call>{inside}")
    assert answer.reason == "stop" and answer.content == f"<tool_call>{inside}"
    assert answer.detail["tool_error"]["index"] == 0 and answer.detail["tool_error"]["message"]
    # Nothing after it is a call: it could stand in a string of the broken one.
    after = text_of(small, f"<tool_call>[{inside}</tool_call>{good}")
    assert after.calls == [] and after.content.endswith(good)
    before = text_of(small, f"{good}\n<tool_call>{inside}")
    assert before.calls[0] == ("weather", "{}") and before.reason == "tool_calls" and before.detail["tool_error"]["index"] == 1


def test_an_answer_that_is_cut_off_keeps_what_there_is_of_a_call(small: Tokenizer) -> None:
    answer = text_of(small, '<tool_call>{"name": "weather", "arguments": {"city": "Par', reason="length")
    assert answer.calls == [("weather", '{"city": "Par')] and answer.reason == "length" and answer.content == ""
    answer = text_of(small, '<tool_call>{"name": "wea', reason="length")
    assert answer.calls == [] and answer.content == '<tool_call>{"name": "wea'


def test_an_answer_without_parallel_calls_ends_with_its_first(small: Tokenizer) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    answer = text_of(small, f"one {call} two {call}", parallel=False)
    assert answer.calls == [("weather", "{}")] and answer.content == "one" and answer.reason == "tool_calls"


def test_thoughts_hold_no_calls(small: Tokenizer) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    answer = read(small, small.encode(f"<think>\n{call}\n</think>\n\n{call}"))
    assert answer.reasoning == call and answer.calls == [("weather", "{}")] and answer.content == ""
    answer = read(small, small.encode(f"a <tool<think>b</think>_call> {call}"))
    assert answer.reasoning == "" and answer.content == "a <tool<think>b</think>_call>" and answer.calls == [("weather", "{}")]


def test_stop_strings_end_an_answer_inside_a_call_too(small: Tokenizer) -> None:
    answer = text_of(small, 'a <tool_call>{"name": "weather", "arguments": {"city": "STOP"}}', stop=["STOP"])
    assert answer.content == 'a<tool_call>{"name": "weather", "arguments": {"city": "' and answer.reason == "stop"


def test_log_probabilities_are_those_of_the_content(small: Tokenizer) -> None:
    ids = small.encode('hello <tool_call>{"name": "weather", "arguments": {}}</tool_call>')
    answer = read(small, ids)
    assert answer.ids == ids and small.decode(answer.logprobs) == "hello"


FORECAST = '{\n  "name": "forecast",\n  "arguments": {\n    "city": "北京",\n    "days": 2\n  }\n}'


@pytest.mark.parametrize("text", [f"```json\n{FORECAST}\n```", f" \n```json{FORECAST}``` \n\n"])
def test_an_answer_that_is_one_call_in_a_fence_is_a_call(text: str, small: Tokenizer) -> None:
    answer = text_of(small, text, fenced=True)
    assert answer.calls == [("forecast", '{\n    "city": "北京",\n    "days": 2\n  }')] and answer.content == ""
    assert answer.reason == "tool_calls" and answer.order == ["tool_call", "finish"] and answer.ids == small.encode(text)
    assert text_of(small, text, fenced=True, parallel=False).calls == answer.calls
    for plain in (text_of(small, text), text_of(small, text, fenced=True, reason="length")):
        assert plain.calls == [] and plain.content == text and plain.detail == {}


FENCED = {
    "a tool that there is not": '{"name": "nobody", "arguments": {}}',
    "an argument that is missing": '{"name": "forecast", "arguments": {"days": 2}}',
    "of another type": '{"name": "forecast", "arguments": {"city": "Oslo", "days": null}}',
    "that is not listed": '{"name": "forecast", "arguments": {"city": "Oslo", "unit": "K"}}',
    "that is not declared": '{"name": "forecast", "arguments": {"city": "Oslo", "path": "x"}}',
    "of another type inside": '{"name": "forecast", "arguments": {"city": "Oslo", "hours": [1, "2"]}}',
    "no arguments": '{"name": "weather"}',
    "a key more": '{"name": "weather", "arguments": {}, "id": 1}',
    "two objects": '{"name": "weather", "arguments": {}} {"name": "weather", "arguments": {}}',
    "a list": '[{"name": "weather", "arguments": {}}]',
    "no JSON": '{"name": "weather", "arguments": {"city": Oslo}}',
    "nothing": "",
}


@pytest.mark.parametrize("inside", FENCED.values(), ids=FENCED)
def test_a_fence_that_is_no_call_is_text(inside: str, small: Tokenizer) -> None:
    answer = text_of(small, f"```json\n{inside}\n```", fenced=True)
    assert answer.calls == [] and answer.content == f"```json\n{inside}\n```" and answer.reason == "stop" and answer.detail == {}


def test_a_fence_beside_other_text_is_text_and_calls_in_it_are_read(small: Tokenizer) -> None:
    fence, call = '```json\n{"name": "weather", "arguments": {}}\n```', '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    for text in (
        f"So:\n{fence}",
        f"{fence}\nThat is all.",
        f"{fence}\n{fence}",
        fence[:-3],
        fence[:-1],
        fence.replace("json", "jsonc"),
        "```json",
        "",
    ):
        answer = text_of(small, text, fenced=True)
        assert answer.calls == [] and answer.content == text and answer.reason == "stop"
    answer = text_of(small, f"{fence}\n{call}", fenced=True)
    assert answer.calls == [("weather", "{}")] and answer.content == fence
    answer = text_of(small, call, fenced=True)
    assert answer.calls == [("weather", "{}")] and answer.content == ""


def test_text_that_can_be_no_call_is_not_held(small: Tokenizer) -> None:
    stream, seen = EventStream(small, tools=ToolScanner(TOOLS, fenced=True)), ""
    for id in small.encode('```json\n{"name": "setup.py", "version'):
        seen += "".join(event.text for event in stream.feed(SequenceOutput("r", (id,))))
    assert seen == '```json\n{"name": "setup.py", "versio'


PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", '{"name": "weather", "arguments": ', '{"city": "x"}', "}", "{", '"', "\\", "[1, 2.5e3]", ", ", ": ", "\n"),
        *("<function=run>", "<parameter=code>", "<parameter=verbose>", "</parameter>", "</function>", "true", "text", " ", "é\u0301", "<think>"),
        *("</think>", "<tool", "_call>", "<", '"name"', '"run"', '"arguments"', " " * 40, "```json", "```"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(PIECES, max_size=24), data=st.data(), parallel=st.booleans(), fenced=st.booleans())
@example(pieces=["<tool_call>", '{"name": "weather", "arguments": ', '{"city": "x"}', "}"], data=None, parallel=True, fenced=False)
@example(pieces=["```json", '{"name": "weather", "arguments": ', '{"city": "x"}', "}", "```"], data=None, parallel=True, fenced=True)
def test_however_tokens_are_cut_into_outputs_the_events_are_the_same(
    pieces: list[str], data: Any, parallel: bool, fenced: bool, small: Tokenizer
) -> None:
    text = "".join(pieces)
    ids = small.encode(text)
    whole = read(small, ids, itertools.repeat(max(len(ids), 1)), parallel=parallel, fenced=fenced)
    assert read(small, ids, parallel=parallel, fenced=fenced) == whole
    if data is not None:
        sizes = itertools.cycle(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)))
        assert read(small, ids, sizes, parallel=parallel, fenced=fenced) == whole
    assert whole.ids == ids[: len(whole.ids)]
    broken = whole.detail.get("tool_error", {}).get("index", len(whole.calls))
    for name, arguments in whole.calls[:broken]:
        assert name in ("weather", "run", "forecast") and isinstance(json.loads(arguments), dict)
    assert (whole.reason == "tool_calls") == (broken > 0)


@pytest.mark.parametrize("form", ["strings", "structure", "tags", "blanks", "broken", "calls", "fence", "no fence"])
def test_a_long_call_takes_linear_time(form: str, small: Tokenizer) -> None:
    def seconds(size: int) -> float:
        bodies = {
            "strings": '<tool_call>{"name": "run", "arguments": {"code": "' + "x" * size,
            "structure": '<tool_call>{"name": "run", "arguments": {"options": [' + "[1, {}]," * (size // 8),
            "tags": "<tool_call><function=run><parameter=code>" + "x\n</par" * (size // 7),
            "blanks": "<tool_call>" + " " * size + '{"name": "run"' + " " * size,
            "broken": "<tool_call>" * (size // 11),
            "fence": '```json{"name": "run", "arguments": {"code": "' + "x" * size + '"}}```',
            "no fence": '```json{"name": "run", "arguments": {"code": "' + "x" * size + '"}}',
            "calls": '<tool_call>{"name": "run"}</tool_call>\n' * (size // 40),
        }
        text = bodies[form]
        scanner = ToolScanner(TOOLS, fenced="fence" in form)
        began = time.thread_time()
        parts = [part for start in range(0, len(text), 4) for part in scanner.feed(text[start : start + 4])]
        parts += scanner.finish("stop")
        taken = time.thread_time() - began
        assert sum(part.length for part in parts) == len(text)
        return taken

    short = min(seconds(1 << 14) for _ in range(5))
    assert min(seconds(1 << 18) for _ in range(3)) < 16 * short * 5  # 256 times as long, were it quadratic
