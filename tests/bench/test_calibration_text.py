"""The calibration text that ships: made again from its seed, and of what it says it is."""

from __future__ import annotations

import json

from bench.data import calibration
from qwenbox.chat.chat import load_chat
from qwenbox.types import Message
from tests.thinker import MODEL


def test_the_generator_writes_the_file_that_ships_byte_for_byte() -> None:
    assert "".join(f"{line}\n" for line in calibration.lines()).encode() == calibration.FILE.read_bytes()


def test_every_line_is_a_text_or_a_conversation_that_a_template_renders() -> None:
    chat = load_chat(directory=MODEL)
    languages, tools, thoughts = set(), 0, 0
    for line in calibration.FILE.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        if one["kind"] == "text":
            languages.add(one["language"])
            assert len(one["text"]) > 50
            continue
        messages = [Message(**{**message, "tool_calls": tuple(message.get("tool_calls", ()))}) for message in one["messages"]]
        rendered = chat.template.render(messages, one.get("tools"), add_generation_prompt=False)
        for message in messages:
            assert message.content in rendered
        tools += "tools" in one
        thoughts += one["thinking"]
        assert one["thinking"] == any(message.reasoning_content for message in messages)
    assert {"zh", "en", "de", "fr", "es", "ja", "ko", "ru", "ar", "python", "cpp", "javascript", "rust", "sql", "latex"} <= languages
    assert tools > 40 and thoughts > 60
    chat.close()
