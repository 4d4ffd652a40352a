"""One layer of a network in float32, and its forward pass over blocks of tokens. Weights may be changed between its parts.

The numbers are those of docs/numeric-contract.md up to rounding: nothing here is quantised that is not quantised in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qwenbox.kernels.quants import dequantize
from qwenbox.model.config import ModelConfig
from qwenbox.model.qwen import FeedForward, Layer, Mixture, checkpoint_name
from qwenbox.types import AnyArray, FloatArray, Tensor
from qwenbox.weights.files import release

from .parallel import by_rows


@dataclass(slots=True)
class Linear:
    """y = weight x + bias. `module` is its name in a checkpoint."""

    module: str
    weight: FloatArray
    bias: FloatArray | None = None

    def __call__(self, x: FloatArray) -> FloatArray:
        y = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y


@dataclass(slots=True)
class Gated:
    gate: Linear
    up: Linear
    down: Linear

    def hidden(self, x: FloatArray) -> FloatArray:
        """What reaches `down`."""
        hidden = self.gate(x)
        with np.errstate(over="ignore"):
            hidden /= 1 + np.exp(-hidden)
        hidden *= self.up(x)
        return hidden

    def __iter__(self) -> Iterator[Linear]:
        return iter((self.gate, self.up, self.down))


@dataclass(slots=True)
class Sparse:
    """A mixture of experts, and the expert that all tokens pass through, where there is one."""

    router: Linear
    experts: list[Gated]
    shared: Gated | None
    shared_router: Linear | None

    def routed(self, x: FloatArray, top_k: int, normalise: bool) -> Iterator[tuple[Gated, AnyArray, FloatArray]]:
        """(expert, which of the tokens [n, width] it gets, their weights) of those that get any."""
        p = _softmax(self.router(x))
        chosen = np.argsort(-p, axis=-1, kind="stable")[:, :top_k]
        weights = np.take_along_axis(p, chosen, axis=-1)
        if normalise:
            weights /= weights.sum(-1, keepdims=True)
        for index, expert in enumerate(self.experts):
            tokens, place = np.nonzero(chosen == index)
            if len(tokens):
                yield expert, tokens, weights[tokens, place]
        if self.shared is not None and self.shared_router is not None:
            yield self.shared, np.arange(len(x)), np.asarray(1 / (1 + np.exp(-self.shared_router(x))), np.float32)[:, 0]

    @property
    def all_experts(self) -> list[Gated]:
        return [*self.experts, *([self.shared] if self.shared is not None else [])]


@dataclass(slots=True)
class FloatLayer:
    config: ModelConfig
    attention_norm: FloatArray
    query: Linear
    key: Linear
    value: Linear
    query_norm: FloatArray | None
    key_norm: FloatArray | None
    output: Linear
    feed_forward_norm: FloatArray
    feed_forward: Gated | Sparse

    # Each part takes the residual stream x [blocks, length, hidden], or one block of it.

    def attention_input(self, x: FloatArray) -> FloatArray:
        return rms_norm(x, self.attention_norm, self.config.rms_norm_eps)

    def mixed(self, x: FloatArray, rotation: tuple[FloatArray, FloatArray]) -> FloatArray:
        """What reaches `output`, of one block [length, hidden]: every token attends to those before it."""
        config, length = self.config, len(x)
        entered = self.attention_input(x)

        def heads(linear: Linear, norm: FloatArray | None, count: int) -> FloatArray:
            y = linear(entered).reshape(length, count, config.head_dim)
            if norm is not None:
                y = rms_norm(y, norm, config.rms_norm_eps)
            return rotated(y, *rotation).transpose(1, 0, 2)

        group = config.num_heads // config.num_kv_heads
        q = heads(self.query, self.query_norm, config.num_heads).reshape(config.num_kv_heads, group * length, config.head_dim)
        k = heads(self.key, self.key_norm, config.num_kv_heads)
        v = self.value(entered).reshape(length, config.num_kv_heads, config.head_dim).transpose(1, 0, 2)
        scores = q @ k.transpose(0, 2, 1)
        scores *= np.float32(config.head_dim**-0.5)
        square = scores.reshape(config.num_heads, length, length)
        square += np.triu(np.full((length, length), -np.inf, np.float32), 1)
        p = _softmax(scores)
        y = (p @ v).reshape(config.num_heads, length, config.head_dim)
        return np.ascontiguousarray(y.transpose(1, 0, 2)).reshape(length, -1)

    def feed_forward_input(self, x: FloatArray) -> FloatArray:
        return rms_norm(x, self.feed_forward_norm, self.config.rms_norm_eps)

    def routed(self, x: FloatArray) -> Iterator[tuple[Gated, FloatArray, AnyArray | None, FloatArray | None]]:
        """(gated part, its tokens, which of x they are, their weights) for `feed_forward_input` of one block; None: all, one."""
        part = self.feed_forward
        if isinstance(part, Gated):
            yield part, x, None, None
            return
        experts = self.config.experts
        assert experts is not None
        for expert, tokens, weights in part.routed(x, experts.top_k, experts.normalise):
            yield expert, x[tokens], tokens, weights

    def fed_forward(self, entered: FloatArray, seen: Callable[[Gated, FloatArray, FloatArray], None] | None = None) -> FloatArray:
        """What the feed-forward part adds to one block. `seen` is told (part, its tokens, what reaches its `down`)."""
        out = np.zeros_like(entered)
        for part, tokens, places, weights in self.routed(entered):
            hidden = part.hidden(tokens)
            if seen is not None:
                seen(part, tokens, hidden)
            y = part.down(hidden)
            if places is None or weights is None:
                out += y
            else:
                out[places] += y * weights[:, None]
        return out

    @property
    def gated_parts(self) -> list[Gated]:
        return [self.feed_forward] if isinstance(self.feed_forward, Gated) else self.feed_forward.all_experts

    @property
    def routers(self) -> list[Linear]:
        part = self.feed_forward
        return [] if isinstance(part, Gated) else [router for router in (part.router, part.shared_router) if router is not None]

    @property
    def linears(self) -> list[Linear]:
        """All that are quantised."""
        return [self.query, self.key, self.value, self.output, *(linear for part in self.gated_parts for linear in part)]


def float_layer(config: ModelConfig, layer: Layer, index: int) -> FloatLayer:
    """The weights of layer `index`, dequantised."""

    def linear(name: str, weight: Tensor, bias: Tensor | None = None, expert: int = 0) -> Linear:
        module = checkpoint_name(name, index, expert).removesuffix(".weight")
        return Linear(module, _matrix(weight), None if bias is None else dequantize(bias))

    def gated(prefix: str, part: FeedForward, expert: int = 0) -> Gated:
        return Gated(*(linear(prefix + name, getattr(part, name), None, expert) for name in ("gate", "up", "down")))

    def mixture(part: Mixture) -> Sparse:
        return Sparse(
            linear("router", part.router),
            [gated("expert_", expert, number) for number, expert in enumerate(part.experts)],
            None if part.shared is None else gated("shared_", part.shared),
            None if part.shared_router is None else linear("shared_router", part.shared_router),
        )

    return FloatLayer(
        config,
        dequantize(layer.attention_norm),
        linear("query", layer.query, layer.query_bias),
        linear("key", layer.key, layer.key_bias),
        linear("value", layer.value, layer.value_bias),
        None if layer.query_norm is None else dequantize(layer.query_norm),
        None if layer.key_norm is None else dequantize(layer.key_norm),
        linear("output", layer.output),
        dequantize(layer.feed_forward_norm),
        gated("", layer.feed_forward) if isinstance(layer.feed_forward, FeedForward) else mixture(layer.feed_forward),
    )


def _matrix(tensor: Tensor) -> FloatArray:
    """Dequantised; what it was read from need not stay in memory."""
    values = np.empty(tensor.shape, np.float32)

    def fill(rows: slice) -> None:
        values[rows] = dequantize(tensor, rows.start, rows.stop)

    by_rows(fill, tensor.shape)
    release(tensor.data)
    return values


def rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    scale = 1 / np.sqrt(np.einsum("...i,...i->...", x, x) / np.float32(len(weight)) + np.float32(eps))
    return np.asarray(x * scale[..., None] * weight)


def rotated(x: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
    """Rotary positions of heads [length, heads, head_dim]; cos and sin [length, head_dim / 2]."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def _softmax(x: FloatArray) -> FloatArray:
    """Over the last axis, in place."""
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x
