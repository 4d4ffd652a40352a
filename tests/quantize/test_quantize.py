"""A model quantised through the real command: it loads, it is nearer to the original than plain rounding, and a kill costs nothing but time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from qwenbox.chat.pooling import vectors_of_directory
from qwenbox.cli import app
from qwenbox.errors import ModelFormatError, NumericalError, UsageError
from qwenbox.evaluate.divergence import divergence
from qwenbox.evaluate.logits import log_mass
from qwenbox.kernels import quants
from qwenbox.llm import open_chat
from qwenbox.model.config import from_gguf, from_hf
from qwenbox.model.load import Backend, Model, load_model
from qwenbox.quantize.calibration import Calibration, load
from qwenbox.quantize.form import description
from qwenbox.quantize.quantize import Options, Progress, quantize
from qwenbox.quantize.source import gguf_documents, read_source
from qwenbox.types import Batch, PackedTensor, Span
from qwenbox.weights import read_directory
from qwenbox.weights.gguf import read_gguf
from qwenbox.weights.packed import unpack
from tests.cli.command import Command
from tests.thinker import MODEL
from tests.tiny import tiny_gguf

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DIALOGUE = "What is 12+7+30?<|im_end|>12+7=19 19+30=49 The answer is 49. Is 17 even or odd? 17 is odd. 计算3+4。3+4=7 "


@pytest.fixture
def qwenbox(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    (tmp_path / "calibration.txt").write_text(DIALOGUE * 80, encoding="utf-8")
    yield command
    command.end()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def distance(folder: Path) -> float:
    """KL to the original on text that is not the calibration."""
    options: dict[str, Any] = {"context_length": 256, "num_pages": 8, "threads": 1, "max_batch_tokens": 256}
    ids = open_chat(MODEL).tokenizer.encode("How much is 41+8+26? 41+8=49 49+26=75 The answer is 75. Who is taller, Tom or Ann? " * 6)
    with closing(load_model(MODEL, **options)) as original, closing(load_model(folder, weights="stored", **options)) as model:
        return divergence(model, original, ids, window=256, stride=128).kl_mean


def test_each_method_writes_a_checkpoint_that_loads_and_calibrated_ones_are_nearer_to_the_original(qwenbox: Command) -> None:
    distances = {}
    for method in ("rtn", "awq", "gptq", "awq+gptq"):
        done = qwenbox("quantize", MODEL, method, "--method", method, "--calibration", "calibration.txt", "--tokens", 2048, timeout=900)
        assert done.returncode == 0, done.stderr
        distances[method] = distance(qwenbox.folder / method)
    assert distances["awq"] < 0.8 * distances["rtn"]
    assert distances["gptq"] < 0.8 * distances["rtn"]
    assert distances["awq+gptq"] < 0.8 * distances["rtn"]
    written = files(qwenbox.folder / "awq")
    assert json.loads(written["config.json"])["quantization_config"]["quant_method"] == "awq"
    card, facts = written["README.md"].decode(), json.loads(written["quantize.json"])
    assert facts["calibration"]["sha256"] in card
    assert facts["calibration"]["tokens"] == 2048
    assert sum(len(data) for name, data in written.items() if name.endswith(".safetensors")) == facts["bytes"]
    assert len(facts["errors"]) == 4 * 7
    assert 0 < facts["quality"]["kl_mean"] < facts["quality"]["kl_mean_high"]
    assert f"| {facts['quality']['kl_mean']:.4f} [" in card
    verified = qwenbox("verify", "awq", timeout=600)
    assert verified.returncode == 0, verified.stdout
    assert "the fingerprint that came with it" in verified.stdout
    assert written["tokenizer.json"] == (MODEL / "tokenizer.json").read_bytes()


def test_the_result_is_looked_at_in_one_load_and_by_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def counted(path: Path, **options: Any) -> Model:
        loads.append((path, options["weights"]))
        return load_model(path, **options)

    monkeypatch.setattr("qwenbox.model.load.load_model", counted)
    monkeypatch.setenv("QWENBOX_WEIGHTS", "int8")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["quantize", str(MODEL), str(out), "--method", "rtn"])
    assert done.exit_code == 0, done.output
    assert loads == [(out, None), (MODEL, "stored")]
    assert json.loads((out / "fingerprint.json").read_bytes())["weights"] is None
    assert json.loads((out / "quantize.json").read_bytes())["quality"]["kl_mean"] == pytest.approx(0.13, abs=0.05)


def test_a_damaged_directory_is_not_taken_for_well_and_one_whose_state_was_half_removed_is_finished(qwenbox: Command) -> None:
    words = ("quantize", MODEL, "out", "--method", "rtn")
    assert qwenbox(*words, "--no-check", timeout=600).returncode == 0
    out = qwenbox.folder / "out"
    (out / ".quantize").mkdir()
    (out / ".quantize" / "lock").touch()  # a kill between the last two of all files that are removed
    shard = out / "model-00003-of-00005.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = qwenbox("verify", "out", "--quick")
    assert found.returncode == 1 and f"not those of quantize.json: {shard.name}" in found.stdout
    refused = qwenbox(*words, timeout=600)
    assert refused.returncode == 1 and f"{shard.name} is not what was written there" in refused.stderr
    assert not (out / "fingerprint.json").exists()
    shard.write_bytes(whole)
    done = qwenbox(*words, timeout=600)
    assert done.returncode == 0 and "was finished before" in done.stderr, done.stderr
    assert "BAD" not in qwenbox("verify", "out", timeout=600).stdout


def test_eight_bits_are_written_as_gptq_and_are_the_numbers_that_rounding_on_load_makes(qwenbox: Command) -> None:
    done = qwenbox("quantize", MODEL, "rtn", "--bits", 8, timeout=900)
    assert done.returncode == 0, done.stderr
    written = files(qwenbox.folder / "rtn")
    described = json.loads(written["config.json"])["quantization_config"]
    assert (described["quant_method"], described["bits"], described["sym"], described["desc_act"]) == ("gptq", 8, True, False)
    assert "8 bits, a scale each 128 inputs" in written["README.md"].decode()
    assert sum(len(data) for name, data in written.items() if name.endswith(".safetensors")) == json.loads(written["quantize.json"])["bytes"]

    original, made = read_directory(MODEL).tensors, read_directory(qwenbox.folder / "rtn").tensors
    matrices = {name: unpack(tensor) for name, tensor in made.items() if isinstance(tensor, PackedTensor)}
    assert len(matrices) == 4 * 7
    for name, tensor in matrices.items():
        rounded = quants.round_tensor(original[name], "int8")
        assert (tensor.kind, tensor.shape, tensor.data.tobytes()) == ("int8", rounded.shape, rounded.data.tobytes())
    assert distance(qwenbox.folder / "rtn") < 0.005  # 0.13 with 4 bits


@pytest.mark.parametrize(
    ("name", "bits", "method"), [("qwen3_moe", 4, "awq+gptq"), ("qwen2_moe", 4, "awq"), ("qwen3_moe", 8, "gptq"), ("qwen2_moe", 8, "rtn")]
)
def test_a_mixture_of_experts_is_quantised_with_its_router_left_alone(name: str, bits: int, method: str, tmp_path: Path) -> None:
    """Random weights; a part of it has 160 inputs, which is no multiple of what the runtime packs together."""
    source, out = GOLDEN / name, tmp_path / "out"
    ids = np.random.default_rng(5).integers(0, 256, (4, 64)).astype(np.int32)
    quantize(read_source(source), out, Options(method, bits, 32), None if method == "rtn" else Calibration(ids, "random", "random"))
    original, made = read_directory(source).tensors, read_directory(out).tensors
    assert original.keys() == made.keys()
    assert {key for key, tensor in made.items() if isinstance(tensor, PackedTensor)} == {key for key in made if "_proj.weight" in key}
    exact, rounded = logits_of(source, ids[0]), logits_of(out, ids[0])
    assert np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < (0.5 if bits == 4 else 0.05)
    np.testing.assert_array_equal(rounded, logits_of(out, ids[0], "reference"))


def logits_of(path: Path, ids: np.ndarray, backend: Backend = "native") -> np.ndarray:
    options: dict[str, Any] = {"context_length": 64, "num_pages": 2, "max_batch_tokens": 64, "threads": 1}
    with closing(load_model(path, weights="stored", backend=backend, **options)) as model:
        return model.run(Batch(ids, [Span(0, len(ids), 0, np.arange(2, dtype=np.int32))], np.arange(len(ids), dtype=np.int32)))


def test_a_killed_run_goes_on_and_writes_the_same_bytes(qwenbox: Command) -> None:
    words = ("--method", "awq+gptq", "--calibration", "calibration.txt", "--tokens", 2048)
    assert qwenbox("quantize", MODEL, "whole", *words, timeout=900).returncode == 0
    running = qwenbox.start("quantize", MODEL, "killed", *words)
    third = qwenbox.folder / "killed" / "model-00003-of-00005.safetensors"
    deadline = time.monotonic() + 600
    while not third.exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        os.sched_yield()
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (qwenbox.folder / "killed" / "config.json").exists()

    other = qwenbox("quantize", MODEL, "killed", *words[:-1], 4096)
    assert other.returncode == 2
    assert "begun with other settings" in other.stderr

    began = third.stat().st_mtime_ns
    again = qwenbox("quantize", MODEL, "killed", *words, timeout=900)
    assert again.returncode == 0, again.stderr
    assert (qwenbox.folder / "killed" / "model-00002-of-00005.safetensors").stat().st_mtime_ns < began
    assert files(qwenbox.folder / "killed") == files(qwenbox.folder / "whole")


def test_what_cannot_be_done_is_said_and_touches_nothing(qwenbox: Command) -> None:
    folder = qwenbox.folder
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("Too short.")
    (folder / "wrong.jsonl").write_text('{"kind": "text", "text": "fine"}\n{"kind": "song"}\n')
    (folder / "there").mkdir()
    (folder / "there" / "thesis.txt").write_text("mine")
    assert qwenbox("quantize", MODEL, "awq", "--method", "rtn", timeout=600).returncode == 0
    cases = [
        ((MODEL, "out", "--calibration", "empty.txt"), "0 tokens"),
        ((MODEL, "out", "--calibration", "short.txt"), "at least 2048"),
        ((MODEL, "out", "--calibration", "absent.txt"), "cannot read absent.txt"),
        ((MODEL, "out", "--calibration", "wrong.jsonl"), "line 2"),
        ((MODEL, "there", "--method", "rtn"), "is there already"),
        ((MODEL, "/proc/out", "--method", "rtn"), "cannot be written"),
        (("awq", "out", "--method", "rtn"), "quantised already (awq)"),
        ((MODEL, "out", "--method", "rtn", "--group", "48"), "--group 48"),
        ((MODEL, "out", "--method", "rtn", "--bits", "3"), "--bits 3"),
        ((MODEL, "out", "--method", "awq", "--bits", "8"), "is for 4 bits"),
    ]
    for words, expected in cases:
        done = qwenbox("quantize", *words, timeout=600)
        assert done.returncode not in (0, 1), (words, done.stderr)
        assert expected in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()
    assert files(folder / "there") == {"thesis.txt": b"mine"}


def test_who_names_a_file_as_the_target_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"mine\.gguf is there already"):
        quantize(read_source(MODEL), path, Options("rtn"), None)
    assert path.read_bytes() == b"mine"


def test_a_finished_shard_that_was_damaged_before_the_others_is_not_kept(tmp_path: Path) -> None:
    source, options, out = read_source(MODEL), Options("rtn"), tmp_path / "out"

    def stop(state: Progress) -> None:
        if state.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, options, None, stop)
    shard = out / "model-00002-of-00005.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(UsageError, match="is missing or damaged"):
        quantize(source, out, options, None)


def test_who_was_stopped_while_the_result_was_looked_at_looks_again(qwenbox: Command) -> None:
    words = ("quantize", MODEL, "out", "--method", "rtn")
    assert qwenbox(*words, "--no-check", timeout=600).returncode == 0
    unseen = files(qwenbox.folder / "out")
    (qwenbox.folder / "out" / "fingerprint.json.partial").mkdir()  # where the fingerprint is written
    failed = qwenbox(*words, timeout=600)
    assert failed.returncode == 1 and "could not be looked at" in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
    (qwenbox.folder / "out" / "fingerprint.json.partial").rmdir()
    done = qwenbox(*words, timeout=600)
    assert done.returncode == 0 and "was finished before" in done.stderr, done.stderr
    seen = files(qwenbox.folder / "out")
    assert {name for name in seen if seen[name] != unseen.get(name)} == {"README.md", "quantize.json", "fingerprint.json"}
    again = qwenbox(*words, timeout=600)
    assert again.returncode == 2 and "is there already" in again.stderr


@pytest.mark.parametrize("names", ["without a head", "and without a prefix"])
def test_a_model_of_vectors_says_that_it_is_one_and_loads(names: str, tmp_path: Path) -> None:
    """Qwen3-Embedding's directories have no head, no prefix, and say that they are not tied."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(GOLDEN / "qwen3", source)
    tensors = {name: quants.dequantize(tensor) for name, tensor in read_directory(source).tensors.items()}
    del tensors["lm_head.weight"]
    if names == "and without a prefix":
        tensors = {name.removeprefix("model."): array for name, array in tensors.items()}
    else:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    save_file(tensors, source / "model.safetensors")
    (source / "modules.json").write_text('[{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]')
    (source / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    quantize(read_source(source), out, Options("rtn", group=32), None)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    for name in ("modules.json", "1_Pooling/config.json", "chat_template.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert np.isfinite(logits_of(out, np.arange(8, dtype=np.int32))).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [{"role": "user", "content": "Hi", "tool_calls": ["a"]}]}', "list of objects"),
        ('{"messages": [{"role": "user", "content": 5}]}', "its parts are texts"),
        ('{"messages": [{"content": "Hi"}]}', "needs a role"),
        ('{"messages": [{"role": "user", "content": "Hi", "colour": "red"}]}', "unknown field 'colour'"),
        ('{"messages": ["Hi"]}', "needs a role"),
        ('{"kind": "text", "text": 5}', "it is neither"),
        ('{"kind": "text", "text": null}', "it is neither"),
        ("[]", "it is neither"),
    ],
)
def test_a_line_of_the_calibration_that_is_no_text_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with closing(open_chat(MODEL)) as chat, pytest.raises(UsageError, match=f"line 2: .*{message}"):
        load(str(path), chat, 2048)


