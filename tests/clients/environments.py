"""Where programs of others live that tests run: an environment of its own for each, kept in build/clients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "clients"


def python_of(client: str, packages: Sequence[str]) -> Path:
    """The interpreter of the client's environment, which is made where there is none."""
    folder = FOLDER / client
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, clear=True)
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", *packages], check=True, timeout=900)
        (folder / "ready").touch()
    return python


def npm_environment() -> dict[str, str]:
    """npm trusts its own list of certificates; where a network has others, the system's list knows them."""
    system = "/etc/ssl/certs/ca-certificates.crt"
    return {"NODE_EXTRA_CA_CERTS": system, **os.environ} if os.path.exists(system) else dict(os.environ)


def node_program(client: str, package: str, program: str) -> Path:
    """A program of a package of npm, which is installed where it is not; without its install scripts."""
    folder = FOLDER / client
    if not (folder / "ready").exists():
        if (npm := shutil.which("npm")) is None:
            pytest.skip("npm is not on PATH")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [npm, "install", "--prefix", folder, "--ignore-scripts", package], check=True, timeout=900, capture_output=True, env=npm_environment()
        )
        (folder / "ready").touch()
    return folder / "node_modules" / ".bin" / program
