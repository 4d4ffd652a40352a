"""The network of Qwen2, Qwen3 and their mixtures of experts, stated once over `kernels.program.Ops`.

Pre-norm transformer: x += attention(norm(x)); x += feed_forward(norm(x)); logits = head(norm(x)). Qwen2 adds a bias to queries, keys and
values; Qwen3 norms each query and key head instead. A sparse layer replaces the feed-forward by its experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from qwenbox.errors import ModelFormatError, UnsupportedModelError
from qwenbox.kernels.program import MoeWeights, Ops, RopeTable, SharedExpert, Value, Weight
from qwenbox.model.config import Experts, ModelConfig
from qwenbox.model.rope import rope_tables
from qwenbox.types import FloatArray, Tensor

Role = Literal["embedding", "linear", "router", "head", "vector"]
Prepare = Callable[[Tensor, Role], Tensor]
"""Asked for every tensor when a network is built; rounding on load and random weights come in here."""

# name here: (name in a transformers checkpoint, name in a GGUF file); {i} is the layer, {e} the expert
_NAMES: Mapping[str, tuple[str, str]] = {
    "embedding": ("model.embed_tokens.weight", "token_embd.weight"),
    "final_norm": ("model.norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
    "attention_norm": ("model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
    "query": ("model.layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight"),
    "key": ("model.layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight"),
    "value": ("model.layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight"),
    "query_bias": ("model.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias"),
    "key_bias": ("model.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias"),
    "value_bias": ("model.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias"),
    "query_norm": ("model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight"),
    "key_norm": ("model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight"),
    "output": ("model.layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight"),
    "feed_forward_norm": ("model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    "gate": ("model.layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
    "up": ("model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
    "down": ("model.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
    "router": ("model.layers.{i}.mlp.gate.weight", "blk.{i}.ffn_gate_inp.weight"),
    "expert_gate": ("model.layers.{i}.mlp.experts.{e}.gate_proj.weight", "blk.{i}.ffn_gate_exps.weight"),
    "expert_up": ("model.layers.{i}.mlp.experts.{e}.up_proj.weight", "blk.{i}.ffn_up_exps.weight"),
    "expert_down": ("model.layers.{i}.mlp.experts.{e}.down_proj.weight", "blk.{i}.ffn_down_exps.weight"),
    "shared_gate": ("model.layers.{i}.mlp.shared_expert.gate_proj.weight", "blk.{i}.ffn_gate_shexp.weight"),
    "shared_up": ("model.layers.{i}.mlp.shared_expert.up_proj.weight", "blk.{i}.ffn_up_shexp.weight"),
    "shared_down": ("model.layers.{i}.mlp.shared_expert.down_proj.weight", "blk.{i}.ffn_down_shexp.weight"),
    "shared_router": ("model.layers.{i}.mlp.shared_expert_gate.weight", "blk.{i}.ffn_gate_inp_shexp.weight"),
}


_PREFIX = "model."
"""Of all names in a transformers checkpoint but the head's."""


