"""What form an answer must have, as a grammar: of its whole content, or of the tool calls in it.

The grammars are llguidance's: Lark, with JSON schemas inside. They are compiled where the tokens are chosen; here they are only written down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.chat.toolcall import CLOSE, OPEN
from qwenbox.errors import RequestError
from qwenbox.types import ConstraintPlan, OutputFormat, RequestParams

MAX_SCHEMA_BYTES = 1 << 20
MAX_GRAMMAR_BYTES = 1 << 15
"""Of an expression or a grammar in Lark."""
MAX_CHOICES = 20_000
MAX_CHECKED = 1 << 16
"""Characters of a tool's schema that is guaranteed though it is not strict."""

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def constraint_plan(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], params: RequestParams) -> ConstraintPlan | None:
    """The form that an answer must have; None where it is free.

    `output_format` holds for all content. With tools, a required or named one makes the content calls and nothing else; else a call that has begun is
    completed in form, and where there is an `output_format` the content is either. RequestError, with the field's name, for what is too large.
    """
    gap = tuple(tokenizer.encode("\n\n"))
    choice = params.tool_choice if tools else "none"
    if choice == "none":
        return None if (asked := params.output_format) is None else ConstraintPlan(f"start: {_content(asked)}\n", asked.param, gap_ids=gap)
    named = [tool["function"] for tool in tools if choice in ("auto", "required", f"={tool['function']['name']}")]
    call = _call(tokenizer, named)
    if choice == "auto" and params.output_format is None:
        if (trigger := tokenizer.id_of(OPEN)) is None:
            return None  # a call is text to this model like any other
        return ConstraintPlan(f"start: {call}\n", "tools", trigger)
    several = params.parallel_tool_calls and choice in ("auto", "required")
    calls = f"{_tag(tokenizer, OPEN)} ({call})"
    form = f'{calls} ("\\n" {calls})*' if several else calls
    if choice == "auto" and params.output_format is not None:
        form = f"({form}) | ({_content(params.output_format)})"
    return ConstraintPlan(f"start: {form}\n", "tools" if params.output_format is None else params.output_format.param, gap_ids=gap)


def _content(form: OutputFormat) -> str:
    """The expression of Lark for all content."""
    if form.kind == "json_object":
        return _json({"type": "object"}, form.param)
    if form.kind == "json_schema":
        if not isinstance(form.value, Mapping):
            raise RequestError(f"{form.param}: the schema is no object.", param=form.param)
        return _json(form.value, form.param)
    if form.kind == "choice":
        texts = form.value
        if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise RequestError(f"{form.param}: a list of texts is needed.", param=form.param)
        if len(texts) > MAX_CHOICES or sum(map(len, texts)) > MAX_SCHEMA_BYTES:
            raise RequestError(f"{form.param}: more than {MAX_CHOICES} texts, or {MAX_SCHEMA_BYTES} characters.", param=form.param)
        return _expression("|".join(map(_escaped, texts)))
    if not isinstance(form.value, str) or not 0 < len(form.value.encode()) <= MAX_GRAMMAR_BYTES:
        raise RequestError(f"{form.param}: a text of 1 to {MAX_GRAMMAR_BYTES} bytes is needed.", param=form.param)
    if form.kind == "regex":
        return _expression(form.value)
    return f"%lark {{\n{form.value}\n}}"


def _call(tokenizer: Tokenizer, functions: Sequence[Mapping[str, Any]]) -> str:
    """A call of one of these tools, from after its opening tag on."""
    bodies = []
    for function in functions:
        schema = function.get("parameters") or _NO_ARGUMENTS
        if schema.get("type", "object") != "object":
            raise RequestError(f"tools: the parameters of {function['name'][:64]!r} are no object.", param="tools")
        head = f'\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
        arguments = _json({**schema, "type": "object"}, "tools", lenient=not function.get("strict"))
        if not function.get("strict") and not _is_grammar(arguments):
            arguments = _json({"type": "object"}, "tools")
        bodies.append(f"{json.dumps(head, ensure_ascii=False)} {arguments}")
    return f'({" | ".join(bodies)}) "}}\\n" {_tag(tokenizer, CLOSE)}'


@lru_cache(maxsize=256)
def _is_grammar(form: str) -> bool:
    """Whether a form is one: tools whose schema nobody can guarantee are called all the same, unless they are strict."""
    from llguidance import LLMatcher

    return len(form) <= MAX_CHECKED and not LLMatcher.validate_grammar(f"start: {form}")


def _tag(tokenizer: Tokenizer, name: str) -> str:
    """A tag as the token that it is, or else as its text."""
    return name if tokenizer.id_of(name) is not None else json.dumps(name)


def _json(schema: Mapping[str, Any], param: str, *, lenient: bool = False) -> str:
    """Values of a schema, written as models write them. With `lenient`, keywords that cannot be guaranteed mean nothing; else they are refused."""
    options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": lenient}
    try:
        text = json.dumps({**schema, "x-guidance": options}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{param}: the schema is nested too deep, or no JSON.", param=param) from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise RequestError(f"{param}: a schema of {len(text)} characters, at most {MAX_SCHEMA_BYTES} are read.", param=param)
    return f"%json {text}"


def _expression(text: str) -> str:
    escaped = re.sub(r"\\.|/|\n", lambda found: {"/": "\\/", "\n": "\\n"}.get(found[0], found[0]), text, flags=re.DOTALL)
    return f"/{escaped}/"


def _escaped(text: str) -> str:
    return re.sub(r"[][\\.+*?(){}^$|#&~-]", lambda found: "\\" + found[0], text)
