"""`qwenbox bench` and `qwenbox eval`."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from tests.cli.command import Command

KEYS = {
    "prefill_tok_s", "decode_tok_s", "bytes_per_token", "bandwidth_gb_s", "bandwidth_fraction", "compute_fraction", "weights_bytes", "rss_bytes",
    "isa", "threads", "model",
}  # fmt: skip

TEXT = "The quick brown fox jumps over the lazy dog. " * 6 + "\n量子计算机使用量子比特。\ndef add(a, b):\n    return a + b\n"


def check_numbers(result: dict[str, float]) -> None:
    assert set(result) >= KEYS
    for name in KEYS - {"isa", "model"}:
        assert result[name] > 0, name
        assert math.isfinite(result[name])
    # Bytes a token times tokens a second is the bandwidth, in whatever unit one looks.
    assert result["bandwidth_gb_s"] == pytest.approx(result["bytes_per_token"] * result["decode_tok_s"] / 1e9, rel=0.01)


def test_bench_of_random_weights_ends_with_one_json_line(qwenbox: Command) -> None:
    done = qwenbox("bench", "--random", "0.6b", "--weights", "int4", "--prompt-tokens", 9, "--new-tokens", 2, "--repeat", 1, "--batch", 2, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    check_numbers(result)
    assert result["model"] == "random-0.6b"
    assert (result["prompt_tokens"], result["new_tokens"], result["batch"]) == (9, 2, 2)
    # 440 million weights of the layers in 4 bits with 3 bytes a group of 128, the head in 8 bits with 2, norms; the tied embedding counts once.
    layers = 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072)
    assert result["weights_bytes"] == pytest.approx(layers * 67 / 128 + 151936 * 1024 * (130 + 72) / 128, rel=0.001)


@pytest.mark.weights
def test_bench_for_people_explains_the_ceilings_and_still_ends_with_json(qwenbox: Command, small: Path) -> None:
    done = qwenbox("bench", small, "--prompt-tokens", 40, "--new-tokens", 3, "--repeat", 2, "--threads", 1, "--isa", "avx2")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    check_numbers(json.loads(last))
    assert json.loads(last)["isa"] == "avx2"
    assert json.loads(last)["threads"] == 1
    assert any("GB/s" in line for line in table)
    assert any("T/s" in line for line in table)


@pytest.mark.weights
def test_eval_prints_a_perplexity_that_knows_text_from_noise(qwenbox: Command, small: Path) -> None:
    (qwenbox.folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (qwenbox.folder / "noise.txt").write_text("".join(random.Random(0).sample(TEXT, len(TEXT))), encoding="utf-8")
    found = [json.loads(qwenbox("eval", small, "--task", "ppl", "--data", f"{name}.txt", "--json").stdout) for name in ("text", "noise")]
    assert found[0]["task"] == "ppl"
    text, noise = (one["results"][0] for one in found)
    assert 1 < text["perplexity"] < noise["perplexity"]
    assert text["nll"] == pytest.approx(math.log(text["perplexity"]))


@pytest.mark.weights
def test_eval_finds_no_divergence_of_a_model_from_itself_and_some_after_rounding(qwenbox: Command, small: Path) -> None:
    (qwenbox.folder / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ("eval", small, "--task", "kl", "--reference", small, "--data", "text.txt", "--max-tokens", 60, "--json")
    same, rounded = (json.loads(qwenbox(*words, *more).stdout)["results"][0] for more in ((), ("--weights", "int8")))
    assert (same["kl_mean"], same["top1_agreement"], same["tokens"]) == (0, 1, 59)
    assert 0 < rounded["kl_mean"] < 0.2
    assert rounded["top1_agreement"] > 0.8


@pytest.mark.weights
def test_eval_for_people_is_a_table(qwenbox: Command, small: Path) -> None:
    (qwenbox.folder / "text.txt").write_text(TEXT, encoding="utf-8")
    done = qwenbox("eval", small, "--task", "ppl", "--data", "text.txt", "--max-tokens", 30)
    assert "perplexity" in done.stdout
    assert done.returncode == 0
