"""`qwenbox eval` on problems, on several models, layer by layer, and the report that it writes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from qwenbox.evaluate.report import Report, Result
from qwenbox.evaluate.tasks import Item, Score
from tests import thinker
from tests.cli.command import ROOT, Command
from tests.cli.test_cli_usage import assert_error


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def report_of(folder: Path) -> tuple[str, dict[str, object]]:
    """report.md and results.json; the plot is well-formed."""
    assert xml.parse(folder / "plot.svg").getroot().tag.endswith("svg")
    return (folder / "report.md").read_text("utf-8"), json.loads((folder / "results.json").read_text("utf-8"))


def test_the_thinker_with_and_without_thoughts_is_compared_problem_by_problem(qwenbox: Command) -> None:
    asked = thinker.sums(9, 20, [4, 5, 6])
    write_lines(
        qwenbox.folder / "sums.jsonl",
        [{"id": index, "question": one.text, "answer": one.answer, "match": "number"} for index, one in enumerate(asked)],
    )
    words = ("--task", "generate", "--data", "sums.jsonl", "--thinking", "both", "--answer-tokens", 256, "--report", "out", "--json")
    done = qwenbox("eval", thinker.MODEL, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    off, on = found["results"]
    assert (off["thinking"], on["thinking"], on["problems"]) == (False, True, 20)
    assert on["score"] > off["score"] and on["score_low"] <= on["score"] <= on["score_high"]
    (compared,) = found["comparisons"]
    assert compared["difference"] == pytest.approx(on["score"] - off["score"])
    assert compared["retention"] == pytest.approx(on["score"] / off["score"])
    assert compared["gained"] - compared["lost"] == on["right"] - off["right"]
    text, results = report_of(qwenbox.folder / "out")
    assert "| retention " in text and "Retention:" in text
    assert "thinker, thinking on" in text and f"{on['right']} of 20" in text
    assert [len(one["items"]) for one in results["results"]] == [20, 20]  # type: ignore[attr-defined]


def test_two_forms_of_a_model_diverge_beside_each_other_and_layer_by_layer(qwenbox: Command) -> None:
    (qwenbox.folder / "text.txt").write_text("What is 2 + 3? The answer is 5. " * 40, encoding="utf-8")
    words = ("--data", "text.txt", "--reference", thinker.MODEL, "--weights", "int8", "--report")
    windows = ("--json", "--window", 32)
    done = qwenbox("eval", thinker.MODEL, thinker.MODEL, "--task", "kl", *words, "kl", *windows)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, second = found["results"]
    assert first == second and first["model"] == "thinker (int8)"
    assert 0 < first["kl_p50"] <= first["kl_p90"] <= first["kl_p99"] <= first["kl_max"]
    assert 0 < first["kl_mean_low"] <= first["kl_mean"] <= first["kl_mean_high"]
    assert first["perplexity"] == pytest.approx(first["reference_perplexity"] * first["perplexity_ratio"])
    assert found["comparisons"][0]["difference"] == 0
    done = qwenbox("eval", thinker.MODEL, "--task", "ppl", *words, "ppl", *windows)
    reference, rounded = json.loads(done.stdout)["results"]
    assert (reference["perplexity"], rounded["perplexity"]) == pytest.approx((first["reference_perplexity"], first["perplexity"]), rel=1e-6)
    done = qwenbox("eval", thinker.MODEL, "--task", "layers", *words, "layers")
    assert done.returncode == 0, done.stderr
    text, results = report_of(qwenbox.folder / "layers")
    assert done.stdout.strip() in text
    assert all(0 < layer["own"] < 0.1 and 0 < layer["weights"]["down"] < 0.02 for layer in results["layers"])  # type: ignore[attr-defined]


def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(qwenbox: Command) -> None:
    write_lines(qwenbox.folder / "bad.jsonl", [{"id": "a", "question": "?"}])
    assert_error(qwenbox("eval", thinker.MODEL, "--task", "code", "--data", "bad.jsonl"), 2, "bad.jsonl, line 1", "entry")
    assert_error(qwenbox("eval", "m", "n", "--task", "layers", "--reference", "r", "--data", "bad.jsonl"), 2, "one model")
    assert_error(qwenbox("eval", thinker.MODEL, "--task", "ppl", "--data", "bad.jsonl", "--report", "bad.jsonl"), 2, "bad.jsonl")
    for number, text in enumerate(("", "a")):
        (qwenbox.folder / "text.txt").write_text(text)
        done = qwenbox("eval", thinker.MODEL, "--task", "ppl", "--data", "text.txt")
        assert done.returncode == 2 and f"text.txt has {number} tokens" in done.stderr


def test_what_would_change_nothing_or_cannot_be_asked_or_written_is_refused_first(qwenbox: Command) -> None:
    folder = qwenbox.folder
    (folder / "text.txt").write_text("What is 2 + 3? " * 20)
    for option in (("--problems", 3), ("--thinking", "on"), ("--answer-tokens", 5), ("--reference-weights", "int8")):
        assert_error(qwenbox("eval", thinker.MODEL, "--task", "ppl", "--data", "text.txt", *option), 2, str(option[0]))
    asked = [{"id": name, "question": "2 + 3? " * times, "answer": 5, "match": "number"} for name, times in (("a", 1), ("b", 9999))]
    write_lines(folder / "long.jsonl", asked)
    assert_error(qwenbox("eval", thinker.MODEL, "--task", "generate", "--data", "long.jsonl"), 2, "problem b has ")
    (folder / "taken" / "report.md").mkdir(parents=True)
    assert_error(qwenbox("eval", thinker.MODEL, "--task", "ppl", "--data", "text.txt", "--report", "taken"), 2, "report.md is a folder")


def test_models_of_one_name_are_told_apart(qwenbox: Command) -> None:
    folder = qwenbox.folder
    (folder / "text.txt").write_text("What is 2 + 3? " * 20)
    for version in ("v1", "v2"):
        (folder / version).mkdir()
        (folder / version / "mine").symlink_to(thinker.MODEL)
    done = qwenbox("eval", "v1/mine", "v2/mine", "--task", "ppl", "--data", "text.txt")
    assert done.returncode == 0 and "v1/mine" in done.stdout and "v2/mine" in done.stdout


def test_a_report_holds_whatever_an_answer_said(tmp_path: Path) -> None:
    said = Item("a", False, {"reason": "ValueError: \ud83d 中"})
    Report("code", "problems", [Result("m", Score((said,), 1.0))]).write(tmp_path)
    assert report_of(tmp_path)[1]["results"][0]["items"][0]["reason"] == "ValueError: \ud83d 中"  # type: ignore[index]


@pytest.mark.weights
def test_the_small_real_model_writes_code_that_passes(qwenbox: Command, small: Path) -> None:
    words = ("--data", ROOT / "bench" / "data" / "code.jsonl", "--problems", 6, "--answer-tokens", 200, "--report", "out")
    done = qwenbox("eval", small, "--task", "code", *words)
    assert done.returncode == 0, done.stderr
    assert " of 6 " in done.stdout
    _, results = report_of(qwenbox.folder / "out")
    items = results["results"][0]["items"]  # type: ignore[index]
    assert sum(item["right"] for item in items) >= 3
    assert all("def " in item["code"] for item in items)
