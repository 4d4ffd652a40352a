"""The library that is shipped, started on processors that this one is not: QEMU runs the whole program, and refuses instructions they lack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.networks import Tiny, assert_equal, reference, rows_batch
from tests.kernels.programs import AMD64, require
from tests.kernels.test_native_runtime import with_path

KINDS = ("int4", "q4_k", "q6_k", "q5_0", "bf16")
PROGRAM = f"""
import sys
import numpy as np
from qwenbox.kernels.native import isa_best
from tests.kernels.networks import Tiny, compiled, rows_batch
print(isa_best())
np.save(sys.argv[1], compiled(Tiny(kinds={KINDS!r}), threads=1).run(rows_batch(5)))
"""


@pytest.mark.skipif(not AMD64, reason="this processor is not x86")
@pytest.mark.parametrize(("processor", "isa"), [("Nehalem", "generic"), ("Haswell", "avx2")])
def test_the_library_starts_and_computes_where_newer_instructions_are_missing(processor: str, isa: str, tmp_path: Path) -> None:
    require("qemu-x86_64-static")
    path = tmp_path / "logits.npy"
    command = ["qemu-x86_64-static", "-cpu", processor, sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=with_path())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]
    assert_equal(np.load(path), reference(Tiny(kinds=KINDS), [rows_batch(5)], isa)[0], isa)
