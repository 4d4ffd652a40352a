"""What a model is: read from `config.json` (as transformers 4 and 5 write it) or from GGUF metadata, every number checked.

A key that we do not know could change what the network computes, so it is an error, and so is an architecture or rope type
that we do not run. Meaning of the keys: the Qwen2, Qwen3 and MoE configuration classes of transformers; `docs/gguf.md` of ggml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbox.errors import ModelFormatError, UnsupportedModelError

ARCHITECTURES = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions. The fields after `theta` matter for YaRN only."""

    theta: float
    kind: str = "default"
    """"default" or "yarn"."""
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    """Multiplied into cos and sin."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts of the sparse layers."""

    count: int
    top_k: int
    intermediate_size: int
    normalise: bool
    shared_intermediate_size: int
    """0: no shared expert."""
    sparse_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: str
    vocab_size: int
    """Rows of the embedding and of the head; real token ids may be fewer."""
    hidden_size: int
    intermediate_size: int
    """Of the dense layers."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int
    """Positions the model was made for, YaRN included."""
    rope: Rope
    qk_norm: bool
    qkv_bias: bool
    tied_head: bool | None
    """Whether the head is the embedding; None (GGUF): it is where no head is stored."""
    experts: Experts | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "context_length"):
            _bounded(name, getattr(self, name), _LIMITS[name])
        if self.num_heads % self.num_kv_heads:
            raise ModelFormatError(f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly")
        if self.head_dim % 16:
            raise UnsupportedModelError(f"head_dim {self.head_dim} is not a multiple of 16, which pages of keys and values need")
        if not (math.isfinite(self.rms_norm_eps) and 0 < self.rms_norm_eps < 1):
            raise ModelFormatError(f"rms_norm_eps is {self.rms_norm_eps}; it must lie between 0 and 1")
        self._check_rope()
        if self.experts is not None:
            self._check_experts(self.experts)

    def _check_rope(self) -> None:
        rope = self.rope
        for name in ("theta", "factor", "attention_factor", "beta_fast", "beta_slow"):
            value = getattr(rope, name)
            if not (math.isfinite(value) and 0 < value < 1e12):
                raise ModelFormatError(f"rope {name} is {value}; it must be a positive number")
        if rope.theta <= 1:
            raise ModelFormatError(f"rope theta is {rope.theta}; it must be greater than 1")
        if rope.kind == "yarn":
            if rope.factor < 1:
                raise ModelFormatError(f"YaRN factor is {rope.factor}; it must be at least 1")
            _bounded("original_max_position_embeddings", rope.original_context, _LIMITS["context_length"])

    def _check_experts(self, experts: Experts) -> None:
        _bounded("number of experts", experts.count, 4096)
        _bounded("experts per token", experts.top_k, experts.count)
        _bounded("moe_intermediate_size", experts.intermediate_size, _LIMITS["intermediate_size"])
        if experts.shared_intermediate_size:
            _bounded("shared_expert_intermediate_size", experts.shared_intermediate_size, _LIMITS["intermediate_size"])


_LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_layers": 1024,
    "num_heads": 1024,
    "num_kv_heads": 1024,
    "head_dim": 1024,
    "context_length": 1 << 24,
}
"""Several times what any Qwen has; beyond it a number is a mistake or an attack."""


def _bounded(name: str, value: int, limit: int) -> None:
    if not 1 <= value <= limit:
        raise ModelFormatError(f"{name} is {value}; it must lie between 1 and {limit}")


# --- unknown models ------------------------------------------------------------------------------------------------

_NEAREST = {
    "qwen": ("the first Qwen", "Qwen3-8B"),
    "qwen3_next": ("Qwen3-Next, hybrid linear attention", "Qwen3-30B-A3B-Instruct-2507"),
    "qwen3_5": ("Qwen3.5, hybrid linear attention", "Qwen3-32B"),
    "qwen3_5_text": ("Qwen3.5, hybrid linear attention", "Qwen3-32B"),
    "qwen3_5_moe": ("Qwen3.5, hybrid linear attention", "Qwen3-30B-A3B-Instruct-2507"),
    "qwen3_5_moe_text": ("Qwen3.5, hybrid linear attention", "Qwen3-30B-A3B-Instruct-2507"),
    "qwen2_vl": ("Qwen2-VL, images", "Qwen3-8B (text only)"),
    "qwen2_5_vl": ("Qwen2.5-VL, images", "Qwen3-8B (text only)"),
    "qwen3_vl": ("Qwen3-VL, images", "Qwen3-8B (text only)"),
    "qwen3_vl_moe": ("Qwen3-VL, images", "Qwen3-30B-A3B-Instruct-2507 (text only)"),
    "qwen2_audio": ("Qwen2-Audio, sound", "Qwen3-8B (text only)"),
}
_GGUF_NAMES = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "qwen35": "qwen3_5",
    "qwen35moe": "qwen3_5_moe",
    "qwen2vl": "qwen2_vl",
    "qwen3vl": "qwen3_vl",
    "qwen3vlmoe": "qwen3_vl_moe",
}


def _unknown(name: str) -> UnsupportedModelError:
    supported = "Qwen2, Qwen2.5, QwQ, Qwen3 and their mixtures of experts (" + ", ".join(ARCHITECTURES) + ")"
    if name in _NEAREST:
        what, nearest = _NEAREST[name]
        return UnsupportedModelError(f"architecture {name!r} ({what}) is not supported; the nearest model that runs is {nearest}")
    return UnsupportedModelError(f"architecture {name!r} is not supported; qwenbox runs {supported}")


# --- config.json ---------------------------------------------------------------------------------------------------


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HARMLESS = _keys(
    "_name_or_path _commit_hash transformers_version torch_dtype dtype use_cache initializer_range attention_dropout bos_token_id eos_token_id "
    "pad_token_id bos_token eos_token pad_token output_router_logits router_aux_loss_coef max_window_layers sliding_window architectures "
    "unsloth_fixed unsloth_version chunk_size_feed_forward id2label label2id problem_type return_dict output_attentions output_hidden_states "
    "quantization_config"
)
"""Of training, bookkeeping or the tokenizer. `max_window_layers` and `sliding_window` mean nothing while `use_sliding_window` is false;
`quantization_config` is judged where the weights are read."""

_COMMON = _keys(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
    "max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings use_sliding_window layer_types"
)
_MOE = _keys(
    "num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers "
    "shared_expert_intermediate_size"
)
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {"attention_bias": True},
    "qwen3": {"attention_bias": False},
    "qwen2_moe": {"use_qk_norm": False},
    "qwen3_moe": {"attention_bias": False, "qkv_bias": False, "use_qk_norm": True},
}
"""Keys that may be said, but only as the architecture has them."""

_ROPE_KEYS = _keys("rope_theta rope_type type partial_rotary_factor")
_YARN_KEYS = _keys("factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim truncate")


class _Fields:
    """A table of keys and values that says which key is missing or of the wrong type."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelFormatError(f"{self.where}: {key} is {_shown(value)}; it must be a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            raise ModelFormatError(f"{self.where}: {key} is {_shown(value)}; it must be a number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise ModelFormatError(f"{self.where}: {key} is {_shown(value)}; it must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ModelFormatError(f"{self.where}: {key} is {_shown(value)}; it must be a string")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelFormatError(f"{self.where}: {key} is missing")
        return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """From the object in `config.json`. Raises ModelFormatError or UnsupportedModelError, naming the key."""
    fields = _Fields(config, "config.json")
    architecture = fields.text("model_type")
    if architecture not in ARCHITECTURES:
        raise _unknown(architecture)
    _check_hf_keys(config, architecture)
    layers = fields.integer("num_hidden_layers")
    _bounded("num_hidden_layers", layers, _LIMITS["num_layers"])
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    _bounded("num_attention_heads", heads, _LIMITS["num_heads"])
    if architecture in ("qwen2", "qwen2_moe") and not fields.has("head_dim") and hidden % heads:
        raise ModelFormatError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is missing")
    context = fields.integer("max_position_embeddings")
    _bounded("max_position_embeddings", context, _LIMITS["context_length"])
    _check_windows(fields, architecture, layers, context)
    rope = _hf_rope(config, context)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", hidden // heads if architecture in ("qwen2", "qwen2_moe") else None),
        rms_norm_eps=fields.number("rms_norm_eps"),
        context_length=_stretched(context, rope),
        rope=rope,
        qk_norm=architecture in ("qwen3", "qwen3_moe"),
        qkv_bias=architecture == "qwen2" or (architecture == "qwen2_moe" and fields.flag("qkv_bias", True)),
        tied_head=fields.flag("tie_word_embeddings", False),
        experts=_hf_experts(fields, layers) if architecture.endswith("_moe") else None,
    )


