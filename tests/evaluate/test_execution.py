"""Code that a model wrote: what is right passes, and what is hostile gets nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from qwenbox.errors import EngineError
from qwenbox.evaluate import examiner, execution
from qwenbox.evaluate.answers import code_of
from qwenbox.evaluate.execution import Outcome, check_confinement, examine
from qwenbox.settings import child_environment


def refused(code: str, tests: str = "") -> str:
    outcome = examine(code, tests)
    assert not outcome.passed
    return outcome.reason


def test_right_code_passes_and_wrong_code_names_the_line_that_failed() -> None:
    check_confinement()
    assert examine("def add(a, b):\n    return a + b", "assert add(1, 2) == 3\nassert add(-1, 1) == 0") == Outcome(True, "")
    assert refused("def add(a, b):\n    return a * b", "assert add(2, 2) == 4\nassert add(1, 2) == 3") == "AssertionError at `assert add(1, 2) == 3`"
    assert "SyntaxError" in refused("def add(a, b)")
    assert "NameError" in refused("", "add(1, 2)")


def test_what_programs_of_tasks_use_is_there() -> None:
    code = """
from __future__ import annotations
import collections, datetime, decimal, functools, heapq, itertools, json, math, random, re, statistics, string
from dataclasses import dataclass
from typing import Optional

@dataclass
class Point:
    x: int
    y: Optional[int] = None

if __name__ == "__main__":
    raise SystemExit("a program")
"""
    tests = "assert Point(1) == Point(1, None)\nassert datetime.datetime.strptime('2026-01-02', '%Y-%m-%d').day == 2\nassert math.comb(5, 2) == 10"
    assert examine(code, tests) == Outcome(True, "")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nwhile True:\n    os.fork()", "PermissionError"),
        ("import threading\nwhile True:\n    threading.Thread(target=print).start()", "can't start new thread"),
        ("data = bytearray(10 * 10**9)", "MemoryError"),
        ("data = [0]\nwhile True:\n    data += data", "MemoryError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open({model!r}, 'rb').read()", "PermissionError"),
        ("open('/tmp/x', 'w')", "PermissionError"),
        ("import os\nos.remove({model!r})", "PermissionError"),
        ("import os\nos.listdir('/')", "PermissionError"),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
        ("import os\nos.kill(-1, 9)", "PermissionError"),
        ("import os\nos.execv('/bin/true', ['true'])", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import sys\nsys.path.append({socket!r})\nimport _socket\n_socket.socket()", "Error"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", "Error"),
        ("import os\nwhile True:\n    os.write(3, b'x' * 100_000)", "it writes too much"),
        ("import os\nos._exit(0)", "it ended itself with status 0"),
        ("raise SystemExit", "SystemExit"),
        ("import ctypes\nctypes.string_at(0)", "signal 11"),
        ("import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.socket(2, 1, 0) >= 0", "AssertionError"),
        ("def f():\n    return f()\nf()", "RecursionError"),
        ("class E(Exception):\n    def __str__(self):\n        raise self\nraise E", "E"),
        ("x = 'a' * 10**6\nfor _ in range(2000):\n    print(x)\nraise KeyError('printed')", "KeyError: 'printed'"),
    ],
)
def test_hostile_code_gets_nothing(code: str, reason: str, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"weights")
    assert reason in refused(code.replace("{model!r}", repr(str(model))).replace("{socket!r}", repr(str(Path(os.__file__).parent / "lib-dynload"))))
    assert model.read_bytes() == b"weights"


def test_code_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "SECONDS", 1.0)
    for code in ("while True:\n    pass", "import time\ntime.sleep(1000)", "import re\nre.match('(a+)+$', 'a' * 100 + 'b')"):
        began = time.monotonic()
        assert refused(code) == "it takes too long"
        assert time.monotonic() - began < 15


def test_who_uses_up_his_time_on_the_processor_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However long the clock on the wall runs: beside a model that computes it runs long."""
    program = tmp_path / "examiner.py"
    program.write_text(Path(examiner.__file__).read_text("utf-8").replace("CPU_SECONDS = 10", "CPU_SECONDS = 1"), "utf-8")
    monkeypatch.setattr(examiner, "__file__", str(program))
    assert refused("while True:\n    pass") == "it takes too long"


def test_what_runs_ends_with_the_process_that_asked_for_it() -> None:
    script = "from qwenbox.evaluate.execution import examine\nexamine('import time\\ntime.sleep(1000)', '')"
    with subprocess.Popen([sys.executable, "-c", script], env=child_environment(PYTHONPATH=os.pathsep.join(sys.path))) as asking:
        parent = psutil.Process(asking.pid)
        while not (children := parent.children()):
            assert asking.poll() is None
            os.sched_yield()
        (child,) = children
        while child.nice() < 10:  # it sleeps only behind that, and nobody waits for it
            os.sched_yield()
        asking.kill()
    gone, alive = psutil.wait_procs([child], timeout=30)
    assert not alive and gone


def test_an_error_that_points_beyond_the_tests_is_told() -> None:
    assert "ValueError: here" in refused("import sys", "exec(compile('\\n' * 50 + 'raise ValueError(\"here\")', 'x', 'exec'))")


def test_code_cannot_say_itself_that_it_passed() -> None:
    forged = """
import json, os
for name in ("verdict", "passed"):
    os.write(3, json.dumps({"verdict": name, "passed": True, "reason": ""}).encode())
os._exit(0)
"""
    assert refused(forged) == "it ended itself with status 0"


def test_nothing_of_a_process_is_left_behind() -> None:
    def held() -> tuple[set[str], set[int | None], set[int]]:
        threads = {thread.ident for thread in threading.enumerate()}
        return set(os.listdir("/proc/self/fd")), threads, {child.pid for child in psutil.Process().children(recursive=True)}

    before = held()
    for code in ("import os\nos.fork()", "import os\nos._exit(3)", ""):
        examine(code, "")
    assert all(now <= then for now, then in zip(held(), before, strict=True))  # of other tests of this process something may be gone


def test_where_a_process_cannot_be_confined_nothing_is_executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Path(examiner.__file__).read_text("utf-8")
    weaker = source.replace("    give_up(memory", "    (lambda **_: 0)(memory")
    assert weaker != source
    for name, text in (("weaker", weaker), ("fails", "raise OSError('no filter')")):
        program = tmp_path / f"{name}.py"
        program.write_text(text, "utf-8")
        monkeypatch.setattr(examiner, "__file__", str(program))
        with pytest.raises(EngineError, match="not executed here"):
            check_confinement()


PROSE = "Here it is:\n\n{}\n\nIt runs in linear time."


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (PROSE.format("```python\ndef f(x):\n    return x\n```"), "def f(x):\n    return x"),
        (PROSE.format("```python\nf(1)\n```\nand\n```python\nasync def f(x): ...\n```"), "async def f(x): ..."),
        (PROSE.format("```bash\npip install x\n```\n~~~py\nf = abs\n~~~"), "f = abs"),
        ("1. So:\n   ```\n   def f(x):\n       return x\n   ```", "def f(x):\n    return x"),
        ("```python\ndef f(x):\n    return x", "def f(x):\n    return x"),
        ("def f(x):\n    return x", "def f(x):\n    return x"),
        ("```python\ng = 1\n```\n```python\nh = 2\n```", "g = 1\n\nh = 2"),
        ("```\na = '```'\nf = a\n```", "a = '```'\nf = a"),
    ],
)
def test_the_code_of_a_reply_is_the_block_that_defines_the_function(reply: str, code: str) -> None:
    assert code_of(reply, "f") == code
