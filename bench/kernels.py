"""How near does every kernel come to its own ceiling, measured beside it? Prints a table; writes .md, .json and .png into bench/results.

    python bench/kernels.py [SECTION ...] [--isa NAME] [--threads N] [--model MODEL] [--quick] [--json]

Sections: linear (few rows against reading memory, many against products fed from L1), attention, operations (against a copy of as many bytes),
sampler (against one pass for the maximum); with a model also load (against reading the file), pages (the model without huge pages, against itself
with them) and parts (the model with a library built without one of its parts, against the whole one; both must give the same bits). A section that is
not asked for keeps the rows of the last run in the .json file. The C++ programs are built under build/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.engines import Places, Resident, Row, find  # noqa: E402
from bench.machine import commit, local_file, machine_name, run, say, tool  # noqa: E402
from bench.table import markdown, number  # noqa: E402
from qwenbox.evaluate.speed import steal_seconds  # noqa: E402
from qwenbox.kernels.native import Native, isa_best  # noqa: E402
from qwenbox.kernels.program import SampleRow  # noqa: E402
from qwenbox.types import SamplingParams  # noqa: E402

BUILD = ROOT / "build" / "bench"
VOCABULARY = 151_936
SECTIONS = ("linear", "attention", "operations", "sampler", "load", "pages", "parts")
PARTS = ("SPINNING", "LONG_PIECES", "FETCHING")
NO_HUGE_PAGES = """
import ctypes, os, sys
PR_SET_THP_DISABLE = 41
if ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
    sys.exit("this kernel cannot switch huge pages off")
os.execv(sys.argv[1], sys.argv[1:])
"""
SHAPES = ("12288x4096", "8960x1536")
Line = dict[str, Any]
"""what, rate and ceiling in `unit`, method (of the ceiling), fraction; registers: the fraction of the register-only rate, where there is one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--isa", default=isa_best())
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", help="catalogue name, file or directory for load, pages and parts; without it they are left out")
    parser.add_argument("--quick", action="store_true", help="fewer kinds, shapes and repetitions")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="only the JSON on standard output")
    asked = parser.parse_args()
    sections: dict[str, Callable[[], list[Line]]] = {
        "linear": lambda: linear(asked.isa, asked.threads, quick=asked.quick),
        "attention": lambda: program("attention", asked.isa, asked.threads),
        "operations": lambda: program("operations", asked.isa, asked.threads),
        "sampler": lambda: sampler(asked.isa, asked.threads, repeat=5 if asked.quick else 20),
    }
    if asked.model is not None:
        model = local_file(asked.model)
        sections["load"] = lambda: load(model, repeat=1 if asked.quick else 3)
        sections["pages"] = lambda: pages(model, asked.isa, asked.threads, repeat=2 if asked.quick else 7)
        sections["parts"] = lambda: parts(model, asked.isa, asked.threads, repeat=2 if asked.quick else 7)
    if unknown := set(asked.sections) - set(sections):
        raise SystemExit(f"unknown sections {', '.join(sorted(unknown))}: {', '.join(sections)}")

    name = f"kernels-{machine_name()}" + ("" if asked.isa == isa_best() else f"-{asked.isa}")
    path = asked.results / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for section in asked.sections or sections:
        say(f"{section} ...")
        stolen = steal_seconds()
        lines = sections[section]()
        results[section] = {
            "commit": commit(), "isa": asked.isa, "threads": asked.threads, "steal_seconds": round(steal_seconds() - stolen, 2), "lines": lines
        }  # fmt: skip
    results = {section: results[section] for section in SECTIONS if section in results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report = markdown_report(results)
    path.with_suffix(".md").write_text(report, encoding="utf-8")
    plot(results, path.with_suffix(".png"))
    print(json.dumps(results) if asked.json else report)


def built(name: str) -> Path:
    """The C++ program bench_<name>, up to date."""
    build(f"bench_{name}")
    return BUILD / "tests" / "cpp" / f"bench_{name}"


def build(target: str) -> None:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DQWENBOX_CPP_TESTS=ON"]
    run([tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), *options])
    run([tool("cmake"), "--build", str(BUILD), "--target", target])


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def linear(isa: str, threads: int, *, quick: bool) -> list[Line]:
    """Each kind at each number of rows, judged by the limit that it is nearer to: reading the weights, or products fed from L1."""
    bench = built("linear")
    lines = []
    for shape in SHAPES[:1] if quick else SHAPES:
        words = [f"variant={isa}", f"threads={threads}", f"shape={shape}", f"repeat={3 if quick else 5}"]
        words += ["kinds=int4,q4_k", "rows=1,16,512"] if quick else ["rows=1,4,16,512"]
        lines += [linear_line(found) for found in json_lines(run([str(bench), "--json", *words]))]
    return lines


