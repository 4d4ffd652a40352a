"""How long a step will take, learnt from the steps before it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_SAMPLES = 64
FRESH = 0.3
"""Share of the newest measurement in an average."""
GUESS = 0.003
"""Weight of the guess beside a measurement."""
MOST_CHANGE = 4.0
"""A step that took longer than predicted, or shorter, by more than this factor counts as this factor: one hiccup must not rule the next steps."""


class Work(NamedTuple):
    """What a step runs: tokens, and the sum of the positions that they attend to."""

    num_tokens: int = 0
    num_attended: int = 0

    def with_tokens(self, count: int, position: int) -> Work:
        """And `count` tokens more, from this position on."""
        return Work(self.num_tokens + count, self.num_attended + count * position + count * (count + 1) // 2)


class StepClock:
    """Predicts `pace * (start + tokens * each + attended * look)` seconds.

    The three numbers are the least squares of the relative errors over what steps of each size took of late, none below zero. `pace` is how much
    slower than that the last steps were: a shared machine changes from second to second.
    """

    def __init__(self, weights_bytes: int) -> None:
        # Before the first measurement: the weights read once at 4 GB/s, 4 operations a byte and token at 40 Gop/s, and for 5,000 positions that a
        # token sees its time once more. This counts little as soon as there is anything better.
        start, each = max(weights_bytes, 1e6) / 4e9, max(weights_bytes, 1e6) / 1e10
        self._prior = np.array([start, each, each / 5000])
        self._fit = self._prior
        self._pace = 1.0
        self._samples: OrderedDict[tuple[int, int], npt.NDArray[np.float64]] = OrderedDict()

    def predict(self, work: Work) -> float:
        """Seconds."""
        start, each, look = self._fit
        return float(self._pace * (start + each * work.num_tokens + look * work.num_attended))

    def predict_reading(self, num_tokens: int, position: int, step_tokens: int) -> float:
        """Seconds of a prompt's tokens from `position` on, so many in a step."""
        return self.predict(Work().with_tokens(num_tokens, position)) + max(-(-num_tokens // step_tokens) - 1, 0) * self.predict(Work())

    def tokens_within(self, seconds: float, work: Work, position: int, most: int) -> int:
        """How many tokens from `position` on, `most` at most, may join `work` in a step of so many seconds."""
        return bisect_right(range(1, most + 1), seconds, key=lambda count: self.predict(work.with_tokens(count, position)))

    def note(self, work: Work, seconds: float) -> None:
        """A step with this work took so long."""
        predicted = self.predict(work)
        ratio = seconds * self._pace / predicted if self._samples and predicted > 0.0 else 1.0
        self._pace += FRESH * (min(max(ratio, 1.0 / MOST_CHANGE), MOST_CHANGE) - self._pace)
        size = (work.num_tokens.bit_length(), work.num_attended.bit_length())
        sample = np.array([work.num_tokens, work.num_attended, seconds], np.float64)
        if (before := self._samples.pop(size, None)) is not None:
            sample = before + FRESH * (sample - before)
        self._samples[size] = sample
        if len(self._samples) > MAX_SAMPLES:
            self._samples.popitem(last=False)
        self._refit()

    def _refit(self) -> None:
        samples = np.array(list(self._samples.values()))
        seconds = np.maximum(samples[:, 2:], 1e-9)
        ours = np.column_stack([np.ones(len(samples)), samples[:, :2]]) / seconds
        # The guess, scaled to what was measured, decides what the measurements leave open.
        guess = self._prior / np.median(ours @ self._prior)
        rows = np.vstack([ours, np.diag(GUESS / guess)])
        wanted = np.concatenate([np.ones(len(samples)), np.full(3, GUESS)])
        used = [0, 1, 2]
        while used:
            found = np.linalg.lstsq(rows[:, used], wanted, rcond=None)[0]
            if found.min() >= 0.0:
                break
            del used[int(found.argmin())]
        self._fit = np.zeros(3)
        self._fit[used] = found