def _check_hf_keys(config: Mapping[str, Any], architecture: str) -> None:
    fixed = _FIXED[architecture]
    known = _HARMLESS | _COMMON | set(fixed) | (_MOE if architecture.endswith("_moe") else frozenset())
    if architecture == "qwen2_moe":
        known |= {"qkv_bias"}
    for key, value in config.items():
        if key not in known:
            raise UnsupportedModelError(f"config.json: key {key!r} is not known for {architecture}; it could change what the model computes")
        if key in fixed and value is not fixed[key]:
            raise UnsupportedModelError(f"config.json: {key} {_shown(value)} is not supported for {architecture}")
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise UnsupportedModelError(f"config.json: hidden_act {_shown(act)} is not supported; Qwen uses silu")
    for name in config.get("architectures") or []:
        if not isinstance(name, str) or not name.endswith("ForCausalLM"):
            raise UnsupportedModelError(f"config.json: architectures names {_shown(name)}, which is not a language model with a head (…ForCausalLM)")


def _check_windows(fields: _Fields, architecture: str, layers: int, context: int) -> None:
    """Sliding windows are refused where they would cut off something."""
    types = fields.values.get("layer_types")
    if types is not None and (not isinstance(types, list) or len(types) != layers or any(kind != "full_attention" for kind in types)):
        raise UnsupportedModelError(
            f"config.json: layer_types {_shown(types)} is not supported; every one of the {layers} layers must be full_attention"
        )
    if not fields.flag("use_sliding_window", False) or not fields.has("sliding_window"):
        return
    unreached = architecture in ("qwen2", "qwen3") and fields.integer("max_window_layers", 0) >= layers
    if fields.integer("sliding_window") < context and not unreached:
        raise UnsupportedModelError("config.json: use_sliding_window true is not supported; no released Qwen needs it")


