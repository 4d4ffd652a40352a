"""Short slices for the front, the usual ones for the kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qwenbox.engine.slices import FRONT_SECONDS, slice_seconds

ROOT = Path(__file__).parents[2]

ASK = """
import threading
from qwenbox.engine.slices import FRONT_SECONDS, ask_slice, slice_seconds
ask_slice(FRONT_SECONDS)
seen = [slice_seconds()]
thread = threading.Thread(target=lambda: seen.append(slice_seconds()))
thread.start()
thread.join()
ask_slice(None)
print(*seen, slice_seconds())
"""


def slices_of(program: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True
    ).stdout.split()


def test_a_thread_and_those_it_starts_have_the_slice_that_it_asked_for() -> None:
    first, second, last = slices_of(ASK)
    assert first == second
    # A system without slices of one's own goes on as before.
    assert (first == str(FRONT_SECONDS)) != (first == last)


def test_what_is_no_thread_has_no_slice() -> None:
    assert slice_seconds(2**30) is None
