"""`qwenbox compare`: a service of ours over a scripted engine, beside a fake that speaks Ollama's API and cuts prompts as Ollama does."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from qwenbox.evaluate.comparison import Kept, Speeds, table
from qwenbox.evaluate.needle import NUMBER
from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from qwenbox.types import GenerationPlan
from tests.cli.command import Command
from tests.fakes import FakeEngine, Script, byte_chat, byte_tokenizer, byte_tokenizer_ids

WINDOW = 1000
"""Tokens, a byte each, that the fake keeps of a prompt."""
NEW_TOKENS = 8


class FakeOllama(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.lines({"version": "0.13.0"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        kept = body["prompt"][-WINDOW:]
        words = f" {NUMBER}, and so on" if NUMBER in kept else " I do not know it"
        time.sleep(0.02)
        pieces = [{"response": piece, "done": False} for piece in words[:NEW_TOKENS]]
        self.lines(*pieces, {"response": "", "done": True, "eval_count": len(pieces), "prompt_eval_count": len(kept)})

    def lines(self, *values: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        for value in values:
            self.wfile.write(json.dumps(value).encode() + b"\n")


@pytest.fixture
def ollama() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (FakeOllama,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join(30)


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, FakeEngine]]:
    def reply(plan: GenerationPlan) -> list[int]:
        return byte_tokenizer_ids(f" {NUMBER}, and so on" if NUMBER in byte_tokenizer().decode(plan.prompt_ids) else " one after the other")

    folder = tmp_path_factory.mktemp("state")
    engine = FakeEngine(Script(reply=reply), context_length=32768)
    settings = Settings(port=0, state_dir=folder, cache_dir=folder, data_dir=folder)
    with LocalLLM(engine, byte_chat(), "tiny") as llm, Service(llm, settings) as service:
        yield service, engine


def test_both_are_asked_the_same_in_turn_and_a_prompt_that_is_cut_in_silence_is_shown(
    qwenbox: Command, service: tuple[Service, FakeEngine], ollama: tuple[str, list[dict[str, Any]]]
) -> None:
    (ours, engine), (address, asked) = service, ollama
    plot = qwenbox.folder / "plot.svg"
    options = ("--url", ours.url, "--model", "tiny:latest", "--prompt-tokens", 100, "--new-tokens", NEW_TOKENS, "--long-tokens", 800)
    done = qwenbox("compare", address, *options, "--rounds", 2, "--plot", plot, "--json")
    assert done.returncode == 0, done.stderr
    here, there = json.loads(done.stdout)["services"]
    prompts = [byte_tokenizer().decode(plan.prompt_ids) for plan in engine.plans]
    assert prompts == [body["prompt"] for body in asked]
    assert len(set(prompts)) == len(prompts) == 4, "one to warm up, two rounds, a long one"
    assert all(body["raw"] and "num_ctx" not in body["options"] for body in asked)
    assert (here["name"], there["name"]) == ("qwenbox", "ollama")
    assert len(here["reading"]) == len(there["writing"]) == 2
    assert here["kept"]["found"]
    assert not there["kept"]["found"]
    assert there["verdict"] == f"cut silently: {WINDOW} of {len(prompts[-1])} tokens"
    drawn = ElementTree.fromstring(plot.read_text("utf-8"))
    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert any("cut silently" in text for text in texts)
    shown = qwenbox("compare", address, *options, "--rounds", 1).stdout
    assert "cut silently" in shown


LLAMA_SERVER = f"""#!{sys.executable}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self): self.told()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        usage = {{"prompt_tokens": len(asked["prompt"]), "completion_tokens": 2}}
        self.told(*({{"choices": [{{"text": json.dumps(options)}}]}}, {{"choices": [], "usage": usage}}))
    def told(self, *parts):
        self.send_response(200)
        self.end_headers()
        for part in parts:
            self.wfile.write(f"data: {{json.dumps(part)}}\\n\\n".encode())
with open("asked.json", "w") as file:
    json.dump(options, file)
HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


def test_a_llama_server_is_started_on_the_same_file_with_as_many_threads_and_ended(qwenbox: Command, service: tuple[Service, FakeEngine]) -> None:
    program, model = qwenbox.folder / "bin" / "llama-server", qwenbox.folder / "some.gguf"
    program.parent.mkdir()
    program.write_text(LLAMA_SERVER)
    program.chmod(0o755)
    model.write_bytes(b"GGUF")
    options = ("--model", model, "--url", service[0].url, "--prompt-tokens", 100, "--new-tokens", NEW_TOKENS, "--rounds", 1, "--long-tokens", 100)
    done = qwenbox("compare", "llama.cpp", *options, "--json", env={"PATH": str(program.parent)})
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in json.loads(done.stdout)["services"]] == ["qwenbox", "llama.cpp"]
    asked = json.loads((qwenbox.folder / "asked.json").read_text())
    threads = httpx2.get(f"{service[0].url}/health", trust_env=False).json()["threads"]
    assert (asked["-m"], asked["--threads"]) == (str(model), str(threads))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((asked["--host"], int(asked["--port"])), 5)


def test_a_claim_is_made_only_where_every_round_was_faster() -> None:
    kept = Kept(6000, 6000, found=True)
    other = Speeds("other", (100.0, 110.0, 120.0), (10.0, 11.0, 12.0), kept)
    told = table([Speeds("qwenbox", (200.0, 220.0, 240.0), (11.5, 14.0, 15.0), kept), other])
    assert "qwenbox reads 2.00 times as fast as other." in told
    assert "writes" not in told
    assert "times as fast" not in table([Speeds("qwenbox", (50.0,), (5.0,), kept), other])


def test_what_is_missing_is_said(qwenbox: Command, service: tuple[Service, FakeEngine]) -> None:
    assert "Nobody answers" in qwenbox("compare", "http://127.0.0.1:9", "--model", "x", "--url", service[0].url).stderr
    assert "which .gguf file" in qwenbox("compare", "http://127.0.0.1:9").stderr
    assert "it has none" in qwenbox("compare", "ollama").stderr
