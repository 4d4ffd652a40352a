"""An answer that is begun without thought, and kept if the model is sure of every token of it."""

from __future__ import annotations

import math
from dataclasses import replace

from qwenbox.types import SequenceOutput

MOST_TOKENS = 32
"""A longer answer explains itself: how sure its words are tells nothing of whether it is right."""
SURE = 0.9
"""Least probability of each token of an answer that is kept."""


class Trial:
    """Holds back what comes until it is known whether the answer is kept. The outputs need log-probabilities."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._held: list[SequenceOutput] = []
        self._hurried = False

    def feed(self, output: SequenceOutput) -> bool | None:
        """Whether the answer is kept; None where that is not known yet. What nobody can repair is kept too."""
        self._held.append(output)
        self.num_tokens += len(output.ids)
        if self._hurried or output.finish_reason in ("error", "cancelled"):
            return True
        if self.num_tokens > MOST_TOKENS or any(token is None or token.logprob < math.log(SURE) for token in output.logprobs or ()):
            return False
        return True if output.finish_reason is not None else None

    def hurry(self) -> None:
        """Keeps the answer from the next output on, whatever it is."""
        self._hurried = True

    def held(self, *, logprobs: bool) -> list[SequenceOutput]:
        """What came, with its log-probabilities or without."""
        return self._held if logprobs else [replace(output, logprobs=None) for output in self._held]
