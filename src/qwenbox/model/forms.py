"""Kinds that the matrices of a model have in memory: what the settings `weights`, `head` and `embedding` make of the stored ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from qwenbox.errors import UsageError
from qwenbox.kernels.quants import DENSE_KINDS
from qwenbox.kernels.quants import ROUNDED_KINDS as WEIGHTS
from qwenbox.model.costs import SKETCH_ROWS
from qwenbox.model.qwen import Qwen, Role
from qwenbox.types import Tensor

TWO_STAGE = "two-stage"
_INT8_IF_DENSE = "int8 if dense"
"""As stored, but in 16 bits as int8: beside 4-bit matrices a dense head would be most of what a token reads."""


@dataclass(frozen=True, slots=True)
class Forms:
    """A kind of `WEIGHTS` or "stored" for each role. Routers stay as they are: they are small, and a wrong choice of expert costs most."""

    linear: str
    head: str
    embedding: str
    own_embedding: bool
    """Whether somebody asked for the kind of the embedding: one that is the head as well then becomes a matrix of its own, if need be."""
    sketch: bool
    """Whether a large int8 head is kept a second time."""
    needs_sketch: bool

    @classmethod
    def of(cls, weights: str | None = None, head: str | None = None, embedding: str | None = None, *, quantised: bool = False) -> Self:
        """What the settings say; `quantised`: of a checkpoint whose matrices another program has quantised.

        Without `head` and `embedding`, `weights` int4 keeps both, which every token's probability hangs on, at int8, and the dense head of a
        quantised checkpoint as stored becomes int8 where `weights` does not say "stored". Raises UsageError for an unknown kind.
        """
        for name, value, more in (("weights", weights, ()), ("head", head, (TWO_STAGE,)), ("embedding", embedding, ())):
            known = ("stored", *WEIGHTS, *more)
            if value not in (None, *known):
                raise UsageError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}", param=name)
        ends = "int8" if weights == "int4" else weights or "stored"
        own_head = _INT8_IF_DENSE if weights is None and quantised else ends
        return cls(
            linear=weights or "stored",
            head="int8" if head == TWO_STAGE else head or own_head,
            embedding=embedding or ends,
            own_embedding=embedding is not None,
            sketch=head != "int8",
            needs_sketch=head == TWO_STAGE,
        )

    def kind(self, tensor: Tensor, role: Role) -> str:
        """That of a stored tensor after loading."""
        return self._kind(tensor.kind, role)

    def _kind(self, stored: str, role: Role) -> str:
        if role in ("router", "vector"):
            return stored
        form = {"embedding": self.embedding, "head": self.head}.get(role, self.linear)
        if form == _INT8_IF_DENSE:
            return "int8" if stored in DENSE_KINDS else stored
        return stored if form == "stored" else form

    def separate(self, stored: str) -> bool:
        """Whether embedding and head that are one matrix of this kind become two."""
        return self.own_embedding and self._kind(stored, "embedding") != self._kind(stored, "head")

    def apply(self, network: Qwen) -> None:
        """Before the network is built or counted. Raises UsageError where its head cannot be what was asked for."""
        if self.needs_sketch and network.config.vocab_size < SKETCH_ROWS:
            raise UsageError(
                f"a head of {network.config.vocab_size} rows is not read in two stages, which gains something from {SKETCH_ROWS} rows on: use int8",
                param="head",
            )
        if network.head is None and self.separate(network.embedding.kind):
            network.head = network.embedding
        network.sketch = self.sketch
