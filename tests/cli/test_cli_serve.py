"""`qwenbox serve` as a process: on the small real model, and on a tiny one that a hub on loopback hands out."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from qwenbox.kernels.native import isa_available
from tests.chat.small import small_document
from tests.cli.command import ROOT, Command
from tests.hub.fake_hub import Fake, serving


def ask(url: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, Any]:
    place = urlsplit(url)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    with contextlib.closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        connection.request("GET" if body is None else "POST", path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if "json" in (response.getheader("Content-Type") or "") else text


def retry_after(url: str, path: str) -> str | None:
    place = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        connection.request("GET", path)
        return connection.getresponse().getheader("Retry-After")


def first_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("qwenbox listens on http://"), line
    return line.split()[-1]


def wait_ready(url: str) -> list[int]:
    """The statuses of /ready until it is 200."""
    statuses = []
    deadline = time.monotonic() + 60
    while not statuses or statuses[-1] != 200:
        assert time.monotonic() < deadline
        statuses.append(ask(url, "/ready")[0])
        time.sleep(0.05)
    return statuses


@pytest.mark.weights
def test_serve_prints_its_address_at_once_answers_and_leaves_with_130(qwenbox: Command, small: Path) -> None:
    process = qwenbox.start("serve", small, "--port", 0)
    url = first_url(process)
    assert url.startswith("http://127.0.0.1:")
    assert ask(url, "/health")[0] == 200
    assert set(wait_ready(url)) <= {200, 503}
    status, answer = ask(url, "/v1/completions", {"prompt": "1, 2, 3, 4,", "max_tokens": 6, "temperature": 0})
    assert status == 200
    assert "5" in answer["choices"][0]["text"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in qwenbox.errors


@pytest.mark.weights
def test_beyond_loopback_a_key_is_made_once_and_needed(qwenbox: Command, small: Path) -> None:
    process = qwenbox.start("serve", small, "--port", 0, "--host", "0.0.0.0")
    url = first_url(process)
    key_file = qwenbox.folder / "state" / "qwenbox" / "api-key"
    key = key_file.read_text(encoding="utf-8").strip()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(8)]
    assert any(f"/#key={key}" in line for line in told)
    assert any(line.strip().startswith("curl ") and key in line for line in told)
    assert ask(url, "/v1/models")[0] == 401
    assert ask(url, "/v1/models", key=key)[0] == 200
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0

    again = qwenbox.start("serve", small, "--port", 0, "--host", "0.0.0.0")
    first_url(again)
    again.send_signal(signal.SIGTERM)
    output, _ = again.communicate(timeout=60)
    assert key not in output
    assert key_file.read_text(encoding="utf-8").strip() == key


@pytest.mark.weights
def test_a_short_key_is_refused(qwenbox: Command, small: Path) -> None:
    done = qwenbox("serve", small, "--port", 0, "--api-key", "hunter2")
    assert done.returncode == 2
    assert "at least 16" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.weights
def test_a_port_in_use_is_named(qwenbox: Command, small: Path) -> None:
    process = qwenbox.start("serve", small, "--port", 0)
    port = urlsplit(first_url(process)).port
    done = qwenbox("serve", small, "--port", port)
    assert done.returncode == 2
    assert str(port) in done.stderr


# --- a tiny model: its ids are bytes, and what it says means nothing ---------------------------------------------------


def tiny_files() -> dict[str, bytes]:
    folder = ROOT / "tests" / "golden" / "qwen3"
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    return {**files, "tokenizer.json": json.dumps(small_document()).encode()}


@pytest.fixture
def fake_hub() -> Iterator[Fake]:
    """A hub that has the tiny model under the name that the catalogue knows."""
    with serving(Fake(files=tiny_files(), repository="Qwen/Qwen3-0.6B")) as fake:
        yield fake


def online(fake: Fake) -> dict[str, str]:
    return {"QWENBOX_OFFLINE": "", "QWENBOX_HUB_ENDPOINT": fake.url}


def until(url: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """What /ready says when it fulfils the condition."""
    deadline = time.monotonic() + 60
    while True:
        status, body = ask(url, "/ready")
        assert (status == 200) == (body["state"] == "ready")
        if condition(body):
            return body
        assert time.monotonic() < deadline, body
        assert body["state"] != "failed", body


def test_the_port_answers_while_a_model_is_fetched_and_then_the_model_does(qwenbox: Command, fake_hub: Fake) -> None:
    total = sum(map(len, fake_hub.files.values()))
    fake_hub.stall_after = total // 4
    process = qwenbox.start("serve", "qwen3-0.6b", "--port", 0, env=online(fake_hub))
    url = first_url(process)
    assert ask(url, "/health")[0] == 200
    assert fake_hub.stalled.wait(60)
    quarter = until(url, lambda body: body.get("bytes", 0) > total // 8)
    assert (quarter["state"], quarter["model"], quarter["total_bytes"]) == ("fetching", "qwen3-0.6b", total)
    assert quarter["progress"] == quarter["bytes"] / total < 0.5
    assert int(retry_after(url, "/ready") or 0) >= 1
    coming = until(url, lambda body: body.get("speed"))  # what will run it, and how fast at best, is said before it is there
    assert (coming["state"], coming["isa"] in isa_available(), coming["threads"] >= 1) == ("fetching", True, True)
    status, refused = ask(url, "/tokenize", {"prompt": "abc"})
    assert (status, refused["error"]["code"]) == (503, "model_loading")
    assert "fetching" in refused["error"]["message"]
    assert ask(url, "/")[0] == ask(url, "/v1/models")[0] == 200
    fake_hub.go_on(total // 2)
    assert fake_hub.stalled.wait(60)
    half = until(url, lambda body: body["bytes"] > quarter["bytes"])
    assert half["state"] == "fetching"
    assert half["progress"] > quarter["progress"]
    fake_hub.go_on(None)
    # A request that comes now waits for the model.
    status, stream = ask(url, "/v1/completions", {"prompt": "abc", "max_tokens": 4, "temperature": 0, "stream": True})
    assert status == 200
    assert '"finish_reason":"length"' in stream.replace(" ", "")
    assert stream.rstrip().endswith("data: [DONE]")
    assert ask(url, "/health")[1]["isa"] in isa_available()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    for phase in ("fetching", "ready"):
        assert f" info {phase} model=qwen3-0.6b " in qwenbox.errors


def test_a_service_that_fetches_stops_at_once(qwenbox: Command, fake_hub: Fake) -> None:
    fake_hub.stall_after = 1000
    process = qwenbox.start("serve", "qwen3-0.6b", "--port", 0, env=online(fake_hub))
    first_url(process)
    assert fake_hub.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in qwenbox.errors


def test_a_hub_that_is_ill_is_asked_again_and_the_reason_is_told(qwenbox: Command, fake_hub: Fake) -> None:
    fake_hub.status = 503
    process = qwenbox.start("serve", "qwen3-0.6b", "--port", 0, env=online(fake_hub))
    url = first_url(process)
    told = until(url, lambda body: "error" in body)
    assert told["state"] == "fetching"
    assert "the hub answered 503" in told["error"]["message"]
    fake_hub.status = None
    assert "error" not in until(url, lambda body: body["state"] == "ready")


def test_a_model_that_cannot_be_had_is_said_and_ends_the_process(qwenbox: Command, fake_hub: Fake) -> None:
    fake_hub.served["model.safetensors"] = bytes(len(fake_hub.files["model.safetensors"]))
    process = qwenbox.start("serve", "qwen3-0.6b", "--port", 0, env=online(fake_hub))
    url = first_url(process)
    deadline = time.monotonic() + 60
    while (body := ask(url, "/ready")[1])["state"] != "failed":
        assert time.monotonic() < deadline
    assert "the digest is" in body["error"]["message"]
    process.communicate(timeout=60)
    assert process.returncode == 69
    assert "qwenbox: model.safetensors: the digest is" in qwenbox.errors
    assert qwenbox("serve", "qwen3-0.6b", "--port", 0).returncode == 69, "offline, nothing is to be had"


def test_a_name_that_no_model_has_is_refused_before_the_port_is_open(qwenbox: Command) -> None:
    done = qwenbox("serve", "qwen9", "--port", 0)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no model 'qwen9'" in done.stderr


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_the_variant_that_the_environment_names_is_the_one_that_runs(qwenbox: Command, isa: str) -> None:
    if isa not in isa_available():
        pytest.skip(f"this machine has no {isa}")
    folder = qwenbox.folder / "tiny"
    folder.mkdir()
    for name, content in tiny_files().items():
        (folder / name).write_bytes(content)
    url = first_url(qwenbox.start("serve", folder, "--port", 0, env={"QWENBOX_ISA": isa, "QWENBOX_THREADS": "1"}))
    until(url, lambda body: body["state"] == "ready")
    status, body = ask(url, "/health")
    assert (status, body["status"], body["isa"], body["threads"]) == (200, "ok", isa, 1)
    assert ask(url, "/v1/completions", {"prompt": "abc", "max_tokens": 2})[0] == 200


def test_a_variant_that_the_machine_does_not_have_is_named(qwenbox: Command) -> None:
    folder = qwenbox.folder / "tiny"
    folder.mkdir()
    for name, content in tiny_files().items():
        (folder / name).write_bytes(content)
    done = qwenbox("serve", folder, "--port", 0, env={"QWENBOX_ISA": "mmx"})
    assert done.returncode == 2
    assert "'mmx' is not available" in done.stderr
