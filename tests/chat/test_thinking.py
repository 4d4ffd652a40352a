"""One decision about thinking, whatever the client writes and whatever the model is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from qwenbox.chat.depth import DepthChoice
from qwenbox.chat.template import ChatTemplate, template_for
from qwenbox.chat.thinking import decide, nature_of, text_switch
from qwenbox.types import Message, ThinkingVote
from tests.fakes import byte_tokenizer

ASK = (Message("user", "How many?"),)
SILENT = ThinkingVote("service")


def decision(*votes: ThinkingVote, nature: Any = "hybrid", messages: Any = ASK, default: ThinkingVote = SILENT, max_tokens: int = 1000) -> Any:
    return decide(nature, messages, (), votes, default, max_tokens, depth=lambda *_: DepthChoice("short", ("sum", "figures")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+2 /no_think", False), ("/no_think 2+2", False), ("2+2 /think\n", True), ("  /think", True), ("/no_think", False),
        ("why is /no_think written here?", None), ("2+2/no_think", None), ("/no_thinking", None), ("x" * 10000 + " /no_think", False),
        ("/think a\n/no_think", False), ("", None), ("a /think.", None), ("\n/no_think\nHello", False),
    ],
)  # fmt: skip
def test_a_switch_is_a_whole_word_at_either_end_of_a_message(text, expected):
    assert text_switch([Message("user", text)]) is expected
    assert text_switch([Message("system", text), Message("user", "Hello")]) is expected


def test_only_people_switch_and_the_last_one_counts():
    assert text_switch([Message("user", "a /no_think"), Message("assistant", "b /think"), Message("tool", "c /think")]) is False
    assert text_switch([Message("user", "a /no_think"), Message("assistant", "b"), Message("user", "c /think")]) is True
    assert text_switch([Message("user", "<tool_response>\nx\n</tool_response> /no_think")]) is None


RANKED = [
    ThinkingVote("enable_thinking", "on"), ThinkingVote("thinking_budget", "off"), ThinkingVote("chat_template_kwargs.enable_thinking", "on"),
    ThinkingVote("thinking", "off"), ThinkingVote("think", "auto"), ThinkingVote("reasoning_effort", "on", 1024),
]  # fmt: skip


def test_the_strongest_voice_decides_and_those_who_say_otherwise_are_named():
    for size in range(1, len(RANKED) + 1):
        for votes in itertools.combinations(RANKED, size):
            made = decision(*votes, messages=(Message("user", "x /no_think"),), default=ThinkingVote("service", "off"))
            assert made.source == votes[0].source
            assert made.on == (votes[0].mode != "off")
            assert set(made.overruled) == {
                vote.source for vote in (*votes, ThinkingVote("/no_think", "off"), ThinkingVote("service", "off")) if vote.mode != votes[0].mode
            }


def test_text_is_stronger_than_the_service_and_the_service_than_the_model():
    off = ThinkingVote("service", "off")
    assert decision(messages=(Message("user", "x /think"),), default=off).source == "/think"
    assert decision(default=off).source == "service"
    assert decision(default=off).on is False
    assert (decision().source, decision().on) == ("model", True)


def test_budgets_and_seconds_hold_whoever_switched():
    made = decision(ThinkingVote("enable_thinking", "on"), ThinkingVote("thinking_budget", "on", 300), default=ThinkingVote("service", None, 9, 20.0))
    assert (made.budget, made.seconds) == (300, 20.0)
    assert made.header() == "on; source=enable_thinking; budget=300; seconds=20"
    assert decision(ThinkingVote("enable_thinking", "off"), ThinkingVote("thinking_budget", "on", 300)).budget is None


def test_an_answer_that_may_have_few_tokens_is_not_thought_about():
    made = decision(ThinkingVote("enable_thinking", "on"), max_tokens=63)
    assert (made.on, made.source, made.overruled) == (False, "max_tokens", ("enable_thinking",))
    assert decision(ThinkingVote("enable_thinking", "on"), max_tokens=64).on


def test_auto_asks_how_deep_and_says_why():
    made = decision(ThinkingVote("think", "auto"), ThinkingVote("reasoning_effort", None, 100))
    assert (made.on, made.depth, made.budget, made.reason) == (True, "short", 100, "has a sum; has figures")
    assert (made.body()["reason"], made.body()["cues"]) == ("has a sum; has figures", ["sum", "figures"])
    lazy = decide("hybrid", ASK, (), [ThinkingVote("think", "auto")], SILENT, 1000, depth=lambda *_: DepthChoice("off", ("nothing",)))
    assert (lazy.on, lazy.depth, lazy.reason) == (False, "off", "nothing in it asks for thought")


def test_a_model_that_never_thinks_says_so_to_whoever_asks():
    assert not decision(nature="never").stated
    made = decision(ThinkingVote("enable_thinking", "on"), nature="never")
    assert (made.on, made.stated, made.overruled) == (False, True, ("enable_thinking",))
    assert made.reason == "This model does not think."


def test_what_a_model_is_shows_in_its_template():
    tokenizer = byte_tokenizer()
    source = {family: template_for(family, None) for family in ("qwen3", "qwen3-thinking-2507", "qwen2.5")}
    assert {family: nature_of(tokenizer, template) for family, template in source.items()} == {
        "qwen3": "hybrid", "qwen3-thinking-2507": "always", "qwen2.5": "never",
    }  # fmt: skip
    picky = ChatTemplate("{{ raise_exception('no') }}")
    assert nature_of(tokenizer, picky) == "never"
    picky.close()