def linear_line(found: dict[str, Any]) -> Line:
    what = f"{found['kind']} {found['n']}x{found['k']}, {found['rows']} rows"
    if found["of_read"] > found["of_l1"]:
        return {
            "what": what, "rate": found["bytes"] / 1e9, "ceiling": found["read_ceiling"] / 1e9, "unit": "GB/s",
            "method": "memory read", "fraction": found["of_read"],
        }  # fmt: skip
    return {
        "what": what, "rate": found["operations"] / 1e9, "ceiling": found["l1_ceiling"] / 1e9, "unit": "GOP/s",
        "method": "products fed from L1", "fraction": found["of_l1"], "registers": found["of_registers"],
    }  # fmt: skip


def program(name: str, isa: str, threads: int) -> list[Line]:
    """A program whose lines already say rate, ceiling and fraction; the other keys describe what ran."""
    known = ("rate", "ceiling", "unit", "fraction", "ceiling_method", "variant")
    lines = []
    for found in json_lines(run([str(built(name)), "--json", f"variant={isa}", f"threads={threads}"])):
        about = " ".join(str(value) if key in ("kernel", "phase") else f"{key} {value}" for key, value in found.items() if key not in known)
        lines.append({"what": about, "method": found["ceiling_method"], **{key: found[key] for key in ("rate", "ceiling", "unit", "fraction")}})
    return lines


def sampler(isa: str, threads: int, *, repeat: int) -> list[Line]:
    """Rows of the vocabulary a second, against finding their maximum with NumPy on one thread for each row that the pool has a thread for."""
    random = np.random.default_rng(0)
    nothing = np.zeros(0, np.int32)
    settings = {
        "greedy": SamplingParams(temperature=0.0),
        "temperature": SamplingParams(temperature=0.8),
        "top-k 40, top-p 0.95": SamplingParams(temperature=0.8, top_k=40, top_p=0.95),
    }
    lines = []
    native = Native(threads=threads, isa=isa)
    try:
        for rows in (1, 16):
            logits = random.standard_normal((rows, VOCABULARY), np.float32) * 3
            for name, params in settings.items():
                asked = [SampleRow(params=params, prompt_ids=nothing, output_ids=nothing, position=0, vocab_limit=VOCABULARY)] * rows

                def sample(logits: Any = logits, asked: list[SampleRow] = asked) -> object:
                    return native.sample(logits, asked)

                rates, limits, fractions = [], [], []
                for _ in range(repeat):
                    ours, limit = rows / seconds_of(sample), min(rows, threads) / seconds_of(logits[0].max)
                    rates.append(ours)
                    limits.append(limit)
                    fractions.append(ours / limit)
                lines.append(
                    {
                        "what": f"{name}, {rows} rows", "rate": statistics.median(rates), "ceiling": statistics.median(limits), "unit": "rows/s",
                        "method": "maximum", "fraction": statistics.median(fractions),
                    }
                )  # fmt: skip
    finally:
        native.close()
    return lines


def seconds_of(work: Callable[[], object], at_least: float = 0.005) -> float:
    """Of one call, over as many as take `at_least` seconds."""
    begin, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < at_least or not calls:
        work()
        calls += 1
    return passed / calls


def load(model: Path, *, repeat: int) -> list[Line]:
    """Being ready, against a plain read of the files, from the disk and from the system's cache."""
    out = run([sys.executable, str(ROOT / "bench" / "load.py"), str(model), "--repeat", str(repeat), "--json"])
    found = json_lines(out)[-1]
    seconds = {name: row["seconds"] for name, row in found["rows"].items()}
    return [
        {
            "what": f"{found['model']}, {cache}", "rate": found["bytes"] / seconds[f"load {cache}"] / 1e9, "unit": "GB/s", "method": "plain read",
            "ceiling": found["bytes"] / seconds[f"read {cache}"] / 1e9, "fraction": seconds[f"read {cache}"] / seconds[f"load {cache}"],
        }
        for cache in ("cold", "warm")
    ]  # fmt: skip


def pages(model: Path, isa: str, threads: int, *, repeat: int) -> list[Line]:
    """The model in a process that gets no huge pages, against one that asks for them as ever."""

    def change(engine: Resident) -> None:
        engine.command[:0] = [sys.executable, "-c", NO_HUGE_PAGES]

    return in_turn(model, isa, threads, repeat, {"no huge pages": change})


