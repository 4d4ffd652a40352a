"""Templates that ask for tool calls in tags, as Qwen3-Coder's does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import qwenbox.chat
from qwenbox.chat.chat import ChatFormat
from qwenbox.chat.template import ChatTemplate

_JSON_FORM = (
    r"return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    r"{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>"
)
_TAG_FORM = r"reply in this form:\n<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>"
_JSON_CALL = re.compile(r"            \{\{- '(\\n)?<tool_call>.*?</tool_call>' \}\}\n", re.DOTALL)
_TAG_CALL = """            {{- 'LINE<tool_call>\\n<function=' + call.name + '>\\n' }}
            {%- for key, value in call.arguments | items %}
                {{- '<parameter=' + key + '>\\n' }}{{- value if value is string else value | tojson }}{{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
"""


def chat_in_tags(chat: ChatFormat, family: str) -> ChatFormat:
    """The chat format with our own template of a family, but calls in tags."""
    source = (Path(str(qwenbox.chat.__file__)).parent / "templates" / f"{family}.jinja").read_text(encoding="utf-8")
    source, found = _JSON_CALL.subn(lambda call: _TAG_CALL.replace("LINE", call[1] or ""), source.replace(_JSON_FORM, _TAG_FORM))
    assert found == 1 and _TAG_FORM in source
    return replace(chat, template=ChatTemplate(source))
