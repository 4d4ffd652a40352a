"""Synthetic models load here in every form, and a real one written as AWQ keeps its rounded numbers."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import synth
from qwenbox.errors import ModelFormatError
from qwenbox.kernels import quants
from qwenbox.llm import open_chat
from qwenbox.model.config import Experts, ModelConfig, Rope, from_gguf
from qwenbox.model.load import load_model
from qwenbox.types import AwqTensor, Batch, FloatArray, Span
from qwenbox.weights import read_directory, read_gguf
from qwenbox.weights.awq import unpack
from tests.chat.small import small_metadata

METADATA = small_metadata()
DENSE = ModelConfig(
    architecture="qwen3",
    vocab_size=len(METADATA["tokenizer.ggml.tokens"]),
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    rms_norm_eps=1e-6,
    context_length=128,
    rope=Rope(1e6),
    qk_norm=True,
    qkv_bias=False,
    tied_head=False,
)
CONFIGS = {
    "dense": DENSE,
    "tied": replace(DENSE, tied_head=True),
    "biased": replace(DENSE, architecture="qwen2", qk_norm=False, qkv_bias=True),
    "mixture": replace(DENSE, architecture="qwen3_moe", experts=Experts(4, 2, 256, True, 0, (0, 1))),
}
INFINITY = b"\x00\x7c"
FORMS = (*synth.GGUF_FORMS, *synth.DIRECTORY_FORMS)
SMALL: dict[str, Any] = {"context_length": 64, "num_pages": 4, "threads": 1, "max_batch_tokens": 64}


def made(folder: Path, form: str, name: str = "dense", seed: int = 0) -> Path:
    path = folder / (f"{name}-{form}-{seed}" + (".gguf" if form in synth.GGUF_FORMS else ""))
    synth.write(path, form, CONFIGS[name], synth.RandomWeights(seed), METADATA)
    return path


def logits(path: Path, **options: Any) -> FloatArray:
    ids = np.arange(20, dtype=np.int32)
    with closing(load_model(path, **(SMALL | options))) as model:
        return model.run(Batch(ids, [Span(0, 20, 0, np.zeros(1, np.int32))], np.arange(20, dtype=np.int32)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_form_of_each_kind_of_network_runs_and_is_the_oracles(name: str, form: str, tmp_path: Path) -> None:
    path = made(tmp_path, form, name)
    native = logits(path)
    assert 0.1 < native.std() < 10
    np.testing.assert_array_equal(native, logits(path, backend="reference"))
    with closing(open_chat(path)) as chat:
        assert chat.tokenizer.encode("hello<|im_end|>") == [259, 268]
        assert 268 in chat.eos_ids


@pytest.mark.parametrize("form", ["q4_k_m", "awq"])
def test_the_same_seed_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    def digest(folder: Path, seed: int) -> str:
        path = made(folder, form, "dense", seed)
        return hashlib.sha256((path / "model.safetensors" if path.is_dir() else path).read_bytes()).hexdigest()

    (tmp_path / "again").mkdir()
    first = digest(tmp_path, 0)
    # the name of a GGUF file stands in it
    assert digest(tmp_path / "again", 0) == first
    assert digest(tmp_path, 1) != first


def test_the_head_of_an_awq_checkpoint_is_int8_unless_it_shall_stay_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = made(tmp_path, "awq")
    sizes = {}
    for weights in (None, "stored", "int4"):
        with closing(load_model(path, weights=weights, **SMALL)) as model:
            sizes[weights] = model.weights_bytes
    elements = DENSE.vocab_size * DENSE.hidden_size
    assert sizes["stored"] - sizes[None] == elements * 2 - elements // 128 * 130
    assert sizes[None] - sizes["int4"] == elements * 2 - elements // 128 * 130, "its embedding too"
    assert [record.message for record in caplog.records if "head" in record.message] == [
        "dense-awq-0: the head is rounded to int8; --head stored keeps it as it is"
    ]


def test_matrices_written_as_awq_are_those_that_rounding_on_load_makes(tmp_path: Path) -> None:
    file = read_gguf(made(tmp_path, "q4_k_m"))
    config = replace(from_gguf(file.metadata), tied_head=False)
    synth.write(tmp_path / "awq", "awq", config, synth.RealWeights(config, file.tensors), file.metadata)
    stored = read_directory(tmp_path / "awq").tensors
    matrices = [slot for slot in synth.Layout(config, stacked=False).slots if slot.linear]
    assert len(matrices) == 14
    for slot in matrices:
        tensor = stored[slot.stored_name(0)]
        assert isinstance(tensor, AwqTensor)
        np.testing.assert_array_equal(unpack(tensor).data, quants.round_tensor(file.tensors[slot.stored_name(1)], "int4").data)


def test_a_gguf_file_with_a_scale_that_is_not_finite_is_refused_by_the_name_of_its_tensor(tmp_path: Path) -> None:
    path = made(tmp_path, "q4_k_m")
    stored = bytearray(path.read_bytes())
    at = stored.index(read_gguf(path).tensors["blk.1.attn_q.weight"].data[-144:].tobytes())
    stored[at : at + 2] = INFINITY
    path.write_bytes(stored)
    with pytest.raises(ModelFormatError, match=r"^blk\.1\.attn_q\.weight \(q4_k\) .*NaN or infinite"):
        load_model(path, **SMALL)


def test_an_awq_checkpoint_with_a_scale_that_is_not_finite_is_refused_by_the_name_of_its_tensor(tmp_path: Path) -> None:
    path = made(tmp_path, "awq") / "model.safetensors"
    stored = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(stored[:8], "little")
    at = start + json.loads(stored[8:start])["model.layers.1.self_attn.q_proj.scales"]["data_offsets"][1] - 2
    stored[at : at + 2] = INFINITY
    path.write_bytes(stored)
    with pytest.raises(ModelFormatError, match=r"^model\.layers\.1\.self_attn\.q_proj\.weight \(int4\) .*NaN or infinite"):
        load_model(path.parent, **SMALL)


def test_the_layers_with_more_bits_are_those_of_llama_cpp() -> None:
    config = replace(DENSE, num_layers=36)
    down = [synth.gguf_kind("q4_k_m", synth.Slot("down", i, 0, (256, 512)), config) for i in range(36)]
    # `llama-quantize --dry-run` on a model of 36 layers
    assert [i for i, kind in enumerate(down) if kind == "q6_k"] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34, 35]


@pytest.mark.weights
def test_the_mixture_has_as_many_tensors_of_each_kind_as_a_real_file(real_model: Callable[[str], Path]) -> None:
    file = read_gguf(real_model("qwen2.5-coder-1.5b"))
    config = replace(from_gguf(file.metadata), tied_head=False)
    ours = Counter((slot.name, synth.gguf_kind("q4_k_m", slot, config)) for slot in synth.Layout(config, stacked=True).slots)
    names = {slot.stored_name(1): slot.name for slot in synth.Layout(config, stacked=True).slots}
    assert ours == Counter((names[tensor.name], tensor.kind) for tensor in file.tensors.values())


def test_a_command_that_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").touch()
    for words, message in (
        (["--as", "awq", "--out", str(tmp_path / "x")], "give a shape or --real MODEL"),
        (["8b", "--as", "awq", "--out", str(tmp_path)], "is there already"),
        (["7b", "--as", "awq", "--out", str(tmp_path / "x")], "invalid choice"),
        (["8b", "--as", "awq", "--layers", "0", "--out", str(tmp_path / "x")], "at least one layer"),
    ):
        monkeypatch.setattr(sys, "argv", ["synth.py", *words])
        with pytest.raises(SystemExit):
            synth.main()
        assert message in capsys.readouterr().err
