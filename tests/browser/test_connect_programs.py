"""What the panel "Connect" offers to copy, run as it stands by the programs that it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from selenium import webdriver

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import child_environment, load_settings
from tests.browser.page import Page
from tests.clients.environments import ROOT, node_program, python_of
from tests.fakes import FakeEngine, Script, byte_chat

pytestmark = pytest.mark.browser
TEXT = Script().text
KEY = "qk_0123456789abcdef0123"
WINDOW = 16_384
PROGRAMS = (*("curl", "openai (Python)", "anthropic (Python)", "Ollama (Python)", "Claude Code", "Codex", "Continue", "Dify", "Open WebUI"),)
CLAUDE = f"""#!{sys.executable}
import anthropic, os
with anthropic.Anthropic().messages.stream(
    model=os.environ["ANTHROPIC_MODEL"], max_tokens=200, messages=[{{"role": "user", "content": "Hello"}}]
) as stream:
    print(stream.get_final_text(), os.environ["CLAUDE_CODE_MAX_CONTEXT_TOKENS"])
"""


@pytest.fixture(scope="module", params=[None, KEY], ids=["open", "with a key"])
def snippets(request: pytest.FixtureRequest, chromium: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What is copied, by program, of a service that asks for a key or for none."""
    folder = tmp_path_factory.mktemp("connect")
    settings = load_settings({"port": 0, "api_key": request.param, **dict.fromkeys(("cache_dir", "state_dir", "data_dir"), folder)})
    engine = FakeEngine(context_length=WINDOW)
    with LocalLLM(engine, byte_chat(), "tiny") as llm, Service(llm, settings) as service:
        page = Page(chromium, service, engine)
        page.open()
        kept = json.dumps({"language": "en", "key": request.param or ""})
        page.script(f"localStorage.clear(); sessionStorage.clear(); localStorage.setItem('qwenbox.settings', JSON.stringify({kept}))")
        page.open()
        page.wait(lambda: page.find("#model-name").text == "tiny")
        page.find("#open-connect").click()
        if request.param:
            page.find("#connect-key").click()
        page.wait(lambda: len(page.all("#connect details")) == len(PROGRAMS))
        found = {
            str(one.get_attribute("data-program")): str(one.find_element("css selector", "code").get_property("textContent"))
            for one in page.all("#connect details")
        }
        assert tuple(found) == PROGRAMS
        yield found


def output(command: list[object], **environment: str) -> str:
    # Their own settings would be those of whoever runs the tests.
    clean = {
        name: value
        for name, value in child_environment(**environment).items()
        if not name.startswith(("OPENAI_", "ANTHROPIC_")) or name in environment
    }
    done = subprocess.run([str(word) for word in command], env={**clean, "NO_PROXY": "*"}, capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_is_answered(snippets: dict[str, str]) -> None:
    lines = output(["bash", "-c", snippets["curl"]]).splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]) == TEXT


@pytest.mark.parametrize("program", ["openai (Python)", "anthropic (Python)"])
def test_the_python_clients_are_answered(snippets: dict[str, str], program: str) -> None:
    assert output([sys.executable, "-c", snippets[program]]).strip() == TEXT


def test_claude_code_finds_address_key_model_and_window(snippets: dict[str, str], tmp_path: Path) -> None:
    """In its place stands the client that it is built on; itself it is recorded in tests/clients."""
    (tmp_path / "claude").write_text(CLAUDE)
    (tmp_path / "claude").chmod(0o755)
    assert output(["bash", "-c", snippets["Claude Code"]], PATH=f"{tmp_path}:{os.environ['PATH']}").strip() == f"{TEXT} {WINDOW}"


def test_codex_finds_a_provider_that_answers(snippets: dict[str, str]) -> None:
    settings = tomllib.loads(snippets["Codex"])
    provider = settings["model_providers"][settings["model_provider"]]
    assert settings["model_context_window"] == WINDOW and provider["wire_api"] == "responses"
    key = snippets["Codex"].partition(f"export {provider['env_key']}=")[2].splitlines()[0] if "env_key" in provider else "none"
    asked = {"model": settings["model"], "input": "Hello"}
    answer = httpx2.post(f"{provider['base_url']}/responses", json=asked, headers={"Authorization": f"Bearer {key}"}, trust_env=False).json()
    assert answer["output"][0]["content"][0]["text"] == TEXT


def test_open_webui_finds_an_address_with_models(snippets: dict[str, str]) -> None:
    told = dict(line.removeprefix("export ").split("=", 1) for line in snippets["Open WebUI"].splitlines() if line.startswith("export "))
    headers = {"Authorization": f"Bearer {told['OPENAI_API_KEY']}"}
    models = httpx2.get(f"{told['OPENAI_API_BASE_URL']}/models", headers=headers, trust_env=False).json()
    assert [model["id"] for model in models["data"]] == ["tiny"]


@pytest.mark.long
def test_the_ollama_client_is_answered(snippets: dict[str, str]) -> None:
    assert output([python_of("ollama", ("ollama",)), "-c", snippets["Ollama (Python)"]]).strip() == TEXT


@pytest.mark.long
def test_continue_reads_its_file_and_is_answered(snippets: dict[str, str], tmp_path: Path) -> None:
    """Its program for the terminal, which has the same reader of settings as its plugins."""
    (tmp_path / "config.yaml").write_text(snippets["Continue"], "utf-8")
    program = node_program("continue", "@continuedev/cli", "cn")
    said = output([program, "-p", "Hello", "--config", tmp_path / "config.yaml"], HOME=str(tmp_path), CONTINUE_TELEMETRY_ENABLED="0")
    assert said.strip() == TEXT


@pytest.mark.long
def test_dify_takes_what_its_form_is_told_and_is_answered(snippets: dict[str, str]) -> None:
    title, *lines = snippets["Dify"].splitlines()
    assert title == "OpenAI-API-compatible"
    form = dict(line.split(": ", 1) for line in lines)
    script = ROOT / "tests" / "clients" / "with_dify.py"
    python = python_of("dify", ("dify_plugin",))
    told = output([python, script], DIFY_FORM=json.dumps(form), SERVICE_URL="unused")
    assert json.loads(told.splitlines()[-1]) == {"stream": None}
