"""The worker as it is in production: its own launch line, the real loader, a tiny random checkpoint on disk."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenbox.engine.client import EngineClient, EngineOptions, InProcessEngine, WorkerEngine
from qwenbox.types import GenerationPlan, SamplingParams
from tests.engine.fakes import Answer, Receiver, eventually

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 128, 2, 4, 2, 32, 160


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of 160 words."""
    path = tmp_path_factory.mktemp("checkpoint")
    rng = np.random.default_rng(8)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        parts: dict[str, tuple[int, ...]] = {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "mlp.gate_proj": (MLP, HIDDEN),
            "mlp.up_proj": (MLP, HIDDEN),
            "mlp.down_proj": (HIDDEN, MLP),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()
    }
    save_file(tensors, path / "model.safetensors")
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def options(checkpoint: Path, **others: int) -> EngineOptions:
    return EngineOptions(model=str(checkpoint), threads=1, num_pages=32, vocab_limit=150, **others)


def ask(engine: EngineClient, count: int, max_tokens: int = 40) -> list[Answer]:
    receivers = [Receiver() for _ in range(count)]
    for index, receiver in enumerate(receivers):
        prompt = tuple(np.random.default_rng(index).integers(0, 150, 1 + 9 * index).tolist())
        engine.submit(GenerationPlan(f"r{index}", prompt, max_tokens, SamplingParams(seed=index, logprobs=2)), receiver)
    return [receiver.wait() for receiver in receivers]


def test_worker_and_thread_give_the_same_bits_alone_and_together_also_after_a_crash(checkpoint: Path) -> None:
    local = InProcessEngine(options(checkpoint))
    eventually(lambda: local.state().name != "loading")
    expected = ask(local, 16)
    assert all(answer.reason == "length" for answer in expected)
    assert all(id < 150 for answer in expected for id in answer.ids)
    info = local.info()
    local.close()

    engine = WorkerEngine(options(checkpoint, max_batch_tokens=48, max_sequences=8))
    try:
        eventually(lambda: engine.state().name == "ready")
        assert all(answer.same_as(other) for answer, other in zip(ask(engine, 16), expected, strict=True))
        os.kill(engine.pid, signal.SIGKILL)
        eventually(lambda: engine.stats().restarts == 1)
        assert all(answer.same_as(other) for answer, other in zip(ask(engine, 16), expected, strict=True))
        assert engine.info().isa == info.isa
        assert engine.info().costs == info.costs
    finally:
        engine.close()


def test_what_is_wrong_with_a_checkpoint_reaches_the_front(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text().replace("qwen3", "llama"))
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    for engine in (WorkerEngine(options(tmp_path)), InProcessEngine(options(tmp_path))):
        eventually(lambda engine=engine: engine.state().name == "failed")
        assert "llama" in engine.state().error.message
        assert type(engine.state().error).__name__ == "UnsupportedModelError"
        engine.close()
