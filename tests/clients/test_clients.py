"""Unmodified clients, each in an environment of its own, against the service: what works is written into docs/clients.md.

The engine is scripted, so what is tested is what goes over the wire.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenbox.engine.client import Deliver
from qwenbox.engine.protocol import refusal
from qwenbox.errors import OverloadedError
from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings, child_environment
from qwenbox.types import GenerationPlan
from tests.clients.environments import ROOT, python_of
from tests.fakes import FakeEngine, Script, byte_chat, byte_tokenizer, byte_tokenizer_ids

CLIENTS = {
    "openai": ("openai",),
    "anthropic": ("anthropic",),
    "ollama": ("ollama",),
    "langchain-openai": ("langchain-openai",),
    "litellm": ("litellm", "tenacity", "mcp"),
    "qwen-agent": ("qwen-agent", "numpy", "soundfile", "python-dateutil", "tqdm"),
    "lm-eval": ("lm-eval[api]",),
}
"""And what is installed for each."""
CHECKS = {
    "stream": "stream",
    "tools": "two parallel calls, there and back",
    "schema": "JSON schema",
    "full": "429, then again",
    "overflow": "too long a prompt",
    "cancel": "stream left",
    "usage": "usage",
    "scores": "log-likelihoods",
}
ROWS = (*CLIENTS, "open-webui")
"""Of the table; the last one is written by test_open_webui.py."""
START, END = "<!-- written by tests/clients/test_clients.py -->", "<!-- end -->"
CALLS = "".join(f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>\n' for city in ("Paris", "Rome"))
ANSWERS = (
    ("<tool_response>", "It is 26 degrees in Paris and 31 in Rome."),
    ("How warm is it", CALLS.strip()),
    ("Answer as JSON", '{"name": "Ada", "age": 36}'),
    ("Go on for ever", "abc" * 4500),
)
"""What the engine says to a prompt that holds the text; the first that fits."""


class ScriptedEngine(FakeEngine):
    refused = 0

    def submit(self, plan: GenerationPlan, deliver: Deliver) -> None:
        """Two in three requests of a crowd are refused."""
        if "Everybody asks at once" in byte_tokenizer().decode(plan.prompt_ids):
            self.refused += 1
            if self.refused % 3:
                deliver(refusal(plan, OverloadedError("Too many wait.", status=429, retry_after=1)))
                return
        super().submit(plan, deliver)


def reply(plan: GenerationPlan) -> list[int]:
    prompt = byte_tokenizer().decode(plan.prompt_ids)
    prompt = prompt[prompt.rindex("<|im_start|>user") :] if "<|im_start|>user" in prompt else prompt
    text = next((answer for key, answer in ANSWERS if key in prompt), Script().text)
    if prompt.endswith("<think>\n"):
        text = f"So it is.\n</think>\n\n{text}"
    return [*byte_tokenizer_ids(text), *plan.stop_ids[:1]]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[str, ScriptedEngine]]:
    engine = ScriptedEngine(Script(reply=reply), context_length=16384, step_seconds=0.0005)
    llm = LocalLLM(engine, byte_chat(), "tiny", request_timeout=60)
    service = Service(llm, Settings(port=0, state_dir=tmp_path, cache_dir=tmp_path))
    service.start()
    yield service.url, engine
    service.stop()
    llm.close()


@pytest.mark.long
@pytest.mark.parametrize("client", CLIENTS)
def test_an_unmodified_client_works(client: str, running: tuple[str, ScriptedEngine]) -> None:
    url, engine = running
    script = Path(__file__).parent / f"with_{client.replace('-', '_')}.py"
    environment = child_environment(SERVICE_URL=url, NO_PROXY="*", OPENAI_API_KEY="none", LITELLM_LOCAL_MODEL_COST_MAP="True")
    done = subprocess.run([python_of(client, CLIENTS[client]), script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    wrong = {name: why for name, why in results.items() if why is not None}
    assert not wrong, "\n".join(wrong.values())
    if "cancel" in results:
        engine.wait_for(lambda engine: engine.num_running == 0, timeout=5)
        assert engine.cancelled
    note(client, set(results))


def note(client: str, worked: set[str]) -> None:
    """Writes the client's row into the document; the test fails where that was not what it said."""
    page = ROOT / "docs" / "clients.md"
    before = page.read_text("utf-8")
    head, rest = before.split(START)
    table, tail = rest.split(END)
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    rows[client] = f"| `{client}` | {' | '.join('yes' if name in worked else '' for name in CHECKS)} |"
    title = [f"| Client | {' | '.join(CHECKS.values())} |", f"|---|{'---|' * len(CHECKS)}"]
    after = f"{head}{START}\n{chr(10).join([*title, *(rows[name] for name in ROWS if name in rows)])}\n{END}{tail}"
    if after != before:
        page.write_text(after, "utf-8")
    assert after == before, f"docs/clients.md said something else of {client}; now it says what was seen"
