"""Users who ask for more than the machine gives get what their weights say, and are told truthfully when to come back."""

from __future__ import annotations

import heapq
import statistics
from collections import Counter
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from qwenbox.engine.admission import EXTRA, Admission
from qwenbox.engine.engine import Engine
from qwenbox.errors import OverloadedError
from qwenbox.types import GenerationPlan
from tests.engine.fakes import plan
from tests.engine.test_clock import TimedModel


def order_of_ends(engine: Engine, requests: list[GenerationPlan]) -> list[str]:
    for request in requests:
        engine.add(request)
    ended = []
    while engine.has_work:
        ended += [output.request_id for output in engine.step() if output.finish_reason]
        engine.check_integrity()
    return ended


def one_at_a_time() -> Engine:
    model = TimedModel()
    model.max_sequences = 1
    return Engine(model, clock=lambda: model.now)


def test_of_two_users_who_wait_the_one_who_had_less_is_next() -> None:
    requests = [plan(f"a{index}", 10, 5, user="a") for index in range(4)] + [plan(f"b{index}", 10, 5, user="b") for index in range(2)]
    assert order_of_ends(one_at_a_time(), requests) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_lower_priority_goes_first_whoever_it_is() -> None:
    requests = [
        plan("a0", 10, 5, user="a"),
        plan("a1", 10, 5, user="a"),
        plan("a2", 10, 5, user="a", priority=-1),
        plan("b", 10, 5, user="b", priority=3),
    ]
    assert order_of_ends(one_at_a_time(), requests) == ["a2", "a0", "a1", "b"]


