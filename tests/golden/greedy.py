"""Makes tests/model/data/greedy.npz: 64 greedy tokens after each of 20 prompts and checksums of their logits, by the NumPy oracle.

`PYTHONPATH=src:. python tests/golden/greedy.py NAME=FILE.gguf...`: NAME is the catalogue's. Takes minutes a model. The native engine proposes the
answers, so that the oracle judges each in one pass; an answer that the oracle would not have given ends the program. Models that are not
named keep their numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.model.greedy import DATA, decode, judge, opened, prompts

OUTPUT = DATA / "greedy.npz"

numbers = dict(np.load(OUTPUT)) if OUTPUT.exists() else {}
for argument in sys.argv[1:]:
    name, path = argument.split("=", 1)
    starts = prompts(Path(path))
    with opened(Path(path)) as model:
        proposed = decode(model, starts)
    with opened(Path(path), backend="reference") as oracle:
        said = judge(oracle, starts, proposed.ids)
    if not np.array_equal(said.ids, proposed.ids):
        sys.exit(f"{name}: the oracle chooses other tokens than the native engine")
    numbers |= {f"{name}.ids": said.ids, f"{name}.sums": said.sums}
    np.savez_compressed(OUTPUT, **numbers)
