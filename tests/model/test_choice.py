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


def test_all_experts_of_a_mixture_take_memory_and_a_token_reads_eight_of_128() -> None:
    own = entry_costs(CATALOGUE["qwen3-30b-a3b-q4_k_m"])
    four, six = 144 / 256, 210 / 256  # bytes of a weight, q4_k and q6_k, which every second way down is
    experts = 48 * 128 * 2048 * 768 * (2 * four + (four + six) / 2)
    embedding = 151_936 * 2048 * four
    assert own.weights_bytes - own.touched_bytes == pytest.approx(experts * 120 / 128 + embedding, rel=1e-4)
    mixture, dense = ({offer.name: offer for offer in offers(machine(24, 24))}[f"qwen3-{size}-q4_k_m"] for size in ("30b-a3b", "8b"))
    assert mixture.memory > 2.5 * dense.memory and mixture.speed > 2 * dense.speed
    assert not mixture.fits  # 20.7 GB: 70 % of 24 are 16.8