def _hf_rope(config: Mapping[str, Any], context: int) -> Rope:
    """`rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (transformers 4)."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if new is not None and old is not None and dict(new) != dict(old):
        raise ModelFormatError("config.json has both rope_parameters and rope_scaling, and they differ")
    table = new if new is not None else old if old is not None else {}
    if not isinstance(table, Mapping):
        raise ModelFormatError(f"config.json: rope parameters are {_shown(table)}; they must be an object")
    fields = _Fields(table, "config.json, rope parameters")
    kind = fields.text("rope_type", table.get("type") or "default")
    if table.get("type") not in (None, kind):
        raise ModelFormatError(f"config.json: rope_type {kind!r} and type {_shown(table['type'])} differ")
    if kind not in ("default", "yarn"):
        raise UnsupportedModelError(f"config.json: rope type {kind!r} is not supported; default and yarn are")
    for key, value in table.items():
        if key not in _ROPE_KEYS and not (kind == "yarn" and key in _YARN_KEYS):
            raise UnsupportedModelError(f"config.json: rope parameter {key!r} is not known for rope type {kind!r}")
        if key == "partial_rotary_factor" and value not in (None, 1):
            raise UnsupportedModelError(f"config.json: partial_rotary_factor {_shown(value)} is not supported; Qwen2 and Qwen3 rotate whole heads")
    thetas = {_Fields(place, "config.json").number("rope_theta") for place in (config, table) if place.get("rope_theta") is not None}
    if len(thetas) != 1:
        raise ModelFormatError("config.json: rope_theta is missing" if not thetas else f"config.json names two rope_theta: {sorted(thetas)}")
    theta = thetas.pop()
    if kind == "default":
        return Rope(theta)
    original = fields.integer("original_max_position_embeddings", context)
    _bounded("original_max_position_embeddings", original, _LIMITS["context_length"])
    factor = fields.number("factor", context / original)
    return Rope(
        theta,
        kind,
        factor,
        original,
        _attention_factor(fields, factor),
        fields.number("beta_fast", 32.0),
        fields.number("beta_slow", 1.0),
        fields.flag("truncate", True),
    )


def _attention_factor(fields: _Fields, factor: float) -> float:
    """Given, else from `mscale` and `mscale_all_dim`, else 0.1 ln(factor) + 1 (transformers `_compute_yarn_parameters`)."""
    if fields.has("attention_factor"):
        return fields.number("attention_factor")
    both = fields.number("mscale", 0.0), fields.number("mscale_all_dim", 0.0)
    if all(both):
        return yarn_scale(factor, both[0]) / yarn_scale(factor, both[1])
    return yarn_scale(factor)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """How much longer queries and keys become under YaRN."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _stretched(context: int, rope: Rope) -> int:
    """Qwen's own YaRN settings leave max_position_embeddings at the unstretched length; factor * original is what they reach."""
    if rope.kind != "yarn" or not (math.isfinite(rope.factor) and rope.factor < _LIMITS["context_length"]):
        return context
    return max(context, int(rope.factor * rope.original_context))


