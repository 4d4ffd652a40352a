"""How far the policy of `chat/depth.py` agrees with people: `PYTHONPATH=src python -m tests.chat.depth` prints agreement and confusion.

The prompts were labelled and divided before the policy was written: `dev` was looked at while its table grew, `held` was not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwenbox.chat.depth import Depth, DepthChoice, choose_depth
from qwenbox.types import Message

PROMPTS = Path(__file__).parents[1] / "fixtures" / "depth_prompts.jsonl"
DEPTHS: tuple[Depth, ...] = ("off", "short", "medium", "long")


class Agreement(NamedTuple):
    exact: float
    near: float
    """Within one step."""
    confusion: Mapping[tuple[str, str], int]
    """(label, choice) -> prompts."""


def prompts(split: str, lang: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if (row["split"], row["lang"]) == (split, lang)]


def choice(row: Mapping[str, Any], policy: Callable[..., DepthChoice] = choose_depth) -> DepthChoice:
    tools = [{"type": "function", "function": {"name": name}} for name in row.get("tools", ())]
    return policy([Message(**message) for message in row["messages"]], tools)


def agreement(rows: Sequence[Mapping[str, Any]], policy: Callable[..., DepthChoice] = choose_depth) -> Agreement:
    pairs = Counter((row["depth"], choice(row, policy).depth) for row in rows)
    steps = Counter({pair: abs(DEPTHS.index(pair[0]) - DEPTHS.index(pair[1])) for pair in pairs})
    return Agreement(
        sum(count for pair, count in pairs.items() if steps[pair] == 0) / len(rows),
        sum(count for pair, count in pairs.items() if steps[pair] <= 1) / len(rows),
        pairs,
    )


def main() -> None:
    for split in ("dev", "held"):
        for lang in ("en", "zh"):
            rows = prompts(split, lang)
            found = agreement(rows)
            print(f"{split} {lang}: {len(rows)} prompts, {found.exact:.1%} exact, {found.near:.1%} within one step; rows are labels")
            print("         " + "".join(f"{depth:>8}" for depth in DEPTHS))
            for label in DEPTHS:
                print(f"  {label:7}" + "".join(f"{found.confusion[label, chosen]:8}" for chosen in DEPTHS))


if __name__ == "__main__":
    main()
