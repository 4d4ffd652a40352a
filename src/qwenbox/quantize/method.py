"""What is done to one layer: rounding to nearest, AWQ's scales and ranges, GPTQ's rounding, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from qwenbox.types import FloatArray

from .clip import search_steps
from .gptq import inverse_of, round_columns
from .grid import Grid, Rounded
from .inputs import ROWS, Inputs
from .layer import FloatLayer, Gated, Linear
from .parallel import PRODUCT, by_rows, in_order
from .scales import Consumer, search_scales, squared


class Method(NamedTuple):
    scales: bool
    """AWQ's scales, and its ranges."""
    columns: bool
    """GPTQ's rounding."""

    @property
    def calibrated(self) -> bool:
        return self.scales or self.columns


METHODS: Mapping[str, Method] = {
    "rtn": Method(False, False),
    "awq": Method(True, False),
    "gptq": Method(False, True),
    "awq+gptq": Method(True, True),
}

SCALE_TOKENS = 8192
"""That AWQ's scales are searched on before GPTQ, at most; GPTQ has all."""
FEW_ROWS = 128
"""Of a factor that only reports errors, or is of an expert's inputs: there are many experts, and each sees few tokens."""


@dataclass(slots=True)
class Result:
    """The layer's quantised matrices by module, and of each the mean squared error of its outputs as a share of their mean square."""

    rounded: dict[str, Rounded] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def add(self, linear: Linear, rounded: Rounded, factor: FloatArray | None) -> None:
        self.rounded[linear.module] = rounded
        if factor is not None:

            def both(rows: slice) -> tuple[float, float]:
                own = linear.weight[rows]
                return squared(np.asarray((rounded.floats(rows) - own) @ factor.T)), squared(own @ factor.T)

            lost, whole = (sum(column) for column in zip(*by_rows(both, linear.weight.shape, PRODUCT), strict=True))
            self.errors[linear.module] = lost / whole if whole else 0.0


class Sites(NamedTuple):
    """What reaches the linear layers of one layer."""

    attention: Inputs
    output: Inputs
    feed_forward: Inputs
    """All its tokens."""
    parts: Sequence[tuple[Inputs, Inputs]]
    """Of each gated part: what enters it, and what reaches its `down`."""


def round_layer(layer: FloatLayer, grid: Grid) -> Result:
    """Round to nearest. Needs no calibration."""
    result = Result()
    for linear in layer.linears:
        result.add(linear, grid.round(linear.weight), None)
    return result


