"""The code of an answer, executed with its tests in a child process that may only compute."""

from __future__ import annotations

import json
import secrets
import signal
from pathlib import Path
from typing import Any, NamedTuple

from qwenbox.confinement import run
from qwenbox.errors import EngineError

from . import examiner

SECONDS = 120.0
"""By the clock on the wall. The limit that judges is the processor's time (`examiner.CPU_SECONDS`); beside a model that computes, whose answers
go first, a child gets a tenth of a processor."""
MAX_OUTPUT_BYTES = 1 << 16


class Outcome(NamedTuple):
    passed: bool
    reason: str
    """Why it did not pass: the error and the line of the tests, or what became of the process."""


def check_confinement() -> None:
    """Raises EngineError where the system does not confine a process: nothing must be executed there."""
    works = examine("def one(): return 1", "assert one() == 1")
    opens = examine("import os", "os.open('/', os.O_RDONLY)")
    if not works.passed or "PermissionError" not in opens.reason:
        raise EngineError(
            f"answers are not executed here: the system cannot confine a process, for which Linux on x86-64 with seccomp is needed "
            f"({works.reason or opens.reason})"
        )


def examine(code: str, tests: str) -> Outcome:
    """Blocks."""
    verdict = secrets.token_hex(16)
    task = json.dumps({"code": code, "tests": tests, "verdict": verdict}).encode()
    try:
        done = run(Path(examiner.__file__), task, seconds=SECONDS, max_output=MAX_OUTPUT_BYTES)
    except OSError as error:
        raise EngineError(f"the process that runs answers does not start: {error}") from error
    if (told := _told(done.output, verdict)) is not None:
        return Outcome(told["passed"] is True, str(told["reason"]))
    if done.ended == "time" or done.status == -signal.SIGXCPU:
        return Outcome(False, "it takes too long")
    if done.ended == "output":
        return Outcome(False, "it writes too much")
    return Outcome(False, f"it was ended by signal {-done.status}" if done.status < 0 else f"it ended itself with status {done.status}")


def _told(output: bytes, verdict: str) -> dict[str, Any] | None:
    try:
        told: Any = json.loads(output)
    except ValueError:
        return None
    return told if isinstance(told, dict) and told.get("verdict") == verdict else None
