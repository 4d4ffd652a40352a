"""Vectors of texts: OpenAI's /v1/embeddings, Ollama's /api/embed and its older /api/embeddings. JSON in, our nouns, JSON out. No sockets here."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from qwenbox.chat.pooling import Vectors
from qwenbox.errors import RequestError
from qwenbox.types import FloatArray, RequestParams, Usage
from qwenbox.wire.errors import validate
from qwenbox.wire.ollama import model_names
from qwenbox.wire.openai_fields import (
    HONOURED,
    INT32,
    MAX_NAME,
    MAX_PRIORITY,
    MAX_WEIGHT,
    MIN_WEIGHT,
    NO_EFFECT,
    FieldRow,
    TokenId,
    refused,
    seconds,
    sort_fields,
)

MAX_INPUTS = 2048
"""Texts of one request, as OpenAI has it."""

_CUT = refused("a text that does not fit the window is refused, not cut; divide it")
OPENAI_FIELDS: Mapping[str, FieldRow] = {
    **dict.fromkeys(("model", "input", "encoding_format", "dimensions", "user", "weight", "priority", "cache_salt", "keep_alive"), HONOURED),
    "truncate_prompt_tokens": _CUT,
}
OLLAMA_FIELDS: Mapping[str, FieldRow] = {
    **dict.fromkeys(("model", "input", "truncate", "dimensions", "keep_alive"), HONOURED),
    "options": NO_EFFECT,  # the window is the model's, whatever `num_ctx` says
}
OLDER_FIELDS: Mapping[str, FieldRow] = {**dict.fromkeys(("model", "prompt", "keep_alive"), HONOURED), "options": NO_EFFECT}


class _Shared(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    model: Annotated[str, Field(max_length=512)] | None = None
    keep_alive: float | Annotated[str, Field(max_length=32)] | None = None

    @field_validator("keep_alive")
    @classmethod
    def _seconds(cls, value: float | str | None) -> float | None:
        return seconds(value) if isinstance(value, str) else value

    @property
    def kept_seconds(self) -> float | None:
        return None if self.keep_alive is None else float(self.keep_alive)


_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_Texts = Annotated[list[str], Field(max_length=MAX_INPUTS)]


class _OpenAIRequest(_Shared):
    input: str | _TokenIds | _Texts | Annotated[list[_TokenIds], Field(max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=INT32)] | None = None
    user: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    weight: Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_NAME)] | None = None


class _OllamaRequest(_Shared):
    input: str | _Texts | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=0, le=INT32)] | None = None


class _OlderRequest(_Shared):
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """What a request asks for: texts or token ids. Without any it only loads its model."""

    model: str | None
    inputs: tuple[str | tuple[int, ...], ...]
    params: RequestParams
    dimensions: int | None
    truncate: bool
    """A text that does not fit is cut, which the answer says; otherwise it is refused."""
    as_base64: bool
    keep_alive: float | None
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What there is to write."""

    model: str
    vectors: Sequence[bytes]
    """Each as JSON, in the order of the inputs."""
    prompt_tokens: int
    made: Vectors | None
    """How; None where nothing was asked for."""
    cut: tuple[int, ...]
    """Numbers of the inputs that were cut to the window."""
    total_seconds: float
    load_seconds: float

    def beside(self) -> dict[str, Any]:
        """With the `qwenbox` object."""
        if self.made is None:
            return {}
        body: dict[str, Any] = {"pooling": self.made.pooling, "embedding_model": self.made.stated}
        return {"qwenbox": body | {"truncated": self.cut} if self.cut else body}


class EmbeddingDialect(NamedTuple):
    fields: Mapping[str, FieldRow]
    read_request: Callable[[Mapping[str, Any]], EmbeddingCall]
    body: Callable[[Answered], dict[str, Any]]
    """Of an answer; its vectors are `orjson.Fragment`s."""
    names: Callable[[str], Sequence[str]] = lambda name: (name,)
    foreign_models: str | None = None


def read_openai(body: Mapping[str, Any]) -> EmbeddingCall:
    """Raises RequestError, with the field's name as `param`."""
    ignored = sort_fields(body, OPENAI_FIELDS)
    given = body.get("input")
    if given is None or given == []:
        raise RequestError("input: a text, token ids, or a list of either is needed.", param="input")
    if isinstance(given, list) and not isinstance(given[0], int):
        _check_count(given)
    request = validate(_OpenAIRequest, body)
    inputs: list[Any] = [request.input] if isinstance(request.input, str) or isinstance(request.input[0], int) else list(request.input)
    return EmbeddingCall(
        model=request.model or None,
        inputs=tuple(one if isinstance(one, str) else tuple(one) for one in inputs),
        params=RequestParams(
            user=request.user or "", weight=request.weight or 1.0, priority=request.priority or 0, cache_salt=request.cache_salt or ""
        ),
        dimensions=request.dimensions,
        truncate=False,
        as_base64=request.encoding_format == "base64",
        keep_alive=request.kept_seconds,
        ignored=ignored,
    )