def test_who_was_away_has_earned_nothing_by_it() -> None:
    engine = one_at_a_time()
    order_of_ends(engine, [plan(f"a{index}", 10, 50, user="a") for index in range(5)])
    mixed = [plan(f"{user}{index}", 10, 20, user=user) for index in range(4) for user in ("a", "b")]
    ended = order_of_ends(engine, mixed)
    assert [name[0] for name in ended] == list("abababab")


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def test_two_minutes_of_three_times_too_much_are_shared_by_weight_and_ends_in_peace() -> None:
    """Simulated: the model's clock is the test's. Users come at the same rate, and a refused request comes back when it was told to, up to twice."""
    rng = np.random.default_rng(0)
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}
    model = TimedModel()
    model.max_sequences = 8
    engine = Engine(model, step_seconds=0.2, clock=lambda: model.now)
    admission = Admission(40, lambda: model.now)
    arrivals: list[tuple[float, int, GenerationPlan]] = []
    number = count()
    for user, weight in weights.items():
        at = 0.0
        while at < 120.0:
            request = plan(f"{user}{next(number)}", int(rng.integers(20, 200)), int(rng.integers(20, 100)), user=user, weight=weight, attempt=0)
            heapq.heappush(arrivals, (at, next(number), request))
            at += rng.exponential(0.6)
    plans: dict[str, GenerationPlan] = {}
    served: Counter[str] = Counter()
    refused: dict[str, list[float]] = {}
    waits: list[tuple[float, float]] = []
    while arrivals or engine.has_work:
        while arrivals and arrivals[0][0] <= model.now:
            _, _, request = heapq.heappop(arrivals)
            name, attempt = request.request_id, request.attempt or 0
            try:
                admission.enter(request)
            except OverloadedError as error:
                seconds = error.retry_after or 0
                refused.setdefault(name, []).append(seconds)
                if attempt == 2:
                    waits.append((refused[name][0], sum(refused[name])))  # it gives up
                else:
                    heapq.heappush(arrivals, (model.now + seconds, next(number), replace(request, attempt=attempt + 1)))
            else:
                engine.add(request)
                plans[name] = request
                if name in refused:
                    waits.append((refused[name][0], sum(refused[name])))
        if not engine.has_work:
            model.now = arrivals[0][0]
        for output in engine.step():
            if model.now < 120.0:
                served[output.request_id[0]] += len(output.ids)
            if output.finish_reason:
                admission.leave(plans.pop(output.request_id))
    assert model.spent >= 0.95 * min(model.now, 120.0)  # the machine was never idle
    assert jain([served[user] / weight for user, weight in weights.items()]) >= 0.95
    errors = [abs(waited - told) / waited for told, waited in waits]
    assert len(waits) >= 50
    assert statistics.median(errors) <= 0.25
    engine.check_integrity()
    assert (engine.stats().used_pages, engine.stats().running, engine.stats().waiting, admission.num_alive) == (0, 0, 0, 0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_user_with_less_than_a_share_finds_a_place_where_another_has_taken_all() -> None:
    admission = Admission(8, Clock())
    greedy, modest = plan("g", 1, user="greedy"), plan("m", 1, user="modest")
    for _ in range(8):
        admission.enter(greedy)
    with pytest.raises(OverloadedError, match="8 requests run or wait already"):
        admission.enter(greedy)
    for _ in range(4):
        admission.enter(modest)
    with pytest.raises(OverloadedError, match="12 requests"):
        admission.enter(modest)


def test_however_many_users_there_are_places_are_bounded() -> None:
    admission = Admission(8, Clock())
    for index in range(EXTRA * 8):
        admission.enter(plan("x", 1, user=str(index)))
    with pytest.raises(OverloadedError, match="16 requests"):
        admission.enter(plan("x", 1, user="one more"))


def test_refused_requests_are_told_one_after_the_other_when_places_become_free() -> None:
    clock, admission = full()
    assert [seconds_told(admission, plan(name, 9)) for name in "abcdef"] == [3, 6, 9, 12, 15, 18]
    clock.now += 1.0
    assert seconds_told(admission, plan("g", 9)) in (20, 21)


def full() -> tuple[Clock, Admission]:
    """Places for four, all taken; one ends every three seconds, and another one comes."""
    clock = Clock()
    admission = Admission(4, clock)
    for _ in range(4):
        admission.enter(plan("x", 1))
    for _ in range(10):
        clock.now += 3.0
        admission.leave(plan("x", 1))
        admission.enter(plan("x", 1))
    return clock, admission


def seconds_told(admission: Admission, request: GenerationPlan) -> int | None:
    with pytest.raises(OverloadedError) as caught:
        admission.enter(request)
    return caught.value.retry_after


def test_who_comes_back_too_early_is_told_the_same_time_and_takes_nothing_from_the_others() -> None:
    clock, admission = full()
    for request in (plan("a", 9), plan("b", 9)):
        seconds_told(admission, request)
    clock.now += 1.0
    assert [seconds_told(admission, plan("b", 9, attempt=attempt)) for attempt in (None, 1, 2)] == [5, 5, 5]
    assert seconds_told(admission, plan("b", 9, attempt=0)) in (8, 9), "another request with the same prompt"
    assert seconds_told(admission, plan("c", 9)) in (11, 12)


def test_a_place_that_was_promised_is_kept_for_who_comes_in_time_and_a_late_one_stays_the_first() -> None:
    clock, admission = full()
    promised = [plan(name, 9) for name in "abcd"]
    assert [seconds_told(admission, request) for request in promised] == [3, 6, 9, 12]
    clock.now += 3.0
    admission.leave(plan("x", 1))
    seconds_told(admission, plan("newcomer", 9))
    admission.enter(promised[0])
    clock.now += 3.0
    admission.enter(promised[1])  # nobody has ended: a place more than there are
    clock.now += 3.0
    assert seconds_told(admission, promised[2]) in (7, 8)  # and now two have to
    assert seconds_told(admission, plan("newcomer 2", 9)) > 8
    admission.leave(plan("x", 1))
    admission.leave(plan("x", 1))
    clock.now += 8.0
    admission.enter(promised[2])
