"""The real command, run as people run it: in a process of its own, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

Finished = subprocess.CompletedProcess[str]


class Command:
    """`qwenbox ...` in an empty directory. Environment variables of ours that the caller has are not passed on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("QWENBOX_", "HF_"))}
        self.env |= {"PYTHONPATH": str(ROOT / "src"), "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
        self.env |= {"XDG_DATA_HOME": str(folder / "data"), "LC_ALL": "C.UTF-8"}
        self.env |= {"XDG_STATE_HOME": str(folder / "state"), "QWENBOX_OFFLINE": "1"}
        self._errors = folder / "errors.txt"
        self._started: list[subprocess.Popen[str]] = []

    def arguments(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "qwenbox", *map(str, words)]

    def __call__(self, *words: object, input: str = "", env: dict[str, str] | None = None, timeout: float = 600) -> Finished:
        return subprocess.run(
            self.arguments(*words), input=input, env={**self.env, **(env or {})}, cwd=self.folder, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip

    def start(self, *words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A running command with pipes for input and output; killed at the end of the test if it still runs then."""
        # Errors go to a file: a pipe that nobody reads would stop a service that logs.
        with self._errors.open("w") as errors:
            process = subprocess.Popen(
                self.arguments(*words), env={**self.env, **(env or {})}, cwd=self.folder,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    @property
    def errors(self) -> str:
        """What the last started command wrote to standard error."""
        return self._errors.read_text(encoding="utf-8")

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)
