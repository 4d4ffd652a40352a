"""What every benchmark needs of its surroundings: the name of the machine, the commit, programs and their words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def machine_name() -> str:
    """Like intel-xeon-processor-2cpu."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    words = re.sub(r"\(R\)|\(TM\)|CPU|@.*", " ", found[1] if found else os.uname().machine)
    return "-".join(re.findall(r"[a-z0-9.]+", words.lower())) + f"-{len(os.sched_getaffinity(0))}cpu"


def commit() -> str:
    """The last one that changed the sources which are measured, with a plus sign where they differ from it."""
    name = run(["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", "src", "CMakeLists.txt"]).strip()
    return name + ("+" if run(["git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "CMakeLists.txt"]).strip() else "")


def local_file(model: str) -> Path:
    """Where the model is: a file or directory as it is named, else a name of the catalogue, fetched if it has to be."""
    if Path(model).exists():
        return Path(model).resolve()
    out = run([sys.executable, "-m", "qwenbox", "pull", model, "--json"], env={"PYTHONPATH": str(ROOT / "src")})
    return Path(json.loads(out.splitlines()[-1])["path"])


def tool(name: str) -> str:
    """A program of this Python environment, else of the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def run(command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """What the program writes to standard output. Ends this program, with the words of the other, where it fails. `env` is added to ours."""
    done = subprocess.run(command, env=os.environ | (env or {}), cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
