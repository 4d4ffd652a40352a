"""How near are 4-bit models to what they were made from? Ours by each method, and llama.cpp's of the same reference, in one table.

    python bench/quality.py [MODEL] [--rows R,R] [--measures M,M] [--tokens N] [--window W] [--calibration-tokens N]
                             [--problems N] [--json]

MODEL is a catalogue name, a `.gguf` file, a directory in bf16, or `thinker` (tests/fixtures). The reference is the model in bf16: a GGUF file is
dequantised. Rows are made once, under build/quality: `rtn`, `gptq`, `awq` and `awq+gptq` by `qwenbox quantize` in groups of 128, `awq+gptq-g32` in
groups of 32, `rtn-8bit` in eight bits; `q4_0` and `q4_k_m` by llama-quantize (`python bench/peers.py --prepare llama.cpp`, or --llama-quantize);
`int4` is the reference with `--weights int4`.
`quality`: divergence and perplexity as `qwenbox eval` has them, on a text that no calibration saw. `speed`: `qwenbox bench`, all rows in this engine.
`variants`: whether the row that is served (awq+gptq) puts the same tokens first in every variant of the processor, on 50 prompts, teacher-forced.
`code`, `choice`, `generate`: the tasks under bench/data by `qwenbox eval`, for the thinker `sums`; each row is compared with the reference problem
by problem; --problems takes so many of each task, evenly. Answers stay in build/quality/<model>/answers,
and a problem that a model has answered is not asked again.
Each measurement becomes a line of bench/results/quality-<model>-<machine>.csv at once (those of all rows together for quality, where the reference
runs once, and for speed, where rows take turns), so an interrupted run goes on where it stopped; to measure anew, remove its lines. A row of another
calibration has lines of its own. The table (.md) and the picture (.svg) are made anew at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import statistics
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402

from bench import synth  # noqa: E402
from bench.machine import commit, local_file, machine_name, run, say  # noqa: E402
from bench.table import Table, markdown, number  # noqa: E402
from qwenbox.chat.text import token_ids  # noqa: E402
from qwenbox.cli.quantize import TOKENS  # noqa: E402
from qwenbox.engine.options import EngineOptions, open_model  # noqa: E402
from qwenbox.evaluate.divergence import divergences  # noqa: E402
from qwenbox.evaluate.interval import Estimate  # noqa: E402
from qwenbox.evaluate.tasks import Item, Score, retention  # noqa: E402
from qwenbox.kernels.native import isa_available  # noqa: E402
from qwenbox.llm import open_chat  # noqa: E402
from qwenbox.model.config import from_gguf, from_hf  # noqa: E402
from qwenbox.model.load import Model  # noqa: E402
from qwenbox.quantize.calibration import BUILTIN  # noqa: E402
from qwenbox.settings import load_settings  # noqa: E402
from qwenbox.types import PAGE_TOKENS, Batch, Span  # noqa: E402
from qwenbox.weights.gguf import read_gguf  # noqa: E402
from qwenbox.weights.safetensors import read_directory  # noqa: E402
from tests import thinker  # noqa: E402

REFERENCE = "bf16"
METHODS = {
    "rtn": ("rtn", 4, 128),
    "gptq": ("gptq", 4, 128),
    "awq": ("awq", 4, 128),
    "awq+gptq": ("awq+gptq", 4, 128),
    "awq+gptq-g32": ("awq+gptq", 4, 32),
    "rtn-8bit": ("rtn", 8, 128),
}
"""Rows that `qwenbox quantize` makes: its method, bits, and the weights of a group."""
CALIBRATED = tuple(row for row, (method, *_) in METHODS.items() if method != "rtn")
LLAMA = ("q4_0", "q4_k_m")
ROWS = (REFERENCE, "int4", *METHODS, *LLAMA)
TASKS = ("code", "choice", "generate", "sums")
MEASURES = ("quality", "speed", "variants", *TASKS)
SUMS = 400
SERVED = "awq+gptq"
"""The row that claims are made of: what `qwenbox quantize` makes without a method."""
PART = 120
"""Problems that are answered beside each other; their answers are then kept."""
PROMPTS, PROMPT_TOKENS = 50, 64
TURNS = 3
"""In which speeds are measured, each the median of three."""
ASKED = 0.95
"""Of the reference's score; a line in the picture."""
CALIBRATING = 1000
"""Sums that calibrate for the thinker."""
FIELDS = ["date", "commit", "model", "row", "calibration", "measure", "setting", "bytes", "linear_bits", "numbers"]
DATA = ROOT / "bench" / "data"
HELD_OUT = DATA / "heldout.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b", metavar="MODEL")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--measures", help=f"of {', '.join(MEASURES)}; otherwise all that suit the model")
    parser.add_argument("--tokens", type=int, default=8192, help="of the text")
    parser.add_argument("--window", type=int, default=512, help="tokens that a model sees at once; they move by half of it")
    parser.add_argument("--calibration-tokens", type=int, default=TOKENS)
    parser.add_argument("--problems", type=int, help="of each task, evenly from its file; otherwise all")
    parser.add_argument("--llama-quantize", type=Path, default=ROOT / "build" / "peers" / "llama.cpp" / "bin" / "llama-quantize")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "quality", help="where the models are made")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()
    unfit = ("code", "choice", "generate") if asked.model == "thinker" else ("sums",)
    asked.measures = asked.measures or ",".join(measure for measure in MEASURES if measure not in unfit)
    for words, known in ((asked.rows, ROWS), (asked.measures, MEASURES)):
        if unknown := set(words.split(",")) - set(known):
            raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    source = thinker.MODEL if asked.model == "thinker" else local_file(asked.model)
    models = Models(source, asked.folder / Path(asked.model).name, asked.calibration_tokens, asked.llama_quantize, asked.problems)
    table = Table(asked.results / f"quality-{Path(asked.model).name}-{machine_name()}.csv", FIELDS)
    settings = {
        "quality": f"{asked.tokens} tokens, window {asked.window}" + ("" if asked.model == "thinker" else f" ({digest(HELD_OUT)})"),
        "speed": f"128 + 64 tokens, {TURNS} turns",
        "variants": f"{PROMPTS} prompts of {PROMPT_TOKENS} tokens",
        **{task: told_problems(models.problems(task)) for task in TASKS},
    }

    def key(row: str, measure: str) -> dict[str, str]:
        return {"model": asked.model, "row": row, "calibration": models.calibration(row), "measure": measure, "setting": settings[measure]}

    def add(row: str, measure: str, numbers: dict[str, Any]) -> None:
        path, weights = models.made(row)
        sizes = {"bytes": size(path), "linear_bits": "" if weights else f"{linear_bits(path):.3f}"}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        table.add({"date": now, "commit": commit(), **key(row, measure), **sizes, "numbers": json.dumps(numbers)})

    try:
        for measure in asked.measures.split(","):
            rows = [row for row in asked.rows.split(",") if table.find(key(row, measure)) is None]
            for row in rows:
                say(f"{asked.model}: {row} is made for {measure}")
                models.made(row)
            if measure == "quality" and rows:
                for row, numbers in models.quality(rows, asked.tokens, asked.window).items():
                    add(row, measure, numbers)
            if measure == "speed":
                for row, numbers in speeds({row: models.made(row) for row in rows}).items():
                    add(row, measure, numbers)
            for row in rows if measure in TASKS else []:
                add(row, measure, models.answered(row, measure))
            if measure == "variants" and SERVED in rows:
                add(SERVED, measure, models.variants(models.made(SERVED)[0]))
    finally:
        found = {row: summary(table, {measure: key(row, measure) for measure in MEASURES}) for row in ROWS}
        found = {row: numbers for row, numbers in found.items() if numbers}
        if found:
            report = markdown_report(asked.model, found, settings, models.calibration(SERVED), source)
            table.path.with_suffix(".md").write_text(report, encoding="utf-8")
            plot(asked.model, found, table.path.with_suffix(".svg"))
    if found and not asked.json:
        print(report)
    print(json.dumps({"model": asked.model, "machine": machine_name(), "rows": found}))


