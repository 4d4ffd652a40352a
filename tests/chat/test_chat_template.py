from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import psutil
import pytest

from qwenbox.chat import template as template_module
from qwenbox.chat.template import FAMILIES, KNOWN_SHA256, MAX_SOURCE, ChatTemplate, template_for
from qwenbox.errors import ModelFormatError, RequestError, UsageError
from qwenbox.types import Message
from tests.chat.small import messages_of

DATA = Path(__file__).parent / "data"


def fixtures() -> list[dict[str, Any]]:
    """Inputs with the text that the models' official templates give."""
    cases: list[dict[str, Any]] = json.loads((DATA / "chat_fixtures.json").read_text(encoding="utf-8"))
    for case in json.loads((DATA / "qwen3_chat_fixtures.json").read_text(encoding="utf-8")):
        options = {"add_generation_prompt": False, **case["kwargs"]}
        cases.append({**case, "family": "qwen3", "tools": options.pop("tools", None), "options": options})
    return cases


FIXTURES = fixtures()


def name_of(case: dict[str, Any]) -> str:
    return "-".join([case["family"], case["name"], *(f"{key}={value}" for key, value in case["options"].items())])


def rendered(template: ChatTemplate, case: dict[str, Any]) -> str:
    return template.render(messages_of(case["messages"]), case["tools"], **case["options"])


@pytest.fixture
def stranger() -> Iterator[Any]:
    """Makes templates that nobody has read, and ends their helpers."""
    made: list[ChatTemplate] = []

    def make(source: str) -> ChatTemplate:
        made.append(ChatTemplate(source))
        assert not made[-1].known
        return made[-1]

    yield make
    for template in made:
        template.close()


# --- the text of the official templates ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", FIXTURES, ids=name_of)
def test_our_templates_give_the_official_text(case: dict[str, Any]) -> None:
    assert rendered(template_for(case["family"], None), case) == case["rendered"]


@pytest.mark.parametrize("case", FIXTURES[::7], ids=name_of)
def test_jinja_itself_renders_our_templates_the_same(case: dict[str, Any]) -> None:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    source = template_for(case["family"], None).source
    assert environment.from_string(source).render(messages=case["messages"], tools=case["tools"], **case["options"]) == case["rendered"]


@pytest.mark.weights
def test_the_template_of_the_real_model_gives_the_official_text(real_metadata: dict[str, Any]) -> None:
    template = ChatTemplate(real_metadata["tokenizer.chat_template"])
    assert template.known
    for case in FIXTURES:
        if case["family"] == "qwen2.5":
            assert rendered(template, case) == case["rendered"]


def test_the_helper_process_gives_the_same_text(stranger: Any) -> None:
    for family in FAMILIES:
        template = stranger(template_for(family, None).source + "{# changed #}")
        for case in FIXTURES[::5]:
            if case["family"] == family:
                assert rendered(template, case) == case["rendered"]


def test_the_list_of_known_templates_holds_whole_hashes() -> None:
    assert all(len(value) == 64 for value in KNOWN_SHA256)
    assert all(template_for(family, None).known for family in FAMILIES)


def test_a_shipped_template_goes_before_ours(stranger: Any) -> None:
    template = template_for("qwen3", "{{ messages[0].content }}!")
    assert template.render([Message("user", "Hi")]) == "Hi!"
    template.close()
    with pytest.raises(UsageError, match="'llama'"):
        template_for("llama", None)


def test_the_environment_is_the_one_of_transformers(stranger: Any) -> None:
    template = stranger(
        "{% for m in messages[::-1] %}{% if loop.index > 2 %}{% break %}{% endif %}\n"
        "    {{- m.content.strip().split(',')[-1] | tojson }}\n"
        "    {%- if m.content.startswith('x') %}{% continue %}{% endif %};\n"
        "{% endfor %}{{ strftime_now('%Y') | length }}{{ '<&>' }}"
    )
    assert template.render([Message("user", "no"), Message("user", " a,é<b "), Message("user", "x,y")]) == '"y""é<b";\n4<&>'


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenize", "messages", "tools", "chat_template", "thinking", "__class__"])
def test_unknown_options_are_refused_by_name(name: str) -> None:
    options: dict[str, Any] = {name: True}
    with pytest.raises(RequestError, match=name):
        template_for("qwen3", None).render([Message("user", "Hi")], **options)


@pytest.mark.parametrize("value", [1, "false", None, []])
def test_options_are_true_or_false(value: Any) -> None:
    for name in ("enable_thinking", "add_generation_prompt", "continue_final_message"):
        options: dict[str, Any] = {name: value}
        with pytest.raises(RequestError, match=name):
            template_for("qwen3", None).render([Message("user", "Hi")], **options)


def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match="'developer'"):
        template_for("qwen3", None).render([Message("developer", "Hi")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "head"), [("qwen3", "<think>\n\n</think>\n\n"), ("qwen3-thinking-2507", "<think>\n\n</think>\n\n"), ("qwen2.5", "")]
)
def test_the_final_message_can_be_continued(family: str, head: str) -> None:
    messages = [Message("user", "Count"), Message("assistant", "one, two, ")]
    text = template_for(family, None).render(messages, continue_final_message=True)
    assert text.endswith(f"<|im_start|>assistant\n{head}one, two, ")


