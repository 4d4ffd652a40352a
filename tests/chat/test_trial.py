"""An answer that is tried without thought."""

from __future__ import annotations

import math

import pytest

from qwenbox.chat.trial import MOST_TOKENS, SURE, Trial
from qwenbox.types import FinishReason, SequenceOutput, TokenLogprob

UNSURE = SURE - 0.01


def output(*probabilities: float, finish: FinishReason | None = None) -> SequenceOutput:
    tokens = tuple(TokenLogprob(7, math.log(probability)) for probability in probabilities)
    return SequenceOutput("r", (7,) * len(tokens), tokens, finish_reason=finish)


def test_an_answer_is_kept_when_it_ends_and_every_token_was_sure() -> None:
    trial = Trial()
    assert trial.feed(output(1.0, SURE + 0.01)) is None
    assert trial.feed(output(0.95, finish="stop")) is True
    assert [held.ids for held in trial.held(logprobs=True)] == [(7, 7), (7,)]
    assert all(held.logprobs for held in trial.held(logprobs=True))
    assert not any(held.logprobs for held in trial.held(logprobs=False))


@pytest.mark.parametrize("last", [output(UNSURE), output(1.0, UNSURE, 1.0, finish="stop"), SequenceOutput("r", (7,), (None,))])
def test_one_unsure_token_is_enough_to_throw_it_away(last: SequenceOutput) -> None:
    trial = Trial()
    assert trial.feed(output(1.0)) is None
    assert trial.feed(last) is False


def test_a_long_answer_is_thrown_away_however_sure() -> None:
    trial = Trial()
    assert [trial.feed(output(1.0)) for _ in range(MOST_TOKENS)] == [None] * MOST_TOKENS
    assert trial.feed(output(1.0)) is False


def test_an_answer_that_is_wanted_now_is_kept_whatever_it_is() -> None:
    trial = Trial()
    assert trial.feed(output(1.0)) is None
    trial.hurry()
    assert trial.feed(output(0.01)) is True
    assert len(trial.held(logprobs=True)) == 2


@pytest.mark.parametrize("finish", ["error", "cancelled"])
def test_what_a_second_attempt_would_not_repair_is_kept(finish: FinishReason) -> None:
    assert Trial().feed(output(0.01, finish=finish)) is True
