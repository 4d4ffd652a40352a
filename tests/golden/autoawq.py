"""Makes tests/weights/data/autoawq.npz: a linear layer as AutoAWQ itself packs it, and the integers that AutoAWQ finds in it again.

`python tests/golden/autoawq.py FOLDER`, with torch installed; FOLDER is the `awq` folder of AutoAWQ's sources (0.2.9). Only its packing is
imported: the package as a whole wants an older transformers.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

OUTPUT = Path(__file__).resolve().parents[1] / "weights" / "data" / "autoawq.npz"
ROWS, COLUMNS, GROUP = 64, 384, 128


def main() -> None:
    folder = Path(sys.argv[1])
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        package = ModuleType(name)  # in place of their __init__, which import everything else
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    linear = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    packing = importlib.import_module("awq.utils.packing_utils")

    random = np.random.default_rng(7)
    codes = random.integers(0, 16, (ROWS, COLUMNS))
    zeros = torch.from_numpy(random.integers(0, 16, (COLUMNS // GROUP, ROWS)).astype(np.float32))
    scales = torch.from_numpy(random.uniform(0.001, 0.05, zeros.shape).astype(np.float16)).float()
    layer = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    spread = [part.repeat_interleave(GROUP, dim=0).T for part in (zeros, scales)]
    layer.weight.data = (torch.from_numpy(codes) - spread[0]) * spread[1]
    packed = linear.from_linear(layer, 4, GROUP, scales=scales, zeros=zeros)
    found = packing.reverse_awq_order(*packing.unpack_awq(packed.qweight, packed.qzeros, 4), 4)
    found_codes, found_zeros = (part.numpy().astype(np.uint8) & 15 for part in found)
    assert np.array_equal(found_codes.T, codes) and np.array_equal(found_zeros, zeros.numpy())
    parts = {name: getattr(packed, name).numpy() for name in ("qweight", "qzeros", "scales")}
    np.savez_compressed(OUTPUT, **parts, codes=found_codes, zeros=found_zeros)


if __name__ == "__main__":
    main()
