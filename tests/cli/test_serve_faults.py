"""`qwenbox serve` as a process, with a tiny model, where the machine runs out of something, or somebody ends or starts it at the wrong time."""

from __future__ import annotations

import calendar
import contextlib
import http.client
import json
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.chat.small import small_document
from tests.checkpoint import write_checkpoint
from tests.cli.command import Command
from tests.cli.test_cli_serve import ask, first_url, until
from tests.engine.fakes import eventually

SECRET = "my-cat-is-called-Xanthippe"


@pytest.fixture
def tiny(qwenbox: Command) -> Path:
    folder = qwenbox.folder / "tiny"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(small_document()), encoding="utf-8")
    return write_checkpoint(folder, vocab=300, positions=2048)


def ready(process: subprocess.Popen[str]) -> str:
    url = first_url(process)
    until(url, lambda body: body["state"] == "ready")
    return url


@contextlib.contextmanager
def streaming(url: str, **body: Any) -> Iterator[http.client.HTTPResponse]:
    """An answer of which the first event has been read."""
    asked = {"prompt": "abc", "stream": True, "ignore_eos": True, "temperature": 0} | body
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).hostname or "", urlsplit(url).port, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        while not response.readline().startswith(b"data: "):
            pass
        yield response


def worker_of(process: subprocess.Popen[str]) -> int:
    """Waits for one where there is none yet."""

    def workers() -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended meanwhile
            children = psutil.Process(process.pid).children()
            return [child.pid for child in children if any("qwenbox.engine.worker" in part for part in child.cmdline())]
        return []

    eventually(workers)
    (worker,) = workers()
    return worker


def test_a_stream_that_is_under_way_when_the_service_is_told_to_end_ends_whole_and_the_exit_code_is_0(qwenbox: Command, tiny: Path) -> None:
    process = qwenbox.start("serve", tiny, "--port", 0)
    url = ready(process)
    with streaming(url, max_tokens=1500) as response:
        process.send_signal(signal.SIGTERM)
        rest = response.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in qwenbox.errors


def test_a_stream_that_does_not_end_in_the_time_it_is_given_ends_with_an_error(qwenbox: Command, tiny: Path) -> None:
    process = qwenbox.start("serve", tiny, "--port", 0)
    url = ready(process)
    with streaming(url, max_tokens=1500) as response:
        os.kill(worker_of(process), signal.SIGSTOP)  # it would never end
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest = response.read()
    assert b"[DONE]" not in rest
    assert json.loads(rest.split(b"data: ")[-1])["error"]["message"] == "The service is stopping."
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - began < 25


