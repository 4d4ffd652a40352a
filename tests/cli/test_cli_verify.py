"""`qwenbox verify`: what is wrong with a model is found and named, and nothing else is."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qwenbox.chat.chat import ChatFormat, load_chat
from qwenbox.evaluate.fingerprint import FILE, NUM_PAGES, Finding, Fingerprint, check, check_files, digests, read, take, write
from qwenbox.hub.manifest import FileDigest, Manifest, sha256_of, write_manifest
from qwenbox.kernels.native import isa_missing
from qwenbox.model.load import Model, load_model
from tests.cli.command import Command
from tests.faults import FAULTS, GGUF_FAULTS, OWN_TEMPLATE, as_awq, flipped_byte
from tests.thinker import MODEL
from tests.tiny import tiny_gguf


@contextmanager
def loaded(path: Path, weights: str | None = None, **how: object) -> Iterator[tuple[Model, ChatFormat]]:
    chat = load_chat(directory=path)
    with closing(load_model(path, weights=weights, num_pages=NUM_PAGES, **how)) as model, closing(chat):  # type: ignore[arg-type]
        model.vocab_limit = min(model.vocab_size, chat.tokenizer.vocab_limit)
        yield model, chat


def fingerprint(path: Path, weights: str | None = None) -> Fingerprint:
    with loaded(path, weights) as (model, chat):
        return take(model, chat, weights, digests(path, lambda part: None))


def findings(known: Fingerprint, path: Path, **how: object) -> list[Finding]:
    with loaded(path, known.weights, **how) as (model, chat):
        return list(check(known, model, chat))


@pytest.fixture(scope="module")
def awq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fingerprint]:
    """The thinker in AutoAWQ's form, and its fingerprint."""
    path = as_awq(MODEL, tmp_path_factory.mktemp("verify") / "thinker-awq")
    return path, fingerprint(path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, awq: tuple[Path, Fingerprint], tmp_path: Path) -> None:
    """By the digests of the files all of them, and what changes the model's answers also by what it says."""
    well, known = awq
    bad = shutil.copytree(well, tmp_path / "bad")
    FAULTS[fault](bad)
    assert check_files(known.files, digests(bad, lambda part: None), "the fingerprint").well is False
    wrong = {one.name.split()[0] for one in findings(known, bad) if one.well is False}
    assert wrong == {"stale template": {"template"}, "flipped byte": set()}.get(fault, {"logits"})


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_a_fault_planted_in_a_gguf_file_is_found_by_the_command(fault: str, qwenbox: Command, tmp_path: Path) -> None:
    """By its digest each, and by what it says also where the digest is that of the file with the fault."""
    model = tmp_path / "tiny.gguf"
    model.write_bytes(tiny_gguf(template=OWN_TEMPLATE.read_text()))
    assert qwenbox("verify", model, "--store").returncode == 0
    assert qwenbox("verify", model).returncode == 0
    (kept,) = (qwenbox.folder / "state").glob("qwenbox/fingerprints/*.json")
    GGUF_FAULTS[fault](model)
    found = {one["name"]: one["well"] for one in json.loads(qwenbox("verify", model, "--json").stdout)["findings"]}
    assert found["files"] is False
    wrong = {name.split()[0] for name, well in found.items() if well is False} - {"files"}
    assert wrong == {"foreign template": {"template"}, "flipped byte": set()}.get(fault, {"logits"})
    stored = json.loads(kept.read_text())
    stored["files"] = {model.name: {"size": model.stat().st_size, "sha256": sha256_of(model)}}
    kept.write_text(json.dumps(stored))
    assert qwenbox("verify", model).returncode == (0 if fault == "flipped byte" else 1)


