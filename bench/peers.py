"""How fast is qwenbox beside the others? Every row a measurement of its own, engines in turn (A B A B), on weights made from one GGUF file.

    python bench/peers.py [MODEL] [--rows R,R] [--engines E,E] [--rounds N] [--minutes M] [--threads N] [--peers DIR] [--json]
    python bench/peers.py [MODEL] --prepare llama.cpp|llama.cpp@avx2|openvino|vllm

MODEL is a catalogue name or a `.gguf` file. Rows are in order of importance; engines are named PROGRAM[@VARIANT]:WEIGHTS (engines.py).
Each measurement becomes a row of bench/results/peers-<machine>.csv at once, so an interrupted run goes on where it stopped: same sources, model and
threads. The table (.md) and the picture (.png) are made anew at the end, also of an interrupted run. `--prepare` installs a peer under build/peers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench import engines  # noqa: E402
from bench.engines import Engine, Places, Row  # noqa: E402
from bench.machine import commit, local_file, machine_name, say  # noqa: E402
from bench.table import Table, markdown, number, quartiles  # noqa: E402
from qwenbox.evaluate.speed import steal_seconds  # noqa: E402

ROWS = [
    Row("prefill-512", 512),
    Row("decode-128", 128, 48),
    Row("batch-16", 32, 16, 16),
    Row("prefill-4096", 4096, rounds=3),
    Row("batch-32", 32, 16, 32),
    Row("batch-8", 32, 16, 8),
    Row("decode-8192", 8192, 24, samples=3, rounds=3),
    Row("batch-4", 32, 32, 4),
    Row("batch-1", 32, 32, 1),
]
ENGINES = ["qwenbox:int4", "llama.cpp:q4_0", "qwenbox:file", "llama.cpp:file", "openvino:int4", "openvino:q4_0", "vllm:int4"]
NEEDED = ("llama.cpp", "openvino")
FIELDS = ["date", "commit", "model", "threads", "row", "engine", "round", "tok_s", "samples", "fraction", "seconds", "steal_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b", metavar="MODEL")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, help=f"at most so many of each row; otherwise {max(row.rounds for row in ROWS)}, long rows fewer")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no measurement after so many")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers", help="where the other engines are")
    parser.add_argument("--prepare", metavar="PEER", help="install a peer and do nothing else")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()

    places = Places(local_file(asked.model), asked.peers.resolve())
    if asked.prepare:
        engines.prepare(asked.prepare, places)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in asked.rows.split(",") if name not in known]:
        raise SystemExit(f"unknown rows {', '.join(unknown)}: {', '.join(known)}")
    rows = [known[name] for name in asked.rows.split(",")]
    comparison = Comparison(Table(asked.results / f"peers-{machine_name()}.csv", FIELDS), places.file.name, asked.threads)
    found = {name: engines.find(name, places, threads=asked.threads, rows=rows) for name in asked.engines.split(",")}
    absent = {name: why for name, engine in found.items() if (why := engine.missing())}
    for name, why in absent.items():
        say(f"absent: {name}: {why}; python bench/peers.py {asked.model} --prepare {name.split(':')[0]}")
    present = {name: engine for name, engine in found.items() if name not in absent}
    about: dict[str, str] = {}
    try:
        about |= {name: engine.about() for name, engine in present.items()}
        comparison.measure(rows, present, rounds=asked.rounds, until=time.monotonic() + 60 * asked.minutes)
    finally:
        for engine in present.values():
            engine.close()
        summary = comparison.summary([row.name for row in rows], list(found))
        report = markdown_report(summary, about, absent)
        comparison.table.path.parent.mkdir(parents=True, exist_ok=True)
        comparison.table.path.with_suffix(".md").write_text(report, encoding="utf-8")
        plot(summary, comparison.table.path.with_suffix(".png"))
    if not asked.json:
        print(report)
    print(json.dumps(summary | {"about": about, "absent": absent}))


class Comparison:
    """Measurements of one model on these sources with these threads."""

    def __init__(self, table: Table, model: str, threads: int) -> None:
        self.table = table
        self.key: dict[str, Any] = {"commit": commit(), "model": model, "threads": threads}

    def measure(self, rows: list[Row], present: dict[str, Engine], *, rounds: int | None, until: float) -> None:
        """What the table lacks, until `until` on the monotonic clock."""
        for row in rows:
            for count in range(min(row.rounds, rounds or row.rounds)):
                for name, engine in present.items():
                    key = {**self.key, "row": row.name, "engine": name, "round": count}
                    if self.table.find(key):
                        continue
                    if time.monotonic() > until:
                        return
                    began, stolen = time.monotonic(), steal_seconds()
                    measured = engine.measure(row)
                    now = datetime.now(UTC).isoformat(timespec="seconds")
                    entry = self.table.add(
                        {
                            "date": now,
                            **key,
                            "tok_s": f"{quartiles(measured.tok_s)[1]:.2f}",
                            "samples": " ".join(f"{value:.2f}" for value in measured.tok_s),
                            "fraction": "" if measured.fraction is None else f"{measured.fraction:.3f}",
                            "seconds": f"{time.monotonic() - began:.1f}",
                            "steal_seconds": f"{steal_seconds() - stolen:.2f}",
                        }
                    )
                    say(
                        f"{row.name:12} round {count} {name:20} {entry['tok_s']:>8} tok/s {entry['fraction']:>6}"
                        f"   took {entry['seconds']} s, steal {entry['steal_seconds']} s"
                    )

    def summary(self, rows: list[str], names: list[str]) -> dict[str, Any]:
        """Median, quartiles, count, share of the ceiling and steal time of every row and engine that was measured; the ratios."""
        result: dict[str, Any] = {"machine": machine_name(), **self.key, "rows": {}}
        for row in rows:
            cells = {}
            for name in names:
                found = list(self.table.matching({**self.key, "row": row, "engine": name}))
                values = [float(value) for entry in found for value in entry["samples"].split()]
                if values:
                    first, median, third = quartiles(values)
                    fractions = [float(entry["fraction"]) for entry in found if entry["fraction"]]
                    cells[name] = {
                        "median": median, "quartiles": [first, third], "count": len(values),
                        "fraction": quartiles(fractions)[1] if fractions else None,
                        "steal_seconds": sum(float(entry["steal_seconds"]) for entry in found),
                    }  # fmt: skip
            result["rows"][row] = {"engines": cells, "ratios": ratios(cells)}
        return result


def ratios(cells: dict[str, Any]) -> dict[str, float]:
    """Our medians over the best peer's, and on the same file over llama.cpp's."""
    peers = [cell["median"] for name, cell in cells.items() if not name.startswith("qwenbox")]
    result = {}
    for name, cell in cells.items():
        if name.startswith("qwenbox") and peers:
            result[f"{name} / best peer"] = cell["median"] / max(peers)
        if name.startswith("qwenbox") and name.endswith(":file"):
            same = [other["median"] for peer, other in cells.items() if peer.startswith("llama.cpp") and peer.endswith(":file")]
            if same:
                result[f"{name} / llama.cpp:file"] = cell["median"] / max(same)
    return result


def markdown_report(summary: dict[str, Any], about: dict[str, str], absent: dict[str, str]) -> str:
    names = list(dict.fromkeys(name for row in summary["rows"].values() for name in row["engines"]))
    kinds = list(dict.fromkeys(kind for row in summary["rows"].values() for kind in row["ratios"]))
    lines = []
    for row, found in summary["rows"].items():
        cells = [cell_text(found["engines"].get(name)) for name in names]
        lines.append([row, *cells, *(f"{found['ratios'][kind]:.2f}" if kind in found["ratios"] else "" for kind in kinds)])
    text = f"# {summary['model']} on {summary['machine']}, {summary['threads']} threads, sources {summary['commit']}\n\n"
    text += "Tokens per second over all streams: median (quartiles) number of values, share of the measured ceiling where known.\n\n"
    text += markdown(["row", *names, *kinds], lines) + "\n"
    text += "".join(f"* {name}: {words}\n" for name, words in about.items())
    text += "".join(f"* **absent**: {name}: {why}\n" for name, why in absent.items())
    stolen = sum(cell["steal_seconds"] for row in summary["rows"].values() for cell in row["engines"].values())
    text += f"* the host took {stolen:.1f} s of processor time meanwhile\n"
    if lost := [program for program in NEEDED if not any(name.startswith(program) for name in names)]:
        text += f"\n**Without {' and '.join(lost)} this is not a result.**\n"
    return text


def cell_text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    share = "" if cell["fraction"] is None else f", {cell['fraction']:.2f}"
    return f"**{number(cell['median'])}** ({number(cell['quartiles'][0])}–{number(cell['quartiles'][1])}) {cell['count']}{share}"


def plot(summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {name: row["engines"] for name, row in summary["rows"].items() if row["engines"]}
    if not rows:
        return
    names = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(4.5 * columns, 0.6 + (0.6 + 0.3 * len(names)) * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, (row, cells) in zip(axes.flat, rows.items(), strict=False):
        medians = [cells[name]["median"] if name in cells else 0 for name in names]
        spreads = [[abs(cells[name]["quartiles"][side] - cells[name]["median"]) if name in cells else 0 for name in names] for side in (0, 1)]
        colours = ["#3451b2" if name.startswith("qwenbox") else "#b0b4c0" for name in names]
        axis.barh(names, medians, 0.8, xerr=spreads, color=colours)
        axis.bar_label(axis.containers[-1], [f" {number(median)}" if median else " -" for median in medians], label_type="center", fontsize=8)
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.set_title(row, fontsize=9)
    figure.suptitle(f"{summary['model']}: tokens per second, medians and quartiles\n{summary['machine']}, {summary['threads']} threads", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
