"""The benchmark scripts: what they write down, that an interrupted run goes on, and the repair of llama.cpp."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench import engines, kernels, machine, peers
from bench.engines import Measured, Places, Row
from bench.table import Table
from tests.engine.fakes import eventually

ROOT = Path(__file__).parents[2]


ROWS = [Row("prefill-8", 8, rounds=2), Row("batch-2", 4, 3, 2, samples=2, rounds=1)]
NAMES = ["qwenbox:file", "llama.cpp:file", "openvino:int4"]


class Scripted:
    """An engine whose speed grows by one each time; `calls` is shared by all."""

    def __init__(self, name: str, speed: float, calls: list[str], stop_after: int, why: str | None) -> None:
        self.name, self.speed, self.calls, self.stop_after, self.why = name, speed, calls, stop_after, why
        self.closed = False

    def missing(self) -> str | None:
        return self.why

    def about(self) -> str:
        return f"{self.name} of today"

    def measure(self, row: Row) -> Measured:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(f"{row.name} {self.name}")
        self.speed += 1
        return Measured([self.speed] * row.samples, 0.5 if self.name.startswith("qwenbox") else None)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def run_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs the comparison of scripted engines; what was measured."""
    model = tmp_path / "m.gguf"
    model.touch()
    monkeypatch.setattr(peers, "ROWS", ROWS)
    monkeypatch.setattr(peers, "ENGINES", NAMES)
    monkeypatch.setattr(peers, "commit", lambda: "abc1234")
    monkeypatch.setattr(peers, "machine_name", lambda: "box")

    def run(*words: str, stop_after: int = 1000, absent: str = "") -> list[str]:
        calls: list[str] = []
        made: list[Scripted] = []

        def find(name: str, places: Places, *, threads: int, rows: list[Row]) -> Scripted:
            made.append(Scripted(name, 10.0 * (len(NAMES) - NAMES.index(name)), calls, stop_after, "no such file" if name == absent else None))
            return made[-1]

        monkeypatch.setattr(peers.engines, "find", find)
        monkeypatch.setattr(sys, "argv", ["peers.py", str(model), "--results", str(tmp_path), *words])
        try:
            peers.main()
        finally:
            assert all(engine.closed for engine in made if engine.name != absent)
        return calls

    return run


