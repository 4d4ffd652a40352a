"""Which quantised checkpoints are read: one table for the readers, docs/checkpoints.md and the tests. And how a description is judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelFormatError, UnsupportedModelError

LARGE = 128
"""Stands for groups of every multiple of 128 inputs, whole rows among them; but for itself where AutoAWQ, which has no other, wrote them."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One line of the table."""

    method: str
    """`quant_method` of config.json."""
    forms: tuple[str, ...]
    """`version` (awq), `checkpoint_format` (gptq) or `format` (compressed-tensors)."""
    bits: int
    zeros: bool
    """Each group has a zero of its own; otherwise it is in the middle of the codes."""
    kinds: Mapping[int, str]
    """Inputs of a group, and the kind of `types.TENSOR_KINDS` that holds such a matrix without loss."""
    witnesses: tuple[str, ...]
    """Folders of tests/weights/data that an independent program wrote."""

    def kind(self, group: int) -> str | None:
        """What holds a matrix with groups of so many inputs; None where it is not read."""
        return self.kinds.get(LARGE if group % LARGE == 0 and self.method != "awq" else group)

    def groups(self, large: str) -> str:
        """Those that are read; `large` says what 128 stands for where it stands for more."""
        return ", ".join(large if group == LARGE and self.method != "awq" else str(group) for group in self.kinds)


_INT4 = {LARGE: "int4", 64: "int4_64", 32: "int4_32"}
_INT8 = {LARGE: "int8", 64: "q8_0", 32: "q8_0"}
_UINT8 = {LARGE: "uint8"}
_AWQ, _GPTQ, _COMPRESSED = ("gemm",), ("gptq", "gptq_v2"), ("pack-quantized",)
_MIXED = ("gptq_mixed", "gptq_v2_mixed")
SCHEMES = (
    Scheme("awq", _AWQ, 4, True, _INT4, ("awq_128", "awq_64", "awq_32")),
    Scheme("gptq", _GPTQ, 4, False, _INT4, ("gptq_128", *_MIXED)),
    Scheme("gptq", _GPTQ, 4, True, _INT4, _MIXED),
    Scheme("gptq", _GPTQ, 8, False, _INT8, _MIXED),
    Scheme("gptq", _GPTQ, 8, True, _UINT8, _MIXED),
    Scheme("compressed-tensors", _COMPRESSED, 4, False, _INT4, ("compressed_128", "compressed_mixed")),
    Scheme("compressed-tensors", _COMPRESSED, 4, True, _INT4, ("compressed_mixed",)),
    Scheme("compressed-tensors", _COMPRESSED, 8, False, _INT8, ("compressed_mixed",)),
    Scheme("compressed-tensors", _COMPRESSED, 8, True, _UINT8, ("compressed_mixed",)),
)


def describe() -> str:
    """The table as Markdown, for docs/checkpoints.md."""
    lines = ["| quant_method | form | bits | zeros | groups | in memory |", "|---|---|---|---|---|---|"]
    for scheme in SCHEMES:
        forms = ", ".join(f"`{form}`" for form in scheme.forms)
        groups = scheme.groups("128 and its multiples, whole rows")
        kinds = ", ".join(f"`{kind}`" for kind in dict.fromkeys(scheme.kinds.values()))
        lines.append(f"| `{scheme.method}` | {forms} | {scheme.bits} | {'yes' if scheme.zeros else 'symmetric'} | {groups} | {kinds} |")
    return "\n".join(lines) + "\n"


def kind_of(method: str, module: str, bits: int, group: int, zeros: bool) -> str:
    """The kind that holds matrices of so many bits and inputs a group. Raises UnsupportedModelError that names the module and what is read."""
    for scheme in SCHEMES:
        if (scheme.method, scheme.bits, scheme.zeros) == (method, bits, zeros):
            kind = scheme.kind(group)
            if kind is not None:
                return kind
    zero = "with zeros" if zeros else "symmetric"
    raise UnsupportedModelError(f"{module} is quantised to {bits} bits, {zero}, in groups of {group} inputs; {accepted(method)}")


def accepted(method: str) -> str:
    """What is read of a method, and the way out."""
    read = (
        f"{scheme.bits} bits {'with zeros' if scheme.zeros else 'symmetric'} in groups of {scheme.groups('128 or a multiple')}"
        for scheme in SCHEMES
        if scheme.method == method
    )
    forms = " or ".join(next(scheme.forms for scheme in SCHEMES if scheme.method == method))
    return f"of {method} checkpoints these are read: {forms}; {'; '.join(read)}. {OTHERWISE}"


OTHERWISE = "Take another quantisation of the model, a GGUF file, or the model in bf16 with --weights int4"

Rule = Collection[Any] | Callable[[Any], bool] | None
"""The values that are accepted, or whether one is; None: any, it says nothing about what is stored."""


def check(described: Mapping[str, Any], rules: Mapping[str, Rule], where: str, method: str, *, needed: tuple[str, ...]) -> None:
    """Raises UnsupportedModelError that names the key which is unknown, or whose value is none of those that are read; `needed` ones are."""
    for key in (*needed, *described):
        value = described.get(key)
        if key not in rules:
            raise UnsupportedModelError(f"{where} has the unknown key {shown(key)}; {accepted(method)}")
        rule = rules[key]
        if rule is not None and not (rule(value) if callable(rule) else any(type(value) is type(good) and value == good for good in rule)):
            raise UnsupportedModelError(f"{where} has {key} {shown(value)}; {accepted(method)}")


def names(value: Any, key: str, where: str) -> None:
    """Raises ModelFormatError where it is no list of names. Which modules are quantised is seen from their tensors, whatever it says:
    programs do not agree on what an entry matches."""
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ModelFormatError(f"{where} has {key} {shown(value)}; it must be a list of names")


def nothing(value: Any) -> bool:
    """Null, or an empty object."""
    return value is None or value == {}


def shown(value: Any) -> str:
    """A value of a hostile file, fit for one line of an error."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
