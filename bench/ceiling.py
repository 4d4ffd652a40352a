"""What limits this machine? Prints DRAM read bandwidth and the rates of matrix instructions, one thread and all of them.

    python bench/ceiling.py [--threads N] [--buffer-gb G] [--json]

Bandwidth is the best over prefetch kinds, distances and stream counts, on 2 MiB pages where the kernel gives them. A rate counts a
multiply-add as two operations; "registers" never touches memory, "l1" feeds the operands from the first cache and stores the results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from qwenbox.evaluate.speed import steal_seconds
from qwenbox.kernels import ceiling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--buffer-gb", type=float, help="size of the buffer that is read; otherwise 1 GiB or four times the last cache")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()

    buffer_bytes = int(arguments.buffer_gb * 1e9) if arguments.buffer_gb else ceiling.default_buffer_bytes()
    stolen = steal_seconds()
    rows: list[dict[str, object]] = []
    for threads in sorted({1, arguments.threads}):
        bandwidths = ceiling.read_bandwidths(ceiling.READ_PATTERNS, threads=threads, buffer_bytes=buffer_bytes)
        for prefetch in ceiling.PREFETCHES:
            best = max((pattern for pattern in bandwidths if pattern.prefetch == prefetch), key=lambda pattern: bandwidths[pattern])
            rows.append({"what": "read", "threads": threads, "gb_s": bandwidths[best] / 1e9, **asdict(best)})
        for kind in ceiling.KINDS:
            for method in ceiling.methods(kind):
                rates = {feed: ceiling.rate(method, kind, feed, threads=threads, seconds=0.1) / 1e12 for feed in ceiling.FEEDS}
                rows.append({"what": kind, "threads": threads, "method": method, **{f"{feed}_tops": value for feed, value in rates.items()}})
    stolen = steal_seconds() - stolen

    if not arguments.json:
        print(f"buffer {buffer_bytes / 1e9:.2f} GB, steal time {stolen:.2f} s")
        for row in rows:
            if row["what"] == "read":
                print(
                    f"read  {row['threads']} threads  {row['gb_s']:6.1f} GB/s   "
                    f"prefetch {row['prefetch']}, {row['distance']} ahead, {row['streams']} streams"
                )
            else:
                print(
                    f"{row['what']:5} {row['threads']} threads  {row['method']:11} "
                    f"registers {row['registers_tops']:6.3f} T/s   from L1 {row['l1_tops']:6.3f} T/s"
                )
    print(json.dumps({"buffer_bytes": buffer_bytes, "steal_seconds": stolen, "rows": rows}))


if __name__ == "__main__":
    main()
