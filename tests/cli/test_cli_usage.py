"""What the command line says and how it ends, without a model."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from qwenbox import __version__
from qwenbox.cli import app
from qwenbox.settings import Settings
from tests.cli.command import Command

COMMANDS = ("serve", "chat", "run", "pull", "bench", "eval")


def assert_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_help_names_every_command(qwenbox: Command) -> None:
    done = qwenbox("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(qwenbox: Command, command: str) -> None:
    done = qwenbox(command, "-h")
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_help_loads_nothing_heavy(qwenbox: Command) -> None:
    code = "import sys; sys.argv = ['qwenbox', '--help']\ntry:\n import qwenbox.cli; qwenbox.cli.main()\nfinally:\n print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=qwenbox.env, capture_output=True, text=True, check=False, timeout=60)
    loaded = set(done.stdout.split())
    assert "qwenbox.cli.serve" in loaded
    heavy = {"numpy", "starlette", "uvicorn", "pydantic", "tokenizers", "rich", "httpx2", "huggingface_hub", "prompt_toolkit", "qwenbox.hub"}
    assert not heavy & loaded


def test_version(qwenbox: Command) -> None:
    assert qwenbox("--version").stdout == f"qwenbox {__version__}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["rum", "x"], "rum"),
        (["run", "m", "p", "--tempreture", "1"], "--tempreture"),
        (["run", "m", "p", "--temperature", "hot"], "--temperature"),
        (["run", "m", "p", "--temperature", "-1"], "--temperature"),
        (["run", "m", "p", "--max-tokens", "0"], "--max-tokens"),
        (["run"], "model"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--weights", "int3"], "int3"),
        (["serve", "--log-level", "loud"], "loud"),
        (["bench"], "--random"),
        (["bench", "m", "--random", "8b"], "not both"),
        (["bench", "--random", "9b"], "9b"),
        (["bench", "m", "--batch", "0"], "--batch"),
        (["eval", "m", "--task", "ppl", "--data", "absent.txt"], "absent.txt"),
        (["eval", "m", "--task", "kl", "--data", "absent.txt"], "--reference"),
        (["eval", "m", "--task", "layers", "--data", "absent.txt"], "--reference"),
        (["eval", "m", "--task", "bleu", "--data", "absent.txt"], "bleu"),
    ],
)
def test_a_wrong_command_line_is_named_with_exit_code_2(qwenbox: Command, words: list[str], named: str) -> None:
    assert_error(qwenbox(*words), 2, named)


@pytest.mark.parametrize(("variable", "value"), [("QWENBOX_PROT", "1"), ("QWENBOX_PORT", "many"), ("QWENBOX_THREADS", "0")])
def test_a_wrong_environment_variable_is_named_with_exit_code_2(qwenbox: Command, variable: str, value: str) -> None:
    assert_error(qwenbox("run", "m", "p", env={variable: value}), 2, variable)


@pytest.mark.parametrize("words", [["run", "qwen9", "p"], ["chat", "qwen9"], ["serve", "qwen9"], ["bench", "qwen9"], ["pull", "qwen9"]])
def test_an_unknown_model_is_an_error_that_lists_what_there_is(qwenbox: Command, words: list[str]) -> None:
    assert_error(qwenbox(*words), 1, "qwen9", "qwen2.5-coder-0.5b", ".gguf")


def test_a_model_that_cannot_be_fetched_has_its_own_exit_code(qwenbox: Command) -> None:
    assert_error(qwenbox("run", "qwen2.5-coder-0.5b", "p"), 69, "offline")


@pytest.mark.parametrize("words", [["run", "m.gguf", "p"], ["bench", "m.gguf"]])
def test_a_broken_file_is_an_error_with_its_own_exit_code(qwenbox: Command, tmp_path: Path, words: list[str]) -> None:
    broken(tmp_path)
    assert_error(qwenbox(*words), 65, "m.gguf")


def test_serve_says_that_a_file_is_broken_after_it_opened_its_port(qwenbox: Command, tmp_path: Path) -> None:
    broken(tmp_path)
    done = qwenbox("serve", "m.gguf", "--port", "0")
    assert done.returncode == 65, done.stderr
    assert done.stdout.startswith("qwenbox listens on http://127.0.0.1:")
    assert "m.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def broken(folder: Path) -> None:
    (folder / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)


def test_an_empty_prompt_is_refused(qwenbox: Command) -> None:
    assert_error(qwenbox("run", "m", "-"), 2, "prompt is empty")


def test_serve_has_an_option_for_every_setting_but_where_models_come_from_and_what_the_terminal_speaks() -> None:
    command = next(command for command in app.registered_commands if command.callback is not None and command.callback.__name__ == "serve")
    options = set(command.callback.__annotations__) - {"return"}
    places = {"hub_endpoint", "hub_token", "modelscope_endpoint", "ollama_dir", "huggingface_dir", "modelscope_dir", "lmstudio_dir", "models_dir"}
    assert options == {field.name for field in dataclasses.fields(Settings)} - places - {"language"}
