"""Ceilings: every method that the machine offers can be run, and what cannot be run says so."""

from __future__ import annotations

import math

import pytest

from qwenbox.errors import EngineError
from qwenbox.kernels import ceiling

MEGABYTES = 8 << 20


@pytest.mark.parametrize("feed", ceiling.FEEDS)
@pytest.mark.parametrize("kind", ceiling.KINDS)
def test_every_method_on_offer_has_a_rate(kind: str, feed: str) -> None:
    methods = ceiling.methods(kind)
    assert methods[-1] == "generic"
    for method in methods:
        rate = ceiling.rate(method, kind, feed, threads=2, seconds=0.005)
        # From a slow emulator to the fastest core there is, two threads.
        assert 1e6 < rate < 1e15, method


def test_a_method_that_is_not_there_has_no_rate() -> None:
    assert ceiling.rate("abacus", "int8", "l1", threads=1) == 0
    assert ceiling.rate("generic", "int8", "l1", threads=0) == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_read_pattern_has_a_bandwidth(threads: int) -> None:
    bandwidths = ceiling.read_bandwidths(ceiling.READ_PATTERNS, threads=threads, buffer_bytes=MEGABYTES)
    assert list(bandwidths) == ceiling.READ_PATTERNS
    assert all(1e7 < bandwidth < 1e13 for bandwidth in bandwidths.values())


def test_a_buffer_larger_than_the_memory_is_an_error_with_its_size() -> None:
    with pytest.raises(EngineError, match="4,611,686,018,427,387,904"):
        ceiling.read_bandwidths(ceiling.READ_PATTERNS, threads=1, buffer_bytes=1 << 62)


def test_the_meter_reports_the_best_and_goes_on_with_few() -> None:
    meter = ceiling.CeilingMeter(1, buffer_bytes=MEGABYTES, seconds=0.002)
    first, second = meter.measure(), meter.measure()
    for ceilings in (first, second):
        assert ceilings.pattern in ceiling.READ_PATTERNS
        assert all(math.isfinite(value) and value > 0 for value in (ceilings.bandwidth, ceilings.int8_l1, ceilings.bf16_registers))
    assert (first.int8_method, first.bf16_method) == (second.int8_method, second.bf16_method)
    assert first.int8_method in ceiling.methods("int8")


def test_the_default_buffer_is_large_but_leaves_memory() -> None:
    assert 0 < ceiling.default_buffer_bytes() <= 64 << 30
