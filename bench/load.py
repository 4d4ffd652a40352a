"""How long does a model take to be ready, beside a plain read of its files, and what does it hold then?

    python bench/load.py MODEL [--weights KIND] [--repeat N] [--json]

MODEL is a `.gguf` file or a checkpoint directory. "Cold": the system was asked to drop the files from its cache just before; a disk behind it
may have a cache of its own. Each load is a process of its own, timed from the call on; medians. Pages for keys and values are not yet
resident then. The plain read takes 8 MiB at a time. "Fill" reads the files into new memory on huge pages, with all processors: less than that
no loading can do, and most of it is the system finding the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCES))

_LOAD = """
import json, sys, time
from pathlib import Path
from qwenbox.model.load import load_model
seen = [time.monotonic()]
path, weights = sys.argv[1:]
model = load_model(Path(path), weights=weights or None, context_length=4096, progress=lambda fraction: seen.append(time.monotonic()))
seen.append(time.monotonic())
status = dict(line.split(":", 1) for name in ("status", "smaps_rollup") for line in Path("/proc/self", name).read_text().splitlines() if ":" in line)
size = {name: int(status[field].split()[0]) * 1024 for name, field in (("rss", "VmRSS"), ("peak_rss", "VmHWM"), ("huge", "AnonHugePages"))}
gap = max(after - before for before, after in zip(seen, seen[1:]))
print(json.dumps({"seconds": seen[-1] - seen[0], "gap": gap, "weights": model.weights_bytes, **size}))
"""

_FILL = """
import mmap, os, sys, time
from concurrent.futures import ThreadPoolExecutor
begin = time.monotonic()
pool, kept = ThreadPoolExecutor(len(os.sched_getaffinity(0))), []
for path in sys.argv[1:]:
    file, size, step = os.open(path, os.O_RDONLY), os.path.getsize(path), 4 << 20
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    kept.append(view := memoryview(memory))
    list(pool.map(lambda at: os.preadv(file, [view[at : at + step]], at), range(0, size, step)))
print(time.monotonic() - begin)
"""


def files(model: Path) -> list[Path]:
    return [model] if model.is_file() else sorted(model.glob("*.safetensors"))


def drop(paths: Sequence[Path]) -> None:
    """Asks the system to forget its copies; what is not written back yet stays, so that is written first."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read(paths: Sequence[Path]) -> dict[str, Any]:
    buffer = bytearray(8 << 20)
    begin = time.monotonic()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return {"seconds": time.monotonic() - begin}


def fill(paths: Sequence[Path]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _FILL, *map(str, paths)], stdout=subprocess.PIPE, check=True, text=True)
    return {"seconds": float(done.stdout)}


def load(model: Path, weights: str) -> dict[str, Any]:
    words = [sys.executable, "-c", _LOAD, str(model), weights]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(SOURCES)}, stdout=subprocess.PIPE, check=True, text=True)
    numbers: dict[str, Any] = json.loads(done.stdout)
    return numbers


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", default="", help="round to this kind; otherwise as stored")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()

    paths = files(arguments.model)
    stored = sum(path.stat().st_size for path in paths)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "read": lambda: read(paths),
        "load": lambda: load(arguments.model, arguments.weights),
        "fill": lambda: fill(paths),
    }
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.repeat):
        for name, measure in work.items():
            if name != "fill":
                drop(paths)
                runs.setdefault(f"{name} cold", []).append(measure())
            runs.setdefault(f"{name} warm", []).append(measure())
    rows = {name: medians(measured) for name, measured in runs.items()}

    if not arguments.json:
        print(f"{arguments.model.name}: {stored / 1e9:.2f} GB, medians of {arguments.repeat}")
        for name, row in rows.items():
            line = f"{name:10} {row['seconds']:7.2f} s  {stored / row['seconds'] / 1e9:6.2f} GB/s"
            if "rss" in row:
                beside = row["rss"] - row["weights"]
                over = {other: row["seconds"] / rows[other]["seconds"] for other in (name.replace("load", "read"), "fill warm")}
                line += (
                    f"   {', '.join(f'{ratio:.2f} of {other}' for other, ratio in over.items())}; weights {row['weights'] / 1e9:.2f} GB, "
                    f"resident {row['rss'] / 1e9:.2f} (beside weights {beside / 1e6:+.0f} MB), peak {row['peak_rss'] / 1e9:.2f}, "
                    f"huge pages {row['huge'] / 1e9:.2f}; longest silence {row['gap']:.2f} s"
                )
            print(line)
    print(json.dumps({"model": arguments.model.name, "bytes": stored, "weights": arguments.weights, "rows": rows}))


if __name__ == "__main__":
    main()
