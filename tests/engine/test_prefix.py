"""Prompts that begin alike share pages; nobody's answer changes by it, and nothing is said to be cached that was run."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbox.engine.engine import Engine
from qwenbox.engine.pages import PagePool
from qwenbox.engine.prefix import PrefixTree, key_of
from qwenbox.errors import EngineError
from qwenbox.types import GenerationPlan
from tests.engine.fakes import Answer, FakeModel, plan
from tests.engine.test_engine import run

TEXT = plan("text", 400).prompt_ids
OTHER = plan("other", 400).prompt_ids


def ask(engine: Engine, request: GenerationPlan) -> Answer:
    return run(engine, [request])[request.request_id]


def cached(answer: Answer) -> int:
    assert answer.last is not None and answer.last.usage is not None
    return answer.last.usage.cached_tokens


def num_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def test_a_prompt_asked_again_runs_its_last_token_only_and_is_answered_the_same() -> None:
    for size in (1, 31, 32, 33, 64, 200):
        engine = Engine(FakeModel())
        first = ask(engine, plan("a", TEXT[:size], 40, logprobs=2))
        before = engine.stats().computed_tokens
        second = ask(engine, plan("b", TEXT[:size], 40, logprobs=2))
        assert second.same_as(first)
        assert (cached(first), cached(second)) == (0, size - 1)
        assert engine.stats().computed_tokens - before == 40  # the last token of the prompt, and each of the answer but its last


def test_a_conversation_goes_on_without_running_its_beginning_again() -> None:
    engine = Engine(FakeModel())
    answer = ask(engine, plan("a", TEXT[:50], 30))
    history = (*TEXT[:50], *answer.ids)
    assert cached(ask(engine, plan("b", (*history, *OTHER[:10]), 5))) == len(history) - 1  # the last token of an answer never ran


def test_a_page_that_goes_on_differently_is_shared_up_to_the_token_and_stays_as_it_was() -> None:
    engine = Engine(FakeModel())
    requests = [
        plan("a", TEXT[:100], 5),
        plan("b", TEXT[:75] + OTHER[:50], 60),
        plan("c", TEXT[:100], 5, logprobs=1),
        plan("d", TEXT[:75] + OTHER[:60]),
    ]
    answers = [ask(engine, request) for request in requests]
    assert [cached(answer) for answer in answers] == [0, 75, 99, 125]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.same_as(ask(Engine(FakeModel()), request))


def test_requests_that_come_at_once_run_their_common_pages_once() -> None:
    engine = Engine(FakeModel())
    requests = [plan(f"r{index}", TEXT[:200] + OTHER[index : index + 40], 20, seed=index) for index in range(8)]
    answers = run(engine, requests)
    assert engine.stats().computed_tokens == 200 + 8 * (40 + 19)
    assert [cached(answers[request.request_id]) for request in requests] == [0] + [200] * 7
    for request in requests:
        assert answers[request.request_id].same_as(ask(Engine(FakeModel()), request))


def test_pages_in_use_count_once_however_many_sequences_share_them() -> None:
    engine = Engine(FakeModel(num_pages=18))
    run(engine, [plan("a", TEXT[:320], 1)])
    for index in range(4):
        engine.add(plan(f"b{index}", TEXT[:320] + OTHER[index : index + 5], 20, seed=index))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.used_pages) == (4, 0, 10 + 4)
    engine.check_integrity()


def test_log_probabilities_of_a_prompt_are_computed_even_where_its_pages_are_there() -> None:
    engine = Engine(FakeModel())
    ask(engine, plan("a", TEXT[:100], 5))
    scored = plan("b", TEXT[:100], 5, prompt_logprobs=2)
    answer = ask(engine, scored)
    assert cached(answer) == 0
    assert answer.same_as(ask(Engine(FakeModel()), scored))


def test_another_salt_shares_nothing() -> None:
    engine = Engine(FakeModel())
    ask(engine, plan("a", TEXT[:100], 5, cache_salt="class 3"))
    assert cached(ask(engine, plan("b", TEXT[:100], 5))) == 0
    assert cached(ask(engine, plan("c", TEXT[:100], 5, cache_salt="class 4"))) == 0
    assert cached(ask(engine, plan("d", TEXT[:100], 5, cache_salt="class 3"))) == 99


def test_what_was_used_longest_ago_is_given_up_first_and_an_end_before_its_beginning() -> None:
    engine = Engine(FakeModel(num_pages=21))
    ask(engine, plan("a", TEXT[:256], 1))  # 8 pages
    ask(engine, plan("b", OTHER[:256], 1))  # 8 pages
    ask(engine, plan("a again", TEXT[:128], 1))  # the first 4 of a
    ask(engine, plan("c", plan("c", 256).prompt_ids, 1))  # 8 more: the last 3 of a
    assert cached(ask(engine, plan("b again", OTHER[:256], 1))) == 255
    assert cached(ask(engine, plan("a once more", TEXT[:256], 1))) in range(128, 160)
    engine.check_integrity()


def test_a_page_that_is_about_to_be_copied_is_given_up_last() -> None:
    engine = Engine(FakeModel(num_pages=8))
    ask(engine, plan("a", TEXT[:48], 1))  # a full page, and a half one that becomes the page used longest ago
    ask(engine, plan("b", OTHER[:190], 1))  # all the others
    request = plan("c", TEXT[:48] + OTHER[200:260], 5)
    answer = ask(engine, request)
    assert cached(answer) == 48
    assert answer.same_as(ask(Engine(FakeModel()), request))


def test_a_preempted_request_finds_its_own_pages_and_calls_none_of_them_cached() -> None:
    engine = Engine(FakeModel(num_pages=12))
    requests = [plan(f"r{index}", 60, 150, seed=index) for index in range(4)]
    answers = run(engine, requests)
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.cached_tokens == 0
    assert all(cached(answer) == 0 for answer in answers.values())


ALPHABET = st.lists(st.integers(0, 1), max_size=6).map(lambda bits: tuple(id for bit in bits for id in (TEXT[:23] if bit else OTHER[:16])))


@given(st.lists(ALPHABET.filter(bool), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_what_is_cached_is_the_longest_beginning_that_any_request_ran(prompts: list[tuple[int, ...]]) -> None:
    engine = Engine(FakeModel())
    computed: list[tuple[int, ...]] = []
    for index, prompt in enumerate(prompts):
        answer = ask(engine, plan(f"r{index}", prompt, 3))
        assert cached(answer) == min(max((num_common(prompt, one) for one in computed), default=0), len(prompt) - 1)
        computed.append((*prompt, *answer.ids[:-1]))
        engine.check_integrity()


def test_a_tree_says_when_its_books_are_wrong() -> None:
    tree = PrefixTree(PagePool(4))
    (page,) = tree.allocate(1)
    node = tree.add("", None, key_of(np.arange(32, dtype=np.int32)), page)
    tree.use(node)
    assert tree.check_integrity() == [page]
    node.users = 0
    with pytest.raises(EngineError, match=f"page {page} has 0 users"):
        tree.check_integrity()
