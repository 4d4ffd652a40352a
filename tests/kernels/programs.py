"""C++ programs over the kernels: how tests build them, and what they say."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwenbox.kernels.native import isa_missing

ROOT = Path(__file__).resolve().parents[2]
TILES = isa_missing("avx512vnni") is None
"""The amx variant runs, with tiles of the processor or trapped ones; its vectors are the processor's."""
TRAPPED = TILES and isa_missing("amx") is not None
AMD64 = platform.machine() == "x86_64"


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("QWENBOX_TEST_REQUIRE") == "1":
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(*command: str | Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@contextmanager
def building(name: str) -> Iterator[Path]:
    """`build/NAME`, for one of the processes that run tests beside each other at a time."""
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def build(name: str, *options: str, target: str = "test_linear", others: tuple[str, ...] = ()) -> Path:
    with building(name) as folder:
        run("cmake", "-S", ".", "-B", folder, "-G", "Ninja", "-DQWENBOX_CPP_TESTS=ON", "-DQWENBOX_WERROR=ON", *options)
        run("cmake", "--build", folder, "--target", target, *others, "-j2")
    return folder / "tests" / "cpp" / target


def variants_that_agree(*command: str | Path) -> list[str]:
    output = run(*command)
    counts = re.search(r"^(\d+) passed, 0 failed$", output, re.MULTILINE)
    assert counts and int(counts[1]) > 1000, output
    named = re.search(r"^variants: (.*)$", output, re.MULTILINE)
    assert named
    return named[1].split()