def test_a_second_service_on_the_same_port_ends_and_the_first_goes_on_answering(qwenbox: Command, tiny: Path) -> None:
    process = qwenbox.start("serve", tiny, "--port", 0)
    url = ready(process)
    with streaming(url, max_tokens=1500) as response:
        done = qwenbox("serve", tiny, "--port", urlsplit(url).port)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"Port {urlsplit(url).port} on loopback cannot be used" in done.stderr
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_out_of_file_handles_connections_wait_a_dead_worker_too_and_then_all_goes_on(qwenbox: Command, tiny: Path) -> None:
    process = qwenbox.start("serve", tiny, "--port", 0)
    url = ready(process)
    expected = ask(url, "/v1/completions", {"prompt": "abc", "max_tokens": 20, "temperature": 0})[1]["choices"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=60)) as early, contextlib.ExitStack() as stack:

        def state() -> str:
            early.request("GET", "/health")
            return str(json.loads(early.getresponse().read())["state"])

        assert state() == "ready"
        _, most = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{process.pid}/fd")) + 5, most))
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=60))
        assert state() == "ready"
        os.kill(worker_of(process), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while state() != "restarting":
            assert time.monotonic() < deadline
        assert process.poll() is None
        stack.close()
        while state() != "ready":
            assert time.monotonic() < deadline
    assert ask(url, "/v1/completions", {"prompt": "abc", "max_tokens": 20, "temperature": 0})[1]["choices"] == expected


def test_what_clients_write_is_in_no_line_of_the_log_whatever_happens(qwenbox: Command, tiny: Path) -> None:
    process = qwenbox.start("serve", tiny, "--port", 0, "--log-level", "debug")
    url = ready(process)
    for body in (
        {"prompt": SECRET},
        {"prompt": SECRET, "max_tokens": -1},
        {"prompt": "a", SECRET: 1, "temperature": SECRET},
        {"prompt": SECRET * 1000},
        {"prompt": "a", "model": SECRET},
        {"prompt": "a", "user": SECRET, "cache_salt": SECRET, "stop": [SECRET], "max_tokens": 2},
    ):
        ask(url, "/v1/completions", body)
    message = {"role": "user", "content": SECRET}
    tool = {"type": "function", "function": {"name": SECRET, "description": SECRET}}
    for chat in ({"messages": [message]}, {"messages": [message], "tools": [tool], "max_tokens": 2}, {"messages": [{"role": SECRET, "content": 1}]}):
        ask(url, "/v1/chat/completions", chat)
    ask(url, f"/v1/models/{SECRET}")
    ask(url, f"/{SECRET}?q={SECRET}")
    ask(url, "/tokenize", {"prompt": SECRET})
    with streaming(url, prompt=SECRET, max_tokens=1500) as response:
        os.kill(worker_of(process), signal.SIGKILL)
        response.read()
    until(url, lambda body: body["state"] == "ready")
    shown = ask(url, "/metrics")[1]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert qwenbox.errors.count(" request request_id=") >= 12
    assert "the worker died" in qwenbox.errors
    for text in (qwenbox.errors, shown):
        assert SECRET not in text
        assert "Xanthippe" not in text


def test_locale_and_time_zone_change_nothing(qwenbox: Command, tiny: Path) -> None:
    answers = []
    for env in ({"LC_ALL": "C", "LANG": "C", "TZ": "Pacific/Kiritimati", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8", "TZ": "UTC"}):
        process = qwenbox.start("serve", tiny, "--port", 0, env=env)
        url = ready(process)
        status, answer = ask(url, "/v1/completions", {"prompt": "你好 ä", "max_tokens": 20, "temperature": 0, "echo": True})
        assert status == 200
        answers.append(answer["choices"])
        stamps = [line.split()[0] for line in qwenbox.errors.splitlines() if " info " in line]
        assert abs(time.time() - calendar.timegm(time.strptime(stamps[-1], "%Y-%m-%dT%H:%M:%SZ"))) < 600
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert answers[0] == answers[1]
    assert answers[0][0]["text"].startswith("你好 ä")


def confirmed_by(url: str, chance: random.Random, confirmed: dict[str, set[str]]) -> None:
    """Asks questions in conversations, and has them answered, until the service is gone; what it confirmed is noted as it is confirmed."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        while True:
            id = ask(url, "/conversations", {"title": "t"})[1]["id"]
            confirmed[id] = set()
            parent = None
            for _ in range(chance.randrange(1, 5)):
                parent = ask(url, f"/conversations/{id}/messages", {"parent": parent, "content": f"question {chance.random()}"})[1]["id"]
                confirmed[id].add(parent)
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=60)) as connection:
                    body = {"parent": parent, "max_tokens": chance.randrange(1, 60), "ignore_eos": True}
                    connection.request("POST", f"/conversations/{id}/answer", json.dumps(body), {"Content-Type": "application/json"})
                    for line in connection.getresponse():
                        if b'"qwenbox":{"message":' in line:
                            parent = json.loads(line[6:])["qwenbox"]["message"]
                            confirmed[id].add(parent)


def until_confirmed(confirmed: dict[str, set[str]], more: int) -> None:
    """Returns when so many more messages are confirmed."""

    def count() -> int:
        return sum(map(len, list(confirmed.values())))

    enough = count() + more
    eventually(lambda: count() >= enough)


def test_no_message_that_was_confirmed_is_lost_when_front_and_worker_are_killed_at_random_moments(qwenbox: Command, tiny: Path) -> None:
    confirmed: dict[str, set[str]] = {}
    chance = random.Random(39)
    for number in range(3):
        process = qwenbox.start("serve", tiny, "--port", 0)
        url = ready(process)
        for id, messages in confirmed.items():
            there = {message["id"]: message.get("state") for message in ask(url, f"/conversations/{id}")[1]["messages"]}
            assert messages <= there.keys()
            assert "running" not in there.values()
        clients = [threading.Thread(target=confirmed_by, args=(url, random.Random(10 * number + one), confirmed)) for one in range(3)]
        for client in clients:
            client.start()
        until_confirmed(confirmed, chance.randrange(5, 60))
        os.kill(worker_of(process), signal.SIGKILL)
        until_confirmed(confirmed, chance.randrange(5))
        process.kill()
        process.communicate()
        for client in clients:
            client.join()


def test_a_full_disk_is_told_to_whoever_writes_answers_stream_on_and_all_goes_on_when_there_is_room(qwenbox: Command, tiny: Path) -> None:
    process = qwenbox.start("serve", tiny, "--port", 0)
    url = ready(process)
    id = ask(url, "/conversations", {"title": "kept"})[1]["id"]
    question = ask(url, f"/conversations/{id}/messages", {"parent": None, "content": "abc"})[1]["id"]
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=60)) as connection:
        body = {"parent": question, "max_tokens": 300, "ignore_eos": True, "temperature": 0}
        connection.request("POST", f"/conversations/{id}/answer", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, most))  # no page of the file can be written any more
        chunks = [json.loads(line[6:]) for line in response if line.startswith(b"data: {")]
    assert chunks[-1]["error"]["code"] == "archive_full" and "Free some space" in chunks[-1]["error"]["message"]
    assert sum(bool(chunk.get("choices")) for chunk in chunks) > 50
    status, told = ask(url, f"/conversations/{id}/messages", {"parent": None, "content": "lost"})
    assert (status, told["error"]["code"]) == (503, "archive_full")
    assert ask(url, "/health")[1]["status"] == "degraded"
    assert ask(url, "/v1/completions", {"prompt": "abc", "max_tokens": 5})[0] == 200
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
    assert ask(url, f"/conversations/{id}/messages", {"parent": None, "content": "there again"})[0] == 201
    messages = ask(url, f"/conversations/{id}")[1]["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["abc", "there again"]
    assert messages[1]["state"] == "interrupted"
    assert ask(url, "/health")[1]["status"] == "ok"
