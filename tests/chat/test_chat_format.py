from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenbox.chat.chat import FAMILY_DEFAULTS, load_chat
from qwenbox.chat.template import template_for
from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.types import Message, SamplingParams
from tests.chat.small import small_document

HI = [Message("user", "Hi")]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory without a template and generation defaults."""
    path = tmp_path / "Qwen3-Small"
    path.mkdir()
    write(path, "tokenizer.json", small_document())
    write(path, "config.json", {"model_type": "qwen3", "eos_token_id": 268})
    return path


def write(directory: Path, name: str, value: Any) -> None:
    (directory / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_a_gguf_without_a_template_gets_its_familys(metadata: dict[str, Any]) -> None:
    chat = load_chat(metadata=metadata)
    assert chat.family == "qwen3"
    assert chat.template.source == template_for("qwen3", None).source
    assert chat.defaults == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
    assert chat.eos_ids == (268, 266)
    assert chat.tokenizer.decode(chat.encode(HI, enable_thinking=False)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert not chat.starts_in_reasoning(chat.encode(HI))
    chat.close()


def test_a_thinking_2507_model_starts_in_its_thought(metadata: dict[str, Any]) -> None:
    chat = load_chat(metadata=metadata | {"general.name": "Qwen3 4B Thinking 2507"})
    assert chat.family == "qwen3-thinking-2507"
    assert chat.starts_in_reasoning(chat.encode(HI))


def test_a_gguf_may_bring_template_and_sampling(metadata: dict[str, Any]) -> None:
    metadata |= {
        "general.architecture": "qwen2",
        "tokenizer.chat_template": "{{ messages[0].content }}?",
        "general.sampling.temp": 0.25,
        "general.sampling.top_k": 7,
    }
    chat = load_chat(metadata=metadata)
    assert chat.tokenizer.decode(chat.encode(HI)) == "Hi?"
    assert chat.defaults == SamplingParams(temperature=0.25, top_k=7)
    chat.close()


def test_a_directory_gives_what_its_files_say(directory: Path) -> None:
    write(
        directory,
        "generation_config.json",
        {"temperature": 0.5, "top_k": 9, "top_p": 0.5, "repetition_penalty": 1.1, "eos_token_id": [266, 290]},
    )
    write(directory, "tokenizer_config.json", {"chat_template": "config"})
    chat = load_chat(directory=directory)
    assert chat.defaults == SamplingParams(temperature=0.5, top_k=9, top_p=0.5, repetition_penalty=1.1)
    assert chat.eos_ids == (266, 290, 268)
    assert chat.tokenizer.decode(chat.encode(HI)) == "config"
    write(directory, "chat_template.jinja", "file")
    chat.close()
    chat = load_chat(directory=directory)
    assert chat.tokenizer.decode(chat.encode(HI)) == "file"
    chat.close()


def test_of_several_templates_the_default_is_taken(directory: Path) -> None:
    write(directory, "tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "rag"}, {"name": "default", "template": "plain"}]})
    chat = load_chat(directory=directory)
    assert chat.tokenizer.decode(chat.encode(HI)) == "plain"
    chat.close()


def test_a_directory_with_nothing_but_the_tokenizer_gets_its_familys_ways(directory: Path) -> None:
    chat = load_chat(directory=directory)
    assert chat.defaults == FAMILY_DEFAULTS["qwen3"]
    assert chat.tokenizer.decode(chat.encode(HI)) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_model_that_does_not_sample_is_greedy(directory: Path) -> None:
    write(directory, "generation_config.json", {"do_sample": False, "max_new_tokens": 2048})
    assert load_chat(directory=directory).defaults.temperature == 0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("config.json", {"model_type": "llama"}, UnsupportedModelError),
        ("config.json", {}, UnsupportedModelError),
        ("config.json", [], ModelFormatError),
        ("config.json", "{", ModelFormatError),
        ("config.json", "[" * 100_000, ModelFormatError),
        ("generation_config.json", {"temperature": "hot"}, ModelFormatError),
        ("generation_config.json", {"top_p": 1.5}, ModelFormatError),
        ("generation_config.json", '{"temperature": NaN}', ModelFormatError),
        ("generation_config.json", {"top_k": True}, ModelFormatError),
        ("generation_config.json", {"eos_token_id": 292}, ModelFormatError),
        ("generation_config.json", {"eos_token_id": ["x"]}, ModelFormatError),
        ("generation_config.json", {"eos_token_id": 1.5}, ModelFormatError),
        ("generation_config.json", " " * (4 * 1024 * 1024 + 1), ModelFormatError),
        ("tokenizer_config.json", {"chat_template": 7}, ModelFormatError),
        ("chat_template.jinja", "{% if %}", ModelFormatError),
        ("tokenizer.json", {}, ModelFormatError),
    ],
)
def test_a_directory_that_lies_is_an_error(directory: Path, name: str, value: Any, error: type[Exception]) -> None:
    write(directory, name, value)
    with pytest.raises(error):
        load_chat(directory=directory)


def test_a_directory_without_a_tokenizer_is_an_error(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match=r"no tokenizer\.json"):
        load_chat(directory=directory)


@pytest.mark.weights
def test_the_real_model_is_ready_to_chat(real_metadata: dict[str, Any]) -> None:
    chat = load_chat(metadata=real_metadata)
    assert chat.family == "qwen2.5"
    assert chat.eos_ids == (151645, 151643)
    assert chat.defaults == SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    assert chat.tokenizer.vocab_limit == 151_665
    assert chat.encode(HI)[-3:] == [151644, 77091, 198]