def test_what_others_write_into_json_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    said = {"messages": [{"role": "user", "content": "1+2\u2028?"}, {"role": "assistant", "content": "3", "tool_calls": None}]}
    path.write_text("\ufeff" + (json.dumps(said, ensure_ascii=False) + "\r\n") * 400, encoding="utf-8", newline="")
    with closing(open_chat(MODEL)) as chat:
        assert load(str(path), chat, 2048).ids.size == 2048


def test_a_model_whose_logits_are_no_numbers_is_not_near_to_anything() -> None:
    with pytest.raises(NumericalError, match="no numbers"):
        log_mass(np.array([1.0, np.nan], np.float32))


def test_a_layer_without_experts_is_no_router_to_other_programs() -> None:
    document = json.loads((GOLDEN / "qwen3_moe" / "config.json").read_text())
    layers = document["num_hidden_layers"]
    given = ({**document, "decoder_sparse_step": 1, "mlp_only_layers": dense} for dense in ([], [0]))
    skipped = [description(4, 128, from_hf(config))["modules_to_not_convert"] for config in given]
    assert skipped[0] == ["mlp.gate", "mlp.shared_expert_gate"]
    assert not any(name in "model.layers.0.mlp.gate_up_proj" for name in skipped[1])
    assert all(f"layers.{layer}.mlp.gate" in skipped[1] for layer in range(1, layers))