def test_engines_take_turns_and_medians_quartiles_and_ratios_are_reported(
    run_peers: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_peers("--json") == [f"prefill-8 {name}" for name in NAMES] * 2 + [f"batch-2 {name}" for name in NAMES]
    rows = json.loads(capsys.readouterr().out)["rows"]
    ours = rows["prefill-8"]["engines"]["qwenbox:file"]
    assert (ours["median"], ours["quartiles"], ours["count"], ours["fraction"]) == (31.5, [31.25, 31.75], 2, 0.5)
    assert rows["batch-2"]["engines"]["openvino:int4"]["count"] == 2
    assert rows["prefill-8"]["ratios"] == pytest.approx({"qwenbox:file / best peer": 31.5 / 21.5, "qwenbox:file / llama.cpp:file": 31.5 / 21.5})
    report = (tmp_path / "peers-box.md").read_text(encoding="utf-8")
    assert "| prefill-8 | **31.5** (31.2–31.8) 2, 0.50 | **21.5** (21.2–21.8) 2 |" in report
    assert "* qwenbox:file: qwenbox:file of today" in report
    assert "not a result" not in report
    assert (tmp_path / "peers-box.png").stat().st_size > 1000


def test_an_interrupted_comparison_goes_on_where_it_stopped(run_peers: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_peers(stop_after=4)
    assert "| prefill-8 | **31.5**" in (tmp_path / "peers-box.md").read_text(encoding="utf-8")
    assert run_peers() == ["prefill-8 llama.cpp:file", "prefill-8 openvino:int4"] + [f"batch-2 {name}" for name in NAMES]
    assert run_peers() == []
    with (tmp_path / "peers-box.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 9


def test_an_absent_engine_is_named_and_takes_away_the_standing_of_a_result(run_peers: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run_peers("--rows", "batch-2", absent="openvino:int4") == ["batch-2 qwenbox:file", "batch-2 llama.cpp:file"]
    report = (tmp_path / "peers-box.md").read_text(encoding="utf-8")
    assert "**absent**: openvino:int4: no such file" in report
    assert "Without openvino this is not a result" in report


def test_rounds_and_minutes_limit_a_comparison(run_peers: Callable[..., list[str]]) -> None:
    assert run_peers("--minutes", "0") == []
    assert run_peers("--rounds", "1", "--rows", "prefill-8") == [f"prefill-8 {name}" for name in NAMES]
    with pytest.raises(SystemExit, match="unknown rows prefill-9"):
        run_peers("--rows", "prefill-9")


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"t\.csv has the columns \['a', 'b'\]"):
        Table(tmp_path / "t.csv", ["a", "c"])


def program(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport json, sys\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_programs_of_llama_cpp_are_asked_for_what_a_row_says(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    engine = engines.Llama(tmp_path, model, 2)
    assert str(tmp_path / "llama-bench") in (engine.missing() or "")
    asked = "float(sys.argv[sys.argv.index('{}') + 1].split(',')[-1])"
    program(tmp_path / "llama-bench", f"print(json.dumps([{{'samples_ts': [1.0]}}, {{'samples_ts': [{asked.format('-p')}, 7.0]}}]))")
    program(tmp_path / "llama-batched-bench", f"print('noise'); print(json.dumps({{'speed_tg': {asked.format('-npl')}}}))")
    model.touch()
    assert engine.missing() is None
    assert engine.measure(ROWS[0]).tok_s == [8.0, 7.0]
    assert engine.measure(ROWS[1]).tok_s == [2.0]


def test_a_resident_engine_answers_stands_still_and_is_ended(tmp_path: Path) -> None:
    worker = "import json, sys\nprint(json.dumps({'version': 1}), flush=True)\n"
    worker += "for line in sys.stdin: print(json.dumps({'tok_s': [json.loads(line)['prompt']]}), flush=True)"
    engine = engines.Resident("any", Path(sys.executable), {}, needs=[], threads=1, log=tmp_path / "log")
    engine.command = [sys.executable, "-c", worker]
    try:
        assert engine.about() == "version 1"
        process = engine.process
        assert process is not None
        assert engine.measure(ROWS[0]) == Measured([8])
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    finally:
        engine.close()
    assert process.returncode is not None


def test_a_resident_engine_that_fails_is_reported_with_its_words(tmp_path: Path) -> None:
    engine = engines.Resident("any", Path(sys.executable), {}, needs=[], threads=1, log=tmp_path / "log")
    engine.command = [sys.executable, "-c", "import sys; sys.exit('no memory left')"]
    with pytest.raises(SystemExit, match="no memory left"):
        engine.measure(ROWS[0])


@pytest.mark.parametrize("name", ["qwenbox", "qwenbox:int3", "llama.cpp@386:file", "openvino:file", "vllm@f32:int4", "mlc:int4"])
def test_an_engine_that_means_nothing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown engine"):
        engines.find(name, Places(tmp_path / "m.gguf", tmp_path), threads=1, rows=ROWS)


@pytest.mark.parametrize("name", [*peers.ENGINES, "qwenbox@avx2:int4", "llama.cpp@avx2:q4_0"])
def test_an_engine_that_is_not_installed_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    assert str(tmp_path) in (engines.find(name, Places(tmp_path / "m.gguf", tmp_path), threads=1, rows=ROWS).missing() or "")


def test_the_worker_measures_a_small_model(tmp_path: Path) -> None:
    engine = engines.find("qwenbox:file", Places(ROOT / "tests" / "golden" / "qwen3", tmp_path), threads=2, rows=ROWS)
    try:
        assert "isa" in engine.about()
        for row in ROWS:
            measured = engine.measure(row)
            assert len(measured.tok_s) == row.samples and min(measured.tok_s) > 0
            assert measured.fraction is not None and measured.fraction > 0
    finally:
        engine.close()


def test_the_amx_repair_needs_exactly_one_place(tmp_path: Path) -> None:
    source = tmp_path / "mmq.cpp"
    source.write_text("tc.rows[7] = 16;\n_tile_loadconfig(&tc);\n", encoding="utf-8")
    engines.repair_amx(source)
    assert 'asm volatile("" : "+m"(tc)); _tile_loadconfig(&tc);' in source.read_text(encoding="utf-8")
    source.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit):
        engines.repair_amx(source)


def test_a_failing_program_is_reported_with_its_words() -> None:
    with pytest.raises(SystemExit, match="out of luck"):
        machine.run([sys.executable, "-c", "import sys; sys.exit('out of luck')"])


def test_the_ceiling_script_prints_a_row_for_every_question() -> None:
    command = [sys.executable, str(ROOT / "bench" / "ceiling.py"), "--buffer-gb", "0.02", "--threads", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows = json.loads(done.stdout)["rows"]
    assert {(row["what"], row["threads"]) for row in rows} == {(what, threads) for what in ("read", "int8", "bf16") for threads in (1, 2)}
    assert all(row["gb_s"] > 0 for row in rows if row["what"] == "read")


FEW = {"kind": "int4", "n": 64, "k": 256, "rows": 1, "bytes": 2e10, "operations": 8e10, "read_ceiling": 2.5e10, "l1_ceiling": 1e12}
MANY = {**FEW, "rows": 512, "bytes": 1e9, "operations": 9e11, "of_read": 0.04, "of_l1": 0.9, "of_registers": 0.6}
FEW |= {"of_read": 0.8, "of_l1": 0.08, "of_registers": 0.05}
COPY = {"kernel": "rms_norm", "variant": "v", "threads": 2, "rows": 512, "rate": 44.9, "ceiling": 55.0, "unit": "GB/s", "ceiling_method": "copy"}


def test_kernels_are_shown_beside_the_nearer_of_their_ceilings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"linear": [FEW, MANY], "operations": [COPY | {"fraction": 0.82}]}
    monkeypatch.setattr(kernels, "SHAPES", ("64x256",))
    monkeypatch.setattr(kernels, "built", Path)
    monkeypatch.setattr(kernels, "run", lambda command: "words\n" + "\n".join(json.dumps(line) for line in words[command[0]]))
    monkeypatch.setattr(kernels, "commit", lambda: "abc1234")
    monkeypatch.setattr(kernels, "machine_name", lambda: "box")
    for section in ("linear", "operations"):
        monkeypatch.setattr(sys, "argv", ["kernels.py", section, "--results", str(tmp_path)])
        kernels.main()
    shown = capsys.readouterr().out
    assert "| int4 64x256, 1 rows | 20.0 GB/s | 25.0 | memory read | **0.80** |  |" in shown
    assert "| int4 64x256, 512 rows | 900 GOP/s | 1000 | products fed from L1 | **0.90** | 0.60 |" in shown
    assert "| rms_norm threads 2 rows 512 | 44.9 GB/s | 55.0 | copy | **0.82** |  |" in shown
    assert set(json.loads((tmp_path / "kernels-box.json").read_text(encoding="utf-8"))) == {"linear", "operations"}
    assert (tmp_path / "kernels-box.png").stat().st_size > 1000
    monkeypatch.setattr(sys, "argv", ["kernels.py", "quadratic"])
    with pytest.raises(SystemExit, match="unknown sections quadratic"):
        kernels.main()


def test_the_sampler_is_timed_beside_finding_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "VOCABULARY", 1000)
    lines = kernels.sampler("generic", 2, repeat=1)
    assert len(lines) == 6
    assert all(line["rate"] > 0 and line["fraction"] > 0 for line in lines)


def test_a_model_without_huge_pages_is_compared_with_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = "import sys\nfrom pathlib import Path\nprint('{}', flush=True)\n"
    worker += "enabled = int(Path('/proc/self/status').read_text().split('THP_enabled:')[1].split()[0])\n"
    worker += "for line in sys.stdin: print('{\"tok_s\": [%d]}' % (1 + enabled), flush=True)"

    def find(name: str, places: Places, *, threads: int, rows: list[Row]) -> engines.Resident:
        engine = engines.Resident("any", Path(sys.executable), {}, needs=[], threads=threads, log=tmp_path / "log")
        engine.command = [sys.executable, "-c", worker]
        return engine

    monkeypatch.setattr(kernels, "find", find)
    lines = kernels.pages(tmp_path / "m.gguf", "generic", 1, repeat=2)
    assert [(line["rate"], line["ceiling"], line["fraction"]) for line in lines] == [(1, 2, 0.5)] * 2
