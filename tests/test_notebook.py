"""The notebook of the documentation runs from the top to the bottom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In a process of its own: the notebook client warns about things that are not ours.
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=240, kernel_name="qwenbox-test").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.weights
def test_the_notebook_runs(tmp_path: Path, real_model: Callable[[str], Path]) -> None:
    real_model("qwen2.5-coder-0.5b")
    kernel = tmp_path / "kernels" / "qwenbox-test"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "qwenbox", "language": "python", "env": {"PYTHONPATH": str(ROOT / "src")}}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    env = {**os.environ, "JUPYTER_PATH": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "IPYTHONDIR": str(tmp_path / "ipython")}
    result = tmp_path / "executed.ipynb"
    command = [sys.executable, "-c", EXECUTE, str(ROOT / "docs" / "notebook.ipynb"), str(result)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [cell for cell in json.loads(result.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    printed = ["".join("".join(output.get("text", "")) for output in cell["outputs"]) for cell in cells]
    assert "Paris" in printed[1]
    assert "def " in printed[3]
    assert "-> 81" in printed[4]
    assert "blue" in printed[5]
