"""When a sequence thinks, and when the engine ends its thought: by ids alone, so that no cutting of text can get it wrong."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from qwenbox.types import IntArray, ThinkingPlan

Why = Literal["budget", "time", "length", "answer_now", "loop", "stop"]
"""Why the engine ended a thought: its tokens or its seconds were used up, the answer's tokens were all that was left, somebody asked for the answer,
it went in circles, or the model stopped in the middle of it."""

LOOK_EVERY = 16
"""Tokens between two looks for a circle."""
LONGEST_PERIOD = 192
CIRCLES = 4
"""A text goes in circles when its end is so many times the same piece, and ..."""
THOUGHT_TOKENS, CONTENT_TOKENS = 192, 1024
"""... has at least so many tokens. Content may repeat itself for longer: tables and drawings do, and people ask for it."""


class Thought:
    """Follows the ids of one answer.

    `open`: the next token belongs to a thought. `ended`: why the engine ended it, None where it has not. One answer has one thought at most.
    """

    def __init__(self, plan: ThinkingPlan, num_tokens: int) -> None:
        """`num_tokens` is how many the answer may have."""
        self._plan = plan
        self._most = num_tokens - len(plan.closing_ids) - plan.answer_tokens
        self.open = plan.open
        self.ended: Why | None = None
        self._over = False  # no thought can begin any more
        self._first = 0
        self._began = math.nan
        self._hurried = False

    @property
    def may_open(self) -> bool:
        return not self.open and not self._over

    def hurry(self) -> None:
        """The answer is wanted now."""
        self._hurried = True

    def note(self, id: int, num_tokens: int, now: float) -> None:
        """Follows the id that was chosen, with which the answer has `num_tokens`."""
        if self.open and math.isnan(self._began):
            self._began = now
        if self.open and id == self._plan.close_id:
            self.open, self._over = False, True
        elif not self.open and not self._over:
            if id == self._plan.open_id:
                self.open, self._first, self._began = True, num_tokens, now
            elif id not in self._plan.blank_ids:
                self._over = True

    def due(self, ids: IntArray, now: float, waited: float, *, stopped: bool) -> Why | None:
        """Why the thought has to end after these ids of the answer, `waited` seconds after the request came. None: it need not."""
        plan = self._plan
        if not self.open:
            return None
        if stopped:
            return "stop"
        if self._hurried:
            return "answer_now"
        if plan.max_tokens is not None and len(ids) - self._first >= plan.max_tokens:
            return "budget"
        if len(ids) >= self._most:
            return "length"
        if now - self._began >= plan.max_seconds or waited >= plan.deadline:
            return "time"
        if plan.loop_guard and goes_in_circles(ids[self._first :], THOUGHT_TOKENS):
            return "loop"
        return None

    def end(self, why: Why) -> tuple[int, ...]:
        """Ends the thought: the ids that do so."""
        self.open, self._over, self.ended = False, True, why
        return self._plan.closing_ids


def goes_in_circles(ids: IntArray, num_tokens: int) -> bool:
    """Whether the last `num_tokens` or more of `ids` are the same piece over and over. Looked for at every `LOOK_EVERY`th token only."""
    if len(ids) < num_tokens or len(ids) % LOOK_EVERY:
        return False
    for period in _periods(ids[-max(num_tokens, LONGEST_PERIOD + LOOK_EVERY) :]):
        length = max(num_tokens, CIRCLES * period)
        if len(ids) >= length and np.array_equal(ids[len(ids) - length + period :], ids[len(ids) - length : len(ids) - period]):
            return True
    return False


def _periods(ids: IntArray) -> list[int]:
    """Distances at which the last token came before, shortest first."""
    before = np.flatnonzero(ids[-LONGEST_PERIOD - 1 : -1] == ids[-1])
    return [int(min(LONGEST_PERIOD, len(ids) - 1) - place) for place in before[::-1]]
