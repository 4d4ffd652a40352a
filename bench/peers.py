"""How fast is qwenbox beside llama.cpp? Same GGUF, same threads, interleaved A B A B; prints both, their medians and the ratio.

    python bench/peers.py [MODEL ...] [--llama DIR] [--threads N] [--rounds 5] [--prompt-tokens 512] [--new-tokens 64] [--json]

MODEL is a catalogue name or a `.gguf` file. Both engines decode after a prompt of the same length. llama.cpp is taken from `--llama` (a
directory that holds `llama-bench`), or built once for this processor from the sources that the package llama-cpp-python brings.
Each measurement becomes a row of bench/results/<machine>.csv at once; a run that was interrupted goes on where it stopped (same commit,
model, threads and lengths). The picture is drawn beside the rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LLAMA_PACKAGE = "llama-cpp-python==0.3.36"
CMAKE_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_COMMIT=none", "-DLLAMA_BUILD_NUMBER=0",
]  # fmt: skip
FIELDS = ["date", "commit", "model", "engine", "round", "threads", "prompt_tokens", "new_tokens", "prefill_tok_s", "decode_tok_s", "note"]
ENGINES = ("qwenbox", "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b"], metavar="MODEL")
    parser.add_argument("--llama", type=Path, help="directory that holds llama-bench; otherwise it is built under build/llama")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    arguments = parser.parse_args()

    bench = find_bench(arguments.llama) if arguments.llama else build_llama(ROOT / "build" / "llama")
    table = Table(arguments.results / f"{machine_name()}.csv")
    shared = {"threads": arguments.threads, "prompt_tokens": arguments.prompt_tokens, "new_tokens": arguments.new_tokens, "commit": commit()}
    summary: dict[str, Any] = {"machine": machine_name(), **shared, "models": {}}
    for model in arguments.models:
        path = local_file(model)
        for number in range(arguments.rounds):
            for engine in ENGINES:
                key = {"model": path.name, "engine": engine, "round": number, **shared}
                row = table.find(key)
                if row is None:
                    measured = measure_qwenbox(path, **shared) if engine == "qwenbox" else measure_llama(bench, path, **shared)
                    row = table.add({"date": datetime.now(UTC).isoformat(timespec="seconds"), **key, **measured})
                say(
                    f"{path.name} round {number} {engine:9}: prefill {float(row['prefill_tok_s']):7.1f} tok/s, "
                    f"decode {float(row['decode_tok_s']):6.2f} tok/s"
                )
        summary["models"][path.name] = summarise(table, {"model": path.name, **shared})
    plot(summary, table.path.with_suffix(".png"))
    if not arguments.json:
        for model, numbers in summary["models"].items():
            for what in ("prefill", "decode"):
                ours, theirs = (numbers[engine][f"{what}_tok_s"] for engine in ENGINES)
                print(
                    f"{model}: {what} {ours:.2f} tok/s, llama.cpp {theirs:.2f} tok/s, "
                    f"ratio {numbers[f'{what}_ratio']:.3f} (medians of {arguments.rounds})"
                )
    print(json.dumps(summary))


class Table:
    """The rows of one machine's CSV file, appended one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def matching(self, key: dict[str, Any]) -> Iterator[dict[str, str]]:
        return (row for row in self.rows if all(row[name] == str(value) for name, value in key.items()))

    def find(self, key: dict[str, Any]) -> dict[str, str] | None:
        return next(self.matching(key), None)

    def add(self, row: dict[str, Any]) -> dict[str, str]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({name: str(value) for name, value in row.items()})
        return self.rows[-1]


def measure_qwenbox(path: Path, *, threads: int, prompt_tokens: int, new_tokens: int, commit: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "qwenbox", "bench", str(path), "--threads", str(threads), "--repeat", "1", "--json"]
    command += ["--prompt-tokens", str(prompt_tokens), "--new-tokens", str(new_tokens)]
    result = json.loads(run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}).splitlines()[-1])
    note = f"{result['isa']}, {result['bandwidth_fraction']:.2f} of bandwidth, {result['compute_fraction']:.3f} of compute"
    return {"prefill_tok_s": result["prefill_tok_s"], "decode_tok_s": result["decode_tok_s"], "note": note}


def measure_llama(bench: Path, path: Path, *, threads: int, prompt_tokens: int, new_tokens: int, commit: str) -> dict[str, Any]:
    common = [str(bench), "-m", str(path), "-t", str(threads), "-r", "1", "-o", "json"]
    # Its libraries lie beside it, wherever the directory was moved to.
    env = {**os.environ, "LD_LIBRARY_PATH": str(bench.parent)}
    prefill = json.loads(run([*common, "-p", str(prompt_tokens), "-n", "0"], env=env))[0]
    decode = json.loads(run([*common, "-p", "0", "-n", str(new_tokens), "-d", str(prompt_tokens)], env=env))[0]
    return {"prefill_tok_s": prefill["avg_ts"], "decode_tok_s": decode["avg_ts"], "note": prefill["model_type"]}