def _hf_experts(fields: _Fields, layers: int) -> Experts:
    counts = {fields.integer(key) for key in ("num_experts", "num_local_experts") if fields.has(key)}
    if len(counts) != 1:
        raise ModelFormatError("config.json: num_experts is missing" if not counts else f"config.json names two numbers of experts: {sorted(counts)}")
    step = fields.integer("decoder_sparse_step", 1)
    _bounded("decoder_sparse_step", step, 1024)
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < layers for i in dense):
        raise ModelFormatError(f"config.json: mlp_only_layers is {_shown(dense)}; it must be a list of layers below {layers}")
    return Experts(
        count=counts.pop(),
        top_k=fields.integer("num_experts_per_tok"),
        intermediate_size=fields.integer("moe_intermediate_size"),
        normalise=fields.flag("norm_topk_prob"),
        shared_intermediate_size=fields.integer("shared_expert_intermediate_size", 0),
        sparse_layers=tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0),
    )


# --- GGUF metadata -------------------------------------------------------------------------------------------------

_GGUF_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_gating_func": (1,),
    "expert_weights_scale": (1,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "leading_dense_block_count": (0,),
    "pooling_type": (0, 1, 3),  # what becomes of hidden states is no business of the network
}
"""Keys that may be said, but only with the values that change nothing."""

_GGUF_KEYS = _keys(
    "vocab_size context_length embedding_length block_count feed_forward_length attention.head_count attention.head_count_kv attention.key_length "
    "attention.value_length attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor "
    "rope.scaling.original_context_length rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow"
)
_GGUF_MOE_KEYS = _keys(
    "expert_count expert_used_count expert_feed_forward_length expert_shared_feed_forward_length expert_shared_count expert_weights_norm"
)


