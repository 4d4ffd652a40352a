"""Whatever a client sends: a clear error of the right kind, no crash, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.pace import least_seconds

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
HELLO = [{"role": "user", "content": "Hi"}]
SECRET = "my-secret-prompt"


@pytest.fixture(scope="module")
def http(shared: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=shared.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_lost(shared: Any, http: httpx2.Client) -> Iterator[None]:
    yield
    shared.engine.wait_for(lambda engine: engine.num_running == 0)
    assert http.get("/health").status_code == 200
    assert http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 2}).json()["choices"][0]["text"] == "He"


def refusal(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    error: dict[str, Any] = body["error"]
    anthropics = response.request.url.path.startswith(MESSAGES)
    assert set(error) == ({"message", "type"} if anthropics else {"message", "type", "param", "code"})
    assert set(body) == ({"type", "error", "request_id"} if anthropics else {"error"})
    assert SECRET not in response.text
    return error


NUMBERS = {
    "max_tokens": (0, -1, 2**31, 2**63, 2**64, 1.5, "1", True, [], {}),
    "temperature": (-0.1, 2.1, 2**63, "1", True, [], {}),
    "top_p": (-0.1, 0, 1.1, 2**63, "1", True, []),
    "top_k": (-2, 2**31, 2**63, 0.5, "1", True, []),
    "min_p": (-0.1, 1.1, "1", True, []),
    "presence_penalty": (-2.1, 2.1, 2**63, "1", True, []),
    "frequency_penalty": (-2.1, 2.1, 2**63, "1", True, []),
    "repetition_penalty": (0, -1, 1e-9, 1e9, 2**63, "1", True, []),
    "n": (0, -1, 9, 2**63, 1.5, "1", True, []),
    "seed": (2**63, -(2**63) - 1, 2**64, 0.5, "1", True, []),
    "min_tokens": (-1, 2**31, 2**63, 0.5, "1", True, []),
    "stop": (1, True, {}, "", [""], ["x"] * 17, "x" * 257, ["é" * 129], [1], [["x"]]),
    "stop_token_ids": (1, "1", [-1], [2**31], [2**63], [1.5], [True], ["1"], [1] * 65),
    "logit_bias": (1, [], {"a": 1}, {"-1": 1}, {"1": 101}, {"1": "1"}, {"1" * 10: 1}, {str(k): 1 for k in range(1025)}),
    "ignore_eos": (1, "true", []),
    "stream": (1, "true", []),
    "stream_options": (1, "x", [], {"include_usage": 1}),
    "model": (1, True, [], {}, "m" * 513),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NUMBERS.items() for value in values], ids=lambda value: repr(value)[:30]
)
def test_a_value_out_of_bounds_is_refused_by_name(http, name, value):
    for path, body in ((CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": SECRET})):
        param = refusal(http.post(path, json=body | {name: value}))["param"]
        assert param is not None
        assert param.split(".")[0] == name
    if name not in ("n", "stop"):  # they have no such fields
        assert refusal(http.post(RESPONSES, json={"input": SECRET, name: value}))["param"].split(".")[0] == name
    if name not in ("n", "stop", "stream_options"):
        assert refusal(http.post(MESSAGES, json={"messages": HELLO, "max_tokens": 5, name: value}))["message"].startswith(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", None), ("messages", []), ("messages", "Hi"), ("messages", [1]), ("messages", [{}]), ("messages", HELLO * 4097),
        ("messages", [{"role": "wizard", "content": "x"}]), ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": 5}]), ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"function": {}}]}]),
        ("max_completion_tokens", 0), ("max_completion_tokens", 2**63), ("top_logprobs", 21), ("top_logprobs", 5), ("top_logprobs", 10**6),
        ("logprobs", 1), ("tools", "x"), ("tools", [{}]), ("tools", [{"type": "function", "function": {"name": "f"}}] * 129),
        ("tools", [{"type": "function", "function": {"name": ""}}]), ("tools", [{"type": "function", "function": {"name": "f", "parameters": 1}}]),
        ("tool_choice", "required"), ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("response_format", {"type": "xml"}), ("response_format", {"type": "json_schema", "json_schema": {}}), ("structured_outputs", {"xml": "x"}),
        ("guided_json", "{"), ("guided_choice", [1]), ("guided_regex", ["x"]), ("grammar", "root ::= x"),
        ("modalities", ["audio"]), ("audio", {"voice": "x"}), ("functions", [{"name": "f"}]), ("function_call", {"name": "f"}),
        ("web_search_options", {"x": 1}), ("thinking_budget", -2), ("reasoning", {"max_tokens": "1"}),
        ("skip_special_tokens", False), ("echo", True),
        ("chat_template_kwargs", {"tokenize": False}), ("chat_template_kwargs", {"enable_thinking": "yes"}), ("chat_template_kwargs", [1]),
        ("chat_template_kwargs", {"messages": []}), ("enable_thinking", "no"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_a_chat_cannot_honour_is_refused_by_name(http, name, value):
    error = refusal(http.post(CHAT, json={"messages": HELLO} | {name: value}))
    assert error["param"].split(".")[0] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", None), ("prompt", []), ("prompt", [[]]), ("prompt", ""), ("prompt", 5), ("prompt", [-1]), ("prompt", [10**6]), ("prompt", [2**63]),
        ("prompt", [1.5]), ("prompt", ["a", 1]), ("prompt", [[1], "a"]), ("prompt", [True]), ("prompt", ["a"] * 65), ("prompt", {"a": 1}),
        ("logprobs", 21), ("logprobs", -1), ("logprobs", True), ("best_of", 2), ("best_of", 0), ("suffix", "x"), ("echo", 1),
        ("response_format", {"type": "xml"}), ("prompt_logprobs", 1), ("use_beam_search", True),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_a_completion_cannot_honour_is_refused_by_name(http, name, value):
    error = refusal(http.post(COMPLETIONS, json={"prompt": "x"} | {name: value}))
    assert error["param"].split(".")[0] == name


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nope", b"[]", b"1", b'"x"', b"null", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}",
        b'{"prompt": "\\ud800"}', b'{"prompt": "\xed\xa0\x80"}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"prompt": "x", "a": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"prompt": "x", "n": 1e999}',
        b'{"prompt": "x", "max_tokens": ' + b"9" * 400 + b"}", b'{"prompt": "x", "temperature": NaN}', b'{"prompt": "x", "temperature": -Infinity}',
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_json_that_is_none_is_refused_at_once(http, body):
    for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT, "/tokenize", "/detokenize"):
        assert least_seconds(lambda path=path: refusal(http.post(path, content=body)), 1.0) < 1.0


def test_a_number_that_is_none_is_named(http):
    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"prompt": "x", "temperature": {text}}}'
        assert refusal(http.post(COMPLETIONS, content=body))["param"] == "temperature"


def test_a_million_keys_and_a_hundred_thousand_messages_are_refused_quickly(http):
    keys = json.dumps({f"k{index}": index for index in range(400_000)})
    messages = json.dumps({"messages": HELLO * 100_000})
    for path, body in ((COMPLETIONS, keys), (CHAT, messages)):
        assert least_seconds(lambda path=path, body=body: refusal(http.post(path, content=body)), 2.0) < 2.0


def test_errors_do_not_repeat_what_was_sent(http):
    for body in ({"messages": [{"role": SECRET, "content": SECRET}]}, {"messages": HELLO, "temperature": SECRET}, {"messages": SECRET}):
        refusal(http.post(CHAT, json=body))
    refusal(http.post(COMPLETIONS, content=f'{{"prompt": "{SECRET}"'))


def test_ten_megabytes_are_refused(http):
    error = refusal(http.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 10_000_000}]}), 413)
    assert "8388608" in error["message"]


def test_ten_megabytes_without_a_length_are_refused(http):
    def pieces() -> Iterator[bytes]:
        for _ in range(160):
            yield b" " * 65536

    refusal(http.post(CHAT, content=pieces()), 413)


def test_compressed_bodies_are_refused(http):
    refusal(http.post(CHAT, content=b"\x1f\x8b", headers={"content-encoding": "gzip"}), 415)


def test_an_unknown_path_and_a_wrong_method_are_told_apart(http):
    assert refusal(http.get("/v1/nothing"), 404)["type"] == "not_found_error"
    for path in ("//v1/models", "/v1/models/", "/v1/../v1/nothing"):
        refusal(http.get(path), 404)
    wrong = http.get(CHAT)
    refusal(wrong, 405)
    assert wrong.headers["allow"] == "POST"
    refusal(http.delete("/v1/models"), 405)


def test_an_unknown_model_is_not_found(http):
    error = refusal(http.post(COMPLETIONS, json={"model": SECRET, "prompt": "x"}), 404)
    assert "tiny" in error["message"]


def test_no_content_type_and_no_model_are_needed(http):
    response = http.post(COMPLETIONS, content=b'{"prompt": "Once", "max_tokens": 5, "temperature": 0.7}')
    assert response.json()["choices"][0]["text"] == "Hello"


def test_the_least_and_the_most_that_is_allowed_is_honoured(http):
    for fields in (
        {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "n": 1, "seed": -(2**63), "logit_bias": {}, "stop": []},
        {
            "temperature": 2,
            "top_p": 1e-6,
            "top_k": 2**31 - 1,
            "min_p": 1,
            "n": 8,
            "seed": 2**63 - 1,
            "stop": ["é" * 128] * 16,
            "max_tokens": 2**31 - 1,
        },
    ):
        assert http.post(CHAT, json={"messages": HELLO} | fields).status_code == 200


def test_evaluation_tools_are_told_the_tokens_that_end_a_text(http):
    info = http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["eos_token_id"], info["bos_token"]) == ("<|endoftext|>", 256, None)
    assert "<|im_start|>" in info["chat_template"]


def test_tokenize_and_detokenize_are_inverse(http):
    ids = http.post("/tokenize", json={"prompt": "héllo<|im_end|>", "add_special_tokens": True}).json()["tokens"]
    assert ids == [*"héllo".encode(), 258]
    assert http.post("/detokenize", json={"tokens": ids}).json()["prompt"] == "héllo<|im_end|>"
    chat = http.post("/tokenize", json={"messages": HELLO}).json()
    assert chat["count"] == len(chat["tokens"]) > 2
    for body in ({"tokens": [-1]}, {"tokens": [10**9]}, {"tokens": ["1"]}, {"tokens": 1}, {}):
        refusal(http.post("/detokenize", json=body))
    for body in ({}, {"prompt": "x", "messages": HELLO}, {"prompt": 1}):
        refusal(http.post("/tokenize", json=body))
