"""What kinds of head and embedding cost and lose: `python bench/heads.py [MODEL ...] [--measures loss,speed] [--tokens N]`.

Each row is a model with `--head` and `--embedding`; all else is as stored. Loss: divergence on bench/data/heldout.txt from the row with both in
bf16, in windows of 512 tokens that move by 384. Cost: bytes in memory and of a token, and greedy tokens a second after a prompt of 128 tokens, all
heads in turn, with what memory gives beside them. Two stages are int8 to the bit, so their loss is that of int8, and the ids of both are compared.
Results become bench/results/heads-<machine>.json and .md; what is measured again replaces what stood there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402

from bench.machine import commit, local_file, machine_name, say  # noqa: E402
from bench.table import markdown  # noqa: E402
from qwenbox.chat.text import token_ids  # noqa: E402
from qwenbox.evaluate.divergence import divergences  # noqa: E402
from qwenbox.kernels.ceiling import CeilingMeter  # noqa: E402
from qwenbox.llm import open_chat  # noqa: E402
from qwenbox.model.load import Model, load_model, stored_costs  # noqa: E402
from qwenbox.types import PAGE_TOKENS, Batch, IntArray, Span  # noqa: E402

Row = tuple[str, str]
"""Head and embedding."""
REFERENCE: Row = ("bf16", "bf16")
HEADS: tuple[Row, ...] = (REFERENCE, ("stored", "bf16"), ("int8", "bf16"), ("two-stage", "bf16"), ("int4", "bf16"))
ROWS: tuple[Row, ...] = (*HEADS, ("bf16", "stored"), ("bf16", "int8"), ("bf16", "int4"), ("stored", "stored"), ("int4", "int4"))
TOGETHER = 4
"""Models that are compared with one run of the reference, and in memory together."""
HELD_OUT = ROOT / "bench" / "data" / "heldout.txt"
WINDOW, STRIDE = 512, 384
PROMPT, NEW, ROUNDS, ANSWERS = 128, 32, 2, 2


def main() -> None:
    logging.getLogger("qwenbox").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"], metavar="MODEL")
    parser.add_argument("--measures", default="loss,speed")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    asked = parser.parse_args()
    path = asked.results / f"heads-{machine_name()}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, measure in itertools.product(asked.models, asked.measures.split(",")):
        file = local_file(name)
        rows = found.setdefault(Path(name).name, {})
        for row, numbers in (loss(file, asked.tokens) if measure == "loss" else speed(file)).items():
            rows.setdefault(" ".join(row), {})[measure] = numbers | {"commit": commit()}
        for row in ROWS:
            costs = stored_costs(file, None, *row)
            rows.setdefault(" ".join(row), {}).update({"memory": costs.weights_bytes, "read": costs.touched_bytes})
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(report(found), encoding="utf-8")
    print(report(found))


@contextmanager
def opened(file: Path, row: Row) -> Iterator[Model]:
    sizes = {"context_length": WINDOW, "num_pages": WINDOW // PAGE_TOKENS, "max_sequences": 128}
    with closing(load_model(file, head=row[0], embedding=row[1], **sizes)) as model, closing(open_chat(file)) as chat:  # type: ignore[arg-type]
        model.vocab_limit = min(model.vocab_size, chat.tokenizer.vocab_limit)
        yield model


def loss(file: Path, tokens: int) -> dict[Row, dict[str, Any]]:
    """Of every row but the reference and the one in two stages."""
    rows = [row for row in ROWS if row != REFERENCE and row[0] != "two-stage"]
    found: dict[Row, dict[str, Any]] = {}
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        say(f"{file.name}: loss of {', '.join(' '.join(row) for row in some)}")
        with ExitStack() as stack:
            reference, *models = (stack.enter_context(opened(file, row)) for row in (REFERENCE, *some))
            ids = token_ids(HELD_OUT, open_chat(file).tokenizer)
            measured = divergences(models, reference, ids, window=WINDOW, stride=STRIDE, max_tokens=tokens)
        found |= {row: one.numbers() for row, one in zip(some, measured, strict=True)}
    return found


def speed(file: Path) -> dict[Row, dict[str, Any]]:
    """Of the heads: what the embedding is made of costs a token one row."""
    ids = np.fromiter(token_ids(HELD_OUT, open_chat(file).tokenizer), np.int32)
    prompts = [ids[index * len(ids) // ANSWERS :][:PROMPT] for index in range(ANSWERS)]
    turns: dict[Row, list[dict[str, float]]] = {row: [] for row in HEADS}
    said: dict[Row, list[list[int]]] = {row: [] for row in HEADS}
    meter = None
    for _, row in itertools.product(range(ROUNDS), HEADS):
        say(f"{file.name}: speed of {' '.join(row)}")
        with opened(file, row) as model:
            meter = meter or CeilingMeter(model.threads)
            for prompt in prompts:
                ids_said, numbers = answer(model, prompt)
                said[row].append(ids_said)
                turns[row].append(numbers | {"bandwidth": meter.measure().bandwidth})
    if said["two-stage", "bf16"] != said["int8", "bf16"]:
        raise SystemExit("two stages say something else than int8")
    return {row: {name: statistics.median(turn[name] for turn in measured) for name in measured[0]} for row, measured in turns.items()}


def answer(model: Model, prompt: IntArray) -> tuple[list[int], dict[str, float]]:
    """Greedy ids, tokens a second, and bytes of the head that a token was spared."""
    pages = np.arange(WINDOW // PAGE_TOKENS, dtype=np.int32)
    ids, position, said = prompt, 0, []
    start, spared = 0.0, 0
    for step in range(NEW + 1):
        batch = Batch(ids, [Span(0, len(ids), position, pages)], np.array([len(ids) - 1], np.int32), model.vocab_limit)
        position += len(ids)
        ids = np.array([model.run(batch)[0, : model.vocab_limit].argmax()], np.int32)
        said.append(int(ids[0]))
        if step == 0:
            start, spared = time.perf_counter(), model.spared_bytes
    return said, {"tok_s": NEW / (time.perf_counter() - start), "spared": (model.spared_bytes - spared) / NEW}


def report(found: dict[str, Any]) -> str:
    text = f"# Kinds of head and embedding on {machine_name()}\n"
    for name, rows in found.items():
        lines = []
        for head, embedding in ROWS:
            row = rows[f"{head} {embedding}"]
            lost = rows[f"int8 {embedding}" if head == "two-stage" else f"{head} {embedding}"].get("loss")
            fast = row.get("speed")
            cells = ["", "", ""]
            if (head, embedding) == REFERENCE:
                cells = ["0", "1", ""]
            elif lost:
                cells = [
                    f"{lost['kl_mean']:.5f} ({lost['kl_mean_low']:.5f}–{lost['kl_mean_high']:.5f})",
                    f"{lost['top1_agreement']:.2%}",
                    f"{lost['perplexity_ratio'] - 1:+.2%}",
                ]
            read = row["read"] - (fast["spared"] if fast else 0)
            rates = [f"{fast['tok_s']:.1f}", f"{fast['bandwidth'] / read:.1f}"] if fast else ["", ""]
            lines.append([head, embedding, f"{row['memory'] / 1e6:.0f}", f"{read / 1e6:.0f}", *rates, *cells])
        header = ["head", "embedding", "MB in memory", "MB a token", "tok/s", "tok/s at most", "KL", "same top token", "perplexity"]
        commits = sorted({one[measure]["commit"] for one in rows.values() for measure in ("loss", "speed") if measure in one})
        tokens = next((one["loss"]["tokens"] for one in rows.values() if "loss" in one), 0)
        text += f"\n## {name}\n\n{markdown(header, lines)}\n{tokens:,} tokens; sources: {', '.join(commits)}.\n"
    return (
        text
        + """
`python bench/heads.py`: loss against head and embedding in bf16, in nats a token, intervals of 95 % over the windows; all other matrices are as
stored. Greedy answers of one stream; at most: what memory gives, measured beside them, over the bytes of a token. Two stages say what int8 says.
"""
    )


if __name__ == "__main__":
    main()