def test_a_closed_thought_can_be_continued() -> None:
    messages = [Message("user", "Q"), Message("assistant", "<think>\nlong thought\n</think>\n\n")]
    text = template_for("qwen3", None).render(messages, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\n<think>\nlong thought\n</think>\n\n")


def test_only_the_assistant_can_be_continued() -> None:
    for messages in ([], [Message("user", "Q")]):
        with pytest.raises(RequestError, match="continue_final_message"):
            template_for("qwen3", None).render(messages, continue_final_message=True)


# --- templates that are not our friends ----------------------------------------------------------------------------


def test_a_refusal_by_the_template_is_the_clients_error(stranger: Any) -> None:
    template = stranger("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        template.render([Message("user", "Hi")])


@pytest.mark.parametrize("source", ["{% if %}", "{{ messages", "{% generation %}"])
def test_a_template_that_does_not_compile_is_the_models_error(stranger: Any, source: str) -> None:
    with pytest.raises(ModelFormatError, match="does not compile"):
        stranger(source).render([Message("user", "Hi")])


def test_a_huge_template_is_not_read() -> None:
    with pytest.raises(ModelFormatError, match="at most"):
        ChatTemplate("x" * (MAX_SOURCE + 1))


@pytest.mark.parametrize(
    "payload",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__class__.__base__",
        "raise_exception.__globals__",
        "raise_exception.__builtins__['open']('CANARY', 'w')",
        "strftime_now.__globals__['os'].environ",
        "messages[0]['content'].format.__globals__",
        "messages | attr('__class__')",
        "messages | map(attribute='__class__') | list",
        "'{0.__class__.__init__.__globals__}'.format(raise_exception)",
        "cycler.__init__.__globals__.os.popen('touch CANARY')",
        "namespace.__init__.__globals__",
        "self.__init__.__globals__",
        "messages[0].keys().mapping.__class__",
        "debug()",
    ],
)
def test_a_template_reaches_nothing_of_python(stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str) -> None:
    monkeypatch.setenv("QWENBOX_TEST_SECRET", "canary-in-the-environment")
    canary = tmp_path / "canary"
    source = "{{ " + payload.replace("CANARY", str(canary)) + " }}"
    try:
        text = stranger(source).render([Message("user", "Hi")])
    except RequestError as error:
        text = error.message
    assert "canary-in-the-environment" not in text
    assert "<class" not in text
    assert "function" not in text or "unknown function" in text or payload == "debug()"
    assert not canary.exists()


@pytest.mark.parametrize("source", ["{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os }}", "{% extends 'chat' %}"])
def test_a_template_reads_no_files(stranger: Any, source: str) -> None:
    with pytest.raises(RequestError):
        stranger(source).render([Message("user", "Hi")])


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ range(10 ** 12) | list }}",
        "{% set l = 'abcdefgh' * 100000 %}{% for i in range(9999) %}{{ l | replace('a', l) }}{% endfor %}",
        "{{ '(' * 100000 }}" + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
    ids=["doubling", "nested", "recursion", "multiply", "range", "replace", "parentheses"],
)
def test_a_template_that_takes_too_much_ends_with_an_error_and_hurts_nobody(stranger: Any, source: str) -> None:
    template = stranger(source)
    start = time.monotonic()
    with pytest.raises((RequestError, ModelFormatError)):
        template.render([Message("user", "Hi")])
    assert time.monotonic() - start < template_module.WALL_SECONDS + 5
    assert template_for("qwen3", None).render([Message("user", "Hi")]).startswith("<|im_start|>user")


def test_a_helper_that_died_is_started_again(stranger: Any) -> None:
    # Python's own memory, which no release of minijinja counts as fuel: those before 3.1 let strings grow, those since do not.
    source = "{% if messages[0].content == 'die' %}{{ [1] | tojson(indent=10 ** 9) }}{% else %}{{ messages[0].content }}{% endif %}"
    template = stranger(source)
    for _ in range(2):
        assert template.render([Message("user", "live")]) == "live"
        with pytest.raises(ModelFormatError, match="too much"):
            template.render([Message("user", "die")])


def test_a_template_that_hangs_is_killed_at_its_wall_time(stranger: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import sys; sys.stdin.buffer.read()\n", encoding="utf-8")
    monkeypatch.setattr(template_module.sandbox, "__file__", str(sleeper))
    monkeypatch.setattr(template_module, "WALL_SECONDS", 0.2)
    with pytest.raises(ModelFormatError, match="time"):
        stranger("hello").render([Message("user", "Hi")])


def test_closing_a_template_ends_its_helper(stranger: Any) -> None:
    before = {child.pid for child in psutil.Process().children()}  # those of other tests of this process
    template = stranger("{{ messages | length }}")
    assert template.render([Message("user", "Hi")]) == "1"
    (helper,) = [child for child in psutil.Process().children() if child.pid not in before]
    assert any("sandbox.py" in part for part in helper.cmdline())
    template.close()
    assert not helper.is_running()
    assert template.render([Message("user", "Hi")]) == "1"


def test_messages_beyond_unicode_are_the_clients_error(stranger: Any) -> None:
    for template in (template_for("qwen3", None), stranger("{{ messages[0].content }}")):
        with pytest.raises(RequestError):
            template.render([Message("user", "\ud800")])