def summarise(table: Table, key: dict[str, Any]) -> dict[str, Any]:
    """Medians and every single value of each engine, and the ratio of the medians."""
    numbers: dict[str, Any] = {}
    for engine in ENGINES:
        rows = list(table.matching({**key, "engine": engine}))
        values = {what: [float(row[what]) for row in rows] for what in ("prefill_tok_s", "decode_tok_s")}
        numbers[engine] = {what: statistics.median(of) for what, of in values.items()} | {f"{what}_runs": of for what, of in values.items()}
    for what in ("prefill", "decode"):
        numbers[f"{what}_ratio"] = numbers["qwenbox"][f"{what}_tok_s"] / numbers["llama.cpp"][f"{what}_tok_s"]
    return numbers


def plot(summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, what in zip(axes, ("prefill", "decode"), strict=True):
        for offset, (engine, colour) in enumerate(zip(ENGINES, ("#3451b2", "#b0b4c0"), strict=True)):
            places = [place + 0.4 * offset for place in range(len(summary["models"]))]
            numbers = [model[engine] for model in summary["models"].values()]
            axis.bar(places, [n[f"{what}_tok_s"] for n in numbers], 0.38, color=colour, label=engine)
            for place, n in zip(places, numbers, strict=True):
                axis.plot([place] * len(n[f"{what}_tok_s_runs"]), n[f"{what}_tok_s_runs"], "k.", markersize=4)
        names = ["\n".join(textwrap.wrap(name.removesuffix(".gguf"), 24)) for name in summary["models"]]
        axis.set_xticks([place + 0.2 for place in range(len(names))], names)
        axis.set_title(f"{what}, tokens per second")
        axis.legend()
    figure.suptitle(f"{summary['machine']}, {summary['threads']} threads, {summary['prompt_tokens']} + {summary['new_tokens']} tokens; bars: medians")
    figure.savefig(path, dpi=120)


def build_llama(folder: Path) -> Path:
    """llama-bench, built for this processor; minutes at the first call, nothing later."""
    bench = folder / "build" / "bin" / "llama-bench"
    if bench.exists():
        return bench
    say(f"building llama.cpp from {LLAMA_PACKAGE} under {folder}: some minutes, once")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = LLAMA_PACKAGE.split("==")[0]
    run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, LLAMA_PACKAGE, "-d", str(folder)])
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    if "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        repair_amx(source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp")
    cmake, build = tool("cmake"), folder / "build"
    run([cmake, "-S", str(source), "-B", str(build), *CMAKE_OPTIONS])
    run([cmake, "--build", str(build), f"-j{len(os.sched_getaffinity(0))}", "--target", "llama-bench", "llama-quantize"])
    return bench


def repair_amx(path: Path) -> None:
    """GCC 12 believes that `_tile_loadconfig` reads 8 bytes and drops the stores to the other 56; a barrier over the struct keeps them."""
    text = path.read_text(encoding="utf-8")
    call = "_tile_loadconfig(&tc);"
    if text.count(call) != 1:
        raise SystemExit(f"{path}: expected one {call}: this is not the llama.cpp that the repair was written for")
    path.write_text(text.replace(call, 'asm volatile("" : "+m"(tc)); ' + call), encoding="utf-8")


def find_bench(folder: Path) -> Path:
    for place in (folder, folder / "bin", folder / "build" / "bin"):
        if (place / "llama-bench").exists():
            return (place / "llama-bench").resolve()
    raise SystemExit(f"no llama-bench in {folder}, its bin or its build/bin")


def local_file(model: str) -> Path:
    if model.endswith(".gguf"):
        return Path(model).resolve()
    out = run([sys.executable, "-m", "qwenbox", "pull", model, "--json"], env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    return Path(json.loads(out.splitlines()[-1])["path"])


def machine_name() -> str:
    """Like intel-xeon-processor-2cpu."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    words = re.sub(r"\(R\)|\(TM\)|CPU|@.*", " ", found[1] if found else os.uname().machine)
    return "-".join(re.findall(r"[a-z0-9.]+", words.lower())) + f"-{len(os.sched_getaffinity(0))}cpu"


def commit() -> str:
    return run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).strip()


def tool(name: str) -> str:
    """A program of this Python environment, else of the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
