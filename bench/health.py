"""`qwenbox verify`'s thresholds: how far healthy runs are from their fingerprint, and models with a fault; `python bench/health.py MODEL`.

MODEL is fingerprinted as it is stored and, if it is none, as an AWQ checkpoint made of it; then run again in every variant of the kernels that
this machine has, with one and two threads and several sizes of a step. Faults are planted in copies of the checkpoint and judged by what the
model says alone, without the digests that find them all.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from qwenbox.chat.chat import ChatFormat  # noqa: E402
from qwenbox.evaluate.fingerprint import LIMIT, NUM_PAGES, Fingerprint, check, take  # noqa: E402
from qwenbox.hub import resolve  # noqa: E402
from qwenbox.kernels.native import isa_missing  # noqa: E402
from qwenbox.llm import open_chat  # noqa: E402
from qwenbox.model.load import Model, load_model  # noqa: E402
from tests.faults import FAULTS, as_awq  # noqa: E402

VARIANTS = [isa for isa in ("generic", "avx2", "avxvnni", "avx512vnni", "amx") if isa_missing(isa) is None]


@contextmanager
def loaded(path: Path, chat: ChatFormat, weights: str | None, isa: str | None = None, threads: int = 2, step: int = 512) -> Iterator[Model]:
    with closing(load_model(path, weights=weights, isa=isa, threads=threads, num_pages=NUM_PAGES, max_batch_tokens=step)) as model:
        model.vocab_limit = min(model.vocab_size, chat.tokenizer.vocab_limit)
        yield model


def farthest(known: Fingerprint, model: Model, chat: ChatFormat) -> tuple[float, list[str]]:
    """The largest distance of a prompt, and what was found wrong."""
    found = list(check(known, model, chat))
    distances = [float(one.text.split()[0]) for one in found if one.name.startswith("logits") and one.text[0].isdigit()]
    return max(distances, default=float("inf")), [one.name for one in found if one.well is False]


def main() -> None:
    logging.getLogger("qwenbox").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--variants", nargs="*", default=VARIANTS)
    parser.add_argument("--steps", nargs="*", type=int, default=[512, 33])
    parser.add_argument("--weights", nargs="*", default=["stored"], help="forms of the weights, besides AWQ: stored, bf16, int8, int4")
    parser.add_argument("--awq", type=Path, help="where the AWQ checkpoint is or will be kept")
    arguments = parser.parse_args()
    path = resolve(arguments.model)
    chat = open_chat(path)
    runs, alarms, worst, missed = 0, 0, 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        awq = arguments.awq or Path(folder) / "awq"
        if not awq.exists():
            as_awq(path, awq)
        for name, source, weights in [*((form, path, form) for form in arguments.weights), ("awq", awq, None)]:
            with loaded(source, chat, weights) as model:
                known = take(model, chat, weights, {})
            for isa, threads, step in itertools.product(arguments.variants, (1, 2), arguments.steps):
                with loaded(source, chat, weights, isa, threads, step) as model:
                    distance, wrong = farthest(known, model, chat)
                runs, alarms, worst = runs + 1, alarms + bool(wrong), max(worst, distance)
                print(f"{name:8} {isa:12} {threads} threads, steps of {step:3}: {distance:.4f} {' '.join(wrong)}", flush=True)
        for fault, plant in FAULTS.items():
            if fault == "stale template" and not path.is_dir():
                continue  # a GGUF file holds its template itself
            bad = shutil.copytree(awq, Path(folder) / "bad")
            plant(bad)
            its_chat = open_chat(bad) if path.is_dir() else chat
            with loaded(bad, its_chat, None) as model:
                distance, wrong = farthest(known, model, its_chat)
            missed += [] if wrong else [fault]
            print(f"{fault:20} {distance:.4f} {', '.join(wrong) or 'NOT FOUND by what it says'}", flush=True)
            shutil.rmtree(bad)
    print(f"{runs} healthy runs, {alarms} alarms, at most {worst:.4f} of {LIMIT}; not found by what the model says: {', '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
