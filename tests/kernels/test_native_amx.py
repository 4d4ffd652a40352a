"""The whole runtime with the amx variant over emulated tiles: every number is that of avx512vnni."""

from __future__ import annotations

import numpy as np
import pytest

from qwenbox.kernels import native
from qwenbox.types import TENSOR_KINDS, Batch, Span
from tests.kernels.networks import Tiny, assert_equal, compiled
from tests.kernels.test_cpp import build, require, require_avx512

QUANTISED = tuple(kind for kind in TENSOR_KINDS if kind not in ("f32", "f16", "bf16"))


@pytest.fixture
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    require("c++")
    require_avx512()
    program = build("native", target="test_linear_amx", others=("qwenbox_native_amx",))
    library = native.open_library(program.parent / "libqwenbox_native_amx.so")
    monkeypatch.setattr(native, "library", lambda: library)


def steps() -> list[Batch]:
    """Two prompts of 100 and 23 tokens, in one step; then the end of the first beside one token of the second."""
    ids = np.arange(123, dtype=np.int32) * 7 % 90
    first, second = np.arange(4, dtype=np.int32), np.arange(4, 6, dtype=np.int32)
    prompts = Batch(ids, [Span(0, 100, 0, first), Span(100, 23, 0, second)], np.array([0, 99, 100, 122], np.int32))
    return [prompts, Batch(ids[:6], [Span(0, 5, 100, first), Span(5, 1, 23, second)], np.array([4, 5], np.int32))]


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("experts", [0, 4])
def test_a_network_of_all_quantised_kinds_gives_the_bits_of_avx512vnni(experts: int) -> None:
    assert native.isa_best() == "amx"
    network = Tiny(kinds=QUANTISED, experts=experts, shared=experts > 0)
    amx = compiled(network, isa="amx", tokens=128, threads=3)
    vectors = compiled(network, isa="avx512vnni", tokens=128)
    for batch in steps():
        assert_equal(amx.run(batch), vectors.run(batch))


def test_a_variant_that_is_missing_says_why() -> None:
    for isa in native.isa_available():
        assert native.isa_missing(isa) is None
    assert native.isa_missing("sse9") == "this build has no such variant"
    if "amx" not in native.isa_available():
        reason = native.isa_missing("amx")
        assert reason is not None
        assert "the processor" in reason or "the system" in reason
