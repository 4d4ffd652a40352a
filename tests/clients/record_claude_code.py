"""What Claude Code asks of a service: `PYTHONPATH=src python -m tests.clients.record_claude_code` writes tests/fixtures/claude_code.json.

The real program is launched as people launch it, and speaks to a scripted engine by way of a proxy: one question, one call of a tool, the answer.
Of its texts only their lengths are kept: they are not ours. The test replays the requests with as much of our own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings, child_environment
from qwenbox.types import GenerationPlan
from tests.clients.environments import ROOT, node_program
from tests.clients.recorder import Recorder
from tests.clients.test_claude_code import RECORDING
from tests.fakes import FakeEngine, Script, byte_chat, byte_tokenizer, byte_tokenizer_ids

PACKAGE = "@anthropic-ai/claude-code"
KEPT_HEADERS = ("content-type", "accept", "user-agent", "authorization", "anthropic-version", "anthropic-beta", "x-app", "x-stainless-timeout")
QUESTION = "What does note.txt say?"
MAX_KEPT = 40


def reply(plan: GenerationPlan, folder: Path) -> list[int]:
    call = json.dumps({"name": "Read", "arguments": {"file_path": str(folder / "note.txt")}})
    answered = "<tool_response>" in byte_tokenizer().decode(plan.prompt_ids)
    return [*byte_tokenizer_ids("It says hello." if answered else f"<tool_call>\n{call}\n</tool_call>"), *plan.stop_ids[:1]]


class Lengths:
    """Texts by their lengths: `<3: 120 characters>` is the third that was met, everywhere the same."""

    def __init__(self) -> None:
        self._met: dict[str, int] = {}

    def of(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: self.of(one, key) for key, one in value.items()}
        if isinstance(value, list):
            return [self.of(one, name) for one in value]
        if not isinstance(value, str):
            return value
        if value.startswith("x-anthropic-billing-header:"):
            return "x-anthropic-billing-header: cc_version=1;"
        if name == "user_id":
            return json.dumps({"device_id": "0" * 64, "account_uuid": "", "session_id": "00000000-0000-4000-8000-000000000000"})
        if len(value) <= MAX_KEPT and name not in ("description", "text") and "/" not in value and " " not in value:
            return value
        number = self._met.setdefault(value, len(self._met) + 1)
        return f"<{number}: {len(value)} characters>"


def main() -> None:
    program = node_program("claude-code", PACKAGE, "claude")
    package = program.parents[1] / PACKAGE
    subprocess.run(["node", package / "install.cjs"], cwd=package, check=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = folder / "work"
        work.mkdir()
        (work / "note.txt").write_text("hello\n")
        engine = FakeEngine(Script(reply=lambda plan: reply(plan, work)), context_length=400_000, num_pages=16384)
        llm = stack.enter_context(LocalLLM(engine, byte_chat(), "tiny"))
        service = stack.enter_context(Service(llm, Settings(port=0, state_dir=folder, cache_dir=folder, data_dir=folder)))
        recorder = Recorder(service.port, KEPT_HEADERS)
        stack.callback(recorder.server.shutdown)
        environment = child_environment(
            PATH=f"{program.parent}:{os.environ['PATH']}", PYTHONPATH=str(ROOT / "src"), QWENBOX_STATE_DIR=str(folder / "state")
        )
        command = [sys.executable, "-m", "qwenbox", "launch", "--url", recorder.url, "claude", "-p", QUESTION]
        done = subprocess.run(command, env=environment, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        print(done.stdout, done.stderr)
        assert done.stdout.strip() == "It says hello."
    version = re.search(r"claude-cli/([0-9.]+)", str(recorder.requests))
    lengths = Lengths()
    asked = [request | {"body": lengths.of(request["body"])} for request in recorder.requests if not request["path"].startswith("/v1/models")]
    RECORDING.write_text(json.dumps({"version": version and version[1], "requests": asked}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