def from_gguf(metadata: Mapping[str, Any]) -> ModelConfig:
    """From the metadata of a GGUF file. Raises ModelFormatError or UnsupportedModelError, naming the key."""
    name = _Fields(metadata, "GGUF metadata").text("general.architecture")
    architecture = _GGUF_NAMES.get(name, name)
    if architecture not in ARCHITECTURES:
        raise _unknown(architecture)
    prefix = name + "."
    own = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
    known = _GGUF_KEYS | (_GGUF_MOE_KEYS if architecture.endswith("_moe") else frozenset())
    for key, value in own.items():
        if key in _GGUF_NEUTRAL:
            if value not in _GGUF_NEUTRAL[key]:
                raise UnsupportedModelError(f"GGUF metadata: {prefix}{key} {_shown(value)} is not supported")
        elif key not in known:
            raise UnsupportedModelError(f"GGUF metadata: key {prefix + key!r} is not known; it could change what the model computes")
    fields = _Fields(own, f"GGUF metadata, {name}")
    heads, hidden = fields.integer("attention.head_count"), fields.integer("embedding_length")
    _bounded("attention.head_count", heads, _LIMITS["num_heads"])
    if not fields.has("attention.key_length") and hidden % heads:
        raise ModelFormatError(f"GGUF metadata: embedding_length {hidden} is not a multiple of head_count {heads}, and key_length is missing")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, head_dim) != head_dim:
            raise UnsupportedModelError(f"GGUF metadata: {prefix}{key} {own[key]} differs from the head dimension {head_dim}")
    layers = fields.integer("block_count")
    _bounded("block_count", layers, _LIMITS["num_layers"])
    context = fields.integer("context_length")
    _bounded("context_length", context, _LIMITS["context_length"])
    rope = _gguf_rope(fields, context)
    return ModelConfig(
        architecture=architecture,
        vocab_size=_gguf_vocab(fields, metadata),
        hidden_size=hidden,
        # A file of sparse layers only need not say what no layer has.
        intermediate_size=fields.integer("feed_forward_length", 1 if architecture.endswith("_moe") else None) or 1,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        context_length=_stretched(context, rope),
        rope=rope,
        qk_norm=architecture in ("qwen3", "qwen3_moe"),
        qkv_bias=architecture in ("qwen2", "qwen2_moe"),
        tied_head=None,
        experts=_gguf_experts(fields, architecture, layers) if architecture.endswith("_moe") else None,
    )


def _gguf_vocab(fields: _Fields, metadata: Mapping[str, Any]) -> int:
    if fields.has("vocab_size"):
        return fields.integer("vocab_size")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise ModelFormatError("GGUF metadata: neither vocab_size nor tokenizer.ggml.tokens is there")
    return len(tokens)


def _gguf_rope(fields: _Fields, context: int) -> Rope:
    theta = fields.number("rope.freq_base")
    kind = fields.text("rope.scaling.type", "none")
    if kind == "none" or (kind == "linear" and fields.number("rope.scaling.factor", 1.0) == 1):
        return Rope(theta)
    if kind != "yarn":
        raise UnsupportedModelError(f"GGUF metadata: rope.scaling.type {kind!r} is not supported; none and yarn are")
    original = fields.integer("rope.scaling.original_context_length", context)
    factor = fields.number("rope.scaling.factor")
    fast, slow = fields.number("rope.scaling.yarn_beta_fast", 32.0), fields.number("rope.scaling.yarn_beta_slow", 1.0)
    return Rope(theta, kind, factor, original, yarn_scale(factor) if factor > 0 else 1.0, fast, slow)


def _gguf_experts(fields: _Fields, architecture: str, layers: int) -> Experts:
    return Experts(
        count=fields.integer("expert_count"),
        top_k=fields.integer("expert_used_count"),
        intermediate_size=fields.integer("expert_feed_forward_length"),
        # Neither architecture has to say it: released Qwen3 mixtures normalise, Qwen2 ones do not.
        normalise=fields.flag("expert_weights_norm", architecture == "qwen3_moe"),
        shared_intermediate_size=fields.integer("expert_shared_feed_forward_length", 0),
        sparse_layers=tuple(range(layers)),
    )