@dataclass(frozen=True, slots=True)
class FeedForward:
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Mixture:
    router: Tensor
    experts: Sequence[FeedForward]
    shared: FeedForward | None
    shared_router: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    attention_norm: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Tensor
    feed_forward_norm: Tensor
    feed_forward: FeedForward | Mixture


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the network, and the share of it that a token reads (an embedding: one row; experts: the chosen ones)."""

    tensor: Tensor
    role: Role
    share: float = 1.0


class TensorSource(Protocol):
    """Where a network takes its tensors from, by the names of `_NAMES`, layer `i` and expert `e`; each is taken once."""

    def has(self, name: str) -> bool: ...

    def __call__(self, name: str, *shape: int, i: int = 0, e: int = 0) -> Tensor: ...

    def experts(self, name: str, count: int, rows: int, columns: int, *, i: int) -> list[Tensor]: ...

    def check_nothing_is_left(self) -> None: ...


class Qwen:
    """A network with its weights. Raises ModelFormatError when tensors and configuration do not fit, naming the tensor."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor] | TensorSource, *, positions: int | None = None, prepare: Prepare | None = None
    ) -> None:
        self.config = config
        self.positions = config.context_length if positions is None else positions
        self.prepare = prepare if prepare is not None else _as_it_is
        take = StoredTensors(tensors) if isinstance(tensors, Mapping) else tensors
        hidden = config.hidden_size
        self.embedding = take("embedding", config.vocab_size, hidden)
        self.layers = [_layer(config, take, index) for index in range(config.num_layers)]
        self.final_norm = take("final_norm", hidden)
        headless = isinstance(take, StoredTensors) and take.headless
        tied = headless or (config.tied_head if config.tied_head is not None else not take.has("head"))
        if tied and take.has("head"):
            self._check_tied(take("head", config.vocab_size, hidden))
        self.head = None if tied else take("head", config.vocab_size, hidden)
        """None: the embedding is the head."""
        self.sketch = True
        """Whether a large int8 head is kept a second time, so that greedy answers read less of it."""
        take.check_nothing_is_left()

    @cached_property
    def rope(self) -> tuple[FloatArray, FloatArray]:
        return rope_tables(self.config, self.positions)

    def build(self, ops: Ops) -> None:
        """States the network; runs it, or records it, as `ops` does."""
        eps = self.config.rms_norm_eps
        embedding = ops.weight(self.prepare(self.embedding, "embedding" if self.head is not None else "head"))
        head = embedding if self.head is None else ops.weight(self.prepare(self.head, "head"))
        rotation = ops.rope_table(*self.rope)
        x = ops.embed(embedding)
        for index, layer in enumerate(self.layers):
            x = ops.add(x, self._attention(ops, layer, index, rotation, ops.rms_norm(x, ops.vector(layer.attention_norm), eps)))
            x = ops.add(x, self._feed_forward(ops, layer.feed_forward, ops.rms_norm(x, ops.vector(layer.feed_forward_norm), eps)))
        x = ops.rms_norm(ops.logits_rows(x), ops.vector(self.final_norm), eps)
        ops.output(ops.linear(x, head), sketch=self.sketch)

    def _attention(self, ops: Ops, layer: Layer, index: int, rotation: RopeTable, x: Value) -> Value:
        config = self.config

        def project(weight: Tensor, bias: Tensor | None) -> Value:
            return ops.linear(x, self._weight(ops, weight), None if bias is None else ops.vector(bias))

        q, k, v = project(layer.query, layer.query_bias), project(layer.key, layer.key_bias), project(layer.value, layer.value_bias)
        if layer.query_norm is not None and layer.key_norm is not None:
            q = ops.rms_norm(q, ops.vector(layer.query_norm), config.rms_norm_eps)
            k = ops.rms_norm(k, ops.vector(layer.key_norm), config.rms_norm_eps)
        q, k = ops.rope(q, rotation, config.head_dim), ops.rope(k, rotation, config.head_dim)
        mixed = ops.attention(q, k, v, layer=index, heads=config.num_heads, kv_heads=config.num_kv_heads, head_dim=config.head_dim)
        return ops.linear(mixed, self._weight(ops, layer.output))

    def _feed_forward(self, ops: Ops, part: FeedForward | Mixture, x: Value) -> Value:
        if isinstance(part, FeedForward):
            hidden = ops.silu_mul(ops.linear(x, self._weight(ops, part.gate)), ops.linear(x, self._weight(ops, part.up)))
            return ops.linear(hidden, self._weight(ops, part.down))
        experts = self.config.experts
        assert experts is not None
        shared = None
        if part.shared is not None and part.shared_router is not None:
            shared = SharedExpert(
                self._weight(ops, part.shared.gate),
                self._weight(ops, part.shared.up),
                self._weight(ops, part.shared.down),
                self._weight(ops, part.shared_router, "router"),
            )
        weights = MoeWeights(
            router=self._weight(ops, part.router, "router"),
            gate=self._experts(ops, [expert.gate for expert in part.experts]),
            up=self._experts(ops, [expert.up for expert in part.experts]),
            down=self._experts(ops, [expert.down for expert in part.experts]),
            top_k=experts.top_k,
            normalise=experts.normalise,
            shared=shared,
        )
        return ops.moe(x, weights)

    def _experts(self, ops: Ops, tensors: Sequence[Tensor]) -> Weight:
        prepared = [self.prepare(tensor, "linear") for tensor in tensors]
        other = next((tensor for tensor in prepared if tensor.kind != prepared[0].kind), None)
        if other is not None:
            raise UnsupportedModelError(
                f"{prepared[0].name} is quantised as {prepared[0].kind}, {other.name} as {other.kind}: experts of a layer must be alike; "
                "--weights int8 makes them so"
            )
        return ops.experts(prepared)

    def _weight(self, ops: Ops, tensor: Tensor, role: Role = "linear") -> Weight:
        return ops.weight(self.prepare(tensor, role))

    def parts(self) -> Iterator[Part]:
        """Every tensor once, as stored, before `prepare`."""
        rows = self.config.vocab_size
        if self.head is None:
            yield Part(self.embedding, "head")
        else:
            yield Part(self.embedding, "embedding", 1 / rows)
            yield Part(self.head, "head")
        yield Part(self.final_norm, "vector")
        for layer in self.layers:
            for vector in (layer.attention_norm, layer.feed_forward_norm, layer.query_norm, layer.key_norm):
                if vector is not None:
                    yield Part(vector, "vector")
            for bias in (layer.query_bias, layer.key_bias, layer.value_bias):
                if bias is not None:
                    yield Part(bias, "vector")
            for matrix in (layer.query, layer.key, layer.value, layer.output):
                yield Part(matrix, "linear")
            yield from self._feed_forward_parts(layer.feed_forward)

    def _feed_forward_parts(self, part: FeedForward | Mixture) -> Iterator[Part]:
        if isinstance(part, FeedForward):
            yield from (Part(matrix, "linear") for matrix in (part.gate, part.up, part.down))
            return
        experts = self.config.experts
        assert experts is not None
        yield Part(part.router, "router")
        for expert in part.experts:
            yield from (Part(matrix, "linear", experts.top_k / experts.count) for matrix in (expert.gate, expert.up, expert.down))
        if part.shared is not None and part.shared_router is not None:
            yield from self._feed_forward_parts(part.shared)
            yield Part(part.shared_router, "router")

    def _check_tied(self, head: Tensor) -> None:
        """Some checkpoints of tied models store the head a second time."""
        if head.kind != self.embedding.kind or not np.array_equal(head.data, self.embedding.data):
            raise ModelFormatError(f"the configuration says that the head is the embedding, but {head.name} differs from {self.embedding.name}")


