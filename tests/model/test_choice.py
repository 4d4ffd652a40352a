"""Which model a machine is given: a table of machines, by the rule that docs/quickstart.md states."""

from __future__ import annotations

import pytest

from qwenbox.hub.catalogue import CATALOGUE, FIRST
from qwenbox.model.choice import ALWAYS, CONTEXT, LEAST_SPEED, MEMORY_SHARE, Machine, best, entry_costs, offers

GB = 1e9


def machine(memory: float, bandwidth: float) -> Machine:
    return Machine(int(memory * GB), bandwidth * GB)


@pytest.mark.parametrize(
    ("memory", "bandwidth", "chosen"),
    [
        (3, 60, "qwen3-0.6b-q8_0"),  # nothing fits: the smallest
        (8, 24, "qwen3-4b-q4_k_m"),
        (8, 60, "qwen3-4b-q4_k_m"),
        (16, 24, "qwen3-4b-q4_k_m"),
        (16, 60, "qwen3-8b-q4_k_m"),
        (24, 24, "qwen3-4b-q4_k_m"),
        (24, 60, "qwen3-8b-q4_k_m"),
        (64, 24, "qwen3-30b-a3b-q4_k_m"),
        (64, 60, "qwen3-30b-a3b-q4_k_m"),
        (64, 200, "qwen3-32b-q4_k_m"),
        (64, 4, "qwen3-0.6b-q8_0"),
    ],
)
def test_the_largest_that_fits_and_is_fast_enough_is_chosen(memory: float, bandwidth: float, chosen: str) -> None:
    offered = offers(machine(memory, bandwidth))
    assert best(offered).name == chosen
    for larger in offered[: offered.index(best(offered))]:
        if larger.name != ALWAYS and best(offered).suits:
            assert larger.memory > MEMORY_SHARE * memory * GB or larger.speed < LEAST_SPEED


@pytest.mark.parametrize("memory", [3, 8, 64])
def test_the_8b_in_awq_is_always_offered_with_its_speed(memory: float) -> None:
    offered = {offer.name: offer for offer in offers(machine(memory, 24))}
    assert offered[ALWAYS].speed == pytest.approx(24 * GB / entry_costs(CATALOGUE[ALWAYS]).touched_bytes)
    assert offered[ALWAYS].fits == (memory == 64)
    assert list(offered)[-1] == FIRST


def test_memory_counts_weights_sixteen_thousand_positions_and_the_program() -> None:
    offer = next(offer for offer in offers(machine(64, 24)) if offer.name == "qwen3-4b-q4_k_m")
    own = entry_costs(CATALOGUE[offer.name])
    assert offer.memory == own.weights_bytes + CONTEXT * own.kv_bytes + (512 << 20)


def test_bytes_computed_from_shapes_are_those_of_a_real_file() -> None:
    """Files of Qwen as people list them, in GB."""
    sizes = {"qwen3-0.6b-q8_0": 0.64, "qwen3-1.7b-q8_0": 1.83, "qwen3-4b-q4_k_m": 2.5, "qwen3-8b-q4_k_m": 5.03, "qwen3-30b-a3b-q4_k_m": 18.6}
    for offer in offers(machine(64, 24)):
        if offer.name in sizes:
            assert offer.download == pytest.approx(sizes[offer.name] * GB, rel=0.02)
