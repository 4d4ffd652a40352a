"""What form an answer must have, as a grammar: of its whole content, or of the tool calls in it, in the form that the model's template shows.

The grammars are llguidance's: Lark, with JSON schemas inside. They are compiled where the tokens are chosen; here they are only written down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.chat.toolcall import CLOSE, FUNCTION, FUNCTION_END, MAX_NAME, OPEN, PARAMETER, PARAMETER_END, types_of
from qwenbox.errors import RequestError
from qwenbox.types import ConstraintPlan, OutputFormat, RequestParams

MAX_SCHEMA_BYTES = 1 << 20
MAX_GRAMMAR_BYTES = 1 << 15
"""Of an expression or a grammar in Lark."""
MAX_CHOICES = 20_000
MAX_CHECKED = 1 << 16
"""Characters of a tool's schema that is guaranteed though it is not strict."""

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id"})
"""Keywords of JSON schema that ask for nothing."""


def writes_tags(template: str) -> bool:
    """Whether a chat template asks for calls in the tags of Qwen3-Coder; else they are Hermes' JSON."""
    return FUNCTION in template and PARAMETER in template


def constraint_plan(
    tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], params: RequestParams, *, in_tags: bool = False
) -> ConstraintPlan | None:
    """The form that an answer must have; None where it is free. `in_tags`: the model writes calls as `writes_tags` says.

    `output_format` holds for all content. With tools, a required or named one makes the content calls and nothing else; else a call that has begun is
    completed in form, and where there is an `output_format` the content is either. RequestError, with the field's name, for what is too large.
    """
    gap = tuple(tokenizer.encode("\n\n"))
    choice = params.tool_choice if tools else "none"
    if choice == "none":
        return None if (asked := params.output_format) is None else ConstraintPlan(f"start: {_content(asked)}\n", asked.param, gap_ids=gap)
    named = [tool["function"] for tool in tools if choice in ("auto", "required", f"={tool['function']['name']}")]
    rules = _call_rules(tokenizer, named, in_tags)
    if choice == "auto" and params.output_format is None:
        if (trigger := tokenizer.id_of(OPEN)) is None:
            return None  # a call is text to this model like any other
        return ConstraintPlan(f"start: call\n{rules}", "tools", trigger)
    several = params.parallel_tool_calls and choice in ("auto", "required")
    tagged = f"{_tag(tokenizer, OPEN)} call"
    form = f'{tagged} ("\\n" {tagged})*' if several else tagged
    if choice == "auto" and params.output_format is not None:
        form = f"({form}) | ({_content(params.output_format)})"
    return ConstraintPlan(f"start: {form}\n{rules}", "tools" if params.output_format is None else params.output_format.param, gap_ids=gap)


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


class _Form(NamedTuple):
    """An expression of Lark, and the rules that it needs, a line each."""

    expression: str
    rules: str = ""


def _call_rules(tokenizer: Tokenizer, functions: Sequence[Mapping[str, Any]], in_tags: bool) -> str:
    """The rule `call`, a call of one of these tools from after its opening tag on, and what it needs."""
    write = _tagged_call if in_tags else _json_call
    bodies = [write(function, f"F{number}") for number, function in enumerate(functions)]
    choice = " | ".join(body.expression for body in bodies)
    return f'call: ({choice}) "\\n" {_tag(tokenizer, CLOSE)}\n' + "".join(body.rules for body in bodies) + (_FREE_TEXT if in_tags else "")


def _json_call(function: Mapping[str, Any], _: str) -> _Form:
    """`{"name": NAME, "arguments": {...}}`"""
    schema = _parameters(function)
    head = f'\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
    arguments = _json(schema, "tools", lenient=not function.get("strict"))
    if not function.get("strict") and not _is_grammar(arguments):
        arguments = _json({"type": "object"}, "tools")
    return _Form(f'{json.dumps(head, ensure_ascii=False)} {arguments} "}}"')


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    schema = function.get("parameters") or _NO_ARGUMENTS
    if schema.get("type", "object") != "object":
        raise RequestError(f"tools: the parameters of {function['name'][:64]!r} are no object.", param="tools")
    return {**schema, "type": "object"}


@lru_cache(maxsize=256)
def _is_grammar(form: str) -> bool:
    """Whether a form is one: tools whose schema nobody can guarantee are called all the same, unless they are strict."""
    from llguidance import LLMatcher

    return len(form) <= MAX_CHECKED and not LLMatcher.validate_grammar(f"start: {form}")


# --- calls in tags -------------------------------------------------------------------------------------------------

_VALUE_END = re.escape(PARAMETER_END).replace("/", "\\/")
_FREE_TEXT = f"""free_text[lazy]: /(?s:.*){_VALUE_END}/
free_parameter: "{PARAMETER}" /[^\\s<>]{{1,64}}/ ">\\n" free_text "\\n"
"""
_FORMATS: Mapping[str, str] = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",  # the days that every month has
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    "email": r"[a-zA-Z0-9_+-]{1,32}(\.[a-zA-Z0-9_+-]{1,32}){0,3}@[a-z0-9]{1,32}(\.[a-z0-9]{1,32}){1,3}",
}
_FORMATS = {**_FORMATS, "date-time": f"{_FORMATS['date']}T{_FORMATS['time']}"}


