"""Forms of an answer through the highest door: the unmodified `openai` client, the service, a worker, a model that thinks before it answers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from qwenbox.engine.client import EngineOptions, WorkerEngine
from qwenbox.llm import LocalLLM, open_chat
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from tests.schemas import draw
from tests.thinker import CALCULATOR, WEATHER, serve

SUM: Any = [{"role": "user", "content": "What is 3 + 4 + 5?"}]
TOOLS: Any = [CALCULATOR, WEATHER]
THINKING: dict[str, dict[str, Any]] = {"on": {"thinking": "on"}, "off": {"enable_thinking": False}, "cut short": {"thinking_budget": 4}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(tmp_path_factory.mktemp("state")) as (service, _):
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def as_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def check_schema(ask: Callable[..., Any], seed: int, mode: str, *, thinks: bool) -> None:
    schema = draw(seed)
    choice = ask(response_format=as_format(schema), extra_body=THINKING[mode], seed=seed)
    assert choice.finish_reason == "stop", (seed, mode, choice)
    jsonschema.validate(json.loads(choice.message.content), schema)
    assert bool(getattr(choice.message, "reasoning", None)) == (thinks and mode != "off"), (seed, mode)


def asker(client: openai.OpenAI, model: str) -> Callable[..., Any]:
    return lambda **fields: client.chat.completions.create(model=model, messages=SUM, temperature=1, max_tokens=1500, **fields).choices[0]


def test_instances_of_generated_schemas_with_and_without_thoughts(client):
    for seed in range(51):
        check_schema(asker(client, "thinker"), seed, list(THINKING)[seed % 3], thinks=True)


@pytest.mark.long
@pytest.mark.parametrize("mode", list(THINKING))
def test_instances_of_five_hundred_generated_schemas(mode, client):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: check_schema(asker(client, "thinker"), seed, mode, thinks=True), range(500)))


@pytest.mark.parametrize("mode", list(THINKING))
def test_a_required_tool_is_called_after_the_thought(mode, client):
    asked: dict[str, Any] = {"model": "thinker", "messages": SUM, "tools": TOOLS, "temperature": 0, "max_tokens": 800, "extra_body": THINKING[mode]}
    for choice, names in (("required", {"calculator", "get_weather"}), ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"})):
        whole = client.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False).choices[0]
        (call,) = whole.message.tool_calls
        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None) and call.function.name in names
        tool = next(tool for tool in TOOLS if tool["function"]["name"] == call.function.name)
        jsonschema.validate(json.loads(call.function.arguments), tool["function"]["parameters"])
        assert bool(getattr(whole.message, "reasoning", None)) == (mode != "off")
        chunks = list(client.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False, stream=True))
        deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
        assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
        assert [delta.function.name for delta in deltas if delta.function.name] == [call.function.name]
        assert not any(chunk.choices[0].delta.content for chunk in chunks) and chunks[-1].choices[0].finish_reason == "tool_calls"


def test_of_tools_that_the_model_knows_only_allowed_ones_are_called(client, service):
    def only(*names: str, mode: str = "required") -> dict[str, Any]:
        return {"mode": mode, "tools": [{"type": "function", "function": {"name": name}} for name in names]}

    asked: dict[str, Any] = {"model": "thinker", "messages": SUM, "tools": TOOLS, "temperature": 0, "max_tokens": 800, "extra_body": THINKING["off"]}
    for name in ("calculator", "get_weather"):
        choice: Any = {"type": "allowed_tools", "allowed_tools": only(name)}
        answer = client.chat.completions.create(**asked, tool_choice=choice)
        assert {call.function.name for call in answer.choices[0].message.tool_calls} == {name}
        flat: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
        response = client.responses.create(
            model="thinker", input=SUM, tools=flat, max_output_tokens=800, extra_body=THINKING["off"],
            tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": name}]},
        )  # fmt: skip
        assert {item.name for item in response.output if item.type == "function_call"} == {name}
    # The prompt is the one with all of them: what is cached of it stays good.
    prompts = [
        client.chat.completions.create(**asked, tool_choice=choice).usage.prompt_tokens
        for choice in ("auto", {"type": "allowed_tools", "allowed_tools": only("get_weather", mode="auto")})
    ]
    assert prompts[0] == prompts[1]


def test_other_forms_under_the_names_that_clients_use(client):
    def ask(**body: Any) -> str:
        answer = client.chat.completions.create(model="thinker", messages=SUM, max_tokens=300, extra_body={"enable_thinking": False} | body)
        return str(answer.choices[0].message.content)

    choices = ["yes", "no", "maybe (50%) a/b [x]\n- ~&#"]
    for body in ({"guided_choice": choices}, {"structured_outputs": {"choice": choices}}, {"guided_choice": choices[2:]}):
        assert ask(**body) in choices
    for body in ({"guided_regex": "[ab]{3}/[0-9]"}, {"structured_outputs": {"regex": "[ab]{3}/[0-9]"}}, {"regex": r"[ab]{3}\/[0-9]"}):
        assert re.fullmatch("[ab]{3}/[0-9]", ask(**body))
    lark = 'start: NUMBER ("+" NUMBER)~2\nNUMBER: /[0-9]{1,3}/'
    for body in ({"guided_grammar": lark}, {"structured_outputs": {"grammar": lark}}):
        assert re.fullmatch(r"[0-9]{1,3}(\+[0-9]{1,3}){2}", ask(**body))
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    for body in ({"guided_json": schema}, {"guided_json": json.dumps(schema)}, {"structured_outputs": {"json": schema}}):
        jsonschema.validate(json.loads(ask(**body)), schema)
    text = client.completions.create(model="thinker", prompt="3 + 4 =", max_tokens=50, extra_body={"guided_regex": " [0-9]{5}"}).choices[0].text
    assert re.fullmatch(" [0-9]{5}", text)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"response_format": as_format({"type": "object", "not": {}})}, "not"),
        ({"response_format": as_format({"$ref": "http://localhost/schema"})}, "response_format"),
        ({"response_format": as_format({"type": "string", "pattern": "(?=a)b"})}, "cannot be honoured"),
        ({"response_format": as_format({"enum": ["x" * 1000] * 2000})}, "at most"),
        ({"extra_body": {"guided_regex": "("}}, "cannot be honoured"),
        ({"extra_body": {"guided_regex": "a{1000000}"}}, "cannot be honoured"),
        ({"extra_body": {"guided_regex": "a" * 40_000}}, "regex"),
        ({"extra_body": {"guided_grammar": "start: nothing"}}, "nothing"),
        ({"extra_body": {"guided_choice": ["a"]}, "response_format": {"type": "json_object"}}, "one form"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}], "tool_choice": "required"}, "no object"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}], "tool_choice": "required"}, "not"),
    ],
)
def test_a_form_that_cannot_be_honoured_is_a_400_in_a_stream_too(fields, why, client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=why):
            client.chat.completions.create(model="thinker", messages=SUM, max_tokens=50, stream=stream, **fields)


def test_an_error_about_a_form_names_the_field_that_asked_for_it(client, service):
    huge = {"enum": ["x" * 1000] * 2000}
    asks: dict[str, tuple[str, dict[str, Any]]] = {
        "guided_json": ("chat/completions", {"messages": SUM, "guided_json": huge}),
        "guided_choice": ("chat/completions", {"messages": SUM, "guided_choice": ["x" * 1000] * 2000}),
        "structured_outputs": ("completions", {"prompt": "x", "structured_outputs": {"json": huge}}),
        "text.format": ("responses", {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": huge}}}),
        "output_config.format": (
            "messages",
            {"max_tokens": 9, "messages": SUM, "output_config": {"format": {"type": "json_schema", "schema": huge}}},
        ),
    }
    for field, (path, body) in asks.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.post(f"/{path}", body={"model": "thinker", **body}, cast_to=object)
        assert field in caught.value.message and caught.value.param in (field, None)


def test_a_tool_that_nobody_can_guarantee_is_called_all_the_same(client):
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}, "not": {}}
    tool: Any = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    choice = client.chat.completions.create(
        model="thinker",
        messages=SUM,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
        seed=1,
        extra_body=THINKING["off"],
    ).choices[0]
    assert choice.message.tool_calls[0].function.name == "odd"


def test_an_answer_whose_tokens_run_out_says_so(client):
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 200}}, "required": ["text"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="thinker", messages=SUM, response_format=as_format(schema), max_tokens=40, extra_body=THINKING["off"], logprobs=True
    )
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 40
    assert answer.choices[0].message.content.startswith('{"text": "')


def test_many_hard_schemas_at_once_hold_no_stream_up(service):
    """Attack 18: distinct schemas, some of them huge, beside an answer that streams."""

    async def attack() -> tuple[list[float], list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            asked: Any = {"model": "thinker", "messages": SUM, "extra_body": {"enable_thinking": False, "ignore_eos": True}}
            stream = await client.chat.completions.create(**asked, max_tokens=600, stream=True)
            hard = [{"enum": [f"{seed} {index}" for index in range(4000 * (seed % 5))] or ["x"]} for seed in range(40)]
            others = [
                asyncio.ensure_future(
                    client.chat.completions.create(
                        model="thinker", messages=SUM, response_format=as_format({"type": "object", "properties": {"a": schema}}), max_tokens=20
                    )
                )
                for schema in hard
            ]
            gaps, last = [], time.monotonic()
            async for _ in stream:
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
            return gaps, await asyncio.gather(*others, return_exceptions=True)

    gaps, answers = asyncio.run(attack())
    assert all(isinstance(answer, openai.BadRequestError) or answer.choices for answer in answers), answers
    gaps.sort()
    assert gaps[len(gaps) // 2] < 0.2


REAL = "qwen2.5-coder-1.5b"


@pytest.fixture(scope="module")
def real(real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path = real_model(REAL)
    chat = open_chat(path)
    engine = WorkerEngine(EngineOptions(model=str(path), num_pages=256, tokens=chat.tokenizer.table()))
    with LocalLLM(engine, chat, REAL) as llm, Service(llm, Settings(port=0, state_dir=tmp_path_factory.mktemp("state"))) as service:
        llm.wait_ready(120)
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            yield client


WEATHER_AND_TIME: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": text,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
        },
    }
    for name, text in (("get_weather", "The weather of a city now."), ("get_time", "The time of day in a city."))
]


@pytest.mark.weights
def test_two_parallel_tools_round_trip_on_real_weights(real):
    messages: Any = [
        {"role": "user", "content": "What is the weather in Paris, and what is the weather in Oslo? Call get_weather once for each city."}
    ]
    asked: dict[str, Any] = {"model": REAL, "temperature": 0, "max_tokens": 60, "tools": WEATHER_AND_TIME}
    first = real.chat.completions.create(**asked, messages=messages, tool_choice="required").choices[0].message
    calls = first.tool_calls[:2]
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Oslo"]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": text}
        for call, text in zip(calls, ("18 degrees, sunny", "-3 degrees, snow"), strict=True)
    ]
    history = [*messages, {"role": "assistant", "content": None, "tool_calls": [call.model_dump() for call in calls]}, *results]
    last = real.chat.completions.create(**asked, messages=history, tool_choice="none").choices[0]
    assert "18" in last.message.content and "3" in last.message.content and last.message.tool_calls is None
    named = real.chat.completions.create(**asked, messages=messages, tool_choice={"type": "function", "function": {"name": "get_time"}}).choices[0]
    assert named.finish_reason == "tool_calls" and [call.function.name for call in named.message.tool_calls] == ["get_time"]
    chunks = list(real.chat.completions.create(**asked, messages=messages, tool_choice="required", parallel_tool_calls=False, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"city": "Paris"} and deltas[0].function.name == "get_weather"


@pytest.mark.weights
def test_a_call_that_a_model_begins_by_itself_is_kept_in_form(real):
    opening = open_id(real)
    choice = real.chat.completions.create(
        model=REAL, messages=[{"role": "user", "content": "Is it raining in Rome?"}], tools=WEATHER_AND_TIME, parallel_tool_calls=False,
        temperature=1, seed=3, max_tokens=60, logit_bias={str(opening): 100},
    ).choices[0]  # fmt: skip
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and set(json.loads(call.function.arguments)) == {"city"}


def open_id(client: openai.OpenAI) -> int:
    answer = client.post("/../tokenize", body={"prompt": "<tool_call>"}, cast_to=object)
    assert isinstance(answer, dict)
    return int(answer["tokens"][0])


@pytest.mark.weights
def test_instances_of_generated_schemas_on_real_weights(real):
    for seed in range(6):
        check_schema(asker(real, REAL), seed, list(THINKING)[seed % 3], thinks=False)


@pytest.mark.weights
@pytest.mark.long
def test_instances_of_five_hundred_generated_schemas_on_real_weights(real):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: check_schema(asker(real, REAL), seed, list(THINKING)[seed % 3], thinks=False), range(500)))
