"""`bench/quality.py`: rows are made from one reference, measured once, and told in one table."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from bench import quality
from bench.machine import machine_name
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.weights.gguf import read_gguf
from tests import thinker


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> dict[str, dict[str, float]]:
    asked = [
        "quality.py",
        "thinker",
        *words,
        "--tokens",
        "400",
        "--window",
        "128",
        "--folder",
        str(folder / "made"),
        "--results",
        str(folder),
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", asked)
    quality.main()
    rows: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)["rows"]
    return rows


def test_rows_are_measured_once_and_told_in_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = run(monkeypatch, capsys, tmp_path, "--rows", "bf16,int4", "--measures", "quality")
    assert rows["bf16"]["kl_mean"] == 0 < rows["int4"]["kl_mean"]
    monkeypatch.setattr(quality.Models, "quality", lambda *_: pytest.fail("measured again"))
    assert run(monkeypatch, capsys, tmp_path, "--rows", "bf16,int4", "--measures", "quality") == rows
    stem = tmp_path / f"quality-thinker-{machine_name()}"
    with stem.with_suffix(".csv").open(encoding="utf-8") as file:
        written = {row["row"]: row["linear_bits"] for row in csv.DictReader(file)}
    assert written == {"bf16": "16.000", "int4": ""}
    assert "| bf16 | 16.000 |" in stem.with_suffix(".md").read_text(encoding="utf-8")
    assert stem.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")


def test_sums_that_calibrated_nothing_are_asked_of_each_row_and_paired_with_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(quality, "SUMS", 40)
    rows = run(monkeypatch, capsys, tmp_path, "--rows", "bf16,int4", "--measures", "sums")
    assert all(len(rows[row]["sums"]["right"]) == 40 for row in ("bf16", "int4"))  # type: ignore[index]
    kept = quality.retained(rows, "int4", "sums")
    assert kept["retention_low"] <= kept["retention"] <= kept["retention_high"] and quality.retained(rows, "bf16", "sums") == {}
    text = (tmp_path / f"quality-thinker-{machine_name()}.md").read_text(encoding="utf-8")
    assert "| sums | right | retention |" in text and "40 problems (" in text
    asked = {json.loads(line)["question"] for line in (tmp_path / "made" / "thinker" / "sums.jsonl").read_text(encoding="utf-8").splitlines()}
    assert asked.isdisjoint(one.text for one in quality.sums(1, quality.CALIBRATING))


def test_a_row_of_another_calibration_is_another_model_and_another_line(tmp_path: Path) -> None:
    little, more = (quality.Models(thinker.MODEL, tmp_path, tokens, tmp_path / "nothing") for tokens in (2048, 4096))
    assert little.calibration("awq").startswith("2048 tokens (") and little.calibration("awq") != more.calibration("awq")
    assert little.calibration("rtn") == more.calibration("rtn") == ""
    assert little.made("gptq")[0] != more.made("gptq")[0]
    assert little.made("rtn")[0] == more.made("rtn")[0]


def test_a_gguf_file_made_of_a_directory_has_its_tokens(tmp_path: Path) -> None:
    models = quality.Models(thinker.MODEL, tmp_path, 512, tmp_path / "nothing")
    path = models.in_bf16()
    ids = list(models.ids())[:2000]
    tokenizer = Tokenizer.from_gguf(read_gguf(path).metadata)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert quality.linear_bits(path) == 16
