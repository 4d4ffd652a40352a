"""A request while it is alive: its ids, how many of them the model has seen, and the pages that hold them."""

from __future__ import annotations

import math

import numpy as np

from qwenbox.engine.pages import PagePool, pages_for
from qwenbox.errors import QwenboxError
from qwenbox.types import FinishReason, GenerationPlan, IntArray, SequenceOutput, TokenLogprob, Usage

#   ids          0 ................ num_prompt ............ num_tokens ........ capacity
#   in the pages 0 ...... num_computed
#   scored       0 .. num_scored       (prompt positions whose successor has its log-probability)


class Sequence:
    """`num_missing` tokens are what the model has yet to run before it can choose the next one; there is no prefill and no decode."""

    def __init__(self, plan: GenerationPlan, arrival: int, now: float) -> None:
        self.plan = plan
        self.arrival = arrival
        self.num_prompt = len(plan.prompt_ids)
        self._ids = np.empty(self.num_prompt + plan.max_tokens, np.int32)
        self._ids[: self.num_prompt] = plan.prompt_ids
        self.num_tokens = self.num_prompt
        self.num_computed = 0
        self.num_scored = 0
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if plan.prompt_logprobs is None else [None]
        self.preemptions = 0
        self._pages = np.empty(most_pages(plan), np.int32)
        self.num_pages = 0
        self._arrived = now
        self._started = math.nan
        self._answered = math.nan

    @property
    def request_id(self) -> str:
        return self.plan.request_id

    @property
    def num_missing(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.num_prompt

    @property
    def ids(self) -> IntArray:
        return self._ids[: self.num_tokens]

    @property
    def prompt_ids(self) -> IntArray:
        return self._ids[: self.num_prompt]

    @property
    def output_ids(self) -> IntArray:
        return self._ids[self.num_prompt : self.num_tokens]

    @property
    def pages(self) -> IntArray:
        return self._pages[: self.num_pages]

    # --- pages ---

    def pages_lacking(self, num_tokens: int) -> int:
        """Pages to add before `num_tokens` tokens have room."""
        return max(0, pages_for(num_tokens) - self.num_pages)

    def take_pages(self, pool: PagePool, count: int) -> None:
        self._pages[self.num_pages : self.num_pages + count] = pool.allocate(count)
        self.num_pages += count

    def drop_pages(self, pool: PagePool) -> None:
        """Gives every page back; all tokens have to be computed again."""
        pool.free(self.pages.tolist())
        self.num_pages = 0
        self.num_computed = 0

    # --- rows of logits ---

    def scored_rows(self, length: int) -> range:
        """Positions in the next `length` tokens whose logits give the log-probability of the prompt token after them."""
        if self.prompt_logprobs is None:
            return range(0)
        return range(max(self.num_computed, self.num_scored), min(self.num_computed + length, self.num_prompt - 1))

    def fit(self, budget: int, rows: int) -> int:
        """How many of the missing tokens may run in `budget` tokens and `rows` rows of logits."""
        length = min(self.num_missing, budget)
        scored = self.scored_rows(length)
        if len(scored) > rows:
            return scored.start + rows - self.num_computed
        return length - (length == self.num_missing and len(scored) == rows)

    def num_rows(self, length: int) -> int:
        """Rows of logits that the next `length` tokens give: scored prompt tokens, and the choice after the last token."""
        return len(self.scored_rows(length)) + (length == self.num_missing)

    # --- life ---

    def start(self, now: float) -> None:
        if math.isnan(self._started):
            self._started = now

    def append(self, id: int, now: float) -> None:
        if math.isnan(self._answered):
            self._answered = now
        self._ids[self.num_tokens] = id
        self.num_tokens += 1

    def last_output(self, reason: FinishReason, now: float, *, error: QwenboxError | None = None) -> SequenceOutput:
        """Ends the request; `timings` count from arrival, and a stage that never began took no time."""
        started = now if math.isnan(self._started) else self._started
        answered = now if math.isnan(self._answered) else self._answered
        return SequenceOutput(
            self.request_id,
            finish_reason=reason,
            error=None if error is None else error.to_wire(),
            usage=Usage(self.num_prompt, self.num_output),
            timings={"queue": started - self._arrived, "prefill": answered - started, "decode": now - answered},
        )


def most_pages(plan: GenerationPlan) -> int:
    """Pages at the end of the longest answer; its last token is never run."""
    return pages_for(len(plan.prompt_ids) + max(plan.max_tokens, 1) - 1)
