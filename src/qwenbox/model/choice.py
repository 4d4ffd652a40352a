"""Which Qwen3 suits this machine: a rule over what each takes and what the machine has, the same for everybody.

Bytes are computed from shapes. A prediction is the bytes that a token reads over the bandwidth that was measured: what memory allows at best.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from qwenbox.errors import Problem
from qwenbox.hub.catalogue import CATALOGUE, Entry
from qwenbox.kernels.ceiling import READ_PATTERNS, default_buffer_bytes, read_bandwidths
from qwenbox.model.costs import Costs, costs
from qwenbox.model.forms import Forms
from qwenbox.model.load import SHAPES, MemoryNeed, available_memory, program_need, random_config, random_network
from qwenbox.model.qwen import Qwen, Role
from qwenbox.types import Tensor

CONTEXT = 16_384
"""Tokens of keys and values that a chosen model has room for."""
MEMORY_SHARE = 0.7
LEAST_SPEED = 8.0
"""Tokens a second below which nobody likes to read along."""
FREE_BYTES = 1_500_000_000
"""What may be downloaded without a yes."""
ALWAYS = "qwen3-8b-awq"
"""Offered on every machine."""
_AUTOMATIC = ("q4_k_m", "q8_0")
"""Forms that are small to fetch and need no second rounding."""


class Machine(NamedTuple):
    """Bytes of memory that can be had, and bytes a second that all threads read together."""

    memory: int
    bandwidth: float


class Offer(NamedTuple):
    """A model of the catalogue on a machine. `memory`, `download`: bytes; `speed`: tokens a second at best.

    Until `verified` the repository's name is what the catalogue believes and `download` is computed; then both are a hub's answer.
    """

    name: str
    memory: int
    download: int
    speed: float
    fits: bool
    verified: bool = False
    problem: Problem | None = None
    """Why the hub does not give it."""

    @property
    def suits(self) -> bool:
        return self.fits and self.speed >= LEAST_SPEED


def offers(machine: Machine, **forms: str | None) -> list[Offer]:
    """The Qwen3 that are offered, the largest first. `forms`: settings that `Forms.of` takes."""
    chosen = [entry for entry in CATALOGUE.values() if entry.shape is not None and (entry.form in _AUTOMATIC or entry.name == ALWAYS)]
    return [_offer(entry, machine, forms) for entry in sorted(chosen, key=lambda entry: SHAPES.index(entry.shape or ""), reverse=True)]


def best(offered: Iterable[Offer]) -> Offer:
    """The largest that fits and is fast enough; where none is, the smallest. `ALWAYS` is never chosen for somebody, nor what no hub gives."""
    automatic = [offer for offer in offered if offer.name != ALWAYS and offer.problem is None]
    return next((offer for offer in automatic if offer.suits), automatic[-1])


@functools.cache
def entry_costs(entry: Entry, weights: str | None = None, head: str | None = None, embedding: str | None = None) -> Costs:
    """Costs of a model that is not here, of its shape, as it would be loaded."""
    network, forms = _stored(entry), Forms.of(weights, head, embedding, quantised=entry.form == "awq")
    forms.apply(network)
    return costs(network, forms.kind)


def entry_need(entry: Entry, **forms: str | None) -> MemoryNeed:
    """What loading a model takes that is not here."""
    own = entry_costs(entry, **forms)
    return MemoryNeed(own.weights_bytes, own.kv_bytes * CONTEXT, program_need())


def measure(threads: int) -> Machine:
    """This machine, in about a second. Raises EngineError where there is no memory to measure with."""
    memory = available_memory()
    patterns = [pattern for pattern in READ_PATTERNS if pattern.prefetch == "t0" and pattern.streams > 1]
    return Machine(memory, max(read_bandwidths(patterns, threads=threads, buffer_bytes=default_buffer_bytes()).values()))


def _offer(entry: Entry, machine: Machine, forms: Mapping[str, str | None]) -> Offer:
    own, need = entry_costs(entry, **forms), entry_need(entry, **forms)
    speed = machine.bandwidth / own.touched_bytes
    return Offer(entry.name, need.total, costs(_stored(entry)).weights_bytes, speed, need.total <= MEMORY_SHARE * machine.memory)


def _stored(entry: Entry) -> Qwen:
    """A network of the entry's shape whose tensors have the kinds that its files have."""
    assert entry.shape is not None
    return random_network(random_config(entry.shape), _KINDS[entry.form], CONTEXT)


def _as_bf16(tensor: Tensor, role: Role) -> str:
    return tensor.kind


def _as_awq(tensor: Tensor, role: Role) -> str:
    return "int4" if role == "linear" else tensor.kind


def _as_q8_0(tensor: Tensor, role: Role) -> str:
    return tensor.kind if role in ("vector", "router") else "q8_0"


def _as_q4_k_m(tensor: Tensor, role: Role) -> str:
    """Six bits for the head and, in every second layer, for values and the way down; four for the rest."""
    if role in ("vector", "router"):
        return tensor.kind
    name, layer, _ = tensor.name.rsplit(".", 2)
    larger = role == "head" or (name in ("value", "down", "expert_down") and int(layer) % 2)
    return "q6_k" if larger else "q4_k"


_KINDS: Mapping[str, Callable[[Tensor, Role], str]] = {"bf16": _as_bf16, "awq": _as_awq, "q4_k_m": _as_q4_k_m, "q8_0": _as_q8_0}