def quantize_layer(layer: FloatLayer, x: FloatArray, rotation: tuple[FloatArray, FloatArray], method: Method, grid: Grid) -> Result:
    """Searches and rounds on the residual stream x [blocks, length, hidden]; afterwards x is what the next layer gets.

    Without GPTQ that is what the original layer makes of it; with GPTQ, what the quantised one makes, so that later columns and layers make good
    what earlier ones lost. The layer's norms, biases and routers take up the inverse of the scales.
    """
    if method.scales:
        some = -(-x[..., 0].size // SCALE_TOKENS) if method.columns else 1
        sites, after = observe(layer, x[::some], rotation, grid)
        if not method.columns:
            x[:] = after
        del after
        scale_layer(layer, sites, grid)
        if not method.columns:
            return _round_scaled(layer, sites, grid)
        del sites
    return _round_columns(layer, x, rotation, grid)


# --- what reaches the linear layers --------------------------------------------------------------------------------


def observe(layer: FloatLayer, x: FloatArray, rotation: tuple[FloatArray, FloatArray], grid: Grid) -> tuple[Sites, FloatArray]:
    """A whole pass of the layer as it is."""
    after = np.empty_like(x)
    attention, output, feed_forward, parts = _sites(layer, grid, gram=False)
    place = {id(part): index for index, part in enumerate(layer.gated_parts)}

    def seen(part: Gated, tokens: FloatArray, hidden: FloatArray) -> None:
        entered, reached = parts[place[id(part)]]
        if entered is not feed_forward:
            entered.add(tokens)
        reached.add(hidden)

    def passed(block: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, list[tuple[Gated, FloatArray, FloatArray]], FloatArray]:
        mixed = layer.mixed(block, rotation)
        middle = block + layer.output(mixed)
        entered = layer.feed_forward_input(middle)
        reached: list[tuple[Gated, FloatArray, FloatArray]] = []
        middle += layer.fed_forward(entered, lambda *told: reached.append(told))
        return layer.attention_input(block), mixed, entered, reached, middle

    for out, (entered, mixed, entered_all, told, end) in zip(after, in_order(passed, x), strict=True):
        attention.add(entered)
        output.add(mixed)
        feed_forward.add(entered_all)
        for part, tokens, hidden in told:
            seen(part, tokens, hidden)
        out[:] = end
    return Sites(attention, output, feed_forward, parts), after


def _sites(layer: FloatLayer, grid: Grid, *, gram: bool) -> Sites:
    experts = len(layer.gated_parts) > 1

    def inputs(width: int, *, expert: bool = False) -> Inputs:
        return Inputs(width, grid.group, rows=FEW_ROWS if gram or expert else ROWS, gram=gram)

    hidden, heads = len(layer.attention_norm), layer.output.weight.shape[1]
    feed_forward = inputs(hidden)
    parts = [
        (inputs(hidden, expert=True) if experts else feed_forward, inputs(part.down.weight.shape[1], expert=experts)) for part in layer.gated_parts
    ]
    return Sites(inputs(hidden), inputs(heads), feed_forward, parts)


# --- AWQ -----------------------------------------------------------------------------------------------------------


def scale_layer(layer: FloatLayer, sites: Sites, grid: Grid) -> None:
    """Finds and applies all scales; afterwards the layer computes what it did, and `sites` are what reaches it now."""
    readers = [layer.query, layer.key, layer.value]
    scales = _search([(linear, sites.attention) for linear in readers], sites.attention, grid)
    layer.attention_norm /= scales
    _widen(readers, scales)
    sites.attention.divide(scales)

    tie = _shared_by_heads(layer)
    scales = _search([(layer.output, sites.output)], sites.output, grid, tie)
    own = scales.reshape(layer.config.num_kv_heads, -1, layer.config.head_dim)[:, 0].reshape(-1)
    _narrow(layer.value, own)
    _widen([layer.output], scales)
    sites.output.divide(scales)

    pairs = [(linear, entered) for part, (entered, _) in zip(layer.gated_parts, sites.parts, strict=True) for linear in (part.gate, part.up)]
    scales = _search(pairs, sites.feed_forward, grid)
    layer.feed_forward_norm /= scales
    _widen([*(linear for linear, _ in pairs), *layer.routers], scales)
    for inputs in {id(entered): entered for _, entered in pairs}.values():
        inputs.divide(scales)
    if all(entered is not sites.feed_forward for _, entered in pairs):
        sites.feed_forward.divide(scales)

    for part, (_, reached) in zip(layer.gated_parts, sites.parts, strict=True):
        if reached.count:
            scales = _search([(part.down, reached)], reached, grid)
            _narrow(part.up, scales)
            _widen([part.down], scales)
            reached.divide(scales)


def _search(pairs: Sequence[tuple[Linear, Inputs]], inputs: Inputs, grid: Grid, tie: Callable[[FloatArray], FloatArray] | None = None) -> FloatArray:
    return search_scales([Consumer(linear.weight, seen) for linear, seen in pairs], inputs.magnitude, grid, tie=tie)


def _shared_by_heads(layer: FloatLayer) -> Callable[[FloatArray], FloatArray]:
    """The query heads of a group read the same values: their inputs to `output` can only have the same scales."""
    shape = layer.config.num_kv_heads, -1, layer.config.head_dim

    def tie(values: FloatArray) -> FloatArray:
        heads = values.reshape(shape)
        return np.broadcast_to(heads.mean(1, keepdims=True), heads.shape).reshape(-1)

    return tie


def _widen(linears: Sequence[Linear], scales: FloatArray) -> None:
    for linear in linears:
        linear.weight *= scales


def _narrow(linear: Linear, scales: FloatArray) -> None:
    linear.weight /= scales[:, None]
    if linear.bias is not None:
        linear.bias /= scales


def _round_scaled(layer: FloatLayer, sites: Sites, grid: Grid) -> Result:
    result = Result()

    def round_clipped(linears: Sequence[Linear], inputs: Inputs, *, clip: bool = True) -> None:
        if not inputs.count:
            for linear in linears:
                result.add(linear, grid.round(linear.weight), None)
            return
        blocks, factor = inputs.blocks, inputs.factor
        for linear in linears:
            result.add(linear, grid.round(linear.weight, search_steps(linear.weight, blocks, grid) if clip else None), factor)

    round_clipped([layer.query, layer.key], sites.attention, clip=False)
    round_clipped([layer.value], sites.attention)
    round_clipped([layer.output], sites.output)
    for part, (entered, reached) in zip(layer.gated_parts, sites.parts, strict=True):
        round_clipped([part.gate, part.up], entered)
        round_clipped([part.down], reached)
    return result


# --- GPTQ ----------------------------------------------------------------------------------------------------------


def _round_columns(layer: FloatLayer, x: FloatArray, rotation: tuple[FloatArray, FloatArray], grid: Grid) -> Result:
    """Part after part, each on what the quantised parts before it make of x; x becomes what the quantised layer makes of it."""
    result = Result()
    attention, output, _, parts = _sites(layer, grid, gram=True)

    def round_all(linears: Sequence[Linear], inputs: Inputs) -> None:
        if not inputs.count:
            for linear in linears:
                result.add(linear, grid.round(linear.weight), None)
            _take_back(linears, result)
            return
        inverse, blocks, factor = inverse_of(inputs.take_gram()), inputs.blocks, inputs.factor
        for linear in linears:
            # Of queries and keys too, which AWQ alone leaves whole: with GPTQ behind it that is nearer to the original (docs/log.md).
            steps = search_steps(linear.weight, blocks, grid)
            result.add(linear, round_columns(linear.weight, inverse, steps, grid), factor)
            _let_go([linear])
            _take_back([linear], result)

    for entered in in_order(layer.attention_input, x):
        attention.add(entered)
    round_all([layer.query, layer.key, layer.value], attention)

    mixed = np.empty((*x.shape[:2], layer.output.weight.shape[1]), np.float32)
    for out, computed in zip(mixed, in_order(lambda block: layer.mixed(block, rotation), x), strict=True):
        out[:] = computed
        output.add(out)
    round_all([layer.output], output)
    for block, added in zip(x, in_order(layer.output, mixed), strict=True):
        block += added
    del mixed
    _let_go([layer.query, layer.key, layer.value, layer.output])

    place = {id(part): index for index, part in enumerate(layer.gated_parts)}

    def entering(block: FloatArray) -> list[tuple[Gated, FloatArray]]:
        return [(part, tokens) for part, tokens, _, _ in layer.routed(layer.feed_forward_input(block))]

    for told in in_order(entering, x):
        for part, tokens in told:
            parts[place[id(part)]][0].add(tokens)
    for part, (entered_by, _) in zip(layer.gated_parts, parts, strict=True):
        round_all([part.gate, part.up], entered_by)
    for told in in_order(lambda block: [(part, part.hidden(tokens)) for part, tokens in entering(block)], x):
        for part, hidden in told:
            parts[place[id(part)]][1].add(hidden)
    enter = [linear for part in layer.gated_parts for linear in (part.gate, part.up)]
    _let_go(enter)
    for part, (_, reached) in zip(layer.gated_parts, parts, strict=True):
        round_all([part.down], reached)
    _take_back(enter, result)
    for block, added in zip(x, in_order(lambda block: layer.fed_forward(layer.feed_forward_input(block)), x), strict=True):
        block += added
    return result


def _let_go(linears: Iterable[Linear]) -> None:
    """A matrix that nobody asks for makes room for the products of wide inputs."""
    for linear in linears:
        linear.weight = linear.weight[:0].copy()


def _take_back(linears: Iterable[Linear], result: Result) -> None:
    """As it was rounded."""
    for linear in linears:
        linear.weight = result.rounded[linear.module].floats()
