from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from qwenbox.engine.thought import Why
from qwenbox.errors import RequestError
from qwenbox.types import ThinkingVote as Vote
from qwenbox.wire.thinking_fields import EFFORTS, ThinkingFields, thinking_votes


@pytest.mark.parametrize(
    ("body", "votes"),
    [
        ({}, ()),
        ({"enable_thinking": False}, (Vote("enable_thinking", "off"),)),
        ({"enable_thinking": "auto"}, (Vote("enable_thinking", "auto"),)),
        ({"thinking_budget": 0}, (Vote("thinking_budget", "off"),)),
        ({"thinking_budget": -1}, ()),
        ({"thinking_token_budget": 7}, (Vote("thinking_token_budget", "on", 7),)),
        ({"custom_params": {"thinking_budget": 7}}, (Vote("custom_params.thinking_budget", "on", 7),)),
        ({"thinking_seconds": 2}, (Vote("thinking_seconds", None, None, 2.0),)),
        ({"chat_template_kwargs": {"enable_thinking": True}}, (Vote("chat_template_kwargs.enable_thinking", "on"),)),
        ({"chat_template_kwargs": {"thinking": False}}, (Vote("chat_template_kwargs.thinking", "off"),)),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, (Vote("thinking", "on", 1024),)),
        ({"thinking": {"type": "disabled"}}, (Vote("thinking", "off"),)),
        ({"thinking": {"type": "adaptive"}}, (Vote("thinking", "auto"),)),
        ({"thinking": {"budget_tokens": 5}}, (Vote("thinking.budget_tokens", "on", 5),)),
        ({"think": True}, (Vote("think", "on"),)),
        ({"think": "low"}, (Vote("think", "on", 1024),)),
        ({"reasoning_effort": "none"}, (Vote("reasoning_effort", "off"),)),
        ({"reasoning_effort": "max"}, (Vote("reasoning_effort", "on"),)),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, (Vote("reasoning.effort", "on", 1024),)),
        ({"reasoning": {"enabled": False, "max_tokens": 9}}, (Vote("reasoning.enabled", "off"), Vote("reasoning.max_tokens", "on", 9))),
        ({"output_config": {"effort": "low"}}, (Vote("output_config.effort", None, 1024),)),
        ({"think": None, "thinking": None, "reasoning": None, "enable_thinking": None}, ()),
        ({"think": True, "enable_thinking": False}, (Vote("enable_thinking", "off"), Vote("think", "on"))),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_every_spelling_is_a_vote(body, votes):
    assert thinking_votes(body) == votes


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"thinking_budget": 1.5}, "thinking_budget"), ({"thinking_budget": True}, "thinking_budget"),
        ({"thinking_budget": -2}, "thinking_budget"), ({"chat_template_kwargs": {"tokenize": 1}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"), ({"thinking": {"type": "x"}}, "thinking.type"), ({"thinking": 3}, "thinking"),
        ({"think": []}, "think"), ({"reasoning_effort": "huge"}, "reasoning_effort"), ({"reasoning": 1}, "reasoning"),
        ({"thinking_seconds": float("inf")}, "thinking_seconds"), ({"thinking": {"type": {}}}, "thinking.type"),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_what_no_client_writes_is_refused_by_name(body, param):
    with pytest.raises(RequestError) as caught:
        thinking_votes(body)
    assert caught.value.param == param


def test_the_page_about_thinking_names_every_field_and_every_end() -> None:
    page = (Path(__file__).parents[2] / "docs" / "thinking.md").read_text()
    assert all(f"`{name}`" in page for name in ThinkingFields.model_fields if name not in ("reasoning", "custom_params", "output_config"))
    assert all(f"`{name}`" in page or f"`{name}." in page for name in ("reasoning", "custom_params", "output_config"))
    assert all(f"| `{why}` |" in page for why in get_args(Why))
    assert all(f"{budget:,}" in page for budget in EFFORTS.values() if budget)
