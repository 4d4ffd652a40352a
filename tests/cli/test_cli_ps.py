"""`qwenbox ps` and `qwenbox stop` beside `qwenbox serve`: two tiny models, each in a real worker."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from qwenbox.hub.manifest import FileDigest, Manifest, write_manifest
from tests.cli.command import Command
from tests.cli.test_cli_serve import ask, first_url, tiny_files, wait_ready


@pytest.fixture
def tiny(qwenbox: Command) -> Path:
    """A tiny model as a directory, and another one in the cache under a name of the catalogue."""
    cached = qwenbox.folder / "cache" / "qwenbox" / "models" / "qwen3-0.6b"
    for folder in (qwenbox.folder / "tiny", cached):
        folder.mkdir(parents=True)
        for name, content in tiny_files().items():
            (folder / name).write_bytes(content)
    files = {name: FileDigest(len(content), "unread") for name, content in tiny_files().items()}
    write_manifest(cached, Manifest("qwen3-0.6b", "a hub", "1", files))
    return qwenbox.folder / "tiny"


def test_a_second_model_is_loaded_shown_and_stopped_and_its_process_is_gone(qwenbox: Command, tiny: Path) -> None:
    service = qwenbox.start("serve", tiny, "--port", 0, "--keep-alive", 600, "--alias", "gpt-4o=qwen3-0.6b", "--alias", "gpt-4=tiny")
    url = first_url(service)
    wait_ready(url)
    assert len(psutil.Process(service.pid).children()) == 1
    shown = qwenbox("ps", "--url", url).stdout.splitlines()
    assert [line.split()[:2] for line in shown] == [["NAME", "STATE"], ["tiny", "ready"]]
    assert shown[1].endswith("until its memory is needed")
    body = {"prompt": "abc", "max_tokens": 4, "temperature": 0}
    answers = [ask(url, "/v1/completions", body | {"model": name}) for name in ("gpt-4o", "gpt-4", "qwen3-0.6b", "tiny")]
    assert [status for status, _ in answers] == [200] * 4
    assert [answer["model"] for _, answer in answers] == ["qwen3-0.6b", "tiny", "qwen3-0.6b", "tiny"]
    assert len({answer["choices"][0]["text"] for _, answer in answers}) == 1, "the same weights"
    told = json.loads(qwenbox("ps", "--url", url, "--json").stdout)
    assert [(model["id"], model["qwenbox"]["state"]) for model in told] == [("tiny", "ready"), ("qwen3-0.6b", "ready")]
    assert 0 < told[1]["qwenbox"]["unloads_in"] <= 600
    workers = psutil.Process(service.pid).children()
    assert len(workers) == 2
    stopped = qwenbox("stop", "qwen3-0.6b", "--url", url)
    assert (stopped.returncode, stopped.stdout) == (0, "qwen3-0.6b is not loaded any more.\n")
    assert [line.split()[0] for line in qwenbox("ps", "--url", url).stdout.splitlines()] == ["NAME", "tiny"]
    assert len(psutil.Process(service.pid).children()) == 1
    unknown = qwenbox("stop", "qwen9", "--url", url)
    assert unknown.returncode == 1 and "there are tiny, qwen3-0.6b, gpt-4o, gpt-4" in unknown.stderr
    service.send_signal(signal.SIGTERM)
    service.communicate(timeout=60)
    assert service.returncode == 0
    assert not any(worker.is_running() for worker in workers)


def test_where_no_service_runs_a_person_is_told_what_to_do(qwenbox: Command) -> None:
    for words in (("ps",), ("stop", "x")):
        done = qwenbox(*words, "--url", "http://127.0.0.1:9")
        assert (done.returncode, done.stdout) == (1, "")
        assert "No service answers at http://127.0.0.1:9" in done.stderr and "qwenbox serve" in done.stderr
        assert "Traceback" not in done.stderr
    assert "is not an address" in qwenbox("ps", "--url", "ftp://x").stderr


def test_the_key_of_the_settings_is_sent_and_a_missing_one_is_asked_for(qwenbox: Command, tiny: Path) -> None:
    key = "0123456789abcdef"
    url = first_url(qwenbox.start("serve", tiny, "--port", 0, "--api-key", key))
    refused = qwenbox("ps", "--url", url)
    assert refused.returncode == 1 and "QWENBOX_API_KEY" in refused.stderr
    assert qwenbox("ps", "--url", url, env={"QWENBOX_API_KEY": key}).returncode == 0