def test_a_disk_that_fills_up_leaves_a_directory_that_another_run_finishes(qwenbox: Command) -> None:
    words = ("--method", "rtn", "--no-check")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))  # the first shard has more; the command inherits it
    try:
        full = qwenbox("quantize", MODEL, "out", *words, timeout=600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.returncode == 2
    assert "no room left" in full.stderr and "run the same command again" in full.stderr
    assert not (qwenbox.folder / "out").exists()  # nothing was finished
    for name in ("out", "whole"):
        assert qwenbox("quantize", MODEL, name, *words, timeout=600).returncode == 0
    assert files(qwenbox.folder / "out") == files(qwenbox.folder / "whole")


def test_too_little_room_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(UsageError, match=r"only 0\.00 GB are free"):
        quantize(read_source(MODEL), tmp_path / "out", Options("rtn"), None)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_a_gguf_file_says_of_its_answers_is_kept_and_what_it_leaves_out_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf())
    file = read_gguf(path)
    config, end = from_gguf(file.metadata), file.metadata["tokenizer.ggml.tokens"].index("<|im_end|>")
    without = {name: value for name, value in file.metadata.items() if name != "tokenizer.ggml.eos_token_id"}
    told = gguf_documents(config, without | {"general.sampling.temp": 0.5, "general.name": "Qwen3-4B-Thinking-2507"}, tied=True)
    assert json.loads(str(told["generation_config.json"])) == {"eos_token_id": end, "temperature": 0.5}
    assert json.loads(str(told["config.json"]))["_name_or_path"] == "Qwen3-4B-Thinking-2507"
    with pytest.raises(ModelFormatError, match=r"has no tokenizer\.ggml\.merges"):
        gguf_documents(config, {name: value for name, value in file.metadata.items() if name != "tokenizer.ggml.merges"}, tied=True)
    with pytest.raises(ModelFormatError, match="eos_token_id is 99999"):
        gguf_documents(config, without | {"tokenizer.ggml.eos_token_id": 99999}, tied=True)


