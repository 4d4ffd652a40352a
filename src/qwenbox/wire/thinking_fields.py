"""Every spelling in which clients say whether, and how long, a model shall think: read from a request's body into votes, the strongest first.

| rank | fields | from |
|---|---|---|
| 1 | `enable_thinking`; `thinking_budget`, `thinking_token_budget`, `custom_params.thinking_budget`; `thinking_seconds` | DashScope, vLLM, SGLang |
| 2 | `chat_template_kwargs.enable_thinking`, `.thinking`, `.thinking_budget` | vLLM, SGLang, llama.cpp |
| 3 | `thinking`: true, false, "auto", {type, budget_tokens} | Anthropic |
| 4 | `think`: true, false, "auto", an effort | Ollama |
| 5 | `reasoning_effort`; `reasoning`: {enabled, effort, max_tokens}; `output_config.effort` | OpenAI, OpenRouter, Anthropic |

A budget of 0 is "off". Several at once are no error: `chat/thinking.py` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from qwenbox.chat.thinking import vote_of
from qwenbox.errors import RequestError
from qwenbox.types import ThinkingVote


class ThinkingFields(BaseModel):
    """The fields of a body that are read here, at least in part. Each has several types: `thinking_votes` looks at them."""

    enable_thinking: Any = None
    thinking_budget: Any = None
    thinking_token_budget: Any = None
    custom_params: Any = None
    thinking_seconds: Any = None
    chat_template_kwargs: Any = None
    thinking: Any = None
    think: Any = None
    reasoning_effort: Any = None
    reasoning: Any = None
    output_config: Any = None


TEMPLATE_FIELDS = ("enable_thinking", "thinking", "thinking_budget")
"""Those of `chat_template_kwargs`."""

EFFORTS: Mapping[str, int | None] = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096, "high": 16384, "xhigh": None, "max": None}
"""Words for how hard to think, as tokens; None: as long as the model likes."""

MAX_BUDGET = 2**31 - 1
MAX_SECONDS = 86400.0

_TYPES: Mapping[str, Literal["on", "off", "auto"]] = {
    "enabled": "on",
    "disabled": "off",
    "adaptive": "auto",
    "auto": "auto",
    "between_tools": "on",
    "on": "on",
    "off": "off",
}


def thinking_votes(body: Mapping[str, Any]) -> tuple[ThinkingVote, ...]:
    """Raises RequestError, with the field's name as `param`, for a value that none of these fields has anywhere."""
    return tuple(_votes(body))


def _votes(body: Mapping[str, Any]) -> Iterator[ThinkingVote]:
    yield from _switch("enable_thinking", body.get("enable_thinking"))
    yield from _budget("thinking_budget", body.get("thinking_budget"))
    yield from _budget("thinking_token_budget", body.get("thinking_token_budget"))
    yield from _budget("custom_params.thinking_budget", _object(body, "custom_params").get("thinking_budget"))
    yield from _seconds("thinking_seconds", body.get("thinking_seconds"))
    template = _object(body, "chat_template_kwargs")
    if unknown := sorted(set(template) - set(TEMPLATE_FIELDS)):
        param = f"chat_template_kwargs.{unknown[0][:64]}"
        raise RequestError(f"{param}: there is only {', '.join(TEMPLATE_FIELDS)}.", param=param)
    yield from _switch("chat_template_kwargs.enable_thinking", template.get("enable_thinking"))
    yield from _switch("chat_template_kwargs.thinking", template.get("thinking"))
    yield from _budget("chat_template_kwargs.thinking_budget", template.get("thinking_budget"))
    yield from _thinking(body.get("thinking"))
    think = body.get("think")
    yield from _effort("think", think) if isinstance(think, str) and think in EFFORTS else _switch("think", think)
    yield from _effort("reasoning_effort", body.get("reasoning_effort"))
    reasoning = _object(body, "reasoning")
    yield from _switch("reasoning.enabled", reasoning.get("enabled"))
    yield from _budget("reasoning.max_tokens", reasoning.get("max_tokens"))
    yield from _effort("reasoning.effort", reasoning.get("effort"))
    yield from _effort("output_config.effort", _object(body, "output_config").get("effort"), switches=False)


def _switch(name: str, value: Any) -> Iterator[ThinkingVote]:
    if isinstance(value, bool):
        yield vote_of(name, value)
    elif isinstance(value, str) and value in _TYPES:
        yield vote_of(name, _TYPES[value])
    elif value is not None:
        raise _wrong(name, 'true, false or "auto"')


def _budget(name: str, value: Any) -> Iterator[ThinkingVote]:
    """-1 is how some say "as long as it likes"."""
    if value is None or value == -1:
        return
    if type(value) is not int or not 0 <= value <= MAX_BUDGET:
        raise _wrong(name, f"a whole number from 0 to {MAX_BUDGET}")
    yield vote_of(name, value)


def _seconds(name: str, value: Any) -> Iterator[ThinkingVote]:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
        raise _wrong(name, f"a number from 0 to {MAX_SECONDS:g}")
    yield ThinkingVote(name, None, seconds=float(value)) if value else ThinkingVote(name, "off")


def _thinking(value: Any) -> Iterator[ThinkingVote]:
    if not isinstance(value, Mapping):
        yield from _switch("thinking", value)
        return
    kind = value.get("type")
    if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
        raise _wrong("thinking.type", f"one of {', '.join(_TYPES)}")
    budgets = list(_budget("thinking.budget_tokens", value.get("budget_tokens")))
    if kind is None:
        yield from budgets
    else:
        yield ThinkingVote("thinking", _TYPES[kind], budgets[0].budget if budgets else None)


def _effort(name: str, value: Any, *, switches: bool = True) -> Iterator[ThinkingVote]:
    """`switches`: who names an effort wants thinking. Otherwise it only says how long, if at all."""
    if value is None:
        return
    if not isinstance(value, str) or value not in EFFORTS:
        raise _wrong(name, f"one of {', '.join(EFFORTS)}")
    budget = EFFORTS[value]
    mode: Literal["on", "off"] | None = "off" if budget == 0 else "on" if switches else None
    yield ThinkingVote(name, mode, budget or None)


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise _wrong(name, "an object")
    return value or {}


def _wrong(name: str, what: str) -> RequestError:
    return RequestError(f"{name}: must be {what}.", param=name)
