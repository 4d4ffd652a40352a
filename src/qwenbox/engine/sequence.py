"""A request while it is alive: its ids, how many of them the model has seen, and the pages that hold them."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as AnySequence

import numpy as np
import numpy.typing as npt

from qwenbox.engine.clock import StepClock
from qwenbox.engine.constraint import Constraint
from qwenbox.engine.pages import pages_for
from qwenbox.engine.prefix import Node, PrefixTree, key_of
from qwenbox.engine.thought import Thought, Why
from qwenbox.errors import QwenboxError
from qwenbox.kernels.program import MaskArray
from qwenbox.types import PAGE_TOKENS, FinishReason, FloatArray, GenerationPlan, IntArray, Progress, SequenceOutput, TokenLogprob, Usage

PROGRESS_SECONDS = 0.5
"""How far a prompt is, is told so often, and never of one that is read faster."""

#   ids          0 ................ num_prompt ............ num_tokens ........ capacity
#   in the pages 0 ...... num_computed
#   of the tree  0 .. whole pages of it
#   scored       0 .. num_scored       (prompt positions whose successor has its log-probability, or whose hidden state is in the sum)


class Sequence:
    """`num_missing` tokens are what the model has yet to run before it can choose the next one; there is no prefill and no decode."""

    def __init__(self, plan: GenerationPlan, arrival: int, now: float, constraint: Constraint | None = None) -> None:
        self.plan = plan
        self.arrival = arrival
        self.admitted: int | None = None
        """How many were admitted before it was for the first time."""
        self.num_prompt = len(plan.prompt_ids)
        self._ids = np.empty(self.num_prompt + plan.max_tokens, np.int32)
        self._ids[: self.num_prompt] = plan.prompt_ids
        self.num_tokens = self.num_prompt
        self.num_computed = 0
        self.num_scored = 0
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if plan.prompt_logprobs is None else [None]
        self._vector: npt.NDArray[np.float64] | None = None
        self.preemptions = 0
        self._pages = np.empty(most_pages(plan), np.int32)
        self.num_pages = 0
        self.num_cached = 0
        """Tokens of the prompt that others had run."""
        self._chain: list[Node] = []
        self.constraint = constraint
        self.waits = False
        """What it may choose is not known yet: it runs its last token once more."""
        self._thought = None if plan.thinking is None else Thought(plan.thinking, plan.max_tokens)
        self._arrived = now
        self._started = self._told = math.nan
        self._timed: tuple[float, int] | None = None
        """When, and at which token, the reading began that says how long the rest takes."""
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

    def take_pages(self, tree: PrefixTree, count: int) -> None:
        self._pages[self.num_pages : self.num_pages + count] = tree.allocate(count)
        self.num_pages += count

    def drop_pages(self, tree: PrefixTree) -> None:
        """Gives every page back; all tokens have to be computed or found again."""
        tree.pool.free(self._pages[len(self._chain) : self.num_pages].tolist())
        tree.release(self._chain)
        self._chain = []
        self.num_pages = self.num_computed = 0
        if not self.preemptions:
            self.num_cached = 0

    def leave_pages(self, tree: PrefixTree) -> None:
        """Gives every page back at the end, the last computed tokens to the tree as well."""
        self.give_pages(tree)
        if not self.at_page:
            key = key_of(self._ids[len(self._chain) * PAGE_TOKENS : self.num_computed])
            tree.add(self.plan.cache_salt, self._last(), key, int(self._pages[len(self._chain)]))
        self.drop_pages(tree)

    # --- pages of the tree ---

    def next_key(self, end: int) -> tuple[Node | None, bytes] | None:
        """Where the page that follows the chain stands in the tree; None where `end` is not behind it."""
        first = len(self._chain) * PAGE_TOKENS
        return (self._last(), key_of(self._ids[first : first + PAGE_TOKENS])) if first + PAGE_TOKENS <= end else None

    def find_pages(self, tree: PrefixTree) -> None:
        """Goes on along the pages that the tree has, instead of computing their tokens."""
        while self.at_page and (place := self.next_key(self.num_skippable)) is not None:
            if (node := tree.find(self.plan.cache_salt, *place)) is None:
                return
            self._use(tree, node)
            self._skip(PAGE_TOKENS)

    def copy_page(self, tree: PrefixTree, copy: Callable[[int, int, int], None]) -> None:
        """Takes the first tokens of a page that goes on differently, or ends, into the sequence's own next page.

        An answer to which many tokens were added at the end of a page has no next page yet: it computes them.
        """
        node, count = self._nearest(tree)
        if node is not None and len(self._chain) < self.num_pages:
            copy(node.page, int(self._pages[len(self._chain)]), count)
            tree.touch(node)
            self._skip(count)

    def keep_page(self, tree: PrefixTree) -> None:
        """The page that `copy_page` will want is given up last: the sequence is about to take pages."""
        node, _ = self._nearest(tree)
        if node is not None:
            tree.touch(node)

    def give_pages(self, tree: PrefixTree) -> None:
        """Puts the full pages that have been computed into the tree; where it has one already, this sequence uses that one instead of its own."""
        while (place := self.next_key(self.num_computed)) is not None:
            self._use(tree, tree.add(self.plan.cache_salt, *place, int(self._pages[len(self._chain)])))

    @property
    def at_page(self) -> bool:
        """Whether the next token to compute is the first of a page."""
        return self.num_computed == len(self._chain) * PAGE_TOKENS

    @property
    def num_skippable(self) -> int:
        """Tokens that need not run where their keys and values are found: those before the first whose logits are wanted."""
        scored = self.scored_rows(self.num_missing)
        return scored.start if scored else self.num_tokens - 1

    def _use(self, tree: PrefixTree, node: Node) -> None:
        index = len(self._chain)
        tree.use(node)
        if index < self.num_pages:
            tree.pool.free([int(self._pages[index])])
        else:
            self.num_pages += 1
        self._pages[index] = node.page
        self._chain.append(node)

    def _skip(self, num_tokens: int) -> None:
        self.num_computed += num_tokens
        if not self.preemptions:
            self.num_cached += num_tokens

    def _nearest(self, tree: PrefixTree) -> tuple[Node | None, int]:
        """The page of the tree that begins with the most of the tokens that come next and need not run, and how many."""
        if not self.at_page or self.num_computed >= self.num_skippable:
            return None, 0
        return tree.nearest(self.plan.cache_salt, self._last(), key_of(self._ids[self.num_computed : self.num_skippable][:PAGE_TOKENS]))

    def _last(self) -> Node | None:
        return self._chain[-1] if self._chain else None

    # --- rows of logits ---

    def scored_rows(self, length: int) -> range:
        """Positions in the next `length` tokens, but for the prompt's last, whose rows are wanted.

        Their logits give the log-probability of the prompt token after them, or their hidden states belong to a mean.
        """
        if self.prompt_logprobs is None and self.plan.pooling != "mean":
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

    # --- hidden states ---

    @property
    def pools(self) -> bool:
        """Whether one vector is wanted, and no tokens."""
        return self.plan.pooling is not None

    def pool(self, rows: FloatArray) -> None:
        """Adds hidden states in the order of their tokens, one by one: the sum is the same in whatever slices they come."""
        if self._vector is None:
            self._vector = np.zeros(rows.shape[1])
        for row in rows:
            self._vector += row

    def vector(self) -> bytes:
        """What `SequenceOutput.vector` is, when all have been added."""
        assert self._vector is not None
        return (self._vector / (self.num_prompt if self.plan.pooling == "mean" else 1)).astype("<f4").tobytes()

    # --- life ---

    def start(self, now: float) -> None:
        if math.isnan(self._started):
            self._started = self._told = now

    def append(self, id: int, now: float) -> None:
        if math.isnan(self._answered):
            self._answered = now
        self._ids[self.num_tokens] = id
        self.num_tokens += 1
        thought = self.thinks
        if self._thought is not None:
            self._thought.note(id, self.num_output, now)
        if self.constraint is not None and not thought and not self.thinks:
            self.constraint.note(id)

    def force(self, ids: AnySequence[int]) -> tuple[int, ...]:
        """Puts ids behind the answer that nobody chose, as far as `max_tokens` go: the ids that are there now."""
        ids = tuple(ids[: self.plan.max_tokens - self.num_output])
        self._ids[self.num_tokens : self.num_tokens + len(ids)] = ids
        self.num_tokens += len(ids)
        return ids

    def drop_last(self) -> None:
        """Takes back the token that was chosen last."""
        self.num_tokens -= 1

    # --- thinking ---

    @property
    def thinks(self) -> bool:
        """Whether the next token belongs to a thought."""
        return self._thought is not None and self._thought.open

    def hurry(self) -> None:
        """The answer is wanted now."""
        if self._thought is not None:
            self._thought.hurry()

    def thought_due(self, now: float, *, stopped: bool) -> Why | None:
        """Why the thought has to end now. None where it need not, or there is none."""
        return None if self._thought is None else self._thought.due(self.output_ids, now, now - self._arrived, stopped=stopped)

    def end_thought(self, why: Why) -> tuple[int, ...]:
        assert self._thought is not None
        return self.force(self._thought.end(why))

    # --- form ---

    @property
    def is_bound(self) -> bool:
        """Whether the next token has to fit a grammar."""
        return self.constraint is not None and self.constraint.armed and not self.thinks

    def follow_grammar(self) -> tuple[int, ...]:
        """Puts the ids behind the answer that its grammar leaves no choice of: those that are there now. RequestError where it cannot be honoured."""
        if self.constraint is None:
            return ()
        self.constraint.check()
        if not self.is_bound:
            return ()
        # Ids of nobody's choice would come before the prompt's log-probabilities, and before a thought that may still begin.
        begun = self.constraint.begun
        ids = self.constraint.poll(forces=(begun or not self._may_think) and self.prompt_logprobs is None)
        thinking = self.plan.thinking
        if not begun and thinking is not None and self.num_output and self.output_ids[-1] == thinking.close_id:
            ids = (*self.constraint.gap_ids, *ids)
        put = self.force(ids)
        self.constraint.over = self.constraint.over and len(put) == len(ids)
        return put

    def allowed(self) -> MaskArray | None:
        """Which ids may come next, for one that `is_bound`. None: it is not known yet."""
        assert self.constraint is not None
        thinking = self.plan.thinking
        may_think = thinking is not None and self._may_think and not self.constraint.begun
        return self.constraint.allowed((thinking.open_id,) if thinking is not None and may_think else ())

    @property
    def _may_think(self) -> bool:
        return self._thought is not None and self._thought.may_open

    # --- how far ---

    def tell_progress(self, now: float, clock: StepClock, step_tokens: int) -> SequenceOutput | None:
        """How far the prompt has been read, now and then and where it takes long. Its last step ran `step_tokens`.

        What the clock predicts of the rest counts as much as what has been read took longer than predicted: others may want the processor as well.
        The first piece tells nothing: weights come from the disk, and the clock has only guessed.
        """
        if not self.plan.progress or self.num_output or now - self._told < PROGRESS_SECONDS:
            return None
        self._told = now
        left = None
        if self._timed is None or self.num_computed <= self._timed[1]:  # it begins, once more where its pages were taken
            self._timed = now, self.num_computed
        else:
            began, first = self._timed
            read = clock.predict_reading(self.num_computed - first, first, step_tokens)
            left = (now - began) * clock.predict_reading(self.num_missing, self.num_computed, step_tokens) / read
        return SequenceOutput(self.request_id, progress=Progress(self.num_computed, self.num_prompt, self.num_cached, now - self._started, left))

    # --- the end ---

    def last_output(self, reason: FinishReason, now: float, *, error: QwenboxError | None = None, stop: str | None = None) -> SequenceOutput:
        """Ends the request; `timings` count from arrival, and a stage that never began took no time."""
        started = now if math.isnan(self._started) else self._started
        answered = now if math.isnan(self._answered) else self._answered
        detail = {"stop": stop} if stop else {}
        if self._thought is not None and self._thought.ended is not None:
            detail["thinking_ended"] = self._thought.ended
        return SequenceOutput(
            self.request_id,
            finish_reason=reason,
            error=None if error is None else error.to_wire(),
            usage=Usage(self.num_prompt, self.num_output, self.num_cached),
            timings={"queue": started - self._arrived, "prefill": answered - started, "decode": now - answered},
            detail=detail or None,
        )


def most_pages(plan: GenerationPlan) -> int:
    """Pages at the end of the longest answer; its last token is never run."""
    return pages_for(len(plan.prompt_ids) + max(plan.max_tokens, 1) - 1)
