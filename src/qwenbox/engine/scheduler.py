"""Which tokens run next. One idea: every running sequence has `num_missing` tokens outstanding, and a step runs some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from qwenbox.engine.clock import StepClock, Work
from qwenbox.engine.prefix import PrefixTree
from qwenbox.engine.queue import WaitingQueue
from qwenbox.engine.sequence import Sequence
from qwenbox.errors import EngineError
from qwenbox.types import PAGE_TOKENS, Batch, Span

LONE_STEPS = 5
"""So many times longer a step may be while no answer streams: whoever comes meanwhile waits for its end."""
SLICE_STEPS = 3
"""So many steps a slice takes, about: it pauses between operations, and those of a longer one are longer."""
MIN_SLICE = 8
"""Tokens that run of a prompt at least, however slow the machine is."""


class Run(NamedTuple):
    """The next `length` missing tokens of a sequence, which want `num_rows` rows of logits or of hidden states."""

    sequence: Sequence
    length: int
    num_rows: int


@dataclass(slots=True)
class Slice:
    """Tokens of prompts that are more than a step has time for: a batch of its own, which goes on after the answers of each step."""

    runs: list[Run]
    batch: Batch
    next_op: int = 0
    seconds: float = 0.0
    """That it has run."""


class Scheduler:
    """Running sequences in the order in which they were admitted first, and a queue of those that wait.

    The one admitted last gives way first, and is admitted again before anybody who never ran. So the one that was admitted first always advances.
    """

    def __init__(
        self,
        tree: PrefixTree,
        copy_page: Callable[[int, int, int], None],
        clock: StepClock,
        *,
        step_seconds: float,
        max_running: int,
        max_batch_tokens: int,
        max_logits: int,
        slice_tokens: int,
    ) -> None:
        # A running sequence must always find a token and a row of logits left, whatever the others take.
        self.max_running = min(max_running, max_batch_tokens, max_logits)
        self.max_batch_tokens = max_batch_tokens
        self.max_logits = max_logits
        self.tree = tree
        self._copy_page = copy_page
        self._clock = clock
        self._step_seconds = step_seconds
        self._slice_tokens = slice_tokens
        self.slice: Slice | None = None
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._admissions = 0
        self._ids = np.empty(max_batch_tokens, np.int32)

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Finished, failed or cancelled: forgets the sequence, whose pages stay in the tree as long as nobody else wants them."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.waiting.forget(sequence)
        sequence.leave_pages(self.tree)
        self._drop_slice(sequence)

    def schedule(self) -> list[Run]:
        """The next step: answers first, then the others in order of admission, as far as tokens and rows go.

        Where those who lack no more than a page would wait too long for the others, these become the `slice`. The caller runs it beside the next
        steps and sets it back to None when it is through; it may drop it at any time, and its tokens are missing as before.
        Who lacks the very page that another computes in this step waits for it and finds it in the tree.
        Who wants hidden states runs in batches of their own, so beside answers always as a slice; of them and the other prompts those go first
        whose first was admitted first.
        """
        self._admit()
        order = sorted(self.running, key=lambda s: s.pools or (s.num_missing > 1 and not s.pages_lacking(s.num_tokens)))
        if self.slice is not None:
            return self._fill([sequence for sequence in order if not _reads(sequence)], min(self.max_logits, self.max_batch_tokens))[0]
        pools = self._pool_next
        runs, work = self._fill([s for s in order if s.pools == pools or not _reads(s)], self.max_batch_tokens)
        short = [run for run in runs if not _reads(run.sequence)]
        if not 0 < len(short) < len(runs) or (not pools and self._clock.predict(work) <= self._step_seconds):
            return runs
        if sum(run.length for run in short) <= self.max_logits:
            self._cut(runs)
        return short

    def next_slice(self) -> Slice | None:
        """What prompts still lack when a slice is through before its step is over, as the next one."""
        pools = self._pool_next
        runs, _ = self._fill([s for s in self.running if _reads(s) and s.pools == pools], self.max_batch_tokens, answering=True)
        self._cut(runs)
        return self.slice

    @property
    def _pool_next(self) -> bool:
        """Whether the prompts that run next are those whose hidden states are wanted."""
        return next((sequence.pools for sequence in self.running if _reads(sequence)), False)

    def _cut(self, runs: list[Run]) -> None:
        """Makes the slice of those that lack more than a page. A page that was found on the way has made the others answers of the next step."""
        runs = [run for run in runs if _reads(run.sequence)]
        if not runs:
            return
        batch = self.batch(runs)
        self.slice = Slice(runs, replace(batch, ids=batch.ids.copy()))

    def _fill(self, sequences: Iterable[Sequence], tokens: int, *, answering: bool = False) -> tuple[list[Run], Work]:
        """Runs of these sequences, in their order, and what they are together. `answering`: somebody waits for a token meanwhile."""
        runs: list[Run] = []
        coming: set[tuple[str, object]] = set()
        rows, work, least = self.max_logits, Work(), MIN_SLICE
        worth = self._clock.predict(Work().with_tokens(self._slice_tokens, 0))
        for sequence in sequences:
            if not sequence.num_pages or not tokens:
                continue
            if sequence.num_missing > 1 or sequence.pools:
                sequence.find_pages(self.tree)
                if sequence.at_page and (sequence.plan.cache_salt, sequence.next_key(sequence.num_skippable)) in coming:
                    continue
                sequence.copy_page(self.tree, self._copy_page)
                if answering and sequence.num_missing <= PAGE_TOKENS:
                    seconds = self._step_seconds
                else:
                    seconds = max((SLICE_STEPS if answering else LONE_STEPS) * self._step_seconds, worth)
                room = max(self._clock.tokens_within(seconds, work, sequence.num_computed, min(tokens, sequence.num_missing)), least)
                length = sequence.fit(min(room, tokens), tokens if sequence.pools else rows)
            else:
                answering = True
                length = sequence.fit(tokens, rows)
            if length <= 0:
                continue
            lacking = sequence.pages_lacking(sequence.num_computed + length)
            # Who lacks pages comes first, in order of admission: whoever gives way is not in the step yet.
            while sequence.num_pages and lacking > self.tree.num_free:
                self._preempt()
            if not sequence.num_pages:
                continue
            if lacking:
                sequence.take_pages(self.tree, lacking)
            runs.append(Run(sequence, length, sequence.num_rows(length)))
            tokens, rows = tokens - length, rows - (0 if sequence.pools else runs[-1].num_rows)
            work = work.with_tokens(length, sequence.num_computed)
            if sequence.num_missing > 1 or sequence.pools:
                least = 0
            if (place := sequence.next_key(sequence.num_computed + length)) is not None:
                coming.add((sequence.plan.cache_salt, place))
        return runs, work

    def charge(self, runs: list[Run], seconds: float) -> None:
        """Tells the queue for whom a step ran: in equal parts for its tokens."""
        num_tokens = sum(run.length for run in runs)
        self.waiting.charge((run.sequence, seconds * run.length / num_tokens) for run in runs)

    def batch(self, runs: list[Run], largest: int = 0) -> Batch:
        """The tokens of a step side by side; `largest` as in `Batch`. Its arrays are valid until the next call."""
        spans, logits_rows, start = [], [], 0
        for sequence, length, num_rows in runs:
            first, end = sequence.num_computed, sequence.num_computed + length
            self._ids[start : start + length] = sequence.ids[first:end]
            spans.append(Span(start, length, first, sequence.pages))
            if num_rows:
                logits_rows += [start + position - first for position in sequence.scored_rows(length)]
                if end == sequence.num_tokens:
                    logits_rows.append(start + length - 1)
            start += length
        return Batch(self._ids[:start], spans, np.array(logits_rows, np.int32), largest, hidden=runs[0].sequence.pools)

    def check_integrity(self) -> None:
        """EngineError with numbers where pages are lost, shared by mistake or too few, or the order of arrival is broken."""
        in_tree = np.array(self.tree.check_integrity(), np.int32)
        self.tree.pool.check_integrity([in_tree, *(sequence.pages for sequence in self.running)])
        if held := sum(sequence.num_pages for sequence in self.waiting):
            raise EngineError(f"waiting sequences hold {held} pages")
        for sequence in self.running:
            if sequence.pages_lacking(sequence.num_computed):
                raise EngineError(f"{sequence.request_id}: {sequence.num_computed} tokens computed, {sequence.num_pages} pages held")
        admissions = [sequence.admitted for sequence in (*self.running, *self.waiting)]
        ran = [number for number in admissions if number is not None]
        if ran != sorted(ran) or admissions[len(ran) :] != [None] * (len(admissions) - len(ran)):
            raise EngineError(f"sequences are out of order: {admissions}")

    def _admit(self) -> None:
        # One page is kept for each sequence that runs already: who enters is the first who would have to leave again.
        while len(self.running) < self.max_running and (sequence := self.waiting.first()) is not None:
            sequence.find_pages(self.tree)
            lacking = sequence.pages_lacking(sequence.num_tokens)
            if lacking + len(self.running) > self.tree.num_free:
                sequence.drop_pages(self.tree)
                return
            sequence.keep_page(self.tree)
            self.waiting.remove(sequence)
            sequence.take_pages(self.tree, lacking)
            if sequence.admitted is None:
                sequence.admitted = self._admissions
                self._admissions += 1
            self.running.append(sequence)

    def _preempt(self) -> None:
        victim = self.running.pop()
        victim.preemptions += 1
        victim.drop_pages(self.tree)
        self._drop_slice(victim)
        self.preemptions += 1
        self.waiting.put_back(victim)

    def _drop_slice(self, sequence: Sequence) -> None:
        """The sequence has no pages any more."""
        if self.slice is not None and any(run.sequence is sequence for run in self.slice.runs):
            self.slice = None


def _reads(sequence: Sequence) -> bool:
    """Whether a prompt is read that keeps answers waiting."""
    return sequence.pools or sequence.num_missing > PAGE_TOKENS
