"""What a program for coding asks of a service: `PYTHONPATH=src python -m tests.clients.record_launched claude` (or qwen) writes tests/fixtures.

The real program is launched as people launch it, and speaks to a scripted engine by way of a proxy: one question, one call of a
tool, the answer. Of its texts only their lengths are kept: they are not ours. The test replays the requests with as much of our own.
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
from typing import NamedTuple

from qwenbox.llm import LocalLLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings, child_environment
from qwenbox.types import GenerationPlan
from tests.clients.environments import ROOT, node_program
from tests.clients.lengths import Lengths
from tests.clients.recorder import Recorder
from tests.clients.test_launched import FIXTURES
from tests.fakes import FakeEngine, Script, byte_chat, byte_tokenizer, byte_tokenizer_ids

KEPT_HEADERS = ("content-type", "accept", "user-agent", "authorization", "anthropic-version", "anthropic-beta", "x-app", "x-stainless-timeout")
QUESTION = "What does note.txt say?"


class Recorded(NamedTuple):
    name: str
    package: str
    tool: str
    """Which reads a file."""
    version: str
    """Expression that finds it in the headers."""
    installer: str | None = None


PROGRAMS = {
    "claude": Recorded("claude-code", "@anthropic-ai/claude-code", "Read", r"claude-cli/([0-9.]+)", "install.cjs"),
    "qwen": Recorded("qwen-code", "@qwen-code/qwen-code", "read_file", r"QwenCode/([0-9.]+)"),
}


def reply(plan: GenerationPlan, tool: str, note: Path) -> list[int]:
    call = json.dumps({"name": tool, "arguments": {"file_path": str(note)}})
    answered = "<tool_response>" in byte_tokenizer().decode(plan.prompt_ids)
    return [*byte_tokenizer_ids("It says hello." if answered else f"<tool_call>\n{call}\n</tool_call>"), *plan.stop_ids[:1]]


def main(name: str) -> None:
    recorded = PROGRAMS[name]
    program = node_program(recorded.name, recorded.package, name)
    package = program.parents[1] / recorded.package
    if recorded.installer is not None:
        subprocess.run(["node", package / recorded.installer], cwd=package, check=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = folder / "work"
        work.mkdir()
        note = work / "note.txt"
        note.write_text("hello\n")
        engine = FakeEngine(Script(reply=lambda plan: reply(plan, recorded.tool, note)), context_length=400_000, num_pages=16384)
        llm = stack.enter_context(LocalLLM(engine, byte_chat(), "tiny"))
        service = stack.enter_context(Service(llm, Settings(port=0, state_dir=folder, cache_dir=folder, data_dir=folder)))
        recorder = Recorder(service.port, KEPT_HEADERS)
        stack.callback(recorder.server.shutdown)
        environment = child_environment(
            PATH=f"{program.parent}:{os.environ['PATH']}", PYTHONPATH=str(ROOT / "src"), QWENBOX_STATE_DIR=str(folder / "state")
        )
        command = [sys.executable, "-m", "qwenbox", "launch", "--url", recorder.url, name, "-p", QUESTION]
        done = subprocess.run(command, env=environment, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        print(done.stdout, done.stderr)
        assert done.stdout.strip() == "It says hello."
    version = re.search(recorded.version, str(recorder.requests))
    lengths = Lengths()
    asked = [request | {"body": lengths.of(request["body"])} for request in recorder.requests if not request["path"].startswith("/v1/models")]
    kept = json.dumps({"version": version and version[1], "requests": asked}, indent=1) + "\n"
    (FIXTURES / f"{recorded.name.replace('-', '_')}.json").write_text(kept, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