def _as_it_is(tensor: Tensor, role: Role) -> Tensor:
    return tensor


def _layer(config: ModelConfig, take: TensorSource, i: int) -> Layer:
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_heads * head_dim, config.num_kv_heads * head_dim
    bias, norm = config.qkv_bias, config.qk_norm
    return Layer(
        attention_norm=take("attention_norm", hidden, i=i),
        query=take("query", queries, hidden, i=i),
        key=take("key", keys, hidden, i=i),
        value=take("value", keys, hidden, i=i),
        query_bias=take("query_bias", queries, i=i) if bias else None,
        key_bias=take("key_bias", keys, i=i) if bias else None,
        value_bias=take("value_bias", keys, i=i) if bias else None,
        query_norm=take("query_norm", head_dim, i=i) if norm else None,
        key_norm=take("key_norm", head_dim, i=i) if norm else None,
        output=take("output", hidden, queries, i=i),
        feed_forward_norm=take("feed_forward_norm", hidden, i=i),
        feed_forward=(
            _mixture(config, config.experts, take, i)
            if config.experts is not None and i in config.experts.sparse_layers
            else FeedForward(*(take(name, *_gated_shape(name, hidden, config.intermediate_size), i=i) for name in ("gate", "up", "down")))
        ),
    )


def _gated_shape(name: str, hidden: int, intermediate: int) -> tuple[int, int]:
    return (hidden, intermediate) if name.endswith("down") else (intermediate, hidden)


