from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.model.config import Rope, from_gguf, from_hf
from qwenbox.model.rope import inverse_frequencies, rope_tables

QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""As transformers 4 wrote it for the released model."""

QWEN3_30B: dict[str, Any] = QWEN3_8B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}

QWEN2_57B: dict[str, Any] = {key: value for key, value in QWEN3_30B.items() if key not in ("head_dim", "attention_bias")} | {
    "model_type": "qwen2_moe",
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "norm_topk_prob": False,
    "shared_expert_intermediate_size": 20480,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

GGUF_05B: dict[str, Any] = {
    "general.architecture": "qwen2",
    "general.name": "Qwen2.5 Coder 0.5B Instruct",
    "qwen2.block_count": 24,
    "qwen2.context_length": 32768,
    "qwen2.embedding_length": 896,
    "qwen2.feed_forward_length": 4864,
    "qwen2.attention.head_count": 14,
    "qwen2.attention.head_count_kv": 2,
    "qwen2.rope.freq_base": 1000000.0,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
    "general.file_type": 15,
    "tokenizer.ggml.tokens": [""] * 151936,
}


def gguf(**changes: Any) -> dict[str, Any]:
    return GGUF_05B | {"qwen2." + key.replace("__", "."): value for key, value in changes.items()}


def moe_gguf(architecture: str, **changes: Any) -> dict[str, Any]:
    own = {key.replace("qwen2.", architecture + "."): value for key, value in GGUF_05B.items()} | {"general.architecture": architecture}
    extra = {"expert_count": 60, "expert_used_count": 4, "expert_feed_forward_length": 1408} | changes
    return own | {f"{architecture}.{key}": value for key, value in extra.items()}


def test_the_released_8b_is_read() -> None:
    config = from_hf(QWEN3_8B)
    assert (config.architecture, config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == ("qwen3", 36, 32, 8, 128)
    assert config.rope == Rope(1e6)
    assert config.context_length == 40960
    assert (config.qk_norm, config.qkv_bias, config.tied_head, config.experts) == (True, False, False, None)


def test_transformers_5_writes_the_same_model_with_rope_parameters_and_dtype() -> None:
    new = {key: value for key, value in QWEN3_8B.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")} | {
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "dtype": "bfloat16",
        "layer_types": ["full_attention"] * 36,
        "transformers_version": "5.23.0",
        "pad_token_id": None,
    }
    assert from_hf(new) == from_hf(QWEN3_8B)


def test_experts_are_read_normalised_or_not_with_or_without_a_shared_one() -> None:
    experts = from_hf(QWEN3_30B).experts
    assert experts is not None
    assert (experts.count, experts.top_k, experts.intermediate_size, experts.normalise, experts.shared_intermediate_size) == (128, 8, 768, True, 0)
    assert experts.sparse_layers == tuple(range(48))
    experts = from_hf(QWEN2_57B | {"mlp_only_layers": [3], "decoder_sparse_step": 2}).experts
    assert experts is not None
    assert (experts.normalise, experts.shared_intermediate_size) == (False, 20480)
    assert experts.sparse_layers == tuple(i for i in range(48) if i % 2 and i != 3)
    assert from_hf(QWEN3_30B | {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}).experts is not None


def test_qwen2_has_biases_and_derives_its_head_dimension() -> None:
    config = from_hf({key: value for key, value in QWEN3_8B.items() if key not in ("head_dim", "attention_bias")} | {"model_type": "qwen2"})
    assert (config.head_dim, config.qkv_bias, config.qk_norm) == (128, True, False)


def test_gguf_metadata_give_the_same_kind_of_model() -> None:
    config = from_gguf(GGUF_05B)
    assert (config.architecture, config.hidden_size, config.head_dim, config.vocab_size) == ("qwen2", 896, 64, 151936)
    assert (config.tied_head, config.qkv_bias, config.rope) == (None, True, Rope(1e6))
    assert from_gguf(gguf(vocab_size=1000)).vocab_size == 1000
    shared = from_gguf(moe_gguf("qwen2moe", expert_shared_feed_forward_length=5632)).experts
    assert shared is not None
    assert (shared.normalise, shared.shared_intermediate_size) == (False, 5632)
    qwen3 = from_gguf(moe_gguf("qwen3moe"))
    assert qwen3.experts is not None
    assert (qwen3.experts.normalise, qwen3.qk_norm) == (True, True)


# --- YaRN ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        QWEN3_8B | {"rope_scaling": YARN},
        QWEN3_8B | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {key: value for key, value in QWEN3_8B.items() if key != "rope_theta"} | {"rope_parameters": YARN | {"rope_theta": 1000000}},
        QWEN3_8B | {"max_position_embeddings": 131072, "rope_scaling": YARN},
    ],
)
def test_yarn_is_read_in_every_spelling_and_stretches_the_context(config: dict[str, Any]) -> None:
    read = from_hf(config)
    assert read.rope == Rope(1e6, "yarn", 4.0, 32768, 1.138629436111989)
    assert read.context_length == 131072


def test_yarn_gives_the_published_frequencies() -> None:
    frequencies = inverse_frequencies(from_hf(QWEN3_8B | {"rope_scaling": YARN}).rope, 128)
    plain = inverse_frequencies(Rope(1e6), 128)
    known = {23: 6.978305848598663e-03, 24: 5.375321490790102e-03, 32: 6.029411764705882e-04, 39: 6.490394320837029e-05, 63: 3.102344401879299e-07}
    for index, value in known.items():
        np.testing.assert_allclose(frequencies[index], value, rtol=2.0**-23)
    np.testing.assert_array_equal(frequencies[:24], plain[:24])
    np.testing.assert_allclose(frequencies[40:], plain[40:] / 4, rtol=2.0**-23)


def test_the_attention_factor_is_given_or_from_both_mscales_or_from_the_factor() -> None:
    def factor(**extra: Any) -> float:
        return from_hf(QWEN3_8B | {"rope_scaling": YARN | extra}).rope.attention_factor

    assert factor(factor=2.0) == 1.0693147180559945
    assert factor(attention_factor=1.5) == 1.5
    assert factor(mscale=1.0, mscale_all_dim=1.0) == 1.0
    assert factor(mscale=2.0) == 1.138629436111989
    assert factor(factor=1.0) == 1.0


def test_gguf_yarn_is_the_same_yarn() -> None:
    changes = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32768}
    config = from_gguf(GGUF_05B | {"qwen2." + key: value for key, value in changes.items()})
    assert config.rope == Rope(1e6, "yarn", 4.0, 32768, 1.138629436111989)
    assert config.context_length == 131072


def test_tables_hold_cosines_and_sines_of_the_float32_frequencies_times_the_attention_factor() -> None:
    config = from_hf(QWEN3_8B | {"rope_scaling": YARN})
    cos, sin = rope_tables(config, 5000)
    assert (cos.shape, cos.dtype) == ((5000, 64), np.float32)
    np.testing.assert_allclose(cos[0], 1.138629436111989, rtol=2.0**-24)
    angle = 4999 * float(inverse_frequencies(config.rope, 128)[3])
    np.testing.assert_allclose([cos[4999, 3], sin[4999, 3]], np.array([math.cos(angle), math.sin(angle)]) * 1.138629436111989, rtol=1e-6)


# --- what is refused -----------------------------------------------------------------------------------------------

UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "qwen"}, "Qwen3-8B"),
    ({"model_type": "qwen3_next"}, "linear attention.*Qwen3-30B-A3B"),
    ({"model_type": "qwen3_5"}, "linear attention.*Qwen3-32B"),
    ({"model_type": "qwen3_5_moe"}, "Qwen3-30B-A3B"),
    ({"model_type": "qwen2_5_vl"}, "images"),
    ({"model_type": "llama"}, "'llama'.*qwen3_moe"),
    ({"model_type": "mistral"}, "'mistral'"),
    ({"architectures": ["Qwen3ForSequenceClassification"]}, "ForSequenceClassification"),
    ({"hidden_act": "gelu"}, "gelu"),
    ({"attention_bias": True}, "attention_bias"),
    ({"auto_map": {"AutoModel": "x.py"}}, "auto_map"),
    ({"_attn_implementation_internal": "evil"}, "_attn_implementation_internal"),
    ({"logit_scale": 2.0}, "logit_scale"),
    ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}, "sliding"),
    ({"layer_types": ["full_attention"] * 35 + ["sliding_attention"]}, "layer_types"),
    ({"layer_types": ["full_attention"] * 35}, "layer_types"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3'"),
    ({"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
    ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor"),
    ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"head_dim": 120}, "head_dim 120"),
]

MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": -32}, "num_attention_heads"),
    ({"num_attention_heads": 32.0}, "num_attention_heads"),
    ({"num_attention_heads": True}, "num_attention_heads"),
    ({"num_attention_heads": "32"}, "num_attention_heads"),
    ({"num_key_value_heads": 0}, "num_kv_heads is 0"),
    ({"num_key_value_heads": 5}, "5 key-value heads"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"hidden_size": 2**40}, "hidden_size"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"head_dim": 0}, "head_dim"),
    ({"intermediate_size": -1}, "intermediate_size"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"vocab_size": 10**9}, "vocab_size"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"max_position_embeddings": 2**60}, "max_position_embeddings"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    ({"rope_theta": math.nan}, "theta"),
    ({"rope_theta": math.inf}, "rope_theta"),
    ({"rope_theta": -1.0}, "theta"),
    ({"rope_theta": 1.0}, "theta"),
    ({"rope_theta": None}, "rope_theta is missing"),
    ({"rope_parameters": {"rope_theta": 5000000.0, "rope_type": "default"}}, "two rope_theta"),
    ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}, "differ"),
    ({"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 4.0}}, "differ"),
    ({"rope_scaling": [1]}, "object"),
    ({"rope_scaling": YARN | {"factor": 0.5}}, "factor"),
    ({"rope_scaling": YARN | {"factor": math.nan}}, "factor"),
    ({"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
    ({"rope_scaling": YARN | {"beta_fast": -1}}, "beta_fast"),
    ({"rope_scaling": YARN | {"attention_factor": math.inf}}, "attention_factor"),
    ({"rope_scaling": YARN | {"truncate": "yes"}}, "truncate"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ({"use_sliding_window": 1}, "use_sliding_window"),
    ({"model_type": None}, "model_type is missing"),
    ({"model_type": 3}, "model_type"),
]

MALFORMED_EXPERTS: list[tuple[dict[str, Any], str]] = [
    ({"num_experts": 0}, "number of experts"),
    ({"num_experts": 10**6}, "number of experts"),
    ({"num_local_experts": 64}, "two numbers of experts"),
    ({"num_experts": None}, "num_experts is missing"),
    ({"num_experts_per_tok": 0}, "experts per token"),
    ({"num_experts_per_tok": 129}, "experts per token"),
    ({"moe_intermediate_size": 0}, "moe_intermediate_size"),
    ({"norm_topk_prob": None}, "norm_topk_prob"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ({"mlp_only_layers": [48]}, "mlp_only_layers"),
    ({"mlp_only_layers": "all"}, "mlp_only_layers"),
    ({"shared_expert_intermediate_size": -5}, "shared_expert_intermediate_size"),
]


@pytest.mark.parametrize(("change", "named"), UNSUPPORTED, ids=str)
def test_what_we_do_not_run_is_named_with_the_way_out(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        from_hf(QWEN3_8B | change)


@pytest.mark.parametrize(("change", "named"), MALFORMED, ids=str)
def test_a_number_that_cannot_be_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFormatError, match=named):
        from_hf(QWEN3_8B | change)


@pytest.mark.parametrize(("change", "named"), MALFORMED_EXPERTS, ids=str)
def test_experts_that_cannot_be_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFormatError, match=named):
        from_hf(QWEN3_30B | change)


def test_a_window_that_cuts_nothing_is_accepted() -> None:
    from_hf(QWEN3_8B | {"use_sliding_window": True, "sliding_window": 40960})
    from_hf(QWEN3_8B | {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 36})
    from_hf(QWEN3_8B | {"sliding_window": 4096, "max_window_layers": 20})


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        (GGUF_05B | {"general.architecture": "llama"}, "'llama'"),
        (GGUF_05B | {"general.architecture": "qwen3next"}, "Qwen3-30B-A3B"),
        (GGUF_05B | {"general.architecture": "qwen"}, "Qwen3-8B"),
        (gguf(ssm_state_size=16), "qwen2.ssm_state_size"),
        (gguf(attention__sliding_window=4096), "sliding_window"),
        (gguf(rope__dimension_count=32), "rope.dimension_count"),
        (gguf(attention__value_length=128), "value_length"),
        (gguf(rope__scaling__type="linear", rope__scaling__factor=2.0), "'linear'"),
        (gguf(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__attn_factor=1.3), "attn_factor"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_gguf_metadata_that_we_do_not_run_are_named(metadata: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        from_gguf(metadata)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({}, "general.architecture is missing"),
        (gguf(attention__head_count=0), "head_count is 0"),
        (gguf(attention__head_count_kv=3), "3 key-value heads"),
        (gguf(block_count=None), "block_count is missing"),
        (gguf(block_count=10**6), "block_count"),
        (gguf(rope__freq_base=math.nan), "theta"),
        (gguf(embedding_length="896"), "embedding_length"),
        (gguf(attention__head_count=13), "multiple of head_count"),
        ({key: value for key, value in GGUF_05B.items() if key != "tokenizer.ggml.tokens"}, "tokenizer.ggml.tokens"),
        (moe_gguf("qwen3moe", expert_used_count=61), "experts per token"),
        (gguf(rope__scaling__type="yarn"), "factor is missing"),
        (gguf(rope__scaling__type="yarn", rope__scaling__factor=-4.0), "factor"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_gguf_numbers_that_cannot_be_are_named(metadata: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFormatError, match=named):
        from_gguf(metadata)
