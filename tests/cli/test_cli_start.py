"""Bare `qwenbox`: a service that chooses its model, from the terminal's side."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

from tests.cli.command import Command
from tests.cli.test_cli_serve import ask, wait_ready
from tests.hub.test_disk import put_into_ollama
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
