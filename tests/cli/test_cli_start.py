"""Bare `qwenbox`: a service that chooses its model, from the terminal's side."""

from __future__ import annotations

import json
import shutil
import socket
from urllib.parse import urlsplit

from qwenbox.hub import FIRST
from tests.cli.command import Command
from tests.cli.test_cli_serve import ask, online, wait_ready
from tests.hub.test_disk import put_into_ollama
from tests.server.minute import catalogue_hub
from tests.tiny import tiny_gguf


def listening(qwenbox: Command, *words: object) -> tuple[str, list[str]]:
    """The address, and what was said before it."""
    process = qwenbox.start(*words)
    said: list[str] = []
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("qwenbox listens on "):
        assert line, qwenbox.errors
        said.append(line)
    return line.split()[-1], said


def test_bare_qwenbox_serves_what_is_on_the_disk_and_keeps_the_choice(qwenbox: Command) -> None:
    put_into_ollama(qwenbox.folder / ".ollama" / "models", "registry.ollama.ai/library/qwen3/8b", tiny_gguf())
    url, _ = listening(qwenbox)
    wait_ready(url)
    status, answer = ask(url, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2})
    assert (status, answer["model"]) == (200, "qwen3:8b")
    assert json.loads((qwenbox.folder / "state" / "qwenbox" / "settings.json").read_bytes()) == {"model": "qwen3:8b"}


def test_what_a_first_start_would_fetch_is_fetched_ahead_unless_a_model_is_on_the_disk(qwenbox: Command) -> None:
    with catalogue_hub() as hub:
        store = qwenbox.folder / ".ollama" / "models"
        put_into_ollama(store, "registry.ollama.ai/library/qwen3/8b", tiny_gguf())
        done = qwenbox("pull", env=online(hub))
        assert (done.returncode, done.stdout, hub.requests) == (0, "", [])
        shutil.rmtree(store)
        done = qwenbox("pull", env=online(hub))
        assert done.returncode == 0 and FIRST in done.stdout
        done = qwenbox("pull", env={**online(hub), "QWENBOX_CACHE_DIR": str(qwenbox.folder / "other"), "QWENBOX_MODEL": "qwen3-8b"})
        assert (done.returncode, done.stdout) == (0, "")  # somebody has chosen


def test_a_port_that_is_taken_is_left_to_who_has_it_unless_somebody_asked_for_it(qwenbox: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = qwenbox("--port", port)
        assert (done.returncode, done.stdout) == (2, "")
        assert str(port) in done.stderr
    try:
        default = socket.create_server(("127.0.0.1", 8080))
    except OSError:  # somebody else has it, which is as good
        default = socket.socket()
    with default:
        url, said = listening(qwenbox, "--no-browser")
        assert urlsplit(url).port != 8080
        assert said == ["Port 8080 is taken; this is the next free one.\n"]
        assert ask(url, "/")[0] == 200


def test_options_of_the_start_do_not_stand_before_a_command(qwenbox: Command) -> None:
    done = qwenbox("--port", 9000, "ps")
    assert done.returncode == 2
    assert "behind it" in done.stderr
