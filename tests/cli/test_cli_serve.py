"""`qwenbox serve` on the small real model."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cli.command import Command

pytestmark = pytest.mark.weights


def ask(url: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, Any]:
    place = urlsplit(url)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    with contextlib.closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        connection.request("GET" if body is None else "POST", path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if "json" in (response.getheader("Content-Type") or "") else text


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
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in qwenbox.errors


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
    process.communicate(timeout=30)
    assert process.returncode == 0

    again = qwenbox.start("serve", small, "--port", 0, "--host", "0.0.0.0")
    first_url(again)
    again.send_signal(signal.SIGTERM)
    output, _ = again.communicate(timeout=30)
    assert key not in output
    assert key_file.read_text(encoding="utf-8").strip() == key


def test_a_short_key_is_refused(qwenbox: Command, small: Path) -> None:
    done = qwenbox("serve", small, "--port", 0, "--api-key", "hunter2")
    assert done.returncode == 2
    assert "at least 16" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_a_port_in_use_is_named(qwenbox: Command, small: Path) -> None:
    process = qwenbox.start("serve", small, "--port", 0)
    port = urlsplit(first_url(process)).port
    done = qwenbox("serve", small, "--port", port)
    assert done.returncode == 2
    assert str(port) in done.stderr