def healthy(count: int, awq: tuple[Path, Fingerprint]) -> None:
    """So many runs in different variants of the kernels, threads, sizes of a step and forms of the weights, and no alarm."""
    path, known = awq
    forms = [(path, known), (MODEL, fingerprint(MODEL)), (MODEL, fingerprint(MODEL, "int8"))]
    variants = [isa for isa in ("generic", "avx2", "avxvnni", "avx512vnni", "amx") if isa_missing(isa) is None]
    ways = list(itertools.product(forms, variants, (1, 2), (512, 100, 64, 17, 8)))
    for (source, its), isa, threads, step in ways[:: max(1, len(ways) // count)]:
        wrong = [one for one in findings(its, source, isa=isa, threads=threads, max_batch_tokens=step) if one.well is not True]
        assert not wrong, f"{source.name} {isa} {threads} {step}"


def test_no_healthy_run_raises_an_alarm(awq: tuple[Path, Fingerprint]) -> None:
    healthy(6, awq)


@pytest.mark.long
def test_none_of_a_hundred_healthy_runs_raises_an_alarm(awq: tuple[Path, Fingerprint]) -> None:
    healthy(120, awq)


def test_the_command_stores_a_fingerprint_and_finds_what_changed_since(qwenbox: Command, tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "mine")
    done = qwenbox("verify", model, "--json")
    told = json.loads(done.stdout)
    assert told["fingerprint"] is None
    looked = {one["name"]: one["well"] for one in told["findings"]}
    assert looked | {"files": None, "template": True, "perplexity": False, "fingerprint": None} == looked
    assert done.returncode == 1, "the thinker knows sums and cannot read prose"
    assert "fingerprint" in (stored := qwenbox("verify", model, "--store")).stdout and stored.returncode == 0, stored.stderr
    again = qwenbox("verify", model)
    assert again.returncode == 0 and "BAD" not in again.stdout and "0.0000 spreads" in again.stdout
    (model / "notes.json").write_text("{}")
    assert "notes.json" not in (noted := qwenbox("verify", model, "--quick")).stdout and noted.returncode == 0
    (model / "chat_template.jinja").write_text("{{ messages }}")
    added = qwenbox("verify", model, "--quick")
    assert added.returncode == 1 and "chat_template.jinja was not there" in added.stdout
    for name in ("notes.json", "chat_template.jinja"):
        (model / name).unlink()
    flipped_byte(model)
    quick = qwenbox("verify", model, "--quick", "--json")
    assert quick.returncode == 1
    (one,) = json.loads(quick.stdout)["findings"]
    assert (one["name"], one["well"]) == ("files", False) and "model.safetensors" in one["text"]
    assert "not well: files" in qwenbox("verify", model, "--quick").stderr


def test_a_fingerprint_is_compared_with_the_kinds_of_head_and_embedding_that_it_was_taken_with(qwenbox: Command, tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "mine")
    assert qwenbox("verify", model, "--store", env={"QWENBOX_HEAD": "int4", "QWENBOX_EMBEDDING": "int8"}).returncode == 0
    done = qwenbox("verify", model)
    assert done.returncode == 0 and done.stdout.count(" 0.0000 spreads") == 6, done.stdout


def test_a_model_that_does_not_load_is_told_with_the_reason(qwenbox: Command, tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "mine")
    (model / "model.safetensors").write_bytes((MODEL / "model.safetensors").read_bytes()[:-100])
    done = qwenbox("verify", model)
    assert done.returncode == 1 and "BAD  loading" in done.stdout and "model.safetensors" in done.stdout


def test_a_pulled_model_is_compared_with_its_download(qwenbox: Command, tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "mine")
    files = {name: FileDigest((model / name).stat().st_size, sha256_of(model / name)) for name in ("config.json", "model.safetensors")}
    write_manifest(model, Manifest("mine", "a hub", "main", files))
    assert "2 by sha256 as in the download from a hub" in qwenbox("verify", model, "--quick").stdout
    flipped_byte(model)
    done = qwenbox("verify", model, "--quick")
    assert done.returncode == 1 and "not those of the download from a hub: model.safetensors" in done.stdout
    assert qwenbox("verify", model, "--store").returncode == 1
    assert "fingerprint" not in qwenbox("verify", model, "--quick").stdout, "nobody keeps that of a damaged model"


def test_a_model_is_known_by_its_place_however_that_is_spelled_and_whatever_its_files_are_called(qwenbox: Command, tmp_path: Path) -> None:
    model = tmp_path / "模型 (1).gguf"
    model.write_bytes(tiny_gguf(template=OWN_TEMPLATE.read_text()))
    assert qwenbox("verify", model, "--store").returncode == 0
    (tmp_path / "link.gguf").symlink_to(model)
    for spelled in (model, tmp_path / "link.gguf"):
        done = qwenbox("verify", spelled, "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["fingerprint"], done.stdout


def test_a_file_of_weights_that_the_index_names_is_missed_where_there_are_no_digests(qwenbox: Command, tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "mine")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    placed = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    done = qwenbox("verify", model, "--quick")
    assert done.returncode == 1 and "model-00002-of-00002.safetensors is missing" in done.stdout


def test_a_fingerprint_that_cannot_be_kept_is_told(qwenbox: Command, tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "mine")
    (tmp_path / "mine-state").mkdir()
    (tmp_path / "mine-state" / "fingerprints").write_text("a file")
    done = qwenbox("verify", model, "--store", env={"QWENBOX_STATE_DIR": str(tmp_path / "mine-state")})
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_a_fingerprint_in_the_directory_comes_first(qwenbox: Command, awq: tuple[Path, Fingerprint], tmp_path: Path) -> None:
    model = shutil.copytree(awq[0], tmp_path / "made")
    write(awq[1], model / FILE)
    assert read(model / FILE) == awq[1]
    done = qwenbox("verify", model, "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["fingerprint"] == str(model / FILE)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:200],
        lambda raw: raw.replace('"format": 1', '"format": 9'),
        lambda raw: "[1]",
        lambda raw: raw.replace('"places": [', '"places": [99999, '),
        lambda raw: raw.replace('"ids": [', '"ids": [-1099511627776, '),
        lambda raw: json.dumps(json.loads(raw) | {"made": 5}),
        lambda raw: json.dumps(
            json.loads(raw) | {"probes": [{**json.loads(raw)["probes"][0], **{key: [] for key in ("ids", "places", "top", "logits", "spread")}}]}
        ),
    ],
)
def test_a_damaged_fingerprint_is_refused_by_name(
    damage: Callable[[str], str], qwenbox: Command, awq: tuple[Path, Fingerprint], tmp_path: Path
) -> None:
    model = shutil.copytree(MODEL, tmp_path / "made")
    write(awq[1], model / FILE)
    (model / FILE).write_text(damage((model / FILE).read_text()))
    done = qwenbox("verify", model, "--quick")
    assert done.returncode == 65 and f"{FILE} is no fingerprint" in done.stderr and "Traceback" not in done.stderr
