"""Tool calls in the tags of Qwen3-Coder, guaranteed: the unmodified `openai` client, the service, a worker, and models that never saw such tags."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
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
from tests.tagged import chat_in_tags
from tests.thinker import MODEL

SUM: Any = [{"role": "user", "content": "What is 3 + 4 + 5?"}]
THINKING: dict[str, dict[str, Any]] = {"on": {"thinking": "on"}, "off": {"enable_thinking": False}, "cut short": {"thinking_budget": 4}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    yield from served(MODEL, "qwen3", "thinker", tmp_path_factory.mktemp("state"))


def served(model: Path, family: str, name: str, state: Path) -> Iterator[openai.OpenAI]:
    chat = chat_in_tags(open_chat(model), family)
    engine = WorkerEngine(EngineOptions(model=str(model), num_pages=512, tokens=chat.tokenizer.table()))
    with LocalLLM(engine, chat, name) as llm, Service(llm, Settings(port=0, state_dir=state)) as service:
        llm.wait_ready(120)
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            yield client


def tool(parameters: dict[str, Any], *, strict: bool = False, name: str = "f") -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


def create(client: openai.OpenAI, tools: Any, mode: str, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "thinker", "messages": SUM, "max_tokens": 1500, "parallel_tool_calls": False, "extra_body": THINKING[mode]}
    return client.chat.completions.create(tools=tools, **asked | fields)


def ask(client: openai.OpenAI, tools: Any, mode: str, **fields: Any) -> Any:
    return create(client, tools, mode, **fields).choices[0]


def check(client: openai.OpenAI, seeds: range, modes: Sequence[str] = tuple(THINKING)) -> None:
    def one(seed: int) -> None:
        schema, mode = draw(seed), modes[seed % len(modes)]
        choice = ask(client, [tool(schema, strict=seed % 2 == 0)], mode, tool_choice="required", temperature=1, seed=seed)
        assert choice.finish_reason == "tool_calls", (seed, mode, choice)
        (call,) = choice.message.tool_calls
        jsonschema.validate(json.loads(call.function.arguments), schema)
        assert bool(getattr(choice.message, "reasoning", None)) == (mode != "off"), (seed, mode)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, seeds))


def test_arguments_are_instances_of_generated_schemas(client):
    check(client, range(18))


@pytest.mark.long
def test_arguments_are_instances_of_five_hundred_generated_schemas(client):
    check(client, range(500))


@pytest.mark.parametrize("mode", list(THINKING))
def test_a_required_or_named_tool_is_called_streamed_or_not(mode, client):
    short: Any = {"type": "string", "maxLength": 20}
    keys = {"calculator": "expression", "get_weather": "city"}
    tools = [tool({"type": "object", "properties": {key: short}, "required": [key]}, name=name) for name, key in keys.items()]
    for choice, names in (("required", {"calculator", "get_weather"}), ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"})):
        whole = ask(client, tools, mode, tool_choice=choice, temperature=0)
        (call,) = whole.message.tool_calls
        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None) and call.function.name in names
        ((key, value),) = json.loads(call.function.arguments).items()
        assert key == keys[call.function.name] and isinstance(value, str)
        chunks = list(create(client, tools, mode, tool_choice=choice, temperature=0, stream=True))
        deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
        assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
        assert not any(chunk.choices[0].delta.content for chunk in chunks) and chunks[-1].choices[0].finish_reason == "tool_calls"


def test_several_calls_in_a_row_and_a_call_that_the_model_begins_by_itself(client):
    number: Any = tool({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]})
    opening, end = (client.post("/../tokenize", body={"prompt": tag}, cast_to=object)["tokens"][0] for tag in ("<tool_call>", "<|im_end|>"))
    fields: Any = {"tool_choice": "required", "parallel_tool_calls": True, "logit_bias": {str(end): -100}}
    several = ask(client, [number], "off", **fields, max_tokens=120)
    assert len(several.message.tool_calls) > 1
    for call in several.message.tool_calls[:-1]:
        assert 0 <= json.loads(call.function.arguments)["n"] <= 99
    begun = ask(client, [number], "off", logit_bias={str(opening): 100}, max_tokens=200, seed=2)
    (call,) = begun.message.tool_calls
    assert begun.finish_reason == "tool_calls" and 0 <= json.loads(call.function.arguments)["n"] <= 99


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "enum": ["a\nb", " ", "</function>"]},
        {"type": "string", "const": '"quoted"'},
        {"const": "without a type"},
        {"type": "string", "pattern": "^[ab]{2,3}$"},
        {"type": "string", "pattern": "(x|y)[0-9]\\$", "maxLength": 9},
        {"type": "string", "minLength": 3, "maxLength": 5},
        {"type": "string", "format": "date-time"},
        {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        {"type": "array", "items": {"enum": ["</parameter>\n</function>"]}, "minItems": 1, "maxItems": 2},
        {"$ref": "#/$defs/leaf"},
        {"anyOf": [{"enum": ["x"]}, {"type": "string", "pattern": "^y+$", "maxLength": 3}]},
        {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"], "additionalProperties": False},
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_of_every_kind_come_back_as_what_they_are(schema, client):
    whole = {"type": "object", "properties": {"a": schema, "b": {"type": "boolean"}}, "required": ["a", "b"], "$defs": {"leaf": {"const": 7}}}
    for seed in range(3):
        choice = ask(client, [tool(whole, strict=True)], "off", tool_choice="required", temperature=1, seed=seed)
        jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), whole)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"type": "object", "properties": {"a>b": {"type": "string"}}}, "a>b"),
        ({"type": "object", "properties": {"a": {"type": "string", "not": {}}}}, "not"),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "iri"}}}, "iri"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "minProperties": 1}, "minProperties"),
        ({"type": "object", "properties": {"a": {"enum": ["</parameter>"]}}}, "enumeration"),
    ],
)
def test_what_the_tags_cannot_hold_is_refused_by_name_where_it_is_strict_and_called_all_the_same_elsewhere(parameters, why, client):
    with pytest.raises(openai.BadRequestError, match=why):
        ask(client, [tool(parameters, strict=True)], "off", tool_choice="required", max_tokens=50)
    choice = ask(client, [tool(parameters)], "off", tool_choice="required", max_tokens=50)
    assert choice.message.content is None or "<function=f>" in choice.message.content


@pytest.mark.weights
@pytest.mark.long
def test_real_weights_that_never_saw_the_tags_call_with_sense(real_model: Callable[[str], Path], tmp_path: Path):
    weather: Any = tool(
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "days"],
        },
        name="get_weather",
    )
    for client in served(real_model("qwen2.5-coder-1.5b"), "qwen2.5", "thinker", tmp_path):
        messages: Any = [{"role": "user", "content": "What will the weather be in Paris for the next 3 days? Use the tool."}]
        (call,) = ask(client, [weather], "off", messages=messages, tool_choice="required", temperature=0, max_tokens=100).message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert (arguments["city"], arguments["days"]) == ("Paris", 3)
        check(client, range(12), modes=("off",))