def read_ollama(body: Mapping[str, Any]) -> EmbeddingCall:
    ignored = sort_fields(body, OLLAMA_FIELDS)
    _check_count(body.get("input"))
    request = validate(_OllamaRequest, body)
    texts = [request.input] if isinstance(request.input, str) else request.input or []
    return _ollama_call(request, [] if texts == [""] else texts, request.truncate is not False, request.dimensions or None, ignored)


def read_older(body: Mapping[str, Any]) -> EmbeddingCall:
    ignored = sort_fields(body, OLDER_FIELDS)
    request = validate(_OlderRequest, body)
    return _ollama_call(request, [request.prompt] if request.prompt else [], True, None, ignored)


def _ollama_call(request: _Shared, texts: Sequence[str], truncate: bool, dimensions: int | None, ignored: tuple[str, ...]) -> EmbeddingCall:
    return EmbeddingCall(request.model or None, tuple(texts), RequestParams(), dimensions, truncate, False, request.kept_seconds, ignored)


def _check_count(inputs: Any) -> None:
    if isinstance(inputs, list) and len(inputs) > MAX_INPUTS:
        raise RequestError(f"input: {len(inputs)} texts, and at most {MAX_INPUTS} fit into a request.", param="input")


def render(values: FloatArray, *, as_base64: bool) -> bytes:
    """A vector as JSON: a list of numbers, or the text of its bytes, float32 in little-endian order."""
    if as_base64:
        return orjson.dumps(base64.b64encode(values.astype("<f4").tobytes()).decode())
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def _openai_body(answered: Answered) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": orjson.Fragment(vector)} for index, vector in enumerate(answered.vectors)]
    usage = {"prompt_tokens": answered.prompt_tokens, "total_tokens": answered.prompt_tokens}
    return {"object": "list", "data": data, "model": answered.model, "usage": usage} | answered.beside()


def _ollama_body(answered: Answered) -> dict[str, Any]:
    return {
        "model": answered.model,
        "embeddings": [orjson.Fragment(vector) for vector in answered.vectors],
        "total_duration": round(answered.total_seconds * 1e9),
        "load_duration": round(answered.load_seconds * 1e9),
        "prompt_eval_count": answered.prompt_tokens,
    } | answered.beside()


def _older_body(answered: Answered) -> dict[str, Any]:
    return {"embedding": orjson.Fragment(answered.vectors[0]) if answered.vectors else []} | answered.beside()


EMBEDDINGS: Mapping[str, EmbeddingDialect] = {
    "/v1/embeddings": EmbeddingDialect(OPENAI_FIELDS, read_openai, _openai_body),
    "/api/embed": EmbeddingDialect(OLLAMA_FIELDS, read_ollama, _ollama_body, model_names),
    "/api/embeddings": EmbeddingDialect(OLDER_FIELDS, read_older, _older_body, model_names),
}
"""By path."""


class EmbeddingWriter:
    """Gathers the vectors of one response, in whatever order they come."""

    def __init__(self, dialect: EmbeddingDialect, call: EmbeddingCall, model: str) -> None:
        self._dialect = dialect
        self._call = call
        self._model = model
        self._began = time.monotonic()
        self._load_seconds = 0.0
        self._vectors = [b""] * len(call.inputs)
        self._prompt_tokens = 0

    def start(self) -> None:
        """The model is there."""
        self._load_seconds = time.monotonic() - self._began

    def add(self, index: int, values: FloatArray, usage: Usage | None) -> None:
        self._vectors[index] = render(values, as_base64=self._call.as_base64)
        self._prompt_tokens += usage.prompt_tokens if usage else 0

    def body(self, made: Vectors | None = None, cut: tuple[int, ...] = ()) -> bytes:
        """The response; `cut` as in `Answered`."""
        took = time.monotonic() - self._began
        answered = Answered(self._model, self._vectors, self._prompt_tokens, made, cut, took, self._load_seconds)
        return orjson.dumps(self._dialect.body(answered))
