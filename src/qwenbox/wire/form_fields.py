"""The fields that ask for a form of the answer, under the names that clients know from several services."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from qwenbox.errors import RequestError
from qwenbox.types import OutputFormat
from qwenbox.wire.openai_fields import HONOURED, FieldRow

FORM_FIELDS: Mapping[str, FieldRow] = dict.fromkeys(
    ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex"), HONOURED
)

_STRUCTURED = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}
_GUIDED = {"guided_json": "json_schema", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "lark", "regex": "regex"}


class FormFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = None

    def form(self, **others: OutputFormat | None) -> OutputFormat | None:
        """The one form that the request asks for, here or in a field of its dialect. RequestError for two, and for one that there is not."""
        found = {name: form for name, form in others.items() if form is not None}
        found |= {name: _form(kind, getattr(self, name), name) for name, kind in _GUIDED.items() if getattr(self, name)}
        if self.response_format and self.response_format != {"type": "text"}:
            found["response_format"] = _response_format(self.response_format)
        for name, value in (self.structured_outputs or {}).items():
            if name == "json_object" and value:
                found["structured_outputs"] = OutputFormat("json_object", param="structured_outputs")
            elif value and name in _STRUCTURED:
                found[f"structured_outputs.{name}"] = _form(_STRUCTURED[name], value, "structured_outputs")
            elif value:
                raise RequestError(f"structured_outputs.{name}: there is json, json_object, regex, choice and grammar.", param="structured_outputs")
        if len(found) > 1:
            raise RequestError(f"{' and '.join(found)}: an answer has one form.", param=next(iter(found)))
        return next(iter(found.values()), None)


def _form(kind: Any, value: Any, name: str) -> OutputFormat:
    if kind == "json_schema" and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RequestError(f"{name}: the schema is no JSON.", param=name) from None
    return OutputFormat(kind, value, name)


def _response_format(form: Mapping[str, Any]) -> OutputFormat:
    if form.get("type") == "json_object":
        return OutputFormat("json_object")
    outer = form.get("json_schema")
    if form.get("type") != "json_schema" or not isinstance(outer, Mapping) or not isinstance(outer.get("schema"), Mapping):
        raise RequestError(
            'response_format: there is {"type": "text"}, {"type": "json_object"} and {"type": "json_schema", "json_schema": {"schema": ...}}.',
            param="response_format",
        )
    return OutputFormat("json_schema", outer["schema"])
