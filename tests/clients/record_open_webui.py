"""What Open WebUI asks of a service: `PYTHONPATH=src python -m tests.clients.record_open_webui` writes tests/fixtures/open_webui.json.

A real Open WebUI, used through its page in Chromium, speaks to the thinker by way of a proxy that writes down every request. The test replays them.
Takes some minutes and 3 GB of an environment of its own; nothing of it leaves this machine, beside the packages that are installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import open_chromium
from tests.clients.environments import python_of
from tests.clients.recorder import Recorder, wait
from tests.clients.test_open_webui import RECORDING
from tests.thinker import ENDLESS, serve

VERSION = "0.12.4"
PACKAGES = (f"open-webui=={VERSION}", "torch==2.13.0")
KEPT_HEADERS = ("content-type", "accept", "user-agent", "authorization")

CALCULATOR = '''"""
title: Calculator
"""
import re


class Tools:
    def calculator(self, expression: str) -> str:
        """
        Evaluate an arithmetic expression.
        :param expression: The expression.
        """
        return str(sum(int(number) for number in re.findall(r"[+-]?[0-9]+", expression)))
'''
CONVERSATIONS = (
    ("thinker", ("What is 3 + 4 + 5?", "And plus 6?")),
    ("calculating", ("What is 12+7 and 40+2?", "Hello!")),
    ("thinker", (ENDLESS,)),
)


@contextmanager
def thinker(folder: Path) -> Iterator[int]:
    """The port of the service."""
    with serve(folder) as (service, _):
        yield service.port


@contextmanager
def open_webui(folder: Path, service: str) -> Iterator[httpx2.Client]:
    """Its API, signed in as its first user."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_port
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder), "WEBUI_SECRET_KEY": "0" * 32, "OFFLINE_MODE": "true",
        "ANONYMIZED_TELEMETRY": "false", "DO_NOT_TRACK": "true", "SCARF_NO_ANALYTICS": "true", "ENABLE_VERSION_UPDATE_CHECK": "false",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true", "RAG_EMBEDDING_ENGINE": "openai", "ENABLE_OLLAMA_API": "false",
        "OPENAI_API_BASE_URL": f"{service}/v1", "OPENAI_API_KEY": "none",
    }  # fmt: skip
    program = python_of("open-webui", PACKAGES).with_name("open-webui")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port)], env=environment, cwd=folder, stdout=log, stderr=log
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as api:

            def is_up() -> bool:
                try:
                    return api.get("/health").is_success
                except httpx2.TransportError:
                    return False

            wait(is_up, 300)
            signed_in = post(api, "/api/v1/auths/signup", {"name": "Ada", "email": "ada@example.org", "password": "Analytical-1"})
            api.headers["authorization"] = f"Bearer {signed_in['token']}"
            yield api
    finally:
        process.terminate()
        process.wait(60)


def post(api: httpx2.Client, path: str, body: Any) -> Any:
    response = api.post(path, json=body)
    response.raise_for_status()
    return response.json()


def prepare(api: httpx2.Client) -> None:
    """A tool, and a model that has it. Without the tools that every model has, whose schemas take more tokens than the thinker's window."""
    post(api, "/api/v1/tools/create", {"id": "calculator", "name": "Calculator", "content": CALCULATOR, "meta": {"description": "Sums."}})
    for name, base, tools in (("thinker", None, []), ("calculating", "thinker", ["calculator"])):
        meta = {"capabilities": {"builtin_tools": False}, "toolIds": tools}
        post(api, "/api/v1/models/create", {"id": name, "base_model_id": base, "name": name, "meta": meta, "params": {"temperature": 0}})


def drive(window: webdriver.Chrome, api: httpx2.Client, recorder: Recorder) -> Iterator[dict[str, Any]]:
    """Holds the conversations; of each, what Open WebUI keeps of it."""
    window.get(f"{api.base_url}/auth")
    window.execute_script("localStorage.token = arguments[0]; localStorage.locale = 'en-US'", api.headers["authorization"].split()[1])
    for model, turns in CONVERSATIONS:
        window.get(f"{api.base_url}/?models={model}")
        wait(lambda: window.find_elements(By.ID, "chat-input"), 60)
        recorder.wait_quiet()
        for button in window.find_elements(By.CSS_SELECTOR, "[role=dialog] button"):
            if button.is_displayed() and button.text:  # what is new in this version
                button.click()
        for text in turns:
            count = len(recorder.requests)
            box = window.find_element(By.ID, "chat-input")
            wait(lambda box=box: not window.find_elements(By.CSS_SELECTOR, "[role=dialog]") and box.is_displayed(), 30)
            box.click()
            box.send_keys(text, Keys.ENTER)
            if text == ENDLESS:
                wait(lambda: recorder.running, 60)
                time.sleep(1)
                stop = "return [...document.querySelectorAll('#message-input-container button')].find(b => /stop/i.test(b.ariaLabel))"
                wait(lambda stop=stop: window.execute_script(stop), 20)
                window.execute_script(f"({stop.replace('return ', '() => ')})().click()")
            wait(lambda count=count: len(recorder.requests) > count, 60)
            recorder.wait_quiet()
        yield api.get(f"/api/v1/chats/{window.current_url.rpartition('/')[2]}").json()["chat"]


def shown(chat: dict[str, Any]) -> list[list[Any]]:
    """Of each message of the assistant the items that are shown, each as its kind and its text."""
    items = [message.get("output", []) for message in chat["history"]["messages"].values() if message["role"] == "assistant"]
    return [[[item["type"], "".join(part.get("text", "") for part in item.get("content") or [])] for item in output] for output in items]


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recorder = Recorder(stack.enter_context(thinker(folder)), KEPT_HEADERS, lambda body: ENDLESS.encode() in body and b"stream" in body)
        stack.callback(recorder.server.shutdown)
        api = stack.enter_context(open_webui(folder, recorder.url))
        prepare(api)
        window = stack.enter_context(open_chromium())
        chats = [{"title": chat["title"], "shown": shown(chat)} for chat in drive(window, api, recorder)]
    recording = {"version": VERSION, "requests": recorder.requests, "conversations": chats}
    RECORDING.write_text(json.dumps(recording, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