@pytest.mark.parametrize(("number", "pooling"), [(1, "mean"), (3, "last")])
def test_what_a_gguf_file_says_of_vectors_is_said_as_a_directory_says_it(tmp_path: Path, number: int, pooling: str) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf())
    metadata = read_gguf(path).metadata
    said = metadata | {f"{metadata['general.architecture']}.pooling_type": number}
    told = gguf_documents(from_gguf(metadata), said, tied=True)
    with closing(open_chat(path)) as chat:
        vectors = vectors_of_directory(tmp_path, chat.tokenizer, lambda file: json.loads(str(told[str(file.relative_to(tmp_path))])))
    assert vectors.stated and vectors.pooling == pooling
    assert "modules.json" not in gguf_documents(from_gguf(metadata), metadata, tied=True)


def test_a_gguf_file_becomes_a_checkpoint_with_its_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf())
    (tmp_path / "text.txt").write_text("hello there, " * 900)
    chat = open_chat(path)
    calibration = load(str(tmp_path / "text.txt"), chat, 2048)
    quantize(read_source(path), tmp_path / "out", Options("awq", group=32), calibration)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["group_size"] == 32
    with closing(open_chat(tmp_path / "out")) as made:
        text = "hello<|im_end|>\n"
        assert made.tokenizer.encode(text) == chat.tokenizer.encode(text)
        assert made.eos_ids == chat.eos_ids
    chat.close()
    assert np.isfinite(calibration.ids).all()
