"""What OpenAI's two generation dialects share: the sampling fields with their bounds, and what becomes of a field that we do not honour."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qwenbox.errors import RequestError
from qwenbox.types import Event, RequestParams, TextLogprob, Usage

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_IDS = 64
MAX_NAME = 256
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
MAX_PRIORITY = 1000
INT32 = 2**31 - 1

TokenCount = Annotated[int, Field(ge=1, le=INT32)]
TokenId = Annotated[int, Field(ge=0, le=INT32)]


@dataclass(frozen=True, slots=True)
class FieldRow:
    """What becomes of a field. "refused" holds for values that `harmless` does not let through, with `note` as the reason."""

    treatment: Literal["honoured", "no effect", "refused"]
    note: str = ""
    harmless: Callable[[Any], bool] = lambda value: value in ([], {}, "", False)


HONOURED = FieldRow("honoured")
NO_EFFECT = FieldRow("no effect")


def refused(note: str, harmless: Callable[[Any], bool] | None = None) -> FieldRow:
    return FieldRow("refused", note) if harmless is None else FieldRow("refused", note, harmless)


SHARED_FIELDS: Mapping[str, FieldRow] = {
    **dict.fromkeys(
        (
            "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
            "logit_bias", "n", "seed", "stop", "stop_token_ids", "min_tokens", "ignore_eos", "stream", "stream_options", "logprobs", "cache_salt",
            "user", "weight", "priority", "timings", "keep_alive",
        ),
        HONOURED,
    ),
    **dict.fromkeys(
        ("metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"), NO_EFFECT
    ),
    **dict.fromkeys(
        ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex"),
        refused("use this dialect's own field for a form of the answer"),
    ),
    **dict.fromkeys(
        ("ebnf", "grammar"),
        refused("write the grammar in Lark, as `guided_grammar` of /v1/chat/completions"),
    ),
    "logits_processors": refused("code in requests is not supported"),
    "custom_logit_processor": refused("code in requests is not supported"),
    "use_beam_search": refused("beam search is not supported"),
    "prompt_logprobs": refused("use `echo` with `logprobs` of /v1/completions"),
    "skip_special_tokens": refused("special tokens are never shown", lambda value: value is True),
}  # fmt: skip


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?|-?([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+")


def seconds(duration: str) -> float:
    """Seconds of a duration as Ollama writes it: `30s`, `5m`, `1h30m`, `-1`; without a unit they are seconds. ValueError for another text."""
    if not _DURATION.fullmatch(duration):
        raise ValueError("a duration is a number of seconds, or a text like 30s, 5m or 1h30m")
    total = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|[smh]|)", duration))
    return -total if duration.startswith("-") else total


def checked_stops(stops: list[str] | None) -> list[str] | None:
    """ValueError for stop strings that are empty or too long."""
    if stops is not None and not all(1 <= len(text.encode()) <= MAX_STOP_BYTES for text in stops):
        raise ValueError(f"a stop string has 1 to {MAX_STOP_BYTES} bytes")
    return stops


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(BaseModel):
    """The fields of both dialects. Numbers are numbers: neither "1" nor true is one, and NaN and infinity never are."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=512)] | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32)] | None = None
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    user: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    weight: Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] | None = None
    timings: bool | None = None
    keep_alive: float | Annotated[str, Field(max_length=32)] | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _bounded_stops(cls, stop: str | list[str] | None) -> list[str] | None:
        return checked_stops([stop] if isinstance(stop, str) else stop)

    @field_validator("keep_alive")
    @classmethod
    def _seconds(cls, value: float | str | None) -> float | None:
        return seconds(value) if isinstance(value, str) else value

    @field_validator("logit_bias")
    @classmethod
    def _token_keys(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias is not None and not all(re.fullmatch(r"[0-9]{1,9}", key) for key in bias):
            raise ValueError("the keys are token ids")
        return bias

    def params(self, **more: Any) -> RequestParams:
        """The shared fields as our noun; `more` are the fields that the dialect adds or names differently."""
        plain = {
            name: getattr(self, name)
            for name in ("max_tokens", "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed")
        }
        return RequestParams(
            **plain
            | {
                "top_k": self.top_k if self.top_k is None else max(self.top_k, 0),
                "logit_bias": {int(key): value for key, value in (self.logit_bias or {}).items()},
                "n": self.n or 1,
                "stop": tuple(self.stop or ()),
                "stop_ids": tuple(self.stop_token_ids or ()),
                "min_tokens": self.min_tokens or 0,
                "ignore_eos": bool(self.ignore_eos),
                "cache_salt": self.cache_salt or "",
                "user": self.user or "",
                "weight": self.weight or 1.0,
                "priority": self.priority or 0,
            }
            | more
        )

    @property
    def kept_seconds(self) -> float | None:
        """`keep_alive` in seconds."""
        return None if self.keep_alive is None else float(self.keep_alive)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def counts_on(self) -> bool:
        """Whether every chunk says how many tokens there are so far."""
        return bool(self.include_usage and self.stream_options and self.stream_options.continuous_usage_stats)


def sort_fields(body: Mapping[str, Any], rows: Mapping[str, FieldRow], stream_options: Collection[str] = ("include_usage",)) -> tuple[str, ...]:
    """Names of the fields in `body` that have no effect, unknown ones among them; a refused one raises RequestError. null means absent."""
    without_effect = []
    for name, value in body.items():
        row = rows.get(name, NO_EFFECT)
        if value is None or row.treatment == "honoured":
            continue
        if row.treatment == "refused" and not row.harmless(value):
            raise RequestError(f"{name}: {row.note}.", param=name, code="unsupported_parameter")
        if row.treatment == "no effect":
            without_effect.append(name)
    if isinstance(options := body.get("stream_options"), Mapping):
        without_effect += [f"stream_options.{name}" for name in options if name not in stream_options]
    return tuple(without_effect)


@dataclass(slots=True)
class UsageSum:
    """Usage of a response: each prompt once, every choice's tokens."""

    choices_per_prompt: int = 1
    usages: dict[int, Usage] = field(default_factory=dict)

    def add(self, index: int, usage: Usage | None) -> None:
        if usage is not None:
            self.usages[index] = usage

    def body(self) -> dict[str, Any]:
        first = [usage for index, usage in self.usages.items() if index % self.choices_per_prompt == 0]
        prompt = sum(usage.prompt_tokens for usage in first)
        completion = sum(usage.completion_tokens for usage in self.usages.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in first)},
            "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in self.usages.values())},
        }


def timings_body(event: Event) -> dict[str, float]:
    """Where the time of an answer went, of its last event: seconds in the queue, on the prompt and on the answer; prompt tokens that were cached."""
    seconds = {name: round(value, 6) for name, value in (event.timings or {}).items()}
    return seconds | {"cached": event.usage.cached_tokens if event.usage else 0}


def finish_reason(event: Event) -> str | None:
    """OpenAI's word for how an answer ended: it has none for one that was cancelled."""
    return "stop" if event.finish_reason == "cancelled" else event.finish_reason


def finite(logprob: float) -> float:
    """OpenAI's number for a token that cannot be: JSON has no infinity."""
    return max(logprob, -9999.0)


def chat_logprob(token: TextLogprob) -> dict[str, Any]:
    return {"token": token.token, "bytes": list(token.bytes), "logprob": finite(token.logprob)}