# --- the models ----------------------------------------------------------------------------------------------------


class Models:
    """The reference and what is made of it, each in a folder of its own under `folder`; what is there whole is not made again."""

    def __init__(self, source: Path, folder: Path, calibration_tokens: int, llama_quantize: Path, most_problems: int | None = None) -> None:
        self._source, self._folder = source, folder
        self._calibration_tokens, self._llama_quantize, self._most_problems = calibration_tokens, llama_quantize, most_problems
        folder.mkdir(parents=True, exist_ok=True)
        self._calibration = self._calibration_text()
        self._calibration_digest = digest(self._calibration)

    def made(self, row: str) -> tuple[Path, str | None]:
        """Path of the row's model, and the `--weights` that it is loaded with."""
        if row in (REFERENCE, "int4"):
            return self.reference, row if row == "int4" else None
        if row in LLAMA:
            return self._by_llama(row), None
        path = self._folder / self._name(row)
        if not (path / "README.md").exists():  # written last
            method, bits, group = METHODS[row]
            words = ["quantize", str(self.reference), str(path), "--method", method, "--bits", str(bits), "--group", str(group), "--no-check"]
            if self.calibration(row):
                words += ["--calibration", str(self._calibration), "--tokens", str(self._calibration_tokens)]
            qwenbox(*words)
        return path, None

    def calibration(self, row: str) -> str:
        """How many tokens, and of which text; empty for a row that needs none."""
        return f"{self._calibration_tokens} tokens ({self._calibration_digest})" if row in CALIBRATED else ""

    def _name(self, row: str) -> str:
        """Of its folder: what was calibrated otherwise is another model."""
        return f"{row}-{self._calibration_tokens}-{self._calibration_digest}" if row in CALIBRATED else row

    @property
    def reference(self) -> Path:
        if self._source.is_dir():
            return self._source
        path = self._folder / REFERENCE
        if not (path / "config.json").exists():  # written last
            file = read_gguf(self._source)
            config = replace(from_gguf(file.metadata), tied_head="output.weight" not in file.tensors)
            synth.write(path, "bf16", config, synth.RealWeights(config, file.tensors), file.metadata)
        return path

    def in_bf16(self) -> Path:
        """The reference as one GGUF file."""
        path = self._folder / f"{REFERENCE}.gguf"
        if not path.exists():
            checkpoint = read_directory(self.reference)
            config = from_hf(checkpoint.config)
            synth.write_gguf(path, REFERENCE, config, synth.RealWeights(config, checkpoint.tensors), tokenizer_metadata(self.reference))
        return path

    def _by_llama(self, row: str) -> Path:
        path = self._folder / f"{row}.gguf"
        if not path.exists():
            partial = path.with_suffix(".partial")
            run([str(self._llama_quantize), str(self.in_bf16()), str(partial), row.upper()])
            partial.rename(path)
        return path

    def _calibration_text(self) -> Path:
        """What the calibrated methods read: what is shipped, or for the thinker what it talks about."""
        if self._source != thinker.MODEL:
            return BUILTIN
        path = self._folder / "calibration.jsonl"
        lines = ({"kind": "chat", "messages": list(turns), "thinking": True} for turns in dialogues(1, CALIBRATING))
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        return path

    def ids(self) -> Iterator[int]:
        """Of the text that is measured on: held out, in the model's own tokens."""
        chat = open_chat(self.reference)
        if self._source != thinker.MODEL:
            return token_ids(HELD_OUT, chat.tokenizer)
        texts = ("".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns) for turns in dialogues(2, 1000))
        return itertools.chain.from_iterable(map(chat.tokenizer.encode, texts))

    def quality(self, rows: Sequence[str], tokens: int, window: int) -> dict[str, dict[str, float]]:
        """All rows beside each other, because the reference takes longest."""
        sizes = {"window": window, "stride": window // 2, "max_tokens": tokens}
        others = [row for row in rows if row != REFERENCE] or [REFERENCE]
        with ExitStack() as stack:
            reference, *loaded = (stack.enter_context(opened(*self.made(row), window)) for row in [REFERENCE, *others])
            measured = divergences(loaded, reference, self.ids(), progress=progress(tokens), **sizes)
        found = {row: one.numbers() for row, one in zip(others, measured, strict=True)}
        itself = dict.fromkeys(("kl_mean", "kl_mean_low", "kl_mean_high"), 0.0) | {"top1_agreement": 1.0} | measured[0].reference_perplexity.numbers()
        return {row: found.get(row, itself) for row in rows}

    def problems(self, task: str) -> Path:
        """The sums of the thinker are of four to six numbers, which it was not trained on, and not among those that calibrate."""
        if task != "sums":
            return self._some(DATA / f"{task}.jsonl")
        seen = {one.thought for one in sums(1, CALIBRATING)}
        new = {one.thought: one for one in thinker.sums(3, 2 * SUMS, (4, 5, 6)) if one.thought not in seen}
        lines = ({"id": number, "question": one.text, "answer": one.answer, "match": "number"} for number, one in enumerate(new.values()))
        path = self._folder / "sums.jsonl"
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in itertools.islice(lines, SUMS)), encoding="utf-8")
        return path

    def _some(self, path: Path) -> Path:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if self._most_problems is None or len(lines) <= self._most_problems:
            return path
        some = self._folder / path.name
        some.write_text("".join(lines[len(lines) * i // self._most_problems] for i in range(self._most_problems)), encoding="utf-8")
        return some

    def answered(self, row: str, task: str) -> dict[str, Any]:
        """`qwenbox eval` of the row alone, and which problems are `right`: a character each, in their order.

        What else is asked meanwhile changes no answer, so an answer is kept for every problem by itself, and a run that was ended goes on.
        """
        path, weights = self.made(row)
        folder = self._folder / "answers" / f"{self._name(row)}-{task}"
        folder.mkdir(parents=True, exist_ok=True)
        words = ["--thinking", "on", "--answer-tokens", "256", "--task", "generate"] if task == "sums" else ["--task", task]
        words += [*(["--weights", weights] if weights else []), "--report", str(folder)]
        lines = self.problems(task).read_text(encoding="utf-8").splitlines(keepends=True)
        asked, kept = folder / "asked.jsonl", folder / f"{made_at(path)}.jsonl"
        kept.touch()
        known = {line["problem"]: line for line in map(json.loads, kept.read_text(encoding="utf-8").splitlines())}
        new = [line for line in lines if line not in known]
        for start in range(0, len(new), PART):
            part = new[start : start + PART]
            say(f"{task}: {len(lines) - len(new) + start} of {len(lines)} problems")
            asked.write_text("".join(part), encoding="utf-8")
            qwenbox("eval", str(path), "--data", str(asked), *words)
            (found,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
            told = [{"problem": line, "seconds": found["seconds"] / len(part), **item} for line, item in zip(part, found["items"], strict=True)]
            with kept.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in told)  # in ASCII: an answer may hold other ends of lines
            known |= {line["problem"]: line for line in told}
        items = [known[line] for line in lines]
        tokens, cut = sum(item.get("new_tokens", 0) for item in items), sum(item.get("finish_reason") == "length" for item in items)
        score = Score(tuple(Item(item["id"], item["right"]) for item in items), sum(item["seconds"] for item in items), tokens, cut).numbers()
        names = ("score", "score_low", "score_high", "new_tokens", "cut", "seconds")
        return {name: score[name] for name in names} | {"right": "".join(str(int(item["right"])) for item in items)}

    def variants(self, path: Path) -> dict[str, Any]:
        """Of all variants against the first. Their products of quantised weights are the same bits and the row has no others, so the bound between
        variants is 0: first tokens may differ only where the two best logits are equal."""
        ids = np.fromiter(itertools.islice(self.ids(), PROMPTS * PROMPT_TOKENS), np.int32).reshape(PROMPTS, PROMPT_TOKENS)
        pages = np.arange(-(-PROMPT_TOKENS // PAGE_TOKENS), dtype=np.int32)
        places = np.arange(PROMPT_TOKENS, dtype=np.int32)
        sums: dict[str, list[int]] = {}
        best: dict[str, list[int]] = {}
        ties = 0
        for isa in isa_available():
            with opened(path, None, PROMPT_TOKENS, isa) as model:
                for prompt in ids:
                    logits = model.run(Batch(prompt, [Span(0, PROMPT_TOKENS, 0, pages)], places)) + np.float32(0)  # -0 equals 0
                    sums.setdefault(isa, []).extend(zlib.crc32(row.tobytes()) for row in logits)
                    best.setdefault(isa, []).extend(logits.argmax(axis=1).tolist())
                    if len(sums) == 1:
                        top = np.partition(logits, -2, axis=1)[:, -2:]
                        ties += int((top[:, 0] == top[:, 1]).sum())
        first = next(iter(sums))

        def differ(found: dict[str, list[int]]) -> int:
            return sum(len({found[isa][place] for isa in found}) > 1 for place in range(len(found[first])))

        counts = {"places": len(sums[first]), "equal_best": ties, "other_logits": differ(sums), "other_first": differ(best)}
        return {"variants": list(sums), **counts}


def sums(seed: int, count: int) -> Iterator[thinker.Question]:
    """Of two to six numbers; with another seed, others."""
    chance = random.Random(seed)
    return (thinker.sum_of(chance, 2 + index % (thinker.MAX_TERMS - 1), held_out=True) for index in range(count))


def dialogues(seed: int, count: int) -> Iterator[Sequence[dict[str, str]]]:
    """Sums with their thoughts, as the thinker was trained on."""
    for one in sums(seed, count):
        yield {"role": "user", "content": one.text}, {"role": "assistant", "content": f"<think>\n{one.thought}\n</think>\n\n{one.answer}"}


def tokenizer_metadata(directory: Path) -> dict[str, Any]:
    """The metadata of a GGUF file for the tokenizer of a directory."""
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    told = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {entry["id"]: entry for entry in document["added_tokens"]}
    names = {id: text for text, id in document["model"]["vocab"].items()} | {id: entry["content"] for id, entry in special.items()}
    size = from_hf(read_directory(directory).config).vocab_size
    kinds = {id: 3 if entry["special"] else 4 for id, entry in special.items()}
    merges = document["model"]["merges"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [names.get(id, f"[PAD{id}]") for id in range(size)],
        "tokenizer.ggml.token_type": [kinds.get(id, 1 if id in names else 5) for id in range(size)],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": next(id for id, text in names.items() if text == told["eos_token"]),
        "tokenizer.ggml.add_bos_token": False,
    }
    template = read_directory(directory).chat_template
    return metadata | ({"tokenizer.chat_template": template} if template else {})


# --- what is measured ----------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path, weights: str | None, window: int, isa: str | None = None) -> Iterator[Model]:
    settings = load_settings({"weights": weights, "isa": isa, "context_length": window, "max_sequences": 128})
    chat = open_chat(path)
    options = EngineOptions.from_settings(settings, model=str(path), num_pages=-(-window // PAGE_TOKENS), tokens=chat.tokenizer.table())
    with closing(open_model(options, lambda part: None)) as model:
        yield model


def progress(total: int) -> Callable[[int], None]:
    """Says every thousand tokens how far it is."""
    return lambda done: say(f"{done:,} of {total:,} tokens") if done % 1000 == 0 else None


def speeds(made: dict[str, tuple[Path, str | None]]) -> dict[str, dict[str, float]]:
    """Of each row the medians of its turns: others use the machine, so rows take turns."""
    turns: dict[str, list[dict[str, float]]] = {row: [] for row in made}
    for _, (row, (path, weights)) in itertools.product(range(TURNS), made.items()):
        words = ["bench", str(path), "--prompt-tokens", "128", "--new-tokens", "64", "--repeat", "3", "--json"]
        turns[row].append(json.loads(qwenbox(*words, *(["--weights", weights] if weights else [])).splitlines()[-1]))
    names = ("decode_tok_s", "prefill_tok_s", "bandwidth_fraction", "weights_bytes", "bytes_per_token", "steal_seconds")
    return {row: {name: statistics.median(turn[name] for turn in told) for name in names} for row, told in turns.items()}


def told_problems(path: Path) -> str:
    """How many, and which."""
    return f"{len(path.read_bytes().splitlines())} problems ({digest(path)})"


def made_at(path: Path) -> int:
    """When a model was made: the newest of its files, in nanoseconds."""
    return max(file.stat().st_mtime_ns for file in ([path] if path.is_file() else path.iterdir()))


def digest(path: Path) -> str:
    """A few digits of the file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def qwenbox(*words: str) -> str:
    return run([sys.executable, "-m", "qwenbox", *words], env={"PYTHONPATH": str(ROOT / "src")})


def size(path: Path) -> int:
    """Bytes of the weights on the disk."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def linear_bits(path: Path) -> float:
    """Bits a weight of the matrices in the layers."""
    tensors = read_directory(path).tensors if path.is_dir() else read_gguf(path).tensors
    matrices = [tensor for name, tensor in tensors.items() if len(tensor.shape) > 1 and ("layers." in name or name.startswith("blk."))]
    stored = sum(sum(array.nbytes for array in tensor.arrays) for tensor in matrices)
    weights = sum(tensor.shape[0] * tensor.shape[1] for tensor in matrices)
    return 8 * stored / weights


# --- what is told --------------------------------------------------------------------------------------------------


def summary(table: Table, keys: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Of one row; `keys` by measure."""
    numbers: dict[str, Any] = {}
    for measure, key in keys.items():
        found = table.find(key)
        if found is not None:
            told = json.loads(found["numbers"])
            numbers |= ({measure: told} if measure in TASKS else told) | {name: found[name] for name in ("bytes", "linear_bits", "commit")}
    return numbers


def markdown_report(model: str, found: dict[str, dict[str, Any]], settings: dict[str, str], calibration: str, source: Path) -> str:
    def cells(row: str, n: dict[str, Any]) -> list[str]:
        relative = ""
        if "kl_mean" in n and row != REFERENCE and "kl_mean" in found.get("rtn", {}):
            relative = f"{n['kl_mean'] / found['rtn']['kl_mean'] - 1:+.0%}"
        quality = ["", "", "", ""]
        if "kl_mean" in n:
            quality = [
                f"{n['perplexity']:.3f} ({n['perplexity_low']:.2f}–{n['perplexity_high']:.2f})",
                f"{n['kl_mean']:.4f} ({n['kl_mean_low']:.4f}–{n['kl_mean_high']:.4f})",
                relative,
                f"{n['top1_agreement']:.2%}",
            ]
        speeds = [f"{n['weights_bytes'] / 1e6:.0f}", f"{n['decode_tok_s']:.1f}"] if "decode_tok_s" in n else ["", ""]
        return [row, n["linear_bits"], f"{int(n['bytes']) / 1e6:.0f}", *quality, *speeds]

    header = ["", "bits", "MB", "perplexity", "KL to the reference", "KL against rtn", "same top token", "MB in memory", "decode tok/s"]
    text = f"# {model}, quantised, on {machine_name()}\n\n" + markdown(header, [cells(row, numbers) for row, numbers in found.items()])
    origin = "It is the released checkpoint."
    if not source.is_dir():
        origin = f"It is {source.name}, dequantised: a Q4_K_M file's own row would be the reference, and the row q4_k_m here is favoured by its grid."
    text += f"""
* The reference is in bf16. {origin}
* Text: {settings["quality"]}, which moves by half of it; intervals of 95 % by bootstrap over the windows. KL in nats, from the reference to the row.
* rtn, gptq, awq, awq+gptq: `qwenbox quantize`, 4 bits (rtn-8bit: 8) in groups of 128, or 32; calibration: {calibration}; embedding and head are fp16.
  q4_0, q4_k_m: llama-quantize, without an importance matrix. int4: the reference, rounded on load with `--weights int4`; MB are the reference's.
* bits: of the matrices in the layers, with scales. Speed: {settings["speed"]}, medians, all in this engine.
{tasks_told(found, settings)}* Sources: {", ".join(sorted({numbers["commit"] for numbers in found.values()}))}.
"""
    text += claim(found)
    served = found.get(SERVED, {})
    if "decode_tok_s" in served and "decode_tok_s" in found.get("int4", {}):
        text += f"* {SERVED} decodes at {served['decode_tok_s'] / found['int4']['decode_tok_s']:.3f} of the speed of int4.\n"
    if "variants" in served:
        places = served["places"]
        text += (
            f"* {SERVED} in {', '.join(served['variants'])}, {settings['variants']}, teacher-forced: another first token at "
            f"{served['other_first']} of {places:,} places, other logits at {served['other_logits']}. All its products are of quantised weights, so "
            f"the bound between variants is 0; the best two are equal at {served['equal_best']} ({served['equal_best'] / places:.2%}).\n"
        )
    return text


def retained(found: dict[str, dict[str, Any]], row: str, task: str) -> dict[str, float]:
    """Of the reference's score, where both were measured."""
    if row == REFERENCE or not all(task in found.get(one, {}) for one in (row, REFERENCE)):
        return {}
    mine, other = ([mark == "1" for mark in found[one][task]["right"]] for one in (row, REFERENCE))
    return retention(mine, other)


def tasks_told(found: dict[str, dict[str, Any]], settings: dict[str, str]) -> str:
    """A table for each task that was measured."""
    text = ""
    for task in TASKS:
        rows = []
        for row, numbers in found.items():
            if task not in numbers:
                continue
            told, kept = numbers[task], retained(found, row, task)
            cells = [
                with_bounds(told, "score"),
                *([with_bounds(kept, "retention"), str(kept["lost"]), str(kept["gained"])] if kept else ["", "", ""]),
            ]
            rows.append([row, *cells, str(told["cut"]), f"{told['new_tokens'] / told['seconds']:.0f}"])
        if rows:
            header = [task, "right", "retention", "lost", "gained", "cut", "tokens/s"]
            text += f"\n{settings[task]}:\n\n" + markdown(header, rows)
    if text:
        text += (
            "\n* Retention: a row's score over the reference's, on the same problems, which are resampled together; lost are problems that only the\n"
            "  reference solved, gained those that only the row did. cut: answers that were too long. tokens/s: of answers, tests included.\n"
        )
    return text


def claim(found: dict[str, dict[str, Any]]) -> str:
    """Bytes, speed and scores of the served row against the reference, in one line."""
    served, reference = found.get(SERVED, {}), found.get(REFERENCE, {})
    said = []
    if "weights_bytes" in served and "weights_bytes" in reference:
        said.append(f"{served['weights_bytes'] / reference['weights_bytes']:.2f} of the bytes in memory")
        said.append(f"{served['decode_tok_s'] / reference['decode_tok_s']:.2f} times the speed of decoding")
    for task in TASKS:
        if kept := retained(found, SERVED, task):
            said.append(f"{with_bounds(kept, 'retention')} of the score in {task}")
    return f"* {SERVED} against {REFERENCE}: {', '.join(said)}.\n" if said else ""


def plot(model: str, found: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = {"KL to the reference, nats a token": {row: estimate(n, "kl_mean") for row, n in found.items() if row != REFERENCE and "kl_mean" in n}}
    for task in TASKS:
        kept = {row: retained(found, row, task) for row in found}
        parts[f"{task}: share of the reference's score"] = {row: estimate(one, "retention") for row, one in kept.items() if one}
    parts = {label: rows for label, rows in parts.items() if rows}
    if not parts:
        return
    heights = [0.45 * len(rows) + 0.9 for rows in parts.values()]
    figure, axes = pyplot.subplots(len(parts), figsize=(6.5, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained")
    figure.suptitle(model)
    for place, (label, rows) in zip(axes[:, 0], parts.items(), strict=True):
        values = [one.value for one in rows.values()]
        ends = [[one.value - one.low for one in rows.values()], [one.high - one.value for one in rows.values()]]
        colours = ["#2f6f4f" if row in METHODS else "#8a8f98" for row in rows]
        if label.startswith("KL"):
            place.barh(list(rows), values, xerr=ends, color=colours, capsize=3)
        else:
            place.axvline(1.0, color="#c8ccd2", zorder=0)
            place.axvline(ASKED, color="#c8ccd2", linestyle=":", zorder=0)
            place.errorbar(values, list(rows), xerr=ends, fmt="none", ecolor="#555", capsize=3)
            place.scatter(values, list(rows), color=colours, zorder=3)
            place.set_ylim(-0.6, len(rows) - 0.4)
        place.invert_yaxis()
        place.set_xlabel(label)
        for index, value in enumerate(values):
            text = number(value * 1000) + " m" if label.startswith("KL") else f"{value:.3f}"
            place.annotate(text, (value, index), xytext=(4, -10), textcoords="offset points", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def with_bounds(numbers: dict[str, Any], name: str) -> str:
    return "{:.3f} ({:.3f}–{:.3f})".format(*estimate(numbers, name))


def estimate(numbers: dict[str, Any], name: str) -> Estimate:
    """A number of the table with its bounds."""
    return Estimate(numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"])


if __name__ == "__main__":
    main()
