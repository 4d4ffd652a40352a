"""`qwenbox launch`: programs that print what they were given, in place of the real ones."""

from __future__ import annotations

import json
import signal
import socket
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from tests.cli.command import Command
from tests.cli.test_cli_serve import tiny_files
from tests.fakes import FakeEngine, byte_chat

KEY = "a-key-of-twenty-bytes"
WINDOW = 4096
FOLDERS = {"claude": "CLAUDE_CONFIG_DIR", "codex": "CODEX_HOME", "qwen": "QWEN_HOME"}
PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys, time, urllib.request
folder = next((os.environ[name] for name in {tuple(FOLDERS.values())!r} if name in os.environ), None)
files = {{path.name: path.read_text() for path in pathlib.Path(folder).iterdir()}} if folder else {{}}
reached = None
if "ask" in sys.argv:
    reached = urllib.request.urlopen(f"http://127.0.0.1:{{os.environ['QWENBOX_PORT']}}/ready").status
print(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": folder, "files": files, "reached": reached}}), flush=True)
if "wait" in sys.argv:
    time.sleep(600)
raise SystemExit(7)
"""


@pytest.fixture
def programs(qwenbox: Command) -> Command:
    folder = qwenbox.folder / "bin"
    folder.mkdir()
    for name in ("claude", "codex", "opencode", "qwen"):
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    qwenbox.env |= {"PATH": str(folder), "QWENBOX_API_KEY": KEY, "ANTHROPIC_API_KEY": "of somebody else"}
    return qwenbox


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("state")
    settings = Settings(port=0, api_key=KEY, state_dir=folder, cache_dir=folder, data_dir=folder)
    with LocalLLM(FakeEngine(context_length=WINDOW), byte_chat(), "tiny") as llm, Service(llm, settings) as service:
        yield service


def given(programs: Command, service: Service, name: str) -> dict[str, Any]:
    done = programs("launch", "--url", service.url, name, "-p", "Hello there", "--model", "x")
    assert done.returncode == 7, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["arguments"] == ["-p", "Hello there", "--model", "x"]
    assert f"{WINDOW} tokens" in done.stderr
    if said["folder"]:
        assert not Path(said["folder"]).exists()
        assert KEY not in str(said["files"])
    return said


def test_claude_is_told_address_key_model_and_window(programs: Command, service: Service) -> None:
    environment = given(programs, service, "claude")["environment"]
    assert (environment["ANTHROPIC_BASE_URL"], environment["ANTHROPIC_AUTH_TOKEN"]) == (service.url, KEY)
    assert environment["ANTHROPIC_API_KEY"] == ""
    assert {value for name, value in environment.items() if name.startswith("ANTHROPIC") and name.endswith("MODEL")} == {"tiny"}
    assert environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == str(WINDOW)
    assert int(environment["CLAUDE_STREAM_IDLE_TIMEOUT_MS"]) > 1_000_000


def test_codex_is_told_address_key_model_and_window(programs: Command, service: Service) -> None:
    said = given(programs, service, "codex")
    settings = tomllib.loads(said["files"]["config.toml"])
    provider = settings["model_providers"][settings["model_provider"]]
    assert (settings["model"], settings["model_context_window"]) == ("tiny", WINDOW)
    assert (provider["base_url"], provider["wire_api"]) == (f"{service.url}/v1", "responses")
    assert said["environment"][provider["env_key"]] == KEY


def test_opencode_is_told_address_key_model_and_window(programs: Command, service: Service) -> None:
    environment = given(programs, service, "opencode")["environment"]
    settings = json.loads(environment["OPENCODE_CONFIG_CONTENT"])
    provider, model = settings["model"].split("/")
    assert settings["provider"][provider]["options"]["baseURL"] == f"{service.url}/v1"
    assert settings["provider"][provider]["models"][model]["limit"]["context"] == WINDOW
    assert environment[settings["provider"][provider]["options"]["apiKey"][5:-1]] == KEY


def test_qwen_is_told_address_key_model_and_window(programs: Command, service: Service) -> None:
    said = given(programs, service, "qwen")
    settings = json.loads(said["files"]["settings.json"])
    assert (settings["model"]["name"], settings["model"]["generationConfig"]["contextWindowSize"]) == ("tiny", WINDOW)
    environment = said["environment"]
    assert (environment["OPENAI_BASE_URL"], environment["OPENAI_API_KEY"]) == (f"{service.url}/v1", KEY)


def test_a_program_that_is_missing_and_one_that_is_unknown_are_said(qwenbox: Command) -> None:
    missing = qwenbox("launch", "codex", env={"PATH": "/nowhere"})
    assert missing.returncode == 2
    assert "npm install -g @openai/codex" in missing.stderr
    assert "claude, codex, opencode, qwen" in qwenbox("launch", "emacs").stderr


def test_the_folder_of_a_profile_has_one_name_unless_somebody_else_has_it(programs: Command, service: Service) -> None:
    """Programs write it into their prompts: with another name each time nothing behind it would be found in the cache."""
    first = programs.start("launch", "--url", service.url, "claude", "wait")
    assert first.stdout is not None
    folder = Path(json.loads(first.stdout.readline())["folder"])
    beside = given(programs, service, "claude")["folder"]
    assert beside == f"{folder}-2"
    first.send_signal(signal.SIGTERM)
    first.wait(60)
    folder.mkdir()
    (folder / "left.txt").write_text("by one that was killed")
    again = given(programs, service, "claude")
    assert (again["folder"], list(again["files"])) == (str(folder), [".claude.json"])


def test_the_profile_goes_when_launch_is_terminated(programs: Command, service: Service) -> None:
    process = programs.start("launch", "--url", service.url, "codex", "wait")
    assert process.stdout is not None
    folder = Path(json.loads(process.stdout.readline())["folder"])
    assert folder.exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not folder.exists()


def test_a_service_is_started_where_none_runs_and_ends_with_the_program(programs: Command) -> None:
    model = programs.folder / "tiny"
    model.mkdir()
    for name, content in tiny_files().items():
        (model / name).write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = programs("launch", "codex", "ask", env={"QWENBOX_PORT": str(port), "QWENBOX_MODEL": str(model)})
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout)["reached"] == 200
    assert "until the program ends" in done.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_an_address_where_nobody_answers_starts_nothing(programs: Command) -> None:
    done = programs("launch", "--url", "http://127.0.0.1:9", "codex")
    assert done.returncode == 1
    assert "No service answers" in done.stderr
