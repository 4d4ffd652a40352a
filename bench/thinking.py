"""What does thinking buy? Accuracy against tokens for thinking always, never, within budgets, and as `auto` decides.

    python bench/thinking.py [MODEL] [--questions 120] [--budgets 8,16,24,32,48,64] [--json]

The questions are the thinker's; only the greetings were part of its training. Their kinds: talk; sums of two or three numbers; sums of four or
five and puzzles; sums of six to eight. In the row "all" the kinds have the shares that the labels off, short, medium and long have in
tests/fixtures/depth_prompts.jsonl. Answers are greedy. Tokens are all of an answer: thought, its forced end, content, and what was tried and
thrown away. The results go to bench/results/thinking-<machine>.csv and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.machine import commit, machine_name, say  # noqa: E402
from bench.table import Table, markdown  # noqa: E402
from qwenbox.llm import LLM  # noqa: E402
from tests.chat.depth import PROMPTS  # noqa: E402
from tests.fixtures.thinker.dialogues import GREETINGS  # noqa: E402
from tests.thinker import MODEL, Question, found, puzzles, sums  # noqa: E402

FIELDS = ["commit", "way", "kind", "questions", "accuracy", "tokens", "thinking_tokens", "thought_share"]
KINDS = {"talk": "off", "easy": "short", "middle": "medium", "hard": "long"}
"""Kinds of questions, and the label that gives each its share of all."""
MOST_TOKENS = 0.6
"""`auto` keeps its name with at most this share of the tokens of `always`, and no fewer right answers."""

Means = Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(MODEL), metavar="MODEL")
    parser.add_argument("--questions", type=int, default=120, help="of each kind")
    parser.add_argument("--budgets", default="8,16,24,32,48,64")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()
    kinds, weights = questions(asked.questions), shares()
    path = asked.results / f"thinking-{machine_name()}.csv"
    path.unlink(missing_ok=True)
    table = Table(path, FIELDS)
    found: dict[str, dict[str, Means]] = {}
    with LLM(asked.model) as llm:
        for way, thinking in ways([int(budget) for budget in asked.budgets.split(",")]).items():
            rows = {kind: measure(llm, own, thinking) for kind, own in kinds.items()}
            rows["all"] = {name: sum(weights[kind] * rows[kind][name] for kind in kinds) for name in rows["talk"]}
            found[way] = rows
            for kind, row in rows.items():
                count = len(kinds.get(kind, [])) or sum(map(len, kinds.values()))
                means = {name: f"{value:.4g}" for name, value in row.items()}
                table.add({"commit": commit(), "way": way, "kind": kind, "questions": count, **means})
            say(f"{way}: " + ", ".join(f"{name} {value:.3g}" for name, value in rows["all"].items()))
    plot(found, path.with_suffix(".png"))
    if not asked.json:
        cells = {way: [f"{rows[kind]['accuracy']:.1%}, {rows[kind]['tokens']:.1f}" for kind in (*KINDS, "all")] for way, rows in found.items()}
        print(markdown(["right answers, tokens", *KINDS, "all"], [[way, *row] for way, row in cells.items()]))
    auto, always = found["auto"]["all"], found["always"]["all"]
    share = auto["tokens"] / always["tokens"]
    reached = auto["accuracy"] >= always["accuracy"] and share <= MOST_TOKENS
    print(json.dumps({"machine": machine_name(), "commit": commit(), "ways": found, "token_share": round(share, 3), "reached": reached}))


def questions(count: int) -> Mapping[str, list[Question]]:
    """So many of each kind."""
    talk = [Question(text, answer, "", 0, "") for text, answer in GREETINGS.items()]
    return {
        "talk": [talk[index % len(talk)] for index in range(count)],
        "easy": sums(11, count, [2, 3]),
        "middle": [*sums(12, count - count // 2, [4, 5]), *puzzles(13, count // 2)],
        "hard": sums(14, count, [6, 7, 8]),
    }


def shares() -> Mapping[str, float]:
    labels = Counter(json.loads(line)["depth"] for line in PROMPTS.read_text(encoding="utf-8").splitlines())
    return {kind: labels[label] / labels.total() for kind, label in KINDS.items()}


def ways(budgets: Sequence[int]) -> Mapping[str, str | int]:
    return {"never": "off", **{f"{budget} tokens": budget for budget in budgets}, "always": "on", "auto": "auto"}


def measure(llm: LLM, asked: Sequence[Question], thinking: str | int) -> Means:
    replies = llm.batch([question.text for question in asked], thinking=thinking, temperature=0.0, max_tokens=512)
    pairs = list(zip(replies, asked, strict=True))
    return {
        "accuracy": sum((found(reply.text) if question.terms else reply.text) == question.answer for reply, question in pairs) / len(pairs),
        "tokens": sum(reply.usage.completion_tokens for reply in replies) / len(pairs),
        "thinking_tokens": sum(reply.usage.reasoning_tokens for reply in replies) / len(pairs),
        "thought_share": sum(bool(reply.reasoning) for reply in replies) / len(pairs),
    }


def plot(found: Mapping[str, Mapping[str, Means]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    points = {way: (rows["all"]["tokens"], rows["all"]["accuracy"]) for way, rows in found.items()}
    fixed = [point for way, point in points.items() if way != "auto"]
    left.plot(*zip(*fixed, strict=True), "o-", color="#8a94a6", label="never, budgets from small to large, always")
    left.plot(*points["auto"], "*", color="#3451b2", markersize=13, label="auto")
    left.annotate("never", points["never"], xytext=(4, -12), textcoords="offset points", fontsize=8)
    left.annotate("always", points["always"], xytext=(-34, -12), textcoords="offset points", fontsize=8)
    left.set(xlabel="tokens an answer, all kinds", ylabel="right answers", xlim=(0, None), ylim=(0, 1.02))
    for kind in KINDS:
        right.plot(list(found), [rows[kind]["accuracy"] for rows in found.values()], "o-", label=kind)
    right.tick_params(axis="x", rotation=40)
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
