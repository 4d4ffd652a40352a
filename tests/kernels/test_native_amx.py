"""The whole runtime as it is shipped, with tiles of the processor or trapped ones (tests/cpp/amx_trap.h): numbers are those of avx512vnni."""

from __future__ import annotations

import numpy as np
import pytest

from qwenbox.errors import UsageError
from qwenbox.kernels import ceiling, native
from qwenbox.types import TENSOR_KINDS, Batch, Span
from tests.kernels.networks import Tiny, assert_equal, compiled
from tests.kernels.programs import TILES, build, require

QUANTISED = tuple(kind for kind in TENSOR_KINDS if kind not in ("f32", "f16", "bf16"))


@pytest.fixture
def _tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if not TILES:
        pytest.skip(f"this processor cannot run the amx variant, even with trapped tiles: {native.isa_missing('avx512vnni')}")
    require("c++")
    program = build("native", target="test_amx_trap", others=("qwenbox_native_trapped",))
    library = native.open_library(program.parent / "libqwenbox_native_trapped.so")
    for module in (native, ceiling):
        monkeypatch.setattr(module, "library", lambda: library)
    monkeypatch.setattr(ceiling, "_library", ceiling._library.__wrapped__)  # it remembers the first


def steps() -> list[Batch]:
    """Two prompts of 100 and 23 tokens, in one step; then 17 tokens behind the first beside one token of the second."""
    ids = np.arange(123, dtype=np.int32) * 7 % 90
    first, second = np.arange(4, dtype=np.int32), np.arange(4, 6, dtype=np.int32)
    prompts = Batch(ids, [Span(0, 100, 0, first), Span(100, 23, 0, second)], np.array([0, 99, 100, 122], np.int32))
    return [prompts, Batch(ids[:18], [Span(0, 17, 100, first), Span(17, 1, 23, second)], np.arange(18, dtype=np.int32))]


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("experts", [0, 4])
def test_a_network_of_all_quantised_kinds_gives_the_bits_of_avx512vnni(experts: int) -> None:
    assert native.isa_best() == "amx"
    network = Tiny(kinds=QUANTISED, experts=experts, shared=experts > 0)
    amx = compiled(network, isa="amx", tokens=128, threads=3)
    vectors = compiled(network, isa="avx512vnni", tokens=128)
    for batch in steps():
        assert_equal(amx.run(batch), vectors.run(batch))


@pytest.mark.usefixtures("_tiles")
def test_ceilings_of_tiles_have_a_rate() -> None:
    for kind in ceiling.KINDS:
        assert ceiling.methods(kind)[0] == "amx"
        for feed in ceiling.FEEDS:
            assert ceiling.rate("amx", kind, feed, threads=2, seconds=0.002) > 1e6


def test_a_variant_that_is_missing_says_why() -> None:
    for isa in native.isa_available():
        assert native.isa_missing(isa) is None
    assert native.isa_missing("sse9") == "this build has no such variant"
    if "amx" not in native.isa_available():
        reason = native.isa_missing("amx")
        assert reason is not None
        assert "the processor" in reason or "the system" in reason
        with pytest.raises(UsageError, match=f"'amx' is not available: {reason}; this machine has {native.isa_best()}"):
            native.Native(isa="amx")
