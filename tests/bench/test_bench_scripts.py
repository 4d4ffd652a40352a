"""The benchmark scripts: what they write down, that an interrupted run goes on, and the repair of llama.cpp."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import peers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.touch()
    return path


class Engines:
    """Both measurements, scripted: each call is a little faster than the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int = 1000) -> None:
        self.calls: list[str] = []
        self.stop_after = stop_after
        monkeypatch.setattr(peers, "measure_qwenbox", lambda path, **_: self.measured("qwenbox", 10.0))
        monkeypatch.setattr(peers, "measure_llama", lambda bench, path, **_: self.measured("llama.cpp", 20.0))
        monkeypatch.setattr(peers, "commit", lambda: "abc1234")
        monkeypatch.setattr(peers, "machine_name", lambda: "box")

    def measured(self, engine: str, base: float) -> dict[str, Any]:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(engine)
        return {"prefill_tok_s": base * 10, "decode_tok_s": base + self.calls.count(engine), "note": "n"}


def run_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    (tmp_path / "llama-bench").touch()
    words = [str(model), "--llama", str(tmp_path), "--rounds", "3", "--results", str(tmp_path / "results"), "--json"]
    monkeypatch.setattr(sys, "argv", ["peers.py", *words])
    peers.main()


def test_engines_take_turns_and_medians_and_ratio_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = Engines(monkeypatch)
    run_peers(monkeypatch, tmp_path, model)
    assert engines.calls == ["qwenbox", "llama.cpp"] * 3
    numbers = json.loads(capsys.readouterr().out)["models"]["m.gguf"]
    assert numbers["qwenbox"]["decode_tok_s"] == 12
    assert numbers["llama.cpp"]["decode_tok_s_runs"] == [21, 22, 23]
    assert numbers["decode_ratio"] == pytest.approx(12 / 22)
    assert numbers["prefill_ratio"] == pytest.approx(0.5)
    with (tmp_path / "results" / "box.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["engine"], row["round"]) for row in rows] == [(engine, str(n)) for n in range(3) for engine in ("qwenbox", "llama.cpp")]
    assert (tmp_path / "results" / "box.png").stat().st_size > 1000


def test_an_interrupted_run_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Engines(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        run_peers(monkeypatch, tmp_path, model)
    engines = Engines(monkeypatch)
    run_peers(monkeypatch, tmp_path, model)
    assert engines.calls == ["llama.cpp", "qwenbox", "llama.cpp"]
    run_peers(monkeypatch, tmp_path, model)
    assert len(engines.calls) == 3


def test_a_directory_without_llama_bench_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=str(tmp_path)):
        peers.find_bench(tmp_path)
    (tmp_path / "build" / "bin").mkdir(parents=True)
    (tmp_path / "build" / "bin" / "llama-bench").touch()
    assert peers.find_bench(tmp_path).name == "llama-bench"


def test_the_amx_repair_needs_exactly_one_place(tmp_path: Path) -> None:
    source = tmp_path / "mmq.cpp"
    source.write_text("tc.rows[7] = 16;\n_tile_loadconfig(&tc);\n", encoding="utf-8")
    peers.repair_amx(source)
    assert 'asm volatile("" : "+m"(tc)); _tile_loadconfig(&tc);' in source.read_text(encoding="utf-8")
    source.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit):
        peers.repair_amx(source)


def test_a_failing_program_is_reported_with_its_words() -> None:
    with pytest.raises(SystemExit, match="out of luck"):
        peers.run([sys.executable, "-c", "import sys; sys.exit('out of luck')"])


def test_the_ceiling_script_prints_a_row_for_every_question() -> None:
    command = [sys.executable, str(ROOT / "bench" / "ceiling.py"), "--buffer-gb", "0.02", "--threads", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows = json.loads(done.stdout)["rows"]
    assert {(row["what"], row["threads"]) for row in rows} == {(what, threads) for what in ("read", "int8", "bf16") for threads in (1, 2)}
    assert all(row["gb_s"] > 0 for row in rows if row["what"] == "read")