def _mixture(config: ModelConfig, experts: Experts, take: TensorSource, i: int) -> Mixture:
    hidden = config.hidden_size
    stacks = [
        take.experts(name, experts.count, *_gated_shape(name, hidden, experts.intermediate_size), i=i)
        for name in ("expert_gate", "expert_up", "expert_down")
    ]
    shared, shared_router = None, None
    if experts.shared_intermediate_size:
        names = ("shared_gate", "shared_up", "shared_down")
        shared = FeedForward(*(take(name, *_gated_shape(name, hidden, experts.shared_intermediate_size), i=i) for name in names))
        shared_router = take("shared_router", 1, hidden, i=i)
    return Mixture(
        router=take("router", experts.count, hidden, i=i),
        experts=[FeedForward(*matrices) for matrices in zip(*stacks, strict=True)],
        shared=shared,
        shared_router=shared_router,
    )


def checkpoint_name(name: str, i: int = 0, e: int = 0) -> str:
    """What a transformers checkpoint calls a tensor of `_NAMES` in layer `i`, of expert `e`."""
    return _NAMES[name][0].format(i=i, e=e)


class StoredTensors:
    """The tensors of a checkpoint, each to be taken once, under the names of its format."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        bare = _NAMES["embedding"][0].removeprefix(_PREFIX) in tensors
        self.headless = bare
        """Stored without a head, as networks are that make vectors; the names lack their prefix then."""
        self._left = {(_PREFIX if bare else "") + name: tensor for name, tensor in tensors.items()}
        self._column = 1 if _NAMES["embedding"][1] in tensors else 0

    def has(self, name: str) -> bool:
        return _NAMES[name][self._column] in self._left

    def __call__(self, name: str, *shape: int, i: int = 0, e: int = 0) -> Tensor:
        full = _NAMES[name][self._column].format(i=i, e=e)
        tensor = self._left.pop(full, None)
        if tensor is None:
            raise ModelFormatError(f"tensor {full} is missing")
        if name == "shared_router" and tensor.shape == shape[1:]:
            tensor = replace(tensor, shape=shape)  # GGUF drops the axis of length 1
        if tensor.shape != shape:
            raise ModelFormatError(f"tensor {full} has shape {tensor.shape}; the configuration needs {shape}")
        if len(shape) == 1 and tensor.kind not in ("f32", "f16", "bf16"):
            raise ModelFormatError(f"tensor {full} is a vector of kind {tensor.kind}; it must be f32, f16 or bf16")
        return tensor

    def experts(self, name: str, count: int, rows: int, columns: int, *, i: int) -> list[Tensor]:
        """Separate matrices (transformers) or one stack (GGUF)."""
        if self._column == 0:
            return [self(name, rows, columns, i=i, e=e) for e in range(count)]
        stack = self(name, count, rows, columns, i=i)
        return [stack.expert(e) for e in range(count)]

    def check_nothing_is_left(self) -> None:
        """A bias of zeros is nothing: AutoGPTQ stored one for every matrix."""
        left = sorted(name for name, tensor in self._left.items() if not (name.endswith(".bias") and not tensor.data.any()))
        if left:
            some = ", ".join(left[:5])
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise ModelFormatError(f"the model has no place for these tensors: {some}{more}")
