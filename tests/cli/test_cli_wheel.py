"""The wheel of `make dist` installs and runs on a machine that has no compiler, no cmake and no node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import ROOT, Command
from tests.kernels.programs import building

pytestmark = [pytest.mark.long, pytest.mark.weights]

TOOLS = ("gcc", "g++", "cc", "c++", "clang", "cmake", "ninja", "make", "node")


def test_the_wheel_needs_no_tools(tmp_path: Path, qwenbox: Command, real_model: Callable[[str], Path]) -> None:
    model = real_model("qwen2.5-coder-0.5b")
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with building("native"):
        subprocess.run(build, check=True, env={**os.environ, "PATH": path}, capture_output=True, timeout=900)
    (wheel,) = wheels.glob("qwenbox-*.whl")
    assert "py3-none" in wheel.name

    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    # Only what a shell needs: the programs by name, so that no directory brings a compiler along.
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env", "uname", "ldconfig"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    env = {**qwenbox.env, "PATH": f"{home / 'bin'}:{tools}"}
    del env["PYTHONPATH"]
    assert not any(shutil.which(name, path=env["PATH"]) for name in TOOLS)

    install = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--only-binary", ":all:", str(wheel)]
    subprocess.run(install, check=True, env=env, capture_output=True, timeout=900)
    words = [str(home / "bin" / "qwenbox"), "run", str(model), "What is the capital of France? Answer with one word.", "--temperature", "0"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    listed = subprocess.run(
        [str(home / "bin" / "python"), "-c", "import qwenbox, pathlib; print(*pathlib.Path(qwenbox.__file__).parent.rglob('*'))"],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "index.html" in listed
    assert "qwen3.jinja" in listed
    assert ".cpp" not in listed
