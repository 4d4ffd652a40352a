"""Intervals: they hold what they should as often as they should, and differences of the same units are paired."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qwenbox.evaluate.interval import Mean


def mean_of(values: np.ndarray) -> Mean:
    return Mean.of([(float(value), 1.0) for value in values])


def test_the_interval_holds_the_true_mean_in_about_95_of_100_measurements() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        estimate = mean_of(random.exponential(size=60)).estimate()
        assert estimate.low < estimate.value < estimate.high
        held += estimate.low <= 1.0 <= estimate.high
    assert 0.90 <= held / 300 <= 0.98


def test_its_width_is_that_of_the_normal_distribution_where_there_are_many_units() -> None:
    values = np.random.default_rng(1).normal(3, 2, 4000)
    estimate = mean_of(values).estimate()
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(4000), rel=0.05)


def test_units_count_by_their_weight() -> None:
    mean = Mean.of([(10.0, 10.0), (0.0, 30.0), (8.0, 4.0)] * 4)
    assert mean.value == pytest.approx(18 / 44)
    assert 0.0 < mean.estimate().low < 18 / 44 < mean.estimate().high < 2.0


def test_the_same_units_give_the_same_interval_every_time() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert mean_of(values).estimate() == mean_of(values).estimate()


def test_a_small_difference_between_models_on_the_same_units_is_seen_though_their_own_intervals_overlap() -> None:
    random = np.random.default_rng(3)
    hard = random.normal(10, 5, 100)
    first, second = mean_of(hard), mean_of(hard + 0.3 + random.normal(0, 0.2, 100))
    assert second.estimate().low < first.estimate().high
    difference = second.minus(first)
    assert 0 < difference.low < 0.3 < difference.high < 0.4
    assert second.over(first).low > 1


def test_a_handful_of_units_has_no_interval_and_none_no_mean() -> None:
    few = Mean.of([(4.0, 2.0)] * 9).estimate()
    assert few.value == 2.0 and math.isnan(few.low) and math.isnan(few.high)
    assert str(few) == "2" and str(Mean.of([(4.0, 2.0)] * 10).estimate()) == "2 [2, 2]"
    assert math.isnan(Mean.of([]).value)


def test_units_that_are_not_the_same_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 units cannot be paired with 2"):
        mean_of(np.ones(3)).minus(mean_of(np.ones(2)))


def test_many_units_take_little_memory() -> None:
    estimate = mean_of(np.arange(200_000) % 2).estimate()
    assert estimate.low < 0.5 < estimate.high