def _tagged_call(function: Mapping[str, Any], rule: str) -> _Form:
    """`<function=NAME>` and a tag for each parameter, in the schema's order; nothing but what the schema names, unless it names nothing.

    What the reader of such calls takes for text is text up to its closing tag; any other value is JSON.
    """
    schema, strict, name = _parameters(function), bool(function.get("strict")), function["name"]
    lines, rules = [], []
    try:
        if strict and (unknown := schema.keys() - _NOTES - {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}):
            raise _NoFormError(f"{min(unknown)!r} beside the parameters")
        properties = dict(schema.get("properties") or {})
        for missing in set(schema.get("required") or ()) - properties.keys():
            properties[missing] = True
        if not properties and not strict and schema.get("additionalProperties") is not False:
            return _Form(_in_function(name, "free_parameter*"))
        for number, (key, value) in enumerate(properties.items()):
            if not 0 < len(key) <= MAX_NAME or re.search(r"[>\n]", key):
                raise _NoFormError(f"the name {key[:32]!r}")
            text, own = _value(value, schema, f"{rule}V{number}", strict)
            head = json.dumps(f"{PARAMETER}{key}>\n", ensure_ascii=False)
            lines.append(f"{head} {text}" if key in (schema.get("required") or ()) else f"({head} {text})?")
            rules.append(own)
    except _NoFormError as error:
        if strict:
            raise RequestError(f"tools: {name[:64]!r}: {error} cannot be guaranteed in the tags that this model writes.", param="tools") from None
        return _Form(_in_function(name, "free_parameter*"))
    form = _Form(_in_function(name, " ".join(lines)), "".join(rules))
    if not strict and not _is_grammar(f"{form.expression}\n{form.rules}{_FREE_TEXT}"):
        return _Form(_in_function(name, "free_parameter*"))
    return form


class _NoFormError(ValueError):
    """Something that these tags cannot be made to hold."""


def _in_function(name: str, parameters: str) -> str:
    return f"{json.dumps(f'{chr(10)}{FUNCTION}{name}>{chr(10)}', ensure_ascii=False)} {parameters} {json.dumps(FUNCTION_END)}"


def _value(schema: Any, root: Mapping[str, Any], rule: str, strict: bool) -> _Form:
    """A parameter's value with its closing tag and line end."""
    end = json.dumps(f"\n{PARAMETER_END}\n")
    if _is_any_text(schema):
        return _Form('free_text "\\n"')
    if not isinstance(schema, Mapping) or tuple(types_of(schema)) != ("string",):
        own = dict(schema) if isinstance(schema, Mapping) else {}
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return _Form(f"{_json({**shared, **own}, 'tools', lenient=not strict)} {end}")
    if isinstance(branches := schema.get("anyOf"), list) and schema.keys() <= _NOTES | {"anyOf"}:
        forms = [_value(branch, root, f"{rule}B{number}", strict) for number, branch in enumerate(branches)]
        return _Form(f"({' | '.join(form.expression for form in forms)})", "".join(form.rules for form in forms))
    if strict and (unknown := schema.keys() - _NOTES - {"type", "enum", "const", "minLength", "maxLength", "pattern", "format"}):
        raise _NoFormError(repr(min(unknown)))
    texts = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(texts, list):
        allowed = [text for text in texts if isinstance(text, str) and PARAMETER_END not in text]
        if not allowed:
            raise _NoFormError("an enumeration of nothing")
        return _Form(f"{_expression('|'.join(map(_escaped, allowed)))} {end}")
    return _Form(f"{rule} {end}", f"{rule}: {' & '.join(_text_terminals(schema, strict))}\n")


def _text_terminals(schema: Mapping[str, Any], strict: bool) -> list[str]:
    """Expressions that a text has to match, every one."""
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if not isinstance(least, int) or not (isinstance(most, int) or most == ""):
        raise _NoFormError("a length that is no whole number")
    terminals = [f"/(?s:.){{{least},{most}}}/", f"~/(?s:.*){_VALUE_END}(?s:.*)/"]
    if isinstance(pattern := schema.get("pattern"), str):
        body = pattern.removeprefix("^")
        ends = re.search(r"(?<!\\)(\\\\)*\$$", body) is not None
        before, after = "" if pattern.startswith("^") else "(?s:.*)", "" if ends else "(?s:.*)"
        terminals.append(_expression(f"{before}({body[:-1] if ends else body}){after}"))
    if (form := schema.get("format")) in _FORMATS:
        terminals.append(_expression(_FORMATS[str(form)]))
    elif form is not None and strict:
        raise _NoFormError(f"the format {str(form)[:32]!r}")
    return terminals


def _is_any_text(schema: Any) -> bool:
    """Whether whatever stands between the tags is an instance: a text without conditions, or the word null."""
    if not isinstance(schema, Mapping) or not {"string"} <= set(types_of(schema)) <= {"string", "null"}:
        return False
    branches = [branch for key in ("anyOf", "oneOf") for branch in schema.get(key) or () if isinstance(branch, Mapping)]
    return schema.keys() <= _NOTES | {"type", "anyOf", "oneOf"} and all(branch.keys() <= _NOTES | {"type"} for branch in branches)


# --- pieces --------------------------------------------------------------------------------------------------------


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