def parts(model: Path, isa: str, threads: int, *, repeat: int) -> list[Line]:
    """The model with the library without a part, against the whole library. Raises SystemExit where the bits of logits differ."""

    def without(part: str) -> Callable[[Resident], None]:
        sources = built_without(part)

        def change(engine: Resident) -> None:
            engine.sources = sources

        return change

    whole = checksum(ROOT / "src", isa)
    for part in PARTS:
        if checksum(built_without(part), isa) != whole:
            raise SystemExit(f"without {part} the logits are others")
    return in_turn(model, isa, threads, repeat, {f"without {part.lower()}": without(part) for part in PARTS})


def built_without(part: str) -> Path:
    """A folder with the package whose library lacks a part."""
    name = f"without_{part.lower()}"
    folder = BUILD / name / "qwenbox"
    build(f"qwenbox_{name}")
    shutil.copytree(ROOT / "src" / "qwenbox", folder, dirs_exist_ok=True)
    shutil.copy(BUILD / f"libqwenbox_{name}.so", folder / "kernels" / "libqwenbox_native.so")
    return folder.parent


CHECKSUM = """
import hashlib, sys
import numpy as np
from qwenbox.model.load import random_model
from qwenbox.types import Batch, Span
model = random_model("0.6b", isa=sys.argv[1], num_pages=8)
ids = np.arange(200, dtype=np.int32)
logits = model.run(Batch(ids, [Span(0, 200, 0, np.arange(7, dtype=np.int32))], np.arange(136, 200, dtype=np.int32)))
print(hashlib.sha256(logits.tobytes()).hexdigest())
"""


def checksum(sources: Path, isa: str) -> str:
    """Of the logits of a random model."""
    return run([sys.executable, "-c", CHECKSUM, isa], env={"PYTHONPATH": str(sources)})


def in_turn(model: Path, isa: str, threads: int, repeat: int, changes: dict[str, Callable[[Resident], None]]) -> list[Line]:
    """Tokens per second of the model in a process that is changed; in place of a ceiling, those of one that is not, measured in turn."""
    rows = [Row("prefill", 512), Row("decode", 128, 48)]
    places = Places(model, BUILD)
    lines = []
    for name, change in changes.items():
        changed, plain = (find(f"qwenbox@{isa}:file", places, threads=threads, rows=rows) for _ in range(2))
        assert isinstance(changed, Resident)
        change(changed)
        try:
            for row in rows:
                speeds = [(changed.measure(row).tok_s[0], plain.measure(row).tok_s[0]) for _ in range(repeat)]
                one, other = (statistics.median(side) for side in zip(*speeds, strict=True))
                fraction = statistics.median(mine / yours for mine, yours in speeds)
                what = f"{model.name}, {row.name}, {name}"
                lines.append({"what": what, "rate": one, "ceiling": other, "unit": "tok/s", "method": "the same with it", "fraction": fraction})
        finally:
            changed.close()
            plain.close()
    return lines


def markdown_report(results: dict[str, Any]) -> str:
    text = f"# Kernels and their ceilings on {machine_name()}\n\nMedians; a ceiling is measured beside each repetition.\n"
    for section, found in results.items():
        rows = [
            [
                line["what"], f"{number(line['rate'])} {line['unit']}", number(line["ceiling"]), line["method"], f"**{line['fraction']:.2f}**",
                f"{line['registers']:.2f}" if "registers" in line else "",
            ]
            for line in found["lines"]
        ]  # fmt: skip
        text += f"\n## {section}\n\n{found['isa']}, {found['threads']} threads, sources {found['commit']}, steal time {found['steal_seconds']} s\n\n"
        text += markdown(["what", "rate", "ceiling", "ceiling is", "fraction", "of registers only"], rows)
    return text


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [(section, line) for section, found in results.items() for line in found["lines"]]
    figure, axis = pyplot.subplots(figsize=(8, 1 + 0.17 * len(lines)), layout="constrained")
    sections = list(results)
    colours = ["#3451b2", "#7a8fd6", "#b0b4c0", "#6a9a77", "#c49a4a"]
    axis.barh(range(len(lines)), [line["fraction"] for _, line in lines], color=[colours[sections.index(section) % 5] for section, _ in lines])
    axis.set_yticks(range(len(lines)), [f"{section}: {line['what']}" for section, line in lines], fontsize=6)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.axvline(1, color="k", linewidth=0.6)
    axis.set_title("rate over the ceiling measured beside it", fontsize=9)
    axis.tick_params(axis="x", labelsize=7, top=True, labeltop=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
