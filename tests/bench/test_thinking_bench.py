"""What thinking buys: the script over the thinker, with few questions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bench import thinking


def test_every_way_of_thinking_is_measured_in_every_kind_of_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["thinking", "--questions", "8", "--budgets", "16", "--results", str(tmp_path), "--json"])
    thinking.main()
    said = json.loads(capsys.readouterr().out)
    (path,) = tmp_path.glob("thinking-*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = {(row["way"], row["kind"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(way, kind) for way in ("never", "16 tokens", "always", "auto") for kind in (*thinking.KINDS, "all")}
    assert path.with_suffix(".png").stat().st_size > 1000
    assert float(rows["never", "hard"]["thinking_tokens"]) == 0 < float(rows["always", "hard"]["thinking_tokens"])
    assert float(rows["auto", "talk"]["tokens"]) < float(rows["always", "talk"]["tokens"]), "talk needs no thought"
    assert said["token_share"] > 0 and isinstance(said["reached"], bool)


def test_the_shares_of_the_kinds_are_those_of_the_labels() -> None:
    assert {kind: round(300 * share) for kind, share in thinking.shares().items()} == {"talk": 96, "easy": 80, "middle": 72, "hard": 52}
