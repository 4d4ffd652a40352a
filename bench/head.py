"""How many rows of the head must be finished exactly if the others are excluded by fewer bits and a bound?

    python bench/head.py [MODEL.gguf] [--states 24] [--bits 4,5] [--directions 0,32]

The head is int8 a group of 128; a first stage reads codes of fewer bits with a scale and a zero a group, and each logit then lies within the
sum over the groups of the norm of the row's error times the norm of the input. Rows remain whose upper bound reaches the k-th largest lower
bound. Inputs are what the real model gives its head on code, English and Chinese; the first principal directions of other inputs may count as
exact. Median and 90th of 100.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.machine import local_file  # noqa: E402
from qwenbox.chat.tokenizer import Tokenizer  # noqa: E402
from qwenbox.kernels import quants  # noqa: E402
from qwenbox.kernels.native import Native  # noqa: E402
from qwenbox.model.config import from_gguf  # noqa: E402
from qwenbox.model.qwen import Qwen  # noqa: E402
from qwenbox.types import Batch, FloatArray, Span, Tensor  # noqa: E402
from qwenbox.weights import read_gguf  # noqa: E402

TEXTS = ("src/qwenbox/engine/scheduler.py", "docs/architecture.md", "README.zh-CN.md")
LARGEST = (1, 20, 64)
TOKENS, ROWS = 512, 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b", metavar="MODEL.gguf")
    parser.add_argument("--states", type=int, default=24)
    parser.add_argument("--bits", default="4,5")
    parser.add_argument("--directions", default="0,32")
    asked = parser.parse_args()
    states, head = inputs_of_head(local_file(asked.model))
    chosen = np.linspace(16, TOKENS - 8, asked.states // len(TEXTS)).astype(int)
    others = np.setdiff1d(np.arange(8, TOKENS, 12), chosen)
    x = quants.dequantize(int8(states[:, chosen].reshape(-1, states.shape[2])))
    axes = np.linalg.svd(states[:, others].reshape(-1, states.shape[2]), full_matrices=False)[2]
    for bits in map(int, asked.bits.split(",")):
        for directions in map(int, asked.directions.split(",")):
            left = candidates(head, x, bits, axes[:directions])
            shown = (f"top {k} {np.median(n):.0f} ({np.quantile(n, 0.9):.0f})" for k, n in zip(LARGEST, left, strict=True))
            print(f"{bits} bits, {directions} directions exact: {', '.join(shown)} of {head.shape[0]} rows", flush=True)


def inputs_of_head(path: Path) -> tuple[FloatArray, Tensor]:
    """[texts, tokens, width]: the logits of the model if its head is the identity. And its head."""
    file = read_gguf(path)
    network = Qwen(from_gguf(file.metadata), file.tensors, positions=TOKENS)
    head, width = network.head or network.embedding, network.config.hidden_size
    network.head = Tensor("identity", "f32", (width, width), np.eye(width, dtype=np.float32).reshape(-1).view(np.uint8))
    tokenizer = Tokenizer.from_gguf(file.metadata)
    with closing(Native()) as runtime:
        network.build(runtime)
        with closing(runtime.compile(max_tokens=TOKENS, max_logits=TOKENS, num_pages=TOKENS // 32)) as program:
            every = np.arange(TOKENS, dtype=np.int32)
            spans = [Span(0, TOKENS, 0, np.arange(TOKENS // 32, dtype=np.int32))]
            texts = [tokenizer.encode((ROOT / name).read_text(encoding="utf-8"))[:TOKENS] for name in TEXTS]
            return np.stack([program.run(Batch(np.array(ids, np.int32), spans, every)) for ids in texts]), head


def int8(rows: FloatArray) -> Tensor:
    return Tensor("rows", "int8", rows.shape, quants.round_int8(rows))


def candidates(head: Tensor, x: FloatArray, bits: int, axes: FloatArray) -> list[FloatArray]:
    """For each of `LARGEST`, how many rows remain for each input."""
    rest = x - (x @ axes.T) @ axes
    lower, upper = [], []
    for start in range(0, head.shape[0], ROWS):
        w = quants.dequantize(int8(quants.dequantize(head, start, min(start + ROWS, head.shape[0]))))
        error = w - fewer(w, bits)
        middle = x @ w.T - rest @ error.T
        bound = norms(rest) @ norms(error).T
        lower.append(np.partition(middle - bound, -max(LARGEST), axis=1)[:, -max(LARGEST) :])
        upper.append(middle + bound)
    lowest, highest = np.sort(np.concatenate(lower, axis=1)), np.concatenate(upper, axis=1)
    return [(highest >= lowest[:, -k, None]).sum(axis=1) for k in LARGEST]


def fewer(w: FloatArray, bits: int) -> FloatArray:
    groups = w.reshape(len(w), -1, 128)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    step = np.maximum(high - low, np.float32(1e-9)) / np.float32(2**bits - 1)
    return (np.rint((groups - low) / step) * step + low).reshape(w.shape)


def norms(rows: FloatArray) -> FloatArray:
    return np.sqrt(np.square(rows.reshape(len(rows), -1, 128)).sum(axis=2))


if __name__ == "__main__":
    main()
